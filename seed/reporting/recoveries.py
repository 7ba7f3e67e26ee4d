"""The page of recoveries side by side: which way to recover the same models is best, at equal tokens and at equal time.

Answers first, then differences to the reference, then how losses fell over time, then numbers and settings. Statistics are
handed in; nothing is estimated here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from seed import folder
from seed.evidence import RecoveredRow, RecoveryComparison, TrainedRun
from seed.reporting.comparison import draw_estimates, find_edge, find_limit, format_percent
from seed.reporting.document import escape as escape_html
from seed.reporting.document import render_document, render_figure, render_section, render_table, render_values
from seed.reporting.marks import DEPTH_COLORS, GREY, finish_figure
from seed.reporting.trained import Line, draw_lines, escape, name_key
from seed.reporting.wording import ABSENT, MARGIN_PERCENT, count_things, format_interval, format_number

QUESTION = "Seed: which recovery is best?"
AT = ("equal tokens", "equal time")  # optimize.recovered.AT
# verdicts of optimize.replication, from the best to the worst
SAYINGS = {
    "lower": "lower",
    "equivalent": f"equivalent within {MARGIN_PERCENT}",
    "cannot tell": "cannot be told apart",
    "higher": "higher",
}
MARGIN = 0.5  # per cent of perplexity, as in MARGIN_PERCENT
ROW_PX = 44  # holds both budgets
TITLE_PX = 66
MARKS = {"equal tokens": (DEPTH_COLORS[0], "circle", 0.17), "equal time": (DEPTH_COLORS[1], "diamond", -0.17)}
COLORS = (*DEPTH_COLORS[:5], GREY)  # the sixth is too near the first for thin lines
DASHES = {"equal tokens": "solid", "equal time": "dot"}


def write_recoveries_page(
    comparison: RecoveryComparison,
    rows: Sequence[RecoveredRow],
    path: Path,
    *,
    command: str,
    titles: Mapping[str, str],
    sources: Mapping[str, str],
) -> None:
    """Write the page of recoveries as one self-contained HTML file.

    Args:
        comparison: the raw numbers.
        rows: their statistics; within a model and a budget best first.
        path: the file; readers see the old one or the new one, never half of it.
        command: the shell command that repeats the comparison.
        titles: what people call each recovery.
        sources: where each recovery is published.

    Raises:
        ResourceError: the file cannot be written.
    """
    page = render_recoveries_page(comparison, rows, command=command, titles=titles, sources=sources)
    folder.write_bytes(path, page.encode())


def render_recoveries_page(
    comparison: RecoveryComparison,
    rows: Sequence[RecoveredRow],
    *,
    command: str,
    titles: Mapping[str, str],
    sources: Mapping[str, str],
) -> str:
    """Return the page as HTML. The same records give the same bytes."""
    drawn = [
        ("differences", "What each recovery reached", draw_differences(comparison, rows, titles=titles)),
        ("curves", "Validation loss over time", draw_curves(comparison, titles=titles)),
    ]
    shown = [row for row in drawn if row[2].data]
    sections = [
        render_section("answer", "The answer", render_answers(comparison, rows, titles=titles)),
        *(
            render_section(key, title, render_figure(figure, key=key, with_library=index == 0))
            for index, (key, title, figure) in enumerate(shown)
        ),
        render_section("numbers", "The numbers", render_numbers(comparison, rows, titles=titles)),
        render_section(
            "settings", "How this was measured", render_settings(comparison, titles=titles, sources=sources)
        ),
        render_section("repeat", "Repeat this", f"<pre>{escape_html(command)}</pre>"),
    ]
    return render_document(sections, name=comparison.ledger.study, question=QUESTION)


def split_rows(rows: Sequence[RecoveredRow]) -> dict[tuple[str, str], list[RecoveredRow]]:
    """Return the rows by model and budget, in their order."""
    found: dict[tuple[str, str], list[RecoveredRow]] = {}
    for row in rows:
        found.setdefault((row.key, row.at), []).append(row)
    return found


def title_of(name: str, titles: Mapping[str, str]) -> str:
    """Return what people call a recovery; one of another version keeps its name."""
    return titles.get(name, name)


# ---- answers


def say_best(rows: Sequence[RecoveredRow], *, reference: str, titles: Mapping[str, str]) -> str:
    """Return, as plain text, which recovery of one model at one budget is best."""
    first = rows[0]
    begin = f"{name_key(first.key)}, at {first.at}"
    begin = begin[0].upper() + begin[1:]
    best = next((row for row in rows if row.ppl_ratio.value is not None), None)
    if best is None:
        return f"{begin}: no recovery ended with losses that are numbers."
    is_clear = best.recovery == reference or best.verdict == "lower"
    though = "" if is_clear else f", though not measurably below {title_of(reference, titles)}"
    return (
        f"{begin}: {title_of(best.recovery, titles)} ends lowest, PPL ratio {format_interval(best.ppl_ratio)}{though}."
    )


def say_others(rows: Sequence[RecoveredRow], *, reference: str, titles: Mapping[str, str]) -> str:
    """Return, as plain text, how the other recoveries lie to the reference."""
    theirs = title_of(reference, titles)
    if all(row.recovery != reference or row.ppl_ratio.value is None for row in rows):
        return f"Nothing can be compared with {theirs}, which has no number here."
    others = [row for row in rows if row.recovery != reference]
    parts = []
    for verdict, saying in SAYINGS.items():
        names = [
            f"{title_of(row.recovery, titles)} ({format_percent(row.excess)})"
            if row.excess.value is not None
            else title_of(row.recovery, titles)
            for row in others
            if row.verdict == verdict
        ]
        if names:
            parts.append(f"{saying}: {', '.join(names)}")
    return f"Beside {theirs}, {'; '.join(parts)}." if parts else f"Nothing else stands beside {theirs}."


def count_wins(rows: Sequence[RecoveredRow], *, reference: str, titles: Mapping[str, str]) -> str:
    """Return how often a recovery is measurably better than the reference, of all models and budgets."""
    groups = [
        group
        for group in split_rows(rows).values()
        if any(row.recovery == reference for row in group) and len(group) > 1
    ]
    beaten = sum(any(row.verdict == "lower" for row in group) for group in groups)
    theirs = title_of(reference, titles)
    if not groups:
        return f"No other recovery stands beside {theirs} yet."
    told = count_things(len(groups), "comparison")
    if not beaten:
        return (
            f"In {told} (each model, at equal tokens and at equal time) no recovery is measurably better than {theirs}."
        )
    return f"In {beaten} of {told} (each model, at equal tokens and at equal time) a recovery is measurably better than {theirs}."


def render_answers(comparison: RecoveryComparison, rows: Sequence[RecoveredRow], *, titles: Mapping[str, str]) -> str:
    """Return the answers, one for each model and budget, as HTML."""
    if not rows:
        return "<p>Nothing is recovered yet, so there is no answer.</p>"
    items = "\n".join(
        f"<li><strong>{escape_html(say_best(group, reference=comparison.reference, titles=titles))}</strong>\n"
        f"<p>{escape_html(say_others(group, reference=comparison.reference, titles=titles))}</p></li>"
        for group in split_rows(rows).values()
    )
    num_seeds = len({run.rng_seed for run in comparison.ledger.runs})
    note = (
        f"PPL ratio: perplexity on test text, divided by the dense model's. Percentages: perplexity above that of "
        f"{title_of(comparison.reference, titles)}, same documents, same random seeds ({count_things(num_seeds, 'seed')}). "
        f"Equivalent: two one-sided tests at 5 % put the difference within {MARGIN_PERCENT} of perplexity; lower or higher: the "
        "95 % interval excludes zero; else these runs cannot tell. Equal time: as many tokens as fit the seconds that the "
        f"reference took for {comparison.equal_tokens:,}."
        + (" With one random seed, how trainings vary is not known and not in it." if num_seeds == 1 else "")
    )
    intro = count_wins(rows, reference=comparison.reference, titles=titles)
    return f'<p>{escape_html(intro)}</p>\n<ul class="answers">\n{items}\n</ul>\n<p class="note">{escape_html(note)}</p>'


# ---- figures


def draw_differences(
    comparison: RecoveryComparison, rows: Sequence[RecoveredRow], *, titles: Mapping[str, str]
) -> go.Figure:
    """Draw each recovery's perplexity above the reference's with its interval: a panel for each model, both budgets."""
    panels: dict[str, list[RecoveredRow]] = {}
    for row in rows:
        if row.excess.value is not None:
            panels.setdefault(row.key, []).append(row)
    if not panels:
        return go.Figure()
    names = {key: list(dict.fromkeys(row.recovery for row in found))[::-1] for key, found in panels.items()}
    total = sum(map(len, names.values()))
    height_px = ROW_PX * total + TITLE_PX * len(panels)
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        row_heights=[len(names[key]) / total for key in panels],
        vertical_spacing=TITLE_PX / height_px,
        subplot_titles=[escape(name_key(key)) for key in panels],
    )
    shown: set[str] = set()
    theirs = title_of(comparison.reference, titles)
    for index, (key, found) in enumerate(panels.items(), start=1):
        limit = find_limit([row.excess.value or 0.0 for row in found])
        edge = find_edge([row.excess for row in found], limit=limit)
        for at, (color, symbol, shift) in MARKS.items():
            here = [row for row in found if row.at == at]
            if not here:
                continue
            far = [(row.excess.value or 0.0) > limit for row in here]
            figure.add_trace(
                go.Scatter(
                    x=[100 * (edge if f else row.excess.value or 0.0) for row, f in zip(here, far, strict=True)],
                    y=[names[key].index(row.recovery) + shift for row in here],
                    error_x={
                        **draw_estimates([row.excess for row in here], limit=limit, scale=100),
                        "color": color,
                    },
                    text=[
                        f"{100 * (row.excess.value or 0.0):+.1f}\u00a0%" if f else ""
                        for row, f in zip(here, far, strict=True)
                    ],
                    textposition="middle left",
                    customdata=[
                        [
                            escape(title_of(row.recovery, titles)),
                            "level" if row.recovery == comparison.reference else format_percent(row.excess),
                            format_interval(row.ppl_ratio),
                            f"{row.tokens:,}",
                        ]
                        for row in here
                    ],
                    hovertemplate="%{customdata[0]}: %{customdata[1]}<br>PPL ratio: %{customdata[2]}<br>tokens: %{customdata[3]}<extra>"
                    f"{at}</extra>",
                    mode="markers+text",
                    name=at,
                    legendgroup=at,
                    showlegend=at not in shown,
                    marker={
                        "color": color,
                        "symbol": ["triangle-right" if f else symbol for f in far],
                        "size": 9,
                    },
                ),
                row=index,
                col=1,
            )
            shown.add(at)
        figure.add_vline(x=0, line={"color": GREY, "width": 1}, row=index, col=1)
        for side in (-MARGIN, MARGIN):
            figure.add_vline(x=side, line={"color": GREY, "width": 1, "dash": "dot"}, row=index, col=1)
        figure.update_yaxes(
            tickvals=list(range(len(names[key]))),
            ticktext=[escape(title_of(name, titles)) for name in names[key]],
            range=[-0.6, len(names[key]) - 0.4],
            row=index,
            col=1,
        )
    caption = (
        f"Perplexity on test text above that of {theirs} on the same model, in per cent; left of the line is better. Bars: 95 % "
        f"interval of the paired difference, as documents and random seeds vary. Dotted: {MARGIN_PERCENT} either way, what counts "
        "as the same. Each panel has its own axis. Triangles: farther off than the panel reaches, with the value."
    )
    figure = finish_figure(figure, title="What each recovery reached", caption=caption, x_title="", y_title="")
    figure.update_xaxes(tickangle=0).update_xaxes(title="PPL above the reference, %", row=len(panels), col=1)
    figure.update_annotations(font={"size": 13})
    return figure.update_layout(height=height_px + TITLE_PX, margin={"t": 44, "b": 90})


def draw_curves(comparison: RecoveryComparison, *, titles: Mapping[str, str]) -> go.Figure:
    """Draw the validation loss of every run over seconds: a panel for each model, a thin line for each random seed."""
    names = list(dict.fromkeys(run.recovery for run in comparison.ledger.runs))
    panels: dict[str, list[Line]] = {}
    for run in comparison.ledger.runs:
        title = title_of(run.recovery, titles)
        at = AT[0] if run.tokens == comparison.equal_tokens else AT[1]
        panels.setdefault(name_key(run.key), []).append(
            Line(
                name=title,
                detail=f"{title}, {run.tokens:,} tokens, random seed {run.rng_seed}",
                color=COLORS[names.index(run.recovery) % len(COLORS)],
                dash=DASHES[at],
                x=list_seconds(run),
                losses=tuple(point.validation_loss for point in run.curve),
            )
        )
    return draw_lines(
        panels,
        dense_loss=None,
        title="Validation loss over time",
        caption="Validation loss, nats per token, over seconds of training, looks at validation text included; seconds are spread "
        "evenly over a run's tokens. A line for each random seed. Solid: at equal tokens; dotted: at equal time. Each panel has "
        "its own axis and leaves out what lies far above, such as early looks.",
        x_title="seconds of training",
        x_name="seconds",
    )


def list_seconds(run: TrainedRun) -> tuple[float, ...]:
    """Return when each look of a run took place, its seconds spread evenly over its tokens."""
    last = run.curve[-1].tokens if run.curve else 0
    return tuple(round(run.seconds * point.tokens / last, 3) if last else 0.0 for point in run.curve)


# ---- numbers


def render_numbers(comparison: RecoveryComparison, rows: Sequence[RecoveredRow], *, titles: Mapping[str, str]) -> str:
    """Return the table of all recoveries."""
    if not rows:
        return ""
    header = ["model, budget, recovery", *list_columns(comparison, titles=titles)[1:]]
    cells = [
        [f"{name_key(row.key)}, {row.at}, {title_of(row.recovery, titles)}", *list_cells(row, comparison=comparison)]
        for row in rows
    ]
    caption = (
        "Within a model and a budget, best first. Seconds: mean of the runs. Intervals: Student's t over documents and random "
        "seeds, not corrected for the number of comparisons."
    )
    return render_table(caption, header, cells)


def list_columns(comparison: RecoveryComparison, *, titles: Mapping[str, str]) -> list[str]:
    """Return the heads of a table of recoveries: the recovery, then what ``list_cells`` gives."""
    above = f"PPL above {title_of(comparison.reference, titles)}"
    return ["recovery", "tokens", "seconds", "PPL ratio", above, "verdict"]


def list_cells(row: RecoveredRow, *, comparison: RecoveryComparison) -> list[str]:
    """Return tokens, seconds, PPL ratio, excess and verdict."""
    is_reference = row.recovery == comparison.reference
    return [
        f"{row.tokens:,}",
        format_number(row.seconds, places=1),
        format_interval(row.ppl_ratio),
        ABSENT if is_reference else format_percent(row.excess),
        "reference" if is_reference else row.verdict,
    ]


def render_settings(comparison: RecoveryComparison, *, titles: Mapping[str, str], sources: Mapping[str, str]) -> str:
    """Return what was run: the settings, then every recovery with its source, learning rates and seeds."""
    ledger = comparison.ledger
    told = {
        "model": ledger.model,
        "parameters of the dense model": f"{ledger.dense_num_params:,}",
        "documents of the test text": f"{len(ledger.test_counts):,}",
        "reference": title_of(comparison.reference, titles),
        "tokens, where they are equal": f"{comparison.equal_tokens:,}",
        **ledger.settings,
    }
    body = render_values(told)
    runs: dict[str, list[TrainedRun]] = {}
    for run in ledger.runs:
        runs.setdefault(run.recovery, []).append(run)
    if not runs:
        return body
    rows = [
        [
            title_of(name, titles),
            sources.get(name, ABSENT),
            f"{len(found)}",
            ", ".join(dict.fromkeys(f"{run.learning_rate:g}" for run in found)),
            ", ".join(map(str, sorted({run.rng_seed for run in found}))),
        ]
        for name, found in runs.items()
    ]
    header = ["recovery", "source", "runs", "learning rates", "random seeds"]
    table = render_table("Learning rates were chosen for each model and recovery.", header, rows)
    return f"{body}\n<h3>Recoveries</h3>\n{table}"
