"""The page: one file, nothing loaded, every string escaped, the record's numbers in it, poorer studies without gaps."""

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from seed.errors import ResourceError
from seed.findings import StudyRecord
from seed.records import Frontier
from seed.reporting import page, wording
from seed.reporting.protocol import TEXT_RULE

from . import factory

COMMAND = "python -m seed.search --model demo --trials 180 --study demo"
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


def read(record: StudyRecord, *, command: str = COMMAND) -> Reader:
    """Render a record and read the page back."""
    return Reader(page.render_page(record, command=command))


@pytest.fixture(scope="module")
def markup(record: StudyRecord) -> str:
    """The page of the finished study."""
    return page.render_page(record, command=COMMAND)


@pytest.fixture(scope="module")
def reader(markup: str) -> Reader:
    """The same page, read back."""
    return Reader(markup)


def test_page_is_one_small_file_and_replaces_the_old_one(record: StudyRecord, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    page.write_page(record, path, command=COMMAND)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert 3_000_000 < path.stat().st_size < 6_000_000


def test_page_that_cannot_be_written_is_a_seed_error(record: StudyRecord, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        page.write_page(record, tmp_path / "file" / "report.html", command=COMMAND)


def test_page_is_the_same_for_the_same_record(record: StudyRecord, markup: str) -> None:
    assert page.render_page(record, command=COMMAND) == markup


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


def test_page_holds_plotly_once(markup: str) -> None:
    assert markup.count("plotly.js v") == 1
    plotted = re.findall(r'Plotly\.newPlot\(\s*"figure-(\w+)"', markup)
    assert plotted == ["pareto", "layers", "sensitivity", "agreement", "progress", "curves", "latency"]


def test_page_is_well_formed(reader: Reader) -> None:
    assert reader.unbalanced == []
    assert reader.open == []
    tags = [tag for tag, _ in reader.elements]
    assert tags.count("h1") == 1
    assert tags.count("section") == tags.count("h2") == len(reader.sections)
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert ("html", {"lang": "en"}) in reader.elements
    assert any(a.get("name") == "viewport" for _, a in reader.elements)


def test_page_goes_from_answer_to_command(reader: Reader) -> None:
    assert list(reader.sections) == [
        "answer",
        "pareto",
        "layers",
        "distilled",
        "sensitivity",
        "agreement",
        "progress",
        "curves",
        "latency",
        "frontier",
        "trials",
        "protocol",
        "repeat",
    ]
    assert COMMAND in reader.sections["repeat"]


def test_answer_is_a_sentence_for_each_depth(record: StudyRecord, reader: Reader) -> None:
    result = record.distilled[2]
    speed = f"{1 / result.latency.ratio:.2f} times faster to decode"
    ratio = f"test PPL ratio {result.test.ppl_ratio:.3f} ± {result.test.ppl_ratio_standard_error:.3f}"
    unrecovered = f"(without recovery {result.test_unrecovered.ppl_ratio:.2f})"
    dropped = ", ".join(map(str, result.candidate.dropped_layers))
    sentence = f"10 of 12 layers (without {dropped}): 12 % smaller, {speed}, {ratio} {unrecovered}, tied with"
    assert sentence in reader.sections["answer"]
    answers = reader.markup[reader.markup.index('<ul class="answers">') :]
    assert answers[: answers.index("</ul>")].count("<li>") == 3


def test_table_of_distilled_models_starts_with_the_dense(record: StudyRecord, reader: Reader) -> None:
    header, dense, *rows = reader.rows[:8]
    assert dense[:5] == ["none (dense)", "3.41 M", "6.82 MB", "6.14 kB", f"{record.dense.test.perplexity:.2f}"]
    assert "your score" not in header
    for row, result in zip(rows, record.distilled, strict=True):
        assert len(row) == len(header) == len(dense) == 10
        assert row[0] == ", ".join(map(str, result.candidate.dropped_layers))
        assert row[4] == f"{result.test.perplexity:.2f}"
        assert row[5] == f"{result.test.ppl_ratio:.3f} ± 0.004"
        assert row[6] == f"{result.test.kl_divergence:.4f}"
        assert row[8] == (
            f"{result.latency.ratio:.3f} [{result.latency.ratio_low:.3f}, {result.latency.ratio_high:.3f}]"
        )
        assert row[9] == f"{result.test_unrecovered.ppl_ratio:.3f}"


def test_user_scores_get_a_column_only_when_there_are_some(record: StudyRecord) -> None:
    first, *others = record.distilled
    scored = msgspec.structs.replace(record, distilled=(msgspec.structs.replace(first, user_score=0.4375), *others))
    header, dense, row, other = read(scored).rows[:4]
    assert header[-1] == "your score"
    assert (dense[-1], row[-1], other[-1]) == (wording.ABSENT, "0.4375", wording.ABSENT)


def test_protocol_environment_and_agreement_are_told(record: StudyRecord, reader: Reader) -> None:
    protocol = reader.sections["protocol"]
    assert "178 of the 298 candidates" in protocol
    assert "not enumerated" in protocol
    assert "178 COMPLETE, 1 FAIL, 1 PRUNED" in protocol
    assert record.plan.fingerprint in protocol
    for text in ("b4" * 32, "Python 3.11 standard library", "window tokens", "512", "learning rate"):
        assert text in protocol
    assert "65,536 tokens in 48 documents of Python 3.11 standard library; 0.9 % of its 13-grams" in protocol
    assert TEXT_RULE in protocol
    assert record.agreement.verdict in reader.sections["agreement"]
    for text in ("Linux-6.1-x86_64", "transformers", "5.23.0"):
        assert text in reader.sections["protocol"]


def test_the_storage_address_is_not_told_for_it_may_hold_a_password(record: StudyRecord, markup: str) -> None:
    assert record.plan.storage is not None
    assert "secret-password" in record.plan.storage
    assert "secret-password" not in markup


def test_enumerated_spaces_are_called_enumerated(record: StudyRecord) -> None:
    frontier = msgspec.structs.replace(record.frontier, num_scored=298)
    protocol = read(msgspec.structs.replace(record, frontier=frontier)).sections["protocol"]
    assert "All 298 candidates" in protocol
    assert "it was enumerated" in protocol


def test_hostile_strings_stay_text(record: StudyRecord, reader: Reader) -> None:
    replace = msgspec.structs.replace
    latency = replace(record.dense.latency, workload=HOSTILE, device=HOSTILE, structure=HOSTILE)
    poisoned = [replace(t, evaluation=replace(t.evaluation, latency=latency)) for t in record.trials]
    members = [replace(m, evaluation=replace(m.evaluation, latency=latency)) for m in record.frontier.members]
    hostile = replace(
        record,
        plan=replace(
            record.plan, name=HOSTILE, identity={HOSTILE: {"source": HOSTILE, "list": [HOSTILE, {"a": HOSTILE}]}}
        ),
        environment=replace(record.environment, processor=HOSTILE, packages={HOSTILE: HOSTILE}),
        dense=replace(record.dense, latency=latency),
        trials=tuple(poisoned),
        frontier=replace(record.frontier, members=tuple(members)),
        distilled=tuple(replace(r, settings={HOSTILE: HOSTILE}, start=HOSTILE) for r in record.distilled),
        agreement=replace(record.agreement, verdict=HOSTILE),
    )
    rendered = page.render_page(hostile, command=HOSTILE)
    seen = Reader(rendered)
    assert "<script>alert" not in rendered
    assert "<img src=x" not in rendered
    tags = [tag for tag, _ in seen.elements]
    assert tags.count("script") == [tag for tag, _ in reader.elements].count("script")
    assert "img" not in tags
    assert seen.unbalanced == []
    assert all("onerror" not in attributes for _, attributes in seen.elements)
    for section in ("answer", "agreement", "latency", "protocol", "repeat"):
        assert HOSTILE in seen.sections[section], section
    assert seen.text.count(HOSTILE) > 10


def test_study_without_distillation_answers_by_the_proxy(undistilled: StudyRecord) -> None:
    seen = read(undistilled)
    assert "Nothing was distilled." in seen.sections["answer"]
    member = undistilled.frontier.members[0]
    ratio = member.evaluation.qualities[factory.RUNG].ppl_ratio
    assert f"validation PPL ratio {ratio:.3f} ± 0.003" in seen.sections["answer"]
    assert not {"distilled", "agreement", "curves"} & seen.sections.keys()
    assert {"frontier", "pareto", "layers", "latency"} <= seen.sections.keys()
    assert undistilled.agreement.verdict in seen.sections["protocol"]


def test_frontier_of_one_with_poor_measurements(record: StudyRecord) -> None:
    replace = msgspec.structs.replace
    result = record.distilled[0]
    flat = replace(result.latency, ratio_low=result.latency.ratio, ratio_high=result.latency.ratio, prefill_ratio=None)
    bare = replace(result.test, kl_divergence=None, top1_agreement=None)
    member = record.frontier.members[0]
    one = replace(
        record,
        trials=(record.trials[member.trial_number],),
        frontier=replace(record.frontier, members=(replace(member, tied_with=()),)),
        distilled=(replace(result, latency=flat, test=bare, curve=result.curve[:1], best_step=0),),
        equivalences=(),
    )
    seen = read(one)
    row = seen.rows[2]
    assert row[6:9] == [wording.ABSENT, wording.ABSENT, f"{flat.ratio:.3f}"]
    assert "1 model distilled in full." in seen.sections["answer"]
    assert {"pareto", "layers", "agreement", "curves", "latency"} <= seen.sections.keys()


def test_empty_study_still_makes_a_page(undistilled: StudyRecord) -> None:
    nothing = Frontier(rung=factory.RUNG, members=(), num_scored=0, space_size=298)
    seen = read(msgspec.structs.replace(undistilled, trials=(), frontier=nothing))
    assert "there is no frontier" in seen.sections["answer"]
    assert not {"distilled", "frontier", "layers", "agreement", "curves", "latency"} & seen.sections.keys()
