"""Studies side by side: who wins within each margin, what may be compared, and nothing of a study that is not escaped."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seed.evidence import StudyRecord
from seed.reporting.document import render
from seed.reporting.studies import (
    compare_protocols,
    describe_studies,
    draw_frontiers,
    format_value,
    name_page,
    name_studies,
    render_studies_page,
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


def list_items(markup: str) -> list[str]:
    """The items of a list as plain text."""
    return [unescape(" ".join(item.split())) for item in re.findall("<li>(.*?)</li>", markup, re.DOTALL)]


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
    slow = replace(b.dense.latency, **dict.fromkeys(("median_ms", "p10_ms", "p90_ms"), 509.0))
    busy = replace(b, dense=replace(b.dense, latency=slow))
    other = replace(a.plan.protocol.streams["test"], sha256="beef")
    pairs = {
        "one protocol": (a, b),
        "the same study": (a, a),
        "none within 2 %": (far, b),
        "other text": (a, change(b, protocol={"streams": {"test": other}})),
        "other windows": (a, change(b, protocol={"window_tokens": 128})),
        "other device": (a, change(b, protocol={"device": "cuda"})),
        "other threads": (a, replace(b, environment=replace(b.environment, num_threads=64))),
        "other model, fewer tokens": (a, change(b, protocol={"location": "gpt2"}, distill_tokens=5)),
        "a busy machine": (a, busy),
        "other model, which takes longer": (a, change(busy, protocol={"location": "gpt2"})),
        "not distilled": (a, undistilled),
    }
    told, alike = "", []
    for kind, pair in pairs.items():
        both = compute(dict(zip("ab", pair, strict=True)))
        common = compare_protocols(both)
        items = list_items(render("comparability.html", studies=both, common=common))
        told += "\n".join([f"# {kind}", *describe_studies(both), *items]) + "\n\n"
        alike += [kind] if common.has_one_scale else []
    check_snapshot("studies.txt", told.replace("\u00a0", " "))
    assert alike == [
        "one protocol",
        "the same study",
        "none within 2 %",
        "other model, fewer tokens",
        "other model, which takes longer",
    ]


def test_the_page_shows_all_models_and_what_differs(studies: dict[str, StudyRecord], undistilled: StudyRecord) -> None:
    studies["b"] = change(studies["b"], distill_tokens=5)
    seen = Reader(render_studies_page(compute(studies)))
    assert seen.unbalanced == []
    assert list(seen.sections) == ["answer", "comparability", "pareto", "absolute", "models", "protocols", "repeat"]
    models = [row for row in seen.rows if row[0] in studies]
    assert len(models) == 2 * (1 + 6)
    assert ["distillation tokens per model", "3,276,800", "5"] in seen.rows
    alike = Reader(render_studies_page(compute({"a": studies["a"], "c": studies["a"]})))
    assert "Nothing: all were searched by the same protocol" in alike.sections["protocols"]
    proxy = Reader(render_studies_page(compute({"a": studies["a"], "p": undistilled})))
    assert len([row for row in proxy.rows if row[0] == "p" and row[5].endswith("proxy")]) == 3
    assert "absolute" not in proxy.sections


def test_each_frontier_is_a_line_to_its_dense_model(studies: dict[str, StudyRecord], undistilled: StudyRecord) -> None:
    results = compute({**studies, "p": undistilled})
    lines = draw_frontiers(results).data
    assert [trace.line.dash for trace in lines] == ["solid", "solid", "dot"]
    for trace, result in zip(lines, results.values(), strict=True):
        assert (trace.x[-1], trace.y[-1]) == (1.0, 1.0)
        assert sorted(trace.y[:-1]) == sorted(model.ppl_ratio.value or 0 for model in result.best)
    absolute = draw_frontiers({"a": results["a"]}, is_absolute=True).data[0]
    dense = studies["a"].dense
    assert (absolute.x[-1], absolute.y[-1]) == (dense.latency.median_ms, dense.test.perplexity)


def test_values_of_a_protocol_are_spelled_briefly() -> None:
    found = [
        format_value(value) for value in (None, True, 100000, 0.5, [0, 1, 2, 5], ["a", "b"], [], "ab" * 32, "text")
    ]
    assert found == ["–", "yes", "100,000", "0.5", "0–2, 5", "a, b", "–", "abababababab…", "text"]


def test_hostile_names_stay_text(studies: dict[str, StudyRecord]) -> None:
    plan = replace(studies["b"].plan, protocol=replace(studies["b"].plan.protocol, model=HOSTILE), command=HOSTILE)
    rendered = render_studies_page(compute({"a": studies["a"], HOSTILE: replace(studies["b"], plan=plan)}))
    assert "<script>alert" not in rendered
    assert Reader(rendered).unbalanced == []
