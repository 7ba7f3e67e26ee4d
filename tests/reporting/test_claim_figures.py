"""Figures about claims: models, layers, curves and times drawn."""

import math

import msgspec
import plotly.graph_objects as go
import pytest

from seed.evidence import ClaimsEvidence
from seed.reporting import claim_figures as drawings

from . import trainings
from .trainings import HALF, estimate_cost, estimate_ratio


def draw_reached(evidence: ClaimsEvidence) -> go.Figure:
    groups = drawings.group_runs(evidence)
    return drawings.draw_reached(evidence, groups, [estimate_ratio(evidence, group.runs) for group in groups])


def find_means(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.customdata is not None]


def test_every_trained_model_has_its_row_and_its_interval() -> None:
    evidence = trainings.make_evidence()
    figure = draw_reached(evidence)
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles == [f"{depth} of 12 layers dropped" for depth in (1, 2, 3, 6)]
    assert list(figure.layout.yaxis.ticktext) == ["dropped at once"]
    assert list(figure.layout.yaxis2.ticktext) == [
        "LoRA on the text alone",
        "continued pretraining",
        "equal size in width",
        "best pair as it stands",
        "dropped at once<br>best pair, recovered",
    ]
    assert list(figure.layout.yaxis3.ticktext) == ["equal size in width", "in stages", "dropped at once"]
    assert list(figure.layout.yaxis4.ticktext) == ["LoRA on the text alone", "continued pretraining"]
    means = find_means(figure)
    assert len(means) == 11
    assert means[0].x[0] == pytest.approx(1.021, abs=1e-4)
    for trace in means:
        assert list(trace.error_x.array) == list(trace.error_x.arrayminus) == [pytest.approx(HALF)]


def test_every_run_is_a_point_beside_the_mean() -> None:
    figure = draw_reached(trainings.make_evidence())
    singles = [trace for trace in figure.data if trace.customdata is None]
    assert [len(trace.x) for trace in singles] == [3] * 11
    for single, mean in zip(singles, find_means(figure), strict=True):
        assert sum(single.x) / 3 == pytest.approx(mean.x[0])
        assert 0 < mean.y[0] - single.y[0] < 0.5
        assert single.marker.size < mean.marker.size


def test_staged_runs_are_one_model_whichever_layers_went() -> None:
    runs = [
        trainings.make_run(key, rng_seed=seed, stages=("drop-5-7",))
        for seed, key in enumerate(("drop-2-5-7", "drop-3-5-7"))
    ]
    (group,) = drawings.group_runs(trainings.make_evidence(runs))
    assert (group.kind, group.depth, group.label) == (drawings.STAGED, 3, "in stages")
    assert drawings.list_models(group) == "without 2, 5, 7; without 3, 5, 7"


def test_a_width_stands_beside_the_layers_whose_size_it_has() -> None:
    (group,) = drawings.group_runs(trainings.make_evidence([trainings.make_run("width-256-3")]))
    assert (group.kind, group.depth, group.label) == (drawings.WIDTH, 3, "equal size in width")
    assert drawings.list_models(group) == "none; MLP 256, 3 heads"


def test_a_model_without_a_role_and_a_recovery_without_a_name_keep_theirs() -> None:
    runs = [trainings.make_run("drop-1-2"), trainings.make_run("drop-1-2", recovery="last-layers")]
    assert [group.label for group in drawings.group_runs(trainings.make_evidence(runs))] == [
        "without 1, 2",
        "last layers",
    ]


def test_what_is_far_off_is_a_triangle_with_its_value() -> None:
    runs = [
        trainings.make_run(),
        trainings.make_run(recovery="pretraining", ratio=1.07),
        trainings.make_run(recovery="lora-pretraining", ratio=30.0),
    ]
    far, near, best = find_means(draw_reached(trainings.make_evidence(runs)))
    assert (far.marker.symbol, list(far.text)) == ("triangle-right", ["30.000"])
    assert far.x[0] < 1.1
    assert list(far.error_x.array) == [0.0]
    assert {near.text, best.text} == {None}


@pytest.mark.parametrize(
    ("ratios", "inside"),
    [([1.14, 1.138, 1.19], 1.19), ([1.02, 1.021, 1.09], 1.09), ([1.0, 1.05, math.inf], 1.05)],
)
def test_a_panel_reaches_to_what_can_be_compared(ratios: list[float], inside: float) -> None:
    assert inside <= drawings.find_reach(ratios) < 10


def test_each_layer_has_a_mark_with_and_without_recovery() -> None:
    figure = drawings.draw_singles(trainings.make_evidence(), estimate_cost)
    shown = {trace.name: trace for trace in figure.data if trace.showlegend}
    far = {trace.name: trace for trace in figure.data if not trace.showlegend}
    assert list(shown) == ["no recovery", "closed-form recovery"]
    for name, trace in shown.items():
        assert sorted(row[0] for row in (*trace.customdata, *far[name].customdata)) == list(range(12))
        assert list(trace.error_y.array) == pytest.approx([HALF] * len(trace.x))
        assert {row[0] for row in far[name].customdata} == {0, 11}
    costs = {
        row[0]: y
        for row, y in zip(shown["closed-form recovery"].customdata, shown["closed-form recovery"].y, strict=True)
    }
    assert costs[10] == pytest.approx(0.12, abs=1e-3)
    assert costs[2] == pytest.approx(0.03, abs=1e-3)
    caption = figure.layout.meta["caption"]
    assert "layer 0 with no recovery (2.240 [2.236, 2.244])" in caption
    assert "layer 11 with closed-form recovery (0.900 [0.896, 0.904])" in caption


def test_a_family_without_closed_form_and_a_broken_layer_are_drawn() -> None:
    evidence = trainings.make_evidence()
    broken = {**evidence.singles["none"], "3": [None] * len(trainings.COUNTS)}
    figure = drawings.draw_singles(msgspec.structs.replace(evidence, singles={"none": broken}), estimate_cost)
    assert {trace.name for trace in figure.data} == {"no recovery"}
    assert "layer 3 with no recovery (no number)" in figure.layout.meta["caption"]
    assert not drawings.draw_singles(msgspec.structs.replace(evidence, singles={}), estimate_cost).data


def test_every_run_has_a_curve_and_a_staged_one_begins_where_its_first_stage_ended() -> None:
    evidence = trainings.make_evidence()
    figure = drawings.draw_curves(evidence, drawings.group_runs(evidence))
    assert len(figure.data) == len(evidence.ledger.runs)
    (staged, *_) = [trace for trace in figure.data if trace.name == drawings.STAGED.title]
    assert (staged.x[0], staged.x[-1]) == (trainings.TOKENS // 2, trainings.TOKENS)
    assert {trace.x[0] for trace in figure.data if trace.name != drawings.STAGED.title} == {0}
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(named) == sorted(set(named))
    low, high = figure.layout.yaxis.range
    ends = [trace.y[-1] for trace in figure.data if trace.yaxis == "y"]
    starts = [trace.y[0] for trace in figure.data if trace.yaxis == "y"]
    assert low < min(ends) <= max(ends) < high < min(starts)


def test_a_curve_that_is_no_number_has_a_gap() -> None:
    run = trainings.make_run()
    curve = tuple(
        msgspec.structs.replace(point, validation_loss=math.nan) if point.step > 30 else point for point in run.curve
    )
    evidence = trainings.make_evidence([msgspec.structs.replace(run, curve=curve)])
    (trace,) = drawings.draw_curves(evidence, drawings.group_runs(evidence)).data
    assert list(trace.y[4:]) == [None] * 5
    assert all(map(math.isfinite, trace.y[:4]))


def test_times_are_drawn_with_their_intervals() -> None:
    figure = drawings.draw_times(trainings.make_evidence())
    assert list(figure.layout.yaxis.ticktext) == [
        "equal size in width, batch 8",
        "equal size in width, batch 1",
        "3 of 12 dropped, batch 8",
        "3 of 12 dropped, batch 1",
    ]
    assert [trace.x[0] for trace in figure.data] == [0.91, 1.0, 0.8, 0.78]
    for trace in figure.data:
        assert (trace.error_x.array[0], trace.error_x.arrayminus[0]) == pytest.approx((0.01, 0.01))
