"""The frontiers of several studies in one plot."""

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from seed.findings import StudyRecord
from seed.records import Estimate
from seed.reporting.answers import MARGINS, Contender, list_contenders
from seed.reporting.marks import DEPTH_COLORS, DEPTH_SYMBOLS, GREY, add_levels, draw_errors, finish_figure
from seed.reporting.readings import read_latency_ratio
from seed.reporting.wording import format_count, format_interval, list_layers

INTERVALS = (
    "%{customdata[0]}, without %{customdata[1]}<br>parameters: %{customdata[2]}<br>"
    "PPL ratio: %{customdata[3]}<br>latency ratio: %{customdata[4]}"
)
HOVER = INTERVALS + "<extra></extra>"
ABSOLUTE_HOVER = INTERVALS + "<br>test PPL %{y:.2f}, %{x:.1f} ms<extra></extra>"
CAPTION = (
    "The best model of each depth, chosen on validation text, joined to its dense model (cross). Nearer to the lower left is "
    "better. Bars: 95 % intervals."
)
ABSOLUTE_CAPTION = " Bars are those of the ratios to the dense model; they leave out how the machine differed from one study's time to another's."


def draw_frontiers(studies: Mapping[str, StudyRecord], *, is_absolute: bool = False) -> go.Figure:
    """Draw the best model of each depth of every study, joined to its dense model; ``is_absolute``: PPL and milliseconds."""
    figure = go.Figure()
    for index, (name, record) in enumerate(studies.items()):
        figure.add_trace(draw_study(name, record, index=index, is_absolute=is_absolute))
    if not is_absolute:
        add_levels(figure, MARGINS, top=max(value for trace in figure.data for value in trace.y))
    has_proxies = not all(record.distilled for record in studies.values())
    return finish_figure(
        figure,
        title="Frontiers",
        caption=CAPTION
        + (ABSOLUTE_CAPTION if is_absolute else "")
        + (" Dotted: by the proxy, not distilled." if has_proxies else ""),
        x_title="milliseconds (smaller is faster)" if is_absolute else "latency ratio (smaller is faster)",
        y_title="test PPL (smaller is better)" if is_absolute else "PPL ratio (smaller is better)",
    )


def draw_study(name: str, record: StudyRecord, *, index: int, is_absolute: bool) -> go.Scatter:
    """Draw one study's frontier, in the colour and symbol of its place among the studies; the dense model comes last."""
    color, symbol = DEPTH_COLORS[index % len(DEPTH_COLORS)], DEPTH_SYMBOLS[index % len(DEPTH_SYMBOLS)]
    dense = record.dense
    ppl, ms = (dense.test.perplexity, dense.latency.median_ms) if is_absolute else (1.0, 1.0)
    known = [one for one in list_contenders(record) if one.ppl_ratio.value is not None]
    shown = sorted(known, key=lambda one: one.latency.ratio)
    ratios = [*(one.ppl_ratio for one in shown), Estimate(value=1.0, low=1.0, high=1.0)]
    speeds = [*(read_latency_ratio(one.latency) for one in shown), Estimate(value=1.0, low=1.0, high=1.0)]
    words = [describe_point(name, one) for one in shown]
    words.append([html.escape(name), "none (dense)", format_count(dense.size.num_params)])
    return go.Scatter(
        x=[(speed.value or 0.0) * ms for speed in speeds],
        y=[(ratio.value or 0.0) * ppl for ratio in ratios],
        mode="lines+markers",
        name=html.escape(f"{name} ({record.plan.identity.get('model', 'model')})", quote=False),
        line={"color": color, "width": 1.5, "dash": "solid" if record.distilled else "dot"},
        marker={"color": [*[color] * len(shown), GREY], "symbol": [*[symbol] * len(shown), "x"], "size": 11},
        error_x=draw_bars(speeds, scale=ms),
        error_y=draw_bars(ratios, scale=ppl),
        customdata=[
            [*told, format_interval(ratio), format_interval(speed)]
            for told, ratio, speed in zip(words, ratios, speeds, strict=True)
        ],
        hovertemplate=ABSOLUTE_HOVER if is_absolute else HOVER,
        showlegend=True,
    )


def describe_point(name: str, contender: Contender) -> list[str]:
    """Return the words of a point where the pointer rests: study, dropped layers, parameters."""
    layers = list_layers(contender.candidate.dropped_layers)
    return [html.escape(name), layers, format_count(contender.size.num_params)]


def draw_bars(estimates: Sequence[Estimate], *, scale: float) -> dict[str, object]:
    """Return error bars from ``low`` to ``high``; none where they are not known."""
    middles = [one.value or 0.0 for one in estimates]
    highs = [middle if one.high is None else one.high for one, middle in zip(estimates, middles, strict=True)]
    lows = [middle if one.low is None else one.low for one, middle in zip(estimates, middles, strict=True)]
    above = [max(0.0, high - middle) * scale for high, middle in zip(highs, middles, strict=True)]
    below = [max(0.0, middle - low) * scale for low, middle in zip(lows, middles, strict=True)]
    return {**draw_errors(above), "symmetric": False, "arrayminus": below}
