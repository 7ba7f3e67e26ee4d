"""Tables of models as rows of plain text, for terminal, page and note: those that were distilled, and the frontier by the proxy."""

from seed.records import DenseResult, Quality, Size
from seed.reporting.sentences import name_model, say_ratio
from seed.reporting.wording import (
    ABSENT,
    format_bytes,
    format_count,
    format_latency_ratio,
    format_number,
    format_ppl_ratio,
    list_layers,
)
from seed.results import Model, StudyResult


def list_models(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the judged models; the user's own score comes last where there is one."""
    models, dense = (*result.distilled, *result.baselines), result.record.dense
    columns = ["dropped layers", "parameters", "weights", "KV/token", "latency ratio"]
    columns += ["PPL ratio", "unrecovered", "KL", "top-1"]
    rows = [list_model(model, dense) for model in models]
    if any(model.spread is not None for model in models):
        columns.insert(6, "deviation")
        for row, model in zip(rows, models, strict=True):
            row.insert(6, ABSENT if model.spread is None else format_number(model.spread, places=4))
    if any(model.user_score is not None for model in models):
        columns.append("yours" if dense.user_score is None else f"yours (dense {dense.user_score:g})")
        for row, model in zip(rows, models, strict=True):
            row.append("" if model.user_score is None else f"{model.user_score:g}")
    return columns, rows


def list_model(model: Model, dense: DenseResult) -> list[str]:
    """Return the cells of a judged model."""
    parameters, *memory = list_size(model.size)
    _, _, *nearness = list_quality(model.quality)
    return [
        name_model(model),
        f"{parameters} ({model.size.num_params / dense.size.num_params - 1:+.1%})",
        *memory,
        format_latency_ratio(model.latency),
        say_ratio(model, places=4),
        ABSENT if model.unrecovered is None else format_number(model.unrecovered, places=4),
        *nearness,
    ]


def list_size(size: Size) -> list[str]:
    """Return the cells on size."""
    return [format_count(size.num_params), format_bytes(size.weight_bytes), format_bytes(size.kv_bytes_per_token)]


def list_quality(quality: Quality, *, is_dense: bool = False) -> list[str]:
    """Return the cells on test text: perplexity, its ratio, KL divergence, top-1 agreement."""
    return [
        format_number(quality.perplexity, places=2),
        "1" if is_dense else format_ppl_ratio(quality),
        ABSENT if quality.kl_divergence is None or is_dense else format_number(quality.kl_divergence, places=4),
        ABSENT if quality.top1_agreement is None or is_dense else f"{100 * quality.top1_agreement:.1f}%",
    ]


def list_frontier(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the frontier and its runners-up, as the proxy sees them."""
    columns = [
        "dropped layers",
        "place",
        "parameters",
        "PPL ratio",
        "latency ratio",
        "P(best of its depth)",
        "tied with",
    ]
    rows = [
        [
            list_layers(model.candidate.dropped_layers),
            str(member.rank + 1),
            format_count(model.size.num_params),
            format_ppl_ratio(model.quality),
            format_latency_ratio(model.latency),
            f"{member.probability_best:.2f}",
            str(len(member.tied_with)),
        ]
        for model, member in zip(result.frontier, result.record.frontier.members, strict=True)
    ]
    return columns, rows
