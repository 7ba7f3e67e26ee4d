"""A study's result in sentences and tables of plain text, for terminal, page and note alike; what is said is chosen in ``results``."""

import itertools
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from seed.console import Terminal
from seed.evidence import Baseline, BaselinePick, Equivalence, SearchGain, StudyRecord
from seed.records import DenseResult, Estimate, Frontier, Latency, Size
from seed.reporting.wording import (
    ABSENT,
    MARGIN_PERCENT,
    compare_size,
    count_things,
    describe_speed,
    format_bytes,
    format_change,
    format_count,
    format_interval,
    format_latency_ratio,
    format_number,
    format_ppl_ratio,
    join_words,
    list_dropped,
    name_depth,
    name_drop,
    name_proxy,
    name_width,
)
from seed.results import Model, Recommendation, StudyResult, find_nearest, read_excess, read_speedup
from seed.study_dir import StudyFolder

WIDTH = 80  # characters of a line in a terminal
PERCENT = "\u00a0%"
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


def name_best(model: Model) -> str:
    """Return ``10 of 12 layers (without 1, 6)``."""
    return f"{name_depth(model.candidate)} (without {list_dropped(model.candidate)})"


def format_ratio(model: Model, *, places: int = 3) -> str:
    """Return the PPL ratio: the mean of replicas with its interval, or that of the only one with its standard error."""
    if model.num_distilled <= 1:
        return format_ppl_ratio(model.quality, places=places)
    return f"{format_interval(model.ppl_ratio, places=places)}, mean of {model.num_distilled}"


def describe_quality(model: Model) -> str:
    """Return ``test PPL ratio 1.015 ± 0.002``."""
    return f"{'test' if model.is_distilled else 'validation'} PPL ratio {format_ratio(model)}"


def introduce_best(result: StudyResult) -> str:
    """Return what the sentences on the best models speak of."""
    if result.distilled:
        return f"{count_things(len(result.distilled), 'model')} distilled in full. The best of each depth, chosen on validation text:"
    if result.best:
        return (
            f"Nothing was distilled. By the proxy ({name_proxy(result.record.frontier.proxy)}, validation text), "
            "the best candidate of each depth is:"
        )
    return "No candidate was scored completely, so there is no frontier."


def describe_best(model: Model, result: StudyResult) -> str:
    """Return a depth's best model in a sentence: size, speed, perplexity, and which models of its depth are as good."""
    has_gained = model.unrecovered is not None and model.unrecovered != model.quality.ppl_ratio
    unrecovered = f" (without recovery {format_number(model.unrecovered or 0.0, places=2)})" if has_gained else ""
    parts = [f"{describe_cost(model, result.record)}, {describe_quality(model)}{unrecovered}"]
    parts += [describe_equivalence(found, result) for found in result.record.equivalences if found.other == model.key]
    if model.num_tied:
        verb = "was" if model.num_tied == 1 else "were"
        apart = f" that {verb} not distilled" if model.is_distilled else ""
        parts.append(f"by the proxy tied with {count_things(model.num_tied, 'other')}{apart}")
    return f"{name_best(model)}: {', '.join(parts)}."


def describe_cost(model: Model, record: StudyRecord) -> str:
    """Return ``16 % smaller, 1.19 times faster to decode``."""
    return f"{describe_size(model, record)}, {describe_speed(model.latency)}"


def describe_size(model: Model, record: StudyRecord) -> str:
    """Return ``16 % smaller``, in parameters."""
    return compare_size(model.size.num_params, dense_num_params=record.dense.size.num_params)


def describe_equivalence(found: Equivalence, result: StudyResult) -> str:
    """Return how the best model of a depth, ``found.other``, lies to another distilled one, ``found.one``."""
    names = {model.key: name_model(model) for model in result.distilled}
    other = f"the one without {names[found.one]}"
    if found.excess.value is None or found.excess.low is None:
        return f"not comparable with {other}"
    return f"{VERDICTS[found.verdict]} {other} (its PPL: {format_change(found.excess)})"


def describe_recommendation(found: Recommendation, result: StudyResult) -> str:
    """Return which model to ship within a margin, and how sure that is."""
    limit, chosen = f"{found.margin}\u00a0%", found.chosen
    if chosen is None:
        why = explain_none(found, result)
        return f"Within {limit} PPL: none{f'; {why}' if why else ''}."
    return (
        f"Fastest within {limit} PPL: {name_best(chosen)}, {describe_speed(chosen.latency)}, {describe_quality(chosen)}; "
        f"{describe_certainty(found)}."
    )


def explain_none(found: Recommendation, result: StudyResult) -> str:
    """Return why no model is recommended: none is faster, or which loses the least; nothing where there is none."""
    if (best := found.slower) is not None:
        return (
            f"the best that stays within, {name_best(best)}, {describe_quality(best)}, was not measured faster than the "
            f"dense model: {describe_speed(best.latency)}"
        )
    known = [(one.ppl_ratio.value, one) for one in result.best if one.ppl_ratio.value is not None]
    _, nearest = min(known, key=lambda pair: pair[0], default=(None, None))
    return "" if nearest is None else f"the nearest is {name_best(nearest)}, {describe_quality(nearest)}"


def describe_certainty(found: Recommendation, *, names_margin: bool = False) -> str:
    """Return whether the 95 % interval of a recommended model stays within the margin."""
    assert found.chosen is not None
    ratio = found.chosen.ppl_ratio
    if ratio.low is None or ratio.high is None:
        return "how sure that is cannot be told: too few documents for an interval"
    margin = f" {found.margin}\u00a0%" if names_margin else ""
    interval = f"95\u00a0% interval {format_number(ratio.low)} to {format_number(ratio.high)}"
    return f"{interval}, {'all of it within' if found.is_sure else 'some of it beyond'}{margin}"


def describe_disturbance(result: StudyResult) -> str:
    """Return by what latency was disturbed while it was measured; nothing where the machine was quiet."""
    told = [f"{structure}: {disturbance}" for structure, disturbance in result.disturbances.items()]
    if not told:
        return ""
    more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
    return (
        f"The machine was busy while latency was measured ({'; '.join(told[:3])}{more}): at another time ratios may differ by "
        "more than their intervals."
    )


def describe_width_baselines(result: StudyResult) -> str:
    """Return what became of the same sizes by cutting all layers evenly in width; nothing where that was not tried."""
    told = [f"{describe_cost(one, result.record)}, {describe_quality(one)}" for one in result.width_baselines]
    return f"For comparison, all layers kept and cut evenly in width: {'; '.join(told)}." if told else ""


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


def describe_solver(gain: SearchGain, frontier: Frontier) -> str:
    """Return how candidates were chosen, and how many of how many."""
    return f"{frontier.num_scored:,} of {count_things(frontier.space.size, 'candidate')} scored, {gain.solver}."


def describe_baseline(baseline: Baseline, gain: SearchGain) -> str:
    """Return what a baseline would have reached at each depth, and at which share of the search's cost."""
    share = f" ({baseline.cost / gain.cost:.2f} × the search's cost)" if gain.cost and baseline.is_whole else ""
    told = ", ".join(describe_pick(pick) for pick in baseline.picks)
    if baseline.picks and all(pick.candidate == pick.best for pick in baseline.picks):
        told = "the same set at every depth that it reached" if len(baseline.picks) > 1 else "the same set"
    needs = "it needs scores that the search did not make (python -m seed.experiment compare)"
    rest = "" if baseline.is_whole else f"deeper {needs}" if baseline.picks else needs
    return f"{baseline.title}{share}: {'; '.join(filter(None, (told, rest)))}"


def describe_pick(pick: BaselinePick) -> str:
    """Return how a baseline's pick lies to the search's: ``−2: PPL 1.3 ± 0.2 % higher (5, 6)``."""
    drop, layers = name_drop(pick.candidate.num_dropped), list_dropped(pick.candidate)
    if pick.candidate == pick.best:
        return f"{drop}: the same set"
    if pick.ppl_ratio is None or pick.standard_error is None:
        return f"{drop}: not scored ({layers})"
    excess, error = (format_number(100 * value, places=1) for value in (abs(pick.ppl_ratio - 1), pick.standard_error))
    return f"{drop}: PPL {excess} ± {error}\u00a0% {'higher' if pick.ppl_ratio >= 1 else 'lower'} ({layers})"


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


def tabulate_models(result: StudyResult) -> Table:
    """Return the table of the judged models, the dense one first."""
    models = (*result.distilled, *result.width_baselines)
    rows = [list_dense(result.record), *(list_model(model, result.record) for model in models)]
    return make_table(rows)


def list_dense(record: StudyRecord) -> dict[str, str | None]:
    """Return the cells of the dense model."""
    dense = record.dense
    return {
        "dropped layers": "none (dense)",
        **list_cost(dense.size, dense.latency),
        "test PPL": None if dense.test is None else format_number(dense.test.perplexity, places=2),
        "PPL ratio": "1",
        **dict.fromkeys(("deviation", "unrecovered", "KL", "top-1")),
        "yours": None if dense.user_score is None else f"{dense.user_score:g}",
    }


def list_model(model: Model, record: StudyRecord) -> dict[str, str | None]:
    """Return the cells of a judged model."""
    quality, smaller = model.quality, model.size.num_params / record.dense.size.num_params - 1
    costs, kl, top1 = list_cost(model.size, model.latency), quality.kl_divergence, quality.top1_agreement
    return {
        "dropped layers": name_model(model),
        **costs,
        "parameters": f"{costs['parameters']} ({smaller:+.1%})",
        "test PPL": format_number(quality.perplexity, places=2),
        "PPL ratio": format_ratio(model, places=4),
        "deviation": None if model.spread is None else format_number(model.spread, places=4),
        "unrecovered": None if model.unrecovered is None else format_number(model.unrecovered, places=4),
        "KL": None if kl is None else format_number(kl, places=4),
        "top-1": None if top1 is None else f"{100 * top1:.1f}%",
        "yours": None if model.user_score is None else f"{model.user_score:g}",
    }


def list_cost(size: Size, latency: Latency) -> dict[str, str | None]:
    """Return the cells on what a model costs."""
    return {
        "parameters": format_count(size.num_params),
        "weights": format_bytes(size.weight_bytes),
        "KV/token": format_bytes(size.kv_bytes_per_token),
        "latency ratio": format_latency_ratio(latency),
    }


def tabulate_frontier(result: StudyResult) -> Table:
    """Return the table of the frontier and its runners-up, as the proxy sees them."""
    rows = [
        {
            "dropped layers": name_model(model),
            "place": str(member.rank + 1),
            "parameters": format_count(model.size.num_params),
            "PPL ratio": format_ppl_ratio(model.quality),
            "latency ratio": format_latency_ratio(model.latency),
            "P(best of its depth)": f"{member.probability_best:.2f}",
            "tied with": str(len(member.tied_with)),
        }
        for model, member in zip(result.frontier, result.record.frontier.members, strict=True)
    ]
    return make_table(rows)


# ---- in the terminal, and in Python


def show_result(terminal: Terminal, result: StudyResult, *, study: StudyFolder) -> None:
    """Print what a search found."""
    terminal.say()
    for line in write_result(result, study=study).splitlines():
        terminal.say(line, wrap=False)


def write_result(result: StudyResult, *, study: StudyFolder) -> str:
    """Return the models, which of them to ship, and where that and the report lie; no line but a path's is wider than ``WIDTH``."""
    record, shown = result.record, (*(result.distilled or result.frontier), *result.width_baselines)
    text = "test text" if result.distilled else f"validation text, by the proxy ({name_proxy(record.frontier.proxy)})"
    counts = {model.num_distilled for model in shown}
    if counts and max(counts) > 1:
        text += f", mean of {'up to ' if len(counts) > 1 else ''}{max(counts)} distillations"
    sentences = [
        f"speed: {record.dense.latency.workload}; PPL: {text}",
        "" if result.best else introduce_best(result),
        describe_unhelped(result),
        "The machine was busy while speed was measured: at another time it may differ." if result.disturbances else "",
        *(name_fastest(found) for found in group_recommendations(result) if result.best),
    ]
    lines = write_table(list_deciding(result, shown))
    lines += [line for one in sentences for line in textwrap.wrap(one, WIDTH, subsequent_indent="  ")]
    lines = [line.replace("\u00a0", " ") for line in lines]
    if result.distilled:
        shipped = result.shipped
        model = shipped or find_nearest(result)
        lines.append(
            f"{'ship' if shipped else 'nearest'}: {study.model(model.key)}  {describe_gain(model, record.dense)}"
        )
    elif result.best:
        lines.append(f"next: python -m seed.distill {shlex.quote(str(study.root))}")
    return "\n".join([*lines, f"open: {study.report}"])


def list_deciding(result: StudyResult, models: Sequence[Model]) -> list[dict[str, str | None]]:
    """Return the rows of what decides between models: the dense one's figures, and how the others lie to it."""
    dense = result.record.dense
    perplexity = (dense.test if result.distilled else dense.validation) or dense.validation
    first: dict[str, str | None] = {
        "without layers": "none (dense)",
        "speed [95 %]": f"{dense.latency.median_ms:,.1f} ms",
        "PPL [95 %]": format_number(perplexity.perplexity, places=2),
        "yours": None if dense.user_score is None else f"{dense.user_score:g}",
        "size": format_bytes(dense.size.weight_bytes),
    }
    others: list[dict[str, str | None]] = [
        {
            "without layers": name_model(model),
            "speed [95 %]": format_reach(read_speedup(model.latency), ".2f", unit="x"),
            "PPL [95 %]": format_reach(read_excess(model.ppl_ratio), "+,.1f", unit=PERCENT),
            "yours": None if model.user_score is None else f"{model.user_score:g}",
            "size": f"{format_bytes(model.size.weight_bytes)} ({100 * (model.size.weight_bytes / dense.size.weight_bytes - 1):+.0f}{PERCENT})",
        }
        for model in models
    ]
    return [first, *others]


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


def format_reach(estimate: Estimate, spec: str, *, unit: str) -> str:
    """Return ``1.17x [1.13, 1.20]``; the interval is left out where there is none."""
    if estimate.value is None:
        return ABSENT
    value = f"{estimate.value:{spec}}{unit}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{estimate.low:{spec}}, {estimate.high:{spec}}]"


def format_speed(latency: Latency) -> str:
    """Return ``1.17x faster``, or ``not measurably faster`` where the interval holds 1."""
    speedup = read_speedup(latency)
    if speedup.low is not None and speedup.high is not None and speedup.low <= 1 <= speedup.high:
        return "not measurably faster"
    return f"{1 / latency.ratio:.2f}x faster" if latency.ratio < 1 else f"{latency.ratio:.2f}x slower"


def group_recommendations(result: StudyResult) -> list[list[Recommendation]]:
    """Return what to ship within each margin; margins with one answer are together."""
    return [list(same) for _, same in itertools.groupby(result.recommended, key=lambda one: (one.chosen, one.slower))]


def name_fastest(same: Sequence[Recommendation]) -> str:
    """Return ``Fastest within 2 % and 5 % PPL: without 1.``"""
    limits, chosen = join_words([f"{one.margin}\u00a0%" for one in same]), same[0].chosen
    if chosen is None:
        return f"Within {limits} PPL: none{' that is faster' if same[0].slower else ''}."
    high = read_excess(chosen.ppl_ratio).high
    reach = "; how sure that is cannot be told" if high is None else f"; its interval ends at {high:+,.2f}{PERCENT}"
    return f"Fastest within {limits} PPL: without {name_model(chosen)}{'' if same[0].is_sure else reach}."


def describe_gain(model: Model, dense: DenseResult) -> str:
    """Return ``1.17x faster, +5.9 % PPL, 14 % smaller``."""
    added = msgspec.structs.replace(read_excess(model.ppl_ratio), low=None)
    size = compare_size(model.size.num_params, dense_num_params=dense.size.num_params)
    return f"{format_speed(model.latency)}, {format_reach(added, '+,.1f', unit=PERCENT)} PPL, {size}".replace(
        "\u00a0", " "
    )
