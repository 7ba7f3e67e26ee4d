"""The page's tables of models: distilled, replicated, and the frontier as the proxy sees it. Words and numbers only."""

from seed.findings import StudyRecord
from seed.records import Quality, Size
from seed.reporting.document import escape, render_section, render_table
from seed.reporting.readings import read_id, read_result_id
from seed.reporting.replication import (
    HEADER,
    MARGIN_PERCENT,
    list_replications,
    name_model,
    say_equivalence,
)
from seed.reporting.wording import (
    ABSENT,
    count_things,
    format_bytes,
    format_count,
    format_latency_ratio,
    format_number,
    format_ppl_ratio,
    list_layers,
    name_rung,
)

SIZE_HEADER = ("parameters", "weights", "KV cache per token")


def render_distilled(record: StudyRecord) -> str:
    """Return the table of distilled models, the dense model first."""
    if not record.distilled:
        return ""
    dense = record.dense
    models = (*record.distilled, *record.baselines)
    has_scores = any(score is not None for score in [dense.user_score, *(r.user_score for r in models)])
    header = [
        "dropped layers",
        *SIZE_HEADER,
        "test PPL",
        "test PPL ratio",
        "KL",
        "top-1 agreement",
        "latency ratio",
        "PPL ratio without recovery",
    ]
    rows = [
        [
            "none (dense)",
            *list_size(dense.size),
            *list_quality(dense.test, is_dense=True),
            format_latency_ratio(dense.latency),
            ABSENT,
        ]
    ]
    rows += [
        [
            name_model(r),
            *list_size(r.size),
            *list_quality(r.test),
            format_latency_ratio(r.latency),
            format_number(r.test_unrecovered.ppl_ratio),
        ]
        for r in models
    ]
    if has_scores:
        header.append("your score")
        for row, score in zip(rows, [dense.user_score, *(r.user_score for r in models)], strict=True):
            row.append(ABSENT if score is None else f"{score:.6g}")
    caption = (
        "All on test text, which was read once. ±: one standard error. KL: from the dense model's predictions, nats "
        "per token. Top-1 agreement: how often the most likely next token is the dense model's. Brackets: 95 % "
        "interval."
        + (" A row with widths: all layers kept, each cut evenly to the same size." if record.baselines else "")
    )
    ids = [None, *map(read_result_id, models)]
    table = render_table(caption, header, rows, first_is_dense=True, ids=ids)
    return render_section("distilled", "Distilled models", table)


def render_replication(record: StudyRecord) -> str:
    """Return what several distillations of each model say together, and which models of a depth are the same."""
    rows = list_replications(record)
    if not rows:
        return ""
    caption = (
        "Each model distilled under several random seeds, all judged on test text. Interval: Student's t, as documents and "
        "distillations vary. The first distillation is the one that is exported, whatever the others reached."
    )
    names = {result.key: name_model(result) for result in (*record.distilled, *record.baselines)}
    items = "\n".join(f"<li>{escape(say_equivalence(found, names))}</li>" for found in record.equivalences)
    note = (
        f"Equivalent: two one-sided tests at 5 % put the difference within {MARGIN_PERCENT} of perplexity; better or worse: the "
        "95 % interval excludes zero; else these distillations cannot tell."
    )
    beside = f'<ul class="answers">\n{items}\n</ul>\n<p class="note">{escape(note)}</p>' if items else ""
    return render_section("replication", "Distilled more than once", render_table(caption, HEADER, rows) + beside)


def list_size(size: Size) -> list[str]:
    """Return the cells on size."""
    return [format_count(size.num_params), format_bytes(size.weight_bytes), format_bytes(size.kv_bytes_per_token)]


def list_quality(quality: Quality, *, is_dense: bool = False) -> list[str]:
    """Return the cells on test text: perplexity, its ratio, KL divergence, top-1 agreement."""
    return [
        format_number(quality.perplexity, places=2),
        "1" if is_dense else format_ppl_ratio(quality),
        ABSENT if quality.kl_divergence is None or is_dense else format_number(quality.kl_divergence, places=4),
        ABSENT if quality.top1_agreement is None or is_dense else f"{100 * quality.top1_agreement:.1f}\u00a0%",
    ]


def render_frontier(record: StudyRecord) -> str:
    """Return the table of the frontier and its runners-up, as the proxy sees them."""
    members = record.frontier.members
    if not members:
        return ""
    header = [
        "dropped layers",
        "place in its depth",
        "parameters",
        "validation PPL ratio",
        "latency ratio",
        "P(best)",
        "tied with",
    ]
    rows = []
    for member in members:
        evaluation = member.evaluation
        quality = evaluation.qualities.get(record.frontier.rung)
        rows.append(
            [
                list_layers(evaluation.candidate.dropped_layers),
                str(member.rank + 1),
                format_count(evaluation.size.num_params),
                format_ppl_ratio(quality) if quality else ABSENT,
                format_latency_ratio(evaluation.latency),
                f"{100 * member.probability_best:.0f}\u00a0%",
                count_things(len(member.tied_with), "other") if member.tied_with else "none",
            ]
        )
    caption = (
        f"PPL ratios after {name_rung(record.frontier.rung)}, on validation text. P(best): how often a resampling of "
        "the documents puts this candidate first among those of its structure. Tied: the 95 % interval of "
        "the paired difference holds zero."
    )
    ids = [read_id(member.evaluation.candidate) for member in members]
    return render_section("frontier", "The frontier by the proxy", render_table(caption, header, rows, ids=ids))
