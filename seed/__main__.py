"""What can be run: python -m seed."""

import ast
from pathlib import Path

COMMANDS = ("search", "distill", "evaluate", "export", "report", "dashboard", "experiment")


def main() -> None:
    """List the commands, each in its own words."""
    for name in COMMANDS:
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        about = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        print(f"python -m seed.{name:<12} {about.partition(':')[0].partition(' python -m')[0]}")
    print("\nWith --help, each lists its options.")


if __name__ == "__main__":
    main()
