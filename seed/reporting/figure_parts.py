"""The marks that figures are made of: palette, error bars, panels of estimates, and the frame around them.

Dark ink on white paper, so that a figure can be read wherever it is shown; a page with other paper recolours ink and
rules by style sheet. How to read a figure is said by the page that it is on.
"""

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from seed.records import Estimate
from seed.reporting.wording import format_interval
from seed.stats import NOTHING

# After Okabe and Ito (https://jfly.uni-koeln.de/color/), shifted so that each keeps a contrast of about 3 both to white
# and to near-black paper; symbols repeat the distinction for those who see no colour.
DEPTH_COLORS = ("#2f7ec2", "#d55e00", "#009e73", "#b8569a", "#b08300", "#2a9fd6")
DEPTH_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down")
GREY = "#7f7f7f"
INK = "#1d2329"
RULE = "#e2e5e9"
FAR = 6  # times the median's distance from the best
ROW_PX = 30
PANEL_PX = 66  # of a panel's title and axis


def choose_color(depth: int) -> str:
    """Return the colour of candidates with ``depth`` dropped layers."""
    return DEPTH_COLORS[(depth - 1) % len(DEPTH_COLORS)]


def choose_symbol(depth: int) -> str:
    """Return the symbol of candidates with ``depth`` dropped layers; its cycle is not as long as the colours'."""
    return DEPTH_SYMBOLS[(depth - 1) % len(DEPTH_SYMBOLS)]


def escape_plotly(text: str) -> str:
    """Return text that Plotly shows as it is: it reads some HTML in labels, and ``%{`` in hover texts."""
    return html.escape(text, quote=False).replace("%{", "% {")


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


def draw_bars(estimates: Sequence[Estimate], *, color: str = GREY) -> dict[str, object]:
    """Return error bars from ``low`` to ``high``; none where they are not known. A percentile interval need not hold its point."""

    def measure(one: Estimate, end: float | None, sign: int) -> float:
        return 0.0 if one.value is None or end is None else max(0.0, sign * (end - one.value))

    above = [measure(one, one.high, 1) for one in estimates]
    below = [measure(one, one.low, -1) for one in estimates]
    return {**draw_errors(above, color=color), "symmetric": False, "arrayminus": below}


def draw_errors(errors: Sequence[float], *, color: str = GREY) -> dict[str, object]:
    """Return error bars of the given half lengths."""
    return {"type": "data", "array": list(errors), "color": color, "thickness": 1.2, "width": 3}


def stack_panels(titles: Sequence[str], heights: Sequence[float], *, gap_px: float, **options: object) -> go.Figure:
    """Return a figure of panels above one another, as high as they are to each other, with this much between them."""
    return make_subplots(
        rows=len(titles),
        cols=1,
        row_heights=list(heights),
        vertical_spacing=gap_px / (sum(heights) + gap_px * len(titles)) if len(titles) > 1 else 0,
        subplot_titles=list(titles),
        **options,
    )


def finish_figure(
    figure: go.Figure, *, title: str, x_title: str = "", y_title: str = "", height: int = 480
) -> go.Figure:
    """Put the frame around a figure: title, font, axes, legend."""
    axis = {"gridcolor": RULE, "zeroline": False, "automargin": True, "ticks": ""}
    figure.update_xaxes(**axis, title=x_title or None)
    figure.update_yaxes(**axis, title=y_title or None)
    return figure.update_layout(
        template=go.layout.Template(),
        title={"text": title, "x": 0, "xref": "paper", "yref": "container", "automargin": True},
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hoverlabel={"bgcolor": INK, "font": {"color": "white"}, "align": "left"},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        margin={"l": 50, "r": 16, "t": 28, "b": 60},
        height=height,
    )


# ---- panels of estimates


@dataclass(frozen=True, kw_only=True)
class Dot:
    """An estimate to be drawn: in a row of a panel, in the style of a series. ``hover``: plain text."""

    row: str
    series: str
    estimate: Estimate
    hover: str = ""


def draw_dots(
    panels: Mapping[str, Sequence[Dot]],
    styles: Mapping[str, tuple[str, str]],
    *,
    title: str,
    x_title: str,
    lines: Sequence[float] = (),
    is_bounded: bool = False,
) -> go.Figure:
    """Draw estimates with their intervals, a panel for each title, rows from above in the order in which they come.

    ``styles``: colour and symbol of each series, named in a legend where there are several in a row; ``lines``: where the
    axis is marked. Unless the axis ``is_bounded``, what is far from all others is a triangle at its end, with its value.
    """
    if not panels:
        return go.Figure()
    rows = {panel: list(dict.fromkeys(dot.row for dot in dots))[::-1] for panel, dots in panels.items()}
    is_double = any(len(dots) > len(rows[panel]) for panel, dots in panels.items())
    heights = [ROW_PX * (1.4 if is_double else 1) * len(labels) for labels in rows.values()]
    figure = stack_panels([escape_plotly(panel) for panel in panels], heights, gap_px=PANEL_PX)
    for index, (panel, dots) in enumerate(panels.items(), start=1):
        values = [dot.estimate.value for dot in dots if dot.estimate.value is not None]
        limit = math.inf if is_bounded else find_limit(values)
        for place, (series, style) in enumerate(styles.items()):
            here = [dot for dot in dots if dot.series == series]
            shift = 0.17 - 0.34 * place if is_double else 0.0
            heights_of = [rows[panel].index(dot.row) + shift for dot in here]
            trace = make_dots(here, heights_of, style=style, limit=limit)
            trace.update(name=series, legendgroup=series, showlegend=is_double and index == 1)
            figure.add_trace(trace, row=index, col=1)
        for line in lines:
            stroke = {"color": GREY, "width": 1, "dash": "dot" if line else "solid"}
            figure.add_vline(x=line, line=stroke, row=index, col=1)
        labels = [escape_plotly(row) for row in rows[panel]]
        places, reach = list(range(len(labels))), [-0.7, len(labels) - 0.3]
        figure.update_yaxes(tickvals=places, ticktext=labels, range=reach, row=index, col=1)
    figure = finish_figure(figure, title=title)
    figure.update_xaxes(tickangle=0).update_xaxes(title=x_title, row=len(panels), col=1)
    figure.update_annotations(font={"size": 13})
    height = sum(heights) + PANEL_PX * (len(panels) + 1)
    return figure.update_layout(height=height, margin={"t": 44, "b": 90})


def make_dots(dots: Sequence[Dot], y: Sequence[float], *, style: tuple[str, str], limit: float) -> go.Scatter:
    """Return the dots of a series at these heights, those beyond the limit as triangles there."""
    color, symbol = style
    far = [(math.inf if dot.estimate.value is None else dot.estimate.value) > limit for dot in dots]
    pairs = list(zip(dots, far, strict=True))
    return go.Scatter(
        x=[limit if is_far else dot.estimate.value for dot, is_far in pairs],
        y=y,
        error_x=draw_bars([NOTHING if is_far else dot.estimate for dot, is_far in pairs], color=color),
        text=[format_interval(dot.estimate).partition(" ")[0] if is_far else "" for dot, is_far in pairs],
        textposition="middle left",
        customdata=[[escape_plotly(dot.row), escape_plotly(dot.hover)] for dot in dots],
        hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        mode="markers+text",
        marker={"color": color, "symbol": ["triangle-right" if is_far else symbol for is_far in far], "size": 9},
    )


def find_limit(values: Sequence[float]) -> float:
    """Return how far an axis reaches: one or two hopeless values would press all others into a corner."""
    values = [value for value in values if math.isfinite(value)] or [1.0]  # broken models are beyond any
    least, middle = min(values), statistics.median(set(values))  # those that chose the same count once
    return max((value for value in values if value - least <= FAR * (middle - least)), default=max(values))
