"""Figures of a study: one function each, from its result to a Plotly figure; those of the search are in ``search_figures``.

A figure with nothing to show has no traces.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from seed.reporting.figure_parts import (
    GREY,
    INK,
    TILE_SCALE,
    add_levels,
    choose_color,
    choose_symbol,
    draw_bars,
    draw_scale,
    finish_figure,
    make_tiles,
    stack_panels,
)
from seed.reporting.search_figures import draw_pairs, draw_progress, draw_proxy_against_final, draw_sensitivity
from seed.reporting.wording import format_count, format_latency_ratio, list_dropped, name_depth, name_drop
from seed.results import MARGINS, Link, Model, StudyResult, mark_dropped, read_latency_ratio

SHIPPED = "to ship"
MODEL_HOVER = (
    "%{customdata[0]} dropped: %{customdata[1]}<br>parameters: %{customdata[2]}<br>"
    "PPL ratio: %{customdata[3]:.3f} ± %{customdata[4]:.3f}<br>"
    "latency ratio: %{customdata[5]}<extra>%{fullData.name}</extra>"
)


def draw_pareto(result: StudyResult) -> go.Figure:
    """Draw PPL ratio against latency ratio, both to the dense model: all candidates, the frontier, the distilled, a star on one.

    Trials stand at their PPL ratio on validation text by the frontier's proxy, distilled models at that on test text.
    """
    trials, judged = result.scored, (*result.distilled, *result.width_baselines)
    ranks = [member.rank for member in result.record.frontier.members]
    best = [model for model, rank in zip(result.frontier, ranks, strict=True) if rank == 0]
    others = [model for model, rank in zip(result.frontier, ranks, strict=True) if rank > 0]
    # open, so that one does not hide another
    diamonds = {"symbol": "diamond-open", "size": 12, "line": {"width": 2}}
    diamonds |= {"color": [choose_color(model.depth) for model in result.distilled]}
    squares = {"symbol": "square", "size": 9, "color": GREY}
    dashes = {"color": GREY, "width": 1, "dash": "dash"}
    # short strokes: those of one structure stand above one another, and points would run together
    strokes = {"symbol": "line-ew-open", "size": 9, "opacity": 0.6}
    rings = {"size": 10, "symbol": "circle-open"}
    traces = (
        draw_scored(trials, name="scored, validation text", marker=strokes),
        draw_links(result.links),
        draw_scored(others, name="runners-up, validation text", marker=rings),
        draw_scored(best, name="frontier by the proxy, validation text", marker={"size": 12}),
        draw_front(result.distilled),
        draw_judged(result.distilled, name="distilled, test text", marker=diamonds),
        draw_judged(result.width_baselines, name="uniform width, distilled, test text", marker=squares, line=dashes),
        draw_dense(),
        draw_shipped(result),
    )
    figure = go.Figure([trace for trace in traces if trace.x])
    low, top = choose_range(result)
    pad, limit = 0.04 * (top - low), result.record.plan.max_ppl_ratio
    if limit is not None and limit <= top:
        figure.add_hline(y=limit, line={"color": GREY, "width": 1, "dash": "dot"})
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
        x_title="latency ratio (smaller is faster)",
        y_title="PPL ratio (smaller is better)",
        num_above=sum(model.quality.ppl_ratio > top + pad for model in trials),
        is_limited=limit is not None and limit <= top,
    ).update_layout(height=560)


def choose_range(result: StudyResult) -> tuple[float, float]:
    """Return the ends of the drawn PPL ratios: all models of the frontier or judged, most others, but no far-off outliers."""
    ratios = [model.quality.ppl_ratio for model in result.scored]
    must = [1.0, *(model.quality.ppl_ratio for model in result.frontier)]
    for model in (*result.distilled, *result.width_baselines):
        ends = (model.ppl_ratio.value, model.ppl_ratio.low, model.ppl_ratio.high)
        must += [end for end in ends if end is not None]
    top = max(must)
    if not ratios:
        return min(must), top + 0.01
    near = min(float(np.quantile(ratios, 0.9)), 1 + 1.6 * (top - 1)) if top > 1 else max(ratios)
    return min(*must, *ratios), max(top, near)


def draw_scored(models: Sequence[Model], *, name: str, marker: Mapping[str, object]) -> go.Scatter:
    """Draw candidates as the proxy sees them as points, coloured by depth."""
    return go.Scatter(
        x=[round(model.latency.ratio, 5) for model in models],
        y=[round(model.quality.ppl_ratio, 5) for model in models],
        customdata=list(map(describe_point, models)),
        hovertemplate=MODEL_HOVER,
        mode="markers",
        name=name,
        marker={**marker, "color": [choose_color(model.depth) for model in models]},
    )


def draw_judged(
    models: Sequence[Model], *, name: str, marker: Mapping[str, object], line: Mapping[str, object] | None = None
) -> go.Scatter:
    """Draw models at their PPL ratio on test text, with the 95 % intervals of it and of the latency."""
    return go.Scatter(
        x=[model.latency.ratio for model in models],
        y=[model.ppl_ratio.value for model in models],
        error_x=draw_bars([read_latency_ratio(model.latency) for model in models]),
        error_y=draw_bars([model.ppl_ratio for model in models]),
        customdata=list(map(describe_point, models)),
        hovertemplate=MODEL_HOVER,
        mode="lines+markers" if line else "markers",
        name=name,
        line=line,
        marker=marker,
    )


def describe_point(model: Model) -> list[str | float]:
    """Return what ``MODEL_HOVER`` shows."""
    # Four decimals: a page may hold thousands of these.
    rounded = (round(ratio, 4) for ratio in (model.quality.ppl_ratio, model.quality.ppl_ratio_standard_error))
    layers, size = list_dropped(model.candidate), format_count(model.size.num_params)
    return [model.depth, layers, size, *rounded, format_latency_ratio(model.latency)]


def draw_dense() -> go.Scatter:
    """Draw the dense model."""
    marker = {"color": GREY, "size": 12, "symbol": "x"}
    return go.Scatter(x=[1.0], y=[1.0], mode="markers", name="dense model", hoverinfo="name", marker=marker)


def draw_shipped(result: StudyResult) -> go.Scatter:
    """Draw a star on the model to ship."""
    models = [result.shipped] if result.shipped else []
    return go.Scatter(
        x=[model.latency.ratio for model in models],
        y=[model.ppl_ratio.value for model in models],
        mode="markers",
        name=SHIPPED,
        hoverinfo="skip",
        marker={"symbol": "star", "size": 19, "color": "#f5b800", "line": {"color": INK, "width": 1}},
    )


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
    points = [(1.0, 1.0)] * bool(models) + [
        (model.latency.ratio, model.ppl_ratio.value or math.inf) for model in models
    ]
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
    ratios: dict[float, list[float]] = {}
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
    num_layers, chosen = record.space.num_layers, {model.key for model in result.best}
    ranks = [
        f"{name_drop(model.depth)}{' ★' if model.key in chosen else ''}{' ' * place}"  # a label for each row
        for place, model in enumerate(result.frontier)
    ]
    shares = [f"{name_drop(row.depth)} ({row.num_best} of {row.num_scored})" for row in depths]
    panels = [
        ("<b>Frontier</b>", ranks, [mark_dropped(model.candidate) for model in result.frontier]),
        ("<b>Best of each depth</b>", shares, [list(row.shares) for row in depths]),
    ]
    panels = [panel for panel in panels if panel[1]]
    heights = [26 * len(labels) for _, labels, _ in panels]
    figure = stack_panels([title for title, _, _ in panels], heights, gap_px=58, shared_xaxes=True)
    for index, (_, labels, values) in enumerate(panels, start=1):
        is_shares = labels is shares
        tiles = make_tiles(
            values,
            TILE_SCALE,
            customdata=[[describe_tile(value, is_share=is_shares) for value in row] for row in values],
            hovertemplate="layer %{x}: %{customdata}<extra></extra>",
            zmin=0,
            zmax=1,
            showscale=is_shares,
            colorbar=draw_scale(tickvals=[0, 0.5, 1], ticktext=["never", "half", "always"]),
        )
        figure.add_trace(tiles, row=index, col=1)
        figure.update_yaxes(tickvals=list(range(len(labels))), ticktext=labels, row=index, col=1)
    step = math.ceil(num_layers / 12)
    figure.update_xaxes(tickmode="linear", tick0=0, dtick=step, tickangle=0, tickfont={"size": 11}, showgrid=False)
    figure.update_xaxes(showticklabels=True).update_yaxes(autorange="reversed", showgrid=False)
    figure = finish_figure(figure, title="Which layers go")
    figure.update_xaxes(title="layer of the original model", row=len(panels))
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    return figure.update_layout(height=200 + sum(heights), margin={"t": 40})


def describe_tile(value: float, *, is_share: bool) -> str:
    """Return what a tile of the layer map says where the pointer rests."""
    return f"dropped by {100 * value:.0f} %" if is_share else "dropped" if value else "kept"


def draw_learning_curves(result: StudyResult) -> go.Figure:
    """Draw the validation loss, in nats per token, over distillation tokens, step 0 included."""
    figure, shown = go.Figure(), [one for one in result.record.distilled if one.curve]
    depths = [one.candidate.num_dropped for one in shown]
    for index, (one, depth) in enumerate(zip(shown, depths, strict=True)):
        color, dash = choose_color(depth), ("solid", "dash", "dot", "dashdot")[depths[:index].count(depth) % 4]
        name = f"{name_depth(one.candidate)} without {list_dropped(one.candidate)}"
        sizes = [11 if point.step == one.best_step else 4 for point in one.curve]
        figure.add_scatter(
            x=[point.tokens for point in one.curve],
            y=[point.validation_loss for point in one.curve],
            customdata=[[point.step] for point in one.curve],
            mode="lines+markers",
            name=name,
            marker={"color": color, "symbol": choose_symbol(depth), "size": sizes, "opacity": 1, "line": {"width": 0}},
            line={"color": color, "width": 2, "dash": dash},
            hovertemplate=f"step %{{customdata[0]}}, %{{x:.3s}} tokens<br>validation loss %{{y:.4f}}<extra>{name}</extra>",
        )
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
    )


FIGURES: Mapping[str, Callable[[StudyResult], go.Figure]] = {
    "pareto": draw_pareto,
    "layers": draw_layer_map,
    "sensitivity": draw_sensitivity,
    "pairs": draw_pairs,
    "agreement": draw_proxy_against_final,
    "progress": draw_progress,
    "curves": draw_learning_curves,
}


def draw_gallery(result: StudyResult) -> dict[str, go.Figure]:
    """Return every figure that has something to show by its name, in the order in which they are shown everywhere."""
    drawn = {name: draw(result) for name, draw in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure.data}
