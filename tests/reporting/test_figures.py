"""Figures show the result's numbers: as many points as there are models, in their places; nothing where nothing is."""

import json
from typing import Any

import msgspec
import plotly.graph_objects as go  # type: ignore[import-untyped]
import pytest

from seed.evidence import StudyRecord
from seed.records import Frontier
from seed.reporting.figures import draw_gallery, draw_pareto, draw_sensitivity
from seed.results import StudyResult, compute_result
from seed.stats import student_t

from . import factory
from .conftest import check_snapshot

replace = msgspec.structs.replace


def find_trace(figure: go.Figure, name: str) -> go.Scatter:
    """Return the one trace of this name."""
    (trace,) = [trace for trace in figure.data if trace.name == name]
    return trace


def list_points(figure: go.Figure) -> list[str]:
    """A line for each trace: its name, how many points it has, and the first of them with their bars."""
    lines = []
    for trace in json.loads(figure.to_json(), parse_constant=pytest.fail)["data"]:
        kept = (trace["x"], trace.get("z") or trace["y"], trace.get("error_x", {}), trace.get("error_y", {}))
        x, y, *errors = (one.get("array", []) if isinstance(one, dict) else one for one in kept)
        numbers = [[round_all(value) for value in values[:4]] for values in (x, y, *errors)]
        lines.append(f"{trace['type']} {trace.get('name', '')}: {len(y)} points {numbers}")
    return lines


def round_all(value: Any) -> Any:
    return (
        list(map(round_all, value))
        if isinstance(value, list)
        else round(value, 4)
        if isinstance(value, float)
        else value
    )


def test_what_the_figures_show(full: StudyRecord, undistilled: StudyRecord) -> None:
    lines = []
    for kind, study in (("full", full), ("undistilled", undistilled)):
        for name, figure in draw_gallery(compute_result(study)).items():
            lines += [f"# {kind}: {name}", *list_points(figure), ""]
    check_snapshot("figures.txt", "\n".join(lines))


def test_an_empty_study_has_one_figure(undistilled: StudyRecord) -> None:
    nothing = Frontier(proxy=factory.PROXY, members=(), num_scored=0, space=factory.SPACE)
    empty = replace(undistilled, trials=(), frontier=nothing, sensitivities=())
    [pareto] = draw_gallery(compute_result(empty)).values()
    assert [trace.name for trace in pareto.data] == ["dense model"]


# ---- the Pareto plot


def test_points_stand_where_they_were_measured(full: StudyRecord) -> None:
    result = compute_result(full)
    figure = draw_pareto(result)
    trace = find_trace(figure, "scored, validation text")
    assert list(trace.x) == pytest.approx([model.latency.ratio for model in result.scored], abs=1e-4)
    assert list(trace.y) == pytest.approx([model.quality.ppl_ratio for model in result.scored], abs=1e-4)
    for models, name in (
        (result.distilled, "distilled, test text"),
        (result.width_baselines, "uniform width, distilled, test text"),
    ):
        trace = find_trace(figure, name)
        assert list(trace.y) == pytest.approx([model.ppl_ratio.value for model in models], abs=1e-4)
        bars = [(model.ppl_ratio.high or 0) - (model.ppl_ratio.value or 0) for model in models]
        assert list(trace.error_y.array) == pytest.approx(bars)


@pytest.mark.parametrize("ratios", [(0.9897, 0.9901, 0.9906), (1.02, 1.1, 1.4), (0.9, 1.0, 2.0)])
def test_every_distilled_model_lies_in_the_plot_with_its_bars(record: StudyRecord, ratios: tuple[float, ...]) -> None:
    models = [
        replace(result, test=factory.make_quality(ratio, error=0.02), latency=factory.make_latency(kept))
        for result, ratio, kept in zip(record.distilled, ratios, (11, 10, 5), strict=False)
    ]
    figure = draw_pareto(compute_result(replace(record, distilled=tuple(models), equivalences=())))
    (left, right), (low, high) = figure.layout.xaxis.range, figure.layout.yaxis.range
    trace = find_trace(figure, "distilled, test text")
    for x, y, bar in zip(trace.x, trace.y, trace.error_y.array, strict=True):
        assert left < x < right
        assert low < y - bar < y + bar < high
        assert bar == pytest.approx(0.02 * student_t(47))
    [star] = zip(*(find_trace(figure, "to ship")[axis] for axis in "xy"), strict=True)
    assert any(star == pytest.approx(point, abs=1e-4) for point in zip(trace.x, trace.y, strict=True))


def test_outliers_do_not_squeeze_the_frontier(result: StudyResult) -> None:
    figure = draw_pareto(result)
    low, high = figure.layout.yaxis.range
    trials = find_trace(figure, "scored, validation text").y
    assert low < 1.0 < 1.1 < high < 1.5 < max(trials)


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


# ---- the search


def test_sensitivity_draws_each_layer_by_proxy(record: StudyRecord, result: StudyResult) -> None:
    raw, closed = [trace for trace in draw_sensitivity(result).data if trace.mode == "markers"]
    for trace, known in zip((raw, closed), record.sensitivities, strict=True):
        assert list(trace.x) == list(range(factory.NUM_LAYERS))
        assert list(trace.y) == pytest.approx([max(0.1, 100 * (ratio - 1)) for ratio in known.singles])
