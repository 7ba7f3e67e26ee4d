"""The report: one HTML file that answers first, then shows how the answer came about; and its figures and a note in Optuna Dashboard.

The page's script (``page.js``) draws the table of all trials, so that thousands of them open at once, and links it with figures.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import plotly.graph_objects as go

from seed import study_dir
from seed.evidence import StudyRecord
from seed.plans import SearchPlan
from seed.records import DistillResult, Evaluation, TrialRecord
from seed.reporting.card import render_markdown
from seed.reporting.document import prepare_figures, render
from seed.reporting.figures import FIGURES, draw_gallery
from seed.reporting.result_text import format_ratio, name_model
from seed.reporting.wording import (
    ABSENT,
    describe_gguf,
    format_latency_ratio,
    format_number,
    list_layers,
    name_depth,
    name_proxy,
)
from seed.results import StudyResult, link_candidate

MOST_TRIALS = 1000  # in one figure of the dashboard: 80 bytes each; its own plots show every one
HEIGHT_PX = 440  # what a card of the dashboard shows without cutting it off
FIELDS = ("number", "state", "id", "ratio", "error", "unrecovered", "structure", "seconds", "dropped", "note")


def write_page(result: StudyResult, path: Path) -> None:
    """Write the report of a study as one self-contained HTML file; sections for which it has nothing are left out.

    Raises:
        ResourceError: the file cannot be written.
    """
    study_dir.write_bytes(path, render_page(result).encode())


def render_page(result: StudyResult) -> str:
    """Return the report as HTML. The same result gives the same bytes."""
    record = result.record
    protocol = msgspec.to_builtins(record.plan.protocol)
    if types := protocol.pop("gguf_types", None):
        protocol["gguf"] = describe_gguf(types)
    groups = itertools.groupby(result.recommended, key=lambda one: (one.chosen, one.slower))
    states = Counter(trial.state for trial in record.trials)
    return render(
        "report.html",
        result=result,
        record=record,
        cards=[list(group) for _, group in groups],
        figures=dict.fromkeys(FIGURES) | prepare_figures(draw_gallery(result)),
        depths=sorted({len(trial.evaluation.candidate.dropped_layers) for trial in record.trials}),
        states=sorted(state.lower() for state in states),
        trials=", ".join(f"{count:,} {state}" for state, count in sorted(states.items())) or "none",
        distillation=gather_settings(record.distilled),
        protocol=protocol,
        environment=msgspec.to_builtins(record.environment),
        data=gather_data(result),
    )


# ---- how it was measured


def gather_settings(results: Sequence[DistillResult]) -> dict[str, object]:
    """Return the settings that all distillations share, then what is each model's own."""
    every = [result.settings for result in results]
    shared = {
        key: value for one in every[:1] for key, value in one.items() if all(other.get(key) == value for other in every)
    }
    own = {
        f"without {list_layers(r.candidate.dropped_layers)}": ", ".join(
            [f"{key.replace('_', ' ')} {value}" for key, value in r.settings.items() if key not in shared]
            + [f"started from {name_proxy(r.start)}", f"kept step {r.best_step:,}", f"took {r.seconds:,.0f} s"]
        )
        for r in results
    }
    return {**shared, **own}


# ---- all trials


def gather_data(result: StudyResult) -> dict[str, object]:
    """Return what the page's script reads: every trial, and what is known of the models that were judged, by id."""
    record = result.record
    structures: dict[str, int] = {}
    table = [list_trial(trial, record.frontier.proxy, structures) for trial in record.trials]
    measured = {trial.evaluation.latency.structure: trial.evaluation for trial in record.trials}
    return {
        "file": f"{record.plan.name}-trials.csv",
        "columns": list(list_columns(record)),
        "fields": FIELDS,
        "structures": [describe_structure(measured[name]) for name in structures],
        "table": table,
        "distilled": {link_candidate(one.candidate): _round(one.test.ppl_ratio) for one in record.distilled},
        "models": list_facts(result),
    }


def list_columns(record: StudyRecord) -> Iterable[dict[str, object]]:
    """Yield the table's columns: what a row calls it, its title, its decimals, whether a chosen model's panel has it."""
    yield {"key": "dropped", "title": "dropped layers", "isText": True}
    yield {"key": "count", "title": "how many"}
    yield {"key": "ratio", "title": f"PPL ratio ({name_proxy(record.frontier.proxy)})", "places": 4, "inPanel": True}
    yield {"key": "error", "title": "standard error", "places": 4, "inPanel": True}
    if record.distilled:
        yield {"key": "distilled", "title": "distilled (test)", "places": 4}
    yield {"key": "unrecovered", "title": "PPL ratio unrecovered", "places": 4, "inPanel": True}
    yield {"key": "latency", "title": "latency ratio", "places": 3, "inPanel": True}
    yield {"key": "low", "title": "latency from", "places": 3}
    yield {"key": "high", "title": "latency to", "places": 3}
    yield {"key": "params", "title": "parameters", "places": 0, "inPanel": True}
    yield {"key": "seconds", "title": "seconds", "places": 2}
    yield {"key": "state", "title": "state", "isText": True}
    yield {"key": "number", "title": "trial", "inPanel": True}
    if any(explain_absence(trial.evaluation, record.frontier.proxy) for trial in record.trials):
        yield {"key": "note", "title": "no value because", "isText": True, "inPanel": True}


def list_trial(trial: TrialRecord, proxy: str, structures: dict[str, int]) -> list[object]:
    """Return a trial's cells, as FIELDS names them; its structure by its number, of which a new one gets the next."""
    evaluation = trial.evaluation
    quality, raw = evaluation.qualities.get(proxy), evaluation.qualities.get("none")
    return [
        trial.number,
        trial.state.lower(),
        link_candidate(evaluation.candidate),
        _round(quality.ppl_ratio if quality else None),
        _round(quality.ppl_ratio_standard_error if quality else None),
        _round(raw.ppl_ratio if raw else None),
        structures.setdefault(evaluation.latency.structure, len(structures)),
        round(evaluation.seconds, 2),
        list_layers(evaluation.candidate.dropped_layers),
        explain_absence(evaluation, proxy),
    ]


def explain_absence(evaluation: Evaluation, proxy: str) -> str | None:
    """Return why a candidate has no value; None: it has one."""
    return evaluation.skipped_because or evaluation.explain_failure(proxy)


def describe_structure(evaluation: Evaluation) -> dict[str, object]:
    """Return what all candidates of a structure have in common."""
    latency = evaluation.latency
    return {
        "count": len(evaluation.candidate.dropped_layers),
        "latency": _round(latency.ratio),
        "low": _round(latency.ratio_low),
        "high": _round(latency.ratio_high),
        "params": evaluation.size.num_params,
    }


def _round(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)  # JSON knows no other numbers


def list_facts(result: StudyResult) -> dict[str, object]:
    """Return the name of each judged model and what the panel says of it when it is chosen, by id."""
    return {
        model.link: {
            "name": f"{name_depth(model.candidate)}, without {name_model(model)}"
            if model.width is None
            else name_model(model),
            "facts": [
                ("test PPL ratio", format_ratio(model)),
                ("test PPL", format_number(model.quality.perplexity, places=2)),
                ("without recovery", ABSENT if model.unrecovered is None else format_number(model.unrecovered)),
                ("latency ratio", format_latency_ratio(model.latency)),
                ("checkpoint", f"models/{model.key}"),
            ],
        }
        for model in (*result.distilled, *result.width_baselines)
    }


# ---- in Optuna Dashboard


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
