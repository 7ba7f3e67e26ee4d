"""The model card of an exported checkpoint: what it is, what it lost, how to make it again.

Markdown from records; no file is written here.
"""

from seed.records import DenseResult, DistillResult, Protocol, SearchPlan


def write_card(plan: SearchPlan, protocol: Protocol, dense: DenseResult, result: DistillResult) -> str:
    """Return README.md of an exported model."""
    candidate, test = result.candidate, result.test
    base = "seed-search's embedded demo model" if protocol.location == "demo" else protocol.location
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if protocol.license:
        lines.append(f"license: {protocol.license}")
    if "/" in protocol.location and not protocol.location.startswith("/"):
        lines.append(f"base_model: {protocol.location}")
    lines += [
        "tags:",
        "- layer-pruning",
        "- distillation",
        "---",
        "",
        f"# {protocol.model} {_title(result)}",
        "",
        f"{base} with {len(candidate.kept_layers)} of its {candidate.num_layers} layers"
        f"{'' if result.width is None else f', {_title(result)}'}, found and recovered by "
        f"[Seed](https://pypi.org/project/seed-search) {plan.seed_version}. An ordinary checkpoint: "
        "`AutoModelForCausalLM.from_pretrained(PATH)` loads it.",
        "",
        "| | this model | original | ratio |",
        "|---|---|---|---|",
        f"| test perplexity | {test.perplexity:.3f} | {dense.test.perplexity:.3f} | "
        f"{test.ppl_ratio:.4f} ± {test.ppl_ratio_standard_error:.4f} |",
        f"| the same layers without recovery | {result.test_unrecovered.perplexity:.3f} | | "
        f"{result.test_unrecovered.ppl_ratio:.4f} |",
        f"| {result.latency.workload}, ms | {result.latency.median_ms:.1f} | {result.latency.dense_median_ms:.1f} | "
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
        + (f", revision {protocol.commit or protocol.revision}" if protocol.commit or protocol.revision else "")
        + (f", licence {protocol.license}" if protocol.license else ", licence: see the original model"),
        f"- Kept layers, by original index: {', '.join(map(str, candidate.kept_layers))}",
        *(
            [f"- Cut from: {protocol.start}, recovered for {protocol.start_tokens:,} tokens before"]
            if protocol.start
            else []
        ),
        f"- Recovery: started from {_start(result.start)}; {result.settings['loss']}; {result.settings['trained']}; "
        f"{result.settings['distill_tokens']:,} tokens, learning rate {result.settings['learning_rate']}, "
        f"best validation at step {result.best_step} of {result.settings['steps']}",
        *(
            f"- {name.capitalize()} text: {stream.source}, {stream.tokens:,} tokens in {stream.documents} documents, "
            f"sha256 {stream.sha256[:16]}"
            for name, stream in protocol.streams.items()
        ),
        f"- Perplexity: non-overlapping windows of {protocol.window_tokens} tokens, the first of each unscored, "
        f"computed in {protocol.dtype}; standard errors clustered by document",
        f"- Latency: on {protocol.device}, {result.latency.repeats} interleaved pairs, median and 95 % interval",
        "",
        "To make it again:",
        "",
        "```",
        plan.command,
        "```",
        "",
        "It inherits what the original can and cannot do, and was judged on one text only: judge it on your own task.",
        "",
    ]
    return "\n".join(lines)


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
