"""The page of claims about dropping layers: what each is worth on one model, and the measurements behind that.

Verdicts first, then what each trained model reached, what single layers cost, how training went, what was timed, then
numbers and settings. Verdicts and statistics are handed in; nothing is judged or estimated here.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from seed import folder
from seed.evidence import ClaimsEvidence, Measure, TrainedRun, Verdict
from seed.records import Estimate
from seed.reporting.claim_figures import (
    EstimateCost,
    Group,
    draw_curves,
    draw_reached,
    draw_singles,
    draw_times,
    format_plain,
    group_runs,
    list_models,
    name_depth,
    name_timed,
)
from seed.reporting.comparison import format_percent
from seed.reporting.document import escape as escape_html
from seed.reporting.document import render_document, render_figure, render_section, render_table, render_values
from seed.reporting.trained import name_key
from seed.reporting.wording import ABSENT, count_things, format_interval, format_latency_ratio

QUESTION = "Seed: which claims about dropping layers hold on this model?"
# verdicts of optimize.claims: class of the style sheet, sign, and what a count of them says
VERDICTS = {
    "holds": ("holds", "\N{CHECK MARK}", ("holds", "hold")),
    "does not hold": ("fails", "\N{BALLOT X}", ("does not hold", "do not hold")),
    "cannot tell": ("unsure", "?", ("cannot be told", "cannot be told")),
}


EstimateRatio = Callable[[ClaimsEvidence, Sequence[TrainedRun]], Estimate]


def write_claims_page(
    evidence: ClaimsEvidence,
    verdicts: Sequence[Verdict],
    path: Path,
    *,
    command: str,
    estimate_ratio: EstimateRatio,
    estimate_cost: EstimateCost,
) -> None:
    """Write the page of claims as one self-contained HTML file.

    Args:
        evidence: the raw numbers.
        verdicts: what they say to each claim, in the order of the page.
        path: the file; readers see the old one or the new one, never half of it.
        command: the shell command that repeats the measurements.
        estimate_ratio: the test PPL ratio of some runs to the dense model, with its 95 % interval.
        estimate_cost: the log PPL ratio of single removals, with its 95 % interval.

    Raises:
        ResourceError: the file cannot be written.
    """
    page = render_claims_page(
        evidence, verdicts, command=command, estimate_ratio=estimate_ratio, estimate_cost=estimate_cost
    )
    folder.write_bytes(path, page.encode())


def render_claims_page(
    evidence: ClaimsEvidence,
    verdicts: Sequence[Verdict],
    *,
    command: str,
    estimate_ratio: EstimateRatio,
    estimate_cost: EstimateCost,
) -> str:
    """Return the page as HTML. The same records give the same bytes."""
    groups = group_runs(evidence)
    estimates = [estimate_ratio(evidence, group.runs) for group in groups]
    drawn = [
        ("reached", "What each model reached", draw_reached(evidence, groups, estimates)),
        ("layers", "What one layer costs", draw_singles(evidence, estimate_cost)),
        ("curves", "Learning curves", draw_curves(evidence, groups)),
        ("time", "Time", draw_times(evidence)),
    ]
    shown = [row for row in drawn if row[2].data]
    sections = [
        render_section("answer", "The answer", render_answers(evidence, verdicts)),
        *(
            render_section(key, title, render_figure(figure, key=key, with_library=index == 0))
            for index, (key, title, figure) in enumerate(shown)
        ),
        render_section("numbers", "The numbers", render_numbers(evidence, verdicts, groups, estimates)),
        render_section("settings", "How this was measured", render_settings(evidence)),
        render_section("repeat", "Repeat this", f"<pre>{escape_html(command)}</pre>"),
    ]
    return render_document(sections, name=evidence.ledger.study, question=QUESTION)


# ---- answers


def render_answers(evidence: ClaimsEvidence, verdicts: Sequence[Verdict]) -> str:
    """Return the count of verdicts, then an item for each claim, as HTML."""
    if not verdicts:
        return "<p>No claim is judged yet, so there is no answer.</p>"
    items = "\n".join(map(render_verdict, verdicts))
    note = (
        "A claim holds where the whole 95 % interval of what was measured says so, does not hold where the whole interval says "
        "otherwise, and else this evidence cannot tell. PPL ratio: perplexity on test text after recovery, divided by the dense "
        "model's. Brackets: 95 % interval, as documents and random seeds vary. What was reported was measured on other models "
        "and text: a claim may be right there and wrong here."
    )
    return (
        f"<p>{escape_html(count_verdicts(verdicts))} Model: {escape_html(evidence.ledger.model)}.</p>\n"
        f'<ul class="answers verdicts">\n{items}\n</ul>\n<p class="note">{escape_html(note)}</p>'
    )


def count_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Return ``Of 10 claims 5 hold, 2 do not hold, 3 cannot be told.``."""
    counts = {verdict: sum(one.verdict == verdict for one in verdicts) for verdict in VERDICTS}
    told = [f"{count} {VERDICTS[verdict][2][count != 1]}" for verdict, count in counts.items() if count]
    return f"Of {count_things(len(verdicts), 'claim')} {', '.join(told)}."


def render_verdict(verdict: Verdict) -> str:
    """Return the item on one claim: its verdict as a word, a sign and a colour; what was found; what was reported."""
    kind, sign, _ = VERDICTS[verdict.verdict]
    return (
        f'<li class="{kind}"><div class="verdict"><span aria-hidden="true">{sign}</span> {escape_html(verdict.verdict)} '
        f"<small>{escape_html(verdict.key)}</small></div>\n<div><strong>{escape_html(verdict.claim)}</strong>\n"
        f"<p>Found: {escape_html(verdict.found or 'nothing yet')}</p>\n"
        f'<p class="note">Reported: {escape_html(verdict.reported)} ({escape_html(verdict.source)})</p></div></li>'
    )


# ---- numbers


def render_numbers(
    evidence: ClaimsEvidence, verdicts: Sequence[Verdict], groups: Sequence[Group], estimates: Sequence[Estimate]
) -> str:
    """Return the tables of all measures, of all trained models and of all times."""
    parts = []
    measures = [
        [verdict.key, measure.name, format_measure(measure)] for verdict in verdicts for measure in verdict.measures
    ]
    if measures:
        caption = (
            "What the verdicts rest on. Per cent: one perplexity over another less 1, same documents, same random seeds. Intervals: "
            "95 %, by Student's t, not corrected for the number of comparisons."
        )
        parts.append(f"<h3>Measures</h3>\n{render_table(caption, ['claim', 'measure', 'estimate'], measures)}")
    if groups:
        rows = [
            [
                f"{name_depth(evidence, group.depth)}, {group.label}",
                list_models(group),
                f"{group.runs[0].num_params:,}",
                f"{group.runs[0].tokens:,}",
                ", ".join(str(run.rng_seed) for run in group.runs),
                format_interval(estimate),
                format_gain(measure_last_gain(group.runs)),
            ]
            for group, estimate in zip(groups, estimates, strict=True)
        ]
        header = ["model", "layers or width", "parameters", "tokens", "random seeds", "PPL ratio", "last look gained"]
        caption = (
            "Every trained model. Last look gained: how much the validation loss, nats per token, fell between the last two looks; "
            "near 0 a plateau is reached."
        )
        parts.append(f"<h3>Trained models</h3>\n{render_table(caption, header, rows)}")
    if evidence.latencies:
        rows = [
            [
                name_timed(name, evidence),
                latency.workload,
                f"{latency.median_ms:,.2f}",
                f"{latency.dense_median_ms:,.2f}",
                format_latency_ratio(latency),
            ]
            for name, latency in evidence.latencies.items()
        ]
        header = ["model", "workload", "median, ms", "dense, ms", "ratio"]
        parts.append(f"<h3>Times</h3>\n{render_table('Measured in turn with the dense model.', header, rows)}")
    return "\n".join(parts)


def render_settings(evidence: ClaimsEvidence) -> str:
    """Return what was run, and which model plays which role."""
    ledger = evidence.ledger
    told = {
        "model": ledger.model,
        "layers": evidence.num_layers,
        "parameters of the dense model": f"{ledger.dense_num_params:,}",
        "documents of the test text": f"{len(ledger.test_counts):,}",
        "random seeds": ", ".join(map(str, sorted({run.rng_seed for run in ledger.runs}))) or ABSENT,
        **ledger.settings,
        "roles": {role: name_key(key) for role, key in evidence.roles.items()},
    }
    return render_values(told)


def format_measure(measure: Measure) -> str:
    """Return a measure with its interval, in its unit."""
    return format_percent(measure.estimate) if measure.unit == "%" else format_plain(measure.estimate)


def format_gain(gain: float | None) -> str:
    """Return a loss difference with its sign."""
    return ABSENT if gain is None else f"{gain:+z.4f}"


def measure_last_gain(runs: Sequence[TrainedRun]) -> float | None:
    """Return by how much the validation loss fell between the last two looks, mean of the runs; None: not known."""
    gains = [run.curve[-2].validation_loss - run.curve[-1].validation_loss for run in runs if len(run.curve) > 1]
    return sum(gains) / len(gains) if gains and all(map(math.isfinite, gains)) else None
