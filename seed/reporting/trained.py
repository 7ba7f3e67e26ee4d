"""Trained runs told and drawn, for every page that has some: names, learning curves in panels.

What a page asks of them is its own business, and statistics of several runs are handed to it.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from seed.records import WidthCut, read_dropped
from seed.reporting.comparison import find_limit
from seed.reporting.marks import GREY, finish_figure
from seed.reporting.wording import list_layers, name_width

PANEL_PX = 210
TITLE_PX = 70  # of a panel, with the axis above it


def name_key(key: str) -> str:
    """Return what people call the model of a key: ``without 3, 5``, ``none; MLP 304, 3 heads``; others keep it."""
    if layers := read_dropped(key):
        return f"without {list_layers(layers)}"
    begin, _, rest = key.partition("-")
    parts = rest.split("-")
    if begin == "width" and len(parts) == 2 and all(part.isdigit() for part in parts):
        width, heads = map(int, parts)
        return name_width(WidthCut(num_layers=0, mlp_width=width, num_heads=heads, num_kv_heads=heads))
    return key


@dataclass(frozen=True, kw_only=True)
class Line:
    """A learning curve: validation losses, nats per token, over tokens or seconds."""

    name: str  # plain text; the legend has it once
    detail: str  # plain text, where the pointer rests
    color: str
    dash: str
    x: tuple[float, ...]
    losses: tuple[float, ...]


def draw_lines(
    panels: Mapping[str, Sequence[Line]],
    *,
    dense_loss: float | None,
    title: str,
    caption: str,
    x_title: str,
    x_name: str,
) -> go.Figure:
    """Draw learning curves, a panel for each title; ``x_name`` follows the number where the pointer rests.

    A panel reaches up to where half of the looks are over, so that the end can be read; starts may lie far above.
    """
    panels = {name: lines for name, lines in panels.items() if any(line.losses for line in lines)}
    if not panels:
        return go.Figure()
    height_px = (PANEL_PX + TITLE_PX) * len(panels)
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        vertical_spacing=TITLE_PX / height_px,
        subplot_titles=[escape(name) for name in panels],
    )
    seen: set[str] = set()
    for row, lines in enumerate(panels.values(), start=1):
        for line in lines:
            trace = go.Scatter(
                x=list(line.x),
                y=[round(loss, 5) if math.isfinite(loss) else None for loss in line.losses],
                mode="lines+markers",
                name=escape(line.name),
                legendgroup=line.name,
                showlegend=line.name not in seen,
                line={"color": line.color, "width": 1.3, "dash": line.dash},
                marker={"color": line.color, "size": 4},
                hovertemplate=f"{escape(line.detail)}<br>%{{x:.3s}} {x_name}<br>validation loss %{{y:.4f}}<extra></extra>",
            )
            figure.add_trace(trace, row=row, col=1)
            seen.add(line.name)
        low, high = choose_range(lines)
        if dense_loss is not None:
            # where the dense model lies far below, the range leaves it out
            figure.add_hline(y=dense_loss, line={"color": GREY, "width": 1, "dash": "dash"}, row=row, col=1)
        figure.update_yaxes(range=[low, high], row=row, col=1)
    figure = finish_figure(figure, title=title, caption=caption, x_title="", y_title="")
    figure.update_xaxes(title=x_title, row=len(panels), col=1)
    figure.update_annotations(font={"size": 13})
    return figure.update_layout(height=height_px + TITLE_PX, margin={"t": 44, "b": 90})


def choose_range(lines: Sequence[Line]) -> tuple[float, float]:
    """Return from where to where a panel of learning curves reaches."""
    later = [loss for line in lines for loss in line.losses[len(line.losses) // 2 :] if math.isfinite(loss)] or [
        0.0,
        1.0,
    ]
    low, high = min(later), find_limit(later)
    room = 0.06 * (high - low) or 0.01
    return low - room, high + room


def escape(text: str) -> str:
    """Return text that Plotly shows as it is: it reads some HTML in labels, and ``%{`` in hover texts."""
    return html.escape(text, quote=False).replace("%{", "% {")
