"""Intervals hold the truth as often as they say, over studies that are drawn; and there are none where they would not."""

import numpy as np
import pytest

from seed.stats import (
    FEWEST_PAIRS,
    clustered_standard_error,
    count_effective,
    estimate_pairs,
    reach_over_documents,
    student_t,
)

TRUTH = 0.05
STUDIES = 1500
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


def test_few_documents_have_no_interval() -> None:
    assert reach_over_documents(2.0) is None
    assert reach_over_documents(count_effective(np.array([10_000, 50, 50, 50]))) is None  # four, of which one counts
    assert reach_over_documents(4) == pytest.approx(3.182, abs=1e-3)
    assert reach_over_documents(1e6) == pytest.approx(1.96, abs=1e-3)
    assert student_t(10) == pytest.approx(2.228, abs=1e-3)


def test_documents_of_one_length_all_count() -> None:
    assert count_effective(np.full(7, 3)) == pytest.approx(7)
    assert count_effective(np.array([2, 1])) == pytest.approx(9 / 5)


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


def test_pairs_that_are_like_their_neighbours_count_for_less() -> None:
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


def test_a_few_pairs_have_a_median_and_no_interval() -> None:
    assert estimate_pairs(np.array([0.3, 0.1, 0.2])) == (pytest.approx(0.2), None)


def test_drift_between_blocks_widens_the_interval() -> None:
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.standard_normal(48)
    _, steady = estimate_pairs(noise)
    _, drifting = estimate_pairs(noise + np.linspace(0, 0.1, 48))
    assert steady is not None
    assert drifting is not None
    assert drifting > 3 * steady
