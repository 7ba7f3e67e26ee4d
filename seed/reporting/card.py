"""The files that go with an exported checkpoint: its model card, with the hub's metadata, and a mergekit recipe of a raw cut.

Markdown and YAML from records, whatever strings a user or a model brought. The hub's specification:
https://huggingface.co/docs/hub/model-cards; mergekit's format: https://github.com/arcee-ai/mergekit (slices of sources,
each a model and a range of layers with its end left out).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import yaml

from seed.plans import Protocol, SearchPlan
from seed.records import HUB_ID, Candidate, DenseResult, DistillResult, Quality, find_runs
from seed.reporting import wording
from seed.reporting.wording import escape_text, format_latency_ratio, quote_block, quote_code
from seed.results import expect_drafting


@dataclass(frozen=True, kw_only=True)
class OpenedBy:
    """How a model is opened."""

    auto_class: str = "AutoModelForCausalLM"  # of transformers
    sees: bool = False  # it reads images too


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A cut model without recovery, and where it comes from."""

    model: str  # the original, as the user named it
    base_model: str  # "demo", a hub id, a directory or a GGUF file
    revision: str | None
    candidate: Candidate  # by the original's indices
    cut_from: str | None  # the directory of a model that lacked layers before; None: the original itself
    earlier_tokens: int  # that the recovery of that one took
    licence: Mapping[str, str]
    gguf_types: Mapping[str, int]  # of the original, where that is a GGUF file
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
    licence = licence if licence is not None else {"license": protocol.license} if protocol.license else {}
    cut = f"without layers {', '.join(result.candidate.parts)}"
    if result.width is not None:
        cut = f"cut in width: MLP {result.width.mlp_width}, {result.width.num_heads} heads"
    title = f"{protocol.model} {cut}"
    score = Score(quality=result.test, split="test", source=protocol.streams["test"].source)
    metrics = list_metrics(result.test)
    metrics["latency_ratio"] = ("Latency over the original model's", result.latency.ratio)
    return render_card(
        metadata=write_metadata(
            {**licence, **list_base(protocol.location, "finetune"), "tags": ["layer-pruning", "distillation"]},
            sees=opened_by.sees,
            results=index_results(title, score, metrics),
        ),
        title=title,
        base_model=protocol.location,
        licence=licence,
        gguf_types=protocol.gguf_types or {},
        how=f"{'' if result.width is None else f', {cut}'}, found and recovered",
        candidate=result.candidate,
        seed_version=plan.seed_version,
        opened_by=opened_by,
        revision=protocol.commit or protocol.revision,
        cut_from=protocol.start,
        earlier_tokens=protocol.start_tokens,
        command=plan.command,
        protocol=protocol,
        dense=dense,
        result=result,
        drafting=expect_drafting(result.test.acceptance, result.latency),
    )


def write_raw_card(raw: Raw, score: Score | None) -> str:
    """Return README.md of a cut model without recovery. ``score``: None where it was not judged."""
    candidate = raw.candidate
    gone = f"without layers {', '.join(candidate.parts)}" if candidate.parts else "with all its layers"
    title = f"{raw.model} {gone}, not recovered"
    # where nothing was trained: layers of the original, stacked, which is what the hub calls a merge
    base = list_base(raw.base_model, "merge" if raw.cut_from is None else "finetune")
    metadata = write_metadata(
        {**raw.licence, **base, "tags": ["layer-pruning"]},
        sees=raw.opened_by.sees,
        results={} if score is None else index_results(title, score, list_metrics(score.quality)),
    )
    return render_card(metadata=metadata, title=title, how=", cut", score=score, **vars(raw))


def render_card(*, base_model: str, licence: Mapping[str, str], **values: object) -> str:
    """Fill in the card."""
    base = "seed-search's embedded demo model" if base_model == "demo" else quote_code(base_model)
    named = licence.get("license_name", licence.get("license"))
    absent = dict.fromkeys(("result", "score", "recover", "drafting"))
    return render_markdown("card.md", **(absent | values | {"base": base, "licence_name": named}))


def render_markdown(template: str, **values: object) -> str:
    """Return a template of Markdown filled in; whatever a user or a model brought goes through a filter there."""
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)  # noqa: S701
    environment.globals |= {"wording": wording}
    environment.filters |= {
        "text": lambda value: escape_text(str(value)),
        "code": quote_code,
        "block": lambda text: "\n".join(quote_block(text)),
        "count": "{:,}".format,
        "latency": format_latency_ratio,
    }
    text = resources.files("seed.reporting").joinpath("templates", template).read_text(encoding="utf-8")
    return environment.from_string(text).render(values)


# ---- metadata


def list_metrics(quality: Quality) -> dict[str, tuple[str, float | None]]:
    """What of a quality goes into the metadata: by the hub's type, a name for people and the value."""
    return {
        "perplexity": ("Perplexity", quality.perplexity),
        "perplexity_ratio": ("Perplexity over the original model's", quality.ppl_ratio),
        "kl_divergence": ("KL divergence from the original model, nats a token", quality.kl_divergence),
        "top1_agreement": ("Share of tokens with the original's most likely next token", quality.top1_agreement),
    }


def list_base(base_model: str, relation: str) -> dict[str, object]:
    """Return where a model comes from and what it is to that, where that is a model of the hub."""
    if not HUB_ID.fullmatch(base_model):
        return {}
    return {"base_model": base_model, "base_model_relation": relation}


def index_results(title: str, score: Score, metrics: Mapping[str, tuple[str, float | None]]) -> dict[str, object]:
    """Return what was measured on a text; what is no finite number is left out."""
    finite = [
        {"type": kind, "value": round(value, 6), "name": name}
        for kind, (name, value) in metrics.items()
        if value is not None and math.isfinite(value)
    ]
    dataset = describe_data(score.source) | {"split": score.split}
    measured = {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": finite}
    return {"model-index": [{"name": title, "results": [measured]}]} if finite else {}


def write_metadata(values: Mapping[str, object], *, sees: bool, results: Mapping[str, object]) -> str:
    """Return the block of metadata that begins a card, rules included. ``sees``: the model reads images too."""
    kind = {"library_name": "transformers", "pipeline_tag": "image-text-to-text" if sees else "text-generation"}
    return f"---\n{yaml.dump({**kind, **values, **results}, Dumper=OneLine, sort_keys=False, width=math.inf)}---"


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
