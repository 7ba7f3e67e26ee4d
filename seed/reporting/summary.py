"""Results in the terminal: of a search, of a fidelity study, of a comparison of strategies."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from seed.console import Terminal
from seed.evidence import Comparison, ComparisonSummary, FidelityStudy, FidelitySummary
from seed.findings import StudyRecord
from seed.folder import StudyFolder
from seed.reporting.comparison import format_cost, format_percent, list_depths, list_picks, say_answer
from seed.reporting.fidelity import CEILING_NAME, say_verdict
from seed.reporting.sentences import (
    name_model,
    say_disturbance,
    say_equivalence,
    say_recommendation,
    say_rival,
    say_solver,
    say_unhelped,
)
from seed.reporting.tables import list_frontier, list_models
from seed.reporting.wording import ABSENT, count_things, format_estimate, format_interval, name_rung
from seed.results import compute_result

WIDE = 128  # characters that the whole table needs


def show_result(terminal: Terminal, record: StudyRecord, *, study: StudyFolder, storage: str) -> None:
    """Print the dense model, the table of the distilled frontier, and where everything lies."""
    result, dense = compute_result(record), record.dense
    terminal.say()
    terminal.say(
        f"dense model: test PPL {dense.test.perplexity:.3f} on {dense.test.tokens:,} tokens; "
        f"{dense.latency.median_ms:.1f} ms to {dense.latency.workload}; {dense.size.num_params:,} parameters"
    )
    if result.distilled:
        terminal.say("Distilled frontier; ratios are to the dense model, on test text:")
        columns, rows = list_models(result)
        if terminal.width >= WIDE:
            terminal.show_table(columns, rows)
        else:  # what it costs, then what it is worth
            for chosen in ((0, 1, 2, 3, 4), (0, *range(5, len(columns)))):
                terminal.show_table([columns[i] for i in chosen], [[row[i] for i in chosen] for row in rows])
        for index, model in enumerate(result.distilled):
            terminal.say(("models:    " if index == 0 else "           ") + str(study.model(model.key)), wrap=False)
    else:
        rung = record.frontier.rung.replace("_", " ")
        terminal.show_table(
            *list_frontier(result), title=f"Frontier by the proxy ({rung}, validation text), not distilled"
        )
    names = {model.key: name_model(model) for model in result.distilled}
    sentences = [
        say_unhelped(result),
        *(say_recommendation(advice, result) for advice in result.recommended),
        say_disturbance(result),
        *(f"  without {names[found.other]}: {say_equivalence(found, result)}" for found in record.equivalences),
    ]
    if record.gain:
        sentences.append(f"what the search added: {say_solver(record.gain, record.frontier)}")
        sentences += [f"  {say_rival(rival, record.gain)}" for rival in record.gain.rivals]
    for sentence in filter(None, sentences):
        terminal.say(sentence)
    terminal.say(f"report:    {study.report}", wrap=False)
    typed = "" if record.plan.storage is None else f" --storage {shlex.quote(storage)}"
    terminal.say(f"dashboard: python -m seed.dashboard {shlex.quote(str(study.root))}{typed}", wrap=False)
    terminal.say(
        f"           optuna-dashboard {shlex.quote(storage)} --artifact-dir {shlex.quote(str(study.artifacts))}",
        wrap=False,
    )
    terminal.say(f"proxy:     {record.agreement.verdict}")


def show_fidelity(terminal: Terminal, study: FidelityStudy, summary: FidelitySummary, *, page: Path) -> None:
    """Print how well each rung ranks within each depth, and what that means."""
    columns = ["score", "tau with the final", "among the near", "regret of its pick", "recovery", "seconds"]
    for depth in summary.depths:
        rows = [
            [
                CEILING_NAME if rung is depth.ceiling else name_rung(rung.rung),
                format_estimate(rung.tau),
                format_estimate(rung.near_tau),
                ABSENT if rung.top1_regret is None else f"{rung.top1_regret:.2%}",
                ABSENT if rung.recovery is None else f"{rung.recovery:.0%}",
                ABSENT if rung.seconds is None else f"{rung.seconds:.2f}",
            ]
            for rung in (*depth.rungs, depth.ceiling)
        ]
        terminal.show_table(
            columns,
            rows,
            title=f"{count_things(depth.num_dropped, 'layer')} dropped, {count_things(depth.num_candidates, 'candidate')}",
        )
        terminal.say(say_verdict(depth))
    if "doubling_the_budget" in study.settings:
        terminal.say(f"twice the budget: {study.settings['doubling_the_budget']}")
    terminal.say(f"page: {page}", wrap=False)


def show_comparison(
    terminal: Terminal, comparison: Comparison, summary: ComparisonSummary, *, page: Path, titles: Mapping[str, str]
) -> None:
    """Print what each strategy reached at each depth, best first, what it paid, and what that means."""
    columns = ["strategy", "sets chosen", "PPL ratio", f"PPL above {titles[summary.reference]}", "cost"]
    for depth in list_depths(summary):
        rows = [
            [
                titles[row.strategy],
                list_picks(row),
                format_interval(row.ppl_ratio),
                ABSENT if row.strategy == summary.reference else format_percent(row.excess),
                format_cost(row.cost, comparison.budget),
            ]
            for row in summary.rows
            if row.num_dropped == depth
        ]
        terminal.show_table(columns, rows, title=f"{depth} dropped; distilled, on test text")
        terminal.say(say_answer(summary, depth, titles=titles))
    terminal.say(f"page: {page}", wrap=False)
