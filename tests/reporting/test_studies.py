"""Studies side by side: what each would ship, what may be compared, and nothing of a study that is not escaped."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from seed.evidence import StudyRecord
from seed.reporting.document import render_findings
from seed.reporting.studies import (
    describe_studies,
    draw_frontiers,
    format_value,
    list_cautions,
    name_page,
    name_studies,
    tell_studies,
)
from seed.results import StudyResult, compute_result

from . import factory
from .conftest import check_snapshot
from .test_page import Reader

HOSTILE = "<script>alert(1)</script>%{x}"
replace = msgspec.structs.replace


@pytest.fixture
def studies(record: StudyRecord) -> dict[str, StudyRecord]:
    """Two studies of one protocol; the second has slower, better models."""
    slower = []
    for result in record.distilled:
        latency = factory.make_latency(len(result.candidate.kept_layers), shift=0.02)
        test = factory.make_quality(1 + 0.1 * (result.test.ppl_ratio - 1), error=0.001)
        slower.append(replace(result, latency=latency, test=test))
    return {"a": record, "b": replace(record, distilled=tuple(slower))}


def compute(studies: dict[str, StudyRecord]) -> dict[str, StudyResult]:
    """What each found."""
    return {name: compute_result(record) for name, record in studies.items()}


def change(record: StudyRecord, *, protocol: dict[str, Any] | None = None, **plan: Any) -> StudyRecord:
    """The study with another protocol or plan."""
    return replace(record, plan=replace(record.plan, protocol=replace(record.plan.protocol, **protocol or {}), **plan))


@pytest.mark.parametrize(
    ("paths", "names", "page"),
    [
        (["studies/a", "studies/b"], ["a", "b"], "a+b.html"),
        (
            ["x/studies/demo", "y/studies/demo"],
            ["x/studies/demo", "y/studies/demo"],
            "x-studies-demo+y-studies-demo.html",
        ),
        (["p/1", "p/2", "p/3", "p/4", "p/5"], ["1", "2", "3", "4", "5"], "1+2+3+2-more.html"),
    ],
)
def test_studies_are_told_apart_by_as_much_of_their_path_as_it_takes(
    paths: list[str], names: list[str], page: str
) -> None:
    found = list(map(Path, paths))
    assert (name_studies(found), name_page(found)) == (names, page)


def test_what_is_said_of_studies_side_by_side(studies: dict[str, StudyRecord], undistilled: StudyRecord) -> None:
    a, b = studies["a"], studies["b"]
    far = replace(a, distilled=tuple(replace(r, test=factory.make_quality(1.5)) for r in a.distilled))
    told = [
        f"# {kind}\n" + "\n".join(describe_studies(compute({"a": one, "b": b})))
        for kind, one in (("near", a), ("far", far))
    ]
    other = replace(a.plan.protocol.streams["test"], sha256="beef")
    seconds = {
        "one protocol": b,
        "other text": change(b, protocol={"streams": {"test": other}}),
        "other windows": change(b, protocol={"window_tokens": 128}),
        "other device": change(b, protocol={"device": "cuda"}),
        "other threads": replace(b, environment=replace(b.environment, num_threads=64)),
        "other model": change(b, protocol={"location": "gpt2"}),
        "not distilled": undistilled,
    }
    told += [f"# {kind}\n" + "\n".join(list_cautions(compute({"a": a, "b": one}))) for kind, one in seconds.items()]
    check_snapshot("studies.txt", "\n\n".join(told).replace("\u00a0", " ") + "\n")


def test_the_page_shows_all_models_and_what_differs(studies: dict[str, StudyRecord], undistilled: StudyRecord) -> None:
    studies["b"] = change(studies["b"], distill_tokens=5)
    seen = Reader(render_findings(tell_studies(compute({**studies, "p": undistilled})), command="x"))
    assert seen.unbalanced == []
    assert list(seen.sections) == ["answer", "finding-0", "numbers", "repeat"]
    assert [row[0] for row in seen.rows].count("a") == 1 + 6
    assert ["distillation tokens per model", "3,276,800", "5", "3,276,800"] in seen.rows
    alike = tell_studies(compute({"a": studies["a"], "c": studies["a"]}))
    assert alike.tables[1].rows == []


def test_each_frontier_is_a_line(studies: dict[str, StudyRecord], undistilled: StudyRecord) -> None:
    results = compute({**studies, "p": undistilled})
    *lines, dense = draw_frontiers(results).data
    assert (dense.x, dense.y) == ((1.0,), (1.0,))
    assert [trace.line.dash for trace in lines] == ["solid", "solid", "dot"]
    for trace, result in zip(lines, results.values(), strict=True):
        wanted = sorted(model.ppl_ratio.value or 0 for model in result.best)
        assert sorted(trace.y) == pytest.approx(wanted, abs=1e-4)


def test_values_of_a_protocol_are_spelled_briefly() -> None:
    values = (None, 100000, 0.5, [0, 1, 2, 5], ["a", "b"], "ab" * 32, "text")
    long = f"{'ab' * 20}…"
    assert list(map(format_value, values)) == ["–", "100,000", "0.5", "0–2, 5", "a, b", long, "text"]


def test_hostile_names_stay_text(studies: dict[str, StudyRecord]) -> None:
    plan = replace(studies["b"].plan, protocol=replace(studies["b"].plan.protocol, model=HOSTILE), command=HOSTILE)
    found = tell_studies(compute({"a": studies["a"], HOSTILE: replace(studies["b"], plan=plan)}))
    rendered = render_findings(found, command=HOSTILE)
    assert "<script>alert" not in rendered
    assert Reader(rendered).unbalanced == []
