"""The block of metadata that begins a model's card, in the hub's words: licence, base model, results.

YAML that any reader takes for the same, whatever strings a user or a model brought. What a card says below it is not made
here. The hub's specification: https://huggingface.co/docs/hub/model-cards
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seed.records import Quality

# What YAML can take for nothing but a string; all else goes between quotes.
PLAIN_SCALAR = re.compile(r"[A-Za-z][A-Za-z0-9./_-]*")
OTHER_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
PAIR = re.compile(r"\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}")  # a character that JSON spells as two
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")
WIKITEXT2 = ("Salesforce/wikitext", "wikitext-2-raw-v1")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured on one text: metrics by the hub's type, each with its name for people and its value."""

    source: str  # of the text, as a stream names it
    split: str
    metrics: tuple[tuple[str, str, float | None], ...]  # what is no finite number is left out

    @property
    def finite(self) -> list[tuple[str, str, float]]:
        """Those that can be written down."""
        return [(kind, name, value) for kind, name, value in self.metrics if value is not None and math.isfinite(value)]


def list_metrics(quality: Quality) -> tuple[tuple[str, str, float | None], ...]:
    """What of a quality goes into the metadata."""
    return (
        ("perplexity", "Perplexity", quality.perplexity),
        ("perplexity_ratio", "Perplexity over the original model's", quality.ppl_ratio),
        ("kl_divergence", "KL divergence from the original model, nats a token", quality.kl_divergence),
        ("top1_agreement", "Share of tokens with the original's most likely next token", quality.top1_agreement),
    )


def write_front(
    *,
    name: str,
    licence: Mapping[str, str],
    base_model: str,
    relation: str,
    tags: Sequence[str],
    sees: bool,
    results: Sequence[Result],
) -> list[str]:
    """Return the block's lines, rules included.

    Args:
        name: the model's, in its results.
        licence: ``license``, and where that is the author's own ``license_name`` and ``license_link``.
        base_model: where the original comes from; named only where that is a model of the hub.
        relation: what this model is to it, by the hub's words: ``finetune``, ``merge``.
        tags: of the model.
        sees: it reads images too.
        results: what was measured.
    """
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {'image-text-to-text' if sees else 'text-generation'}",
    ]
    lines += [f"{key}: {spell_scalar(value)}" for key, value in licence.items()]
    if HUB_ID.fullmatch(base_model):
        lines += [f"base_model: {spell_scalar(base_model)}", f"base_model_relation: {relation}"]
    lines += ["tags:", *(f"- {spell_scalar(tag)}" for tag in tags)]
    measured = [result for result in results if result.finite]
    if measured:
        lines += ["model-index:", f"- name: {spell_scalar(name)}", "  results:"]
        for result in measured:
            lines += _spell_result(result)
    return [*lines, "---"]


def spell_scalar(text: str) -> str:
    """A string of YAML: as it is where it can be nothing else, else quoted as JSON does, which YAML reads too."""
    if PLAIN_SCALAR.fullmatch(text) and text.lower() not in OTHER_WORDS:
        return text
    quoted = json.dumps(text).replace("\x7f", "\\x7f")
    return PAIR.sub(lambda pair: "\\U" + format(ord(json.loads('"' + pair[0] + '"')), "08x"), quoted)


def describe_data(source: str) -> tuple[str, str | None, str]:
    """The hub's name of a text where it has one, its configuration, and a name for people, without folders of ours."""
    if source == "wikitext2":
        return (*WIKITEXT2, "WikiText-2")
    if source.startswith("hub:"):
        name, _, config = source.removeprefix("hub:").partition(":")
        return name, config or None, name
    if source == "demo":
        return "text", None, "Python's standard library"
    return "text", None, Path(source).name or source


def _spell_result(result: Result) -> list[str]:
    kind, config, name = describe_data(result.source)
    lines = [
        "  - task:",
        "      type: text-generation",
        "    dataset:",
        f"      type: {spell_scalar(kind)}",
        f"      name: {spell_scalar(name)}",
        *([f"      config: {spell_scalar(config)}"] if config else []),
        f"      split: {spell_scalar(result.split)}",
        "    metrics:",
    ]
    for metric, title, value in result.finite:
        lines += [f"    - type: {metric}", f"      value: {value:.6f}", f"      name: {spell_scalar(title)}"]
    return lines
