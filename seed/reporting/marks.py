"""The marks that figures are made of: palette, points with their hover texts, tiles, and the frame around them.

Dark ink on white paper, so that a figure can be read wherever it is shown; a page with other paper recolours ink and
rules by style sheet. What a figure says is decided in ``figures``, not here.
"""

import html
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from seed.findings import Replication
from seed.records import DistillResult, Evaluation, Latency, Quality, Size
from seed.reporting.readings import read_id, read_result_id
from seed.reporting.wording import format_count, format_latency_ratio, list_layers, name_drop

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


def describe_model(
    dropped: Sequence[int], *, size: Size, quality: Quality, latency: Latency, link: str
) -> list[str | float]:
    """Return what ``MODEL_HOVER`` shows, and last the id that links a model's marks on a page."""
    # Four decimals: a page may hold thousands of these.
    rounded = (round(ratio, 4) for ratio in (quality.ppl_ratio, quality.ppl_ratio_standard_error))
    words = format_latency_ratio(latency)
    return [len(dropped), list_layers(dropped), format_count(size.num_params), *rounded, words, link]


def draw_models(
    models: Sequence[tuple[Evaluation, Quality]],
    *,
    name: str,
    marker: dict[str, object],
) -> go.Scatter:
    """Draw evaluated candidates as points, coloured by depth."""
    return go.Scatter(
        x=[round(evaluation.latency.ratio, 5) for evaluation, _ in models],
        y=[round(quality.ppl_ratio, 5) for _, quality in models],
        customdata=[
            describe_model(
                e.candidate.dropped_layers, size=e.size, quality=quality, latency=e.latency, link=read_id(e.candidate)
            )
            for e, quality in models
        ],
        hovertemplate=MODEL_HOVER,
        mode="markers",
        name=name,
        marker={**marker, "color": [choose_color(len(e.candidate.dropped_layers)) for e, _ in models]},
    )


def draw_distilled(results: Sequence[DistillResult], replications: Mapping[str, Replication]) -> go.Scatter:
    """Draw distilled models at their PPL ratio on test text, by depth; open, so that one does not hide another."""
    marker = {
        "symbol": "diamond-open",
        "size": 12,
        "line": {"width": 2},
        "color": [choose_color(len(result.candidate.dropped_layers)) for result in results],
    }
    return draw_judged(results, replications, name="distilled, on test text", mode="markers", marker=marker)


def draw_links(
    links: Sequence[tuple[Evaluation, Quality, DistillResult]], replications: Mapping[str, Replication]
) -> go.Scatter:
    """Draw a thin line from each candidate as the proxy saw it to the model that distillation made of it."""
    return go.Scatter(
        x=[x for start, _, result in links for x in (start.latency.ratio, result.latency.ratio, None)],
        y=[y for _, quality, result in links for y in (quality.ppl_ratio, read_ratio(result, replications)[0], None)],
        mode="lines",
        name="proxy to distilled",
        hoverinfo="skip",
        line={"color": GREY, "width": 1},
        showlegend=False,
    )


def draw_front(results: Sequence[DistillResult], replications: Mapping[str, Replication]) -> go.Scatter:
    """Draw the line from the dense model through the distilled models that no other beats on both axes."""
    points = sorted([(1.0, 1.0), *((r.latency.ratio, read_ratio(r, replications)[0]) for r in results)])
    front = [
        point for point in points if not any(x <= point[0] and y <= point[1] and (x, y) != point for x, y in points)
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


def draw_baselines(results: Sequence[DistillResult], replications: Mapping[str, Replication]) -> go.Scatter:
    """Draw models of uniform width at their PPL ratio on test text, as a curve of their own."""
    return draw_judged(
        results,
        replications,
        name="uniform width, distilled",
        mode="lines+markers",
        line={"color": GREY, "width": 1, "dash": "dash"},
        marker={"symbol": "square", "size": 9, "color": GREY},
    )


def draw_judged(
    results: Sequence[DistillResult], replications: Mapping[str, Replication], **look: object
) -> go.Scatter:
    """Draw models at their PPL ratio on test text (of replicas the mean), with its error and the latency's interval."""
    ratios = [read_ratio(result, replications) for result in results]
    return go.Scatter(
        x=[result.latency.ratio for result in results],
        y=[ratio for ratio, _ in ratios],
        error_x=draw_interval([result.latency for result in results]),
        error_y=draw_errors([error for _, error in ratios]),
        customdata=[
            describe_model(
                r.candidate.dropped_layers, size=r.size, quality=r.test, latency=r.latency, link=read_result_id(r)
            )
            for r in results
        ],
        hovertemplate=MODEL_HOVER,
        **look,
    )


def read_ratio(result: DistillResult, replications: Mapping[str, Replication]) -> tuple[float, float]:
    """Return the test PPL ratio and half its bar: one standard error, or of replicas the mean and half the 95 % interval."""
    known = replications.get(result.key)
    if known is None or known.ppl_ratio.value is None or known.ppl_ratio.high is None:
        return result.test.ppl_ratio, result.test.ppl_ratio_standard_error
    return known.ppl_ratio.value, known.ppl_ratio.high - known.ppl_ratio.value


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
    high = [0.0 if one.ratio_high is None else max(0.0, one.ratio_high - one.ratio) for one in latencies]
    low = [0.0 if one.ratio_low is None else max(0.0, one.ratio - one.ratio_low) for one in latencies]
    return {**draw_errors(high), "symmetric": False, "arrayminus": low}


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


def annotate_depths(figure: go.Figure, evaluations: Sequence[Evaluation]) -> None:
    """Write the number of dropped layers above each depth's strip."""
    ratios: dict[int, list[float]] = {}
    for evaluation in evaluations:
        ratios.setdefault(len(evaluation.candidate.dropped_layers), []).append(evaluation.latency.ratio)
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
