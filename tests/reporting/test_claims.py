"""The page of claims: every verdict told by word, sign and colour; models, layers, curves and times drawn; poorer evidence."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import plotly.graph_objects as go
import pytest

from seed.console import Terminal
from seed.errors import ResourceError
from seed.evidence import ClaimsEvidence, Measure, TrainedRun, Verdict
from seed.records import Estimate
from seed.reporting import claims as pages
from seed.reporting import wording
from seed.reporting.findings import show_claims

from . import trainings
from .test_page import HOSTILE, Reader

COMMAND = "python -m seed.claims studies/demo"
NOTHING = Estimate(value=None, low=None, high=None)
HALF = 0.004


def estimate_ratio(evidence: ClaimsEvidence, runs: Sequence[TrainedRun]) -> Estimate:
    """The mean of the ratios with an interval of one width; the statistics have their own tests."""
    ratios = pages.list_ratios(
        runs, dense_sums=evidence.ledger.dense_test_sums, test_counts=evidence.ledger.test_counts
    )
    if len(ratios) < len(runs):
        return NOTHING
    mean = sum(ratios) / len(ratios)
    return Estimate(value=mean, low=mean - HALF, high=mean + HALF)


def estimate_cost(evidence: ClaimsEvidence, weights: dict[int, float], *, rung: str) -> Estimate:
    """The cost of a layer with an interval of one width."""
    [layer] = weights
    sums = evidence.singles[rung][str(layer)]
    known = [loss for loss in sums if loss is not None]
    if len(known) < len(sums):
        return NOTHING
    cost = (sum(known) - sum(evidence.dense_validation_sums)) / sum(evidence.validation_counts)
    return Estimate(value=cost, low=cost - HALF, high=cost + HALF)


def make_verdict(key: str, verdict: str, *, measures: tuple[Measure, ...] = (), found: str = "") -> Verdict:
    return Verdict(
        key=key,
        claim=f"The claim on {key}.",
        source="a paper",
        reported=f"{key} as reported",
        verdict=verdict,
        found=found,
        measures=measures,
    )


def make_verdicts() -> tuple[Verdict, ...]:
    ratio = Measure(name="PPL ratio", estimate=Estimate(value=1.058, low=1.05, high=1.066))
    excess = Measure(name="one over another", estimate=Estimate(value=0.013, low=0.008, high=0.019), unit="%")
    return (
        make_verdict("quality", "holds", measures=(ratio,), found="1.058, as it should be"),
        make_verdict("stages", "does not hold", measures=(ratio, excess), found="higher"),
        make_verdict("width", "cannot tell", measures=(Measure(name="PPL of width", estimate=NOTHING),)),
        make_verdict("speed", "holds", found="1.28 times faster"),
    )


def render(evidence: ClaimsEvidence | None = None, verdicts: Sequence[Verdict] | None = None) -> str:
    return pages.render_claims_page(
        evidence or trainings.make_evidence(),
        make_verdicts() if verdicts is None else verdicts,
        command=COMMAND,
        estimate_ratio=estimate_ratio,
        estimate_cost=estimate_cost,
    )


def draw_reached(evidence: ClaimsEvidence) -> go.Figure:
    groups = pages.group_runs(evidence)
    return pages.draw_reached(evidence, groups, [estimate_ratio(evidence, group.runs) for group in groups])


def find_means(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.customdata is not None]


@pytest.fixture(scope="module")
def markup() -> str:
    """The page of whole evidence."""
    return render()


@pytest.fixture(scope="module")
def reader(markup: str) -> Reader:
    """The same page, read back."""
    return Reader(markup)


# ---- answers


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["holds"] * 5 + ["does not hold"] * 2 + ["cannot tell"] * 3, "5 hold, 2 do not hold, 3 cannot be told"),
        (["cannot tell", "does not hold", "holds"], "1 holds, 1 does not hold, 1 cannot be told"),
        (["does not hold"] * 2, "2 do not hold"),
    ],
)
def test_verdicts_are_counted(verdicts: list[str], said: str) -> None:
    counted = pages.count_verdicts([make_verdict("x", verdict) for verdict in verdicts])
    assert counted == f"Of {len(verdicts)} claims {said}."


def test_every_verdict_is_told_in_the_order_given(reader: Reader) -> None:
    told = reader.sections["answer"]
    assert "Of 4 claims 2 hold, 1 does not hold, 1 cannot be told. Model: demo." in told
    places = []
    for verdict in make_verdicts():
        for text in (verdict.claim, f"Found: {verdict.found or 'nothing yet'}", f"{verdict.reported} (a paper)"):
            assert text in told
        places.append(told.index(verdict.claim))
    assert places == sorted(places)


def test_a_verdict_is_a_word_and_a_sign_and_a_colour(markup: str) -> None:
    items = re.findall(r'<li class="(\w+)"><div class="verdict"><span aria-hidden="true">(.)</span> ([\w ]+) <', markup)
    assert items == [
        ("holds", "✓", "holds"),
        ("fails", "✗", "does not hold"),
        ("unsure", "?", "cannot tell"),
        ("holds", "✓", "holds"),
    ]
    for kind in ("holds", "fails"):
        assert f".verdicts > .{kind} {{ --verdict: var(--{kind}); }}" in markup
        assert markup.count(f"--{kind}: #") == 2  # on light paper and on dark


# ---- what each model reached


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
    (group,) = pages.group_runs(trainings.make_evidence(runs))
    assert (group.kind, group.depth, group.label) == (pages.STAGED, 3, "in stages")
    assert pages.list_models(group) == "without 2, 5, 7; without 3, 5, 7"


def test_a_width_stands_beside_the_layers_whose_size_it_has() -> None:
    (group,) = pages.group_runs(trainings.make_evidence([trainings.make_run("width-256-3")]))
    assert (group.kind, group.depth, group.label) == (pages.WIDTH, 3, "equal size in width")
    assert pages.list_models(group) == "none; MLP 256, 3 heads"


def test_a_model_without_a_role_and_a_recovery_without_a_name_keep_theirs() -> None:
    runs = [trainings.make_run("drop-1-2"), trainings.make_run("drop-1-2", recovery="last-layers")]
    assert [group.label for group in pages.group_runs(trainings.make_evidence(runs))] == ["without 1, 2", "last layers"]


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
    assert inside <= pages.find_reach(ratios) < 10


# ---- what one layer costs


def test_each_layer_has_a_mark_with_and_without_recovery() -> None:
    figure = pages.draw_singles(trainings.make_evidence(), estimate_cost)
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
    figure = pages.draw_singles(msgspec.structs.replace(evidence, singles={"none": broken}), estimate_cost)
    assert {trace.name for trace in figure.data} == {"no recovery"}
    assert "layer 3 with no recovery (no number)" in figure.layout.meta["caption"]
    assert not pages.draw_singles(msgspec.structs.replace(evidence, singles={}), estimate_cost).data


# ---- curves


def test_every_run_has_a_curve_and_a_staged_one_begins_where_its_first_stage_ended() -> None:
    evidence = trainings.make_evidence()
    figure = pages.draw_curves(evidence, pages.group_runs(evidence))
    assert len(figure.data) == len(evidence.ledger.runs)
    (staged, *_) = [trace for trace in figure.data if trace.name == pages.STAGED.title]
    assert (staged.x[0], staged.x[-1]) == (trainings.TOKENS // 2, trainings.TOKENS)
    assert {trace.x[0] for trace in figure.data if trace.name != pages.STAGED.title} == {0}
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
    (trace,) = pages.draw_curves(evidence, pages.group_runs(evidence)).data
    assert list(trace.y[4:]) == [None] * 5
    assert all(map(math.isfinite, trace.y[:4]))


@pytest.mark.parametrize(
    ("losses", "gain"), [([3.0, 2.9, 2.88], 0.02), ([3.0], None), ([], None), ([3.0, math.nan], None)]
)
def test_the_last_look_tells_of_a_plateau(losses: list[float], gain: float | None) -> None:
    run = trainings.make_run()
    points = tuple(
        msgspec.structs.replace(point, validation_loss=loss) for point, loss in zip(run.curve, losses, strict=False)
    )
    measured = pages.measure_last_gain([msgspec.structs.replace(run, curve=points)])
    assert measured == (None if gain is None else pytest.approx(gain))


# ---- time


def test_times_are_drawn_with_their_intervals() -> None:
    figure = pages.draw_times(trainings.make_evidence())
    assert list(figure.layout.yaxis.ticktext) == [
        "equal size in width, batch 8",
        "equal size in width, batch 1",
        "3 of 12 dropped, batch 8",
        "3 of 12 dropped, batch 1",
    ]
    assert [trace.x[0] for trace in figure.data] == [0.91, 1.0, 0.8, 0.78]
    for trace in figure.data:
        assert (trace.error_x.array[0], trace.error_x.arrayminus[0]) == pytest.approx((0.01, 0.01))


# ---- the page


def test_page_is_written_whole_and_replaces_the_old_one(markup: str, tmp_path: Path) -> None:
    def write(path: Path) -> None:
        pages.write_claims_page(
            trainings.make_evidence(),
            make_verdicts(),
            path,
            command=COMMAND,
            estimate_ratio=estimate_ratio,
            estimate_cost=estimate_cost,
        )

    path = tmp_path / "claims.html"
    path.write_text("old")
    write(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["claims.html"]
    assert path.read_bytes() == markup.encode()
    with pytest.raises(ResourceError, match="cannot be written"):
        write(path / "x.html")


def test_page_is_well_formed_loads_nothing_and_goes_from_answer_to_command(reader: Reader, markup: str) -> None:
    assert (reader.unbalanced, reader.open) == ([], [])
    assert list(reader.sections) == ["answer", "reached", "layers", "curves", "time", "numbers", "settings", "repeat"]
    assert COMMAND in reader.sections["repeat"]
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "img", "base", "object", "embed")
        assert not {"src", "href", "srcset", "data", "action", "poster"} & attributes.keys(), (tag, attributes)
    assert markup.count("plotly.js v") == 1
    assert re.findall(r'Plotly\.newPlot\(\s*"figure-(\w+)"', markup) == ["reached", "layers", "curves", "time"]


def test_page_is_the_same_for_the_same_records(markup: str) -> None:
    assert render(trainings.make_evidence(), make_verdicts()) == markup


def test_tables_hold_every_measure_every_model_and_every_time(reader: Reader) -> None:
    for row in (
        ["quality", "PPL ratio", "1.058 [1.050, 1.066]"],
        ["stages", "one over another", "+1.30 [+0.80, +1.90] %"],
        ["width", "PPL of width", wording.ABSENT],
    ):
        assert row in reader.rows
    models = [row for row in reader.rows if "layers dropped, " in row[0]]
    assert len(models) == 11
    assert models[0][:6] == [
        "1 of 12 layers dropped, dropped at once",
        "without 5",
        "1,880,000",
        "1,000,000",
        "0, 1, 2",
        "1.021 [1.017, 1.025]",
    ]
    assert "0.780 [0.770, 0.790]" in {row[-1] for row in reader.rows}
    for text in ("distill tokens", "learning rates", "0.0005, 0.001", "2,000,000", "raw pair", "without 4, 5"):
        assert text in reader.sections["settings"], text


def test_hostile_strings_stay_text(reader: Reader) -> None:
    hostile = tuple(
        msgspec.structs.replace(verdict, key=HOSTILE, claim=HOSTILE, source=HOSTILE, reported=HOSTILE, found=HOSTILE)
        for verdict in make_verdicts()
    )
    runs = [trainings.make_run(HOSTILE, recovery=HOSTILE), trainings.make_run("drop-5", stages=(HOSTILE,))]
    latencies = {f"{HOSTILE}, batch 1": trainings.make_latency(0.9, batch=1)}
    evidence = trainings.make_evidence(
        runs, roles={HOSTILE: HOSTILE}, latencies=latencies, study="<script>alert(1)</script>"
    )
    rendered = render(evidence, hostile)
    assert "<script>alert" not in rendered
    assert "<img src=x" not in rendered
    seen = Reader(rendered)
    assert seen.unbalanced == []
    tags = [tag for tag, _ in seen.elements]
    assert tags.count("script") == [tag for tag, _ in reader.elements].count("script")
    assert "<script>alert(1)</script>" in seen.text
    for section in ("answer", "numbers", "settings"):
        assert HOSTILE in seen.sections[section], section
    for figure in (draw_reached(evidence), pages.draw_times(evidence)):
        labels = "".join(figure.layout.yaxis.ticktext) + str(figure.data[-1].customdata)
        assert "<img" not in labels  # Plotly reads some HTML in labels
        assert "<script" not in labels


# ---- poorer evidence


def test_page_before_anything_is_measured() -> None:
    markup = render(trainings.make_evidence([], latencies={}), [make_verdict("quality", "cannot tell")])
    seen = Reader(markup)
    assert list(seen.sections) == ["answer", "layers", "settings", "repeat"]
    assert "Of 1 claim 1 cannot be told." in seen.text
    assert markup.count("plotly.js v") == 1
    nothing = msgspec.structs.replace(trainings.make_evidence([], latencies={}), singles={}, roles={})
    seen = Reader(render(nothing, []))
    assert list(seen.sections) == ["answer", "settings", "repeat"]
    assert "No claim is judged yet" in seen.text


def test_page_of_a_family_without_width_and_of_one_seed() -> None:
    runs = [run for run in trainings.make_runs(rng_seeds=(7,)) if not run.key.startswith("width")]
    roles = {role: key for role, key in trainings.ROLES.items() if not role.startswith("width")}
    seen = Reader(render(trainings.make_evidence(runs, roles=roles)))
    assert "equal size in width" not in seen.sections["numbers"].split("Times")[0]
    assert len([row for row in seen.rows if "layers dropped, " in row[0]]) == 9


def test_page_with_a_run_whose_losses_are_no_numbers() -> None:
    broken = trainings.make_run(test_sums=[None] * len(trainings.COUNTS))
    curve = tuple(msgspec.structs.replace(point, validation_loss=math.nan) for point in broken.curve)
    broken = msgspec.structs.replace(broken, curve=curve, validation_loss=None)
    for runs in ([broken], [broken, trainings.make_run(rng_seed=1), trainings.make_run("drop-5", ratio=1.02)]):
        evidence = trainings.make_evidence(runs)
        seen = Reader(render(evidence))
        row = next(row for row in seen.rows if row[0].startswith("2 of 12 layers dropped, "))
        assert row[5:] == [wording.ABSENT, wording.ABSENT]
        means = [trace for trace in find_means(draw_reached(evidence)) if trace.customdata[0][0] == "without 5, 7"]
        assert [(trace.marker.symbol, *trace.text) for trace in means] == [("triangle-right", "no number")]


# ---- the terminal


def test_the_terminal_tells_verdict_claim_and_what_was_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    verdicts = make_verdicts()
    show_claims(Terminal(), trainings.make_evidence(), verdicts, page=Path("studies/demo/claims.html"))
    printed = capsys.readouterr().out.splitlines()
    begins = {line.index(verdict.claim) for verdict in verdicts for line in printed if verdict.claim in line}
    assert len(begins) == 1  # words are left-aligned
    lines = [line.strip() for line in printed if line.strip(" ─")]
    cells = [re.split(r"\s{2,}", line) for line in lines]
    assert cells[:2] == [["What demo says to each claim"], ["verdict", "claim", "found"]]
    assert cells[2:6] == [[v.verdict, v.claim, v.found or "nothing yet"] for v in verdicts]
    assert lines[6:] == [pages.count_verdicts(verdicts), "page: studies/demo/claims.html"]


def test_the_terminal_names_the_page_where_nothing_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    show_claims(Terminal(), trainings.make_evidence([]), [], page=Path("claims.html"))
    assert capsys.readouterr().out == "page: claims.html\n"
