"""The hypervolume is Optuna's, and grows where a trial joins the frontier; sensitivities are the sweep's own scores, by proxy."""

import math

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from seed.optimize.analysis import measure_hypervolume, measure_progress, read_sensitivities
from seed.records import ScoreRow, SearchSpace, TrialRecord
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


# ---- what layers and pairs cost

SPACE = SearchSpace(num_layers=4, droppable_layers=(0, 1, 2, 3), min_dropped=1, max_dropped=2)
DENSE = ScoreRow(key="dense", proxy="dense", sums=[10.0, 20.0], counts=[5, 5])


def row(key: str, proxy: str, ratio: float) -> ScoreRow:
    """A line of the sweep at a PPL ratio."""
    return ScoreRow(key=key, proxy=proxy, sums=[10.0 + 10 * math.log(ratio), 20.0])


def test_singles_and_pairs_are_told_by_proxy() -> None:
    rows = [
        DENSE,
        row("drop-1", "closed-form", 1.1),
        row("drop-1", "none", 1.5),
        row("drop-3", "none", 1.2),
        row("drop-1-3", "closed-form", 1.4),
        row("drop-0-1-3", "closed-form", 2.0),
        row("drop-2", "short-distillation", 1.01),
    ]
    raw, closed, short = read_sensitivities(rows, SPACE)
    assert (raw.proxy, closed.proxy, short.proxy) == ("none", "closed-form", "short-distillation")
    assert raw.singles == (None, pytest.approx(1.5), None, pytest.approx(1.2))
    assert closed.singles == (None, pytest.approx(1.1), None, None)
    assert closed.pairs == ((1, 3, pytest.approx(1.4)),)
    assert raw.base == closed.base == 1.0


def test_layers_that_were_gone_before_do_not_count() -> None:
    space = SearchSpace(num_layers=4, droppable_layers=(0, 2, 3), min_dropped=2, max_dropped=3, gone_layers=(1,))
    rows = [
        DENSE,
        row("drop-1", "none", 1.1),
        row("drop-0-1", "none", 1.3),
        row("drop-1-2-3", "none", 1.6),
        row("drop-2", "none", 9.0),
    ]
    [found] = read_sensitivities(rows, space)
    assert found.base == pytest.approx(1.1)
    assert found.singles == (pytest.approx(1.3), None, None, None)
    assert found.pairs == ((2, 3, pytest.approx(1.6)),)


def test_scores_that_are_no_numbers_and_sweeps_without_singles_are_left_out() -> None:
    broken = ScoreRow(key="drop-1", proxy="none", sums=[None, None])
    assert read_sensitivities([DENSE, broken, row("drop-1-2", "none", 1.2)], SPACE) == ()
    assert read_sensitivities([row("drop-1", "none", 1.2)], SPACE) == ()
    assert read_sensitivities([], SPACE) == ()
