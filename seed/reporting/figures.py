"""Figures of a study: one function each, from the record to a Plotly figure.

A figure says in ``layout.meta["caption"]`` how to read it, in plain text, for whoever sets it on a page. A figure
with nothing to show has no traces. Marks and colours are drawn in ``marks``; no HTML and no files here.
"""

import html
import math

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from seed.findings import StudyRecord
from seed.records import Evaluation, Latency
from seed.reporting.marks import (
    DEPTH_COLORS,
    GREY,
    add_tiles,
    choose_color,
    choose_symbol,
    draw_errors,
    draw_latencies,
    finish_figure,
)
from seed.reporting.readings import count_dropped, count_drops, find_links, mark_dropped, read_id, read_scored
from seed.reporting.wording import list_layers, name_depth, name_drop, name_rung


def draw_layer_map(record: StudyRecord) -> go.Figure:
    """Draw which layers each frontier member drops, and how often the best candidates of each depth drop each layer."""
    members = record.frontier.members
    depths = count_drops(record)
    if not members and not depths:
        return go.Figure()
    num_layers = record.space.num_layers
    panels = [rows for rows in (members, depths) if rows]
    titles = ["<b>Frontier</b>"] * bool(members) + ["<b>Best of each depth</b>"] * bool(depths)
    height = 200 + 26 * sum(map(len, panels))
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=58 / height,
        subplot_titles=titles,
        row_heights=[len(rows) for rows in panels],
    )
    if members:
        labels = [
            f"{name_drop(count_dropped(member.evaluation.candidate))} "
            + ("best" if member.rank == 0 else f"no. {member.rank + 1}")
            for member in members
        ]
        dropped = np.array([mark_dropped(member.evaluation.candidate) for member in members])
        words = np.where(dropped > 0, "dropped", "kept")
        add_tiles(figure, dropped, labels=labels, row=1, words=words.tolist(), show_scale=False)
    if depths:
        labels = [f"{name_drop(depth)} ({best} of {scored})" for depth, best, scored, _ in depths]
        shares = np.array([share for *_, share in depths])
        words = np.array([[f"dropped by {100 * value:.0f} %" for value in row] for row in shares])
        add_tiles(figure, shares, labels=labels, row=len(panels), words=words.tolist(), show_scale=True)
    figure.update_xaxes(
        tickmode="linear",
        tick0=0,
        dtick=math.ceil(num_layers / 12),
        tickangle=0,
        tickfont={"size": 11},
        showgrid=False,
        showticklabels=True,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    protected = sorted(set(range(num_layers)) - {*record.space.droppable_layers, *record.space.gone_layers})
    sentences = [
        "Orange: dropped." if members else "",
        "Rows start with the number of dropped layers.",
        "Below: the share of each depth's best candidates by the proxy (a quarter of those scored, twenty at most) "
        "that drop a layer; deeper orange is more often."
        if depths
        else "",
        f"The search space keeps these layers always: {list_layers(protected)}." if protected else "",
    ]
    figure = finish_figure(
        figure, title="Which layers go", caption=" ".join(filter(None, sentences)), x_title="", y_title=""
    )
    figure.update_xaxes(title="layer of the original model", row=len(panels))
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    figure.layout.meta = {**figure.layout.meta, "ids": [read_id(member.evaluation.candidate) for member in members]}
    return figure.update_layout(height=height, margin={"t": 40})


def draw_proxy_against_final(record: StudyRecord) -> go.Figure:
    """Draw the PPL ratio after distillation against the proxy's, both on validation text."""
    links = find_links(record, read_scored(record))
    figure = go.Figure()
    for depth in sorted({count_dropped(result.candidate) for _, _, result in links}):
        rows = [link for link in links if count_dropped(link[2].candidate) == depth]
        figure.add_trace(
            go.Scatter(
                x=[quality.ppl_ratio for _, quality, _ in rows],
                y=[result.validation.ppl_ratio for *_, result in rows],
                error_x=draw_errors([quality.ppl_ratio_standard_error for _, quality, _ in rows]),
                error_y=draw_errors([result.validation.ppl_ratio_standard_error for *_, result in rows]),
                customdata=[[list_layers(result.candidate.dropped_layers)] for *_, result in rows],
                hovertemplate="dropped: %{customdata[0]}<br>proxy: %{x:.3f}<br>distilled: %{y:.3f}<extra></extra>",
                mode="markers",
                name=f"{depth} dropped",
                showlegend=True,
                marker={"color": choose_color(depth), "symbol": choose_symbol(depth), "size": 11},
            )
        )
    if not links:
        return figure
    caption = f"{record.agreement.verdict} Both axes are on validation text; bars are one standard error."
    return finish_figure(
        figure,
        title="Does the proxy rank as distillation does?",
        caption=caption,
        x_title=f"PPL ratio after {name_rung(record.frontier.rung)}",
        y_title="PPL ratio after distillation",
    )


def draw_learning_curves(record: StudyRecord) -> go.Figure:
    """Draw the validation loss, in nats per token, over distillation tokens, step 0 included."""
    figure = go.Figure()
    seen: dict[int, int] = {}
    for result in record.distilled:
        if not result.curve:
            continue
        depth = count_dropped(result.candidate)
        order = seen[depth] = seen.get(depth, -1) + 1
        color, dash = choose_color(depth), ("solid", "dash", "dot", "dashdot")[order % 4]
        name = f"{name_depth(result.candidate)} without {list_layers(result.candidate.dropped_layers)}"
        figure.add_trace(
            go.Scatter(
                x=[point.tokens for point in result.curve],
                y=[point.validation_loss for point in result.curve],
                customdata=[[point.step] for point in result.curve],
                mode="lines+markers",
                name=name,
                marker={
                    "color": color,
                    "symbol": choose_symbol(depth),
                    "size": [11 if point.step == result.best_step else 4 for point in result.curve],
                    "opacity": 1,
                    "line": {"width": 0},
                },
                line={"color": color, "width": 2, "dash": dash},
                hovertemplate="step %{customdata[0]}, %{x:.3s} tokens<br>validation loss %{y:.4f}<extra>"
                + name
                + "</extra>",
            )
        )
    if not figure.data:
        return figure
    figure.add_hline(
        y=record.dense.validation.loss,
        line={"color": GREY, "width": 1, "dash": "dash"},
        annotation={"text": "dense model", "xanchor": "right"},
        annotation_position="bottom right",
    )
    return finish_figure(
        figure,
        title="Learning curves of the distillation",
        x_title="distillation tokens",
        y_title="validation loss (nats per token)",
        caption="The first point of each curve is the student before its first step; the large marker is the "
        "checkpoint that was kept. The dashed line is the dense model.",
    )


def draw_latency(record: StudyRecord) -> go.Figure:
    """Draw each structure's latency ratio with its 95 % interval, beside a straight line in proportion to depth."""
    num_layers = record.space.num_layers
    structures: dict[str, tuple[Evaluation, Latency]] = {}
    for evaluation in [trial.evaluation for trial in record.trials] + [
        member.evaluation for member in record.frontier.members
    ]:
        structures.setdefault(evaluation.latency.structure, (evaluation, evaluation.latency))
    rows = sorted(structures.values(), key=lambda row: len(row[0].candidate.kept_layers))
    figure = go.Figure()
    if not rows:
        return figure
    kept = [len(evaluation.candidate.kept_layers) for evaluation, _ in rows]
    figure.add_trace(
        go.Scatter(
            x=[min(kept), num_layers],
            y=[min(kept) / num_layers, 1.0],
            mode="lines",
            name="in proportion to depth",
            hoverinfo="skip",
            line={"color": GREY, "width": 1, "dash": "dash"},
        )
    )
    figure.add_trace(
        draw_latencies(
            [*kept, num_layers],
            [*(latency for _, latency in rows), record.dense.latency],
            name="measured, one point per structure",
            color=DEPTH_COLORS[0],
            symbol="circle",
        )
    )
    beside = min(0.1, 0.03 * (num_layers - min(kept)))
    prefill = [
        (depth, latency) for depth, (_, latency) in zip(kept, rows, strict=True) if latency.prefill_ratio is not None
    ]
    if prefill:
        figure.add_trace(
            go.Scatter(
                x=[depth - beside for depth, _ in prefill],
                y=[latency.prefill_ratio for _, latency in prefill],
                customdata=[[html.escape(latency.structure, quote=False)] for _, latency in prefill],
                mode="markers",
                name="prefill",
                marker={"color": DEPTH_COLORS[2], "symbol": "square-open", "size": 9},
                hovertemplate="%{customdata[0]}<br>prefill ratio: %{y:.3f}<extra></extra>",
            )
        )
    figure.update_xaxes(tickmode="linear", dtick=max(1, math.ceil((num_layers - min(kept)) / 12)))
    latency = rows[-1][1]
    caption = (
        f"Workload: {latency.workload}, on {latency.device}; {latency.repeats} pairs with the dense model, measured in "
        "turn. Bars are 95 % intervals of the median ratio. What lies above the line pays for parts that dropping "
        "layers does not remove, such as embeddings and the output head."
    )
    return finish_figure(
        figure, title="Latency by structure", caption=caption, x_title="layers kept", y_title="latency ratio to dense"
    )
