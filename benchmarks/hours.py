"""How long a search with the defaults takes, as a table in Markdown: python -m benchmarks.hours

From the planner alone, by devices' published rates: ``--dry-run --device cuda:24GB`` says the same of one model.
"""

from collections.abc import Mapping
from typing import Any

from seed import dry_run, resolve
from seed.cli import spell_flag
from seed.config import StudyConfig
from seed.console import format_span, run_command
from seed.dry_run import DryRun
from seed.errors import ResourceError

MODELS = ("demo", "gpt2", "smollm2-135m", "tinyllama", "llama-3.2-3b")
MACHINES = {
    "laptop CPU, 32 GB": {"device": "cpu:32GB"},
    "24 GB GPU": {"device": "cuda:24GB", "dtype": "bfloat16"},
    "80 GB GPU": {"device": "cuda:80GB", "dtype": "bfloat16"},
}


def plan(model: str, machine: str) -> str:
    """How long a search takes on one of the machines, with which options where it fits with fewer; or that it does not fit."""
    planned = plan_with(model, MACHINES[machine])
    options = dry_run.choose_lighter(planned.estimator, trains=planned.trains) or {}
    if options and planned.estimator.shape.gpu_bytes:
        planned = plan_with(model, MACHINES[machine] | options)
    try:
        planned.require_resources()
    except ResourceError:
        return "does not fit"
    flags = " ".join(f"{spell_flag(name)} {value}" for name, value in options.items())
    return format_span(planned.cost.seconds) + f" with `{flags}`" * bool(flags and planned.estimator.shape.gpu_bytes)


def plan_with(model: str, options: Mapping[str, Any]) -> DryRun:
    """Plan a search with these options."""
    return dry_run.plan_search(resolve.resolve_config(StudyConfig(model=model, **options)), name="hours")


def main() -> None:
    """Print a row for each model."""
    print(f"| model | {' | '.join(MACHINES)} | |\n|---|{'---|' * len(MACHINES)}---|")
    for model in MODELS:
        print(f"| {model} | {' | '.join(plan(model, machine) for machine in MACHINES)} | planned |", flush=True)


if __name__ == "__main__":
    run_command(main)
