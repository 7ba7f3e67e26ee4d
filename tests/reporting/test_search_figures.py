"""Figures of the search show the record's numbers, and nothing where nothing is known."""

import math

import msgspec
import numpy as np
import pytest

from seed.findings import Rival, RivalPick, SearchGain, Sensitivity, StudyRecord
from seed.reporting.search_figures import draw_gain, draw_progress, draw_sensitivity, measure_interactions
from seed.stats import student_t

from . import factory


def test_interactions_are_beside_one_by_one() -> None:
    known = Sensitivity(
        rung="none", base=1.0, singles=(1.1, 1.2, None, 2.0), pairs=((0, 1, 1.5), (0, 2, 1.7), (1, 3, 2.4))
    )
    found = measure_interactions(known)
    assert found[0, 1] == found[1, 0] == pytest.approx(1.5 / 1.32 - 1)
    assert found[1, 3] == pytest.approx(0)
    assert np.isfinite(found).sum() == 4
    assert np.isnan(measure_interactions(msgspec.structs.replace(known, base=None))).all()
    gone = measure_interactions(msgspec.structs.replace(known, base=1.05))
    assert gone[0, 1] == pytest.approx(1.5 * 1.05 / 1.32 - 1)


def test_sensitivity_draws_each_layer_by_rung_and_each_pair(record: StudyRecord) -> None:
    figure = draw_sensitivity(record)
    raw, closed = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "markers"]
    for trace, known in zip((raw, closed), record.sensitivities, strict=True):
        assert list(trace.x) == list(range(factory.NUM_LAYERS))
        assert list(trace.y) == pytest.approx([max(0.1, 100 * (ratio - 1)) for ratio in known.singles])
    [tiles] = [trace for trace in figure.data if trace.type == "heatmap"]
    drawn = {(i, j) for i, line in enumerate(tiles.z) for j, value in enumerate(line) if value is not None}
    assert drawn == {(i, j) for i in range(12) for j in range(12) if i != j}
    assert tiles.zmin == -tiles.zmax < 0


def test_sensitivity_without_pairs_is_one_panel(record: StudyRecord) -> None:
    bare = tuple(msgspec.structs.replace(one, pairs=()) for one in record.sensitivities)
    figure = draw_sensitivity(msgspec.structs.replace(record, sensitivities=bare))
    assert all(trace.type == "scatter" for trace in figure.data)
    assert "Below" not in figure.layout.meta["caption"]
    assert not draw_sensitivity(msgspec.structs.replace(record, sensitivities=())).data


def test_progress_ends_at_the_whole(record: StudyRecord) -> None:
    [line] = draw_progress(record).data
    assert list(line.x) == [0, 0, 5, 40, 177]
    assert list(line.y) == pytest.approx([0, 20, 40, 100, 100])
    assert "long been flat" in draw_progress(record).layout.meta["caption"]
    whole = msgspec.structs.replace(record, frontier=msgspec.structs.replace(record.frontier, num_scored=298))
    assert "Every candidate was scored" in draw_progress(whole).layout.meta["caption"]
    assert not draw_progress(msgspec.structs.replace(record, progress=None)).data


def test_gain_draws_what_rivals_would_have_chosen(record: StudyRecord) -> None:
    one, two, best = (factory.make_candidate(*dropped) for dropped in ((3,), (3, 4), (1,)))
    picks = (
        RivalPick(candidate=one, best=best, ppl_ratio=1.04, standard_error=0.01),
        RivalPick(candidate=two, best=two, ppl_ratio=None, standard_error=None),
    )
    rival = Rival(strategy="perplexity", title="one-shot PPL", cost=1.0, num_scores=3, picks=picks, is_whole=True)
    gain = SearchGain(rung="none", solver="enumerated", cost=10.0, num_scores=30, rivals=(rival,))
    [trace] = draw_gain(msgspec.structs.replace(record, gain=gain)).data
    assert (list(trace.x), trace.name) == (["\N{MINUS SIGN}1"], "one-shot PPL")
    assert list(trace.y) == pytest.approx([4.0])
    assert math.isclose(trace.error_y.array[0], student_t(47))  # over 48 documents
    assert not draw_gain(record).data
