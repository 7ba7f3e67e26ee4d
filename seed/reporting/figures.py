"""Figures of a study: one function each, from its result to a Plotly figure; those of the search are in ``search_figures``.

A figure says in ``layout.meta["caption"]`` how to read it, in plain text, for whoever sets it on a page. A figure
with nothing to show has no traces.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from seed.reporting.marks import (
    DEPTH_COLORS,
    GREY,
    add_levels,
    add_tiles,
    choose_color,
    choose_symbol,
    draw_errors,
    draw_judged,
    draw_latencies,
    draw_scored,
    finish_figure,
)
from seed.reporting.search_figures import draw_gain, draw_progress, draw_sensitivity
from seed.reporting.wording import count_things, list_layers, name_depth, name_drop, name_rung
from seed.results import MARGINS, Link, Model, StudyResult, mark_dropped


def draw_pareto(result: StudyResult) -> go.Figure:
    """Draw PPL ratio against latency ratio, both to the dense model: all candidates, the frontier, the distilled.

    Trials stand at their PPL ratio on validation text by the frontier's proxy, distilled models at that on test text.
    """
    record, trials = result.record, result.scored
    ranks = [member.rank for member in record.frontier.members]
    best = [model for model, rank in zip(result.frontier, ranks, strict=True) if rank == 0]
    others = [model for model, rank in zip(result.frontier, ranks, strict=True) if rank > 0]
    figure = go.Figure()
    if trials:
        # short strokes: those of one structure stand above one another, and points would run together
        strokes = {"symbol": "line-ew-open", "size": 9, "opacity": 0.6}
        figure.add_trace(draw_scored(trials, name="scored candidates", marker=strokes))
    if result.links:
        figure.add_trace(draw_links(result.links))
    if others:
        figure.add_trace(draw_scored(others, name="runners-up", marker={"size": 10, "symbol": "circle-open"}))
    if best:
        figure.add_trace(draw_scored(best, name="frontier by the proxy", marker={"size": 12}))
    if result.distilled:
        figure.add_trace(draw_front(result.distilled))
        colors = [choose_color(model.depth) for model in result.distilled]  # open, so that one does not hide another
        marker = {"symbol": "diamond-open", "size": 12, "line": {"width": 2}, "color": colors}
        figure.add_trace(draw_judged(result.distilled, name="distilled, on test text", mode="markers", marker=marker))
    if result.baselines:
        figure.add_trace(
            draw_judged(
                result.baselines,
                name="uniform width, distilled",
                mode="lines+markers",
                line={"color": GREY, "width": 1, "dash": "dash"},
                marker={"symbol": "square", "size": 9, "color": GREY},
            )
        )
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
    judged = (*result.distilled, *result.baselines)
    emphasised = [model.quality.ppl_ratio for model in result.frontier]
    emphasised += [
        end
        for model in judged
        for end in (model.ppl_ratio.value, model.ppl_ratio.low, model.ppl_ratio.high)
        if end is not None
    ]
    low = min([1.0, *emphasised, *(model.quality.ppl_ratio for model in trials)])
    top = choose_top([model.quality.ppl_ratio for model in trials], emphasised=emphasised)
    pad = 0.04 * (top - low)
    above = sum(model.quality.ppl_ratio > top + pad for model in trials)
    is_limited = record.plan.max_ppl_ratio is not None and record.plan.max_ppl_ratio <= top
    if is_limited:
        figure.add_hline(y=record.plan.max_ppl_ratio, line={"color": GREY, "width": 1, "dash": "dot"})
    add_levels(figure, MARGINS, top=top)
    annotate_depths(figure, [*trials, *best])
    figure.update_yaxes(range=[low - pad, top + pad])
    # By the points alone: one interval that noise made wide would press all of them together.
    ratios = [1.0, *(model.latency.ratio for model in (*trials, *result.frontier, *judged))]
    room = 0.08 * (max(ratios) - min(ratios)) or 0.01
    figure.update_xaxes(range=[min(ratios) - room, max(ratios) + room])
    return finish_figure(
        figure,
        title="Perplexity against latency",
        caption=say_pareto(result, num_above=above, is_limited=is_limited),
        x_title="latency ratio (smaller is faster)",
        y_title="PPL ratio (smaller is better)",
    )


def say_pareto(result: StudyResult, *, num_above: int, is_limited: bool) -> str:
    """Return how to read the plot."""
    sentences = [
        "Nearer to the lower left is better: faster, and less perplexity lost.",
        "Both ratios are to the dense model.",
        f"Candidates: PPL ratio on validation text after {name_rung(result.record.frontier.proxy)}.",
        "Distilled models: PPL ratio on test text and latency ratio with their 95 % intervals; a thin line leads there from the "
        "same candidate's proxy."
        if result.distilled
        else "",
        "The line joins what is distilled and beaten by no other on both axes; the levels on the right are per cent of PPL above the dense model."
        if result.distilled
        else "",
        "Uniform width: all layers kept, each cut evenly to the parameters of a depth, distilled and judged alike."
        if result.baselines
        else "",
        "The number above a strip, and the colour, say how many layers are dropped.",
        "Candidates of one structure share one latency: the small strokes above one another." if result.scored else "",
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


def draw_links(links: Sequence[Link]) -> go.Scatter:
    """Draw a thin line from each candidate as the proxy saw it to the model that distillation made of it."""
    return go.Scatter(
        x=[x for link in links for x in (link.proxy.latency.ratio, link.model.latency.ratio, None)],
        y=[y for link in links for y in (link.proxy.quality.ppl_ratio, link.model.ppl_ratio.value, None)],
        mode="lines",
        name="proxy to distilled",
        hoverinfo="skip",
        line={"color": GREY, "width": 1},
        showlegend=False,
    )


def draw_front(models: Sequence[Model]) -> go.Scatter:
    """Draw the line from the dense model through the distilled models that no other beats on both axes."""
    points = [(1.0, 1.0), *((model.latency.ratio, model.ppl_ratio.value or math.inf) for model in models)]
    front = [
        point
        for point in sorted(points)
        if not any(x <= point[0] and y <= point[1] and (x, y) != point for x, y in points)
    ]
    return go.Scatter(
        x=[x for x, _ in front],
        y=[y for _, y in front],
        mode="lines",
        name="frontier, distilled",
        hoverinfo="skip",
        showlegend=False,
        line={"color": GREY, "width": 1.5},
    )


def annotate_depths(figure: go.Figure, models: Sequence[Model]) -> None:
    """Write the number of dropped layers above each depth's strip."""
    ratios: dict[int, list[float]] = {}
    for model in models:
        ratios.setdefault(model.depth, []).append(model.latency.ratio)
    for depth, values in sorted(ratios.items()):
        figure.add_annotation(
            x=float(np.median(values)),
            y=1,
            yref="paper",
            yanchor="bottom",
            showarrow=False,
            text=name_drop(depth),
            font={"color": choose_color(depth), "size": 14},
        )


def draw_layer_map(result: StudyResult) -> go.Figure:
    """Draw which layers each frontier member drops, and how often the best candidates of each depth drop each layer."""
    record, members, depths = result.record, result.record.frontier.members, result.drops
    if not members and not depths:
        return go.Figure()
    num_layers = record.space.num_layers
    panels = [rows for rows in (members, depths) if rows]
    titles = ["<b>Frontier</b>"] * bool(members) + ["<b>Best of each depth</b>"] * bool(depths)
    height = 200 + 26 * sum(map(len, panels))
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=58 / height,
        subplot_titles=titles,
        row_heights=[len(rows) for rows in panels],
    )
    if members:
        labels = [
            f"{name_drop(model.depth)} " + ("best" if member.rank == 0 else f"no. {member.rank + 1}")
            for model, member in zip(result.frontier, members, strict=True)
        ]
        dropped = np.array([mark_dropped(member.evaluation.candidate) for member in members])
        words = np.where(dropped > 0, "dropped", "kept")
        add_tiles(figure, dropped, labels=labels, row=1, words=words.tolist(), show_scale=False)
    if depths:
        labels = [f"{name_drop(row.depth)} ({row.num_best} of {row.num_scored})" for row in depths]
        shares = np.array([row.shares for row in depths])
        words = np.array([[f"dropped by {100 * value:.0f} %" for value in row] for row in shares])
        add_tiles(figure, shares, labels=labels, row=len(panels), words=words.tolist(), show_scale=True)
    figure.update_xaxes(
        tickmode="linear",
        tick0=0,
        dtick=math.ceil(num_layers / 12),
        tickangle=0,
        tickfont={"size": 11},
        showgrid=False,
        showticklabels=True,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    protected = sorted(set(range(num_layers)) - {*record.space.droppable_layers, *record.space.gone_layers})
    sentences = [
        "Orange: dropped." if members else "",
        "Rows start with the number of dropped layers.",
        "Below: the share of each depth's best candidates by the proxy (a quarter of those scored, twenty at most) "
        "that drop a layer; deeper orange is more often."
        if depths
        else "",
        f"The search space keeps these layers always: {list_layers(protected)}." if protected else "",
    ]
    figure = finish_figure(
        figure, title="Which layers go", caption=" ".join(filter(None, sentences)), x_title="", y_title=""
    )
    figure.update_xaxes(title="layer of the original model", row=len(panels))
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    figure.layout.meta = {**figure.layout.meta, "ids": [model.link for model in result.frontier]}
    return figure.update_layout(height=height, margin={"t": 40})


def draw_proxy_against_final(result: StudyResult) -> go.Figure:
    """Draw the PPL ratio after distillation against the proxy's, both on validation text."""
    figure = go.Figure()
    for depth in sorted({link.model.depth for link in result.links}):
        links = [link for link in result.links if link.model.depth == depth]
        figure.add_trace(
            go.Scatter(
                x=[link.proxy.quality.ppl_ratio for link in links],
                y=[link.validation.ppl_ratio for link in links],
                error_x=draw_errors([link.proxy.quality.ppl_ratio_standard_error for link in links]),
                error_y=draw_errors([link.validation.ppl_ratio_standard_error for link in links]),
                customdata=[[list_layers(link.model.candidate.dropped_layers)] for link in links],
                hovertemplate="dropped: %{customdata[0]}<br>proxy: %{x:.3f}<br>distilled: %{y:.3f}<extra></extra>",
                mode="markers",
                name=f"{depth} dropped",
                showlegend=True,
                marker={"color": choose_color(depth), "symbol": choose_symbol(depth), "size": 11},
            )
        )
    if not result.links:
        return figure
    caption = f"{result.record.agreement.verdict} Both axes are on validation text; bars are one standard error."
    return finish_figure(
        figure,
        title="Does the proxy rank as distillation does?",
        caption=caption,
        x_title=f"PPL ratio after {name_rung(result.record.frontier.proxy)}",
        y_title="PPL ratio after distillation",
    )


def draw_learning_curves(result: StudyResult) -> go.Figure:
    """Draw the validation loss, in nats per token, over distillation tokens, step 0 included."""
    figure = go.Figure()
    seen: dict[int, int] = {}
    for one in result.record.distilled:
        if not one.curve:
            continue
        depth = len(one.candidate.dropped_layers)
        order = seen[depth] = seen.get(depth, -1) + 1
        color, dash = choose_color(depth), ("solid", "dash", "dot", "dashdot")[order % 4]
        name = f"{name_depth(one.candidate)} without {list_layers(one.candidate.dropped_layers)}"
        figure.add_trace(
            go.Scatter(
                x=[point.tokens for point in one.curve],
                y=[point.validation_loss for point in one.curve],
                customdata=[[point.step] for point in one.curve],
                mode="lines+markers",
                name=name,
                marker={
                    "color": color,
                    "symbol": choose_symbol(depth),
                    "size": [11 if point.step == one.best_step else 4 for point in one.curve],
                    "opacity": 1,
                    "line": {"width": 0},
                },
                line={"color": color, "width": 2, "dash": dash},
                hovertemplate="step %{customdata[0]}, %{x:.3s} tokens<br>validation loss %{y:.4f}<extra>"
                + name
                + "</extra>",
            )
        )
    if not figure.data:
        return figure
    figure.add_hline(
        y=result.record.dense.validation.loss,
        line={"color": GREY, "width": 1, "dash": "dash"},
        annotation={"text": "dense model", "xanchor": "right"},
        annotation_position="bottom right",
    )
    return finish_figure(
        figure,
        title="Learning curves of the distillation",
        x_title="distillation tokens",
        y_title="validation loss (nats per token)",
        caption="The first point of each curve is the student before its first step; the large marker is the "
        "checkpoint that was kept. The dashed line is the dense model.",
    )


def draw_latency(result: StudyResult) -> go.Figure:
    """Draw each structure's latency ratio with its 95 % interval, beside a straight line in proportion to depth."""
    num_layers, rows = result.record.space.num_layers, result.structures
    figure = go.Figure()
    if not rows:
        return figure
    kept = [len(evaluation.candidate.kept_layers) for evaluation in rows]
    figure.add_trace(
        go.Scatter(
            x=[min(kept), num_layers],
            y=[min(kept) / num_layers, 1.0],
            mode="lines",
            name="in proportion to depth",
            hoverinfo="skip",
            line={"color": GREY, "width": 1, "dash": "dash"},
        )
    )
    figure.add_trace(
        draw_latencies(
            [*kept, num_layers],
            [*(evaluation.latency for evaluation in rows), result.record.dense.latency],
            name="measured, one point per structure",
            color=DEPTH_COLORS[0],
            symbol="circle",
        )
    )
    beside = min(0.1, 0.03 * (num_layers - min(kept)))
    prefill = [
        (depth, one.latency) for depth, one in zip(kept, rows, strict=True) if one.latency.prefill_ratio is not None
    ]
    if prefill:
        figure.add_trace(
            go.Scatter(
                x=[depth - beside for depth, _ in prefill],
                y=[latency.prefill_ratio for _, latency in prefill],
                customdata=[[html.escape(latency.structure, quote=False)] for _, latency in prefill],
                mode="markers",
                name="prefill",
                marker={"color": DEPTH_COLORS[2], "symbol": "square-open", "size": 9},
                hovertemplate="%{customdata[0]}<br>prefill ratio: %{y:.3f}<extra></extra>",
            )
        )
    figure.update_xaxes(tickmode="linear", dtick=max(1, math.ceil((num_layers - min(kept)) / 12)))
    latency = rows[-1].latency
    caption = (
        f"Workload: {latency.workload}, on {latency.device}; {latency.repeats} pairs with the dense model, measured in "
        "turn. Bars are 95 % intervals of the median ratio. What lies above the line pays for parts that dropping "
        "layers does not remove, such as embeddings and the output head."
    )
    return finish_figure(
        figure, title="Latency by structure", caption=caption, x_title="layers kept", y_title="latency ratio to dense"
    )


FIGURES: Mapping[str, Callable[[StudyResult], go.Figure]] = {
    "pareto": draw_pareto,
    "layers": draw_layer_map,
    "sensitivity": draw_sensitivity,
    "agreement": draw_proxy_against_final,
    "gain": draw_gain,
    "progress": draw_progress,
    "curves": draw_learning_curves,
    "latency": draw_latency,
}


def draw_gallery(result: StudyResult) -> dict[str, go.Figure]:
    """Return every figure that has something to show by its name, in the order in which they are shown everywhere."""
    drawn = {name: draw(result) for name, draw in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure.data}
