"""Figures of the search itself: what each layer and pair costs, whether the proxy ranks, and how the frontier grew.

One function each, from the result to a Plotly figure; see ``figures`` for those of the models.
"""

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from seed.evidence import Sensitivity
from seed.reporting.figure_parts import (
    DEPTH_COLORS,
    GREY,
    choose_color,
    choose_symbol,
    draw_errors,
    draw_scale,
    finish_figure,
    make_tiles,
)
from seed.reporting.wording import list_dropped, name_proxy
from seed.results import StudyResult

LEAST_PERCENT = 0.1  # a logarithmic axis has no zero
# Blue: cheaper together than one by one; orange: dearer; little ink where it makes no difference.
PAIR_SCALE = ((0, "rgba(47,126,194,1)"), (0.5, "rgba(127,127,127,0.12)"), (1, "rgba(213,94,0,1)"))
SINGLE_MARKERS = (
    {"color": GREY, "symbol": "circle-open", "size": 9},
    {"color": DEPTH_COLORS[0], "symbol": "circle", "size": 9},
    {"color": DEPTH_COLORS[1], "symbol": "diamond", "size": 9},
)


def draw_sensitivity(result: StudyResult) -> go.Figure:
    """Draw what each layer costs alone, by proxy."""
    known = result.record.sensitivities[: len(SINGLE_MARKERS)]
    if not known:
        return go.Figure()
    figure = go.Figure(draw_spans(known))
    for one, marker in zip(known, SINGLE_MARKERS, strict=False):
        layers = [layer for layer, ratio in enumerate(one.singles) if ratio is not None]
        figure.add_scatter(
            x=layers,
            y=[_percent(one.singles[layer]) for layer in layers],
            customdata=[one.singles[layer] for layer in layers],
            mode="markers",
            name=name_proxy(one.proxy),
            marker=marker,
            hovertemplate="without layer %{x}: PPL ratio %{customdata:.3f}<extra>%{fullData.name}</extra>",
        )
    figure.update_yaxes(type="log", dtick=1, tickformat="~r", exponentformat="none")
    titles = {"x_title": "layer of the original model", "y_title": "PPL increase on validation text, %"}
    return _number_layers(finish_figure(figure, title="What each layer costs", **titles), result).update_layout(
        height=400
    )


def draw_pairs(result: StudyResult) -> go.Figure:
    """Draw how much dearer or cheaper pairs of layers are than one by one, by the proxy that scored the most.

    The colour is cut off where a few pairs would press all others into grey.
    """
    most = max(
        reversed(result.record.sensitivities), key=lambda one: len(one.pairs), default=None
    )  # with recovery, if level
    interactions = np.array([]) if most is None else measure_interactions(most)
    if most is None or not np.isfinite(interactions).any():
        return go.Figure()
    num_layers = len(most.singles)
    ratios = np.zeros((num_layers, num_layers))
    for one, other, ratio in most.pairs:
        ratios[one, other] = ratios[other, one] = round(ratio, 3)
    limit = float(np.nanquantile(np.abs(interactions), 0.9)) or 0.01
    tiles = make_tiles(
        [[None if math.isnan(value) else round(100 * value, 2) for value in row] for row in interactions.tolist()],
        PAIR_SCALE,
        customdata=ratios.tolist(),
        hovertemplate="without %{x} and %{y}: PPL ratio %{customdata:.3f},<br>%{z:+.1f} % beside one by one<extra></extra>",
        hoverongaps=False,
        zmin=-100 * limit,
        zmax=100 * limit,
        colorbar=draw_scale(ticksuffix=" %", nticks=5),
    )
    title = f"Pairs of layers, {name_proxy(most.proxy)}"
    figure = finish_figure(go.Figure(tiles), title=title, x_title="layer", y_title="other layer")
    figure.update_yaxes(showgrid=False, autorange="reversed").update_xaxes(showgrid=False)
    height = 150 + max(14, min(30, 600 // num_layers)) * num_layers
    return _number_layers(figure, result).update_layout(height=height, margin={"b": 90})


def _number_layers(figure: go.Figure, result: StudyResult) -> go.Figure:
    """Let the axis of layers tell about a dozen of them."""
    step = math.ceil(result.record.space.num_layers / 12)
    return figure.update_xaxes(tickmode="linear", tick0=0, dtick=step, tickangle=0)


def draw_spans(known: Sequence[Sensitivity]) -> go.Scatter:
    """Draw a line for each layer from the least of its costs to the most."""
    x: list[int | None] = []
    y: list[float | None] = []
    for layer, ratios in enumerate(zip(*(one.singles for one in known), strict=True)):
        costs = [cost for ratio in ratios if (cost := _percent(ratio)) is not None]
        if len(costs) > 1:
            x += [layer, layer, None]
            y += [min(costs), max(costs), None]
    line = {"color": GREY, "width": 1}
    return go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False)


def measure_interactions(sensitivity: Sensitivity) -> np.ndarray:
    """Return, of shape (num_layers, num_layers), how far a pair's PPL lies above what its layers cost one by one.

    A share of perplexity: 0.02 is 2 % above. Not a number where a score is missing, and on the diagonal.
    """
    num_layers = len(sensitivity.singles)
    found = np.full((num_layers, num_layers), np.nan)
    for one, other, ratio in sensitivity.pairs:
        first, second = sensitivity.singles[one], sensitivity.singles[other]
        if first is not None and second is not None and sensitivity.base is not None:
            found[one, other] = found[other, one] = ratio * sensitivity.base / (first * second) - 1
    return found


def draw_proxy_against_final(result: StudyResult) -> go.Figure:
    """Draw the PPL ratio after distillation against the proxy's, both on validation text."""
    figure = go.Figure()
    for depth in sorted({link.model.depth for link in result.links}):
        links = [link for link in result.links if link.model.depth == depth]
        figure.add_scatter(
            x=[link.proxy.quality.ppl_ratio for link in links],
            y=[link.validation.ppl_ratio for link in links],
            error_x=draw_errors([link.proxy.quality.ppl_ratio_standard_error for link in links]),
            error_y=draw_errors([link.validation.ppl_ratio_standard_error for link in links]),
            customdata=[[list_dropped(link.model.candidate)] for link in links],
            hovertemplate="dropped: %{customdata[0]}<br>proxy: %{x:.3f}<br>distilled: %{y:.3f}<extra></extra>",
            mode="markers",
            name=f"{depth} dropped",
            showlegend=True,
            marker={"color": choose_color(depth), "symbol": choose_symbol(depth), "size": 11},
        )
    return finish_figure(
        figure,
        title="Does the proxy rank as distillation does?",
        x_title=f"PPL ratio after {name_proxy(result.record.frontier.proxy)}",
        y_title="PPL ratio after distillation",
    ).update_layout(height=400)


def draw_progress(result: StudyResult) -> go.Figure:
    """Draw the hypervolume of the frontier over trials, in per cent of the last."""
    progress = result.record.progress
    if progress is None or not progress.steps:
        return go.Figure()
    last = progress.steps[-1][1]
    numbers = [0, *(number for number, _ in progress.steps), progress.num_trials - 1]
    shares = [0.0, *(100 * volume / last for _, volume in progress.steps), 100.0]
    figure = go.Figure(
        go.Scatter(
            x=numbers,
            y=[round(share, 3) for share in shares],
            mode="lines",
            line={"shape": "hv", "color": DEPTH_COLORS[0], "width": 2},
            hovertemplate="after trial %{x}: %{y:.1f} %<extra></extra>",
            showlegend=False,
        )
    )
    figure.update_yaxes(rangemode="tozero")
    titles = {"x_title": "trial", "y_title": "hypervolume, % of the last"}
    figure = finish_figure(figure, title="How the frontier grew", **titles)
    return figure.update_layout(height=320, margin={"b": 40})


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else max(LEAST_PERCENT, 100 * (ratio - 1))
