"""A study in Optuna Dashboard: its note in Markdown, and the report's figures as Plotly JSON.

Every string that a user or a model brought is escaped, for Markdown and for the HTML that Markdown may hold.
"""

import dataclasses
import math
from pathlib import Path

import plotly.graph_objects as go

from seed.plans import SearchPlan
from seed.reporting.card import render_markdown
from seed.reporting.figures import FIGURES
from seed.results import StudyResult

MOST_TRIALS = 1000  # in one figure: 80 bytes each; the dashboard's own plots show every one
HEIGHT_PX = 440  # what a card shows without cutting it off


def write_study_note(result: StudyResult, *, root: Path) -> str:
    """Return the note of a searched study: its answer, what is shown, and where things are. ``root``: the study's folder."""
    record = result.record
    numbers = {trial.evaluation.candidate.key: trial.number for trial in record.trials if trial.state == "COMPLETE"}
    numbers |= {member.evaluation.candidate.key: member.trial_number for member in record.frontier.members}
    return render_markdown(
        "note.md",
        result=result,
        plan=record.plan,
        proxy=record.frontier.proxy,
        root=root,
        numbers=numbers,
    )


def write_opening_note(plan: SearchPlan, *, proxy: str, root: Path) -> str:
    """Return the note of a study whose search has begun and has no answer yet."""
    return render_markdown("note.md", result=None, plan=plan, proxy=proxy, root=root)


def draw_dashboard(result: StudyResult) -> dict[str, str]:
    """Return the figures that have something to show as Plotly JSON, by an id that stays the same from search to search.

    Small, since the dashboard asks for all of it every few seconds: of many candidates it has some, evenly spaced.
    """
    step = math.ceil(len(result.scored) / MOST_TRIALS) or 1
    few = dataclasses.replace(result, scored=result.scored[::step])
    drawn = {name: draw(few) for name, draw in FIGURES.items()}
    return {f"seed-{name}": write_figure(figure) for name, figure in drawn.items() if figure.data}


def write_figure(figure: go.Figure) -> str:
    """Return a figure as Plotly JSON, fitted to a card of half the dashboard's width."""
    title = {"text": f"<b>{figure.layout.title.text}</b>", "automargin": False, "y": 0.97}
    margin = {"t": 64 if figure.layout.annotations else 48}
    return str(go.Figure(figure).update_layout(title=title, margin=margin, height=HEIGHT_PX).to_json())
