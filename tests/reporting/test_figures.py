"""Figures show the record's numbers: as many points as there are models, in their places; nothing where nothing is."""

import json
import subprocess
import sys

import msgspec
import plotly.graph_objects as go  # type: ignore[import-untyped]
import pytest

from seed.findings import StudyRecord
from seed.records import Frontier, Latency, TrialRecord
from seed.reporting import figures, wording
from seed.reporting.readings import choose_best_distilled, count_drops

from . import factory


def find_trace(figure: go.Figure, name: str) -> go.Scatter:
    """Return the one trace of this name."""
    (trace,) = [trace for trace in figure.data if trace.name == name]
    return trace


def keep_trials(record: StudyRecord, *numbers: int) -> StudyRecord:
    """Return the study with these trials only."""
    return msgspec.structs.replace(record, trials=tuple(t for t in record.trials if t.number in numbers))


def list_small(record: StudyRecord) -> list[TrialRecord]:
    """Return the complete trials that are not on the frontier, which draws them larger."""
    members = {member.trial_number for member in record.frontier.members}
    return [trial for trial in record.trials if trial.state == "COMPLETE" and trial.number not in members]


def test_pareto_shows_every_complete_trial_once_and_no_other(record: StudyRecord) -> None:
    figure = figures.draw_pareto(record)
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


def test_pareto_spreads_trials_only_within_their_strip(record: StudyRecord) -> None:
    figure = figures.draw_pareto(record)
    trace = find_trace(figure, "scored candidates")
    true = [trial.evaluation.latency.ratio for trial in list_small(record)]
    moved = [abs(shown - ratio) for shown, ratio in zip(trace.x, true, strict=True)]
    gap = 0.89 / factory.NUM_LAYERS
    assert 0 < max(moved) <= 0.3 * gap
    assert len(set(trace.x)) > 150
    assert [row[5] for row in trace.customdata] == pytest.approx(true, abs=1e-4)
    assert list(trace.x) == list(find_trace(figures.draw_pareto(record), "scored candidates").x)
    assert "sideways" in figure.layout.meta["caption"]


def test_pareto_tells_frontier_from_runners_up_and_dense(record: StudyRecord) -> None:
    figure = figures.draw_pareto(record)
    best = [member.evaluation for member in record.frontier.members if member.rank == 0]
    trace = find_trace(figure, "frontier by the proxy")
    assert list(trace.x) == pytest.approx([evaluation.latency.ratio for evaluation in best], abs=1e-4)
    assert len(set(trace.marker.color)) == 3
    assert len(find_trace(figure, "runners-up").x) == 3
    dense = find_trace(figure, "dense model")
    assert (list(dense.x), list(dense.y)) == ([1.0], [1.0])


def test_pareto_draws_distilled_models_with_intervals_and_links(record: StudyRecord) -> None:
    figure = figures.draw_pareto(record)
    trace = find_trace(figure, "distilled, on test text")
    assert list(trace.y) == [result.test.ppl_ratio for result in record.distilled]
    assert list(trace.error_y.array) == [result.test.ppl_ratio_standard_error for result in record.distilled]
    assert list(trace.error_x.array) == pytest.approx([0.006] * 6)
    assert list(trace.error_x.arrayminus) == pytest.approx([0.006] * 6)
    links = find_trace(figure, "proxy to distilled")
    assert list(links.x)[2::3] == [None] * 6
    assert list(links.y)[1::3] == list(trace.y)


def test_pareto_keeps_outliers_from_squeezing_the_frontier(record: StudyRecord) -> None:
    figure = figures.draw_pareto(record)
    low, high = figure.layout.yaxis.range
    trials = find_trace(figure, "scored candidates").y
    above = sum(ratio > 1.25 for ratio in trials)
    assert low < 1.0 < 1.1 < high < 1.5 < max(trials)
    assert above > 0
    assert " candidates lie above the drawn range" in figure.layout.meta["caption"]


def test_pareto_draws_the_limit_where_there_is_one(record: StudyRecord) -> None:
    plan = msgspec.structs.replace(record.plan, max_ppl_ratio=1.07)
    figure = figures.draw_pareto(msgspec.structs.replace(record, plan=plan))
    levels = [1.02, 1.05, 1.1]
    assert [shape.y0 for shape in figure.layout.shapes] == [1.07, *levels]
    assert [shape.y0 for shape in figures.draw_pareto(record).layout.shapes] == levels


def test_pareto_joins_what_no_other_model_beats(record: StudyRecord) -> None:
    *others, last = record.distilled
    beaten = msgspec.structs.replace(last, test=factory.make_quality(1.4), latency=factory.make_latency(11))
    record = msgspec.structs.replace(record, distilled=(*others, beaten))
    front = find_trace(figures.draw_pareto(record), "frontier, distilled")
    points = {(r.latency.ratio, r.test.ppl_ratio) for r in record.distilled} | {(1.0, 1.0)}
    joined = set(zip(front.x, front.y, strict=True))
    assert (1.0, 1.0) in joined
    assert joined < points
    for x, y in points - joined:
        assert any(a <= x and b <= y for a, b in joined)
    assert list(front.y) == sorted(front.y, reverse=True)


def test_pareto_labels_each_depth(record: StudyRecord) -> None:
    texts = [annotation.text for annotation in figures.draw_pareto(record).layout.annotations]
    assert texts == ["+2 %", "+5 %", "+10 %", *(wording.name_drop(depth) for depth in (1, 2, 3))]


def test_layer_map_marks_the_dropped_layers_of_each_member(record: StudyRecord) -> None:
    members, _ = figures.draw_layer_map(record).data
    assert len(members.z) == 6
    for row, member in zip(members.z, record.frontier.members, strict=True):
        dropped = tuple(layer for layer, mark in enumerate(row) if mark)
        assert dropped == member.evaluation.candidate.dropped_layers
        assert len(row) == factory.NUM_LAYERS


def test_layer_map_counts_the_best_of_each_depth(record: StudyRecord) -> None:
    _, shares = figures.draw_layer_map(record).data
    counted = count_drops(record)
    assert [(depth, best, scored) for depth, best, scored, _ in counted] == [(1, 3, 12), (2, 16, 66), (3, 20, 100)]
    for row, (depth, *_) in zip(shares.z, counted, strict=True):
        assert sum(row) == pytest.approx(depth)
    # Layer 0 is by far the dearest of the factory's layers.
    assert [row[0] for row in shares.z] == [0, 0, 0]


def test_count_drops_takes_the_best_quarter(record: StudyRecord) -> None:
    singles = keep_trials(record, 0, 1, 5, 11)
    assert count_drops(singles) == [(1, 1, 4, [float(layer == 5) for layer in range(factory.NUM_LAYERS)])]


def test_proxy_against_final_has_one_point_per_distilled_model(record: StudyRecord) -> None:
    figure = figures.draw_proxy_against_final(record)
    assert [(trace.name, len(trace.x)) for trace in figure.data] == [
        ("1 dropped", 2),
        ("2 dropped", 2),
        ("3 dropped", 2),
    ]
    assert len({trace.marker.color for trace in figure.data}) == 3
    assert [y for trace in figure.data for y in trace.y] == [r.validation.ppl_ratio for r in record.distilled]
    assert record.agreement.verdict in figure.layout.meta["caption"]


def test_proxy_against_final_leaves_out_what_was_never_scored(record: StudyRecord) -> None:
    stranger = msgspec.structs.replace(record.distilled[0], candidate=factory.make_candidate(0, 11), trial_number=None)
    partial = msgspec.structs.replace(
        record, distilled=(stranger,), trials=(), frontier=msgspec.structs.replace(record.frontier, members=())
    )
    assert not figures.draw_proxy_against_final(partial).data
    assert len(find_trace(figures.draw_pareto(partial), "distilled, on test text").x) == 1


def test_learning_curves_start_at_step_0_and_mark_the_kept_checkpoint(record: StudyRecord) -> None:
    figure = figures.draw_learning_curves(record)
    assert len(figure.data) == 6
    for trace, result in zip(figure.data, record.distilled, strict=True):
        assert trace.x[0] == 0
        assert list(trace.y) == [point.validation_loss for point in result.curve]
        assert trace.marker.size.index(max(trace.marker.size)) == 4
    assert len({(trace.line.color, trace.line.dash) for trace in figure.data}) == 6
    assert [shape.y0 for shape in figure.layout.shapes] == [record.dense.validation.loss]


def test_latency_shows_each_structure_once_beside_the_line(record: StudyRecord) -> None:
    figure = figures.draw_latency(record)
    line = find_trace(figure, "in proportion to depth")
    assert (list(line.x), list(line.y)) == ([9, 12], [0.75, 1.0])
    measured = find_trace(figure, "measured, one point per structure")
    assert list(measured.x) == [9, 10, 11, 12]
    assert list(measured.y) == pytest.approx([factory.make_latency(kept).ratio for kept in (9, 10, 11, 12)])
    assert list(measured.error_y.array) == pytest.approx([0.006, 0.006, 0.006, 0])
    assert len(set(find_trace(figure, "exported models").x)) == 6
    assert len(find_trace(figure, "prefill").x) == 3


def test_figures_without_distillation_have_nothing_of_it(undistilled: StudyRecord) -> None:
    assert not figures.draw_proxy_against_final(undistilled).data
    assert not figures.draw_learning_curves(undistilled).data
    names = [trace.name for trace in figures.draw_pareto(undistilled).data]
    assert names == ["scored candidates", "runners-up", "frontier by the proxy", "dense model"]
    assert "istilled" not in figures.draw_pareto(undistilled).layout.meta["caption"]


def test_figures_of_an_empty_study_do_not_raise(undistilled: StudyRecord) -> None:
    nothing = Frontier(rung=factory.RUNG, members=(), num_scored=0, space_size=298)
    empty = msgspec.structs.replace(undistilled, trials=(), frontier=nothing)
    assert [trace.name for trace in figures.draw_pareto(empty).data] == ["dense model"]
    assert not figures.draw_layer_map(empty).data
    assert not figures.draw_latency(empty).data


def test_figures_are_finite_json(record: StudyRecord) -> None:
    for draw in (
        figures.draw_pareto,
        figures.draw_layer_map,
        figures.draw_proxy_against_final,
        figures.draw_learning_curves,
        figures.draw_latency,
    ):
        figure = draw(record)
        text = figure.to_json()
        assert "NaN" not in text
        assert "Infinity" not in text
        assert json.loads(text)["layout"]["meta"]["caption"].endswith(".")
        assert figure.layout.title.text


def test_best_distilled_models_are_chosen_on_validation_not_on_test(record: StudyRecord) -> None:
    first, second = record.distilled[:2]
    lucky = msgspec.structs.replace(second, test=factory.make_quality(0.9))
    chosen = choose_best_distilled(msgspec.structs.replace(record, distilled=(lucky, first)))
    assert [result.candidate.key for result in chosen] == [first.candidate.key]


@pytest.mark.parametrize(
    ("layers", "text"),
    [((), "none"), ((4,), "4"), ((1, 2), "1, 2"), ((1, 5, 6, 7, 9), "1, 5\N{EN DASH}7, 9")],
)
def test_list_layers(layers: tuple[int, ...], text: str) -> None:
    assert wording.list_layers(layers) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.00 kB"), (6_824_736, "6.82 MB"), (99_960_000, "100 MB")],
)
def test_format_bytes(count: int, text: str) -> None:
    assert wording.format_bytes(count).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("low", "ratio", "high", "workload", "text"),
    [
        (0.83, 0.84, 0.85, "decode 64 tokens", "1.19 times faster to decode"),
        (0.83, 0.84, 0.85, "prefill 64 tokens", "1.19 times faster"),
        (0.97, 0.99, 1.01, "decode 64 tokens", "no measurable change in speed of decoding"),
        (1.04, 1.05, 1.06, "prefill 64 tokens", "1.05 times slower"),
        (0.5, 0.5, 0.5, "prefill 64 tokens", "2.00 times faster"),
    ],
)
def test_describe_speed(low: float, ratio: float, high: float, workload: str, text: str) -> None:
    latency = msgspec.structs.replace(
        factory.make_latency(6), ratio=ratio, ratio_low=low, ratio_high=high, workload=workload
    )
    assert isinstance(latency, Latency)
    assert wording.describe_speed(latency) == text


def test_reporting_needs_neither_torch_nor_optuna() -> None:
    code = (
        "import sys, seed.reporting.page\n"
        "foreign = {'torch', 'optuna', 'transformers', 'seed.models', 'seed.scoring', 'seed.optimize'}\n"
        "print(sorted(foreign & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
