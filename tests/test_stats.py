"""Intervals hold the truth as often as they say, over studies that are drawn; and there are none where they would not."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from seed.stats import (
    CANNOT_TELL,
    EQUIVALENT,
    FEWEST_PAIRS,
    HIGHER,
    LOWER,
    MARGIN,
    NOTHING,
    clustered_standard_error,
    count_effective,
    estimate_excess,
    estimate_pairs,
    judge_difference,
    measure_margin,
    reach_over_documents,
    resample_tau,
)

COUNTS_D = np.array([1000 + 40 * place for place in range(24)])
T_1, T_2 = 12.7062047, 4.3026527  # Student's t at 0.975 with one and two degrees of freedom

TRUTH = 0.05
STUDIES = 600
ERROR = 3 * (0.95 * 0.05 / STUDIES) ** 0.5  # three standard errors of a share of them


def draw_documents(rng: np.random.Generator, num_documents: int, unevenness: float) -> tuple[np.ndarray, np.ndarray]:
    """Summed loss differences and tokens of documents, whose lengths vary, and each of which has an effect of its own."""
    counts_D = np.maximum(2, np.exp(unevenness * rng.standard_normal(num_documents)) * 300).round()
    means_D = (
        TRUTH + 0.02 * rng.standard_normal(num_documents) + 0.3 * rng.standard_normal(num_documents) / counts_D**0.5
    )
    return means_D * counts_D, counts_D


@pytest.mark.parametrize("num_documents", [4, 8, 40])
@pytest.mark.parametrize("unevenness", [0.0, 1.0])
def test_an_interval_over_documents_holds_the_truth_95_times_in_100(num_documents: int, unevenness: float) -> None:
    rng = np.random.default_rng(0)
    held = stated = by_the_normal = 0
    for _ in range(STUDIES):
        sums_D, counts_D = draw_documents(rng, num_documents, unevenness)
        reach = reach_over_documents(count_effective(counts_D))
        error = clustered_standard_error(sums_D, counts_D)
        miss = abs(sums_D.sum() / counts_D.sum() - TRUTH)
        by_the_normal += miss <= 1.96 * error
        if reach is not None:
            stated += 1
            held += miss <= reach * error
    assert held / stated > 0.935 - ERROR
    assert unevenness or held / stated < 0.95 + ERROR
    assert num_documents > 8 or by_the_normal / STUDIES < 0.93  # which is what Student's t is for


def test_few_documents_have_no_interval_and_uneven_ones_count_for_fewer() -> None:
    assert count_effective(np.full(7, 3)) == pytest.approx(7)
    assert count_effective(np.array([2, 1])) == pytest.approx(9 / 5)
    assert reach_over_documents(2.0) is None
    assert reach_over_documents(count_effective(np.array([10_000, 50, 50, 50]))) is None  # four, of which one counts
    assert reach_over_documents(4) == pytest.approx(3.182, abs=1e-3)
    assert reach_over_documents(1e6) == pytest.approx(1.96, abs=1e-3)


@pytest.mark.parametrize("num_pairs", [FEWEST_PAIRS, 12, 60])
@pytest.mark.parametrize("spikes", [False, True])
def test_an_interval_of_pairs_holds_the_truth_95_times_in_100(num_pairs: int, spikes: bool) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(STUDIES):
        times = 0.02 * rng.standard_normal((2, num_pairs))
        if spikes:
            times += (rng.random(times.shape) < 0.08) * rng.exponential(0.5, times.shape)
        value, half = estimate_pairs(TRUTH + times[1] - times[0])
        assert half is not None
        held += abs(value - TRUTH) <= half
    assert held / STUDIES > 0.94 - ERROR
    assert spikes or held / STUDIES < 0.95 + ERROR


def test_pairs_that_are_like_their_neighbours_count_for_less_and_few_pairs_have_no_interval() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(500):
        noise = 0.02 * rng.standard_normal(48)
        for i in range(1, 48):
            noise[i] += 0.6 * noise[i - 1]
        value, half = estimate_pairs(noise)
        assert half is not None
        held += abs(value) <= half
    assert held / 500 > 0.86  # over single pairs it would be two thirds
    assert estimate_pairs(np.array([0.3, 0.1, 0.2])) == (pytest.approx(0.2), None)


# ---- models beside each other


def test_a_margin_is_students_for_as_many_degrees_of_freedom_as_there_are() -> None:
    pair = np.array([0.0, 2.0])  # a variance of the mean of 1, known with one degree of freedom
    assert measure_margin([pair]) == pytest.approx(T_1)
    assert measure_margin([pair, np.array([7.0])]) == pytest.approx(T_1)  # one draw says nothing of how it varies
    assert measure_margin([pair, pair[::-1]]) == pytest.approx(math.sqrt(2) * T_2)
    assert measure_margin([pair, np.zeros(9)]) == pytest.approx(T_1)
    assert measure_margin([np.ones(5), np.zeros(3)]) == 0.0
    assert measure_margin([]) == 0.0


@pytest.mark.parametrize(
    ("runs", "seeds", "documents"), [(0.0, 0.01, 0.0), (0.0, 0.01, 0.01), (0.01, 0.0, 0.005), (0.0, 0.0, 0.02)]
)
def test_intervals_hold_nothing_to_be_told_apart_19_times_in_20(runs: float, seeds: float, documents: float) -> None:
    rng = np.random.default_rng(5)
    counts = rng.integers(200, 600, 40)

    def draw(scale: float, *shape: int) -> np.ndarray:
        return scale * rng.standard_normal(shape)

    def measure() -> np.ndarray:
        """Three runs and three seeds of a strategy that is no better or worse; each document has its own liking."""
        return (draw(runs, 3, 1, 1) + draw(seeds, 3, 3, 1) + draw(documents * math.sqrt(40), 1, 1, 40)) * counts

    repeats = 400
    found = [estimate_excess(measure(), measure(), counts) for _ in range(repeats)]
    missed = sum(not (e.low or 0.0) <= 0 <= (e.high or 0.0) for e in found) / repeats
    assert missed < 0.075


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


def test_judging_is_even_handed_and_tells_nothing_of_losses_that_are_no_numbers() -> None:
    one_RSD, other_RSD = draw(np.random.default_rng(3), math.log(1.02), noise=0.002)
    ours, verdict = judge_difference(one_RSD, other_RSD, COUNTS_D)
    theirs, turned = judge_difference(other_RSD, one_RSD, COUNTS_D)
    assert (verdict, turned) == (HIGHER, LOWER)
    assert (1 + (ours.value or 0)) * (1 + (theirs.value or 0)) == pytest.approx(1)
    one_RSD[0, 0, 0] = np.nan
    assert judge_difference(one_RSD, other_RSD, COUNTS_D) == (NOTHING, CANNOT_TELL)


@pytest.mark.parametrize(
    ("documents", "seeds", "noise", "side"),
    [(0.004, 0.0, 0.004, 1), (0.0, 0.001, 0.0, -1), (0.001, 0.001, 0.001, 1)],
)
def test_models_that_differ_by_the_margin_are_seldom_called_equivalent(
    documents: float, seeds: float, noise: float, side: int
) -> None:
    rng, draws = np.random.default_rng([7, side + 1]), 500
    found = [
        judge_difference(
            *draw(rng, side * math.log1p(MARGIN), documents=documents, seeds=seeds, noise=noise), COUNTS_D
        )[1]
        for _ in range(draws)
    ]
    # two one-sided tests at 5 %; three standard errors of the simulation, and a little for Satterthwaite's approximation
    assert found.count(EQUIVALENT) / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws) + 0.005
    assert found.count(LOWER if side > 0 else HIGHER) / draws < 0.01


def test_one_distillation_of_each_makes_no_two_models_equivalent() -> None:
    counts = np.full(40, 100)
    sums = np.full((1, 1, 40), 270.0) + np.random.default_rng(0).normal(0, 0.01, 40)
    assert judge_difference(sums, sums + 0.01, counts)[1] != "equivalent"
    assert judge_difference(sums, sums + 0.01, counts, between_replicas=True)[1] == "equivalent"
    two = np.concatenate([sums, sums + 0.001], axis=1)
    assert judge_difference(two, two + 0.01, counts)[1] == "equivalent"


# ---- orders


def tau_by_pairs(one: Sequence[float], other: Sequence[float], *, counts: Sequence[int] | None = None) -> float:
    """Kendall's tau-b, pair by pair; a candidate drawn twice stands in the list twice."""
    drawn = [i for i in range(len(one)) for _ in range(1 if counts is None else counts[i])]
    agreeing = untied = other_untied = 0
    for i, j in itertools.combinations(drawn, 2):
        if i != j:
            a, b = np.sign(one[i] - one[j]), np.sign(other[i] - other[j])
            agreeing, untied, other_untied = agreeing + a * b, untied + abs(a), other_untied + abs(b)
    return float(agreeing / math.sqrt(untied * other_untied)) if untied and other_untied else math.nan


def test_tau_with_ties_and_draws_with_duplicates_match_pairs_counted_one_by_one() -> None:
    rng = np.random.default_rng(5)
    for size in (2, 3, 7, 12):
        one, other = rng.integers(0, 6, size).astype(float), rng.integers(0, 6, size).astype(float)
        counts = rng.multinomial(size, np.full(size, 1 / size), 40)
        found = resample_tau(one, other_C=other, counts_BC=counts)
        wanted = [tau_by_pairs(one.tolist(), other.tolist(), counts=draw.tolist()) for draw in counts]
        np.testing.assert_allclose(found, wanted)
