"""Notes for Optuna Dashboard, in Markdown: one for the study, and one for each trial of the frontier.

Every string that a user or a model brought is escaped, for Markdown and for the HTML that Markdown may hold. Nothing is
stored here, and no notes are written for trials off the frontier: a trial's note is an attribute of its study.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from seed.findings import StudyRecord
from seed.plans import SearchPlan
from seed.records import Candidate, DistillResult, FrontierMember
from seed.reporting.answers import (
    list_contenders,
    recommend,
    say_contender,
    say_disturbance,
    say_introduction,
    say_recommendation,
)
from seed.reporting.replication import say_ratio
from seed.reporting.wording import (
    count_things,
    describe_size,
    describe_speed,
    format_latency_ratio,
    format_number,
    format_ppl_ratio,
    list_layers,
    name_depth,
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


def write_trial_notes(record: StudyRecord) -> dict[int, str]:
    """Return the notes of the frontier's trials by trial number."""
    return {member.trial_number: write_trial_note(member, record) for member in record.frontier.members}


def write_trial_note(member: FrontierMember, record: StudyRecord) -> str:
    """Return what a trial of the frontier stands for: its rank and rivals, its scores, and the model made of it."""
    evaluation = member.evaluation
    candidate, quality = evaluation.candidate, evaluation.qualities.get(record.frontier.rung)
    rank = "best" if member.rank == 0 else f"no. {member.rank + 1}"
    size = describe_size(evaluation.size.num_params, dense_num_params=record.dense.size.num_params)
    lines = [
        f"**Frontier: {rank} of those with {name_depth(candidate)}**",
        "",
        f"- dropped {list_layers(candidate.dropped_layers)}; kept {list_layers(candidate.kept_layers)}",
        f"- {size}, {escape_text(describe_speed(evaluation.latency))}: "
        f"latency ratio {format_latency_ratio(evaluation.latency)}",
    ]
    if quality:
        after = f"after {escape_text(name_rung(record.frontier.rung))}, on validation text"
        lines.append(f"- PPL ratio {format_ppl_ratio(quality)} {after}")
    lines.append(f"- P(best of its depth) {100 * member.probability_best:.0f}\u00a0%; {_say_ties(member, record)}")
    for result in record.distilled:
        if result.key == candidate.key:
            lines += _describe_model(result, record)
    return "\n".join(lines) + "\n"


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
        "are 1 where the layer is kept, so that the importance of such a parameter is the importance of a layer. Trials of "
        "the frontier have a note; where a model was exported, its card is among the trial's artifacts. Below the dashboard's own "
        "plots stand those of the report, which says how to read them.",
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


def _say_ties(member: FrontierMember, record: StudyRecord) -> str:
    if not member.tied_with:
        return "tied with none"
    numbers = find_trials(record)
    candidates: dict[str, Candidate] = {
        evaluation.candidate.key: evaluation.candidate
        for evaluation in [trial.evaluation for trial in record.trials]
        + [other.evaluation for other in record.frontier.members]
    }
    shown = [key for key in member.tied_with if key in candidates][:5]
    names = [
        f"the one without {list_layers(candidates[key].dropped_layers)}{_number_trial(numbers.get(key))}"
        for key in shown
    ]
    more = len(member.tied_with) - len(shown)
    return "tied with " + ", ".join([*names, *([count_things(more, "other")] if more else [])])


def _number_trial(number: int | None) -> str:
    return "" if number is None else f" (trial {number})"


def _describe_model(result: DistillResult, record: StudyRecord) -> Sequence[str]:
    test = result.test
    agreement = "" if test.top1_agreement is None else f", top-1 agreement {100 * test.top1_agreement:.1f}\u00a0%"
    divergence = "" if test.kl_divergence is None else f", KL {format_number(test.kl_divergence)} nats per token"
    return [
        f"- distilled: test PPL ratio {say_ratio(result, record.replications.get(result.key))} "
        f"(without recovery {format_number(result.test_unrecovered.ppl_ratio)}){divergence}{agreement}",
        f"- exported: {quote_code(f'models/{result.key}')} in the study's folder; its card is among the artifacts below",
    ]


def _join(*parts: Sequence[str]) -> str:
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"
