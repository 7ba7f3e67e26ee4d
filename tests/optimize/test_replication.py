"""Replicas together: means and spreads by hand, equivalence within a margin, and how often chance is taken for sameness."""

import math

import msgspec
import numpy as np
import pytest

from seed.evidence import StudyRecord
from seed.optimize.analysis import compare_replicated, summarize_replicas
from seed.records import DenseResult, DistillResult, Replica
from seed.stats import EQUIVALENT, HIGHER, NOTHING
from tests.reporting import factory

COUNTS_D = np.array([1000 + 40 * place for place in range(24)])
DENSE_D = 2.7 * COUNTS_D


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
