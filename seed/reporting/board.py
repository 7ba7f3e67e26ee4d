"""The report's figures as Optuna Dashboard takes them: Plotly JSON by id. Small, since the dashboard asks for all of it every few seconds.

Nothing is stored here.
"""

import math

import msgspec
import plotly.graph_objects as go

from seed.findings import StudyRecord
from seed.reporting.gallery import FIGURES

MOST_TRIALS = 1000  # in one figure: 80 bytes each; the dashboard's own plots show every one
HEIGHT_PX = 440  # what a card shows without cutting it off
THINNED = ("pareto", "latency")  # figures that show every trial
PREFIX = "seed-"


def draw_board(record: StudyRecord) -> dict[str, str]:
    """Return the figures that have something to show as Plotly JSON, by an id that stays the same from search to search."""
    few = thin_trials(record)
    drawn = {name: draw(few if name in THINNED else record) for name, draw in FIGURES.items()}
    return {f"{PREFIX}{name}": spell_figure(figure) for name, figure in drawn.items() if figure.data}


def thin_trials(record: StudyRecord, *, most: int = MOST_TRIALS) -> StudyRecord:
    """Return the record with some ``most`` of its trials, evenly spaced by number; those of the frontier and distilled ones stay."""
    if len(record.trials) <= most:
        return record
    named = {member.trial_number for member in record.frontier.members}
    named |= {result.trial_number for result in record.distilled if result.trial_number is not None}
    step = math.ceil(len(record.trials) / most)
    kept = tuple(trial for index, trial in enumerate(record.trials) if index % step == 0 or trial.number in named)
    return msgspec.structs.replace(record, trials=kept)


def spell_figure(figure: go.Figure) -> str:
    """Return a figure as Plotly JSON, fitted to a card of half the dashboard's width: no caption, which would not fit."""
    top = 64 if figure.layout.annotations else 48
    fitted = go.Figure(figure).update_layout(
        title={"text": f"<b>{figure.layout.title.text}</b>", "subtitle": {"text": ""}, "automargin": False, "y": 0.97},
        margin={"t": top},
        height=HEIGHT_PX,
    )
    return str(fitted.to_json())
