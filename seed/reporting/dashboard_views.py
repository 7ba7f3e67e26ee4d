"""A study in Optuna Dashboard: its note in Markdown, and the report's figures as Plotly JSON.

Every string that a user or a model brought is escaped, for Markdown and for the HTML that Markdown may hold.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from seed.plans import SearchPlan
from seed.reporting.figures import FIGURES
from seed.reporting.result_text import (
    describe_best,
    describe_disturbance,
    describe_recommendation,
    introduce_best,
    tabulate_frontier,
)
from seed.reporting.wording import escape_text, name_rung, quote_block, quote_code
from seed.results import StudyResult

MOST_TRIALS = 1000  # in one figure: 80 bytes each; the dashboard's own plots show every one
HEIGHT_PX = 440  # what a card shows without cutting it off


def write_study_note(result: StudyResult, *, root: Path) -> str:
    """Return the note of a searched study: its answer, what is shown, and where things are. ``root``: the study's folder."""
    record = result.record
    numbers = {trial.evaluation.candidate.key: trial.number for trial in record.trials if trial.state == "COMPLETE"}
    numbers |= {member.evaluation.candidate.key: member.trial_number for member in record.frontier.members}
    answers = [f"- {escape_text(describe_best(one, result))}{_link_trial(numbers.get(one.key))}" for one in result.best]
    picks = [f"- {escape_text(describe_recommendation(found, result))}" for found in result.recommended if answers]
    return _join(
        _write_title(record.plan),
        ["**The search goes on**; this is what is known so far."] if record.is_running else [],
        [f"**The answer.** {escape_text(introduce_best(result))}", "", *answers],
        ["**Which one to ship?**", "", *picks] if picks else [],
        [escape_text(disturbed)] if (disturbed := describe_disturbance(result)) else [],
        _write_frontier(result),
        explain_trials(proxy=record.frontier.proxy, workload=record.dense.latency.workload),
        _write_places(record.plan, root=root, has_models=bool(record.distilled)),
    )


def write_opening_note(plan: SearchPlan, *, proxy: str, root: Path) -> str:
    """Return the note of a study whose search has begun and has no answer yet."""
    return _join(
        _write_title(plan),
        ["**The search is running.** Its answer and its figures will stand here; trials show up as they are scored."],
        explain_trials(proxy=proxy, workload=None),
        _write_places(plan, root=root, has_models=False),
    )


def explain_trials(*, proxy: str, workload: str | None) -> list[str]:
    """Return how to read the objectives and attributes of trials, as lines of Markdown."""
    spelled = proxy.replace("_", " ")  # as the objective's name has it
    measured = f" ({escape_text(workload)})" if workload else ""
    return [
        "**What is shown.** Each trial is a set of layers that are kept. Of both objectives, less is better:",
        "",
        f"- {quote_code(f'PPL ratio ({spelled})')}: perplexity on validation text after "
        f"{escape_text(name_rung(proxy))}, divided by the dense model's. Test text is in no trial.",
        f"- `latency ratio`: median time{measured}, divided by the dense model's.",
        "",
        "A trial's attributes: `kept` and `dropped` name layers by their index in the original model, from 0; "
        "`num_params` counts what is left; `skipped` or `failed` says why a PRUNED trial has no value. `keep_00`, `keep_01` and so on "
        "are 1 where the layer is kept, so that the importance of such a parameter is the importance of a layer. The cards of "
        "exported models are the study's artifacts. Below the dashboard's own plots stand those of the report, which says how to "
        "read them.",
    ]


def draw_board(result: StudyResult) -> dict[str, str]:
    """Return the figures that have something to show as Plotly JSON, by an id that stays the same from search to search.

    Small, since the dashboard asks for all of it every few seconds: of many candidates it has some, evenly spaced.
    """
    step = math.ceil(len(result.scored) / MOST_TRIALS) or 1
    few = dataclasses.replace(result, scored=result.scored[::step])
    drawn = {name: draw(few) for name, draw in FIGURES.items()}
    return {f"seed-{name}": write_figure(figure) for name, figure in drawn.items() if figure.data}


def write_figure(figure: go.Figure) -> str:
    """Return a figure as Plotly JSON, fitted to a card of half the dashboard's width: no caption, which would not fit."""
    top = 64 if figure.layout.annotations else 48
    fitted = go.Figure(figure).update_layout(
        title={"text": f"<b>{figure.layout.title.text}</b>", "subtitle": {"text": ""}, "automargin": False, "y": 0.97},
        margin={"t": top},
        height=HEIGHT_PX,
    )
    return str(fitted.to_json())


def _write_frontier(result: StudyResult) -> list[str]:
    """A table of Markdown, each trial with a link to its own page."""
    if not result.frontier:
        return []
    table = tabulate_frontier(result)
    links = [_link_trial(member.trial_number).strip() for member in result.record.frontier.members]
    rows = [["trial", *table.columns], ["---"] * (len(table.columns) + 1)]
    rows += [[link, *row] for link, row in zip(links, table.rows, strict=True)]
    title = f"**The frontier by the proxy** ({escape_text(name_rung(result.record.frontier.proxy))}):"
    return [title, "", *(f"| {' | '.join(row)} |" for row in rows)]


def _write_title(plan: SearchPlan) -> list[str]:
    model = plan.identity.get("model", plan.name)
    return [f"# Seed: which layers can {quote_code(str(model))} live without?"]


def _write_places(plan: SearchPlan, *, root: Path, has_models: bool) -> list[str]:
    places = ["`report.html`, which shows all this and more"]
    if has_models:
        places.append("the exported models in `models/`, each an ordinary checkpoint")
    return [
        f"**Where things are.** In the study's folder {quote_code(str(root))}: {' and '.join(places)}. To repeat the study:",
        "",
        *quote_block(plan.command),
    ]


def _link_trial(number: int | None) -> str:
    # relative to /dashboard/studies/ID/note, where the note is shown
    return "" if number is None else f" [trial {number}](trials?numbers={number})"


def _join(*parts: Sequence[str]) -> str:
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"
