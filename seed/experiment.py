"""Experiments on a finished search: python -m seed.experiment compare|fidelity|recoveries studies/demo

compare: what does searching buy over published ways to choose layers, at equal cost?
fidelity: does the cheap score order candidates as full distillation does?
recoveries: which way to recover is best, at equal tokens and at equal time?
Everything finished is kept; run again to go on.
"""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seed.cli import (
    COUNT,
    WHOLE,
    CommandParser,
    choose_from,
    device_option,
    option,
    read_command,
    spell_command,
    study_argument,
    trust_option,
)
from seed.console import Terminal, run_command
from seed.evidence import WIDTH
from seed.optimize.strategies import STRATEGIES
from seed.recovery import RECOVERIES

STRATEGY_NAMES = (*STRATEGIES, WIDTH)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Study and device."""

    study: Path = study_argument()
    device: str | None = device_option()
    trust_remote_code: bool = trust_option()


@dataclass(frozen=True, kw_only=True)
class CompareCommand(Experiment):
    """Let strategies choose layers at equal cost, and see what distillation makes of what they chose."""

    strategies: tuple[str, ...] | None = option(
        f"any of {', '.join(STRATEGY_NAMES)} (default: all); others may be added later",
        kind=choose_from(STRATEGY_NAMES),
        metavar="NAME",
        many=True,
    )
    depths: tuple[int, ...] | None = option(
        "numbers of dropped layers that are distilled (default: all of the search)", kind=COUNT, many=True
    )
    cost: float | None = option("layer-tokens each may spend (default: what greedy removal with recovery costs)")
    rng_seeds: tuple[int, ...] = option(
        "of strategies and distillations (default: 0 1 2)", (0, 1, 2), kind=WHOLE, many=True
    )
    distill_tokens: int | None = option("of each distillation (default: the study's)")
    learning_rate: float | None = option("of distillations (default: the study's)")


@dataclass(frozen=True, kw_only=True)
class FidelityCommand(Experiment):
    """Measure whether the cheap scores order candidates as full distillation does."""

    depths: tuple[int, ...] | None = option(
        "numbers of dropped layers (default: the two deepest)", kind=COUNT, many=True
    )
    per_depth: int = option("candidates a depth (default: 20)", 20)
    near_margin: float = option("0.03: half of them within 3 % of the depth's best (default)", 0.03)
    short_steps: tuple[int, ...] = option("short distillations (default: 10 30)", (10, 30), kind=COUNT, many=True)
    rng_seeds: tuple[int, ...] = option("of the finals (default: 1 2)", (1, 2), kind=WHOLE, many=True)
    distill_tokens: int | None = option("of each final (default: four times the study's)")
    learning_rate: float | None = option("of the finals (default: the study's)")


@dataclass(frozen=True, kw_only=True)
class RecoveriesCommand(Experiment):
    """Recover models of a finished search in several ways, at equal tokens and at equal time."""

    trials: tuple[int, ...] = option(
        "whose models, as the report numbers them (default: the frontier's best of the deepest cut)",
        (),
        kind=WHOLE,
        many=True,
    )
    recoveries: tuple[str, ...] | None = option(
        f"any of {', '.join(RECOVERIES)} (default: all)", kind=choose_from(RECOVERIES), metavar="NAME", many=True
    )
    rng_seeds: tuple[int, ...] = option(
        "each model is recovered under each (default: 0 1 2)", (0, 1, 2), kind=WHOLE, many=True
    )
    distill_tokens: int | None = option("of each training (default: the study's)")
    learning_rate: float | None = option(
        "of training all weights, low-rank updates get four times that (default: tuned for each depth and recovery)"
    )


COMMANDS: dict[str, type[Experiment]] = {
    "compare": CompareCommand,
    "fidelity": FidelityCommand,
    "recoveries": RecoveriesCommand,
}


def run_experiment(
    name: str,
    study: Path,
    *,
    terminal: Terminal,
    device: str | None = None,
    trust_remote_code: bool = False,
    **asked: Any,
) -> None:
    """Run an experiment on a finished search, or what is left of it, and write its page.

    ``name`` is that of its command, ``asked`` are options of its own.
    """
    from seed.experiments import compare, fidelity, recoveries, runner
    from seed.reporting.document import Findings, show_findings, write_findings

    experiments: dict[str, Callable[..., Findings]] = {
        "compare": compare.compare_strategies,
        "fidelity": fidelity.measure_fidelity,
        "recoveries": recoveries.compare_recoveries,
    }
    with runner.open_search(study, terminal=terminal, device=device, trust_remote_code=trust_remote_code) as search:
        findings = experiments[name](search, **asked)
        page = search.folder.root / f"{name}.html"
    told = {key: value for key, value in asked.items() if value != getattr(COMMANDS[name], key, None)}
    command = spell_command("seed.experiment", {**told, **findings.repeat}, name, str(study))
    write_findings(findings, page, command=command)
    show_findings(terminal, findings, page=page)


def main() -> None:
    """Read the command line and run."""
    name, *words = sys.argv[1:] or [""]
    if name not in COMMANDS:
        parser = CommandParser(
            prog="python -m seed.experiment",
            description="Experiments on a finished search. The same command again continues a stopped one.",
            epilog="Options of each: python -m seed.experiment compare --help",
        )
        parser.add_argument("experiment", choices=COMMANDS, metavar="|".join(COMMANDS))
        parser.parse_args(sys.argv[1:2])
    asked = read_command(COMMANDS[name], words, name=name)
    run_experiment(name, terminal=Terminal(), **dataclasses.asdict(asked))


if __name__ == "__main__":
    run_command(main)
