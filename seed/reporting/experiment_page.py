"""Experiments told: answers first, then figures, numbers and settings; one page, and the same in the terminal.

Statistics are handed in; nothing is estimated here.
"""

import html
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from seed import study_dir
from seed.console import Terminal
from seed.evidence import (
    Comparison,
    ComparisonSummary,
    DepthFidelity,
    FidelityStudy,
    FidelitySummary,
    Reached,
    RecoveredRow,
    RecoveryComparison,
    RungDifference,
)
from seed.records import Estimate, read_dropped
from seed.reporting.document import escape, render_document, render_figure, render_section, render_table, render_values
from seed.reporting.marks import DEPTH_COLORS, GREY, draw_errors, finish_figure
from seed.reporting.wording import (
    ABSENT,
    MARGIN_PERCENT,
    count_things,
    format_estimate,
    format_interval,
    format_number,
    list_layers,
    name_drop,
    name_rung,
)

Names = Mapping[str, tuple[str, str]]  # of strategies or recoveries: what people call each, and where it is published


class Titles(dict[str, str]):
    """What people call strategies or recoveries; one of another version keeps its name."""

    def __missing__(self, name: str) -> str:
        """The name itself."""
        return name


BASELINES = ("perplexity", "greedy", "greedy_recovered")  # what an answer names; all others are in figure and table
FAR = 6  # times the median's distance from the best
ROW_PX = 30
PANEL_PX = 66  # of a panel's title and axis
ONE, OTHER = (DEPTH_COLORS[0], "circle"), (DEPTH_COLORS[1], "diamond")
CEILING = "full distillation, repeated (noise ceiling)"
PAIRED = "Percentages: perplexity above that of {}, same documents, same random seeds. Brackets: 95 % interval, not corrected for the number of comparisons."


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; a row's first cell is its heading."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an experiment says. ``note``: how to read its numbers; ``repeat``: options that repeat all of it."""

    study: str
    question: str
    answers: Sequence[str]
    note: str
    figures: Sequence[go.Figure]
    tables: Sequence[Table]
    settings: Mapping[str, object]
    repeat: Mapping[str, Any] = field(default_factory=dict)


def write_page(findings: Findings, path: Path, *, command: str) -> None:
    """Write the page as one self-contained HTML file.

    Raises:
        ResourceError: the file cannot be written.
    """
    study_dir.write_bytes(path, render_page(findings, command=command).encode())


def render_page(findings: Findings, *, command: str) -> str:
    """Return the page as HTML. The same findings give the same bytes."""
    items = "\n".join(f"<li>{escape(answer)}</li>" for answer in findings.answers)
    answers = (
        f'<ul class="answers">\n{items}\n</ul>' if items else "<p>Nothing is finished yet, so there is no answer.</p>"
    )
    sections = [render_section("answer", "The answer", f'{answers}\n<p class="note">{escape(findings.note)}</p>')]
    for index, figure in enumerate(figure for figure in findings.figures if figure.data):
        drawing = render_figure(figure, key=str(index), with_library=index == 0)
        sections.append(render_section(f"finding-{index}", figure.layout.title.text, drawing))
    tables = [render_table(table.title, table.header, table.rows) for table in findings.tables if table.rows]
    sections += [
        render_section("numbers", "The numbers", "\n".join(tables)),
        render_section("settings", "How this was measured", render_values(findings.settings)),
        render_section("repeat", "Repeat this", f"<pre>{escape(command)}</pre>"),
    ]
    return render_document(sections, name=findings.study, question=f"Seed: {findings.question}")


def show_findings(terminal: Terminal, findings: Findings, *, page: Path) -> None:
    """Print the numbers, and what they mean."""
    for table in findings.tables:
        if table.rows:
            terminal.show_table(table.header, table.rows, title=table.title)
    for answer in findings.answers:
        terminal.say(answer)
    terminal.say(f"page: {page}", wrap=False)


# ---- estimates drawn


@dataclass(frozen=True, kw_only=True)
class Dot:
    """An estimate to be drawn: in a row of a panel, in the look of a series. ``hover``: plain text."""

    row: str
    series: str
    estimate: Estimate
    hover: str = ""


def draw_dots(
    panels: Mapping[str, Sequence[Dot]],
    looks: Mapping[str, tuple[str, str]],
    *,
    title: str,
    caption: str,
    x_title: str,
    lines: Sequence[float] = (),
    is_bounded: bool = False,
) -> go.Figure:
    """Draw estimates with their intervals, a panel for each title, rows from above in the order in which they come.

    ``looks``: colour and symbol of each series, named in a legend where there are several in a row; ``lines``: where the
    axis is marked. Unless the axis ``is_bounded``, what is far from all others is a triangle at its end, with its value.
    """
    if not panels:
        return go.Figure()
    rows = {panel: list(dict.fromkeys(dot.row for dot in dots))[::-1] for panel, dots in panels.items()}
    is_double = any(len(dots) > len(rows[panel]) for panel, dots in panels.items())
    row_px = ROW_PX * (1.4 if is_double else 1)
    total = sum(map(len, rows.values()))
    height_px = row_px * total + PANEL_PX * len(panels)
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        row_heights=[len(rows[panel]) / total for panel in panels],
        vertical_spacing=PANEL_PX / height_px,
        subplot_titles=[escape_plotly(panel) for panel in panels],
    )
    for index, (panel, dots) in enumerate(panels.items(), start=1):
        estimates = [dot.estimate for dot in dots]
        limit = math.inf if is_bounded else find_limit([one.value for one in estimates if one.value is not None])
        edge = find_edge(estimates, limit=limit)
        for place, (series, (color, symbol)) in enumerate(looks.items()):
            here = [dot for dot in dots if dot.series == series]
            far = [(math.inf if dot.estimate.value is None else dot.estimate.value) > limit for dot in here]
            shift = 0.17 - 0.34 * place if is_double else 0.0
            trace = go.Scatter(
                x=[edge if is_far else dot.estimate.value for dot, is_far in zip(here, far, strict=True)],
                y=[rows[panel].index(dot.row) + shift for dot in here],
                error_x={**draw_bars([dot.estimate for dot in here], limit=limit), "color": color},
                text=[
                    format_interval(dot.estimate).partition(" ")[0] if is_far else ""
                    for dot, is_far in zip(here, far, strict=True)
                ],
                textposition="middle left",
                customdata=[[escape_plotly(dot.row), escape_plotly(dot.hover)] for dot in here],
                hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
                mode="markers+text",
                name=series,
                legendgroup=series,
                showlegend=is_double and index == 1,
                marker={
                    "color": color,
                    "symbol": ["triangle-right" if is_far else symbol for is_far in far],
                    "size": 9,
                },
            )
            figure.add_trace(trace, row=index, col=1)
        for line in lines:
            figure.add_vline(
                x=line, line={"color": GREY, "width": 1, "dash": "dot" if line else "solid"}, row=index, col=1
            )
        labels = [escape_plotly(row) for row in rows[panel]]
        figure.update_yaxes(
            tickvals=list(range(len(labels))), ticktext=labels, range=[-0.7, len(labels) - 0.3], row=index, col=1
        )
    figure = finish_figure(figure, title=title, caption=caption, x_title="", y_title="")
    figure.update_xaxes(tickangle=0).update_xaxes(title=x_title, row=len(panels), col=1)
    figure.update_annotations(font={"size": 13})
    return figure.update_layout(height=height_px + PANEL_PX, margin={"t": 44, "b": 90})


def find_limit(values: Sequence[float]) -> float:
    """Return how far an axis reaches: one or two hopeless strategies would press all others into a corner."""
    values = [value for value in values if math.isfinite(value)] or [1.0]  # broken models are beyond any
    least, middle = min(values), statistics.median(set(values))  # those that chose the same count once
    return max((value for value in values if value - least <= FAR * (middle - least)), default=max(values))


def find_edge(estimates: Sequence[Estimate], *, limit: float) -> float:
    """Return where the farthest bar of those within the limit ends."""
    near = [estimate for estimate in estimates if estimate.value is not None and estimate.value <= limit]
    return max((estimate.high for estimate in near if estimate.high is not None), default=limit)


def draw_bars(estimates: Sequence[Estimate], *, limit: float = math.inf) -> dict[str, object]:
    """Return error bars from ``low`` to ``high``; none where the value lies beyond the limit."""

    def measure(high: float | None, low: float | None, value: float | None) -> float:
        if high is None or low is None or value is None or value > limit:
            return 0.0
        return max(0.0, high - low)  # a percentile interval need not hold its point

    above = [measure(estimate.high, estimate.value, estimate.value) for estimate in estimates]
    below = [measure(estimate.value, estimate.low, estimate.value) for estimate in estimates]
    return {**draw_errors(above), "symmetric": False, "arrayminus": below}


def escape_plotly(text: str) -> str:
    """Return text that Plotly shows as it is: it reads some HTML in labels, and ``%{`` in hover texts."""
    return html.escape(text, quote=False).replace("%{", "% {")


def scale(estimate: Estimate, factor: float) -> Estimate:
    """Return the estimate in another unit."""
    value, low, high = (None if one is None else factor * one for one in (estimate.value, estimate.low, estimate.high))
    return Estimate(value=value, low=low, high=high)


def format_percent(estimate: Estimate) -> str:
    """Return ``+1.30 [+0.80, +1.90] %``."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ABSENT
    return f"{format_estimate(scale(estimate, 100))}\u00a0%"


def format_share(share: float | None, *, places: int) -> str:
    """Return a share in per cent."""
    return ABSENT if share is None else f"{format_number(100 * share, places=places)}\u00a0%"


# ---- strategies


def tell_comparison(
    comparison: Comparison, summary: ComparisonSummary, *, names: Names, repeat: Mapping[str, Any]
) -> Findings:
    """Tell what strategies reached at equal cost."""
    titles = Titles({name: title for name, (title, _) in names.items()})
    theirs = titles[summary.reference]
    by_depth: dict[int, list[Reached]] = {}
    for row in summary.rows:
        by_depth.setdefault(row.num_dropped, []).append(row)
    header = ["strategy", "sets chosen", "PPL ratio", f"PPL above {theirs}", "cost"]
    tables = [
        Table(
            title=f"{name_drop(depth)}, distilled, on test text; best first",
            header=header,
            rows=[
                [
                    titles[row.strategy],
                    list_picks(row),
                    format_interval(row.ppl_ratio),
                    ABSENT if row.strategy == summary.reference else format_percent(row.excess),
                    format_cost(row.cost, comparison.budget),
                ]
                for row in rows
            ],
        )
        for depth, rows in by_depth.items()
    ]
    panels = {
        f"{name_drop(depth)}: PPL ratio after distillation": [
            Dot(
                row=f"{titles[row.strategy]}, {format_cost(row.cost, comparison.budget)}",
                series="reference" if row.strategy == summary.reference else "others",
                estimate=row.ppl_ratio,
                hover=f"PPL ratio {format_interval(row.ppl_ratio)}, above {theirs}: {format_percent(row.excess)}; dropped: {list_picks(row)}",
            )
            for row in rows
        ]
        for depth, rows in by_depth.items()
    }
    reached = draw_dots(
        panels,
        {"others": ONE, "reference": OTHER},
        title="What each reached after distillation",
        caption="Perplexity on test text divided by the dense model's; smaller is better, each panel has its own axis. Mean over "
        "random seeds; bars: 95 % interval, as documents, distillations and runs vary. Two may differ although their bars overlap: "
        "the paired differences are in the tables. Beside each name: what choosing cost, as a share of what each might spend. "
        "Triangles: farther off than the panel reaches, with the value.",
        x_title="PPL ratio",
    )
    runs = {run.strategy: [one for one in comparison.runs if one.strategy == run.strategy] for run in comparison.runs}
    num_seeds = len({final.rng_seed for final in comparison.finals})
    return Findings(
        study=comparison.study,
        question="what does searching for layers buy?",
        answers=[say_reached(summary, rows, titles=titles) for rows in by_depth.values()],
        note="PPL ratio: perplexity on test text after full distillation, divided by the dense model's. "
        + PAIRED.format(theirs)
        + f" As documents, distillations ({count_things(num_seeds, 'random seed')}) and runs vary. A difference counts when its "
        "interval excludes zero. Cost: layer-tokens (one layer applied to one token; other work by its multiply-adds) as a share "
        "of what each might spend.",
        figures=[reached],
        tables=tables,
        settings={
            "model": comparison.model,
            "candidates in the space": f"{comparison.num_candidates:,}",
            "recovery in scores of searches": name_rung(comparison.proxy),
            "layer-tokens that each may spend": f"{comparison.budget:,.0f}",
            **comparison.settings,
            "strategies": {
                titles[name]: f"{names.get(name, (name, ABSENT))[1]}; candidates scored on all validation text: "
                + ", ".join(f"{run.num_scores:,}" for run in found)
                for name, found in runs.items()
            },
        },
        repeat=repeat,
    )


def say_reached(summary: ComparisonSummary, rows: Sequence[Reached], *, titles: Mapping[str, str]) -> str:
    """Return, as plain text, what the reference reached at a depth, beside one-shot, greedy and whatever beats it."""
    found = {row.strategy: row for row in rows}
    begin = f"{count_things(rows[0].num_dropped, 'layer')} dropped: {titles[summary.reference]}"
    ours = found.get(summary.reference)
    if ours is None:
        return f"{begin} chose nothing of this depth."
    beside = [f"{titles[name]} {say_excess(found[name], ours)}" for name in BASELINES if name in found]
    better = [
        f"{titles[name]} ({format_percent(row.excess)})"
        for name, row in found.items()
        if name not in BASELINES and row.excess.high is not None and row.excess.high < 0
    ]
    told = "; ".join([f"{begin} reaches a PPL ratio of {format_interval(ours.ppl_ratio)}", *beside])
    return f"{told}. " + (
        f"Better than it: {', '.join(better)}." if better else "No other strategy is measurably better."
    )


def say_excess(row: Reached, ours: Reached) -> str:
    """Return how a strategy's perplexity lies to the reference's."""
    excess = row.excess
    if set(row.picks) == set(ours.picks) and excess.value == 0:
        return f"chooses the same set{'s' * (len(set(row.picks)) > 1)}"
    if excess.low is None or excess.high is None:
        return "cannot be compared"
    if excess.low <= 0 <= excess.high:
        return f"cannot be told apart ({format_percent(excess)})"
    return f"ends {'higher' if excess.low > 0 else 'lower'} ({format_percent(excess)})"


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


def format_cost(cost: float, budget: float) -> str:
    """Return a cost as a share of the budget."""
    share = cost / budget
    if 0 < share < 0.0005:
        return "<0.001\u00a0×"
    return "nothing" if cost == 0 else f"{format_number(share, places=2 if share >= 0.0995 else 3)}\u00a0×"


# ---- fidelity


def tell_fidelity(study: FidelityStudy, summary: FidelitySummary) -> Findings:
    """Tell whether the cheap scores order candidates as full distillation does."""
    tables = [
        Table(
            title=f"{count_things(depth.num_dropped, 'layer')} dropped, {count_things(depth.num_candidates, 'candidate')}, {depth.num_near} of them near the best",
            header=["score", "τ", "τ near the best", "regret of its pick", "recovery", "seconds"],
            rows=[
                [
                    CEILING if proxy is depth.ceiling else name_rung(proxy.proxy),
                    format_estimate(proxy.tau),
                    format_estimate(proxy.near_tau),
                    format_share(proxy.top1_regret, places=2),
                    format_share(proxy.recovery, places=0),
                    ABSENT if proxy.seconds is None else format_number(proxy.seconds, places=2),
                ]
                for proxy in (*depth.proxies, depth.ceiling)
            ],
        )
        for depth in summary.depths
    ]
    differences = Table(
        title=f"Differences of τ on the same candidates and the same {summary.bootstrap_draws:,} resamples of them",
        header=["dropped, scores", "difference of τ", "reading"],
        rows=[
            [
                f"{name_drop(pair.num_dropped)}, {name_rung(pair.one)} less {name_rung(pair.other)}",
                format_estimate(pair.tau),
                read_difference(pair),
            ]
            for depth in summary.depths
            for pair in depth.differences
        ],
    )
    left_out = sum(depth.num_left_out for depth in summary.depths)
    answers = [say_order(depth) for depth in summary.depths]
    if "doubling_the_budget" in study.settings:
        answers.append(f"Twice the budget: {study.settings['doubling_the_budget']}.")
    return Findings(
        study=study.study,
        question="does the cheap score order candidates as full distillation does?",
        answers=answers,
        note="τ: Kendall's tau-b with the test loss of each final, averaged over random seeds: +1 when a score orders all pairs of "
        "candidates as full distillation does, 0 when it does no better than chance; within one depth, never pooled. Near: within "
        f"{100 * study.near_margin:g} % of the depth's best PPL by closed form. Brackets: 95 % interval by bootstrap over candidates, near "
        "ones and the rest resampled apart, each comparison by itself; a difference counts when its interval excludes zero. Regret: how "
        "much higher the PPL of a score's first choice is after distillation than that of the best. Recovery: the median share of the "
        "damage to the validation loss that is undone. Seconds: the median for one candidate. Noise ceiling: one final judged by the "
        "other; where a score can be expected to end, but not a bound, since a score with less noise than a final may pass it."
        + (f" Left out for want of a score or a final: {count_things(left_out, 'candidate')}." if left_out else ""),
        figures=[draw_taus(summary)],
        tables=[*tables, differences],
        settings={
            "model": study.model,
            "candidates": len(study.rows),
            "dense loss, validation (nats per token)": format_number(study.dense_validation_loss, places=4),
            "dense loss, test (nats per token)": format_number(study.dense_test_loss, places=4),
            **study.settings,
        },
    )


def say_order(depth: DepthFidelity) -> str:
    """Return, as plain text, whether the scores that compete can be told apart at this depth."""
    begin = f"{count_things(depth.num_dropped, 'layer')} dropped, {count_things(depth.num_candidates, 'candidate')}"
    told = ", ".join(f"{format_estimate(proxy.tau)} for {name_rung(proxy.proxy)}" for proxy in depth.proxies)
    answer = f"{begin}: Kendall's tau with full distillation is {told}."
    names = [
        proxy.proxy for proxy in depth.proxies if proxy.proxy != "none"
    ]  # the first and the last compete for a search's time
    for pair in depth.differences:
        if (pair.one, pair.other) == (names[0], names[-1]):
            difference = f"{name_rung(pair.one).capitalize()} less {name_rung(pair.other)}: {format_estimate(pair.tau)}"
            answer += f" {difference}, {read_difference(pair)}."
    if depth.ceiling.tau.value is None:
        return f"{answer} Each candidate was distilled once, so how well a final repeats itself is not known."
    return f"{answer} Two finals of the same candidates agree to {format_estimate(depth.ceiling.tau)}."


def read_difference(difference: RungDifference) -> str:
    """Return what a difference and its interval allow to say."""
    if difference.tau.value is None:
        return "there is no order to compare"
    if difference.tau.low is None:
        return "too few candidates to tell"
    if difference.favours is None:
        return "cannot tell them apart"
    return f"in favour of {name_rung(difference.favours)}"


def draw_taus(summary: FidelitySummary) -> go.Figure:
    """Draw Kendall's tau of each score with its interval, of all candidates and of those near the best."""
    panels = {}
    for depth in summary.depths:
        dots = []
        for proxy in (*depth.proxies, depth.ceiling):
            seconds = "" if proxy.seconds is None else f", {format_number(proxy.seconds, places=1)}\u00a0s"
            row = ("another final (noise ceiling)" if proxy is depth.ceiling else name_rung(proxy.proxy)) + seconds
            for series, tau in (("all candidates", proxy.tau), ("near the best", proxy.near_tau)):
                dots.append(Dot(row=row, series=series, estimate=tau, hover=f"{series}: τ {format_estimate(tau)}"))
        panels[f"{name_drop(depth.num_dropped)}: Kendall's tau with the final"] = dots
    return draw_dots(
        panels,
        {"all candidates": ONE, "near the best": OTHER},
        title="Agreement and its price",
        caption="Kendall's tau with the finals' test loss, with its 95 % interval by bootstrap over candidates. Beside each score: "
        "seconds a candidate, the median. Intervals of two scores may overlap although their paired difference excludes zero; the "
        "differences are in the last table.",
        x_title="Kendall's tau",
        lines=(0.0,),
        is_bounded=True,
    )


# ---- recoveries


def tell_recoveries(
    comparison: RecoveryComparison, rows: Sequence[RecoveredRow], *, names: Names, repeat: Mapping[str, Any]
) -> Findings:
    """Tell which way to recover the same models is best."""
    ledger, titles = comparison.ledger, Titles({name: title for name, (title, _) in names.items()})
    theirs = titles[comparison.reference]
    groups: dict[tuple[str, str], list[RecoveredRow]] = {}
    panels: dict[str, list[Dot]] = {}
    for row in rows:
        groups.setdefault((row.key, row.at), []).append(row)
        dot = Dot(
            row=titles[row.recovery],
            series=row.at,
            estimate=scale(row.excess, 100),
            hover=f"at {row.at}, {row.tokens:,} tokens: {format_percent(row.excess)}, PPL ratio {format_interval(row.ppl_ratio)}",
        )
        panels.setdefault(name_key(row.key), []).append(dot)
    tables = [
        Table(
            title=f"{name_key(key)}, at {at}; on test text, best first",
            header=["recovery", "tokens", "seconds", "PPL ratio", f"PPL above {theirs}", "verdict"],
            rows=[
                [
                    titles[row.recovery],
                    f"{row.tokens:,}",
                    format_number(row.seconds, places=1),
                    format_interval(row.ppl_ratio),
                    ABSENT if row.recovery == comparison.reference else format_percent(row.excess),
                    "reference" if row.recovery == comparison.reference else row.verdict,
                ]
                for row in group
            ],
        )
        for (key, at), group in groups.items()
    ]
    caption = (
        f"Perplexity on test text above that of {theirs} on the same model, in per cent; left of the line is better. Bars: 95 % "
        f"interval of the paired difference, as documents and random seeds vary. Dotted: {MARGIN_PERCENT} either way, what counts "
        "as the same. Each panel has its own axis. Triangles: farther off than the panel reaches, with the value."
    )
    looks = {"equal tokens": ONE, "equal time": OTHER}
    differences = draw_dots(
        panels,
        looks,
        title="What each recovery reached",
        caption=caption,
        x_title="PPL above the reference, %",
        lines=(0.0, -0.5, 0.5),
    )
    runs = {run.recovery: [one for one in ledger.runs if one.recovery == run.recovery] for run in ledger.runs}
    return Findings(
        study=ledger.study,
        question="which recovery is best?",
        answers=[say_recovered(group, reference=comparison.reference, titles=titles) for group in groups.values()],
        note="PPL ratio: perplexity on test text, divided by the dense model's. "
        + PAIRED.format(theirs)
        + f" Equivalent: two one-sided tests at 5 % put the difference within {MARGIN_PERCENT} of perplexity; lower or higher: the 95 % "
        "interval excludes zero; else these runs cannot tell. Equal time: as many tokens as fit the seconds that the reference took "
        f"for {comparison.equal_tokens:,}.",
        figures=[differences],
        tables=tables,
        settings={
            "model": ledger.model,
            "parameters of the dense model": f"{ledger.dense_num_params:,}",
            "documents of the test text": f"{len(ledger.test_counts):,}",
            "reference": theirs,
            **ledger.settings,
            "learning rates of each": {
                titles[name]: f"{names.get(name, (name, ABSENT))[1]}; "
                + ", ".join(dict.fromkeys(f"{run.learning_rate:g}" for run in found))
                for name, found in runs.items()
            },
        },
        repeat=repeat,
    )


def say_recovered(rows: Sequence[RecoveredRow], *, reference: str, titles: Mapping[str, str]) -> str:
    """Return, as plain text, which recovery of one model at one budget is best, and how the others lie to the reference."""
    begin = f"{name_key(rows[0].key)}, at {rows[0].at}".capitalize()
    theirs, best = titles[reference], rows[0]
    if best.ppl_ratio.value is None:
        return f"{begin}: no recovery ended with losses that are numbers."
    is_clear = best.recovery == reference or best.verdict == "lower"
    though = "" if is_clear else f", though not measurably below {theirs}"
    answer = f"{begin}: {titles[best.recovery]} ends lowest, PPL ratio {format_interval(best.ppl_ratio)}{though}."
    parts = []
    for verdict in ("lower", "equivalent", "cannot tell", "higher"):  # of seed.stats, from the best to the worst
        found = [row for row in rows if row.verdict == verdict and row.recovery != reference]
        told = [f"{titles[row.recovery]} ({format_percent(row.excess)})" for row in found]
        if told:
            parts.append(f"{verdict}: {', '.join(told)}")
    return f"{answer} Beside {theirs}, {'; '.join(parts)}." if parts else answer


def name_key(key: str) -> str:
    """Return what people call the model of a key: ``without 3, 5``; others keep it."""
    layers = read_dropped(key)
    return f"without {list_layers(layers)}" if layers else key
