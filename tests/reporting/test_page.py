"""The page: one file, nothing loaded, every string escaped, the record's numbers in it, poorer studies without gaps."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seed.errors import ResourceError
from seed.evidence import StudyRecord
from seed.records import Frontier, TrialRecord
from seed.reporting import page
from seed.results import StudyResult, compute_result

from . import factory
from .conftest import check_snapshot

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
VOID = {"meta", "link", "img", "br", "hr", "input", "base", "source"}


class Reader(HTMLParser):
    """Collects what a browser would see: elements, visible text by section, and table cells."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.markup = markup
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.sections: dict[str, str] = {}
        self.rows: list[list[str]] = []
        self.unbalanced: list[str] = []
        self.section = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
            self.sections[self.section] = ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            return
        data = data.replace("\u00a0", " ")
        self.text += data
        if self.section:
            self.sections[self.section] += data
        if self.rows and {"th", "td"} & set(self.open[-2:]):
            self.rows[-1][-1] += data


def render(record: StudyRecord) -> str:
    """Compute a record's result and render it."""
    return page.render_page(compute_result(record), root=Path("studies/demo"))


@pytest.fixture(scope="module")
def markup(record: StudyRecord) -> str:
    """The page of the finished study."""
    return render(record)


@pytest.fixture(scope="module")
def reader(markup: str) -> Reader:
    """The same page, read back."""
    return Reader(markup)


def test_page_is_one_small_file_that_replaces_the_old_one_or_is_not_written(
    result: StudyResult, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    page.write_page(result, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8") == page.render_page(result, root=tmp_path)
    assert 3_000_000 < path.stat().st_size < 6_000_000
    with pytest.raises(ResourceError, match="cannot be written"):
        page.write_page(result, path / "report.html")


def test_page_loads_nothing(reader: Reader, markup: str) -> None:
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "img", "base", "object", "embed")
        assert not {"src", "srcset", "data", "action", "poster"} & attributes.keys(), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#"), (tag, attributes)
    style = markup[markup.index("<style>") : markup.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [a["content"] for _, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert markup.count("plotly.js v") == 1


def test_page_is_well_formed(reader: Reader) -> None:
    assert (reader.unbalanced, reader.open) == ([], [])
    tags = [tag for tag, _ in reader.elements]
    assert tags.count("h1") == 1
    assert tags.count("section") == tags.count("h2") == len(reader.sections)
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert ("html", {"lang": "en"}) in reader.elements


def test_what_the_page_says(full: StudyRecord, undistilled: StudyRecord) -> None:
    for kind, study in (("full", full), ("undistilled", undistilled)):
        told = [re.sub(r"\s*\n\s*", "\n", f"# {key}\n{text}") for key, text in Reader(render(study)).sections.items()]
        check_snapshot(f"page_{kind}.txt", "\n\n".join(told).strip() + "\n")


def test_the_storage_address_is_not_told_for_it_may_hold_a_password(record: StudyRecord, markup: str) -> None:
    assert record.plan.storage is not None
    assert "secret-password" in record.plan.storage
    assert "secret-password" not in markup


def test_enumerated_spaces_are_called_enumerated(record: StudyRecord) -> None:
    frontier = msgspec.structs.replace(record.frontier, num_scored=298)
    told = Reader(render(msgspec.structs.replace(record, frontier=frontier))).sections
    assert "All 298 candidates" in told["trust"]


def test_hostile_strings_stay_text(record: StudyRecord, reader: Reader) -> None:
    replace = msgspec.structs.replace
    latency = replace(record.dense.latency, workload=HOSTILE, device=HOSTILE, structure=HOSTILE)
    poisoned = [replace(t, evaluation=replace(t.evaluation, latency=latency)) for t in record.trials]
    members = [replace(m, evaluation=replace(m.evaluation, latency=latency)) for m in record.frontier.members]
    hostile = replace(
        record,
        plan=replace(
            record.plan,
            name=HOSTILE,
            protocol=replace(
                record.plan.protocol,
                model=HOSTILE,
                streams={HOSTILE: replace(record.plan.protocol.streams["test"], source=HOSTILE, notes=(HOSTILE,))},
            ),
            command=HOSTILE,
        ),
        environment=replace(record.environment, processor=HOSTILE, packages={HOSTILE: HOSTILE}),
        dense=replace(record.dense, latency=latency),
        trials=tuple(poisoned),
        frontier=replace(record.frontier, members=tuple(members)),
        distilled=tuple(replace(r, settings={HOSTILE: HOSTILE}, start=HOSTILE) for r in record.distilled),
        agreement=replace(record.agreement, verdict=HOSTILE),
    )
    rendered = render(hostile)
    seen = Reader(rendered)
    assert "<script>alert" not in rendered
    assert "<img src=x" not in rendered
    tags = [tag for tag, _ in seen.elements]
    assert tags.count("script") == [tag for tag, _ in reader.elements].count("script")
    assert "img" not in tags
    assert seen.unbalanced == []
    assert all("onerror" not in attributes for _, attributes in seen.elements)
    for section in ("answer", "trust", "protocol"):
        assert HOSTILE in seen.sections[section], section
    assert seen.text.count(HOSTILE) > 10


def test_frontier_of_one_with_poor_measurements(record: StudyRecord) -> None:
    replace = msgspec.structs.replace
    result = record.distilled[0]
    flat = replace(result.latency, ratio_low=result.latency.ratio, ratio_high=result.latency.ratio)
    bare = replace(result.test, kl_divergence=None, top1_agreement=None)
    member = record.frontier.members[0]
    one = replace(
        record,
        trials=(record.trials[member.trial_number],),
        frontier=replace(record.frontier, members=(replace(member, tied_with=()),)),
        distilled=(replace(result, latency=flat, test=bare, curve=result.curve[:1], best_step=0, user_score=0.4375),),
        equivalences=(),
    )
    seen = Reader(render(one))
    deciding = ["without layers", "speed [95 %]", "PPL [95 %]", "yours", "size"]
    assert seen.rows[0][:5] == deciding
    assert seen.rows[0][-1] == "unrecovered"  # columns in which nobody has anything are left out
    assert seen.rows[2][3] == "0.4375"
    assert {"pareto", "why", "trust", "models"} <= seen.sections.keys()


def test_empty_study_still_makes_a_page(undistilled: StudyRecord) -> None:
    nothing = Frontier(proxy=factory.PROXY, members=(), num_scored=0, space=factory.SPACE)
    seen = Reader(render(msgspec.structs.replace(undistilled, trials=(), frontier=nothing)))
    assert "there is no frontier" in seen.sections["answer"]
    assert not {"models", "gain"} & seen.sections.keys()


# ---- all trials


def read_data(record: StudyRecord) -> dict[str, Any]:
    """Read back what the page's script reads."""
    [text] = re.findall(r'<script type="application/json"[^>]*>(.*)</script>', render(record))
    assert not set("<>&") & set(text)
    return json.loads(text)


def test_every_trial_is_there_once(record: StudyRecord, markup: str) -> None:
    data = read_data(record)
    rows = [dict(zip(data["columns"], values, strict=True)) for values in data["table"]]
    assert [row["trial"] for row in rows] == [trial.number for trial in record.trials]
    for row, trial in zip(rows, record.trials, strict=True):
        evaluation = trial.evaluation
        assert row["dropped layers"] == list(evaluation.candidate.dropped_layers)
        assert row["parameters"] == evaluation.size.num_params
        quality = None if trial.state == "FAIL" else evaluation.qualities.get(record.frontier.proxy)
        found = row["PPL ratio, validation (short distillation)"]
        assert found == (None if quality is None else round(quality.ppl_ratio, 4))
    assert {row["state"] for row in rows} == {"complete", "pruned", "fail"}
    assert [row["no value because"] for row in rows if row["no value because"]] == [
        "closed form shows it to be hopeless"
    ]
    assert markup.count('data-sort="') == len(data["columns"])


def test_data_is_json_and_ends_no_script(record: StudyRecord) -> None:
    [trial] = record.trials[:1]
    broken = msgspec.structs.replace(
        factory.make_quality(1.1), ppl_ratio=float("inf"), ppl_ratio_standard_error=float("nan")
    )
    evaluation = msgspec.structs.replace(trial.evaluation, qualities={factory.PROXY: broken})
    lost = msgspec.structs.replace(record, trials=(TrialRecord(number=0, state="PRUNED", evaluation=evaluation),))
    hostile = "</script><script>alert(1)</script>&\u2028"
    data = read_data(msgspec.structs.replace(lost, plan=msgspec.structs.replace(lost.plan, name=hostile)))
    assert not [title for title in data["columns"] if title.startswith(("PPL", "standard"))]
    assert data["file"] == f"{hostile}-trials.csv"
