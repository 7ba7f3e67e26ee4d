"""The result of a search in the terminal: the dense model, the frontier's table, and where everything lies."""

from pathlib import Path

from seed.console import Terminal, format_bytes
from seed.records import DenseResult, DistillResult, Latency, StudyRecord


def show_result(terminal: Terminal, record: StudyRecord, *, report: Path, models: Path, storage: str) -> None:
    """Print the dense model, the table of the distilled frontier, and where everything lies.

    ``models`` is the folder of exported checkpoints, ``storage`` what Optuna Dashboard opens.
    """
    dense = record.dense
    terminal.say()
    terminal.say(
        f"dense model: test PPL {dense.test.perplexity:.3f} on {dense.test.tokens:,} tokens; "
        f"{dense.latency.median_ms:.1f} ms to {dense.latency.workload}; {dense.size.num_params:,} parameters"
    )
    if record.distilled:
        terminal.show_table(
            *distilled_table(record.distilled, dense), title="Distilled frontier (ratios to the dense model, test text)"
        )
        for index, result in enumerate(record.distilled):
            terminal.say(("models:    " if index == 0 else "           ") + str(models / result.candidate.key))
    else:
        rung = record.frontier.rung
        rows = [
            [
                ", ".join(member.evaluation.candidate.dropped_parts),
                f"{member.evaluation.size.num_params:,}",
                f"{member.evaluation.qualities[rung].ppl_ratio:.4f} ± {member.evaluation.qualities[rung].ppl_ratio_standard_error:.4f}",
                show_ratio(member.evaluation.latency),
                f"{member.probability_best:.2f}",
                str(len(member.tied_with)),
            ]
            for member in record.frontier.members
        ]
        columns = ["dropped layers", "parameters", "PPL ratio", "latency ratio", "P(best of its depth)", "tied with"]
        terminal.show_table(
            columns, rows, title=f"Frontier by the proxy ({rung.replace('_', ' ')}, validation text), not distilled"
        )
    terminal.say(f"report:    {report}")
    terminal.say(f"dashboard: optuna-dashboard {storage}")
    terminal.say(f"proxy:     {record.agreement.verdict}")


def distilled_table(results: tuple[DistillResult, ...], dense: DenseResult) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the distilled models."""
    columns = [
        "dropped layers",
        "parameters",
        "weights",
        "KV/token",
        "PPL ratio",
        "unrecovered",
        "KL",
        "top-1",
        "latency ratio",
    ]
    has_score = any(result.user_score is not None for result in results)
    rows = []
    for result in results:
        row = [
            ", ".join(result.candidate.dropped_parts),
            f"{result.size.num_params:,} ({result.size.num_params / dense.size.num_params - 1:+.1%})",
            format_bytes(result.size.weight_bytes),
            format_bytes(result.size.kv_bytes_per_token),
            f"{result.test.ppl_ratio:.4f} ± {result.test.ppl_ratio_standard_error:.4f}",
            f"{result.test_unrecovered.ppl_ratio:.4f}",
            f"{result.test.kl_divergence:.4f}",
            f"{result.test.top1_agreement:.1%}",
            show_ratio(result.latency),
        ]
        rows.append([*row, f"{result.user_score:g}"] if has_score else row)
    return [*columns, f"yours (dense {dense.user_score:g})" if dense.user_score is not None else "yours"][
        : 9 + has_score
    ], rows


def show_ratio(latency: Latency) -> str:
    """``0.845 [0.840, 0.851]``."""
    return f"{latency.ratio:.3f} [{latency.ratio_low:.3f}, {latency.ratio_high:.3f}]"
