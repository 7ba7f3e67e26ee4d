"""All trials as a table that sorts, filters and downloads in the browser, and the data that links it with the figures.

The page's script (``page.js``) draws the rows, so that thousands of them open at once; here is what it reads.
"""

import json
import math
from collections.abc import Mapping, Sequence

from seed.evidence import StudyRecord
from seed.records import Evaluation, TrialRecord
from seed.reporting.document import escape, render_section
from seed.reporting.wording import list_layers, name_drop, name_rung
from seed.results import link_candidate

Facts = Mapping[str, tuple[str, Sequence[tuple[str, str]]]]  # by id: a model's name, and what is known of it

# number, state, id, PPL ratio, its standard error, PPL ratio without recovery, structure, seconds, dropped layers, note
FIELDS = ("number", "state", "id", "ratio", "error", "unrecovered", "structure", "seconds", "dropped", "note")


def list_columns(record: StudyRecord) -> list[dict[str, object]]:
    """Return the table's columns: what a row calls it, its title, its decimals, whether a chosen model's panel has it."""
    proxy = name_rung(record.frontier.proxy)
    columns: list[dict[str, object]] = [
        {"key": "dropped", "title": "dropped layers", "isText": True},
        {"key": "count", "title": "how many"},
        {"key": "ratio", "title": f"PPL ratio ({proxy})", "places": 4, "inPanel": True},
        {"key": "error", "title": "standard error", "places": 4, "inPanel": True},
        {"key": "unrecovered", "title": "PPL ratio unrecovered", "places": 4, "inPanel": True},
        {"key": "latency", "title": "latency ratio", "places": 3, "inPanel": True},
        {"key": "low", "title": "latency from", "places": 3},
        {"key": "high", "title": "latency to", "places": 3},
        {"key": "params", "title": "parameters", "places": 0, "inPanel": True},
        {"key": "seconds", "title": "seconds", "places": 2},
        {"key": "state", "title": "state", "isText": True},
        {"key": "number", "title": "trial", "inPanel": True},
    ]
    if record.distilled:
        columns.insert(4, {"key": "distilled", "title": "distilled (test)", "places": 4})
    if any(_explain(trial.evaluation, record.frontier.proxy) for trial in record.trials):
        columns.append({"key": "note", "title": "no value because", "isText": True, "inPanel": True})
    return columns


def render_trials(record: StudyRecord) -> str:
    """Return the section with the table's frame and controls; its rows come from ``render_data``."""
    if not record.trials:
        return ""
    depths = sorted({len(trial.evaluation.candidate.dropped_layers) for trial in record.trials})
    states = sorted({trial.state.lower() for trial in record.trials})
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button" data-sort="{column["key"]}">{escape(column["title"])}</button></th>'
        for column in list_columns(record)
    )
    body = (
        "<p>PPL ratios are on validation text unless said otherwise. Click a heading to sort; filter by layers that must be "
        "gone, such as 1 7.</p>\n"
        "<noscript><p>The table of trials needs JavaScript.</p></noscript>\n"
        '<div class="tools">\n'
        '<label>dropped layers <input type="search" id="trials-find" placeholder="all" inputmode="numeric" size="10"></label>\n'
        f"{_render_choice('depth', 'depth', [(str(depth), name_drop(depth)) for depth in depths])}\n"
        f"{_render_choice('state', 'state', [(state, state) for state in states])}\n"
        '<button type="button" id="trials-download">Download CSV</button>\n</div>\n'
        '<div class="scroll" tabindex="0" role="region" aria-label="all trials">\n'
        f'<table id="trials-table">\n<thead><tr>{head}</tr></thead>\n<tbody id="trials-body"></tbody>\n</table>\n</div>\n'
        '<div class="tools"><button type="button" id="trials-before">previous</button>'
        '<button type="button" id="trials-after">next</button>'
        '<output id="trials-count" aria-live="polite"></output></div>'
    )
    return render_section("trials", "All trials", body)


def render_data(record: StudyRecord, facts: Facts) -> str:
    """Return the script element that holds every trial and what is known of the models that were judged."""
    structures: dict[str, int] = {}
    table = [_take_row(trial, record.frontier.proxy, structures) for trial in record.trials]
    measured = {trial.evaluation.latency.structure: trial.evaluation for trial in record.trials}
    distilled = {link_candidate(result.candidate): _round(result.test.ppl_ratio) for result in record.distilled}
    data = {
        "file": f"{record.plan.name}-trials.csv",
        "columns": list_columns(record),
        "fields": FIELDS,
        "structures": [_take_structure(measured[name]) for name in structures],
        "table": table,
        "distilled": distilled,
        "models": {key: {"name": name, "facts": list(known)} for key, (name, known) in facts.items()},
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":  # inside a script element nothing else could end it
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="trials-data">{text}</script>'


def _take_row(trial: TrialRecord, proxy: str, structures: dict[str, int]) -> list[object]:
    evaluation = trial.evaluation
    quality, raw = evaluation.qualities.get(proxy), evaluation.qualities.get("none")
    return [
        trial.number,
        trial.state.lower(),
        link_candidate(evaluation.candidate),
        _round(quality.ppl_ratio) if quality else None,
        _round(quality.ppl_ratio_standard_error) if quality else None,
        _round(raw.ppl_ratio) if raw else None,
        structures.setdefault(evaluation.latency.structure, len(structures)),
        round(evaluation.seconds, 2),
        list_layers(evaluation.candidate.dropped_layers),
        _explain(evaluation, proxy),
    ]


def _explain(evaluation: Evaluation, proxy: str) -> str | None:
    return evaluation.skipped_because or evaluation.explain_failure(proxy)


def _round(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None  # JSON knows no other numbers


def _take_structure(evaluation: Evaluation) -> dict[str, object]:
    latency = evaluation.latency
    return {
        "count": len(evaluation.candidate.dropped_layers),
        "latency": round(latency.ratio, 4),
        "low": None if latency.ratio_low is None else round(latency.ratio_low, 4),
        "high": None if latency.ratio_high is None else round(latency.ratio_high, 4),
        "params": evaluation.size.num_params,
    }


def _render_choice(key: str, label: str, options: Sequence[tuple[str, str]]) -> str:
    listed = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
    return f'<label>{label} <select id="trials-{key}"><option value="">all</option>{listed}</select></label>'
