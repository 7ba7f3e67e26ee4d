"""Studies side by side: who wins within each margin, what may be compared, and nothing of a study that is not escaped."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from seed.findings import StudyRecord
from seed.records import Latency
from seed.reporting.comparability import has_one_scale, say_comparability, spell
from seed.reporting.frontiers import name_page, name_studies, render_frontiers_page
from seed.reporting.frontiers_figure import draw_frontiers
from seed.reporting.leads import measure_lead, rank_studies, say_comparison

from . import factory
from .test_page import Reader

HOSTILE = "<script>alert(1)</script>%{x}"


@pytest.fixture
def studies(record: StudyRecord) -> dict[str, StudyRecord]:
    """Two studies of one protocol; the second has slower, better models."""
    slower = []
    for result in record.distilled:
        latency = factory.make_latency(len(result.candidate.kept_layers), shift=0.02)
        test = factory.make_quality(1 + 0.1 * (result.test.ppl_ratio - 1), error=0.001)
        slower.append(msgspec.structs.replace(result, latency=latency, test=test))
    identity = {**record.plan.identity, "location": "demo", "streams": {"test": {"sha256": "f00d"}}, "device": "cpu"}
    plan = msgspec.structs.replace(record.plan, identity=identity)
    one = msgspec.structs.replace(record, plan=plan)
    return {"a": one, "b": msgspec.structs.replace(one, distilled=tuple(slower))}


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
def test_studies_are_told_apart_by_as_much_of_their_path_as_it_takes(paths, names, page) -> None:
    found = list(map(Path, paths))
    assert name_studies(found) == names
    assert name_page(found) == page


def test_the_fastest_within_each_margin_is_named_with_its_study(studies: dict[str, StudyRecord]) -> None:
    two, five, ten = say_comparison(studies)
    assert two.startswith("Fastest within 2\u00a0% PPL: b, 9 of 12 layers")
    assert "Beside it a: " in two
    for sentence in (five, ten):
        assert "Fastest within" in sentence
    far = {
        name: msgspec.structs.replace(
            record,
            distilled=tuple(msgspec.structs.replace(r, test=factory.make_quality(1.5)) for r in record.distilled),
        )
        for name, record in studies.items()
    }
    assert say_comparison(far)[0] == "Fastest within 2\u00a0% PPL: none in any of them."
    mixed = say_comparison({"a": far["a"], "b": studies["b"]})
    assert "Beside it a: none." in mixed[0]


def test_overlapping_speeds_are_not_told_apart(studies: dict[str, StudyRecord]) -> None:
    same = {"a": studies["a"], "b": studies["a"]}
    assert all("no measurable difference" in sentence for sentence in say_comparison(same) if "none" not in sentence)


def test_what_may_be_compared_depends_on_text_device_and_workload(studies: dict[str, StudyRecord]) -> None:
    assert has_one_scale(studies)
    said = " ".join(say_comparability(studies))
    assert "same dense model" in said
    assert "test perplexities may be compared themselves" in said
    assert "the dense model took 212.0 and 212.0 ms" in said
    one, other = studies["a"], studies["b"]
    text = {**other.plan.identity, "streams": {"test": {"sha256": "beef"}}}
    windows = {**other.plan.identity, "window_tokens": 128}
    speed = {**other.plan.identity, "device": "cuda"}
    kinds = ((text, "Perplexities themselves"), (windows, "Perplexities themselves"), (speed, "Milliseconds may not"))
    for identity, said in kinds:
        plan = msgspec.structs.replace(other.plan, identity=identity)
        differing = {"a": one, "b": msgspec.structs.replace(other, plan=plan)}
        assert not has_one_scale(differing)
        assert any(sentence.startswith(said) for sentence in say_comparability(differing))
    threads = msgspec.structs.replace(other.environment, num_threads=64)
    assert not has_one_scale({"a": one, "b": msgspec.structs.replace(other, environment=threads)})
    plan = msgspec.structs.replace(other.plan, identity={**other.plan.identity, "location": "gpt2"}, distill_tokens=5)
    said = " ".join(say_comparability({"a": one, "b": msgspec.structs.replace(other, plan=plan)}))
    assert "different dense models" in said
    plan = msgspec.structs.replace(one.plan, identity={})
    unknown = msgspec.structs.replace(one, plan=plan)
    said = " ".join(say_comparability({"a": unknown, "b": unknown}))
    assert "different dense models" in said
    assert "Perplexities themselves may not be compared" in said
    plan = msgspec.structs.replace(other.plan, distill_tokens=5)
    said = " ".join(say_comparability({"a": one, "b": msgspec.structs.replace(other, plan=plan)}))
    assert "different numbers of tokens (5 and 3,276,800)" in said


@pytest.mark.parametrize(("factor", "is_alike"), [(1.05, True), (2.4, False)])
def test_milliseconds_of_a_machine_that_was_not_equally_free_are_not_compared(
    studies: dict[str, StudyRecord], factor: float, is_alike: bool
) -> None:
    latency = studies["b"].dense.latency
    times = {name: factor * getattr(latency, name) for name in ("median_ms", "p10_ms", "p90_ms")}
    dense = msgspec.structs.replace(studies["b"].dense, latency=msgspec.structs.replace(latency, **times))
    studies["b"] = msgspec.structs.replace(studies["b"], dense=dense)
    assert has_one_scale(studies) is is_alike
    assert ("too far apart for one machine" in " ".join(say_comparability(studies))) is not is_alike
    assert ("absolute" in Reader(render_frontiers_page(studies)).sections) is is_alike
    plan = msgspec.structs.replace(
        studies["b"].plan, identity={**studies["b"].plan.identity, "location": "a larger model"}
    )
    assert has_one_scale({"a": studies["a"], "b": msgspec.structs.replace(studies["b"], plan=plan)})


def test_of_models_equally_fast_the_one_that_loses_less_leads(studies: dict[str, StudyRecord]) -> None:
    better = tuple(
        msgspec.structs.replace(
            result,
            latency=factory.make_latency(len(result.candidate.kept_layers), shift=0.006),
            test=factory.make_quality(1.001, error=0.0001),
        )
        for result in studies["a"].distilled
    )
    worse = tuple(
        msgspec.structs.replace(
            result,
            latency=factory.make_latency(len(result.candidate.kept_layers)),
            test=factory.make_quality(1.015),
        )
        for result in studies["a"].distilled
    )
    pair = {
        "worse": msgspec.structs.replace(studies["a"], distilled=worse),
        "better": msgspec.structs.replace(studies["a"], distilled=better),
    }
    leader, other = rank_studies(pair, margin=2)
    assert (leader.study, other.study) == ("better", "worse")
    assert other.is_level
    assert other.contender.latency.ratio < leader.contender.latency.ratio
    assert (
        "95\u00a0% interval: all of it within. Beside it worse: the same layers, latency ratio -0.8 ["
        in say_comparison(pair)[0]
    )


def test_a_lead_holds_its_own_and_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        one, other = 0.9 * np.exp(rng.normal(0, 0.02)), 0.8 * np.exp(rng.normal(0, 0.01))
        lead = measure_lead(make_latency(one, error=0.02), make_latency(other, error=0.01))
        assert lead.low is not None
        assert lead.high is not None
        assert lead.value == pytest.approx(one / other - 1)
        held += lead.low <= 0.9 / 0.8 - 1 <= lead.high
    assert 0.935 < held / 2000 < 0.965


def make_latency(ratio: float, *, error: float) -> Latency:
    """A latency ratio with the 95 % interval of a standard error on the logarithmic scale."""
    low, high = ratio * math.exp(-1.96 * error), ratio * math.exp(1.96 * error)
    return msgspec.structs.replace(factory.make_latency(9), ratio=ratio, ratio_low=low, ratio_high=high)


def test_values_of_a_protocol_are_spelled_briefly() -> None:
    found = [spell(value) for value in (None, True, 100000, 0.5, [0, 1, 2, 5], ["a", "b"], [], "ab" * 32, "text")]
    assert found == ["–", "yes", "100,000", "0.5", "0–2, 5", "a, b", "–", "abababababab…", "text"]


def test_each_frontier_is_a_line_that_ends_at_its_dense_model(studies: dict[str, StudyRecord]) -> None:
    first, second = draw_frontiers(studies).data
    for trace in (first, second):
        assert len(trace.x) == 4  # three depths and the dense model
        assert (trace.x[-1], trace.y[-1]) == (1, 1)
        assert list(trace.x) == sorted(trace.x)
    assert first.line.color != second.line.color
    assert first.marker.symbol[0] != second.marker.symbol[0]
    absolute = draw_frontiers(studies, is_absolute=True).data[0]
    dense = studies["a"].dense
    assert (absolute.x[-1], absolute.y[-1]) == (dense.latency.median_ms, dense.test.perplexity)
    assert absolute.y[0] == pytest.approx(first.y[0] * dense.test.perplexity)


def test_the_page_shows_models_and_only_what_differs(studies: dict[str, StudyRecord]) -> None:
    plan = msgspec.structs.replace(studies["b"].plan, distill_tokens=12345)
    studies["b"] = msgspec.structs.replace(studies["b"], plan=plan)
    seen = Reader(render_frontiers_page(studies))
    assert seen.unbalanced == []
    assert list(seen.sections) == ["answer", "comparability", "pareto", "absolute", "models", "protocols", "repeat"]
    assert len([row for row in seen.rows if row[0] in ("a", "b")]) == 2 * 7
    assert [row for row in seen.rows if "12,345" in row] == [
        ["distillation tokens per model", f"{studies['a'].plan.distill_tokens:,}", "12,345"]
    ]
    same = Reader(render_frontiers_page({"a": studies["a"], "c": studies["a"]}))
    assert "Nothing: all were searched by the same protocol" in same.sections["protocols"]


def test_a_study_that_was_not_distilled_takes_part_by_its_proxy(
    studies: dict[str, StudyRecord], undistilled: StudyRecord
) -> None:
    both = {"a": studies["a"], "p": undistilled}
    seen = Reader(render_frontiers_page(both))
    assert "no fair rival of a distilled model: p." in seen.sections["comparability"]
    assert len([row for row in seen.rows if row[0] == "p" and row[5].endswith("proxy")]) == 3
    assert "absolute" not in seen.sections
    assert [trace.line.dash for trace in draw_frontiers(both).data] == ["solid", "dot"]


def test_hostile_names_stay_text(studies: dict[str, StudyRecord]) -> None:
    plan = msgspec.structs.replace(studies["b"].plan, identity={"model": HOSTILE, HOSTILE: HOSTILE}, command=HOSTILE)
    rendered = render_frontiers_page({"a": studies["a"], HOSTILE: msgspec.structs.replace(studies["b"], plan=plan)})
    assert "<script>alert" not in rendered
    assert Reader(rendered).unbalanced == []
