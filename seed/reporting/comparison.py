"""The page of a comparison: what searching buys over ways to choose layers that are known, at equal cost.

Answers first, then what each strategy reached at each depth, then what it paid for that, then numbers and settings.
Statistics are handed in; nothing is estimated here.
"""

import html
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from seed import folder
from seed.evidence import Comparison, ComparisonSummary, Reached, StrategyRun
from seed.records import Candidate, Estimate
from seed.reporting.document import escape, render_document, render_figure, render_section, render_table, render_values
from seed.reporting.marks import DEPTH_COLORS, GREY, choose_color, choose_symbol, draw_errors, finish_figure
from seed.reporting.wording import (
    ABSENT,
    count_things,
    format_estimate,
    format_interval,
    format_number,
    list_layers,
    name_drop,
    name_rung,
)

QUESTION = "Seed: what does searching for layers buy?"
BASELINES = ("perplexity", "greedy", "greedy_recovered")  # what an answer names; all others are in figure and table
ROW_HEIGHT_PX = 26
TITLE_HEIGHT_PX = 60  # with the axis above it
FAR = 6  # times the median's distance from the best


def write_comparison_page(
    comparison: Comparison,
    summary: ComparisonSummary,
    path: Path,
    *,
    command: str,
    titles: Mapping[str, str],
    sources: Mapping[str, str],
) -> None:
    """Write the page of a comparison as one self-contained HTML file.

    Args:
        comparison: the raw numbers.
        summary: their statistics.
        path: the file; readers see the old one or the new one, never half of it.
        command: the shell command that repeats the comparison.
        titles: what people call each strategy.
        sources: where each strategy is published.

    Raises:
        ResourceError: the file cannot be written.
    """
    page = render_comparison_page(comparison, summary=summary, command=command, titles=titles, sources=sources)
    folder.write_bytes(path, page.encode())


def render_comparison_page(
    comparison: Comparison,
    *,
    summary: ComparisonSummary,
    command: str,
    titles: Mapping[str, str],
    sources: Mapping[str, str],
) -> str:
    """Return the page as HTML. The same records give the same bytes."""
    sections = [render_section("answer", "The answer", render_answers(comparison, summary=summary, titles=titles))]
    if summary.rows:
        reached = draw_reached(comparison, summary=summary, titles=titles)
        drawing = render_figure(reached, key="reached", with_library=True)
        costs = draw_costs(comparison, summary=summary, titles=titles)
        paid = render_figure(costs, key="costs", with_library=False) if costs.data else ""
        sections += [
            render_section("reached", "What each reached after distillation", drawing),
            render_section("costs", "What it paid to choose", paid),
            render_section("numbers", "The numbers", render_numbers(comparison, summary=summary, titles=titles)),
        ]
    sections += [
        render_section(
            "settings", "How this was measured", render_settings(comparison, titles=titles, sources=sources)
        ),
        render_section("repeat", "Repeat this", f"<pre>{escape(command)}</pre>"),
    ]
    return render_document(sections, name=comparison.study, question=QUESTION)


def list_depths(summary: ComparisonSummary) -> list[int]:
    """Return the depths, fewest dropped layers first."""
    return sorted({row.num_dropped for row in summary.rows})


def say_answer(summary: ComparisonSummary, num_dropped: int, *, titles: Mapping[str, str]) -> str:
    """Return, as plain text, what the reference reached at a depth, beside one-shot, greedy and whatever beats it."""
    rows = {row.strategy: row for row in summary.rows if row.num_dropped == num_dropped}
    ours = rows.get(summary.reference)
    begin = f"{count_things(num_dropped, 'layer')} dropped"
    if ours is None:
        return f"{begin}: {titles[summary.reference]} chose nothing of this depth."
    beside = [f"{titles[name]} {say_excess(rows[name], ours)}" for name in BASELINES if name in rows]
    better = [
        f"{titles[name]} ({format_percent(row.excess)})"
        for name, row in rows.items()
        if name not in BASELINES and row.excess.high is not None and row.excess.high < 0
    ]
    return (
        f"{begin}: {titles[summary.reference]} reaches a PPL ratio of {format_interval(ours.ppl_ratio)}"
        f"{'; ' if beside else ''}{', '.join(beside)}. "
        + (f"Better than it: {', '.join(better)}." if better else "No other strategy is measurably better.")
    )


def say_excess(row: Reached, ours: Reached) -> str:
    """Return how a strategy's perplexity lies to the reference's."""
    if share_picks(row) == share_picks(ours):
        return "chooses the same set" if len(set(row.picks)) == 1 else "chooses the same sets"
    excess = row.excess
    if excess.low is None or excess.high is None:
        return "cannot be compared"
    if excess.low <= 0 <= excess.high:
        return f"cannot be told apart ({format_percent(excess)})"
    return f"ends {'higher' if excess.low > 0 else 'lower'} ({format_percent(excess)})"


def share_picks(row: Reached) -> dict[Candidate, Fraction]:
    """Return which share of the runs that chose something chose what."""
    return {pick: Fraction(count, len(row.picks)) for pick, count in Counter(row.picks).items()}


def render_answers(comparison: Comparison, *, summary: ComparisonSummary, titles: Mapping[str, str]) -> str:
    """Return an answer for each depth, as HTML."""
    if not summary.rows:
        return "<p>No strategy's picks are distilled yet, so there is no answer.</p>"
    answers = [say_answer(summary, depth, titles=titles) for depth in list_depths(summary)]
    items = "\n".join(f"<li>{escape(answer)}</li>" for answer in answers)
    num_seeds = len({final.rng_seed for final in comparison.finals})
    note = (
        "PPL ratio: perplexity on test text after full distillation, divided by the dense model's. Percentages: "
        f"perplexity above that of {titles[summary.reference]}, same documents, same random seeds "
        f"({count_things(num_seeds, 'seed')}). Brackets: 95 % interval, as documents, distillations and runs vary, each comparison "
        "by itself. A difference counts when its interval excludes zero."
        + (" With one random seed, how distillations vary is not known and not in it." if num_seeds == 1 else "")
    )
    return f'<ul class="answers">\n{items}\n</ul>\n<p class="note">{escape(note)}</p>'


def draw_reached(comparison: Comparison, *, summary: ComparisonSummary, titles: Mapping[str, str]) -> go.Figure:
    """Draw each strategy's PPL ratio after distillation with its interval: a panel a depth, best on top."""
    depths = list_depths(summary)
    groups = [[row for row in reversed(summary.rows) if row.num_dropped == depth] for depth in depths]
    total = sum(map(len, groups))
    height_px = ROW_HEIGHT_PX * total + TITLE_HEIGHT_PX * len(depths)
    figure = make_subplots(
        rows=len(depths),
        cols=1,
        row_heights=[len(group) / total for group in groups],
        vertical_spacing=TITLE_HEIGHT_PX / height_px,
        subplot_titles=[f"{name_drop(depth)}: PPL ratio after distillation" for depth in depths],
    )
    for index, group in enumerate(groups, start=1):
        limit = find_limit([row.ppl_ratio.value or math.inf for row in group])
        edge = find_edge([row.ppl_ratio for row in group], limit=limit)
        for is_ours in (True, False):
            rows = [(place, row) for place, row in enumerate(group) if (row.strategy == summary.reference) == is_ours]
            color = DEPTH_COLORS[1] if is_ours else DEPTH_COLORS[0]
            estimates = [row.ppl_ratio for _, row in rows]
            is_far = [(estimate.value or math.inf) > limit for estimate in estimates]
            symbol = "diamond" if is_ours else "circle"
            points = go.Scatter(
                x=[edge if far else estimate.value for estimate, far in zip(estimates, is_far, strict=True)],
                y=[place for place, _ in rows],
                error_x={**draw_estimates(estimates, limit=limit), "color": color},
                text=[format_interval(e) if far else "" for e, far in zip(estimates, is_far, strict=True)],
                textposition="middle left",
                customdata=[
                    [list_picks(row), format_percent(row.excess), format_interval(row.ppl_ratio)] for _, row in rows
                ],
                hovertemplate="PPL ratio: %{customdata[2]}<br>dropped: %{customdata[0]}<br>above Seed's sampler: %{customdata[1]}<extra></extra>",
                mode="markers+text",
                showlegend=False,  # the axis names all
                marker={
                    "color": color,
                    "symbol": ["triangle-right" if far else symbol for far in is_far],
                    "size": 10 if is_ours else 8,
                },
            )
            figure.add_trace(points, row=index, col=1)
        labels = [
            f"{html.escape(titles[row.strategy], quote=False)}, {format_cost(row.cost, comparison.budget)}"
            for row in group
        ]
        figure.update_yaxes(
            tickvals=list(range(len(group))), ticktext=labels, range=[-0.7, len(group) - 0.3], row=index, col=1
        )
    caption = (
        "Perplexity on test text divided by the dense model's; smaller is better, each panel has its own axis. Mean over "
        "random seeds; bars: 95 % interval, as documents, distillations and runs vary. All share documents and seeds, so that "
        "two may differ although their bars overlap: the paired differences are in the table. Beside each name: what choosing "
        "cost, as a share of what each might spend. Triangles: farther off than the panel reaches, with the value."
    )
    figure = finish_figure(figure, title="What each reached", caption=caption, x_title="", y_title="")
    figure.update_annotations(font={"size": 13})
    return figure.update_layout(height=height_px + TITLE_HEIGHT_PX, margin={"t": 44})


def draw_costs(comparison: Comparison, *, summary: ComparisonSummary, titles: Mapping[str, str]) -> go.Figure:
    """Draw each strategy's perplexity above the reference's over what choosing cost it, depths by colour.

    Empty where the reference chose nothing.
    """
    figure = go.Figure()
    rows = [row for row in summary.rows if row.excess.value is not None]
    least = min([row.cost for row in rows if row.cost > 0], default=comparison.budget) / comparison.budget
    free = least / 3  # a logarithmic axis has no zero
    limit = find_limit([row.excess.value or 0.0 for row in rows] or [0.0])
    edge = find_edge([row.excess for row in rows], limit=limit)
    for depth in sorted({row.num_dropped for row in rows}):
        here = [row for row in rows if row.num_dropped == depth]
        figure.add_trace(
            go.Scatter(
                x=[max(row.cost / comparison.budget, free) for row in here],
                y=[100 * (edge if (row.excess.value or 0.0) > limit else row.excess.value or 0.0) for row in here],
                error_y={
                    **draw_estimates([row.excess for row in here], limit=limit, scale=100),
                    "color": choose_color(depth),
                },
                customdata=[
                    [html.escape(titles[row.strategy], quote=False), format_percent(row.excess), list_picks(row)]
                    for row in here
                ],
                hovertemplate="%{customdata[0]}: %{customdata[1]}<br>dropped: %{customdata[2]}<extra>%{fullData.name}</extra>",
                mode="markers",
                name=name_drop(depth),
                showlegend=True,
                marker={
                    "color": choose_color(depth),
                    "symbol": [
                        "triangle-up" if (row.excess.value or 0.0) > limit else choose_symbol(depth) for row in here
                    ],
                    "size": 10,
                },
            )
        )
    figure.add_hline(y=0, line={"color": GREY, "width": 1})
    figure.add_vline(x=1, line={"color": GREY, "width": 1, "dash": "dot"})
    ticks = {10.0**power: f"{10.0**power:g}" for power in range(-6, 3) if free < 10.0**power < 50}
    if any(row.cost == 0 for row in rows):
        ticks[free] = "nothing"
    figure.update_xaxes(type="log", tickvals=list(ticks), ticktext=list(ticks.values()), tickangle=0)
    caption = (
        f"Across: layer-tokens spent on choosing, as a share of the {comparison.budget:,.0f} that each might spend (dotted), "
        f"logarithmic. Up: perplexity above that of {titles[summary.reference]} at the same depth, in per cent, with its "
        "95 % interval; the line is level with it, and below it is better. Triangles at the upper edge are farther off. A strategy is named where the pointer rests."
    )
    return finish_figure(
        figure,
        title="What it paid to choose",
        caption=caption,
        x_title="cost of choosing, share of the budget",
        y_title="PPL above that of Seed's sampler, %",
    )


def find_limit(values: Sequence[float]) -> float:
    """Return how far an axis reaches: one or two hopeless strategies would press all others into a corner."""
    values = [value for value in values if math.isfinite(value)] or [1.0]  # broken models are beyond any
    least, middle = min(values), statistics.median(set(values))  # those that chose the same count once
    return max((value for value in values if value - least <= FAR * (middle - least)), default=max(values))


def find_edge(estimates: Sequence[Estimate], *, limit: float) -> float:
    """Return where the farthest bar of those within the limit ends."""
    near = [estimate for estimate in estimates if estimate.value is not None and estimate.value <= limit]
    return max((estimate.high for estimate in near if estimate.high is not None), default=limit)


def draw_estimates(estimates: Sequence[Estimate], *, limit: float, scale: float = 1.0) -> dict[str, object]:
    """Return error bars from ``low`` to ``high``; none where the value lies beyond the limit."""

    def measure(high: float | None, low: float | None, value: float | None) -> float:
        if high is None or low is None or value is None or value > limit:
            return 0.0
        return max(0.0, scale * (high - low))  # a percentile interval need not hold its point

    above = [measure(estimate.high, estimate.value, estimate.value) for estimate in estimates]
    below = [measure(estimate.value, estimate.low, estimate.value) for estimate in estimates]
    return {**draw_errors(above), "symmetric": False, "arrayminus": below}


def render_numbers(comparison: Comparison, *, summary: ComparisonSummary, titles: Mapping[str, str]) -> str:
    """Return the table of all strategies at all depths."""
    header = ["dropped, strategy", "sets chosen", "PPL ratio", f"PPL above {titles[summary.reference]}", "cost"]
    rows = [
        [
            f"{name_drop(row.num_dropped)}, {titles[row.strategy]}",
            list_picks(row),
            format_interval(row.ppl_ratio),
            ABSENT if row.strategy == summary.reference else format_percent(row.excess),
            format_cost(row.cost, comparison.budget),
        ]
        for depth in list_depths(summary)
        for row in summary.rows
        if row.num_dropped == depth
    ]
    caption = (
        "Within a depth, best first. Cost: layer-tokens (one layer applied to one token; other work by its multiply-adds) "
        "as a share of what each might spend; mean of the runs. Strategies that draw at random were run once for each "
        "random seed. Intervals: Student's t over documents, distillations and runs, not corrected for "
        "the number of comparisons."
    )
    return render_table(caption, header, rows)


def render_settings(comparison: Comparison, *, titles: Mapping[str, str], sources: Mapping[str, str]) -> str:
    """Return what was run: the settings, then every strategy with its source, scores and cost."""
    told = {
        "model": comparison.model,
        "candidates in the space": f"{comparison.num_candidates:,}",
        "recovery in scores of searches": name_rung(comparison.rung),
        "layer-tokens that each may spend": f"{comparison.budget:,.0f}",
        **comparison.settings,
    }
    runs: dict[str, list[StrategyRun]] = {}
    for run in comparison.runs:
        runs.setdefault(run.strategy, []).append(run)
    rows = [
        [
            titles[strategy],
            sources[strategy],
            f"{len(found)}",
            ", ".join(f"{run.num_scores:,}" for run in found),
            format_cost(sum(run.cost for run in found) / len(found), comparison.budget),
        ]
        for strategy, found in runs.items()
    ]
    caption = "Scores: candidates that were scored on all validation text, in each run."
    table = render_table(caption, ["strategy", "source", "runs", "scores", "cost"], rows)
    return f"{render_values(told)}\n<h3>Strategies</h3>\n{table}"


def list_picks(row: Reached) -> str:
    """Return ``1, 4 (2 of 3); none (1 of 3)``: the dropped layers of each pick, and how many runs chose them."""
    times = Counter(list_layers(pick.dropped_layers) for pick in row.picks)
    if row.num_without:
        times["none"] = row.num_without
    if not times:
        return "none; all cut in width"
    if len(times) == 1:
        return next(iter(times))
    return "; ".join(f"{told} ({count} of {row.num_runs})" for told, count in times.items())


def format_percent(estimate: Estimate) -> str:
    """Return ``+1.30 [+0.80, +1.90] %``."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ABSENT
    scaled = Estimate(value=100 * estimate.value, low=100 * estimate.low, high=100 * estimate.high)
    return f"{format_estimate(scaled)}\u00a0%"


def format_cost(cost: float, budget: float) -> str:
    """Return a cost as a share of the budget."""
    share = cost / budget
    if 0 < share < 0.0005:
        return "<0.001\u00a0×"
    return "nothing" if cost == 0 else f"{format_number(share, places=2 if share >= 0.0995 else 3)}\u00a0×"
