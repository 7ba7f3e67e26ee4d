"""A study's answer in sentences: those that were looked at, for studies of every kind."""

import itertools

import msgspec
import pytest

from seed.evidence import StudyRecord
from seed.records import Frontier, Latency
from seed.reporting import wording
from seed.reporting.result_text import (
    describe_baseline,
    describe_certainty,
    describe_equivalence,
    describe_gain,
    describe_unhelped,
    describe_worth,
    explain_none,
    format_speed,
)
from seed.results import compute_result

from . import factory
from .conftest import check_snapshot

replace = msgspec.structs.replace


def describe_all(record: StudyRecord) -> str:
    """All that is said of a study."""
    result = compute_result(record)
    sentences = [
        *(f"{model.key}: {describe_gain(model, record.dense)}" for model in result.best),
        *(describe_certainty(found) if found.chosen else explain_none(found, result) for found in result.recommended),
        *(describe_equivalence(found, result) for found in record.equivalences),
        describe_unhelped(result),
    ]
    if record.gain:
        sentences += [describe_worth(record.gain)]
        sentences += [describe_baseline(baseline, record.gain) for baseline in record.gain.baselines]
    return "\n".join(filter(None, sentences)).replace("\u00a0", " ")


def test_what_is_said_of_studies_of_every_kind(
    record: StudyRecord, full: StudyRecord, undistilled: StudyRecord
) -> None:
    first = record.distilled[0]
    few = replace(first.test, effective_documents=2.0)
    hasty = replace(factory.make_latency(11), repeats=2, ratio_low=None, ratio_high=None)
    slow = replace(first, latency=factory.make_latency(11, shift=0.1), test=factory.make_quality(1.009, error=0.001))
    kinds = {
        "distilled once": record,
        "replicas, a width, baselines, a busy machine": full,
        "not distilled": undistilled,
        "equivalent": replace(record, equivalences=(replace(record.equivalences[0], verdict="equivalent"),)),
        "nothing scored": replace(
            undistilled,
            trials=(),
            frontier=Frontier(proxy=factory.PROXY, members=(), num_scored=0, space=factory.SPACE),
        ),
        "far off": replace(record, distilled=(replace(first, test=factory.make_quality(1.3)),), equivalences=()),
        "few documents": replace(record, distilled=(replace(first, test=few),), equivalences=()),
        "few pairs": replace(record, distilled=(replace(first, latency=hasty),), equivalences=()),
        "not faster": replace(record, distilled=(slow,), equivalences=()),
    }
    check_snapshot(
        "result_text.txt", "\n\n".join(f"# {kind}\n{describe_all(study)}" for kind, study in kinds.items()) + "\n"
    )


# ---- words


@pytest.mark.parametrize(
    ("layers", "text"), [((), "none"), ((3,), "3"), ((1, 2), "1, 2"), ((1, 5, 6, 7, 11), "1, 5–7, 11")]
)
def test_runs_of_layers_are_joined(layers: tuple[int, ...], text: str) -> None:
    assert wording.list_layers(layers) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.00 kB"), (6_824_736, "6.82 MB"), (99_960_000, "100 MB")],
)
def test_bytes_have_three_digits(count: int, text: str) -> None:
    assert wording.format_bytes(count).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("low", "ratio", "high", "text"),
    [
        (0.83, 0.84, 0.85, "1.19x faster"),
        (0.97, 0.99, 1.01, "not measurably faster"),
        (1.04, 1.05, 1.06, "1.05x slower"),
        (None, 0.5, None, "2.00x faster"),
    ],
)
def test_speed_is_told_as_far_as_it_can_be(low: float | None, ratio: float, high: float | None, text: str) -> None:
    latency: Latency = replace(factory.make_latency(6), ratio=ratio, ratio_low=low, ratio_high=high)
    assert format_speed(latency) == text


def test_marks_and_html_are_escaped_in_markdown() -> None:
    assert wording.escape_text("<script>alert(1)</script>") == "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert wording.escape_text("a*b_c|d\n# e & [f](g) `h`") == r"a\*b\_c\|d \# e &amp; \[f\](g) \`h\`"
    assert wording.quote_code("a`b") == "``a`b``"
    assert wording.quote_code("`a") == "`` `a ``"
    fences = [wording.quote_block("`" * count)[0] for count in range(5)]
    assert all(len(one) <= len(other) for one, other in itertools.pairwise(fences))
