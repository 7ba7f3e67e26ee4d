"""The page of recoveries: which is best at each budget, differences with intervals, losses over time; poorer records."""

import math
import re
from pathlib import Path

import msgspec
import pytest

from seed.console import Terminal
from seed.errors import ResourceError
from seed.evidence import RecoveredRow, RecoveryComparison
from seed.records import Estimate
from seed.reporting import recoveries as pages
from seed.reporting import trained, wording
from seed.reporting.findings import show_recoveries

from . import trainings
from .test_page import HOSTILE, Reader

COMMAND = "python -m seed.recoveries studies/demo"
NOTHING = Estimate(value=None, low=None, high=None)
TITLES = {"distillation": "distillation", "lora": "LoRA distillation", "hidden-states": "distillation, and states"}
SOURCES = {name: f"arXiv {place}" for place, name in enumerate(TITLES)}


def estimate(value: float, half: float = 0.002) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half)


def make_row(
    recovery: str,
    verdict: str,
    *,
    excess: Estimate | float = 0.0,
    ratio: Estimate | float = 1.05,
    key: str = "drop-5",
    at: str = "equal tokens",
) -> RecoveredRow:
    return RecoveredRow(
        key=key,
        num_dropped=key.count("-"),
        recovery=recovery,
        at=at,
        tokens=1_000_000,
        seconds=61.25,
        ppl_ratio=estimate(ratio) if isinstance(ratio, float) else ratio,
        excess=estimate(excess) if isinstance(excess, float) else excess,
        verdict=verdict,
    )


LEVEL = Estimate(value=0.0, low=0.0, high=0.0)
OURS = make_row("distillation", "equivalent", excess=LEVEL)


def make_rows() -> tuple[RecoveredRow, ...]:
    return (
        make_row("hidden-states", "lower", excess=-0.015, ratio=1.034),
        OURS,
        make_row("lora", "higher", excess=0.02, ratio=1.071),
        msgspec.structs.replace(OURS, at="equal time"),
        make_row("lora", "equivalent", excess=0.001, ratio=1.051, at="equal time"),
        make_row("hidden-states", "cannot tell", excess=0.004, ratio=1.054, at="equal time"),
        msgspec.structs.replace(OURS, key="drop-3-5-7", num_dropped=3),
        make_row("lora", "higher", excess=0.03, ratio=1.2, key="drop-3-5-7"),
    )


def render(
    rows: tuple[RecoveredRow, ...] | None = None,
    *,
    comparison: RecoveryComparison | None = None,
    titles: dict[str, str] = TITLES,
) -> str:
    return pages.render_recoveries_page(
        comparison or trainings.make_recoveries(),
        make_rows() if rows is None else rows,
        command=COMMAND,
        titles=titles,
        sources=SOURCES,
    )


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.fixture(scope="module")
def markup() -> str:
    """The page of the whole comparison."""
    return render()


@pytest.fixture(scope="module")
def reader(markup: str) -> Reader:
    """The same page, read back."""
    return Reader(markup)


# ---- answers


def test_the_best_is_named_and_said_to_be_so_only_as_far_as_it_is() -> None:
    def say(*rows: RecoveredRow) -> str:
        return pages.say_best(rows, reference="distillation", titles=TITLES)

    assert say(*make_rows()[:3]) == (
        "Without 5, at equal tokens: distillation, and states ends lowest, PPL ratio 1.034 [1.032, 1.036]."
    )
    assert say(OURS).endswith("distillation ends lowest, PPL ratio 1.050 [1.048, 1.052].")
    assert say(make_row("lora", "cannot tell"), OURS).endswith(", though not measurably below distillation.")
    assert say(make_row("lora", "equivalent"), OURS).endswith(", though not measurably below distillation.")
    assert say(make_row("lora", "cannot tell", ratio=NOTHING)).endswith(
        "no recovery ended with losses that are numbers."
    )


def test_all_others_are_held_against_the_reference_by_their_verdicts() -> None:
    def say(*rows: RecoveredRow) -> str:
        return plain(pages.say_others(rows, reference="distillation", titles=TITLES))

    assert say(*make_rows()[:3]) == (
        "Beside distillation, lower: distillation, and states (-1.50 [-1.70, -1.30] %); "
        "higher: LoRA distillation (+2.00 [+1.80, +2.20] %)."
    )
    assert say(*make_rows()[3:6]) == (
        "Beside distillation, equivalent within 0.5 %: LoRA distillation (+0.10 [-0.10, +0.30] %); "
        "cannot be told apart: distillation, and states (+0.40 [+0.20, +0.60] %)."
    )
    assert say(OURS) == "Nothing else stands beside distillation."
    broken = msgspec.structs.replace(OURS, ppl_ratio=NOTHING)
    for rows in ([make_row("lora", "cannot tell")], [make_row("lora", "cannot tell"), broken]):
        assert say(*rows) == "Nothing can be compared with distillation, which has no number here."


def test_wins_are_counted_over_models_and_budgets() -> None:
    def say(*rows: RecoveredRow) -> str:
        return pages.count_wins(rows, reference="distillation", titles=TITLES)

    assert say(*make_rows()).startswith("In 1 of 3 comparisons ")
    assert say(*make_rows()[3:]).startswith("In 2 comparisons ")
    assert "no recovery is measurably better than distillation" in say(*make_rows()[3:])
    assert say(OURS) == say() == "No other recovery stands beside distillation yet."


# ---- figures


def test_each_model_and_budget_has_marks_with_intervals() -> None:
    figure = pages.draw_differences(trainings.make_recoveries(), make_rows(), titles=TITLES)
    assert [annotation.text for annotation in figure.layout.annotations] == ["without 5", "without 3, 5, 7"]
    tokens, time, deep = figure.data
    assert list(tokens.x) == pytest.approx([-1.5, 0.0, 2.0])
    for bars in (tokens.error_x.array, tokens.error_x.arrayminus):
        assert list(bars) == pytest.approx([0.2, 0.0, 0.2])
    assert list(time.x) == pytest.approx([0.0, 0.1, 0.4])
    labels = list(figure.layout.yaxis.ticktext)
    assert labels == ["LoRA distillation", "distillation", "distillation, and states"]
    assert [round(y) for y in tokens.y] == [2, 1, 0]
    assert [round(y) for y in time.y] == [1, 0, 2]
    assert all(up > down for up, down in zip(sorted(tokens.y), sorted(time.y), strict=True))
    assert (tokens.marker.symbol[0], time.marker.symbol[0]) == ("circle", "diamond")
    assert [trace.showlegend for trace in (tokens, time, deep)] == [True, True, False]
    assert plain(tokens.customdata[2][1]) == "+2.00 [+1.80, +2.20] %"
    assert tokens.customdata[1][1] == "level"


def test_what_is_far_off_is_a_triangle_with_its_value() -> None:
    rows = [OURS, make_row("lora", "higher", excess=0.01), make_row("hidden-states", "higher", excess=0.012)]
    rows.append(make_row("last-layers", "higher", excess=0.31))
    (trace,) = pages.draw_differences(trainings.make_recoveries(), rows, titles=TITLES).data
    assert list(trace.marker.symbol) == ["circle"] * 3 + ["triangle-right"]
    assert plain(trace.text[3]) == "+31.0 %"
    assert trace.x[3] == pytest.approx(1.4)  # where the last bar ends
    assert trace.error_x.array[3] == 0


def test_curves_run_over_seconds() -> None:
    comparison = trainings.make_recoveries()
    figure = pages.draw_curves(comparison, titles=TITLES)
    assert len(figure.data) == len(comparison.ledger.runs)
    for trace, run in zip(figure.data, comparison.ledger.runs, strict=True):
        assert (trace.x[0], trace.x[-1]) == (0.0, run.seconds)
        assert trace.x[4] == pytest.approx(run.seconds / 2)
        assert trace.line.dash == ("solid" if run.tokens == comparison.equal_tokens else "dot")
    assert [trace.name for trace in figure.data if trace.showlegend] == list(TITLES.values())
    assert len({trace.line.color for trace in figure.data}) == 3
    assert [annotation.text for annotation in figure.layout.annotations] == ["without 5", "without 3, 5, 7"]


# ---- the page


def test_page_is_written_whole_and_replaces_the_old_one(markup: str, tmp_path: Path) -> None:
    def write(path: Path) -> None:
        pages.write_recoveries_page(
            trainings.make_recoveries(), make_rows(), path, command=COMMAND, titles=TITLES, sources=SOURCES
        )

    path = tmp_path / "recoveries.html"
    path.write_text("old")
    write(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["recoveries.html"]
    assert path.read_bytes() == markup.encode()
    with pytest.raises(ResourceError, match="cannot be written"):
        write(path / "x.html")


def test_page_is_well_formed_loads_nothing_and_goes_from_answer_to_command(reader: Reader, markup: str) -> None:
    assert (reader.unbalanced, reader.open) == ([], [])
    assert list(reader.sections) == ["answer", "differences", "curves", "numbers", "settings", "repeat"]
    assert COMMAND in reader.sections["repeat"]
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "img", "base", "object", "embed")
        assert not {"src", "href", "srcset", "data", "action", "poster"} & attributes.keys(), (tag, attributes)
    assert markup.count("plotly.js v") == 1
    for group in pages.split_rows(make_rows()).values():
        for said in (
            pages.say_best(group, reference="distillation", titles=TITLES),
            pages.say_others(group, reference="distillation", titles=TITLES),
        ):
            assert plain(said) in reader.sections["answer"]
    assert "(3 seeds)" in reader.sections["answer"]


def test_page_is_the_same_for_the_same_records(markup: str) -> None:
    assert render() == markup


def test_the_table_holds_every_row(reader: Reader) -> None:
    header = ["model, budget, recovery", "tokens", "seconds", "PPL ratio", "PPL above distillation", "verdict"]
    begin = reader.rows.index(header)
    assert reader.rows[begin + 1 : begin + 4] == [
        [
            "without 5, equal tokens, distillation, and states",
            "1,000,000",
            "61.2",
            "1.034 [1.032, 1.036]",
            "-1.50 [-1.70, -1.30] %",
            "lower",
        ],
        [
            "without 5, equal tokens, distillation",
            "1,000,000",
            "61.2",
            "1.050 [1.048, 1.052]",
            wording.ABSENT,
            "reference",
        ],
        [
            "without 5, equal tokens, LoRA distillation",
            "1,000,000",
            "61.2",
            "1.071 [1.069, 1.073]",
            "+2.00 [+1.80, +2.20] %",
            "higher",
        ],
    ]
    assert reader.rows[-3:] == [
        ["distillation", "arXiv 0", "6", "0.001", "0, 1, 2"],
        ["LoRA distillation", "arXiv 1", "12", "0.001", "0, 1, 2"],
        ["distillation, and states", "arXiv 2", "12", "0.001", "0, 1, 2"],
    ]


def test_hostile_strings_stay_text(reader: Reader) -> None:
    runs = [trainings.make_run(HOSTILE, recovery=HOSTILE), trainings.make_run(HOSTILE)]
    comparison = trainings.make_recoveries(runs, study="<script>alert(1)</script>")
    rows = (msgspec.structs.replace(OURS, key=HOSTILE), make_row(HOSTILE, "higher", excess=0.01, key=HOSTILE))
    rendered = render(rows, comparison=comparison, titles={"distillation": HOSTILE})
    assert "<script>alert" not in rendered
    assert "<img src=x" not in rendered
    seen = Reader(rendered)
    assert seen.unbalanced == []
    tags = [tag for tag, _ in seen.elements]
    assert tags.count("script") == [tag for tag, _ in reader.elements].count("script")
    for section in ("answer", "differences", "numbers", "settings"):
        assert HOSTILE in seen.sections[section], section
    figure = pages.draw_differences(comparison, rows, titles={})
    for text in (*figure.layout.yaxis.ticktext, figure.layout.annotations[0].text, figure.data[0].customdata[1][0]):
        assert "<img" not in text  # Plotly reads some HTML in labels


# ---- poorer records


def test_page_before_anything_is_trained() -> None:
    markup = render((), comparison=trainings.make_recoveries([]))
    seen = Reader(markup)
    assert list(seen.sections) == ["answer", "settings", "repeat"]
    assert "Nothing is recovered yet" in seen.text
    assert "Plotly.newPlot" not in markup


def test_page_of_one_seed_says_what_it_does_not_know() -> None:
    seen = Reader(render(comparison=trainings.make_recoveries([trainings.make_run()])))
    assert "(1 seed)" in seen.sections["answer"]
    assert "how trainings vary is not known" in seen.sections["answer"]


def test_page_of_runs_whose_losses_are_no_numbers_or_that_have_no_curve() -> None:
    run = trainings.make_run(test_sums=[None] * len(trainings.COUNTS))
    curve = tuple(msgspec.structs.replace(point, validation_loss=math.nan) for point in run.curve)
    comparison = trainings.make_recoveries(
        [msgspec.structs.replace(run, curve=curve), msgspec.structs.replace(run, curve=(), rng_seed=1)]
    )
    rows = (
        msgspec.structs.replace(OURS, ppl_ratio=NOTHING),
        make_row("lora", "cannot tell", excess=NOTHING, ratio=NOTHING),
    )
    seen = Reader(render(rows, comparison=comparison))
    assert "no recovery ended with losses that are numbers" in seen.sections["answer"]
    assert [row[3:] for row in seen.rows if row[0] == "without 5, equal tokens, LoRA distillation"] == [
        [wording.ABSENT, wording.ABSENT, "cannot tell"]
    ]


# ---- names


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("drop-5", "without 5"),
        ("drop-3-5-7", "without 3, 5, 7"),
        ("drop-3-4-5", f"without {wording.list_layers([3, 4, 5])}"),
        ("drop-24-0123456789ab", "drop-24-0123456789ab"),
        ("width-304-1", "none; MLP 304, 1 head"),
        ("dense", "dense"),
        ("drop-", "drop-"),
        ("width-x-1", "width-x-1"),
    ],
)
def test_keys_have_names_for_people(key: str, name: str) -> None:
    assert trained.name_key(key) == name


# ---- the terminal


def test_the_terminal_tells_each_model_and_budget(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    show_recoveries(
        Terminal(), trainings.make_recoveries(), make_rows(), page=Path("studies/demo/recoveries.html"), titles=TITLES
    )
    lines = [plain(line).strip() for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]
    cells = [re.split(r"\s{2,}", line) for line in lines]
    assert cells[:5] == [
        ["without 5, equal tokens; on test text"],
        ["recovery", "tokens", "seconds", "PPL ratio", "PPL above distillation", "verdict"],
        ["distillation, and states", "1,000,000", "61.2", "1.034 [1.032, 1.036]", "-1.50 [-1.70, -1.30] %", "lower"],
        ["distillation", "1,000,000", "61.2", "1.050 [1.048, 1.052]", wording.ABSENT, "reference"],
        ["LoRA distillation", "1,000,000", "61.2", "1.071 [1.069, 1.073]", "+2.00 [+1.80, +2.20] %", "higher"],
    ]
    assert lines[5] == pages.say_best(make_rows()[:3], reference="distillation", titles=TITLES)
    assert lines[6] == plain(pages.say_others(make_rows()[:3], reference="distillation", titles=TITLES))
    assert lines[-2] == pages.count_wins(make_rows(), reference="distillation", titles=TITLES)
    assert lines[-1] == "page: studies/demo/recoveries.html"


def test_the_terminal_names_the_page_where_nothing_is_recovered(capsys: pytest.CaptureFixture[str]) -> None:
    show_recoveries(Terminal(), trainings.make_recoveries([]), (), page=Path("recoveries.html"), titles=TITLES)
    assert capsys.readouterr().out == "page: recoveries.html\n"
