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


def choose_color(depth: float) -> str:
    """Return the colour of candidates with ``depth`` dropped layers."""
    return DEPTH_COLORS[math.ceil(depth - 1) % len(DEPTH_COLORS)]


def choose_symbol(depth: float) -> str:
    """Return the symbol of candidates with ``depth`` dropped layers; its cycle is not as long as the colours'."""
    return DEPTH_SYMBOLS[math.ceil(depth - 1) % len(DEPTH_SYMBOLS)]


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
    ends = {"array": above, "arrayminus": below, "symmetric": False}
    return {"type": "data", **ends, "color": color, "thickness": 1.2, "width": 3}


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
    """An estimate that is drawn in a row of its own."""

    row: str
    estimate: Estimate
    color: str = DEPTH_COLORS[0]


def draw_dots(
    panels: Mapping[str, Sequence[Dot]], *, title: str, x_title: str, lines: Sequence[float] = ()
) -> go.Figure:
    """Draw estimates with their intervals: a panel for each title, rows from above in the order in which they come.

    ``lines``: where the axis is marked. It does not reach what is far from all others.
    """
    if not panels:
        return go.Figure()
    heights = [ROW_PX * len(dots) for dots in panels.values()]
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        row_heights=heights,
        vertical_spacing=PANEL_PX / (sum(heights) + PANEL_PX * len(panels)),
        subplot_titles=list(map(escape_plotly, panels)),
    )
    for index, dots in enumerate(panels.values(), start=1):
        estimates, labels = [dot.estimate for dot in dots], [escape_plotly(dot.row) for dot in dots]
        trace = go.Scatter(
            x=[one.value for one in estimates],
            y=list(range(len(dots))),
            error_x=draw_bars(estimates),
            customdata=list(zip(labels, map(format_interval, estimates), strict=True)),
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
            mode="markers",
            marker={"color": [dot.color for dot in dots], "size": 9},
            showlegend=False,
        )
        figure.add_trace(trace, row=index, col=1)
        for line in lines:
            stroke = {"color": GREY, "width": 1, "dash": "dot" if line else "solid"}
            figure.add_vline(x=line, line=stroke, row=index, col=1)
        figure.update_xaxes(range=choose_reach(estimates), row=index, col=1)
        rows = {"tickvals": list(range(len(dots))), "ticktext": labels, "range": [len(dots) - 0.3, -0.7]}
        figure.update_yaxes(**rows, row=index, col=1)
    finish_figure(figure, title=title, height=sum(heights) + PANEL_PX * (len(panels) + 1))
    figure.update_xaxes(tickangle=0).update_xaxes(title=x_title, row=len(panels), col=1)
    return figure.update_annotations(font={"size": 13}).update_layout(margin={"t": 44})


def choose_reach(estimates: Sequence[Estimate]) -> list[float] | None:
    """Return the ends of an axis that shows estimates with their intervals, but for those that are far off; None: there are none."""
    limit = find_limit([one.value for one in estimates if one.value is not None])
    near = [one for one in estimates if one.value is not None and one.value <= limit]
    ends = [end for one in near for end in (one.low, one.value, one.high) if end is not None and math.isfinite(end)]
    room = 0.05 * (max(ends) - min(ends)) or 0.01 if ends else 0.0
    return [min(ends) - room, max(ends) + room] if ends else None


def find_limit(values: Sequence[float]) -> float:
    """Return how far an axis reaches: one or two hopeless values would press all others into a corner."""
    values = [value for value in values if math.isfinite(value)] or [1.0]  # broken models are beyond any
    least, middle = min(values), statistics.median(set(values))  # those that chose the same count once
    return max((value for value in values if value - least <= FAR * (middle - least)), default=max(values))
