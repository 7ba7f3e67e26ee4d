"""Figures of the search itself: what each layer and pair costs, how the frontier grew, and what simpler ways would have chosen.

One function each, from the result to a Plotly figure; see ``figures`` for those of the models.
"""

import math

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from seed.evidence import Sensitivity
from seed.reporting.marks import DEPTH_COLORS, GREY, draw_errors, draw_scale, finish_figure
from seed.reporting.wording import format_number, list_layers, name_drop, name_rung
from seed.results import StudyResult, read_reach

LEAST_PERCENT = 0.1  # a logarithmic axis has no zero
# Blue: cheaper together than one by one; orange: dearer; little ink where it makes no difference.
PAIR_SCALE = ((0, "rgba(47,126,194,1)"), (0.5, "rgba(127,127,127,0.12)"), (1, "rgba(213,94,0,1)"))
SINGLE_MARKS = (
    {"color": GREY, "symbol": "circle-open", "size": 9},
    {"color": DEPTH_COLORS[0], "symbol": "circle", "size": 9},
    {"color": DEPTH_COLORS[1], "symbol": "diamond", "size": 9},
)


def draw_sensitivity(result: StudyResult) -> go.Figure:
    """Draw what each layer costs alone, by proxy, and below it how much dearer or cheaper pairs are than their parts."""
    known = result.record.sensitivities[: len(SINGLE_MARKS)]
    if not known:
        return go.Figure()
    most = max(known, key=lambda one: len(one.pairs))
    interactions = measure_interactions(most)
    has_pairs = bool(np.isfinite(interactions).any())
    num_layers = result.record.space.num_layers
    tile_px = max(14, min(30, 600 // num_layers))
    heights = [230, tile_px * num_layers] if has_pairs else [230]
    figure = make_subplots(
        rows=len(heights),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=60 / (sum(heights) + 60) if has_pairs else 0,
        row_heights=heights,
        subplot_titles=["<b>One layer alone</b>", "<b>Two layers, beside one by one</b>"][: len(heights)],
    )
    for layer in range(num_layers):
        costs = [_percent(one.singles[layer]) for one in known]
        ends = [cost for cost in costs if cost is not None]
        if len(ends) > 1:
            figure.add_trace(
                go.Scatter(
                    x=[layer, layer],
                    y=[min(ends), max(ends)],
                    mode="lines",
                    line={"color": GREY, "width": 1},
                    hoverinfo="skip",
                    showlegend=False,
                ),
                row=1,
                col=1,
            )
    for one, marker in zip(known, SINGLE_MARKS, strict=False):
        layers = [layer for layer, ratio in enumerate(one.singles) if ratio is not None]
        figure.add_trace(
            go.Scatter(
                x=layers,
                y=[_percent(one.singles[layer]) for layer in layers],
                customdata=[one.singles[layer] for layer in layers],
                mode="markers",
                name=name_rung(one.proxy),
                marker=marker,
                hovertemplate="without layer %{x}: PPL ratio %{customdata:.3f}<extra>%{fullData.name}</extra>",
            ),
            row=1,
            col=1,
        )
    figure.update_yaxes(
        type="log", title="PPL increase, %", row=1, col=1, dtick=1, tickformat="~r", exponentformat="none"
    )
    if has_pairs:
        _add_pairs(figure, most, interactions)
    figure.update_xaxes(tickmode="linear", tick0=0, dtick=math.ceil(num_layers / 12), tickangle=0, showticklabels=True)
    sentences = [
        "Above: how much perplexity on validation text rises without a layer, on a logarithmic scale that begins at 0.1 %, before and after "
        "recovery.",
        f"Below: perplexity without two layers beside what the two cost one by one, after {name_rung(most.proxy)}. Orange pairs are "
        "dearer together than apart, so they should not both go; blue pairs are cheaper."
        if has_pairs
        else "",
        "Pairs that were not scored are blank." if has_pairs and np.isnan(interactions).sum() > num_layers else "",
    ]
    figure = finish_figure(
        figure, title="What each layer costs", caption=" ".join(filter(None, sentences)), x_title="", y_title=""
    )
    figure.update_yaxes(title="PPL increase, %", row=1, col=1)
    figure.update_xaxes(title="layer of the original model", row=len(heights), col=1)
    if has_pairs:
        figure.update_xaxes(showgrid=False, row=2, col=1)
        figure.update_yaxes(title="other layer", showgrid=False, autorange="reversed", row=2, col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    legend = {"yref": "paper", "y": 1, "yanchor": "top", "x": 0.5, "xanchor": "center", "bgcolor": "rgba(0,0,0,0)"}
    return figure.update_layout(height=sum(heights) + 60 * len(heights) + 110, margin={"t": 40, "b": 90}, legend=legend)


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
    is_enumerated = result.record.frontier.num_scored >= result.record.frontier.space_size
    ratio, latency = progress.reference
    caption = (
        "Hypervolume: the area of PPL ratio and latency ratio that the candidates scored so far dominate, up to the corner of PPL "
        f"ratio {format_number(ratio, places=2)} and latency ratio {latency:g}. "
        + (
            "Every candidate was scored, in an order that shares work, so the curve says nothing of how soon a search finds them."
            if is_enumerated
            else "A curve that has long been flat says that more trials would hardly have helped."
        )
    )
    figure.update_yaxes(rangemode="tozero")
    return finish_figure(
        figure, title="How the frontier grew", caption=caption, x_title="trial", y_title="hypervolume, % of the last"
    ).update_layout(height=320, margin={"b": 40})


def draw_gain(result: StudyResult) -> go.Figure:
    """Draw how far what simpler ways would have chosen lies above the search's best of each depth."""
    figure = go.Figure()
    if result.record.gain is None:
        return figure
    reach = read_reach(result.record.dense.validation) or 0.0
    for index, baseline in enumerate(result.record.gain.baselines):
        picks = [pick for pick in baseline.picks if pick.ppl_ratio is not None]
        if not picks:
            continue
        marker = SINGLE_MARKS[1 + index % 2]
        figure.add_trace(
            go.Scatter(
                x=[name_drop(len(pick.candidate.dropped_layers)) for pick in picks],
                y=[100 * ((pick.ppl_ratio or 1.0) - 1) for pick in picks],
                error_y={
                    **draw_errors([100 * reach * (pick.standard_error or 0.0) for pick in picks]),
                    "color": marker["color"],
                },
                customdata=[
                    [list_layers(pick.candidate.dropped_layers), list_layers(pick.best.dropped_layers)]
                    for pick in picks
                ],
                mode="markers",
                name=baseline.title,
                marker=marker,
                showlegend=True,
                hovertemplate="drops %{customdata[0]}; the search %{customdata[1]}<br>PPL %{y:+.1f} %<extra>%{fullData.name}</extra>",
            )
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
        caption="PPL of each way's choice above that of the search's best of the same depth, with 95 % intervals.",
        x_title="layers dropped",
        y_title="PPL above the search's best, %",
    ).update_layout(height=340)


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else max(LEAST_PERCENT, 100 * (ratio - 1))


def _add_pairs(figure: go.Figure, sensitivity: Sensitivity, interactions: np.ndarray) -> None:
    """Add a tile for each pair; its colour is cut off where a few pairs would press all others into grey."""
    num_layers = len(sensitivity.singles)
    ratios = {pair: ratio for one, other, ratio in sensitivity.pairs for pair in ((one, other), (other, one))}
    limit = float(np.nanquantile(np.abs(interactions), 0.9)) or 0.01
    figure.add_trace(
        go.Heatmap(
            z=[
                [None if math.isnan(value) else round(100 * value, 2) for value in row] for row in interactions.tolist()
            ],
            x=list(range(num_layers)),
            y=list(range(num_layers)),
            customdata=[
                [round(ratios.get((one, other), 0), 3) for one in range(num_layers)] for other in range(num_layers)
            ],
            hovertemplate="without %{x} and %{y}: PPL ratio %{customdata:.3f},<br>%{z:+.1f} % beside one by one<extra></extra>",
            hoverongaps=False,
            zmin=-100 * limit,
            zmax=100 * limit,
            xgap=2,
            ygap=2,
            colorscale=[list(stop) for stop in PAIR_SCALE],
            colorbar=draw_scale(ticksuffix=" %", nticks=5),
        ),
        row=2,
        col=1,
    )
