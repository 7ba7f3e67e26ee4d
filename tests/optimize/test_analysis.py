"""The hypervolume is Optuna's, and it grows exactly where a trial joins the frontier."""

import math

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from seed.optimize.analysis import measure_hypervolume, measure_progress
from seed.records import TrialRecord
from tests.reporting import factory

PROXY = factory.PROXY


def make_trials(points: list[tuple[float, int]]) -> list[TrialRecord]:
    """Trials at a PPL ratio, with so many layers kept."""
    evaluations = [factory.make_evaluation(tuple(range(12 - kept)), ratio) for ratio, kept in points]
    return [TrialRecord(number=n, state="COMPLETE", evaluation=e) for n, e in enumerate(evaluations)]


@pytest.mark.parametrize("rng_seed", range(5))
def test_hypervolume_is_that_of_optuna(rng_seed: int) -> None:
    rng = np.random.default_rng(rng_seed)
    points = rng.uniform(0.5, 1.2, size=(40, 2)).round(2)  # ties among them, and points beyond the corner
    inside = points[(points < 1).all(axis=1)]
    found = measure_hypervolume([(x, y) for x, y in points.tolist()], (1.0, 1.0))
    assert found == pytest.approx(compute_hypervolume(inside, np.array([1.0, 1.0])))


def test_nothing_dominates_nothing() -> None:
    assert measure_hypervolume([], (1.0, 1.0)) == 0
    assert measure_hypervolume([(1.0, 0.5), (0.5, 1.0)], (1.0, 1.0)) == 0


def test_steps_are_where_the_frontier_grows() -> None:
    trials = make_trials([(1.2, 10), (1.3, 10), (1.1, 10), (1.05, 11), (1.1, 11), (1.1, 10)])
    progress = measure_progress(trials, proxy=PROXY)
    assert progress is not None
    assert [number for number, _ in progress.steps] == [0, 2, 3]
    assert progress.num_trials == 6
    assert progress.reference == (pytest.approx(1.2), 1.0)  # twice what the worst of the depths' best loses
    latencies = {kept: factory.make_latency(kept).ratio for kept in (10, 11)}
    best = [(1.1, latencies[10]), (1.05, latencies[11])]
    assert progress.steps[-1][1] == pytest.approx(measure_hypervolume(best, progress.reference))
    volumes = [volume for _, volume in progress.steps]
    assert volumes == sorted(volumes)


def test_the_last_step_is_the_whole_study() -> None:
    trials = factory.make_trials()
    progress = measure_progress(trials, proxy=PROXY)
    assert progress is not None
    points = [
        (t.evaluation.qualities[PROXY].ppl_ratio, t.evaluation.latency.ratio) for t in trials if t.state == "COMPLETE"
    ]
    assert progress.steps[-1][1] == pytest.approx(measure_hypervolume(points, progress.reference))


def test_a_hopeless_depth_does_not_move_the_corner() -> None:
    progress = measure_progress(make_trials([(1.1, 11), (50.0, 6), (1.2, 10)]), proxy=PROXY)
    assert progress is not None
    assert progress.reference[0] == pytest.approx(1.4)
    hopeless = measure_progress(make_trials([(50.0, 6)]), proxy=PROXY)
    assert hopeless is not None
    assert math.isfinite(hopeless.steps[-1][1])


def test_without_a_faster_candidate_there_is_no_progress() -> None:
    assert measure_progress([], proxy=PROXY) is None
    assert measure_progress(make_trials([(1.1, 12)]), proxy=PROXY) is None
    assert measure_progress(make_trials([(1.1, 11)]), proxy="another") is None
