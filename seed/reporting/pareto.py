"""The Pareto plot of a study: what was scored, what the proxy chose, what was distilled, beside the dense model.

One figure; its marks are drawn in ``marks``, and the others are in ``figures``. No HTML and no files here.
"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from seed.findings import StudyRecord
from seed.reporting.answers import MARGINS
from seed.reporting.marks import (
    GREY,
    add_levels,
    annotate_depths,
    draw_baselines,
    draw_distilled,
    draw_front,
    draw_links,
    draw_models,
    finish_figure,
    read_ratio,
)
from seed.reporting.readings import find_links, read_scored
from seed.reporting.wording import count_things, name_rung


def draw_pareto(record: StudyRecord) -> go.Figure:
    """Draw PPL ratio against latency ratio, both to the dense model: all candidates, the frontier, the distilled.

    Trials stand at their PPL ratio on validation text by the frontier's rung, distilled models at that on test text.
    """
    scored = read_scored(record)
    drawn_larger = {member.evaluation.candidate.key for member in record.frontier.members}
    complete = [trial for trial in record.trials if trial.state == "COMPLETE"]
    complete = [trial for trial in complete if trial.evaluation.candidate.key in scored.keys() - drawn_larger]
    trials = [(trial.evaluation, scored[trial.evaluation.candidate.key]) for trial in complete]
    members = [
        (member, scored[member.evaluation.candidate.key])
        for member in record.frontier.members
        if member.evaluation.candidate.key in scored
    ]
    best = [(member.evaluation, quality) for member, quality in members if member.rank == 0]
    others = [(member.evaluation, quality) for member, quality in members if member.rank > 0]
    figure = go.Figure()
    if trials:
        # short strokes: those of one structure stand above one another, and points would run together
        strokes = {"symbol": "line-ew-open", "size": 9, "opacity": 0.6}
        figure.add_trace(draw_models(trials, name="scored candidates", marker=strokes))
    links = find_links(record, scored)
    if links:
        figure.add_trace(draw_links(links, record.replications))
    if others:
        figure.add_trace(draw_models(others, name="runners-up", marker={"size": 10, "symbol": "circle-open"}))
    if best:
        figure.add_trace(draw_models(best, name="frontier by the proxy", marker={"size": 12}))
    if record.distilled:
        figure.add_trace(draw_front(record.distilled, record.replications))
        figure.add_trace(draw_distilled(record.distilled, record.replications))
    if record.baselines:
        figure.add_trace(draw_baselines(record.baselines, record.replications))
    figure.add_trace(
        go.Scatter(
            x=[1.0],
            y=[1.0],
            mode="markers",
            name="dense model",
            hoverinfo="name",
            marker={"color": GREY, "size": 12, "symbol": "x"},
        )
    )
    emphasised = [quality.ppl_ratio for _, quality in members]
    judged = (*record.distilled, *record.baselines)
    known = [read_ratio(result, record.replications) for result in judged]
    emphasised += [ratio + sign * error for ratio, error in known for sign in (-1, 1)]
    low = min([1.0, *emphasised, *(quality.ppl_ratio for _, quality in trials)])
    top = choose_top([quality.ppl_ratio for _, quality in trials], emphasised=emphasised)
    pad = 0.04 * (top - low)
    above = sum(quality.ppl_ratio > top + pad for _, quality in trials)
    is_limited = record.plan.max_ppl_ratio is not None and record.plan.max_ppl_ratio <= top
    if is_limited:
        figure.add_hline(y=record.plan.max_ppl_ratio, line={"color": GREY, "width": 1, "dash": "dot"})
    add_levels(figure, MARGINS, top=top)
    annotate_depths(figure, [evaluation for evaluation, _ in [*trials, *best]])
    figure.update_yaxes(range=[low - pad, top + pad])
    # By the points alone: one interval that noise made wide would press all of them together.
    ratios = [
        1.0,
        *(evaluation.latency.ratio for evaluation, _ in [*trials, *best, *others]),
        *(r.latency.ratio for r in judged),
    ]
    room = 0.08 * (max(ratios) - min(ratios)) or 0.01
    figure.update_xaxes(range=[min(ratios) - room, max(ratios) + room])
    return finish_figure(
        figure,
        title="Perplexity against latency",
        caption=say_pareto(record, num_small=len(trials), num_above=above, is_limited=is_limited),
        x_title="latency ratio (smaller is faster)",
        y_title="PPL ratio (smaller is better)",
    )


def say_pareto(record: StudyRecord, *, num_small: int, num_above: int, is_limited: bool) -> str:
    """Return how to read the plot."""
    sentences = [
        "Nearer to the lower left is better: faster, and less perplexity lost.",
        "Both ratios are to the dense model.",
        f"Candidates: PPL ratio on validation text after {name_rung(record.frontier.rung)}.",
        "Distilled models: PPL ratio on test text with one standard error (of replicas: mean and 95 % interval), latency ratio with its 95 % interval; "
        "a thin line leads there from the same candidate's proxy."
        if record.distilled
        else "",
        "The line joins what is distilled and beaten by no other on both axes; the levels on the right are per cent of PPL above the dense model."
        if record.distilled
        else "",
        "Uniform width: all layers kept, each cut evenly to the parameters of a depth, distilled and judged alike."
        if record.baselines
        else "",
        "The number above a strip, and the colour, say how many layers are dropped.",
        "Candidates of one structure share one latency: the small strokes above one another." if num_small else "",
        f"Above the drawn range: {count_things(num_above, 'candidate')}; double-click to see them, again to return."
        if num_above
        else "",
        "The dotted line is the limit --max-ppl-ratio." if is_limited else "",
    ]
    return " ".join(filter(None, sentences))


def choose_top(ratios: Sequence[float], *, emphasised: Sequence[float]) -> float:
    """Return the upper end of the drawn range: all emphasised points and most others, but no far-off outliers."""
    must = max([1.0, *emphasised])
    if not ratios:
        return must + 0.01
    return max(must, min(float(np.quantile(ratios, 0.9)), 1 + 1.6 * (must - 1)) if must > 1 else max(ratios))
