"""The model card of an exported checkpoint: what it is, what it lost, how to make it again.

Markdown from records; no file is written here.
"""

import json
import re

from seed.records import DenseResult, DistillResult, Protocol, SearchPlan
from seed.reporting.notes import escape_text, quote_block, quote_code

PLAIN_SCALAR = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]*")  # of YAML; whatever else there is goes between quotes


def write_card(plan: SearchPlan, protocol: Protocol, dense: DenseResult, result: DistillResult) -> str:
    """Return README.md of an exported model."""
    candidate, test = result.candidate, result.test
    base = "seed-search's embedded demo model" if protocol.location == "demo" else quote_code(protocol.location)
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if protocol.license:
        lines.append(f"license: {_spell_scalar(protocol.license)}")
    if "/" in protocol.location and not protocol.location.startswith("/"):
        lines.append(f"base_model: {_spell_scalar(protocol.location)}")
    lines += [
        "tags:",
        "- layer-pruning",
        "- distillation",
        "---",
        "",
        f"# {escape_text(protocol.model)} {_title(result)}",
        "",
        f"{base} with {len(candidate.kept_layers)} of its {candidate.num_layers} layers"
        f"{'' if result.width is None else f', {_title(result)}'}, found and recovered by "
        f"[Seed](https://pypi.org/project/seed-search) {escape_text(plan.seed_version)}. An ordinary checkpoint: "
        "`AutoModelForCausalLM.from_pretrained(PATH)` loads it.",
        "",
        "| | this model | original | ratio |",
        "|---|---|---|---|",
        f"| test perplexity | {test.perplexity:.3f} | {dense.test.perplexity:.3f} | "
        f"{test.ppl_ratio:.4f} ± {test.ppl_ratio_standard_error:.4f} |",
        f"| the same layers without recovery | {result.test_unrecovered.perplexity:.3f} | | "
        f"{result.test_unrecovered.ppl_ratio:.4f} |",
        f"| {escape_text(result.latency.workload)}, ms | {result.latency.median_ms:.1f} | {result.latency.dense_median_ms:.1f} | "
        f"{result.latency.ratio:.3f} [{result.latency.ratio_low:.3f}, {result.latency.ratio_high:.3f}] |",
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
        + (f", licence {escape_text(protocol.license)}" if protocol.license else ", licence: see the original model"),
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
            f"- {escape_text(name.capitalize())} text: {quote_code(stream.source)}, {stream.tokens:,} tokens in {stream.documents} documents, "
            f"sha256 {stream.sha256[:16]}"
            for name, stream in protocol.streams.items()
        ),
        f"- Perplexity: non-overlapping windows of {protocol.window_tokens} tokens, the first of each unscored, "
        f"computed in {protocol.dtype}; standard errors clustered by document",
        f"- Latency: on {escape_text(protocol.device)}, {result.latency.repeats} interleaved pairs, median and 95 % interval",
        "",
        "To make it again:",
        "",
        *quote_block(plan.command),
        "",
        "It inherits what the original can and cannot do, and was judged on one text only: judge it on your own task.",
        "",
    ]
    return "\n".join(lines)


def _spell_scalar(text: str) -> str:
    """A string of YAML: as it is where it can be nothing else, else quoted as JSON does, which YAML reads too."""
    return text if PLAIN_SCALAR.fullmatch(text) else json.dumps(text)


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
