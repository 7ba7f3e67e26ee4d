"""Figures show the record's numbers: as many points as there are models, in their places; nothing where nothing is."""

import json
import subprocess
import sys

import msgspec
import plotly.graph_objects as go  # type: ignore[import-untyped]
import pytest

from seed.findings import StudyRecord
from seed.records import Frontier, Latency
from seed.reporting import figures, pareto, wording
from seed.reporting.readings import choose_best_distilled, count_drops

from . import factory


def find_trace(figure: go.Figure, name: str) -> go.Scatter:
    """Return the one trace of this name."""
    (trace,) = [trace for trace in figure.data if trace.name == name]
    return trace


def keep_trials(record: StudyRecord, *numbers: int) -> StudyRecord:
    """Return the study with these trials only."""
    return msgspec.structs.replace(record, trials=tuple(t for t in record.trials if t.number in numbers))


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
    assert len(find_trace(pareto.draw_pareto(partial), "distilled, on test text").x) == 1


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
    assert len(find_trace(figure, "prefill").x) == 3


def test_figures_without_distillation_have_nothing_of_it(undistilled: StudyRecord) -> None:
    assert not figures.draw_proxy_against_final(undistilled).data
    assert not figures.draw_learning_curves(undistilled).data
    names = [trace.name for trace in pareto.draw_pareto(undistilled).data]
    assert names == ["scored candidates", "runners-up", "frontier by the proxy", "dense model"]
    assert "istilled" not in pareto.draw_pareto(undistilled).layout.meta["caption"]


def test_figures_of_an_empty_study_do_not_raise(undistilled: StudyRecord) -> None:
    nothing = Frontier(rung=factory.RUNG, members=(), num_scored=0, space_size=298)
    empty = msgspec.structs.replace(undistilled, trials=(), frontier=nothing)
    assert [trace.name for trace in pareto.draw_pareto(empty).data] == ["dense model"]
    assert not figures.draw_layer_map(empty).data
    assert not figures.draw_latency(empty).data


def test_figures_are_finite_json(record: StudyRecord) -> None:
    for draw in (
        pareto.draw_pareto,
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
