"""The files that go with an exported checkpoint: its model card, with the hub's metadata, and a mergekit recipe of a raw cut.

Markdown and YAML from records, whatever strings a user or a model brought. The hub's specification:
https://huggingface.co/docs/hub/model-cards; mergekit's format: https://github.com/arcee-ai/mergekit (slices of sources,
each a model and a range of layers with its end left out).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from seed.plans import Protocol, SearchPlan
from seed.records import Candidate, DenseResult, DistillResult, Quality, find_runs
from seed.reporting.wording import count_things, escape_text, format_latency_ratio, quote_block, quote_code

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")


STARTS = {"none": "the original's weights", "closed_form": "closed-form recovery"}


@dataclass(frozen=True, kw_only=True)
class OpenedBy:
    """How a model is opened."""

    auto_class: str = "AutoModelForCausalLM"  # of transformers
    sees: bool = False  # it reads images too


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A cut model without recovery, and where it comes from."""

    model: str  # the original, as the user named it
    base_model: str  # "demo", a hub id, or a directory
    revision: str | None
    candidate: Candidate  # by the original's indices
    cut_from: str | None  # the directory of a model that lacked layers before; None: the original itself
    earlier_tokens: int  # that the recovery of that one took
    licence: Mapping[str, str]
    num_params: int
    weight_bytes: int
    seed_version: str
    opened_by: OpenedBy
    command: str  # that writes it again
    recover: str | None  # the command that recovers it


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a model without recovery was judged, and on which text."""

    quality: Quality
    split: str  # "test" or "validation"
    source: str


def write_card(
    plan: SearchPlan,
    protocol: Protocol,
    dense: DenseResult,
    result: DistillResult,
    *,
    opened_by: OpenedBy,
    licence: Mapping[str, str] | None = None,
) -> str:
    """Return README.md of an exported model. ``licence``: as in its metadata; None: as the protocol names it."""
    candidate, test = result.candidate, result.test
    licence = licence if licence is not None else {"license": protocol.license} if protocol.license else {}
    lines = [
        *write_front(
            name=f"{protocol.model} {_title(result)}",
            licence=licence,
            base_model=protocol.location,
            relation="finetune",
            tags=("layer-pruning", "distillation"),
            sees=opened_by.sees,
            source=protocol.streams["test"].source,
            split="test",
            metrics=list_metrics(test) | {"latency_ratio": ("Latency over the original model's", result.latency.ratio)},
        ),
        *_write_head(
            f"{protocol.model} {_title(result)}",
            candidate,
            base_model=protocol.location,
            how=f"{'' if result.width is None else f', {_title(result)}'}, found and recovered",
            seed_version=plan.seed_version,
            opened_by=opened_by,
        ),
        "| | this model | original | ratio |",
        "|---|---|---|---|",
        f"| test perplexity | {test.perplexity:.3f} | {dense.test.perplexity:.3f} | "
        f"{test.ppl_ratio:.4f} ± {test.ppl_ratio_standard_error:.4f} |",
        f"| the same layers without recovery | {result.test_unrecovered.perplexity:.3f} | | "
        f"{result.test_unrecovered.ppl_ratio:.4f} |",
        f"| {escape_text(result.latency.workload)}, ms | {result.latency.ratio * dense.latency.median_ms:.1f} | "
        f"{dense.latency.median_ms:.1f} | {format_latency_ratio(result.latency)} |",
        f"| parameters | {result.size.num_params:,} | {dense.size.num_params:,} | "
        f"{result.size.num_params / dense.size.num_params:.3f} |",
        f"| KV-cache bytes a token | {result.size.kv_bytes_per_token:,} | {dense.size.kv_bytes_per_token:,} | "
        f"{result.size.kv_bytes_per_token / dense.size.kv_bytes_per_token:.3f} |",
        "",
        f"KL divergence from the original {_number(test.kl_divergence)} nats a token; same most likely next token in "
        f"{_percent(test.top1_agreement)} of positions.",
        "",
        "## How it was made",
        "",
        *_write_origin(
            candidate,
            base_model=protocol.location,
            revision=protocol.commit or protocol.revision,
            licence=licence,
            cut_from=protocol.start,
            earlier_tokens=protocol.start_tokens,
        ),
        f"- Recovery: started from {STARTS[result.start]}; {escape_text(str(result.settings['loss']))}; "
        f"{escape_text(str(result.settings['trained']))}; "
        f"{result.settings['distill_tokens']:,} tokens, learning rate {result.settings['learning_rate']}, "
        f"best validation at step {result.best_step} of {result.settings['steps']}",
        *(
            f"- {escape_text(name.capitalize())} text: {quote_code(stream.source)}, {stream.tokens:,} tokens in {count_things(stream.documents, 'document')}, "
            f"sha256 {stream.sha256[:16]}"
            for name, stream in protocol.streams.items()
        ),
        f"- Perplexity: non-overlapping windows of {protocol.window_tokens} tokens, the first of each unscored, "
        f"computed in {protocol.dtype}; standard errors clustered by document",
        f"- Latency: on {escape_text(protocol.device)}, {result.latency.repeats} interleaved pairs, ratio with 95 % interval"
        + ("" if result.latency.disturbance is None else f"; the machine was busy: {result.latency.disturbance}"),
        "",
        "To make it again:",
        "",
        *quote_block(plan.command),
        "",
        "It inherits what the original can and cannot do, and was judged on one text only: judge it on your own task.",
        "",
    ]
    return "\n".join(lines)


def write_raw_card(raw: Raw, score: Score | None) -> str:
    """Return README.md of a cut model without recovery. ``score``: None where it was not judged."""
    candidate = raw.candidate
    gone = f"without layers {', '.join(candidate.dropped_parts)}" if candidate.dropped_parts else "with all its layers"
    title = f"{gone}, not recovered"
    lines = [
        *write_front(
            name=f"{raw.model} {title}",
            licence=raw.licence,
            base_model=raw.base_model,
            # nothing was trained: layers of the original, stacked, which is what the hub calls a merge
            relation="merge" if raw.cut_from is None else "finetune",
            tags=("layer-pruning",),
            sees=raw.opened_by.sees,
            source="" if score is None else score.source,
            split="" if score is None else score.split,
            metrics={} if score is None else list_metrics(score.quality),
        ),
        *_write_head(
            f"{raw.model} {title}",
            candidate,
            base_model=raw.base_model,
            how=", cut",
            seed_version=raw.seed_version,
            opened_by=raw.opened_by,
        ),
        "**It is not recovered.** Its layers are as they were before others were taken out between them; nothing was trained or "
        "fitted since. It predicts worse than it has to: recover it before you use it.",
        "",
        _say_score(score),
        "",
        *_write_origin(
            candidate,
            base_model=raw.base_model,
            revision=raw.revision,
            licence=raw.licence,
            cut_from=raw.cut_from,
            earlier_tokens=raw.earlier_tokens,
        ),
        f"- {raw.num_params:,} parameters, {raw.weight_bytes:,} bytes of weights",
        "- `mergekit.yml` stacks the same layers with mergekit",
        "",
        "To make it again:",
        "",
        *quote_block(raw.command),
        *(["", "To recover it:", "", *quote_block(raw.recover)] if raw.recover else []),
        "",
    ]
    return "\n".join(lines)


def _write_head(
    title: str, candidate: Candidate, *, base_model: str, how: str, seed_version: str, opened_by: OpenedBy
) -> list[str]:
    """Title and first paragraph: what the model is, and how it is opened."""
    opening = f"An ordinary checkpoint: `{opened_by.auto_class}.from_pretrained(PATH)` loads it."
    if opened_by.sees:
        opening += " Its text part alone has fewer layers; what it makes of images was not measured."
    return [
        "",
        f"# {escape_text(title)}",
        "",
        f"{_name_base(base_model)} with {len(candidate.kept_layers)} of its {candidate.num_layers} layers{how} by "
        f"[Seed](https://pypi.org/project/seed-search) {escape_text(seed_version)}. {opening}",
        "",
    ]


def _write_origin(
    candidate: Candidate,
    *,
    base_model: str,
    revision: str | None,
    licence: Mapping[str, str],
    cut_from: str | None,
    earlier_tokens: int,
) -> list[str]:
    """What it was cut from, and which layers are kept."""
    name = licence.get("license_name", licence.get("license"))
    earlier = f"recovered for {earlier_tokens:,} tokens before" if earlier_tokens else "which was not recovered"
    return [
        f"- Original model: {_name_base(base_model)}"
        + (f", revision {escape_text(revision)}" if revision else "")
        + (f", licence {escape_text(name)}" if name else ", licence: see the original model"),
        f"- Kept layers, by original index: {', '.join(map(str, candidate.kept_layers))}",
        *([f"- Cut from: {quote_code(cut_from)}, {earlier}"] if cut_from else []),
    ]


def _say_score(score: Score | None) -> str:
    if score is None:
        return "How much it lost was not measured."
    quality = score.quality
    return (
        f"Perplexity on {score.split} text ({quote_code(score.source)}, {quality.tokens:,} tokens): {_number(quality.perplexity)}, "
        f"{_number(quality.ppl_ratio)} ± {_number(quality.ppl_ratio_standard_error)} times the original's."
    )


def _name_base(location: str) -> str:
    return "seed-search's embedded demo model" if location == "demo" else quote_code(location)


def _title(result: DistillResult) -> str:
    if result.width is None:
        return f"without layers {', '.join(result.candidate.dropped_parts)}"
    return f"cut in width: MLP {result.width.mlp_width}, {result.width.num_heads} heads"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "an unknown share" if value is None else f"{100 * value:.1f} %"


# ---- metadata


def list_metrics(quality: Quality) -> dict[str, tuple[str, float | None]]:
    """What of a quality goes into the metadata: by the hub's type, a name for people and the value."""
    return {
        "perplexity": ("Perplexity", quality.perplexity),
        "perplexity_ratio": ("Perplexity over the original model's", quality.ppl_ratio),
        "kl_divergence": ("KL divergence from the original model, nats a token", quality.kl_divergence),
        "top1_agreement": ("Share of tokens with the original's most likely next token", quality.top1_agreement),
    }


def write_front(
    *,
    name: str,
    licence: Mapping[str, str],
    base_model: str,
    relation: str,
    tags: Sequence[str],
    sees: bool,
    source: str,
    split: str,
    metrics: Mapping[str, tuple[str, float | None]],
) -> list[str]:
    """Return the block of metadata that begins a card, rules included.

    Args:
        name: the model's, in its results.
        licence: ``license``, and where that is the author's own ``license_name`` and ``license_link``.
        base_model: where the original comes from; named only where that is a model of the hub.
        relation: what this model is to it, by the hub's words: ``finetune``, ``merge``.
        tags: of the model.
        sees: it reads images too.
        source: of the text that it was judged on, as a stream names it.
        split: of that text.
        metrics: what was measured; what is no finite number is left out.
    """
    told: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text" if sees else "text-generation",
        **licence,
    }
    if HUB_ID.fullmatch(base_model):
        told |= {"base_model": base_model, "base_model_relation": relation}
    told["tags"] = list(tags)
    finite = [
        {"type": kind, "value": round(value, 6), "name": title}
        for kind, (title, value) in metrics.items()
        if value is not None and math.isfinite(value)
    ]
    if finite:
        dataset = describe_data(source) | {"split": split}
        measured = {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": finite}
        told["model-index"] = [{"name": name, "results": [measured]}]
    return ["---", *yaml.dump(told, Dumper=OneLine, sort_keys=False, width=math.inf).splitlines(), "---"]


class OneLine(yaml.SafeDumper):  # type: ignore[misc]  # the library has no types
    """Writes a string on one line, so that no line of it is taken for the end of the block."""

    def represent_str(self, data: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


OneLine.add_representer(str, OneLine.represent_str)


def describe_data(source: str) -> dict[str, str]:
    """The hub's name of a text where it has one, its configuration, and a name for people, without folders of ours."""
    if source == "wikitext2":
        return {"type": "Salesforce/wikitext", "name": "WikiText-2", "config": "wikitext-2-raw-v1"}
    if source.startswith("hub:"):
        name, _, config = source.removeprefix("hub:").partition(":")
        return {"type": name, "name": name} | ({"config": config} if config else {})
    return {"type": "text", "name": "Python's standard library" if source == "demo" else Path(source).name or source}


# ---- mergekit


def write_recipe(model: str, *, revision: str | None, kept_layers: Sequence[int], dtype: str | None) -> str:
    """Return mergekit.yml of a model without recovery: what was trained or fitted is in no recipe.

    Args:
        model: the hub id or directory that is cut.
        revision: of a model of the hub.
        kept_layers: by their index in that model.
        dtype: of its weights; None: they have several, and each keeps its own.
    """
    recipe = {
        "slices": [
            {"sources": [{"model": _name_model(model, revision), "layer_range": [run[0], run[-1] + 1]}]}
            for run in find_runs(kept_layers)
        ],
        "merge_method": "passthrough",
    } | ({} if dtype is None else {"dtype": dtype})
    return f"# mergekit-yaml mergekit.yml DIRECTORY stacks the same layers\n{yaml.safe_dump(recipe, sort_keys=False)}"


def _name_model(model: str, revision: str | None) -> object:
    """A model as mergekit reads it: in a plain string "@" begins a revision, and "+" an adapter."""
    if set(model) & set("@+"):
        return {"model": {"path": model} | ({} if revision is None else {"revision": revision})}
    return model if revision is None else f"{model}@{revision}"
