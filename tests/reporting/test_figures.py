"""Figures show the result's numbers: as many points as there are models, in their places; nothing where nothing is."""

import math

import msgspec
import numpy as np
import plotly.graph_objects as go  # type: ignore[import-untyped]
import pytest

from seed.evidence import Sensitivity, StudyRecord
from seed.records import Frontier
from seed.reporting import figures, wording
from seed.reporting.figures import draw_gallery, draw_pareto
from seed.reporting.search_figures import (
    draw_gain,
    draw_progress,
    draw_proxy_against_final,
    draw_sensitivity,
    measure_interactions,
)
from seed.results import StudyResult, compute_result
from seed.stats import student_t

from . import factory

replace = msgspec.structs.replace


def find_trace(figure: go.Figure, name: str) -> go.Scatter:
    """Return the one trace of this name."""
    (trace,) = [trace for trace in figure.data if trace.name == name]
    return trace


def test_figures_are_finite_json(record: StudyRecord, full: StudyRecord) -> None:
    names = ["pareto", "layers", "sensitivity", "agreement", "progress", "curves", "latency"]
    assert list(draw_gallery(compute_result(record))) == names
    for figure in draw_gallery(compute_result(full)).values():
        text = figure.to_json()
        assert "NaN" not in text
        assert "Infinity" not in text


def test_poorer_studies_have_fewer_figures(undistilled: StudyRecord) -> None:
    drawn = draw_gallery(compute_result(undistilled))
    assert list(drawn) == ["pareto", "layers", "sensitivity", "progress", "latency"]
    names = [trace.name for trace in drawn["pareto"].data]
    assert names == ["scored candidates", "runners-up", "frontier by the proxy", "dense model"]
    nothing = Frontier(proxy=factory.PROXY, members=(), num_scored=0, space_size=298)
    empty = replace(undistilled, trials=(), frontier=nothing, sensitivities=(), progress=None)
    [pareto] = draw_gallery(compute_result(empty)).values()
    assert [trace.name for trace in pareto.data] == ["dense model"]


# ---- the Pareto plot


def test_points_stand_where_they_were_measured(result: StudyResult) -> None:
    figure = draw_pareto(result)
    trace = find_trace(figure, "scored candidates")
    assert list(trace.x) == pytest.approx([model.latency.ratio for model in result.scored], abs=1e-4)
    assert list(trace.y) == pytest.approx([model.quality.ppl_ratio for model in result.scored], abs=1e-4)
    assert len(trace.x) == 172
    frontier = find_trace(figure, "frontier by the proxy")
    best = [
        model for model, member in zip(result.frontier, result.record.frontier.members, strict=True) if not member.rank
    ]
    assert list(frontier.x) == pytest.approx([model.latency.ratio for model in best], abs=1e-4)
    assert len(set(frontier.marker.color)) == 3
    assert len(find_trace(figure, "runners-up").x) == 3
    texts = [annotation.text for annotation in figure.layout.annotations]
    assert texts == ["+2 %", "+5 %", "+10 %", *(wording.name_drop(depth) for depth in (1, 2, 3))]


def test_judged_models_stand_with_their_intervals_and_links(full: StudyRecord) -> None:
    result = compute_result(full)
    figure = draw_pareto(result)
    for models, name in ((result.distilled, "distilled, on test text"), (result.baselines, "uniform width, distilled")):
        trace = find_trace(figure, name)
        assert list(trace.y) == [model.ppl_ratio.value for model in models]
        assert list(trace.error_y.array) == pytest.approx(
            [(model.ppl_ratio.high or 0) - (model.ppl_ratio.value or 0) for model in models]
        )
        assert list(trace.error_x.arrayminus) == pytest.approx([0.006] * len(models))
        assert [row[-1] for row in trace.customdata] == [model.link for model in models]
    links = find_trace(figure, "proxy to distilled")
    assert list(links.x)[2::3] == [None] * 6
    assert list(links.y)[1::3] == [model.ppl_ratio.value for model in result.distilled]


@pytest.mark.parametrize("ratios", [(0.9897, 0.9901, 0.9906), (1.02, 1.1, 1.4), (0.9, 1.0, 2.0)])
def test_every_distilled_model_lies_in_the_plot_with_its_bars(record: StudyRecord, ratios: tuple[float, ...]) -> None:
    models = [
        replace(result, test=factory.make_quality(ratio, error=0.02), latency=factory.make_latency(kept))
        for result, ratio, kept in zip(record.distilled, ratios, (11, 10, 5), strict=False)
    ]
    figure = draw_pareto(compute_result(replace(record, distilled=tuple(models), equivalences=())))
    (left, right), (low, high) = figure.layout.xaxis.range, figure.layout.yaxis.range
    trace = find_trace(figure, "distilled, on test text")
    for x, y, bar in zip(trace.x, trace.y, trace.error_y.array, strict=True):
        assert left < x < right
        assert low < y - bar < y + bar < high
        assert bar == pytest.approx(0.02 * student_t(47))


def test_outliers_do_not_squeeze_the_frontier(result: StudyResult) -> None:
    figure = draw_pareto(result)
    low, high = figure.layout.yaxis.range
    trials = find_trace(figure, "scored candidates").y
    assert low < 1.0 < 1.1 < high < 1.5 < max(trials)
    assert figure.layout.meta["num_above"] == sum(ratio > high for ratio in trials)


def test_the_limit_is_drawn_where_there_is_one(record: StudyRecord) -> None:
    limited = replace(record, plan=replace(record.plan, max_ppl_ratio=1.07))
    levels = [1.02, 1.05, 1.1]
    assert [shape.y0 for shape in draw_pareto(compute_result(limited)).layout.shapes] == [1.07, *levels]
    assert [shape.y0 for shape in draw_pareto(compute_result(record)).layout.shapes] == levels


def test_what_no_other_model_beats_is_joined(record: StudyRecord) -> None:
    *others, last = record.distilled
    beaten = replace(last, test=factory.make_quality(1.4), latency=factory.make_latency(11))
    models = (*others, beaten)
    front = find_trace(draw_pareto(compute_result(replace(record, distilled=models))), "frontier, distilled")
    points = {(r.latency.ratio, r.test.ppl_ratio) for r in models} | {(1.0, 1.0)}
    joined = set(zip(front.x, front.y, strict=True))
    assert (1.0, 1.0) in joined
    assert joined < points
    for x, y in points - joined:
        assert any(a <= x and b <= y for a, b in joined)
    assert list(front.y) == sorted(front.y, reverse=True)


# ---- the models


def test_layer_map_marks_dropped_layers_and_counts_the_best(result: StudyResult) -> None:
    members, shares = figures.draw_layer_map(result).data
    for row, model in zip(members.z, result.frontier, strict=True):
        assert tuple(layer for layer, mark in enumerate(row) if mark) == model.candidate.dropped_layers
        assert len(row) == factory.NUM_LAYERS
    assert [tuple(row) for row in shares.z] == [row.shares for row in result.drops]


def test_proxy_against_final_has_one_point_per_distilled_model(record: StudyRecord, result: StudyResult) -> None:
    figure = draw_proxy_against_final(result)
    found = [(trace.name, len(trace.x)) for trace in figure.data]
    assert found == [("1 dropped", 2), ("2 dropped", 2), ("3 dropped", 2)]
    assert len({trace.marker.color for trace in figure.data}) == 3
    assert [y for trace in figure.data for y in trace.y] == [r.validation.ppl_ratio for r in record.distilled]


def test_learning_curves_start_at_step_0_and_mark_the_kept_checkpoint(record: StudyRecord, result: StudyResult) -> None:
    figure = figures.draw_learning_curves(result)
    for trace, one in zip(figure.data, record.distilled, strict=True):
        assert trace.x[0] == 0
        assert list(trace.y) == [point.validation_loss for point in one.curve]
        assert trace.marker.size.index(max(trace.marker.size)) == 4
    assert len({(trace.line.color, trace.line.dash) for trace in figure.data}) == 6
    assert [shape.y0 for shape in figure.layout.shapes] == [record.dense.validation.loss]


def test_latency_shows_each_structure_once_beside_the_line(result: StudyResult) -> None:
    figure = figures.draw_latency(result)
    line = find_trace(figure, "in proportion to depth")
    assert (list(line.x), list(line.y)) == ([9, 12], [0.75, 1.0])
    measured = find_trace(figure, "measured, one point per structure")
    assert list(measured.x) == [9, 10, 11, 12]
    assert list(measured.y) == pytest.approx([factory.make_latency(kept).ratio for kept in (9, 10, 11, 12)])
    assert list(measured.error_y.array) == pytest.approx([0.006, 0.006, 0.006, 0])
    assert len(find_trace(figure, "prefill").x) == 3


# ---- the search


def test_interactions_are_beside_one_by_one() -> None:
    known = Sensitivity(
        proxy="none", base=1.0, singles=(1.1, 1.2, None, 2.0), pairs=((0, 1, 1.5), (0, 2, 1.7), (1, 3, 2.4))
    )
    found = measure_interactions(known)
    assert found[0, 1] == found[1, 0] == pytest.approx(1.5 / 1.32 - 1)
    assert found[1, 3] == pytest.approx(0)
    assert np.isfinite(found).sum() == 4
    assert np.isnan(measure_interactions(replace(known, base=None))).all()
    assert measure_interactions(replace(known, base=1.05))[0, 1] == pytest.approx(1.5 * 1.05 / 1.32 - 1)


def test_sensitivity_draws_each_layer_by_rung_and_each_pair(record: StudyRecord, result: StudyResult) -> None:
    figure = draw_sensitivity(result)
    raw, closed = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "markers"]
    for trace, known in zip((raw, closed), record.sensitivities, strict=True):
        assert list(trace.x) == list(range(factory.NUM_LAYERS))
        assert list(trace.y) == pytest.approx([max(0.1, 100 * (ratio - 1)) for ratio in known.singles])
    [tiles] = [trace for trace in figure.data if trace.type == "heatmap"]
    drawn = {(i, j) for i, line in enumerate(tiles.z) for j, value in enumerate(line) if value is not None}
    assert drawn == {(i, j) for i in range(12) for j in range(12) if i != j}
    assert tiles.zmin == -tiles.zmax < 0
    bare = replace(record, sensitivities=tuple(replace(one, pairs=()) for one in record.sensitivities))
    assert all(trace.type == "scatter" for trace in draw_sensitivity(compute_result(bare)).data)


def test_progress_ends_at_the_whole(result: StudyResult) -> None:
    [line] = draw_progress(result).data
    assert list(line.x) == [0, 0, 5, 40, 177]
    assert list(line.y) == pytest.approx([0, 20, 40, 100, 100])


def test_gain_draws_what_rivals_would_have_chosen(full: StudyRecord) -> None:
    greedy, same, short = draw_gain(compute_result(full)).data
    assert (list(short.x), short.name) == (["\N{MINUS SIGN}2"], "short")
    assert list(greedy.y) == pytest.approx([0.0, 1.3, -0.6])
    assert math.isclose(short.error_y.array[0], 0.2 * student_t(47))  # over 48 documents
    assert list(same.y) == [0.0, 0.0]
