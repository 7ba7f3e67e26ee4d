"""Figures of a study: one function each, from its result to a Plotly figure. One with nothing to show has no traces."""

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from seed.reporting.figure_parts import (
    DEPTH_COLORS,
    GREY,
    INK,
    Dot,
    add_levels,
    choose_color,
    choose_symbol,
    draw_bars,
    draw_dots,
    find_limit,
    finish_figure,
)
from seed.reporting.result_text import name_model
from seed.reporting.wording import (
    format_bytes,
    format_count,
    format_latency_ratio,
    list_dropped,
    name_bits,
    name_drop,
    name_proxy,
)
from seed.results import (
    MARGINS,
    Link,
    Model,
    StudyResult,
    choose_metrics,
    mark_dropped,
    read_difference,
    read_interval,
    read_latency_ratio,
)

SHIPPED = "to ship"
MODEL_HOVER = (
    "%{customdata[0]} dropped: %{customdata[1]}<br>parameters: %{customdata[2]}<br>"
    "PPL ratio: %{customdata[3]:.3f} ± %{customdata[4]:.3f}<br>"
    "latency ratio: %{customdata[5]}<extra>%{fullData.name}</extra>"
)
# Never is grey; from rarely to always the orange deepens, without the mud between grey and orange.
TILE_SCALE = [[0, "rgba(127,127,127,0.16)"], [0.001, "rgba(213,94,0,0.15)"], [1, "rgba(213,94,0,1)"]]
LEAST_PERCENT = 0.1  # a logarithmic axis has no zero
SINGLE_MARKERS = (
    {"color": GREY, "symbol": "circle-open", "size": 9},
    {"color": DEPTH_COLORS[0], "symbol": "circle", "size": 9},
    {"color": DEPTH_COLORS[1], "symbol": "diamond", "size": 9},
)


# ---- the Pareto plot


def draw_pareto(result: StudyResult) -> go.Figure:
    """Draw PPL ratio against latency ratio, both to the dense model: all candidates, the frontier, the distilled, a star on one.

    Trials stand at their PPL ratio on validation text by the frontier's proxy, distilled models at that on test text.
    """
    trials, judged = result.scored, (*result.distilled, *result.width_baselines)
    ranks = [member.rank for member in result.record.frontier.members]
    best = [model for model, rank in zip(result.frontier, ranks, strict=True) if rank == 0]
    others = [model for model, rank in zip(result.frontier, ranks, strict=True) if rank > 0]
    traces = (
        # short strokes: those of one structure stand above one another, and points would run together
        draw_models(trials, name="scored, validation text", symbol="line-ew-open", size=9, opacity=0.6),
        draw_links(result.links),
        draw_models(others, name="runners-up, validation text", symbol="circle-open", size=10),
        draw_models(best, name="frontier by the proxy, validation text", size=12),
        draw_front(result.distilled),
        # open, so that one does not hide another
        draw_models(result.distilled, name="distilled, test text", bars=True, symbol="diamond-open", size=12),
        draw_models(
            result.width_baselines, name="uniform width, distilled, test text", bars=True, symbol="square", color=GREY
        ),
        draw_dense(),
        draw_shipped(result),
    )
    figure = go.Figure([trace for trace in traces if trace.x])
    low, top = choose_range(result)
    if (limit := result.record.plan.max_ppl_ratio) is not None and limit <= top:
        figure.add_hline(y=limit, line={"color": GREY, "width": 1, "dash": "dot"})
    add_levels(figure, MARGINS, top=top)
    annotate_depths(figure, [*trials, *best])
    figure.update_yaxes(range=[low - 0.04 * (top - low), top + 0.04 * (top - low)])
    # By the points alone: one interval that noise made wide would press all of them together.
    ratios = [1.0, *(model.latency.ratio for model in (*trials, *result.frontier, *judged))]
    room = 0.08 * (max(ratios) - min(ratios)) or 0.01
    figure.update_xaxes(range=[min(ratios) - room, max(ratios) + room])
    return finish_figure(
        figure,
        title="Perplexity against latency",
        x_title="latency ratio (smaller is faster)",
        y_title="PPL ratio (smaller is better)",
        height=560,
    )


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


def draw_models(models: Sequence[Model], *, name: str, bars: bool = False, **marker: object) -> go.Scatter:
    """Draw models as points, coloured by depth unless ``marker`` says otherwise; with the 95 % intervals of both ratios if ``bars``."""
    errors: dict[str, object] = {}
    if bars:
        speeds, losses = [read_latency_ratio(model.latency) for model in models], [model.ppl_ratio for model in models]
        errors = {"error_x": draw_bars(speeds), "error_y": draw_bars(losses)}
    return go.Scatter(
        x=[round(model.latency.ratio, 5) for model in models],
        y=[model.ppl_ratio.value and round(model.ppl_ratio.value, 5) for model in models],
        customdata=list(map(describe_point, models)),
        hovertemplate=MODEL_HOVER,
        mode="markers",
        name=name,
        marker={"color": [choose_color(model.depth) for model in models], **marker},
        **errors,
    )


def describe_point(model: Model) -> list[str | float]:
    """Return what ``MODEL_HOVER`` shows."""
    # Four decimals: a page may hold thousands of these.
    rounded = (round(ratio, 4) for ratio in (model.quality.ppl_ratio, model.quality.ppl_ratio_standard_error))
    layers, size = list_dropped(model.candidate), format_count(model.size.num_params)
    return [model.depth, layers, size, *rounded, format_latency_ratio(model.latency)]


def draw_dense() -> go.Scatter:
    """Draw the dense model, which all ratios are to."""
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
    x = [x for link in links for x in (link.proxy.latency.ratio, link.model.latency.ratio, None)]
    y = [y for link in links for y in (link.proxy.quality.ppl_ratio, link.model.ppl_ratio.value, None)]
    return draw_line(x, y, name="proxy to distilled", width=1)


def draw_front(models: Sequence[Model]) -> go.Scatter:
    """Draw the line from the dense model through the distilled models that no other beats on both axes."""
    points = [(1.0, 1.0)] * bool(models) + [
        (model.latency.ratio, model.ppl_ratio.value or math.inf) for model in models
    ]
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):  # the fastest first
        if not front or y < front[-1][1]:
            front.append((x, y))
    return draw_line([x for x, _ in front], [y for _, y in front], name="frontier, distilled", width=1.5)


def draw_line(x: Sequence[float | None], y: Sequence[float | None], *, name: str, width: float) -> go.Scatter:
    """Draw a grey line that says nothing where the pointer rests."""
    line = {"color": GREY, "width": width}
    return go.Scatter(x=x, y=y, mode="lines", name=name, hoverinfo="skip", line=line, showlegend=False)


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


# ---- layers


def draw_layer_map(result: StudyResult) -> go.Figure:
    """Draw which layers each frontier member drops; below, how often the best candidates of each depth drop each layer."""
    chosen = {model.key for model in result.best}
    above = {
        f"{name_drop(model.depth)}{' ★' if model.key in chosen else ''}{' ' * place}": mark_dropped(model.candidate)
        for place, model in enumerate(result.frontier)  # a label for each row
    }
    below = {f"{name_drop(row.depth)} ({row.num_best} of {row.num_scored})": row.shares for row in result.drops}
    if not above and not below:
        return go.Figure()
    num_layers = max(map(len, [*above.values(), *below.values()]))
    gap = {"": [None] * num_layers} if above and below else {}
    rows = {**above, **gap, **below}
    tiles = go.Heatmap(
        z=list(rows.values()),
        x=list(range(num_layers)),
        y=list(range(len(rows))),
        xgap=2,
        ygap=2,
        colorscale=TILE_SCALE,
        hovertemplate="layer %{x} dropped: %{z:.0%}<extra></extra>",
        zmin=0,
        zmax=1,
        showscale=False,
    )
    figure = finish_figure(
        go.Figure(tiles),
        title="Which layers go",
        x_title="layer of the original model",
        height=140 + 26 * len(rows),
    )
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=list(rows), autorange="reversed", showgrid=False)
    return number_layers(figure, result).update_xaxes(showgrid=False)


def draw_sensitivity(result: StudyResult) -> go.Figure:
    """Draw what each layer costs alone, by proxy."""
    figure = go.Figure()
    for one, marker in zip(result.record.sensitivities, SINGLE_MARKERS, strict=False):
        known = [(layer, ratio) for layer, ratio in enumerate(one.singles) if ratio is not None]
        figure.add_scatter(
            x=[layer for layer, _ in known],
            y=[max(LEAST_PERCENT, 100 * (ratio - 1)) for _, ratio in known],
            customdata=[ratio for _, ratio in known],
            mode="markers",
            name=name_proxy(one.proxy),
            marker=marker,
            hovertemplate="without layer %{x}: PPL ratio %{customdata:.3f}<extra>%{fullData.name}</extra>",
        )
    figure.update_yaxes(type="log", dtick=1, tickformat="~r", exponentformat="none")
    finish_figure(
        figure,
        title="What each layer costs",
        x_title="layer of the original model",
        y_title="PPL increase on validation text, %",
        height=400,
    )
    return number_layers(figure, result)


def number_layers(figure: go.Figure, result: StudyResult) -> go.Figure:
    """Let the axis of layers tell about a dozen of them."""
    step = math.ceil(result.record.space.num_layers / 12)
    return figure.update_xaxes(tickmode="linear", tick0=0, dtick=step, tickangle=0)


# ---- the proxy


def draw_proxy_against_final(result: StudyResult) -> go.Figure:
    """Draw the PPL ratio after distillation against the proxy's, both on validation text."""
    figure = go.Figure()
    for depth in sorted({link.model.depth for link in result.links}):
        links = [link for link in result.links if link.model.depth == depth]
        figure.add_scatter(
            x=[link.proxy.quality.ppl_ratio for link in links],
            y=[link.validation.ppl_ratio for link in links],
            error_x=draw_bars([link.proxy.ppl_ratio for link in links]),
            error_y=draw_bars([read_interval(link.validation) for link in links]),
            customdata=[[list_dropped(link.model.candidate)] for link in links],
            hovertemplate="dropped: %{customdata[0]}<br>proxy: %{x:.3f}<br>distilled: %{y:.3f}<extra></extra>",
            mode="markers",
            name=f"{depth:g} dropped",
            showlegend=True,
            marker={"color": choose_color(depth), "symbol": choose_symbol(depth), "size": 11},
        )
    return finish_figure(
        figure,
        title="Does the proxy rank as distillation does?",
        x_title=f"PPL ratio after {name_proxy(result.record.frontier.proxy)}",
        y_title="PPL ratio after distillation",
        height=400,
    )


# ---- bits


def draw_sizes(result: StudyResult) -> go.Figure:
    """Draw PPL ratio against the bytes of the weights, of the dense model and the distilled ones, as they are and in fewer bits."""
    figure = go.Figure()
    best = [one for one in result.stored if one.is_best]
    if result.stored:
        figure.add_trace(
            draw_line(
                [one.weight_bytes for one in best], [one.ppl_ratio.value for one in best], name="smallest", width=1.5
            )
        )
    for place, bits in enumerate(dict.fromkeys(one.bits for one in result.stored)):
        found = [one for one in result.stored if one.bits == bits]
        names = ["dense" if one.model is None else name_drop(one.model.depth) for one in found]
        layers = [
            "all layers" if one.model is None else f"without {list_dropped(one.model.candidate)}" for one in found
        ]
        sizes = [format_bytes(one.weight_bytes) for one in found]
        figure.add_scatter(
            x=[one.weight_bytes for one in found],
            y=[one.ppl_ratio.value for one in found],
            error_y=draw_bars([one.ppl_ratio for one in found]),
            text=names,
            textposition="top right",
            customdata=list(zip(layers, sizes, strict=True)),
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}, PPL ratio %{y:.3f}<extra>%{fullData.name}</extra>",
            mode="markers+text",
            name=name_bits(bits),
            marker={"color": choose_color(place + 1), "symbol": choose_symbol(place + 1), "size": 11},
        )
    ratios = [one.ppl_ratio.value for one in result.stored if one.ppl_ratio.value is not None]
    top = find_limit(ratios)
    add_levels(figure, MARGINS, top=top)
    figure.update_yaxes(range=[min(ratios, default=1.0) - 0.05 * (top - 1), top + 0.1 * (top - 1)])
    figure.update_xaxes(tickformat="~s", ticksuffix="B")
    return finish_figure(
        figure,
        title="Fewer layers, fewer bits",
        x_title="weights (smaller is better)",
        y_title="PPL ratio on test text",
        height=460,
    )


# ---- tasks


def draw_tasks(result: StudyResult) -> go.Figure:
    """Draw for each task how the distilled models' scores lie to the dense model's."""
    panels: dict[str, list[Dot]] = {}
    for model in result.distilled:
        for score in choose_metrics(model.tasks):
            dot = Dot(row=name_model(model), estimate=read_difference(score), color=choose_color(model.depth))
            panels.setdefault(f"{score.task}, {score.metric}", []).append(dot)
    return draw_dots(panels, title="Tasks", x_title="score less the dense model's", lines=[0.0])


def draw_gallery(result: StudyResult) -> dict[str, go.Figure]:
    """Return every figure that has something to show by its name, in the order in which they are shown everywhere."""
    drawn = {
        "pareto": draw_pareto(result),
        "layers": draw_layer_map(result),
        "sensitivity": draw_sensitivity(result),
        "agreement": draw_proxy_against_final(result),
        "sizes": draw_sizes(result),
        "tasks": draw_tasks(result),
    }
    return {name: figure for name, figure in drawn.items() if figure.data}
