"""Evidence on claims and comparisons of recoveries with plausible numbers, whole or poorer. Deterministic; no files."""

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from seed.evidence import ClaimsEvidence, Ledger, RecoveryComparison, TrainedRun
from seed.records import CurvePoint, Estimate, Latency
from seed.results import list_ratios

from . import factory

NUM_LAYERS = 12
DENSE_PARAMS = 2_000_000
TOKENS = 1_000_000
NOTHING = Estimate(value=None, low=None, high=None)
HALF = 0.004  # of the intervals of made-up statistics
DENSE_LOSS = 2.683
COUNTS = [1000 + 40 * place for place in range(24)]
DENSE_SUMS = [
    count * (DENSE_LOSS + float(off))
    for count, off in zip(COUNTS, np.random.default_rng(0).normal(0, 0.1, 24), strict=True)
]
ROLES = {
    "light": "drop-5",
    "middle": "drop-5-7",
    "deep": "drop-3-5-7",
    "severe": "drop-1-3-4-5-7-8",
    "raw pair": "drop-4-5",
    "pair": "drop-5-7",
    "width middle": "width-288-4",
    "width deep": "width-256-3",
}
RATIOS = {
    "drop-5": 1.021,
    "drop-5-7": 1.058,
    "drop-3-5-7": 1.104,
    "drop-4-5": 1.071,
    "width-288-4": 1.12,
    "width-256-3": 1.19,
}


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
    stages: tuple[str, ...] = (),
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
        stages=stages,
        curve=make_curve(ratio, tokens=tokens // 2 if stages else tokens),
        validation_loss=DENSE_LOSS + math.log(ratio),
        test_sums=list(test_sums or make_sums(ratio, rng_seed=rng_seed, noise=noise, shift=shift)),
        seconds=seconds,
    )


def make_runs(ratios: Mapping[str, float] = RATIOS, *, rng_seeds: Sequence[int] = (0, 1, 2)) -> tuple[TrainedRun, ...]:
    """Every training that claims rest on. Random seeds differ by a hundredth of a per cent or so."""
    runs: list[TrainedRun] = []
    for seed in rng_seeds:
        off = 1e-4 * (seed - 1)
        runs += [make_run(key, ratio=ratio, rng_seed=seed, shift=off) for key, ratio in ratios.items()]
        runs.append(make_run("drop-2-5-7", ratio=1.092, rng_seed=seed, stages=("drop-5-7",), shift=off))
        for key, whole, low_rank in (("drop-5-7", 1.09, 1.11), (ROLES["severe"], 1.6, 1.9)):
            runs.append(make_run(key, ratio=whole, rng_seed=seed, recovery="pretraining", shift=off))
            runs.append(make_run(key, ratio=low_rank, rng_seed=seed, recovery="lora-pretraining", shift=off))
    return tuple(runs)


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


def make_singles(scale: float) -> dict[str, list[float | None]]:
    """Summed losses of single removals; the last inner layers cost most of the inner ones."""
    costs = (1.4, 0.04, 0.03, 0.035, 0.04, 0.03, 0.04, 0.05, 0.08, 0.1, 0.12, 0.9)
    return {
        str(layer): list(make_sums(math.exp(scale * cost), rng_seed=layer, noise=0.003))
        for layer, cost in enumerate(costs)
    }


def make_latency(ratio: float, *, batch: int, half: float = 0.01) -> Latency:
    """A latency at this ratio."""
    return msgspec.structs.replace(
        factory.make_latency(9),
        workload=f"decode 64 tokens after 64, batch {batch}",
        ratio=ratio,
        ratio_low=ratio - half,
        ratio_high=ratio + half,
    )


def make_evidence(
    runs: Sequence[TrainedRun] | None = None,
    *,
    roles: Mapping[str, str] = ROLES,
    latencies: Mapping[str, Latency] | None = None,
    study: str = "demo study",
) -> ClaimsEvidence:
    """Evidence that all claims can be judged by: those of the report hold, width is slower."""
    if latencies is None:
        latencies = {
            "drop-3-5-7, batch 1": make_latency(0.78, batch=1),
            "drop-3-5-7, batch 8": make_latency(0.8, batch=8),
            "width-256-3, batch 1": make_latency(1.0, batch=1),
            "width-256-3, batch 8": make_latency(0.91, batch=8),
        }
    return ClaimsEvidence(
        ledger=make_ledger(make_runs() if runs is None else runs, study=study),
        num_layers=NUM_LAYERS,
        roles=dict(roles),
        members={},
        singles={"none": make_singles(1.6), "closed_form": make_singles(1.0)},
        dense_validation_sums=DENSE_SUMS,
        validation_counts=COUNTS,
        pairs={
            "pair": {"none": list(make_sums(1.2)), "closed_form": list(make_sums(1.1))},
            "raw pair": {"none": list(make_sums(1.17)), "closed_form": list(make_sums(1.12))},
        },
        latencies=dict(latencies),
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


def estimate_ratio(evidence: ClaimsEvidence, runs: Sequence[TrainedRun]) -> Estimate:
    """The mean of the ratios with an interval of one width; the statistics have their own tests."""
    ratios = list_ratios(runs, dense_sums=evidence.ledger.dense_test_sums, test_counts=evidence.ledger.test_counts)
    if len(ratios) < len(runs):
        return NOTHING
    mean = sum(ratios) / len(ratios)
    return Estimate(value=mean, low=mean - HALF, high=mean + HALF)


def estimate_cost(evidence: ClaimsEvidence, weights: dict[int, float], *, rung: str) -> Estimate:
    """The cost of a layer with an interval of one width."""
    [layer] = weights
    sums = evidence.singles[rung][str(layer)]
    known = [loss for loss in sums if loss is not None]
    if len(known) < len(sums):
        return NOTHING
    cost = (sum(known) - sum(evidence.dense_validation_sums)) / sum(evidence.validation_counts)
    return Estimate(value=cost, low=cost - HALF, high=cost + HALF)
