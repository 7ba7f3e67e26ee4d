"""The page of a fidelity study: does the cheap score order candidates as full distillation does?

Verdicts first, then every candidate in a small multiple for each depth and rung, then the numbers and what was run.
Statistics are handed in; nothing is estimated here.
"""

import html
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from seed import folder
from seed.evidence import (
    DepthFidelity,
    FidelityRow,
    FidelityStudy,
    FidelitySummary,
    RungDifference,
)
from seed.records import Estimate
from seed.reporting.document import escape, render_document, render_figure, render_section, render_table, render_values
from seed.reporting.marks import DEPTH_COLORS, GREY, choose_color, choose_symbol, draw_errors, finish_figure
from seed.reporting.wording import (
    ABSENT,
    SHORT_DISTILLATION_STEPS,
    count_things,
    format_estimate,
    format_number,
    list_layers,
    name_drop,
    name_rung,
)

QUESTION = "Seed: does the cheap score order candidates as full distillation does?"
PANEL_WIDTH_REM = 15
PANEL_HEIGHT_PX = 270
CEILING_NAME = "full distillation, repeated (noise ceiling)"
NEAR_STYLE = {"color": DEPTH_COLORS[1], "symbol": "circle", "size": 8}
REST_STYLE = {"color": DEPTH_COLORS[0], "symbol": "diamond-open", "size": 8}


def write_fidelity_page(study: FidelityStudy, summary: FidelitySummary, path: Path, *, command: str) -> None:
    """Write the page of a fidelity study as one self-contained HTML file.

    Args:
        study: the raw numbers; rows that the summary leaves out are drawn where they can be.
        summary: their statistics.
        path: the file; readers see the old one or the new one, never half of it.
        command: the shell command that repeats the study.

    Raises:
        ResourceError: the file cannot be written.
    """
    folder.write_bytes(path, render_fidelity_page(study, summary=summary, command=command).encode())


def render_fidelity_page(study: FidelityStudy, *, summary: FidelitySummary, command: str) -> str:
    """Return the page as HTML. The same records give the same bytes."""
    sections = [render_section("answer", "The answer", render_verdicts(summary))]
    if summary.depths:
        scores = draw_scores(study, summary=summary)
        width_rem = PANEL_WIDTH_REM * len(list_rungs(summary))
        drawing = render_figure(scores, key="scores", with_library=True, min_width_rem=width_rem)
        taus = render_figure(draw_taus(summary), key="taus", with_library=False)
        sections += [
            render_section("scores", "Score against distilled model, candidate by candidate", drawing),
            render_section("taus", "Agreement and its price", taus),
            render_section("numbers", "The numbers", render_numbers(study, summary=summary)),
            render_section("differences", "Rung against rung", render_differences(summary)),
        ]
    sections += [
        render_section("settings", "How this was measured", render_settings(study, summary=summary)),
        render_section("repeat", "Repeat this", f"<pre>{escape(command)}</pre>"),
    ]
    return render_document(sections, name=study.study, question=QUESTION)


def say_verdict(depth: DepthFidelity) -> str:
    """Return in two sentences, as plain text, whether the rungs that compete can be told apart at this depth."""
    begin = f"{count_things(depth.num_dropped, 'layer')} dropped, {count_things(depth.num_candidates, 'candidate')}"
    taus = {rung.rung: format_estimate(rung.tau) for rung in depth.rungs}
    difference = choose_headline(depth)
    if difference is None:
        told = " and ".join(f"{tau} for {name_rung(rung)}" for rung, tau in taus.items())
        verdict = f"{begin}: Kendall's tau with full distillation is {told or ABSENT}."
    else:
        one, other = difference.one, difference.other
        verdict = (
            f"{begin}: Kendall's tau with full distillation is {taus[one]} for {name_rung(one)} and {taus[other]} for "
            f"{name_rung(other)}, difference {format_estimate(difference.tau)}: {read_difference(difference)}."
        )
    if depth.ceiling.tau.value is None:
        return f"{verdict} Each candidate was distilled once, so how well a final repeats itself is not known."
    return f"{verdict} Two finals of the same candidates agree to {format_estimate(depth.ceiling.tau)}."


def choose_headline(depth: DepthFidelity) -> RungDifference | None:
    """Return the comparison of closed form with the longest short distillation, which compete for a search's time.

    Where one of them is missing, that of the first and the last rung; None when there is one rung.
    """
    names = [rung.rung for rung in depth.rungs]
    short = [name for name in names if name.startswith("short_distillation")]
    wanted = {names[0], names[-1]} if names else set()
    if "closed_form" in names and short:
        wanted = {"closed_form", max(short, key=count_steps)}
    return next((pair for pair in depth.differences if {pair.one, pair.other} == wanted), None)


def count_steps(rung: str) -> int:
    """Return the steps that a short distillation's name tells, or 0."""
    match = SHORT_DISTILLATION_STEPS.fullmatch(rung)
    return int(match[1]) if match else 0


def read_difference(difference: RungDifference) -> str:
    """Return what a difference and its interval allow to say."""
    if difference.tau.value is None:
        return "there is no order to compare"
    if difference.tau.low is None:
        return "too few candidates to tell"
    if difference.favours is None:
        return "cannot tell them apart"
    return f"in favour of {name_rung(difference.favours)}"


def list_rungs(summary: FidelitySummary) -> list[str]:
    """Return the rungs of all depths, in the order in which they were scored."""
    return list(dict.fromkeys(rung.rung for depth in summary.depths for rung in depth.rungs))


def render_verdicts(summary: FidelitySummary) -> str:
    """Return a verdict for each depth, as HTML."""
    if not summary.depths:
        return "<p>No candidate has both its scores and its finals yet, so there is no answer.</p>"
    items = "\n".join(f"<li>{escape(say_verdict(depth))}</li>" for depth in summary.depths)
    note = (
        "Kendall's tau: +1 when a score orders all pairs of candidates as full distillation does (by the loss on test "
        "text), 0 when it does no better than chance; within one depth, never pooled. Brackets: 95 % interval by "
        "bootstrap over candidates, each comparison by itself. A difference counts when its interval excludes zero."
    )
    return f'<ul class="answers">\n{items}\n</ul>\n<p class="note">{escape(note)}</p>'


def draw_scores(study: FidelityStudy, *, summary: FidelitySummary) -> go.Figure:
    """Draw each candidate's PPL ratio after full distillation over its score: a row a depth, a column a rung."""
    rungs = list_rungs(summary)
    taus = {(depth.num_dropped, rung.rung): rung.tau for depth in summary.depths for rung in depth.rungs}
    figure = make_subplots(
        rows=len(summary.depths),
        cols=len(rungs),
        shared_yaxes=True,
        horizontal_spacing=0.12 / len(rungs),
        vertical_spacing=0.3 / len(summary.depths),
        subplot_titles=[
            name_panel(depth.num_dropped, rung=rung, tau=taus.get((depth.num_dropped, rung)))
            for depth in summary.depths
            for rung in rungs
        ],
    )
    named: set[str] = set()
    near = f"near the depth's best (within {100 * study.near_margin:g} %)"
    for row, depth in enumerate(summary.depths, start=1):
        for col, rung in enumerate(rungs, start=1):
            here = [
                candidate
                for candidate in study.rows
                if len(candidate.candidate.dropped_layers) == depth.num_dropped
                and rung in candidate.losses
                and candidate.finals
            ]
            for name, marker, is_near in ((near, NEAR_STYLE, True), ("spread over the rest", REST_STYLE, False)):
                rows = [candidate for candidate in here if candidate.near_best == is_near]
                if rows:
                    trace = draw_candidates(rows, study=study, rung=rung, name=name, marker=marker)
                    figure.add_trace(trace.update(legendgroup=name, showlegend=name not in named), row=row, col=col)
                    named.add(name)
    num_seeds = max((depth.num_rng_seeds for depth in summary.depths), default=0)
    sentences = [
        "Across: PPL ratio by the rung, on validation text. Up: PPL ratio of the fully distilled model, on test text. "
        "Both are to the dense model, on logarithmic axes, and smaller is better.",
        "Bars span the finals of different random seeds." if num_seeds > 1 else "",
        "Above each panel: Kendall's tau with its 95 % interval.",
        "Candidates that lack a rung or a final are drawn where they can be, but not counted."
        if any(depth.num_left_out for depth in summary.depths)
        else "",
    ]
    figure = finish_figure(
        figure,
        title="Score against distilled model",
        caption=" ".join(filter(None, sentences)),
        x_title="",
        y_title="",
    )
    # Scores of the worst candidates are far off: on linear axes they press the others into a corner.
    figure.update_xaxes(type="log", nticks=5, tickangle=0, tickfont={"size": 11})
    figure.update_yaxes(type="log", nticks=6, tickfont={"size": 11})
    figure.update_xaxes(title={"text": "PPL ratio by the rung", "font": {"size": 12}}, row=len(summary.depths))
    for row, depth in enumerate(summary.depths, start=1):
        title = f"{name_drop(depth.num_dropped)}: distilled PPL ratio"
        figure.update_yaxes(title={"text": title, "font": {"size": 12}}, row=row, col=1)
    figure.update_annotations(font={"size": 12})
    height_px = PANEL_HEIGHT_PX * len(summary.depths) + 110
    return figure.update_layout(height=height_px, margin={"t": 44, "b": 90})


def name_panel(num_dropped: int, *, rung: str, tau: Estimate | None) -> str:
    """Return the title of a panel, in two lines; nothing for a rung that was not scored at this depth."""
    if tau is None:
        return ""
    return f"{name_drop(num_dropped)}, {html.escape(name_rung(rung), quote=False)}<br>τ {format_estimate(tau)}"


def draw_candidates(
    rows: Sequence[FidelityRow], *, study: FidelityStudy, rung: str, name: str, marker: dict[str, object]
) -> go.Scatter:
    """Draw candidates at the mean of their finals, with a bar from the best final to the worst."""
    ratios = [[math.exp(final.test_loss - study.dense_test_loss) for final in row.finals] for row in rows]
    # The mean of losses, as the statistics have it; in ratios that is the geometric mean.
    means = [float(np.exp(np.mean(np.log(finals)))) for finals in ratios]
    bars = draw_errors([max(0.0, max(finals) - mean) for finals, mean in zip(ratios, means, strict=True)])
    below = [max(0.0, mean - min(finals)) for finals, mean in zip(ratios, means, strict=True)]
    return go.Scatter(
        x=[math.exp(row.losses[rung] - study.dense_validation_loss) for row in rows],
        y=means,
        error_y={**bars, "symmetric": False, "arrayminus": below, "color": marker["color"]},
        customdata=[[list_layers(row.candidate.dropped_layers)] for row in rows],
        hovertemplate="dropped: %{customdata[0]}<br>score: %{x:.3f}<br>distilled: %{y:.3f}<extra></extra>",
        mode="markers",
        name=name,
        marker=marker,
    )


def draw_taus(summary: FidelitySummary) -> go.Figure:
    """Draw Kendall's tau of each rung, with its interval and its seconds a candidate, depths side by side."""
    rungs = list_rungs(summary)
    figure = go.Figure()
    seconds: dict[int, list[float]] = {}
    for order, depth in enumerate(summary.depths):
        shift = 0.14 * (order - (len(summary.depths) - 1) / 2)
        places = [(rungs.index(rung.rung), rung) for rung in depth.rungs] + [(len(rungs), depth.ceiling)]
        for place, rung in places:
            if rung.seconds is not None:
                seconds.setdefault(place, []).append(rung.seconds)
        shown = [(place, rung.tau, rung.tau.value) for place, rung in places if rung.tau.value is not None]
        # A percentile interval need not hold its point, and Plotly would draw a negative bar backwards.
        bars = draw_errors([max(0.0, (value if tau.high is None else tau.high) - value) for _, tau, value in shown])
        below = [max(0.0, value - (value if tau.low is None else tau.low)) for _, tau, value in shown]
        figure.add_trace(
            go.Scatter(
                x=[place + shift for place, *_ in shown],
                y=[value for *_, value in shown],
                error_y={**bars, "symmetric": False, "arrayminus": below, "color": choose_color(depth.num_dropped)},
                customdata=[[format_estimate(tau)] for _, tau, _ in shown],
                hovertemplate="%{customdata[0]}<extra>%{fullData.name}</extra>",
                mode="markers",
                name=f"{depth.num_dropped} dropped",
                showlegend=True,
                marker={
                    "color": choose_color(depth.num_dropped),
                    "symbol": choose_symbol(depth.num_dropped),
                    "size": 11,
                },
            )
        )
    names = [html.escape(name_rung(rung), quote=False) for rung in rungs] + ["another final<br>(noise ceiling)"]
    labels = [
        f"{name}<br>{format_seconds(float(np.median(seconds[place])))}" if place in seconds else name
        for place, name in enumerate(names)
    ]
    figure.add_vline(x=len(rungs) - 0.5, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=labels, range=[-0.5, len(names) - 0.5])
    caption = (
        "Kendall's tau with the finals' test loss, with its 95 % interval by bootstrap over candidates. Below each "
        "rung: seconds a candidate, the median. Intervals of two rungs may overlap although their paired difference "
        "excludes zero; the differences are below."
    )
    figure = finish_figure(
        figure, title="Agreement and its price", caption=caption, x_title="", y_title="Kendall's tau with the final"
    )
    return figure.update_layout(margin={"b": 110})


def render_numbers(study: FidelityStudy, *, summary: FidelitySummary) -> str:
    """Return the table of all statistics, the noise ceiling as the last row of each depth."""
    header = ["dropped, rung", "candidates (near)", "τ", "τ near the best", "regret of its pick", "recovery", "seconds"]
    rows = []
    for depth in summary.depths:
        for rung in (*depth.rungs, depth.ceiling):
            name = CEILING_NAME if rung is depth.ceiling else name_rung(rung.rung)
            rows.append(
                [
                    f"{name_drop(depth.num_dropped)}, {name}",
                    f"{depth.num_candidates} ({depth.num_near})",
                    format_estimate(rung.tau),
                    format_estimate(rung.near_tau),
                    format_share(rung.top1_regret, places=2),
                    format_share(rung.recovery, places=0),
                    ABSENT if rung.seconds is None else format_seconds(rung.seconds),
                ]
            )
    left_out = sum(depth.num_left_out for depth in summary.depths)
    caption = (
        f"τ: Kendall's tau-b with the test loss of each final, averaged over random seeds. Near: within "
        f"{100 * study.near_margin:g} % of the depth's best PPL by closed form. Regret: how much higher the PPL of the "
        "rung's first choice is after distillation than that of the best distilled candidate. Recovery: the median "
        "share of the damage to the validation loss that is undone. Seconds: the median for one candidate. Noise "
        "ceiling: one final judged by the other; where a score can be expected to end, but not a bound, since a score "
        "with less noise than a final may pass it. Its regret is judged by single finals, that of rungs by their mean."
    )
    if left_out:
        caption += f" Left out for want of a rung or a final: {count_things(left_out, 'candidate')}."
    return render_table(caption, header, rows)


def render_differences(summary: FidelitySummary) -> str:
    """Return the table of paired differences between rungs; empty where there is one rung."""
    rows = [
        [
            f"{name_drop(pair.num_dropped)}, {name_rung(pair.one)} less {name_rung(pair.other)}",
            format_estimate(pair.tau),
            read_difference(pair),
        ]
        for depth in summary.depths
        for pair in depth.differences
    ]
    caption = (
        f"Differences of Kendall's tau, on the same candidates. Intervals: {summary.bootstrap_draws:,} resamples of "
        "the candidates, the same for both rungs; near ones and the rest are resampled apart, and pairs of a candidate "
        "with itself are dropped."
    )
    return render_table(caption, ["dropped, rungs", "difference of τ", "reading"], rows) if rows else ""


def render_settings(study: FidelityStudy, *, summary: FidelitySummary) -> str:
    """Return what was run."""
    told = {
        "model": study.model,
        "candidates": len(study.rows),
        "near margin": format_share(study.near_margin, places=1),
        "dense loss, validation (nats per token)": format_number(study.dense_validation_loss, places=4),
        "dense loss, test (nats per token)": format_number(study.dense_test_loss, places=4),
        "bootstrap draws": f"{summary.bootstrap_draws:,}",
    }
    return f"{render_values(told)}\n<h3>Distillation</h3>\n{render_values(study.settings)}"


def format_share(share: float | None, *, places: int) -> str:
    """Return a share in per cent."""
    return ABSENT if share is None else f"{format_number(100 * share, places=places)}\u00a0%"


def format_seconds(seconds: float) -> str:
    """Return seconds with about three significant digits."""
    return f"{format_number(seconds, places=2 if seconds < 9.995 else 1 if seconds < 99.95 else 0)}\u00a0s"
