"""The marks that figures are made of: palette, points with their hover texts, tiles, and the frame around them.

Dark ink on white paper, so that a figure can be read wherever it is shown; a page with other paper recolours ink and
rules by style sheet.
"""

import html
import textwrap
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from seed.records import Estimate, Latency
from seed.reporting.wording import format_count, format_latency_ratio, list_layers
from seed.results import Model, read_latency_ratio

# After Okabe and Ito (https://jfly.uni-koeln.de/color/), shifted so that each keeps a contrast of about 3 both to white
# and to near-black paper; symbols repeat the distinction for those who see no colour.
DEPTH_COLORS = ("#2f7ec2", "#d55e00", "#009e73", "#b8569a", "#b08300", "#2a9fd6")
DEPTH_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down")
GREY = "#7f7f7f"
# Never is grey; from rarely to always the orange deepens, without the mud between grey and orange.
TILE_SCALE = ((0, "rgba(127,127,127,0.16)"), (0.001, "rgba(213,94,0,0.15)"), (1, "rgba(213,94,0,1)"))
INK = "#1d2329"
RULE = "#e2e5e9"
MODEL_HOVER = (
    "%{customdata[0]} dropped: %{customdata[1]}<br>parameters: %{customdata[2]}<br>"
    "PPL ratio: %{customdata[3]:.3f} ± %{customdata[4]:.3f}<br>"
    "latency ratio: %{customdata[5]}<extra>%{fullData.name}</extra>"
)


def choose_color(depth: int) -> str:
    """Return the colour of candidates with ``depth`` dropped layers."""
    return DEPTH_COLORS[(depth - 1) % len(DEPTH_COLORS)]


def choose_symbol(depth: int) -> str:
    """Return the symbol of candidates with ``depth`` dropped layers; its cycle is not as long as the colours'."""
    return DEPTH_SYMBOLS[(depth - 1) % len(DEPTH_SYMBOLS)]


def describe_point(model: Model) -> list[str | float]:
    """Return what ``MODEL_HOVER`` shows, and last the id that links a model's marks on a page."""
    # Four decimals: a page may hold thousands of these.
    rounded = (round(ratio, 4) for ratio in (model.quality.ppl_ratio, model.quality.ppl_ratio_standard_error))
    layers, size = list_layers(model.candidate.dropped_layers), format_count(model.size.num_params)
    return [model.depth, layers, size, *rounded, format_latency_ratio(model.latency), model.link]


def draw_scored(models: Sequence[Model], *, name: str, marker: dict[str, object]) -> go.Scatter:
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


def draw_judged(models: Sequence[Model], **look: object) -> go.Scatter:
    """Draw models at their PPL ratio on test text, with the 95 % intervals of it and of the latency."""
    return go.Scatter(
        x=[model.latency.ratio for model in models],
        y=[model.ppl_ratio.value for model in models],
        error_x=draw_interval([model.latency for model in models]),
        error_y=draw_bars([model.ppl_ratio for model in models]),
        customdata=list(map(describe_point, models)),
        hovertemplate=MODEL_HOVER,
        **look,
    )


def add_levels(figure: go.Figure, percents: Sequence[int], *, top: float) -> None:
    """Add a faint horizontal line at each PPL increase, in per cent, below ``top``, with a word at its right end."""
    for percent in percents:
        if 1 + percent / 100 < top:
            figure.add_hline(
                y=1 + percent / 100,
                line={"color": GREY, "width": 0.5, "dash": "dot"},
                annotation={"text": f"+{percent} %", "xanchor": "right", "font": {"size": 11}},
                annotation_position="top right",
            )


def draw_latencies(
    depths: Sequence[float], latencies: Sequence[Latency], *, name: str, color: str, symbol: str
) -> go.Scatter:
    """Draw latency ratios over kept layers, with their intervals; ``depths`` may be moved a little sideways."""
    return go.Scatter(
        x=list(depths),
        y=[latency.ratio for latency in latencies],
        error_y={**draw_interval(latencies), "color": color},
        customdata=[[html.escape(latency.structure, quote=False), latency.median_ms] for latency in latencies],
        hovertemplate="%{customdata[0]}<br>latency ratio: %{y:.3f}<br>median: %{customdata[1]:.2f} ms<extra></extra>",
        mode="markers",
        name=name,
        marker={"color": color, "symbol": symbol, "size": 10},
    )


def draw_interval(latencies: Sequence[Latency]) -> dict[str, object]:
    """Return error bars from ``ratio_low`` to ``ratio_high``."""
    return draw_bars([read_latency_ratio(latency) for latency in latencies])


def draw_bars(estimates: Sequence[Estimate], *, scale: float = 1.0) -> dict[str, object]:
    """Return error bars from ``low`` to ``high``; none where they are not known."""
    middles = [one.value or 0.0 for one in estimates]
    highs = [middle if one.high is None else one.high for one, middle in zip(estimates, middles, strict=True)]
    lows = [middle if one.low is None else one.low for one, middle in zip(estimates, middles, strict=True)]
    above = [max(0.0, high - middle) * scale for high, middle in zip(highs, middles, strict=True)]
    below = [max(0.0, middle - low) * scale for low, middle in zip(lows, middles, strict=True)]
    return {**draw_errors(above), "symmetric": False, "arrayminus": below}


def draw_errors(errors: Sequence[float]) -> dict[str, object]:
    """Return error bars of the given half lengths."""
    return {"type": "data", "array": list(errors), "color": GREY, "thickness": 1.2, "width": 3}


def add_tiles(
    figure: go.Figure,
    shares: np.ndarray,
    *,
    labels: Sequence[str],
    row: int,
    words: Sequence[Sequence[str]],
    show_scale: bool,
) -> None:
    """Add one tile for each row label and layer: grey at 0, orange at 1. ``shares`` is of shape (rows, layers)."""
    tiles = go.Heatmap(
        z=shares.tolist(),
        x=list(range(shares.shape[1])),
        y=list(range(len(labels))),
        customdata=[list(line) for line in words],
        hovertemplate="layer %{x}: %{customdata}<extra></extra>",
        zmin=0,
        zmax=1,
        xgap=2,
        ygap=2,
        colorscale=[list(stop) for stop in TILE_SCALE],
        showscale=show_scale,
        colorbar=draw_scale(tickvals=[0, 0.5, 1], ticktext=["never", "half", "always"]),
    )
    figure.add_trace(tiles, row=row, col=1)
    figure.update_yaxes(tickvals=list(range(len(labels))), ticktext=list(labels), row=row, col=1)


def draw_scale(**ticks: object) -> dict[str, object]:
    """Return the scale of tiles' colours, lying below a figure."""
    return {
        "orientation": "h",
        "thickness": 8,
        "len": 0.6,
        "yref": "container",
        "y": 0,
        "yanchor": "bottom",
        "tickangle": 0,
        "outlinewidth": 0,
        **ticks,
    }


def finish_figure(figure: go.Figure, *, title: str, caption: str, x_title: str, y_title: str) -> go.Figure:
    """Put the frame around a figure: titles, font, axes, legend; the caption goes below the title and into meta."""
    wrapped = "<br>".join(html.escape(line, quote=False) for line in textwrap.wrap(caption, 110))
    axis = {"gridcolor": RULE, "zeroline": False, "automargin": True, "ticks": ""}
    figure.update_xaxes(**axis, title=x_title or None)
    figure.update_yaxes(**axis, title=y_title or None)
    return figure.update_layout(
        template=go.layout.Template(),
        title={
            "text": title,
            "subtitle": {"text": wrapped, "font": {"size": 12}},
            "x": 0,
            "xref": "paper",
            "yref": "container",
            "automargin": True,
        },
        meta={"caption": caption},
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hoverlabel={"bgcolor": INK, "font": {"color": "white"}, "align": "left"},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        margin={"l": 50, "r": 16, "t": 28, "b": 60},
        height=480,
    )
