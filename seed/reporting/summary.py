"""The result of a search in the terminal."""

import shlex

from seed.console import Terminal
from seed.evidence import StudyRecord
from seed.reporting.sentences import (
    name_model,
    say_baseline,
    say_disturbance,
    say_equivalence,
    say_recommendation,
    say_solver,
    say_unhelped,
)
from seed.reporting.tables import list_frontier, list_models
from seed.results import compute_result
from seed.study_dir import StudyFolder

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
        proxy = record.frontier.proxy.replace("_", " ")
        terminal.show_table(
            *list_frontier(result), title=f"Frontier by the proxy ({proxy}, validation text), not distilled"
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
        sentences += [f"  {say_baseline(baseline, record.gain)}" for baseline in record.gain.baselines]
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
