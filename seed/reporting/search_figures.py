"""Figures of the search itself: what each layer and pair costs, how the frontier grew, and what simpler ways would have chosen.

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
    stack_panels,
)
from seed.reporting.wording import list_layers, name_drop, name_proxy
from seed.results import StudyResult
from seed.stats import reach_over_documents

LEAST_PERCENT = 0.1  # a logarithmic axis has no zero
# Blue: cheaper together than one by one; orange: dearer; little ink where it makes no difference.
PAIR_SCALE = ((0, "rgba(47,126,194,1)"), (0.5, "rgba(127,127,127,0.12)"), (1, "rgba(213,94,0,1)"))
SINGLE_MARKERS = (
    {"color": GREY, "symbol": "circle-open", "size": 9},
    {"color": DEPTH_COLORS[0], "symbol": "circle", "size": 9},
    {"color": DEPTH_COLORS[1], "symbol": "diamond", "size": 9},
)


def draw_sensitivity(result: StudyResult) -> go.Figure:
    """Draw what each layer costs alone, by proxy, and below it how much dearer or cheaper pairs are than their parts."""
    known = result.record.sensitivities[: len(SINGLE_MARKERS)]
    if not known:
        return go.Figure()
    most = max(known, key=lambda one: len(one.pairs))
    interactions = measure_interactions(most)
    has_pairs = bool(np.isfinite(interactions).any())
    num_layers = result.record.space.num_layers
    tile_px = max(14, min(30, 600 // num_layers))
    heights = [230, tile_px * num_layers] if has_pairs else [230]
    titles = ["<b>One layer alone</b>", "<b>Two layers, beside one by one</b>"][: len(heights)]
    figure = stack_panels(titles, heights, gap_px=60, shared_xaxes=True)
    figure.add_trace(draw_spans(known), row=1, col=1)
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
            row=1,
            col=1,
        )
    figure.update_yaxes(type="log", row=1, col=1, dtick=1, tickformat="~r", exponentformat="none")
    if has_pairs:
        figure.add_trace(draw_pairs(most, interactions), row=2, col=1)
    figure.update_xaxes(tickmode="linear", tick0=0, dtick=math.ceil(num_layers / 12), tickangle=0, showticklabels=True)
    has_blanks = has_pairs and bool(np.isnan(interactions).sum() > num_layers)
    pairs_after = most.proxy if has_pairs else None
    figure = finish_figure(figure, title="What each layer costs", pairs_after=pairs_after, has_blanks=has_blanks)
    figure.update_yaxes(title="PPL increase, %", row=1, col=1)
    figure.update_xaxes(title="layer of the original model", row=len(heights), col=1)
    if has_pairs:
        figure.update_xaxes(showgrid=False, row=2, col=1)
        figure.update_yaxes(title="other layer", showgrid=False, autorange="reversed", row=2, col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    legend = {"yref": "paper", "y": 1, "yanchor": "top", "x": 0.5, "xanchor": "center", "bgcolor": "rgba(0,0,0,0)"}
    return figure.update_layout(height=sum(heights) + 60 * len(heights) + 110, margin={"t": 40, "b": 90}, legend=legend)


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


def draw_pairs(sensitivity: Sensitivity, interactions: np.ndarray) -> go.Heatmap:
    """Draw a tile for each pair; its colour is cut off where a few pairs would press all others into grey."""
    num_layers = len(sensitivity.singles)
    ratios = np.zeros((num_layers, num_layers))
    for one, other, ratio in sensitivity.pairs:
        ratios[one, other] = ratios[other, one] = round(ratio, 3)
    limit = float(np.nanquantile(np.abs(interactions), 0.9)) or 0.01
    return make_tiles(
        [[None if math.isnan(value) else round(100 * value, 2) for value in row] for row in interactions.tolist()],
        PAIR_SCALE,
        customdata=ratios.tolist(),
        hovertemplate="without %{x} and %{y}: PPL ratio %{customdata:.3f},<br>%{z:+.1f} % beside one by one<extra></extra>",
        hoverongaps=False,
        zmin=-100 * limit,
        zmax=100 * limit,
        colorbar=draw_scale(ticksuffix=" %", nticks=5),
    )


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
            customdata=[[list_layers(link.model.candidate.dropped_layers)] for link in links],
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
    )


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


def draw_gain(result: StudyResult) -> go.Figure:
    """Draw how far what simpler ways would have chosen lies above the search's best of each depth."""
    figure = go.Figure()
    if result.record.gain is None:
        return figure
    reach = reach_over_documents(result.record.dense.validation.effective_documents) or 0.0
    for index, baseline in enumerate(result.record.gain.baselines):
        picks = [pick for pick in baseline.picks if pick.ppl_ratio is not None]
        if not picks:
            continue
        marker = SINGLE_MARKERS[1 + index % 2]
        figure.add_scatter(
            x=[name_drop(len(pick.candidate.dropped_layers)) for pick in picks],
            y=[100 * ((pick.ppl_ratio or 1.0) - 1) for pick in picks],
            error_y=draw_errors(
                [100 * reach * (pick.standard_error or 0.0) for pick in picks], color=str(marker["color"])
            ),
            customdata=[[list_layers(one.dropped_layers) for one in (pick.candidate, pick.best)] for pick in picks],
            mode="markers",
            name=baseline.title,
            marker=marker,
            showlegend=True,
            hovertemplate="drops %{customdata[0]}; the search %{customdata[1]}<br>PPL %{y:+.1f} %<extra>%{fullData.name}</extra>",
        )
    if not figure.data:
        return figure
    figure.add_hline(
        y=0,
        line={"color": GREY, "width": 1, "dash": "dash"},
        annotation={"text": "the search", "xanchor": "right"},
        annotation_position="bottom right",
    )
    figure.update_xaxes(type="category")
    return finish_figure(
        figure,
        title="What the search added",
        x_title="layers dropped",
        y_title="PPL above the search's best, %",
    ).update_layout(height=340)


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else max(LEAST_PERCENT, 100 * (ratio - 1))
