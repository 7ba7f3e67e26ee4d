"""The page of a fidelity study: verdicts that say what the intervals allow, every candidate drawn, nothing loaded."""

import math
import re
from pathlib import Path

import msgspec
import pytest

from seed.evidence import (
    DepthFidelity,
    FidelityRow,
    FidelityStudy,
    FidelitySummary,
    FinalScore,
    RungDifference,
    RungFidelity,
)
from seed.records import Estimate
from seed.reporting import fidelity, wording

from . import factory
from .test_page import HOSTILE, Reader

COMMAND = "python -m seed.fidelity --model demo --per-depth 4"
DENSE = 2.683
DENSE_TEST = 2.803
NOTHING = Estimate(value=None, low=None, high=None)


def estimate(value: float, half: float = 0.1) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half)


def make_rung(rung: str, tau: Estimate, *, seconds: float | None = 0.31) -> RungFidelity:
    return RungFidelity(rung=rung, tau=tau, near_tau=NOTHING, top1_regret=0.0042, recovery=0.375, seconds=seconds)


def make_depth(
    num_dropped: int, *, difference: Estimate, rung: str = "short_distillation_30", ceiling: Estimate | None = None
) -> DepthFidelity:
    return DepthFidelity(
        num_dropped=num_dropped,
        num_candidates=4,
        num_near=2,
        num_left_out=0,
        num_rng_seeds=2,
        rungs=(make_rung("closed_form", estimate(0.78)), make_rung(rung, estimate(0.81), seconds=17.2)),
        ceiling=make_rung("full_distillation", ceiling or estimate(0.92, 0.04), seconds=312.0),
        differences=(RungDifference(num_dropped=num_dropped, one="closed_form", other=rung, tau=difference),),
    )


def make_summary() -> FidelitySummary:
    return FidelitySummary(
        bootstrap_draws=2000,
        depths=(make_depth(2, difference=estimate(-0.03)), make_depth(3, difference=estimate(-0.3))),
    )


def make_row(dropped: tuple[int, ...], *, score: float, finals: tuple[float, ...], near: bool) -> FidelityRow:
    """A row with these PPL ratios."""
    return FidelityRow(
        candidate=factory.make_candidate(*dropped),
        near_best=near,
        losses={"closed_form": DENSE + math.log(score), "short_distillation_30": DENSE + math.log(score - 0.01)},
        seconds={"closed_form": 0.31, "short_distillation_30": 17.2},
        finals=tuple(
            FinalScore(
                rng_seed=rng_seed, validation_loss=2.7, test_loss=DENSE_TEST + math.log(final), best_step=9, seconds=300
            )
            for rng_seed, final in enumerate(finals)
        ),
    )


def make_study() -> FidelityStudy:
    rows = []
    for depth in (2, 3):
        for place in range(4):
            dropped = tuple(range(place, place + depth))
            final = 1.02 + 0.01 * place * depth
            score = 1.05 + 0.02 * place * depth
            rows.append(make_row(dropped, score=score, finals=(final, final + 0.004), near=place < 2))
    return FidelityStudy(
        study="demo fidelity",
        model="demo",
        dense_validation_loss=DENSE,
        dense_test_loss=DENSE_TEST,
        near_margin=0.03,
        settings={"learning_rate": 0.001, "full_steps": 400},
        rows=tuple(rows),
    )


def render(summary: FidelitySummary, *, study: FidelityStudy | None = None, command: str = COMMAND) -> str:
    return fidelity.render_fidelity_page(study or make_study(), summary=summary, command=command)


@pytest.fixture(scope="module")
def markup() -> str:
    """The page of the finished study."""
    return render(make_summary())


@pytest.fixture(scope="module")
def reader(markup: str) -> Reader:
    """The same page, read back."""
    return Reader(markup)


# --- verdicts


def test_verdict_that_cannot_tell() -> None:
    assert fidelity.say_verdict(make_depth(2, difference=estimate(-0.03))) == (
        "2 layers dropped, 4 candidates: Kendall's tau with full distillation is +0.78 [+0.68, +0.88] for closed-form "
        "recovery and +0.81 [+0.71, +0.91] for 30 distillation steps, difference -0.03 [-0.13, +0.07]: cannot tell "
        "them apart. Two finals of the same candidates agree to +0.92 [+0.88, +0.96]."
    )


@pytest.mark.parametrize(
    ("difference", "reading"),
    [
        (estimate(0.2), "in favour of closed-form recovery"),
        (estimate(-0.2), "in favour of 30 distillation steps"),
        (Estimate(value=0.1, low=0.0, high=0.2), "cannot tell them apart"),
        (Estimate(value=-0.1, low=-0.2, high=0.0), "cannot tell them apart"),
        (Estimate(value=0.9, low=None, high=None), "too few candidates to tell"),
        (NOTHING, "there is no order to compare"),
    ],
)
def test_verdict_says_only_what_the_interval_allows(difference: Estimate, reading: str) -> None:
    assert f": {reading}. Two finals" in fidelity.say_verdict(make_depth(2, difference=difference))


def test_verdict_without_a_second_final_or_a_second_rung() -> None:
    once = make_depth(1, difference=NOTHING, ceiling=NOTHING)
    alone = msgspec.structs.replace(once, rungs=once.rungs[:1], differences=(), num_candidates=1)
    assert fidelity.say_verdict(alone) == (
        "1 layer dropped, 1 candidate: Kendall's tau with full distillation is +0.78 [+0.68, +0.88] for closed-form "
        "recovery. Each candidate was distilled once, so how well a final repeats itself is not known."
    )


def test_headline_is_closed_form_against_the_longest_short_distillation() -> None:
    names = ("none", "short_distillation_10", "closed_form", "short_distillation_30")
    pairs = tuple(
        RungDifference(num_dropped=2, one=one, other=other, tau=NOTHING)
        for i, one in enumerate(names)
        for other in names[i + 1 :]
    )
    depth = msgspec.structs.replace(
        make_depth(2, difference=NOTHING), rungs=tuple(make_rung(name, NOTHING) for name in names), differences=pairs
    )
    headline = fidelity.choose_headline(depth)
    assert headline is not None
    assert {headline.one, headline.other} == {"closed_form", "short_distillation_30"}
    raw = msgspec.structs.replace(depth, rungs=depth.rungs[:2])
    headline = fidelity.choose_headline(raw)
    assert headline is not None
    assert (headline.one, headline.other) == ("none", "short_distillation_10")


@pytest.mark.parametrize(
    ("rung", "name"),
    [
        ("short_distillation_30", "30 distillation steps"),
        ("short_distillation_1", "1 distillation step"),
        ("short_distillation", "short distillation"),
        ("short_distillation_long", "short distillation long"),
    ],
)
def test_short_distillations_are_named_by_their_steps(rung: str, name: str) -> None:
    assert wording.name_rung(rung) == name


# --- figures


def test_every_candidate_stands_at_its_ratios_with_its_finals_spanned() -> None:
    study = make_study()
    figure = fidelity.draw_scores(study, summary=make_summary())
    assert len(figure.data) == 2 * 2 * 2  # depths, rungs, near or not
    assert sum(len(trace.x) for trace in figure.data) == 2 * len(study.rows)
    trace = figure.data[0]
    assert trace.name == "near the depth's best (within 3 %)"
    assert list(trace.x) == pytest.approx([1.05, 1.09])
    low, high = 1.02, 1.024
    assert trace.y[0] == pytest.approx(math.sqrt(low * high))
    assert trace.y[0] - trace.error_y.arrayminus[0] == pytest.approx(low)
    assert trace.y[0] + trace.error_y.array[0] == pytest.approx(high)
    assert list(figure.data[2].x) == pytest.approx([1.04, 1.08])  # the next column: 30 steps
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles[0] == f"{wording.name_drop(2)}, closed-form recovery<br>τ +0.78 [+0.68, +0.88]"
    assert [trace.showlegend for trace in figure.data].count(True) == 2


def test_taus_are_drawn_with_their_intervals_and_never_a_negative_bar() -> None:
    odd = Estimate(value=0.95, low=0.5, high=0.9)  # a percentile interval beside its point
    figure = fidelity.draw_taus(
        FidelitySummary(bootstrap_draws=9, depths=(make_depth(2, difference=NOTHING, ceiling=odd),))
    )
    (trace,) = figure.data
    assert list(trace.x) == [0, 1, 2]
    assert list(trace.y) == [0.78, 0.81, 0.95]
    assert list(trace.error_y.array) == pytest.approx([0.1, 0.1, 0])
    assert list(trace.error_y.arrayminus) == pytest.approx([0.1, 0.1, 0.45])
    assert [label.replace("\u00a0", " ") for label in figure.layout.xaxis.ticktext] == [
        "closed-form recovery<br>0.31 s",
        "30 distillation steps<br>17.2 s",
        "another final<br>(noise ceiling)<br>312 s",
    ]


# --- the page


def test_page_is_written_whole(markup: str, tmp_path: Path) -> None:
    path = tmp_path / "fidelity.html"
    fidelity.write_fidelity_page(make_study(), make_summary(), path, command=COMMAND)
    assert [entry.name for entry in tmp_path.iterdir()] == ["fidelity.html"]
    assert path.read_text(encoding="utf-8") == markup


def test_page_loads_nothing(reader: Reader, markup: str) -> None:
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "img", "base", "object", "embed")
        assert not {"src", "href", "srcset", "data", "action", "poster"} & attributes.keys(), (tag, attributes)
    (policy,) = [a["content"] for _, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert markup.count("plotly.js v") == 1
    assert re.findall(r'Plotly\.newPlot\(\s*"figure-(\w+)"', markup) == ["scores", "taus"]


def test_page_is_well_formed_and_goes_from_answer_to_command(reader: Reader) -> None:
    assert (reader.unbalanced, reader.open) == ([], [])
    assert list(reader.sections) == ["answer", "scores", "taus", "numbers", "differences", "settings", "repeat"]
    for depth in make_summary().depths:
        assert fidelity.say_verdict(depth) in reader.sections["answer"]
    assert COMMAND in reader.sections["repeat"]
    for text in ("learning rate", "0.001", "2.6830", "3.0 %"):
        assert text in reader.sections["settings"]


def test_tables_hold_the_numbers_and_the_ceiling_has_its_own_row(reader: Reader) -> None:
    minus = wording.name_drop(2)
    rows = [row for row in reader.rows if row[0].startswith(minus)]
    assert rows[0] == [
        f"{minus}, closed-form recovery",
        "4 (2)",
        "+0.78 [+0.68, +0.88]",
        wording.ABSENT,
        "0.42 %",
        "38 %",
        "0.31 s",
    ]
    assert rows[2][:3] == [f"{minus}, {fidelity.CEILING_NAME}", "4 (2)", "+0.92 [+0.88, +0.96]"]
    assert rows[3] == [
        f"{minus}, closed-form recovery less 30 distillation steps",
        "-0.03 [-0.13, +0.07]",
        "cannot tell them apart",
    ]
    assert reader.rows[-1][-1] == "in favour of 30 distillation steps"


def test_candidates_left_out_are_told_and_drawn_where_they_can_be() -> None:
    study, summary = make_study(), make_summary()
    first = msgspec.structs.replace(study.rows[0], finals=study.rows[0].finals[:1])
    second = msgspec.structs.replace(study.rows[1], finals=())
    study = msgspec.structs.replace(study, rows=(first, second, *study.rows[2:]))
    depth = msgspec.structs.replace(summary.depths[0], num_left_out=2)
    summary = msgspec.structs.replace(summary, depths=(depth, summary.depths[1]))
    seen = Reader(render(summary, study=study))
    assert "2 candidates." in seen.sections["numbers"]
    assert "not counted" in seen.sections["scores"]
    assert list(fidelity.draw_scores(study, summary=summary).data[0].x) == pytest.approx([1.05])


def test_a_rung_that_one_depth_lacks_leaves_its_panel_empty() -> None:
    summary = make_summary()
    short = msgspec.structs.replace(summary.depths[0], rungs=summary.depths[0].rungs[:1], differences=())
    study = make_study()
    rows = [
        msgspec.structs.replace(row, losses={"closed_form": row.losses["closed_form"]}) if i < 4 else row
        for i, row in enumerate(study.rows)
    ]
    study = msgspec.structs.replace(study, rows=tuple(rows))
    figure = fidelity.draw_scores(study, summary=msgspec.structs.replace(summary, depths=(short, summary.depths[1])))
    assert len(figure.data) == 6


def test_page_before_anything_is_complete() -> None:
    seen = Reader(render(FidelitySummary(bootstrap_draws=2000, depths=())))
    assert list(seen.sections) == ["answer", "settings", "repeat"]
    assert "there is no answer" in seen.sections["answer"]


def test_hostile_strings_stay_text(reader: Reader) -> None:
    study, summary = make_study(), make_summary()
    rows = [
        msgspec.structs.replace(row, losses={"closed_form": row.losses["closed_form"], HOSTILE: 3.0})
        for row in study.rows
    ]
    study = msgspec.structs.replace(study, study=HOSTILE, model=HOSTILE, settings={HOSTILE: HOSTILE}, rows=tuple(rows))
    depths = tuple(make_depth(depth.num_dropped, difference=estimate(0), rung=HOSTILE) for depth in summary.depths)
    rendered = render(msgspec.structs.replace(summary, depths=depths), study=study, command=HOSTILE)
    assert "<script>alert" not in rendered
    assert "<img src=x" not in rendered
    seen = Reader(rendered)
    assert seen.unbalanced == []
    tags = [tag for tag, _ in seen.elements]
    assert tags.count("script") == [tag for tag, _ in reader.elements].count("script")
    for section in ("answer", "numbers", "differences", "settings", "repeat"):
        assert HOSTILE in seen.sections[section], section
