"""Trainings made to answer a question, not to be exported: which are wanted, done one by one, each written as it comes.

The question's own record keeps them in a ``Ledger``; what the numbers say is decided elsewhere.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from seed.console import Terminal
from seed.evidence import Ledger, TrainedRun
from seed.scoring.quality import logits_of, measure_losses
from seed.scoring.sweep import Sweep
from seed.stages import schooling, searching
from seed.stages.recoveries import RECOVERIES
from seed.stages.schooling import Member
from seed.stages.workbench import Workbench

LOOKS = 8
RATE_FACTORS = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How all trainings for one question go. ``rates``: learning rates to choose from."""

    distill_tokens: int
    rng_seeds: tuple[int, ...]
    rates: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A training that is wanted."""

    member: Member
    recovery: str
    tokens: int
    rng_seed: int
    stages: tuple[str, ...] = ()

    def is_met_by(self, run: TrainedRun) -> bool:
        """Is it this run?"""
        return (run.key, run.recovery, run.tokens, run.rng_seed, run.stages) == (
            self.member.key,
            self.recovery,
            self.tokens,
            self.rng_seed,
            self.stages,
        )


def list_rates(bench: Workbench) -> tuple[float, ...]:
    """Learning rates to choose from: half, once, twice and four times the study's middle one, by distillation of all weights."""
    middle = bench.protocol.short_learning_rate / RECOVERIES[bench.protocol.recovery].rate_factor
    return tuple(factor * middle for factor in RATE_FACTORS)


def describe_settings(bench: Workbench, settings: TrainingSettings) -> dict[str, str | int | float]:
    """What decides the numbers, for people and for going on; what is trained may be added to later."""
    return {
        "distill_tokens": settings.distill_tokens,
        "batch_tokens": bench.batch_windows * bench.protocol.window_tokens,
        "rng_seeds": ", ".join(map(str, settings.rng_seeds)),
        "learning_rates": ", ".join(f"{rate:g}" for rate in settings.rates),
        "calibration_tokens": bench.protocol.calibration_tokens,
        "validation_tokens": bench.protocol.streams["validation"].tokens,
        "test_tokens": bench.protocol.streams["test"].tokens,
    }


def open_ledger(bench: Workbench, settings: dict[str, str | int | float]) -> Ledger:
    """An empty ledger, with the dense model's losses on test text."""
    test = measure_losses(
        logits_of(bench.teacher.model), bench.streams["test"], micro_batch=bench.micro_batch, device=bench.device
    )
    return Ledger(
        study=bench.folder.name,
        model=bench.protocol.model,
        settings=settings,
        dense_num_params=sum(weight.numel() for weight in bench.teacher.model.parameters()),
        dense_test_sums=test.sums.tolist(),
        test_counts=test.counts.tolist(),
    )


def list_missing(ledger: Ledger, wanted: Sequence[Wanted]) -> list[Wanted]:
    """The wanted trainings that are not done, each once."""
    return [one for one in dict.fromkeys(wanted) if not any(map(one.is_met_by, ledger.runs))]


def add_run(ledger: Ledger, run: TrainedRun) -> Ledger:
    """The ledger with one more run."""
    return msgspec.structs.replace(ledger, runs=(*ledger.runs, run))


def train_wanted(
    bench: Workbench,
    sweep: Sweep,
    ledger: Ledger,
    wanted: Sequence[Wanted],
    *,
    rates: dict[tuple[str, str], float],
    keep: Callable[[Ledger], object],
    on_step: Callable[[str], None],
    on_run: Callable[[TrainedRun], None] = lambda run: None,
) -> Ledger:
    """Do what is missing, and return the whole ledger. ``rates``: by model and recovery."""
    for one in list_missing(ledger, wanted):
        run, _ = train_one(
            bench,
            sweep,
            one,
            learning_rate=rates[one.member.key, one.recovery],
            on_step=functools.partial(on_step, f"{one.member.key}, {RECOVERIES[one.recovery].title}"),
        )
        ledger = add_run(ledger, run)
        keep(ledger)
        on_run(run)
    return ledger


def train_one(
    bench: Workbench,
    sweep: Sweep,
    wanted: Wanted,
    *,
    learning_rate: float,
    on_step: Callable[[], None],
    spent_tokens: int = 0,
) -> tuple[TrainedRun, schooling.Trained]:
    """Train a model as wanted, and judge it on test text. ``spent_tokens``: of the wanted ones, in earlier stages."""
    member = wanted.member
    settings = schooling.full_settings(
        bench,
        member.candidate,
        distill_tokens=wanted.tokens - spent_tokens,
        learning_rate=learning_rate,
        looks=LOOKS,
        rng_seed=wanted.rng_seed,
        recovery=RECOVERIES[wanted.recovery],
    )
    trained = schooling.distill_once(bench, sweep, member, settings, on_step=on_step)
    run = TrainedRun(
        key=member.key,
        num_dropped=len(member.candidate.dropped_layers),
        num_params=sum(weight.numel() for weight in trained.student.parameters()),
        recovery=wanted.recovery,
        tokens=wanted.tokens,
        learning_rate=learning_rate,
        rng_seed=wanted.rng_seed,
        start=trained.start,
        stages=wanted.stages,
        curve=trained.went.curve,
        validation_loss=schooling.finite(trained.went.best_loss),
        test_sums=schooling.list_sums(trained.test),
        seconds=trained.seconds,
    )
    return run, trained


def store_states(
    terminal: Terminal, bench: Workbench, sweep: Sweep, settings: TrainingSettings, *, tokens: int
) -> None:
    """Compute the dense model's states for trainings of so many tokens, and for tuning, which has the study's own random seed."""
    steps, rng_seeds = schooling.count_steps(bench, tokens), sorted({bench.protocol.rng_seed, *settings.rng_seeds})
    searching.store_states(terminal, bench, sweep, steps=steps, rng_seeds=rng_seeds)


def tune_rates(
    terminal: Terminal, bench: Workbench, sweep: Sweep, wanted: Sequence[Wanted], settings: TrainingSettings
) -> dict[tuple[str, str], float]:
    """The learning rates of what is wanted, found with progress; see ``choose_rates``."""
    steps = schooling.count_steps(bench, settings.distill_tokens // schooling.TUNING_SHARE)
    num_tried = len(settings.rates) if len(settings.rates) > 1 else 0
    with terminal.stage("tuning", total=count_tuned(wanted) * num_tried * steps) as advance:
        return choose_rates(bench, sweep, wanted, rates=settings.rates, on_step=functools.partial(advance, 1))


def choose_rates(
    bench: Workbench,
    sweep: Sweep,
    wanted: Sequence[Wanted],
    *,
    rates: Sequence[float],
    on_step: Callable[[str], None],
) -> dict[tuple[str, str], float]:
    """The learning rate of each wanted model and recovery, tuned on a tenth of its tokens; remembered in the study.

    Rates are tuned for the first model of each depth and kind, and a recovery's rates are its own multiple of those given.
    A single rate is taken as it is.
    """
    found: dict[tuple[str, str], float] = {}
    tuned: dict[tuple[int, bool, str], float] = {}
    for one in wanted:
        place, recovery = _name_tuned(one), RECOVERIES[one.recovery]
        if len(rates) == 1:  # there is nothing to choose
            tuned[place] = rates[0] * recovery.rate_factor
        if place not in tuned:
            try_it = functools.partial(
                _try_rate, bench, sweep, one, functools.partial(_say_tuning, on_step, one.member.key)
            )
            tuned[place] = schooling.choose_learning_rate(
                bench.folder,
                one.member,
                rates=tuple(rate * recovery.rate_factor for rate in rates),
                distill_tokens=one.tokens,
                try_it=try_it,
                recovery=recovery,
            )
        found[one.member.key, one.recovery] = tuned[place]
    return found


def _try_rate(bench: Workbench, sweep: Sweep, one: Wanted, on_step: Callable[[int], None], rate: float) -> float:
    return schooling.try_rate(
        bench,
        sweep,
        one.member,
        rate=rate,
        distill_tokens=one.tokens,
        on_step=on_step,
        recovery=RECOVERIES[one.recovery],
    )


def _say_tuning(on_step: Callable[[str], None], key: str, step: int) -> None:
    on_step(f"{key}, learning rate")


def count_tuned(wanted: Sequence[Wanted]) -> int:
    """How many learning rates have to be found."""
    return len({_name_tuned(one) for one in wanted})


def _name_tuned(one: Wanted) -> tuple[int, bool, str]:
    return len(one.member.candidate.dropped_layers), one.member.width is None, one.recovery
