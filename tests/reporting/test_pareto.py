"""The Pareto plot shows the record's numbers: each candidate once, in its place, and what no other model beats."""

import msgspec
import pytest

from seed.findings import StudyRecord
from seed.records import TrialRecord
from seed.reporting import pareto, wording

from . import factory
from .test_figures import find_trace


def list_small(record: StudyRecord) -> list[TrialRecord]:
    """Return the complete trials that are not on the frontier, which draws them larger."""
    members = {member.trial_number for member in record.frontier.members}
    return [trial for trial in record.trials if trial.state == "COMPLETE" and trial.number not in members]


def test_pareto_shows_every_complete_trial_once_and_no_other(record: StudyRecord) -> None:
    figure = pareto.draw_pareto(record)
    trace, complete = find_trace(figure, "scored candidates"), list_small(record)
    assert len(record.trials) == len(complete) + 6 + 2
    assert len(trace.x) == len(trace.y) == len(complete) == 172
    links = [
        row[-1]
        for name in ("scored candidates", "frontier by the proxy", "runners-up")
        for row in find_trace(figure, name).customdata
    ]
    assert len(links) == len(set(links)) == 178
    expected = [trial.evaluation.qualities[record.frontier.rung].ppl_ratio for trial in complete]
    assert list(trace.y) == pytest.approx(expected, abs=1e-4)


def test_points_stand_where_they_were_measured(record: StudyRecord) -> None:
    twins = [msgspec.structs.replace(result, latency=record.distilled[0].latency) for result in record.distilled[:2]]
    record = msgspec.structs.replace(record, distilled=(*twins, *record.distilled[2:]))
    figure = pareto.draw_pareto(record)
    trace = find_trace(figure, "scored candidates")
    true = [trial.evaluation.latency.ratio for trial in list_small(record)]
    assert list(trace.x) == pytest.approx(true, abs=1e-4)
    distilled = find_trace(figure, "distilled, on test text")
    assert list(distilled.x) == [result.latency.ratio for result in record.distilled]
    assert distilled.x[0] == distilled.x[1]


@pytest.mark.parametrize("ratios", [(0.9897, 0.9901, 0.9906), (1.02, 1.1, 1.4), (0.9, 1.0, 2.0)])
def test_every_distilled_model_lies_in_the_plot_with_its_bars(record: StudyRecord, ratios: tuple[float, ...]) -> None:
    models = [
        msgspec.structs.replace(
            result, test=factory.make_quality(ratio, error=0.02), latency=factory.make_latency(kept)
        )
        for result, ratio, kept in zip(record.distilled, ratios, (11, 10, 5), strict=False)
    ]
    figure = pareto.draw_pareto(msgspec.structs.replace(record, distilled=tuple(models), replications={}))
    (left, right), (low, high) = figure.layout.xaxis.range, figure.layout.yaxis.range
    for x, y in zip(*(find_trace(figure, "distilled, on test text")[axis] for axis in "xy"), strict=True):
        assert left < x < right
        assert low < y - 0.02 < y + 0.02 < high


def test_pareto_tells_frontier_from_runners_up_and_dense(record: StudyRecord) -> None:
    figure = pareto.draw_pareto(record)
    best = [member.evaluation for member in record.frontier.members if member.rank == 0]
    trace = find_trace(figure, "frontier by the proxy")
    assert list(trace.x) == pytest.approx([evaluation.latency.ratio for evaluation in best], abs=1e-4)
    assert len(set(trace.marker.color)) == 3
    assert len(find_trace(figure, "runners-up").x) == 3
    dense = find_trace(figure, "dense model")
    assert (list(dense.x), list(dense.y)) == ([1.0], [1.0])


def test_pareto_draws_distilled_models_with_intervals_and_links(record: StudyRecord) -> None:
    figure = pareto.draw_pareto(record)
    trace = find_trace(figure, "distilled, on test text")
    assert list(trace.y) == [result.test.ppl_ratio for result in record.distilled]
    assert list(trace.error_y.array) == [result.test.ppl_ratio_standard_error for result in record.distilled]
    assert list(trace.error_x.array) == pytest.approx([0.006] * 6)
    assert list(trace.error_x.arrayminus) == pytest.approx([0.006] * 6)
    links = find_trace(figure, "proxy to distilled")
    assert list(links.x)[2::3] == [None] * 6
    assert list(links.y)[1::3] == list(trace.y)


def test_pareto_keeps_outliers_from_squeezing_the_frontier(record: StudyRecord) -> None:
    figure = pareto.draw_pareto(record)
    low, high = figure.layout.yaxis.range
    trials = find_trace(figure, "scored candidates").y
    above = sum(ratio > 1.25 for ratio in trials)
    assert low < 1.0 < 1.1 < high < 1.5 < max(trials)
    assert above > 0
    assert f"Above the drawn range: {sum(ratio > high for ratio in trials)} candidate" in figure.layout.meta["caption"]


def test_pareto_draws_the_limit_where_there_is_one(record: StudyRecord) -> None:
    plan = msgspec.structs.replace(record.plan, max_ppl_ratio=1.07)
    figure = pareto.draw_pareto(msgspec.structs.replace(record, plan=plan))
    levels = [1.02, 1.05, 1.1]
    assert [shape.y0 for shape in figure.layout.shapes] == [1.07, *levels]
    assert [shape.y0 for shape in pareto.draw_pareto(record).layout.shapes] == levels


def test_pareto_joins_what_no_other_model_beats(record: StudyRecord) -> None:
    *others, last = record.distilled
    beaten = msgspec.structs.replace(last, test=factory.make_quality(1.4), latency=factory.make_latency(11))
    record = msgspec.structs.replace(record, distilled=(*others, beaten))
    front = find_trace(pareto.draw_pareto(record), "frontier, distilled")
    points = {(r.latency.ratio, r.test.ppl_ratio) for r in record.distilled} | {(1.0, 1.0)}
    joined = set(zip(front.x, front.y, strict=True))
    assert (1.0, 1.0) in joined
    assert joined < points
    for x, y in points - joined:
        assert any(a <= x and b <= y for a, b in joined)
    assert list(front.y) == sorted(front.y, reverse=True)


def test_pareto_labels_each_depth(record: StudyRecord) -> None:
    texts = [annotation.text for annotation in pareto.draw_pareto(record).layout.annotations]
    assert texts == ["+2 %", "+5 %", "+10 %", *(wording.name_drop(depth) for depth in (1, 2, 3))]
