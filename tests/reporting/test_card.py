"""A model's card says what it is, and foreign strings in it stay text: in YAML, in Markdown and in HTML."""

import json

import msgspec

from seed.findings import StudyRecord
from seed.records import Protocol
from seed.reporting.card import write_card
from tests.stages.test_planning import PROTOCOL

HOSTILE = "x\n---\n# <script>alert(1)</script> | [a](javascript:alert(2)) ```"


def write(record: StudyRecord, **changes: object) -> str:
    protocol: Protocol = msgspec.structs.replace(PROTOCOL, **changes)
    result = record.distilled[0]
    settings = {"distill_tokens": 1, "learning_rate": 1e-3, "steps": 1} | result.settings
    settings |= {"loss": "KL", "trained": "all weights"}
    return write_card(record.plan, protocol, record.dense, msgspec.structs.replace(result, settings=settings))


def read_front(card: str) -> dict[str, str]:
    """The lines between the first two rules, as a reader of simple YAML sees them."""
    front = card.split("---\n", 2)[1]
    pairs = [line.partition(": ") for line in front.splitlines() if ": " in line]
    return {key: json.loads(value) if value.startswith('"') else value for key, _, value in pairs}


def test_a_card_names_licence_and_base_as_the_hub_reads_them(record: StudyRecord) -> None:
    card = write(record, location="owner/name", license="apache-2.0")
    assert "\nlicense: apache-2.0\nbase_model: owner/name\ntags:\n" in card
    assert "`owner/name` with " in card
    assert "seed-search's embedded demo model with " in write(record)


def test_hostile_strings_end_neither_the_front_matter_nor_the_text(record: StudyRecord) -> None:
    card = write(record, model=HOSTILE, location=f"a/{HOSTILE}", license=HOSTILE, revision=HOSTILE, device=HOSTILE)
    front = read_front(card)
    assert front["license"] == HOSTILE
    assert front["base_model"] == f"a/{HOSTILE}"
    assert list(front) == ["library_name", "pipeline_tag", "license", "base_model"]
    lines = card.splitlines()
    assert lines.count("---") == 2
    assert [line for line in lines if line.startswith("# ")] == [
        line for line in lines if line.startswith("# x --- \\# &lt;script&gt;")
    ]
    outside_code = [line for line in lines if "<script>" in line and "`" not in line]
    assert [line for line in outside_code if not line.startswith(("license: ", "base_model: "))] == []
