"""A study's result in sentences and tables of plain text, for terminal, page and note alike; what is said is chosen in ``results``."""

import itertools
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from seed.console import Terminal
from seed.evidence import Baseline, BaselinePick, Equivalence, SearchGain
from seed.records import DENSE, DenseResult, Latency, TaskScore
from seed.reporting.wording import (
    ABSENT,
    MARGIN_PERCENT,
    compare_size,
    format_bytes,
    format_change,
    format_count,
    format_interval,
    format_number,
    join_words,
    list_dropped,
    name_drop,
    name_proxy,
    name_width,
)
from seed.results import (
    Model,
    Recommendation,
    StudyResult,
    choose_metrics,
    find_nearest,
    read_difference,
    read_excess,
    read_speedup,
)
from seed.study_dir import StudyFolder

WIDTH = 80  # characters of a line in a terminal
PERCENT = "\u00a0%"
DECIDING = ("without layers", "speed [95 %]", "PPL [95 %]", "yours", "size")  # columns that a terminal has room for
NOTHING_SCORED = "No candidate was scored completely, so there is no frontier."
# of a model beside the best of its depth, in the best one's words
VERDICTS = {
    "equivalent": f"equivalent within {MARGIN_PERCENT} to",
    "cannot tell": "tied with",
    "higher": "better than",
    "lower": "worse than",
}

# ---- sentences


def name_model(model: Model) -> str:
    """Return which layers are gone, or how all are cut: ``1, 7`` or ``none; MLP 304, 3 heads``."""
    return list_dropped(model.candidate) if model.width is None else name_width(model.width)


def describe_gain(model: Model, dense: DenseResult) -> str:
    """Return ``1.17x faster, +5.9 % PPL, 14 % smaller``."""
    added = msgspec.structs.replace(read_excess(model.ppl_ratio), low=None)
    size = compare_size(model.size.num_params, dense_num_params=dense.size.num_params)
    return f"{format_speed(model.latency)}, {format_interval(added, '+,.1f', unit=PERCENT)} PPL, {size}"


def describe_equivalence(found: Equivalence, result: StudyResult) -> str:
    """Return how the best model of a depth, ``found.other``, lies to another distilled one, ``found.one``."""
    names = {model.key: name_model(model) for model in result.distilled}
    other = f"the one without {names[found.one]}"
    if found.excess.value is None or found.excess.low is None:
        return f"not comparable with {other}"
    return f"{VERDICTS[found.verdict]} {other} (its PPL: {format_change(found.excess)})"


def explain_none(found: Recommendation, result: StudyResult) -> str:
    """Return what comes nearest where no model is recommended."""
    if not result.best:
        return NOTHING_SCORED
    nearest = find_nearest(result.best, found)
    return f"the nearest is without {name_model(nearest)}: {describe_gain(nearest, result.record.dense)}"


def describe_certainty(found: Recommendation) -> str:
    """Return whether the 95 % interval of a recommended model stays within the margin."""
    assert found.chosen is not None
    ratio = found.chosen.ppl_ratio
    if ratio.low is None or ratio.high is None:
        return "how sure that is cannot be told: too few documents for an interval"
    interval = f"95\u00a0% interval {format_number(ratio.low)} to {format_number(ratio.high)}"
    return f"{interval}, {'all of it within' if found.is_sure else 'some of it beyond'} {found.margin}\u00a0%"


def describe_unhelped(result: StudyResult) -> str:
    """Return which distilled models are no better on test text than the same layers without recovery; nothing: all are."""
    unhelped = [
        name_model(one)
        for one in result.distilled
        if one.unrecovered is not None and one.quality.ppl_ratio >= one.unrecovered
    ]
    if not unhelped:
        return ""
    return f"Recovery did not help on test text without {'; '.join(unhelped)}. Give more --distill-tokens, or recovery text of its kind."


def describe_bits(result: StudyResult) -> str:
    """Return which of fewer layers and fewer bits, or both, makes the smallest model at its perplexity; nothing: no bits were asked for."""
    best = [one for one in result.stored if one.is_best and (one.model or one.bits)]
    if not best:
        return ""
    ways = {
        "fewer bits alone": [one for one in best if one.model is None],
        "fewer layers alone": [one for one in best if one.bits is None],
        "both": [one for one in best if one.model and one.bits],
    }
    told = []
    for way, found in ways.items():
        least = min(found, key=lambda one: one.weight_bytes, default=None)
        if least is None:
            told.append(f"none by {way}")
            continue
        added = msgspec.structs.replace(read_excess(least.ppl_ratio), low=None)
        told.append(
            f"{len(found)} by {way}, down to {format_bytes(least.weight_bytes)} at {format_interval(added, '+,.1f', unit=PERCENT)} PPL"
        )
    return f"Models that no other beats in both size and perplexity: {'; '.join(told)}."


def describe_floors(result: StudyResult) -> str:
    """Return which models keep too little of the dense model's scores to be recommended; nothing: all keep enough."""
    failed = [name_model(one) for one in result.best if not one.keeps_tasks]
    if not failed:
        return ""
    asked = join_words([f"{100 * share:g}{PERCENT} of {task}" for task, share in result.record.floors.items()])
    return f"Not recommended, since they keep less than {asked}: without {'; '.join(failed)}."


# ---- what searching bought


def describe_worth(gain: SearchGain) -> str:
    """Return what searching bought over the best of the simpler ways that the study's own scores can play, and for how much more."""
    known = [one for one in gain.baselines if one.is_whole and any(pick.ppl_ratio is not None for pick in one.picks)]
    if not known:
        return ""
    best = min(known, key=lambda one: max(pick.ppl_ratio or 1.0 for pick in one.picks))
    times = f", at {format_number(gain.cost / best.cost, places=1)} times its cost" if best.cost else ""
    # by more than twice its standard error
    known_picks = [(pick.ppl_ratio or 1.0, pick.standard_error or 0.0) for pick in best.picks]
    leads = [ratio - 1 for ratio, error in known_picks if ratio - 1 > 2 * error]
    if leads:
        return f"Searching bought up to {100 * max(leads):.1f}\u00a0% less perplexity than {best.title}, by the proxy{times}."
    is_same = all(pick.candidate == pick.best for pick in best.picks)
    return f"Searching bought nothing{'' if is_same else ' that can be measured'} over {best.title}{times}."


def describe_baseline(baseline: Baseline, gain: SearchGain) -> str:
    """Return what a baseline would have reached at each depth, and at which share of the search's cost."""
    share = f" ({baseline.cost / gain.cost:.2f} × the search's cost)" if gain.cost and baseline.is_whole else ""
    told = [describe_lag(pick) for pick in baseline.picks]
    if not baseline.is_whole:
        begin = "deeper it needs" if told else "it needs"
        told.append(f"{begin} scores that the search did not make (python -m seed.experiment compare)")
    return f"{baseline.title}{share}: {', '.join(told)}"


def describe_lag(pick: BaselinePick) -> str:
    """Return how a baseline's pick lies to the search's: ``−2: PPL +1.3 ± 0.2 % (5, 6)``."""
    drop, layers = name_drop(pick.candidate.num_dropped), list_dropped(pick.candidate)
    if pick.candidate == pick.best:
        return f"{drop}: the same set"
    if pick.ppl_ratio is None or pick.standard_error is None:
        return f"{drop}: not scored ({layers})"
    return f"{drop}: PPL {100 * pick.ppl_ratio - 100:+.1f} ± {100 * pick.standard_error:.1f}\u00a0% ({layers})"


# ---- tables


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of plain text; a row's first cell is its heading."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def make_table(rows: Sequence[Mapping[str, str | None]], *, title: str = "") -> Table:
    """Return the table of rows by column; a column in which no row has anything is left out."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if any(row.get(name) is not None for row in rows)]
    cells = [[ABSENT if (cell := row.get(name)) is None else cell for name in columns] for row in rows]
    return Table(title=title, columns=columns, rows=cells)


def list_models(result: StudyResult) -> list[dict[str, str | None]]:
    """Return the rows of what a study found, the dense model first, what decides between models in front."""
    shown = (*(result.distilled or result.frontier), *result.width_baselines)
    rows = [list_dense(result), *(list_model(model, result.record.dense) for model in shown)]
    if not result.distilled:
        for row, member in zip(rows[1:], result.record.frontier.members, strict=False):
            row |= {"P(best of its depth)": f"{member.probability_best:.2f}", "tied with": str(len(member.tied_with))}
    return rows


def list_dense(result: StudyResult) -> dict[str, str | None]:
    """Return the cells of the dense model."""
    dense = result.record.dense
    text = dense.test if result.distilled else dense.validation
    return {
        "without layers": "none (dense)",
        "speed [95 %]": f"{dense.latency.median_ms:,.1f} ms",
        "PPL [95 %]": format_number((text or dense.validation).perplexity, places=2),
        "yours": None if dense.user_score is None else f"{dense.user_score:g}",
        "size": format_bytes(dense.size.weight_bytes),
        "parameters": format_count(dense.size.num_params),
        "KV/token": format_bytes(dense.size.kv_bytes_per_token),
    }


def list_model(model: Model, dense: DenseResult) -> dict[str, str | None]:
    """Return the cells of a model, as it lies to the dense one."""
    quality, size = model.quality, model.size
    share = 100 * (size.weight_bytes / dense.size.weight_bytes - 1)
    kl, top1 = quality.kl_divergence, quality.top1_agreement
    return {
        "without layers": name_model(model),
        "speed [95 %]": format_interval(read_speedup(model.latency), ".2f", unit="x"),
        "PPL [95 %]": format_interval(read_excess(model.ppl_ratio), "+,.1f", unit=PERCENT),
        "yours": None if model.user_score is None else f"{model.user_score:g}",
        "size": f"{format_bytes(size.weight_bytes)} ({share:+.0f}{PERCENT})",
        "parameters": format_count(size.num_params),
        "KV/token": format_bytes(size.kv_bytes_per_token),
        "distillations": str(model.num_distilled) if model.num_distilled > 1 else None,
        "unrecovered": None if model.unrecovered is None else f"{100 * model.unrecovered - 100:+,.1f}{PERCENT}",
        "KL": None if kl is None else format_number(kl, places=4),
        "top-1": None if top1 is None else f"{100 * top1:.1f}{PERCENT}",
    }


def list_tasks(result: StudyResult) -> list[dict[str, str | None]]:
    """Return the rows of what tasks gave, one for each of their metrics, the dense model's first."""
    found = [
        ("none (dense)", result.record.tasks.get(DENSE, ())),
        *((name_model(one), one.tasks) for one in result.distilled),
    ]
    return [
        {
            "without layers": name,
            "task": f"{one.task}, {one.metric}",
            "documents": f"{one.documents:,}",
            "score": f"{one.value:.4f}",
            "to dense [95 %]": None if one.difference is None else format_interval(read_difference(one), "+.4f"),
        }
        for name, scores in found
        for one in scores
    ]


def list_by_task(result: StudyResult) -> list[dict[str, str | None]]:
    """Return the dense model's scores and how far each model's lie from them: a column for each task, as many as a line has room for."""
    scores = choose_metrics(result.record.tasks.get(DENSE, ()))
    ends = itertools.accumulate(
        (2 + max(len(one.task), len("+0.000 ± 0.000")) for one in scores), initial=len("none (dense)")
    )
    shown = [one for one, end in zip(scores, list(ends)[1:], strict=True) if end <= WIDTH]
    rows: list[dict[str, str | None]] = [{one.task: f"{one.value:.4f}" for one in shown}]
    for model in result.distilled:
        told = {one.task: one for one in choose_metrics(model.tasks)}
        rows.append({one.task: format_change_of(told[one.task]) if one.task in told else None for one in shown})
    names = ["none (dense)", *map(name_model, result.distilled)]
    return [{"without layers": name, **row} for name, row in zip(names, rows, strict=True)]


def format_change_of(score: TaskScore) -> str:
    """Return ``-0.011 ± 0.012``: what a score is above the dense model's, and how far the 95 % interval reaches."""
    found = read_difference(score)
    reach = "" if found.high is None or found.value is None else f" ± {found.high - found.value:.3f}"
    return format_interval(msgspec.structs.replace(found, low=None), "+.3f") + reach


# ---- in the terminal, and in Python


def show_result(terminal: Terminal, result: StudyResult, *, study: StudyFolder) -> None:
    """Print what a search found."""
    terminal.say()
    for line in write_result(result, study=study).splitlines():
        terminal.say(line, wrap=False)


def write_result(result: StudyResult, *, study: StudyFolder) -> str:
    """Return the models, which of them to ship, and where that and the report lie; no line but a path's is wider than ``WIDTH``."""
    record, rows = result.record, list_models(result)
    text = "test text" if result.distilled else f"validation text, by the proxy ({name_proxy(record.frontier.proxy)})"
    counts = {model.num_distilled for model in (*result.distilled, *result.width_baselines)}
    if counts and max(counts) > 1:
        text += f", mean of {'up to ' if len(counts) > 1 else ''}{max(counts)} distillations"
    sentences = [
        f"speed: {record.dense.latency.workload}; PPL: {text}",
        "tasks: score of the dense model; of others what theirs is above it, ± 95\u00a0%" if record.tasks else "",
        "" if result.best else NOTHING_SCORED,
        describe_unhelped(result),
        describe_bits(result),
        describe_floors(result),
        "The machine was busy while speed was measured: at another time it may differ." if result.disturbances else "",
    ]
    if result.best:  # margins with one answer are told together
        same = itertools.groupby(result.recommended, key=lambda one: (one.chosen, one.slower))
        sentences += [name_fastest(list(found)) for _, found in same]
    lines = write_table([{name: row.get(name) for name in DECIDING} for row in rows])
    if record.tasks:
        lines += ["", *write_table(list_by_task(result))]
    lines += [line for one in sentences for line in textwrap.wrap(one, WIDTH, subsequent_indent="  ")]
    lines = [line.replace("\u00a0", " ") for line in lines]
    if result.distilled:
        model = result.shipped or find_nearest(result.best, result.recommended[-1])
        word = "ship" if result.shipped else "nearest"
        gain = describe_gain(model, record.dense).replace("\u00a0", " ")
        lines.append(f"{word}: {study.model(model.key)}  {gain}")
    elif result.best:
        lines.append(f"next: python -m seed.distill {shlex.quote(str(study.root))}")
    return "\n".join([*lines, f"open: {study.report}"])


def write_table(rows: Sequence[Mapping[str, str | None]]) -> list[str]:
    """Return the lines of a table; cells of its first column are wrapped to what the others leave of ``WIDTH``."""
    table = make_table(rows)
    widths = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]
    widths[0] = max(14, min(widths[0], WIDTH - sum(widths[1:]) - 2 * len(widths[1:])))
    lines = []
    for head, *cells in (table.columns, *table.rows):
        begin, *more = textwrap.wrap(head, widths[0])
        lines += ["  ".join([begin.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]), *more]
    return [lines[0], "─" * len(lines[0]), *lines[1:]]


def format_speed(latency: Latency) -> str:
    """Return ``1.17x faster``, or ``not measurably faster`` where the interval holds 1."""
    speedup = read_speedup(latency)
    if speedup.low is not None and speedup.high is not None and speedup.low <= 1 <= speedup.high:
        return "not measurably faster"
    return f"{1 / latency.ratio:.2f}x faster" if latency.ratio < 1 else f"{latency.ratio:.2f}x slower"


def name_fastest(same: Sequence[Recommendation]) -> str:
    """Return ``Fastest within 2 % and 5 % PPL: without 1.``"""
    limits, chosen = join_words([f"{one.margin}\u00a0%" for one in same]), same[0].chosen
    if chosen is None:
        return f"Within {limits} PPL: none{' that is faster' if same[0].slower else ''}."
    high = read_excess(chosen.ppl_ratio).high
    reach = "; how sure that is cannot be told" if high is None else f"; its interval ends at {high:+,.2f}{PERCENT}"
    return f"Fastest within {limits} PPL: without {name_model(chosen)}{'' if same[0].is_sure else reach}."
