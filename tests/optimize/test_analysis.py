"""Sensitivities are the sweep's own scores, by proxy."""

import math

import pytest

from seed.optimize.analysis import read_sensitivities
from seed.records import ScoreRow, SearchSpace

SPACE = SearchSpace(num_layers=4, droppable_layers=(0, 1, 2, 3), min_dropped=1, max_dropped=2)
DENSE = ScoreRow(key="dense", proxy="dense", sums=[10.0, 20.0], counts=[5, 5])


def row(key: str, proxy: str, ratio: float) -> ScoreRow:
    """A line of the sweep at a PPL ratio."""
    return ScoreRow(key=key, proxy=proxy, sums=[10.0 + 10 * math.log(ratio), 20.0])


def test_singles_are_told_by_proxy() -> None:
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
    assert found.singles == (pytest.approx(1.3), None, None, None)


def test_scores_that_are_no_numbers_and_sweeps_without_singles_are_left_out() -> None:
    broken = ScoreRow(key="drop-1", proxy="none", sums=[None, None])
    assert read_sensitivities([DENSE, broken, row("drop-1-2", "none", 1.2)], SPACE) == ()
    assert read_sensitivities([row("drop-1", "none", 1.2)], SPACE) == ()
    assert read_sensitivities([], SPACE) == ()
