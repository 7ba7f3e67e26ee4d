"""Replicas together: means and spreads by hand, equivalence within a margin, and how often chance is taken for sameness."""

import math

import msgspec
import numpy as np
import pytest

from seed.findings import StudyRecord
from seed.optimize.replication import (
    CANNOT_TELL,
    EQUIVALENT,
    HIGHER,
    LOWER,
    MARGIN,
    compare_replicated,
    judge_difference,
    summarize_replicas,
)
from seed.records import DenseResult, DistillResult, Estimate, Replica
from tests.reporting import factory

COUNTS_D = np.array([1000 + 40 * place for place in range(24)])
DENSE_D = 2.7 * COUNTS_D
NOTHING = Estimate(value=None, low=None, high=None)


def draw(
    rng: np.random.Generator,
    per_token: float = 0.0,
    *,
    num_seeds: int = 3,
    documents: float = 0.0,
    seeds: float = 0.0,
    noise: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Summed losses of two models, (1, S, D): one lies above the other by so many nats per token, and what varies."""
    shape = (1, num_seeds, len(COUNTS_D))
    other_RSD = np.broadcast_to(COUNTS_D * rng.normal(2.7, 0.1, (1, 1, len(COUNTS_D))), shape)
    above_RSD = per_token + rng.normal(0, documents, (1, 1, shape[2])) + rng.normal(0, seeds, (1, num_seeds, 1))
    return other_RSD + COUNTS_D * (above_RSD + rng.normal(0, noise, shape)), other_RSD


def judge(per_token: float, **varies: float) -> str:
    rng = np.random.default_rng(1)
    return judge_difference(*draw(rng, per_token, **varies), COUNTS_D)[1]  # type: ignore[arg-type]


# ---- two models


@pytest.mark.parametrize(
    ("per_token", "noise", "verdict"),
    [
        (0.0, 0.002, EQUIVALENT),
        (0.0, 0.0, EQUIVALENT),
        (0.001, 0.002, EQUIVALENT),  # known to differ, by less than anybody minds
        (math.log(1.02), 0.002, HIGHER),
        (-math.log(1.02), 0.002, LOWER),
        (0.0, 0.2, CANNOT_TELL),
        (math.log(1.02), 0.5, CANNOT_TELL),
    ],
)
def test_models_are_judged_by_their_paired_difference(per_token: float, noise: float, verdict: str) -> None:
    assert judge(per_token, noise=noise) == verdict


def test_the_margin_is_judged_by_the_narrow_interval_and_a_difference_by_the_wide_one() -> None:
    one_RSD, other_RSD = draw(np.random.default_rng(2), 0.002, documents=0.002, seeds=0.001, noise=0.002)
    excess, verdict = judge_difference(one_RSD, other_RSD, COUNTS_D, margin=0.02)
    assert verdict == EQUIVALENT
    assert excess.low is not None
    assert excess.high is not None
    # between the two: the 95 % interval reaches out of the margin, the 90 % interval does not
    assert judge_difference(one_RSD, other_RSD, COUNTS_D, margin=0.999 * excess.high)[1] == EQUIVALENT
    assert judge_difference(one_RSD, other_RSD, COUNTS_D, margin=0.5 * excess.high)[1] != EQUIVALENT


def test_judging_is_even_handed() -> None:
    one_RSD, other_RSD = draw(np.random.default_rng(3), math.log(1.02), noise=0.002)
    ours, verdict = judge_difference(one_RSD, other_RSD, COUNTS_D)
    theirs, turned = judge_difference(other_RSD, one_RSD, COUNTS_D)
    assert (verdict, turned) == (HIGHER, LOWER)
    assert ours.value is not None
    assert theirs.value is not None
    assert (1 + ours.value) * (1 + theirs.value) == pytest.approx(1)


def test_losses_that_are_no_numbers_cannot_be_told() -> None:
    one_RSD, other_RSD = draw(np.random.default_rng(4))
    one_RSD[0, 0, 0] = np.nan
    assert judge_difference(one_RSD, other_RSD, COUNTS_D) == (NOTHING, CANNOT_TELL)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(
    ("documents", "seeds", "noise"),
    [(0.004, 0.0, 0.004), (0.004, 0.001, 0.004), (0.0, 0.001, 0.0), (0.001, 0.001, 0.001)],
)
def test_models_that_differ_by_the_margin_are_seldom_called_equivalent(
    documents: float, seeds: float, noise: float, side: int
) -> None:
    rng, draws = np.random.default_rng([7, side + 1]), 1000
    found = [
        judge_difference(
            *draw(rng, side * math.log1p(MARGIN), documents=documents, seeds=seeds, noise=noise), COUNTS_D
        )[1]
        for _ in range(draws)
    ]
    # two one-sided tests at 5 %; three standard errors of the simulation, and a little for Satterthwaite's approximation
    assert found.count(EQUIVALENT) / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws) + 0.005
    assert found.count(LOWER if side > 0 else HIGHER) / draws < 0.01


def test_models_that_are_the_same_are_seldom_told_apart_and_often_called_equivalent() -> None:
    rng, draws = np.random.default_rng(11), 1000
    found = [
        judge_difference(*draw(rng, documents=0.003, seeds=0.0005, noise=0.003), COUNTS_D)[1] for _ in range(draws)
    ]
    assert (found.count(HIGHER) + found.count(LOWER)) / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)
    assert found.count(EQUIVALENT) / draws > 0.9


# ---- replicas of a study


def make_replicas(*per_token: float, noise: float = 0.0) -> tuple[Replica, ...]:
    """Replicas that lie so many nats per token above the dense model."""
    rng = np.random.default_rng(5)
    return tuple(
        Replica(
            rng_seed=seed,
            validation_loss=2.7 + above,
            test_sums=(DENSE_D + COUNTS_D * (above + rng.normal(0, noise, len(COUNTS_D)))).tolist(),
            best_step=10,
            seconds=9.0,
        )
        for seed, above in enumerate(per_token)
    )


@pytest.fixture(scope="module")
def study() -> StudyRecord:
    return factory.make_record()


@pytest.fixture(scope="module")
def dense(study: StudyRecord) -> DenseResult:
    return msgspec.structs.replace(study.dense, test_sums=DENSE_D.tolist(), test_counts=COUNTS_D.tolist())


def test_replicas_have_a_mean_with_an_interval_and_a_spread(dense: DenseResult) -> None:
    found = summarize_replicas(make_replicas(0.04, 0.05, 0.06), dense)
    assert found.rng_seeds == (0, 1, 2)
    half = 4.3026527 * 0.01 / math.sqrt(3)  # Student's t with two degrees of freedom
    ratio = found.ppl_ratio
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx(
        (math.exp(0.05), math.exp(0.05 - half), math.exp(0.05 + half))
    )
    assert found.spread == pytest.approx(np.std(np.exp([0.04, 0.05, 0.06]), ddof=1))


def test_one_replica_has_no_spread_and_a_broken_one_no_ratio(dense: DenseResult) -> None:
    (only,) = make_replicas(0.05)
    found = summarize_replicas([only], dense)
    assert (found.ppl_ratio.value, found.spread) == (pytest.approx(math.exp(0.05)), None)
    broken = msgspec.structs.replace(only, rng_seed=1, test_sums=[None] * len(COUNTS_D))
    found = summarize_replicas([only, broken], dense)
    assert (found.ppl_ratio, found.spread) == (NOTHING, None)


def replicate(result: DistillResult, *, above: float, loss: float, seeds: int = 3) -> DistillResult:
    """A result with replicas, validated at ``loss``."""
    return msgspec.structs.replace(
        result,
        replicas=make_replicas(*[above + 1e-4 * seed for seed in range(seeds)]),
        validation=msgspec.structs.replace(result.validation, loss=loss),
    )


def test_models_of_a_depth_are_compared_with_the_one_that_validated_best(
    study: StudyRecord, dense: DenseResult
) -> None:
    shallow, shallow_other, deep, deep_other, *_ = study.distilled
    results = [
        replicate(deep_other, above=0.101, loss=2.81),
        replicate(deep, above=0.1, loss=2.8),
        replicate(shallow_other, above=0.05, loss=2.75),
        replicate(shallow, above=0.02, loss=2.72),
    ]
    one, two = compare_replicated(results, dense)
    assert (one.one, one.other, one.verdict) == (shallow_other.key, shallow.key, HIGHER)
    assert one.excess.value == pytest.approx(math.expm1(0.03))
    assert (two.one, two.other, two.verdict) == (deep_other.key, deep.key, EQUIVALENT)


def test_models_under_other_random_seeds_and_lone_ones_are_not_compared(study: StudyRecord, dense: DenseResult) -> None:
    best, other, *_ = study.distilled
    results = [replicate(best, above=0.02, loss=2.7), replicate(other, above=0.02, loss=2.8, seeds=2)]
    assert compare_replicated(results, dense) == ()
    assert compare_replicated(results[:1], dense) == ()
    assert compare_replicated([], dense) == ()


def test_one_distillation_of_each_makes_no_two_models_equivalent() -> None:
    counts = np.full(40, 100)
    sums = np.full((1, 1, 40), 270.0) + np.random.default_rng(0).normal(0, 0.01, 40)
    assert judge_difference(sums, sums + 0.01, counts)[1] != "equivalent"
    assert judge_difference(sums, sums + 0.01, counts, between_replicas=True)[1] == "equivalent"
    two = np.concatenate([sums, sums + 0.001], axis=1)
    assert judge_difference(two, two + 0.01, counts)[1] == "equivalent"
