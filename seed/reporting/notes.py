"""The note of a study for Optuna Dashboard, in Markdown.

Every string that a user or a model brought is escaped, for Markdown and for the HTML that Markdown may hold. Nothing is
stored here.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from seed.findings import StudyRecord
from seed.plans import SearchPlan
from seed.records import FrontierMember
from seed.reporting.answers import (
    list_contenders,
    recommend,
    say_contender,
    say_disturbance,
    say_introduction,
    say_recommendation,
)
from seed.reporting.wording import (
    format_latency_ratio,
    format_ppl_ratio,
    list_layers,
    name_rung,
)

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
MARKS = re.compile(r"([\\`*_\[\]{}~|#!])")


def write_study_note(record: StudyRecord, *, root: Path) -> str:
    """Return the note of a searched study: its answer, what is shown, and where things are.

    Args:
        record: all that the report shows.
        root: the study's folder.
    """
    numbers = find_trials(record)
    answers = [
        f"- {escape_text(say_contender(one, record))}{_link_trial(numbers.get(one.key))}"
        for one in list_contenders(record)
    ]
    picks = [f"- {escape_text(say_recommendation(found, record))}" for found in recommend(record) if answers]
    return _join(
        _write_title(record.plan),
        ["**The search goes on**; this is what is known so far."] if record.is_running else [],
        [f"**The answer.** {escape_text(say_introduction(record))}", "", *answers],
        ["**Which one to ship?**", "", *picks] if picks else [],
        [escape_text(disturbed)] if (disturbed := say_disturbance(record)) else [],
        list_frontier(record),
        explain_trials(rung=record.frontier.rung, workload=record.dense.latency.workload),
        _write_places(record.plan, root=root, has_models=bool(record.distilled)),
    )


def write_opening_note(plan: SearchPlan, *, rung: str, root: Path) -> str:
    """Return the note of a study whose search has begun and has no answer yet."""
    return _join(
        _write_title(plan),
        ["**The search is running.** Its answer and its figures will stand here; trials show up as they are scored."],
        explain_trials(rung=rung, workload=None),
        _write_places(plan, root=root, has_models=False),
    )


def list_frontier(record: StudyRecord) -> list[str]:
    """Return the frontier's trials as a table of Markdown, each with a link to its own page."""
    members = record.frontier.members
    if not members:
        return []
    rows = [
        f"| {_link_trial(member.trial_number).strip()} | {list_layers(member.evaluation.candidate.dropped_layers)} | "
        f"{_format_quality(member, record)} | {format_latency_ratio(member.evaluation.latency)} | "
        f"{100 * member.probability_best:.0f}\u00a0% |"
        for member in members
    ]
    head = ["| trial | dropped | PPL ratio | latency ratio | P(best of its depth) |", "|---|---|---|---|---|"]
    return [f"**The frontier by the proxy** ({escape_text(name_rung(record.frontier.rung))}):", "", *head, *rows]


def explain_trials(*, rung: str, workload: str | None) -> list[str]:
    """Return how to read the objectives and attributes of trials, as lines of Markdown."""
    measured = f" ({escape_text(workload)})" if workload else ""
    return [
        "**What is shown.** Each trial is a set of layers that are kept. Of both objectives, less is better:",
        "",
        f"- {quote_code(f'PPL ratio ({spell_rung(rung)})')}: perplexity on validation text after "
        f"{escape_text(name_rung(rung))}, divided by the dense model's. Test text is in no trial.",
        f"- `latency ratio`: median time{measured}, divided by the dense model's.",
        "",
        "A trial's attributes: `kept` and `dropped` name layers by their index in the original model, from 0; "
        "`num_params` counts what is left; `skipped` or `failed` says why a PRUNED trial has no value. `keep_00`, `keep_01` and so on "
        "are 1 where the layer is kept, so that the importance of such a parameter is the importance of a layer. The cards of "
        "exported models are the study's artifacts. Below the dashboard's own plots stand those of the report, which says how to "
        "read them.",
    ]


def find_trials(record: StudyRecord) -> dict[str, int]:
    """Return the number of each candidate's trial, by the candidate's key."""
    numbers = {trial.evaluation.candidate.key: trial.number for trial in record.trials if trial.state == "COMPLETE"}
    return numbers | {member.evaluation.candidate.key: member.trial_number for member in record.frontier.members}


def spell_rung(rung: str) -> str:
    """Return a rung as the objective's name spells it."""
    return rung.replace("_", " ")


def escape_text(text: str) -> str:
    """Return Markdown that shows ``text`` as it is, on one line: no marks and no HTML. Bare addresses become links."""
    return "".join(ENTITIES.get(char, char) for char in MARKS.sub(r"\\\1", re.sub(r"[\r\n\t ]+", " ", text)))


def quote_code(text: str) -> str:
    """Return Markdown that shows ``text`` as code on one line, whatever backticks it holds."""
    plain = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    pad = " " if plain.startswith("`") or plain.endswith("`") or not plain else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def quote_block(text: str) -> list[str]:
    """Return the lines of a Markdown code block that shows ``text``, whatever it holds."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [fence, *text.splitlines(), fence]


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


def _format_quality(member: FrontierMember, record: StudyRecord) -> str:
    quality = member.evaluation.qualities.get(record.frontier.rung)
    return format_ppl_ratio(quality) if quality else "none"


def _join(*parts: Sequence[str]) -> str:
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"
