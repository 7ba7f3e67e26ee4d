"""The result of a search in the terminal."""

import shlex
from collections.abc import Mapping

from seed.console import Terminal
from seed.findings import Replication, StudyRecord
from seed.folder import StudyFolder
from seed.records import DenseResult, DistillResult
from seed.reporting.answers import recommend, say_disturbance, say_recommendation, say_unhelped
from seed.reporting.gain import say_rival, say_solver
from seed.reporting.replication import name_model, say_equivalence, say_ratio
from seed.reporting.wording import (
    format_bytes,
    format_count,
    format_latency_ratio,
)

WIDE = 128  # characters that the whole table needs


def show_result(terminal: Terminal, record: StudyRecord, *, study: StudyFolder, storage: str) -> None:
    """Print the dense model, the table of the distilled frontier, and where everything lies."""
    dense = record.dense
    terminal.say()
    terminal.say(
        f"dense model: test PPL {dense.test.perplexity:.3f} on {dense.test.tokens:,} tokens; "
        f"{dense.latency.median_ms:.1f} ms to {dense.latency.workload}; {dense.size.num_params:,} parameters"
    )
    if record.distilled:
        terminal.say("Distilled frontier; ratios are to the dense model, on test text:")
        columns, rows = distilled_table((*record.distilled, *record.baselines), dense, record.replications)
        if terminal.width >= WIDE:
            terminal.show_table(columns, rows)
        else:  # what it costs, then what it is worth
            for chosen in ((0, 1, 2, 3, 4), (0, *range(5, len(columns)))):
                terminal.show_table([columns[i] for i in chosen], [[row[i] for i in chosen] for row in rows])
        for index, result in enumerate(record.distilled):
            terminal.say(("models:    " if index == 0 else "           ") + str(study.model(result.key)), wrap=False)
        if (unhelped := say_unhelped(record.distilled)) is not None:
            terminal.say(unhelped)
    else:
        rung = record.frontier.rung
        rows = [
            [
                ", ".join(member.evaluation.candidate.dropped_parts),
                f"{member.evaluation.size.num_params:,}",
                f"{member.evaluation.qualities[rung].ppl_ratio:.4f} ± {member.evaluation.qualities[rung].ppl_ratio_standard_error:.4f}",
                format_latency_ratio(member.evaluation.latency),
                f"{member.probability_best:.2f}",
                str(len(member.tied_with)),
            ]
            for member in record.frontier.members
        ]
        columns = ["dropped layers", "parameters", "PPL ratio", "latency ratio", "P(best of its depth)", "tied with"]
        terminal.show_table(
            columns, rows, title=f"Frontier by the proxy ({rung.replace('_', ' ')}, validation text), not distilled"
        )
    for advice in recommend(record):
        terminal.say(say_recommendation(advice, record))
    if disturbed := say_disturbance(record):
        terminal.say(disturbed)
    names = {result.key: name_model(result) for result in record.distilled}
    for found in record.equivalences:
        terminal.say(f"  {say_equivalence(found, names)}")
    if record.gain:
        terminal.say(f"what the search added: {say_solver(record.gain, record.frontier)}")
        for rival in record.gain.rivals:
            terminal.say(f"  {say_rival(rival, record.gain)}")
    terminal.say(f"report:    {study.report}", wrap=False)
    typed = "" if record.plan.storage is None else f" --storage {shlex.quote(storage)}"
    terminal.say(f"dashboard: python -m seed.dashboard {shlex.quote(str(study.root))}{typed}", wrap=False)
    terminal.say(
        f"           optuna-dashboard {shlex.quote(storage)} --artifact-dir {shlex.quote(str(study.artifacts))}",
        wrap=False,
    )
    terminal.say(f"proxy:     {record.agreement.verdict}")


def distilled_table(
    results: tuple[DistillResult, ...], dense: DenseResult, replications: Mapping[str, Replication]
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the distilled models; the user's own score comes last where there is one."""
    columns = ["dropped layers", "parameters", "weights", "KV/token", "latency ratio"]
    columns += ["PPL ratio", "unrecovered", "KL", "top-1"]
    rows = [
        [
            name_model(result),
            f"{format_count(result.size.num_params)} ({result.size.num_params / dense.size.num_params - 1:+.1%})",
            format_bytes(result.size.weight_bytes),
            format_bytes(result.size.kv_bytes_per_token),
            format_latency_ratio(result.latency),
            say_ratio(result, replications.get(result.key), places=4),
            f"{result.test_unrecovered.ppl_ratio:.4f}",
            f"{result.test.kl_divergence:.4f}",
            f"{result.test.top1_agreement:.1%}",
        ]
        for result in results
    ]
    if any(result.user_score is not None for result in results):
        columns.append("yours" if dense.user_score is None else f"yours (dense {dense.user_score:g})")
        for row, result in zip(rows, results, strict=True):
            row.append("" if result.user_score is None else f"{result.user_score:g}")
    return columns, rows
