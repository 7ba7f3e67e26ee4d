"""Experiments on a finished search: python -m seed.experiment compare|fidelity|recoveries studies/demo

compare: what does searching buy over published ways to choose layers, at equal cost?
fidelity: does the cheap score order candidates as full distillation does?
recoveries: which way to recover is best, at equal tokens and at equal time?
Everything finished is kept; run again to go on.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seed.console import Terminal, run_command
from seed.evidence import WIDTH
from seed.optimize.strategies import STRATEGIES
from seed.recoveries import RECOVERIES
from seed.stages import options

STRATEGY_NAMES = (*STRATEGIES, WIDTH)


def run_experiment(
    name: str,
    path: Path,
    *,
    terminal: Terminal,
    device: str | None = None,
    trust_remote_code: bool = False,
    **asked: Any,
) -> None:
    """Run an experiment, or what is left of it, and write its page.

    Args:
        name: ``compare``, ``fidelity`` or ``recoveries``.
        path: the folder of a finished search.
        terminal: where progress and the result are written.
        device: default: as chosen for the search.
        trust_remote_code: run the code that the study's model brings along.
        asked: options of the experiment's own.

    Raises:
        SeedError: anything a user can mend.
    """
    from seed.experiments import compare, fidelity, recoveries, runner
    from seed.reporting.experiments import Findings, show_findings, write_page

    experiments: dict[str, Callable[..., Findings]] = {
        "compare": compare.compare_strategies,
        "fidelity": fidelity.measure_fidelity,
        "recoveries": recoveries.compare_recoveries,
    }
    with runner.open_search(path, terminal=terminal, device=device, trust_remote_code=trust_remote_code) as search:
        findings = experiments[name](search, **asked)
        page = search.folder.root / f"{name}.html"
    command = options.spell_command("seed.experiment", {**asked, **findings.repeat}, name, str(path))
    write_page(findings, page, command=command)
    show_findings(terminal, findings, page=page)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = options.CommandParser(
        prog="python -m seed.experiment",
        description="Experiments on a finished search.",
        epilog="The same command again continues a stopped experiment.",
    )
    experiments = parser.add_subparsers(dest="name", required=True, metavar="compare|fidelity|recoveries")

    def add(
        name: str, text: str, *, distill_tokens: str, rng_seeds: str, learning_rate: str
    ) -> argparse.ArgumentParser:
        experiment = experiments.add_parser(name, help=text, description=text, argument_default=argparse.SUPPRESS)
        options.add_study(experiment)
        options.add_trainings(
            experiment, distill_tokens=distill_tokens, rng_seeds=rng_seeds, learning_rate=learning_rate
        )
        options.add_trust(experiment)
        return experiment

    compare = add(
        "compare",
        "Let strategies choose layers at equal cost, and see what distillation makes of what they chose.",
        distill_tokens="of each distillation (default: the study's)",
        rng_seeds="of strategies and distillations (default: 0 1 2)",
        learning_rate="of distillations (default: the study's)",
    )
    compare.add_argument(
        "--strategies",
        nargs="+",
        choices=STRATEGY_NAMES,
        metavar="NAME",
        help=f"any of {', '.join(STRATEGY_NAMES)} (default: all); others may be added later",
    )
    compare.add_argument(
        "--cost",
        type=options.positive_float,
        metavar="N",
        help="layer-tokens that each may spend (default: what greedy removal with recovery costs)",
    )
    fidelity = add(
        "fidelity",
        "Measure whether the cheap scores order candidates as full distillation does.",
        distill_tokens="of each final (default: four times the study's)",
        rng_seeds="of the finals (default: 1 2)",
        learning_rate="of the finals (default: the study's)",
    )
    number = options.positive_int
    fidelity.add_argument(
        "--depths", type=number, nargs="+", metavar="N", help="numbers of dropped layers (default: the two deepest)"
    )
    fidelity.add_argument("--per-depth", type=number, metavar="N", help="candidates a depth (default: 20)")
    fidelity.add_argument(
        "--near-margin",
        type=options.positive_float,
        metavar="X",
        help="0.03: half of them within 3 %% of the depth's best (default)",
    )
    fidelity.add_argument(
        "--short-steps", type=number, nargs="+", metavar="N", help="short distillations (default: 10 30)"
    )
    recoveries = add(
        "recoveries",
        "Recover models of a finished search in several ways, at equal tokens and at equal time.",
        distill_tokens="of each training (default: the study's)",
        rng_seeds="each model is recovered under each (default: 0 1 2)",
        learning_rate="of training all weights; low-rank updates get four times that (default: tuned for each depth and recovery)",
    )
    recoveries.add_argument(
        "--trials",
        type=options.whole_number,
        nargs="+",
        metavar="N",
        help="whose models, as numbered in the report (default: the frontier's best of the deepest cut)",
    )
    recoveries.add_argument(
        "--recoveries",
        nargs="+",
        choices=RECOVERIES,
        metavar="NAME",
        help=f"any of {', '.join(RECOVERIES)} (default: all)",
    )
    return parser


def main() -> None:
    """Read the command line and run."""
    words = options.read_words(make_parser())
    run_experiment(words.pop("name"), words.pop("path"), terminal=Terminal(), **words)


if __name__ == "__main__":
    run_command(main)
