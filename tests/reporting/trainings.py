"""Comparisons of recoveries with plausible numbers, whole or poorer. Deterministic; no files."""

import math
from collections.abc import Sequence

import numpy as np

from seed.evidence import Ledger, RecoveryComparison, TrainedRun
from seed.records import CurvePoint

DENSE_PARAMS = 2_000_000
TOKENS = 1_000_000
DENSE_LOSS = 2.683
COUNTS = [1000 + 40 * place for place in range(24)]
DENSE_SUMS = [
    count * (DENSE_LOSS + float(off))
    for count, off in zip(COUNTS, np.random.default_rng(0).normal(0, 0.1, 24), strict=True)
]


def make_sums(ratio: float, *, noise: float = 0.002, rng_seed: int = 0, shift: float = 0.0) -> list[float]:
    """Summed losses by document at this PPL ratio to the dense model; documents vary by ``noise`` nats per token, and the
    whole by ``shift``."""
    offs = np.random.default_rng([rng_seed, round(1e4 * ratio)]).normal(0, noise, len(COUNTS))
    offs -= np.dot(offs, COUNTS) / sum(COUNTS)
    return [
        dense + count * (math.log(ratio) + shift + float(off))
        for dense, count, off in zip(DENSE_SUMS, COUNTS, offs, strict=True)
    ]


def make_curve(ratio: float, *, tokens: int = TOKENS, looks: int = 8) -> tuple[CurvePoint, ...]:
    """A curve that comes down to this PPL ratio."""
    low = DENSE_LOSS + math.log(ratio)
    return tuple(
        CurvePoint(
            step=10 * look,
            tokens=tokens * look // looks,
            validation_loss=low + 0.6 * (math.exp(-0.7 * look) - math.exp(-0.7 * looks)),
            kl_divergence=None if look == 0 else 0.3 * math.exp(-0.5 * look),
        )
        for look in range(looks + 1)
    )


def make_run(
    key: str = "drop-5-7",
    *,
    ratio: float = 1.058,
    rng_seed: int = 0,
    recovery: str = "distillation",
    tokens: int = TOKENS,
    test_sums: Sequence[float | None] | None = None,
    noise: float = 0.002,
    shift: float = 0.0,
    seconds: float = 60.0,
) -> TrainedRun:
    """One training; a width lacks no layers."""
    num_dropped = len(key.split("-")) - 1 if key.startswith("drop") else 0
    return TrainedRun(
        key=key,
        num_dropped=num_dropped,
        num_params=DENSE_PARAMS - 120_000 * (num_dropped or 3),
        recovery=recovery,
        tokens=tokens,
        learning_rate=0.001,
        rng_seed=rng_seed,
        start="closed_form",
        curve=make_curve(ratio, tokens=tokens),
        validation_loss=DENSE_LOSS + math.log(ratio),
        test_sums=list(test_sums or make_sums(ratio, rng_seed=rng_seed, noise=noise, shift=shift)),
        seconds=seconds,
    )


def make_ledger(runs: Sequence[TrainedRun], *, study: str = "demo study") -> Ledger:
    """The ledger of these runs."""
    return Ledger(
        study=study,
        model="demo",
        settings={"distill_tokens": TOKENS, "learning_rates": "0.0005, 0.001"},
        dense_num_params=DENSE_PARAMS,
        dense_test_sums=DENSE_SUMS,
        test_counts=COUNTS,
        runs=tuple(runs),
    )


def make_recoveries(runs: Sequence[TrainedRun] | None = None, *, study: str = "demo study") -> RecoveryComparison:
    """Three recoveries of two models: LoRA is worse at equal tokens and level at equal time; states are better."""
    equal_time = {key: {"lora": 1_400_000, "hidden-states": 800_000} for key in ("drop-5", "drop-3-5-7")}
    if runs is None:
        runs = [
            make_run(
                key, ratio=base * factor, rng_seed=seed, recovery=name, tokens=tokens, seconds=seconds, noise=0.0005
            )
            for key, base in (("drop-5", 1.021), ("drop-3-5-7", 1.104))
            for seed in (0, 1, 2)
            for name, factor, tokens, seconds in (
                ("distillation", 1.0, TOKENS, 60.0),
                ("lora", 1.02, TOKENS, 43.0),
                ("hidden-states", 0.985, TOKENS, 75.0),
                ("lora", 1.0005, 1_400_000, 60.2),
                ("hidden-states", 0.992, 800_000, 60.1),
            )
        ]
    return RecoveryComparison(
        ledger=make_ledger(runs, study=study), reference="distillation", equal_tokens=TOKENS, equal_time=equal_time
    )
