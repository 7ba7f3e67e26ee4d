"""The list of commands: python -m seed

Installed, ``seed`` is that too, and runs them: ``seed search --model gpt2`` is ``python -m seed.search --model gpt2``.
"""

import ast
import importlib
import sys
from pathlib import Path

from seed import __version__
from seed.console import run_command
from seed.errors import SeedError

COMMANDS = ("search", "distill", "evaluate", "export", "report", "dashboard", "experiment")


def main() -> None:
    """Run the command that is named first, or list all."""
    run_command(answer)


def answer() -> None:
    """List the commands, or run one as ``python -m`` does.

    Raises:
        SeedError: there is no such command, or it says so itself.
    """
    match sys.argv[1:]:
        case [] | ["-h" | "--help"]:
            list_commands()
        case ["--version"]:
            print(f"seed {__version__}")
        case [name, *words] if name in COMMANDS:
            sys.argv = [name, *words]
            importlib.import_module(f"seed.{name}").main()
        case [name, *_]:
            raise SeedError(f"seed {name}: no such command. There are {', '.join(COMMANDS)}.")


def list_commands() -> None:
    """List the commands, each in its own words."""
    for name in COMMANDS:
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        about = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        print(f"python -m seed.{name:<12} {about.partition(':')[0].partition(' python -m')[0]}")
    print("\nWith --help, each lists its options. seed search is short for python -m seed.search, and so on.")


if __name__ == "__main__":
    main()
