"""What scores cost, and what samplers find: python -m benchmarks (make bench), or in full: python -m benchmarks --full (make bench-full)

Parts run one after another; each result is written as soon as it is there. A full run goes on where it was stopped,
unless the code, the libraries or the number of threads changed since. The last line is one JSON object.
"""

import argparse
import hashlib
import json
import platform
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers

from benchmarks import (
    evaluators,
    first_score,
    growth,
    memory,
    overhead,
    recovered,
    regret,
    short,
    speedup,
    starts,
    sweeps,
    trainer,
    tries,
)
from seed import study_dir
from seed.console import Terminal, format_seconds, run_command

# name -> module, and about how many seconds it takes on two cores by default and in full
PARTS: dict[str, tuple[ModuleType, float, float]] = {
    "recovered": (recovered, 400, 1200),
    "first_score": (first_score, 30, 90),
    "tries": (tries, 150, 600),
    "sweeps": (sweeps, 120, 450),
    "speedup": (speedup, 150, 240),
    "short": (short, 130, 350),
    "trainer": (trainer, 300, 1000),
    "starts": (starts, 500, 3000),
    "overhead": (overhead, 300, 900),
    "growth": (growth, 90, 270),
    "memory": (memory, 60, 120),
    "evaluators": (evaluators, 300, 900),
    "regret": (regret, 350, 6000),
}


def main() -> None:
    """Run the parts that are wanted, print tables, and end with the fields."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="What scores cost, what shared work saves, and how soon samplers find what there is.",
    )
    parser.add_argument("--full", action="store_true", help="more of everything; goes on where it was stopped")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"), help="(default: %(default)s)")
    args = parser.parse_args()
    terminal, mode = Terminal(), "full" if args.full else "default"
    wanted = [name for name in PARTS if args.only is None or name in args.only]
    results = read_results(args.out)
    environment = describe()
    todo = [name for name in wanted if not (args.full and is_known(results, f"{name}/{mode}", environment))]
    terminal.say(f"{environment['torch']}, {environment['threads']} threads, {environment['machine']}")
    fields: dict[str, Any] = {}
    spent, expected = 0.0, 0.0
    for name in wanted:
        module = PARTS[name][0]
        if name in todo:
            pace = spent / expected if expected else 1.0  # this machine's, as soon as it is known
            left = pace * sum(PARTS[part][1 + args.full] for part in todo[todo.index(name) :])
            terminal.say(f"\n{name} ({wanted.index(name) + 1} of {len(wanted)}; about {format_seconds(left)} left)")
            began = time.monotonic()
            found = module.measure(terminal, full=args.full)
            seconds = round(time.monotonic() - began, 1)
            spent, expected = spent + seconds, expected + PARTS[name][1 + args.full]
            results[f"{name}/{mode}"] = {"environment": environment, "seconds": seconds, "fields": found}
            study_dir.write_bytes(args.out, json.dumps(results, indent=1).encode())
        else:
            terminal.say(f"\n{name} ({wanted.index(name) + 1} of {len(wanted)}): measured before, {args.out}")
        known = results[f"{name}/{mode}"]
        module.show(terminal, known["fields"])
        terminal.say(f"{name}: took {format_seconds(known['seconds'])}")
        fields |= known["fields"]
    print(json.dumps(round_numbers(fields)))


def read_results(path: Path) -> dict[str, Any]:
    """What was measured before, by part and mode."""
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return known


def is_known(results: dict[str, Any], key: str, environment: dict[str, Any]) -> bool:
    """Was this measured here, by this very code?"""
    return key in results and results[key]["environment"] == environment


def describe() -> dict[str, Any]:
    """What numbers depend on."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for directory in ("seed", "benchmarks"):
        for path in sorted((root / directory).rglob("*.py")):
            digest.update(path.read_bytes())
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "code": digest.hexdigest()[:16],
    }


def round_numbers(value: Any) -> Any:
    """The same with four significant digits, to be read."""
    if isinstance(value, dict):
        return {key: round_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [round_numbers(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    run_command(main)
