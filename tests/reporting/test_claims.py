"""The page of claims: every verdict told by word, sign and colour; models, layers, curves and times drawn; poorer evidence."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from seed.console import Terminal
from seed.errors import ResourceError
from seed.evidence import ClaimsEvidence, Measure, Verdict
from seed.records import Estimate
from seed.reporting import claim_figures as drawings
from seed.reporting import claims as pages
from seed.reporting import wording
from seed.reporting.findings import show_claims

from . import trainings
from .test_claim_figures import draw_reached, find_means
from .test_page import HOSTILE, Reader
from .trainings import NOTHING, estimate_cost, estimate_ratio

COMMAND = "python -m seed.claims studies/demo"


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


# ---- learning


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
    for figure in (draw_reached(evidence), drawings.draw_times(evidence)):
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
