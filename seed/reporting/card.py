"""The model card of an exported checkpoint: what it is, what it lost, how to make it again.

Markdown from records; no file is written here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from seed.plans import Protocol, SearchPlan
from seed.records import Candidate, DenseResult, DistillResult, Quality
from seed.reporting.front import Result, list_metrics, write_front
from seed.reporting.notes import escape_text, quote_block, quote_code
from seed.reporting.wording import count_things, format_latency_ratio


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
    base = _name_base(protocol.location)
    licence = licence if licence is not None else {"license": protocol.license} if protocol.license else {}
    measured = list_metrics(test)
    lines = [
        *write_front(
            name=f"{protocol.model} {_title(result)}",
            licence=licence,
            base_model=protocol.location,
            relation="finetune",
            tags=("layer-pruning", "distillation"),
            sees=opened_by.sees,
            results=[
                Result(
                    source=protocol.streams["test"].source,
                    split="test",
                    metrics=(*measured, ("latency_ratio", "Latency over the original model's", result.latency.ratio)),
                )
            ],
        ),
        "",
        f"# {escape_text(protocol.model)} {_title(result)}",
        "",
        f"{base} with {len(candidate.kept_layers)} of its {candidate.num_layers} layers"
        f"{'' if result.width is None else f', {_title(result)}'}, found and recovered by "
        f"[Seed](https://pypi.org/project/seed-search) {escape_text(plan.seed_version)}. {_say_opening(opened_by)}",
        "",
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
        f"- Original model: {base}"
        + (
            f", revision {escape_text(str(protocol.commit or protocol.revision))}"
            if protocol.commit or protocol.revision
            else ""
        )
        + _say_licence(licence),
        f"- Kept layers, by original index: {', '.join(map(str, candidate.kept_layers))}",
        *(
            [f"- Cut from: {quote_code(protocol.start)}, recovered for {protocol.start_tokens:,} tokens before"]
            if protocol.start
            else []
        ),
        f"- Recovery: started from {_start(result.start)}; {escape_text(str(result.settings['loss']))}; "
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
    results = (
        [] if score is None else [Result(source=score.source, split=score.split, metrics=list_metrics(score.quality))]
    )
    lines = [
        *write_front(
            name=f"{raw.model} {title}",
            licence=raw.licence,
            base_model=raw.base_model,
            # nothing was trained: layers of the original, stacked, which is what the hub calls a merge
            relation="merge" if raw.cut_from is None else "finetune",
            tags=("layer-pruning",),
            sees=raw.opened_by.sees,
            results=results,
        ),
        "",
        f"# {escape_text(raw.model)} {title}",
        "",
        f"{_name_base(raw.base_model)} with {len(candidate.kept_layers)} of its {candidate.num_layers} layers, cut by "
        f"[Seed](https://pypi.org/project/seed-search) {escape_text(raw.seed_version)}. {_say_opening(raw.opened_by)}",
        "",
        "**It is not recovered.** Its layers are as they were before others were taken out between them; nothing was trained or "
        "fitted since. It predicts worse than it has to: recover it before you use it.",
        "",
        _say_score(score),
        "",
        f"- Original model: {_name_base(raw.base_model)}"
        + (f", revision {escape_text(raw.revision)}" if raw.revision else "")
        + _say_licence(raw.licence),
        f"- Kept layers, by original index: {', '.join(map(str, candidate.kept_layers))}",
        *([f"- Cut from: {quote_code(raw.cut_from)}, {_say_earlier(raw.earlier_tokens)}"] if raw.cut_from else []),
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


def _say_score(score: Score | None) -> str:
    if score is None:
        return "How much it lost was not measured."
    quality = score.quality
    return (
        f"Perplexity on {score.split} text ({quote_code(score.source)}, {quality.tokens:,} tokens): {_number(quality.perplexity)}, "
        f"{_number(quality.ppl_ratio)} ± {_number(quality.ppl_ratio_standard_error)} times the original's."
    )


def _say_opening(opened_by: OpenedBy) -> str:
    said = f"An ordinary checkpoint: `{opened_by.auto_class}.from_pretrained(PATH)` loads it."
    return (
        f"{said} Its text part alone has fewer layers; what it makes of images was not measured."
        if opened_by.sees
        else said
    )


def _say_earlier(tokens: int) -> str:
    return f"recovered for {tokens:,} tokens before" if tokens else "which was not recovered"


def _name_base(location: str) -> str:
    return "seed-search's embedded demo model" if location == "demo" else quote_code(location)


def _say_licence(licence: Mapping[str, str]) -> str:
    name = licence.get("license_name", licence.get("license"))
    return f", licence {escape_text(name)}" if name else ", licence: see the original model"


def _title(result: DistillResult) -> str:
    if result.width is None:
        return f"without layers {', '.join(result.candidate.dropped_parts)}"
    return f"cut in width: MLP {result.width.mlp_width}, {result.width.num_heads} heads"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "an unknown share" if value is None else f"{100 * value:.1f} %"


def _start(rung: str) -> str:
    return {"none": "the original's weights", "closed_form": "closed-form recovery"}[rung]
