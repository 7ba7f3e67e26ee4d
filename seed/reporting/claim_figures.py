"""Figures about claims: what each trained model reached, what single layers cost, how training went, what was timed.

Trained models are shown by group: runs that differ in their random seed only. Statistics are handed in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from seed.evidence import ClaimsEvidence, TrainedRun
from seed.records import Estimate, read_dropped
from seed.reporting.comparison import draw_estimates, find_edge, find_limit
from seed.reporting.marks import DEPTH_COLORS, GREY, draw_interval, finish_figure
from seed.reporting.trained import Line, draw_lines, escape, name_key
from seed.reporting.wording import ABSENT, format_interval, format_latency_ratio, format_number, name_rung
from seed.results import list_ratios

ROW_PX = 30
FAR = 4
TITLE_PX = 62  # of a panel, with the axis above it


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A way to come to a smaller model, as figures show it."""

    title: str
    color: str
    symbol: str


AT_ONCE = Kind(title="layers dropped at once, distilled", color=DEPTH_COLORS[0], symbol="circle")
STAGED = Kind(title="layers dropped in stages, distilled", color=DEPTH_COLORS[2], symbol="diamond")
WIDTH = Kind(title="cut in width, distilled", color=GREY, symbol="square")
PRETRAINING = Kind(title="continued pretraining", color=DEPTH_COLORS[1], symbol="triangle-up")
LORA = Kind(title="LoRA on the text alone", color=DEPTH_COLORS[3], symbol="cross")
OTHER = Kind(title="other recovery", color=DEPTH_COLORS[4], symbol="star")
RECOVERIES = {"distillation": AT_ONCE, "pretraining": PRETRAINING, "lora-pretraining": LORA}
ROLES = {
    "light": "dropped at once",
    "middle": "dropped at once",
    "deep": "dropped at once",
    "severe": "dropped at once",
    "pair": "best pair, recovered",
    "raw pair": "best pair as it stands",
    "width light": "equal size in width",
    "width middle": "equal size in width",
    "width deep": "equal size in width",
}


class EstimateCost(Protocol):
    """What single removals cost at a rung: a weighted sum of log PPL ratios, with its interval."""

    def __call__(self, evidence: ClaimsEvidence, weights: dict[int, float], *, rung: str) -> Estimate:
        """Return the estimate; ``weights`` is by layer."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their random seed only."""

    depth: int  # layers that are gone; of a width, the layers whose size it has
    kind: Kind
    label: str
    runs: tuple[TrainedRun, ...]


def group_runs(evidence: ClaimsEvidence) -> tuple[Group, ...]:
    """Return the runs by model and recovery, fewest dropped layers first; staged ones, whichever layers went, together."""
    found: dict[tuple[object, ...], list[TrainedRun]] = {}
    for run in evidence.ledger.runs:
        place = (run.num_dropped if run.stages else run.key, bool(run.stages), run.recovery, run.tokens)
        found.setdefault(place, []).append(run)
    groups = [make_group(evidence, sorted(runs, key=lambda run: run.rng_seed)) for runs in found.values()]
    kinds = (AT_ONCE, STAGED, WIDTH, PRETRAINING, LORA, OTHER)
    return tuple(sorted(groups, key=lambda group: (group.depth, kinds.index(group.kind))))


def make_group(evidence: ClaimsEvidence, runs: Sequence[TrainedRun]) -> Group:
    """Return runs with what they are called."""
    first = runs[0]
    roles = [role for role, key in evidence.roles.items() if key == first.key]
    sizes = [evidence.roles.get(role.removeprefix("width ")) for role in roles if role.startswith("width ")]
    depth = count_dropped(sizes[0], evidence) if sizes and sizes[0] else first.num_dropped
    kind = STAGED if first.stages else WIDTH if is_width(first.key) else RECOVERIES.get(first.recovery, OTHER)
    label = "; ".join(dict.fromkeys(ROLES.get(role, role) for role in roles)) or name_key(first.key)
    if first.stages:
        label = "in stages"
    elif first.recovery != "distillation":
        label = kind.title if kind is not OTHER else first.recovery.replace("-", " ")
    return Group(depth=depth, kind=kind, label=label, runs=tuple(runs))


def is_width(key: str) -> bool:
    """Does the key name a model of all layers that is cut in width?"""
    return key.startswith("width-")


def count_dropped(key: str, evidence: ClaimsEvidence) -> int:
    """Return how many layers the model of a key lacks."""
    if (layers := read_dropped(key)) is not None:
        return len(layers)
    return next((run.num_dropped for run in evidence.ledger.runs if run.key == key), 0)


def list_models(group: Group) -> str:
    """Return the models of a group, each once."""
    return "; ".join(dict.fromkeys(name_key(run.key) for run in group.runs))


def name_depth(evidence: ClaimsEvidence, depth: int) -> str:
    """Return ``3 of 12 layers dropped``."""
    return f"{depth} of {evidence.num_layers} layers dropped"


def draw_reached(evidence: ClaimsEvidence, groups: Sequence[Group], estimates: Sequence[Estimate]) -> go.Figure:
    """Draw the test PPL ratio of each trained model: a panel for each size, the mean with its interval, and each run."""
    panels: dict[int, list[tuple[Group, Estimate]]] = {}
    for group, estimate in zip(groups, estimates, strict=True):
        panels.setdefault(group.depth, []).insert(0, (group, estimate))  # the first on top
    if not panels:
        return go.Figure()
    height_px = ROW_PX * len(groups) + TITLE_PX * len(panels)
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        row_heights=[len(rows) / len(groups) for rows in panels.values()],
        vertical_spacing=TITLE_PX / height_px,
        subplot_titles=[name_depth(evidence, depth) for depth in panels],
    )
    for index, rows in enumerate(panels.values(), start=1):
        limit = find_reach([estimate.value or math.inf for _, estimate in rows])
        edge = find_edge([estimate for _, estimate in rows], limit=limit)
        for place, (group, estimate) in enumerate(rows):
            is_far = (estimate.value or math.inf) > limit
            each = list_ratios(
                group.runs, dense_sums=evidence.ledger.dense_test_sums, test_counts=evidence.ledger.test_counts
            )
            ratios = [ratio for ratio in each if ratio <= edge]
            figure.add_trace(
                go.Scatter(
                    x=ratios,
                    y=[place - 0.27] * len(ratios),
                    mode="markers",
                    showlegend=False,
                    hovertemplate="one run: %{x:.4f}<extra></extra>",
                    marker={"color": group.kind.color, "symbol": "circle-open", "size": 5},
                ),
                row=index,
                col=1,
            )
            seeds = ", ".join(str(run.rng_seed) for run in group.runs)
            figure.add_trace(
                go.Scatter(
                    x=[edge if is_far else estimate.value],
                    y=[place],
                    error_x={**draw_estimates([estimate], limit=limit), "color": group.kind.color},
                    text=["no number" if estimate.value is None else format_number(estimate.value)] if is_far else None,
                    textposition="middle left",
                    customdata=[[escape(list_models(group)), format_interval(estimate), seeds]],
                    hovertemplate="%{customdata[0]}<br>PPL ratio: %{customdata[1]}<br>random seeds: %{customdata[2]}<extra></extra>",
                    mode="markers+text" if is_far else "markers",
                    showlegend=False,  # the axis names all
                    marker={
                        "color": group.kind.color,
                        "symbol": "triangle-right" if is_far else group.kind.symbol,
                        "size": 10,
                    },
                ),
                row=index,
                col=1,
            )
        figure.update_yaxes(
            tickvals=list(range(len(rows))),
            ticktext=[escape(group.label).replace("; ", "<br>") for group, _ in rows],
            range=[-0.7, len(rows) - 0.4],
            row=index,
            col=1,
        )
    caption = (
        "Perplexity on test text divided by the dense model's; smaller is better, each panel has its own axis. Marks: mean "
        "over random seeds; bars: 95 % interval, as documents and random seeds vary; small rings: each run by itself. Without "
        "another word a model is distilled. All share documents and seeds, so that two may differ although their bars overlap: "
        "the paired differences are in the table. Triangles: farther off than the panel reaches, with the value."
    )
    figure = finish_figure(figure, title="What each model reached", caption=caption, x_title="", y_title="")
    figure.update_xaxes(tickangle=0).update_xaxes(title="PPL ratio", row=len(panels), col=1)
    figure.update_annotations(font={"size": 13})
    return figure.update_layout(height=height_px + TITLE_PX, margin={"t": 44, "b": 50})


def find_reach(ratios: Sequence[float]) -> float:
    """Return how far a panel reaches: to whatever costs up to four times as much as the best, or a tenth of perplexity."""
    least = min((ratio for ratio in ratios if math.isfinite(ratio)), default=1.0)
    return max(find_limit(ratios), 1 + max(0.1, FAR * (least - 1)))


def draw_singles(evidence: ClaimsEvidence, estimate_cost: EstimateCost) -> go.Figure:
    """Draw the log PPL ratio of each layer dropped alone, a series for each rung, with its interval over documents."""
    costs = {
        rung: {int(layer): estimate_cost(evidence, {int(layer): 1.0}, rung=rung) for layer in sums}
        for rung, sums in evidence.singles.items()
    }
    known = [cost for by_layer in costs.values() for cost in by_layer.values()]
    figure = go.Figure()
    if all(cost.value is None for cost in known):
        return figure
    limit = find_limit([math.inf if cost.value is None else cost.value for cost in known])
    edge = find_edge(known, limit=limit)
    for index, (rung, by_layer) in enumerate(costs.items()):
        color, symbol = ((GREY, "circle"), (DEPTH_COLORS[0], "diamond"))[index % 2]
        shift = 0.12 * (2 * index - len(costs) + 1)
        marks = {layer: e for layer, e in sorted(by_layer.items()) if not is_beyond(e, limit=limit)}
        far = {layer: e for layer, e in sorted(by_layer.items()) if is_beyond(e, limit=limit)}
        for shown, is_far in ((marks, False), (far, True)):
            if not shown and is_far:
                continue
            figure.add_trace(
                go.Scatter(
                    x=[layer + shift for layer in shown],
                    y=[edge if is_far else e.value for e in shown.values()],
                    error_y={**draw_estimates(list(shown.values()), limit=limit), "color": color},
                    customdata=[[layer, say_cost(e)] for layer, e in shown.items()],
                    hovertemplate="layer %{customdata[0]}: %{customdata[1]}<extra>%{fullData.name}</extra>",
                    mode="markers",
                    name=escape(name_rung(rung)),
                    legendgroup=rung,
                    showlegend=not is_far,
                    marker={"color": color, "symbol": "triangle-up" if is_far else symbol, "size": 9},
                )
            )
    beyond = [
        f"layer {layer} with {name_rung(rung)} ({say_cost(e)})"
        for rung, by_layer in costs.items()
        for layer, e in sorted(by_layer.items())
        if is_beyond(e, limit=limit)
    ]
    figure.add_hline(y=0, line={"color": GREY, "width": 1})
    figure.update_xaxes(dtick=1 if evidence.num_layers <= 32 else 4, range=[-0.6, evidence.num_layers - 0.4])
    caption = (
        "Each layer dropped by itself: logarithm of perplexity over the dense model's, on validation text, nats per token; at 0 "
        "nothing is lost. Bars: 95 % interval, as documents vary."
        + (f" Triangles at the upper edge are farther off: {'; '.join(beyond)}." if beyond else "")
    )
    return finish_figure(
        figure,
        title="What one layer costs",
        caption=caption,
        x_title="dropped layer",
        y_title="log PPL ratio (nats per token)",
    )


def is_beyond(estimate: Estimate, *, limit: float) -> bool:
    """Does a value lie beyond the limit, or is none known?"""
    return estimate.value is None or estimate.value > limit


def say_cost(estimate: Estimate) -> str:
    """Return a cost with its interval, or that there is no number."""
    return "no number" if estimate.value is None else format_plain(estimate)


def draw_curves(evidence: ClaimsEvidence, groups: Sequence[Group]) -> go.Figure:
    """Draw the validation loss of every run over its tokens: a panel for each size, a thin line for each random seed."""
    panels: dict[str, list[Line]] = {}
    for group in groups:
        for run in group.runs:
            # the curve of a staged run is that of its last stage
            spent = run.tokens - run.curve[-1].tokens if run.stages and run.curve else 0
            panels.setdefault(name_depth(evidence, group.depth), []).append(
                Line(
                    name=group.kind.title,
                    detail=f"{group.label}, random seed {run.rng_seed}",
                    color=group.kind.color,
                    dash="dot" if group.label == ROLES["raw pair"] else "solid",
                    x=tuple(spent + point.tokens for point in run.curve),
                    losses=tuple(point.validation_loss for point in run.curve),
                )
            )
    tokens = sum(evidence.validation_counts)
    return draw_lines(
        panels,
        dense_loss=sum(evidence.dense_validation_sums) / tokens if tokens else None,
        title="Learning curves",
        caption="Validation loss, nats per token; a line for each random seed. A line that is level at its end says that more "
        "tokens would help little; the table says how much the last look gained. Each panel has its own axis and leaves out "
        "what lies far above, such as early looks. Staged runs begin at the tokens that their first "
        "stage spent. Dotted: the pair that is best as it stands. Dashed: the dense model, where it is near.",
        x_title="tokens of recovery",
        x_name="tokens",
    )


def draw_times(evidence: ClaimsEvidence) -> go.Figure:
    """Draw latency ratios with their intervals: the deep cut and the width of its size, at each batch."""
    figure = go.Figure()
    names = list(evidence.latencies)[::-1]  # the first on top
    for place, name in enumerate(names):
        latency = evidence.latencies[name]
        kind = WIDTH if is_width(name) else AT_ONCE
        figure.add_trace(
            go.Scatter(
                x=[latency.ratio],
                y=[place],
                error_x={**draw_interval([latency]), "color": kind.color},
                customdata=[[escape(latency.workload), format_latency_ratio(latency), latency.median_ms]],
                hovertemplate="%{customdata[0]}<br>latency ratio: %{customdata[1]}<br>median: %{customdata[2]:.2f} ms<extra></extra>",
                mode="markers",
                showlegend=False,
                marker={"color": kind.color, "symbol": kind.symbol, "size": 10},
            )
        )
    if not names:
        return figure
    figure.add_vline(x=1, line={"color": GREY, "width": 1, "dash": "dash"})
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[escape(name_timed(name, evidence)) for name in names],
        range=[-0.7, len(names) - 0.3],
    )
    caption = (
        "Time of one workload divided by the dense model's, measured in turn with it; smaller is faster, the dashed line is as "
        "fast as the dense model. Bars: 95 % interval."
    )
    figure = finish_figure(figure, title="Time", caption=caption, x_title="latency ratio", y_title="")
    return figure.update_layout(height=44 * len(names) + 120)


def name_timed(name: str, evidence: ClaimsEvidence) -> str:
    """Return ``3 of 12 layers dropped, batch 1`` for the key and batch of a measured latency."""
    key, _, batch = name.partition(", ")
    if is_width(key):
        return f"equal size in width, {batch}"
    return f"{count_dropped(key, evidence)} of {evidence.num_layers} dropped, {batch}"


def format_plain(estimate: Estimate) -> str:
    """Return ``0.031 [0.028, 0.034]``; the interval is left out where there is none."""
    if estimate.value is None:
        return ABSENT
    if estimate.low is None or estimate.high is None:
        return format_number(estimate.value)
    return format_interval(estimate)
