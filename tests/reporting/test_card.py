"""A model's card says what it is as the hub reads it, foreign strings in it stay text, and a recipe is what mergekit reads."""

import dataclasses
import math

import msgspec
import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from seed.evidence import StudyRecord
from seed.plans import Protocol
from seed.reporting.card import OpenedBy, Raw, Score, describe_data, write_card, write_raw_card, write_recipe
from tests.reporting.conftest import check_snapshot
from tests.reporting.factory import make_candidate, make_quality
from tests.test_plans import PROTOCOL

HOSTILE = "x\n---\n# <script>alert(1)</script> | [a](javascript:alert(2)) ```"
RAW = Raw(
    model="tinyllama",
    base_model="owner/name",
    revision="1f0c" * 10,
    candidate=make_candidate(1, 7),
    cut_from=None,
    earlier_tokens=0,
    licence={"license": "llama3.2"},
    gguf_types={},
    num_params=1_000_000,
    weight_bytes=2_000_000,
    seed_version="0.1.0",
    opened_by=OpenedBy(),
    command="python -m seed.export studies/x --trial 3 --no-recovery",
    recover="python -m seed.distill studies/x --trial 3",
)
SCORE = Score(quality=make_quality(1.3726, kl=0.2), split="validation", source="wikitext2")


def write(record: StudyRecord, *, licence: dict[str, str] | None = None, **changes: object) -> str:
    protocol: Protocol = msgspec.structs.replace(PROTOCOL, **changes)
    result = record.distilled[0]
    settings = {"distill_tokens": 1, "learning_rate": 1e-3, "steps": 1} | result.settings
    settings |= {"loss": "KL", "trained": "all weights"}
    changed = msgspec.structs.replace(result, settings=settings)
    return write_card(record.plan, protocol, record.dense, changed, opened_by=OpenedBy(), licence=licence)


def read(card: str) -> ModelCardData:
    """The card's metadata as the hub's own library reads it; what it does not understand is an error."""
    data = ModelCard(card, ignore_metadata_errors=False).data
    assert isinstance(data, ModelCardData)
    again = ModelCardData(**data.to_dict())  # what it writes it reads as the same
    assert yaml.safe_load(again.to_yaml()) == yaml.safe_load(card.split("---\n", 2)[1])
    return data


def index(data: ModelCardData) -> dict[str, EvalResult]:
    """Results by their metric."""
    assert data.eval_results is not None
    return {result.metric_type: result for result in data.eval_results}


def test_a_model_that_sees_says_how_it_is_opened_and_what_was_not_measured() -> None:
    sees = OpenedBy(auto_class="AutoModelForImageTextToText", sees=True)
    card = write_raw_card(dataclasses.replace(RAW, opened_by=sees), None)
    assert read(card).pipeline_tag == "image-text-to-text"
    assert "`AutoModelForImageTextToText.from_pretrained(PATH)` loads it. Its text part alone has fewer layers" in card
    plain = write_raw_card(RAW, None)
    assert read(plain).pipeline_tag == "text-generation"
    assert "images" not in plain


def test_the_hub_reads_licence_base_model_and_results(record: StudyRecord) -> None:
    streams = {name: msgspec.structs.replace(one, source="wikitext2") for name, one in PROTOCOL.streams.items()}
    data = read(write(record, location="owner/name", model="name", license="apache-2.0", streams=streams))
    assert (data.license, data.base_model, data.base_model_relation) == ("apache-2.0", "owner/name", "finetune")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["layer-pruning", "distillation"]
    assert data.model_name.startswith("name without layers")
    results, result = index(data), record.distilled[0]
    found = results["perplexity"]
    assert (found.task_type, found.dataset_type) == ("text-generation", "Salesforce/wikitext")
    assert (found.dataset_config, found.dataset_split) == ("wikitext-2-raw-v1", "test")
    assert found.metric_value == pytest.approx(result.test.perplexity, abs=1e-6)
    assert results["kl_divergence"].metric_value == pytest.approx(result.test.kl_divergence, abs=1e-6)
    assert results["latency_ratio"].metric_value == pytest.approx(result.latency.ratio, abs=1e-6)
    assert "`owner/name` with " in write(record, location="owner/name")


@pytest.mark.parametrize("location", ["demo", "/models/of/mine", "someone/else/where"])
def test_what_is_no_model_of_the_hub_is_no_base_model(record: StudyRecord, location: str) -> None:
    data = read(write(record, location=location))
    assert getattr(data, "base_model", None) is None
    assert getattr(data, "base_model_relation", None) is None
    assert index(data)["perplexity"].dataset_type == "text"


def test_an_authors_own_licence_keeps_its_name_and_link(record: StudyRecord) -> None:
    licence = {"license": "other", "license_name": "tongyi qianwen", "license_link": "https://example.org/a#b"}
    card = write(record, licence=licence, license=None)
    data = read(card)
    assert {name: getattr(data, name) for name in licence} == licence
    assert "licence tongyi qianwen" in card
    assert getattr(read(write(record, licence={}, license=None)), "license", None) is None
    assert "licence: see the original model" in write(record, license=None)


def test_numbers_that_are_none_are_left_out(record: StudyRecord) -> None:
    result = record.distilled[0]
    test = msgspec.structs.replace(result.test, perplexity=math.inf, ppl_ratio=math.nan, kl_divergence=None)
    broken = msgspec.structs.replace(record, distilled=(msgspec.structs.replace(result, test=test),))
    assert set(index(read(write(broken)))) == {"top1_agreement", "latency_ratio"}
    nothing = Score(quality=msgspec.structs.replace(test, top1_agreement=None), split="validation", source="wikitext2")
    assert read(write_raw_card(RAW, nothing)).eval_results is None


def test_what_the_cards_say(record: StudyRecord) -> None:
    streams = {name: msgspec.structs.replace(one, source="wikitext2") for name, one in PROTOCOL.streams.items()}
    cards = {
        "card.md": write(record, location="owner/name", model="name", license="apache-2.0", streams=streams),
        "card_unrecovered.md": write_raw_card(RAW, SCORE),
        "card_unjudged.md": write_raw_card(dataclasses.replace(RAW, recover=None), None),
    }
    for name, card in cards.items():
        check_snapshot(name, card)
    data = read(cards["card_unrecovered.md"])
    assert (data.license, data.base_model, data.base_model_relation) == ("llama3.2", "owner/name", "merge")
    assert index(data)["perplexity_ratio"].dataset_split == "validation"
    assert read(cards["card_unjudged.md"]).eval_results is None
    twice = write_raw_card(dataclasses.replace(RAW, cut_from="/studies/x/models/drop-1", earlier_tokens=4096), SCORE)
    assert read(twice).base_model_relation == "finetune"  # no mere merge
    assert "recovered for 4,096 tokens before" in twice


WORDS = ("no", "Null", "1.0", "1e5", "2024-01-01", "0x1f", "~", "", "a: b", "- a", "#", "\x7f\x00\n")
WORDS += ("é \u2028 \U0001f600 \\ud83d\\ude00",)


def test_a_string_is_the_same_string_to_a_reader_of_yaml() -> None:
    for text in (*WORDS, HOSTILE):
        card = write_raw_card(dataclasses.replace(RAW, licence={"license": text}), None)
        assert yaml.safe_load(card.split("---\n", 2)[1])["license"] == text


def test_texts_go_by_the_hub_s_names_and_never_by_our_folders() -> None:
    english = {"type": "owner/text", "name": "owner/text", "config": "en"}
    assert describe_data("hub:owner/text:en") == english
    assert describe_data("hub:owner/text") == {"type": "owner/text", "name": "owner/text"}
    assert describe_data("/home/me/secret/notes.txt") == {"type": "text", "name": "notes.txt"}
    assert describe_data("demo")["type"] == "text"


def test_hostile_strings_end_neither_the_front_matter_nor_the_text(record: StudyRecord) -> None:
    recovered = write(record, model=HOSTILE, location=f"a/{HOSTILE}", license=HOSTILE, revision=HOSTILE, device=HOSTILE)
    raw = dataclasses.replace(
        RAW, model=HOSTILE, base_model=HOSTILE, revision=HOSTILE, cut_from=HOSTILE, licence={"license": HOSTILE}
    )
    for card in (recovered, write_raw_card(raw, dataclasses.replace(SCORE, source=HOSTILE))):
        data = read(card)
        assert data.license == HOSTILE
        assert getattr(data, "base_model", None) is None
        assert data.model_name.startswith(HOSTILE)
        lines = card.splitlines()
        assert lines.count("---") == 2
        [title] = [line for line in lines if line.startswith("# ")]
        assert title.startswith("# x --- \\# &lt;script&gt;")
        outside_code = [line for line in lines if "<script>" in line and "`" not in line]
        assert [line for line in outside_code if not line.startswith(("license: ", "- name: "))] == []


# ---- mergekit


def read_recipe(model: str, *kept: int, revision: str | None = None, dtype: str | None = "bfloat16") -> dict:
    return yaml.safe_load(write_recipe(model, revision=revision, kept_layers=kept, dtype=dtype))


def test_each_run_of_kept_layers_is_a_slice() -> None:
    assert read_recipe("owner/name", 0, 2, 3, 4, 9) == {
        "slices": [
            {"sources": [{"model": "owner/name", "layer_range": [begin, end]}]}
            for begin, end in ((0, 1), (2, 5), (9, 10))
        ],
        "merge_method": "passthrough",
        "dtype": "bfloat16",
    }
    assert "dtype" not in read_recipe("owner/name", 0, dtype=None)


@pytest.mark.parametrize(
    ("model", "revision", "wanted"),
    [
        ("owner/name", "1f" * 20, f"owner/name@{'1f' * 20}"),
        ("/models/a b: #c", None, "/models/a b: #c"),
        ("/models/v1+v2", None, {"model": {"path": "/models/v1+v2"}}),
        ("/models/a@b", None, {"model": {"path": "/models/a@b"}}),
        ("a/b+c", "abc", {"model": {"path": "a/b+c", "revision": "abc"}}),
    ],
)
def test_models_are_named_so_that_mergekit_reads_no_revision_or_adapter_into_them(
    model: str, revision: str | None, wanted: object
) -> None:
    [part] = read_recipe(model, 1, revision=revision)["slices"]
    assert part["sources"][0]["model"] == wanted
