"""What experiments found: answers first, then figures, numbers and settings. Statistics are handed in."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from seed.evidence import (
    Comparison,
    ComparisonSummary,
    DepthFidelity,
    FidelityStudy,
    FidelitySummary,
    ProxyDifference,
    Reached,
    RecoveredRow,
    RecoveryComparison,
)
from seed.records import Estimate, read_dropped
from seed.reporting.document import Findings
from seed.reporting.figure_parts import DEPTH_COLORS, Dot, draw_dots
from seed.reporting.result_text import make_table
from seed.reporting.wording import (
    ABSENT,
    MARGIN_PERCENT,
    count_things,
    format_change,
    format_interval,
    format_number,
    format_signed,
    list_dropped,
    list_layers,
    name_drop,
    name_proxy,
    take_percent,
)

Names = Mapping[str, tuple[str, str]]  # of strategies or recoveries: what people call each, and where it is published

# What an answer names; all others are in figure and table.
BASELINES = ("perplexity", "greedy", "greedy_parts", "greedy_recovered")
SAME = "the same set"
VERDICTS = ("lower", "equivalent", SAME, "cannot tell", "higher")  # from the best to the worst
OTHER = DEPTH_COLORS[1]
FAR = "Each panel has its own axis; what is far off is in the tables alone."
RATIOS = (
    "PPL ratio: perplexity on test text after recovery, divided by the dense model's. Percentages: perplexity above that of {theirs}, "
    "same documents, same random seeds. Brackets: 95\u00a0% interval, not corrected for the number of comparisons."
)
REACHED = (
    "Perplexity on test text divided by the dense model's, mean over random seeds with its 95\u00a0% interval; smaller is better. Two may "
    "differ although their bars overlap: the paired differences are in the tables. Beside each name: what choosing cost, as a share of "
    f"what each might spend. {FAR}"
)
TAUS = (
    "Kendall's tau with the finals' test loss, with its 95\u00a0% interval by bootstrap over candidates; beside each score the median of its "
    "seconds a candidate, below it, in another colour, tau among candidates near the best. Two may differ although their bars overlap: "
    "the differences are in the last table."
)
AGREEMENT = (
    "τ: Kendall's tau-b with the test loss of each final, averaged over random seeds: +1 when a score orders all pairs of candidates as "
    "full distillation does, 0 by chance; within one depth, never pooled. Near: within {near} of the depth's best PPL by closed form. "
    "Brackets: 95\u00a0% interval by bootstrap over candidates, near ones and the rest resampled apart. Regret: how much higher the PPL of "
    "a score's first choice is after distillation than that of the best. Recovery: the median share of the damage to the validation loss "
    "that is undone. Noise ceiling: one final judged by the other; a score with less noise than a final may pass it."
)
EXCESSES = (
    "Perplexity on test text above that of {theirs} on the same model, in per cent, with the 95\u00a0% interval of the paired difference; "
    f"left of the line is better. Dotted: {MARGIN_PERCENT} either way, what counts as the same. {FAR}"
)


# ---- strategies


def tell_comparison(
    comparison: Comparison, summary: ComparisonSummary, *, names: Names, repeat: Mapping[str, Any]
) -> Findings:
    """Tell what strategies reached at equal cost."""
    names = {run.strategy: (run.strategy, ABSENT) for run in comparison.runs} | dict(names)  # some are gone since
    titles = {name: title for name, (title, _) in names.items()}
    theirs = titles[summary.reference]
    tables, answers, panels = [], [], {}
    for depth, group in itertools.groupby(summary.rows, key=lambda row: row.num_dropped):
        rows = list(group)
        costs = [format_cost(row.cost, comparison.budget) for row in rows]
        cells = [
            {
                "strategy": titles[row.strategy],
                "sets chosen": list_picks(row),
                "PPL ratio": format_interval(row.ppl_ratio),
                f"PPL above {theirs}": None if row.strategy == summary.reference else format_change(row.excess),
                "cost": cost,
            }
            for row, cost in zip(rows, costs, strict=True)
        ]
        tables.append(make_table(cells, title=f"{name_drop(depth)}, distilled, on test text; best first"))
        answers.append(describe_reached(summary, rows, titles=titles))
        panels[f"{name_drop(depth)}: PPL ratio after distillation"] = [
            Dot(
                row=f"{titles[row.strategy]}, {cost}",
                estimate=row.ppl_ratio,
                color=OTHER if row.strategy == summary.reference else DEPTH_COLORS[0],
            )
            for row, cost in zip(rows, costs, strict=True)
        ]
    figure = draw_dots(panels, title="What each reached after distillation", x_title="PPL ratio")
    num_seeds = count_things(len({final.rng_seed for final in comparison.finals}), "random seed")
    scored: dict[str, list[str]] = {}
    for run in comparison.runs:
        scored.setdefault(run.strategy, []).append(f"{run.num_scores:,}")
    published = {name: names[name][1] for name in scored}
    return Findings(
        study=comparison.study,
        question="what does searching for layers buy?",
        answers=answers,
        note=f"{RATIOS.format(theirs=theirs)} As documents, distillations ({num_seeds}) and runs vary. A difference counts when its "
        "interval excludes zero. Cost: layer-tokens (one layer applied to one token; other work by its multiply-adds) as a share of "
        "what each might spend.",
        figures=[(figure, REACHED)],
        tables=tables,
        settings={
            "model": comparison.model,
            "candidates in the space": f"{comparison.num_candidates:,}",
            "recovery in scores of searches": name_proxy(comparison.proxy),
            "layer-tokens that each may spend": f"{comparison.budget:,.0f}",
            **comparison.settings,
            "strategies": {
                titles[name]: f"{published[name]}; candidates scored on all validation text: {', '.join(counts)}"
                for name, counts in scored.items()
            },
        },
        repeat=repeat,
    )


def describe_reached(summary: ComparisonSummary, rows: Sequence[Reached], *, titles: Mapping[str, str]) -> str:
    """Return what the reference reached at a depth, beside one-shot, greedy and whatever beats it."""
    theirs, ours = titles[summary.reference], next((row for row in rows if row.strategy == summary.reference), None)
    begin = f"{count_things(rows[0].num_dropped, 'layer')} dropped: {theirs}"
    if ours is None:
        return f"{begin} chose nothing of this depth."
    judged = [(row, judge_reached(row, ours)) for row in rows if row is not ours]
    named = [(row, verdict) for row, verdict in judged if row.strategy in BASELINES or verdict == "lower"]
    others = [(titles[row.strategy], row.excess, verdict) for row, verdict in named]
    return f"{begin} reaches a PPL ratio of {format_interval(ours.ppl_ratio)}.{describe_others(theirs, others)}"


def judge_reached(row: Reached, ours: Reached) -> str:
    """Return how a strategy's perplexity lies to the reference's, in a word of ``VERDICTS``."""
    if row.excess.value == 0 and set(row.picks) == set(ours.picks):
        return SAME
    if row.excess.low is None or row.excess.high is None or row.excess.low <= 0 <= row.excess.high:
        return "cannot tell"
    return "higher" if row.excess.low > 0 else "lower"


def describe_others(theirs: str, others: Sequence[tuple[str, Estimate, str]]) -> str:
    """Return how others' perplexities lie to the reference's: a title, the excess and the verdict of each."""
    told = []
    for verdict in VERDICTS:
        named = [
            title if verdict == SAME else f"{title} ({format_change(excess)})"
            for title, excess, judged in others
            if judged == verdict
        ]
        told += [f"{verdict}: {', '.join(named)}"] if named else []
    return f" Beside {theirs}, {'; '.join(told)}." if told else ""


def list_picks(row: Reached) -> str:
    """Return ``1, 4 (2 of 3); none (1 of 3)``: the dropped layers of each pick, and how many runs chose them."""
    times = Counter(list_dropped(pick) for pick in row.picks)
    if row.num_without:
        times["none"] = row.num_without
    if not times:
        return "none; all cut in width"
    if len(times) == 1:
        return next(iter(times))
    return "; ".join(f"{picked} ({count} of {row.num_runs})" for picked, count in times.items())


def format_cost(cost: float, budget: float) -> str:
    """Return a cost as a share of the budget."""
    share = cost / budget
    if 0 < share < 0.0005:
        return "<0.001\u00a0×"
    return "nothing" if cost == 0 else f"{format_number(share, places=2 if share >= 0.0995 else 3)}\u00a0×"


# ---- fidelity


def tell_fidelity(study: FidelityStudy, summary: FidelitySummary) -> Findings:
    """Tell whether the cheap scores order candidates as full distillation does."""
    tables, panels = [], {}
    for depth in summary.depths:
        names = [*(name_proxy(proxy.proxy) for proxy in depth.proxies), "full distillation, repeated (noise ceiling)"]
        proxies, dots = list(zip(names, (*depth.proxies, depth.ceiling), strict=True)), []
        for name, proxy in proxies:
            seconds = "" if proxy.seconds is None else f", {format_number(proxy.seconds, places=1)}\u00a0s"
            dots.append(Dot(row=name + seconds, estimate=proxy.tau))
            dots.append(Dot(row="near the best", estimate=proxy.near_tau, color=OTHER))
        panels[f"{name_drop(depth.num_dropped)}: Kendall's tau with the final"] = dots
        cells = [
            {
                "score": name,
                "τ": format_signed(proxy.tau),
                "τ near the best": format_signed(proxy.near_tau),
                "regret of its pick": format_share(proxy.top1_regret, places=2),
                "recovery": format_share(proxy.recovery, places=0),
                "seconds": ABSENT if proxy.seconds is None else format_number(proxy.seconds, places=2),
            }
            for name, proxy in proxies
        ]
        tables.append(make_table(cells, title=f"{describe_depth(depth)}, {depth.num_near} of them near the best"))
    differences = [
        {
            "dropped, scores": f"{name_drop(pair.num_dropped)}, {name_proxy(pair.one)} less {name_proxy(pair.other)}",
            "difference of τ": format_signed(pair.tau),
            "reading": judge_scores(pair),
        }
        for depth in summary.depths
        for pair in depth.differences
    ]
    title = f"Differences of τ on the same candidates and the same {summary.bootstrap_draws:,} resamples of them"
    figure = draw_dots(panels, title="Agreement and its price", x_title="Kendall's tau", lines=(0.0,))
    doubled = study.settings.get("doubling_the_budget")
    left_out = sum(depth.num_left_out for depth in summary.depths)
    return Findings(
        study=study.study,
        question="does the cheap score order candidates as full distillation does?",
        answers=[*map(describe_order, summary.depths), *([f"Twice the budget: {doubled}."] if doubled else [])],
        note=AGREEMENT.format(near=f"{100 * study.near_margin:g}\u00a0%")
        + (f" Left out for want of a score or a final: {count_things(left_out, 'candidate')}." if left_out else ""),
        figures=[(figure, TAUS)],
        tables=[*tables, make_table(differences, title=title)],
        settings={
            "model": study.model,
            "candidates": len(study.rows),
            "dense loss, validation (nats per token)": format_number(study.dense_validation_loss, places=4),
            "dense loss, test (nats per token)": format_number(study.dense_test_loss, places=4),
            **study.settings,
        },
    )


def describe_depth(depth: DepthFidelity) -> str:
    """Return ``2 layers dropped, 40 candidates``."""
    return f"{count_things(depth.num_dropped, 'layer')} dropped, {count_things(depth.num_candidates, 'candidate')}"


def describe_order(depth: DepthFidelity) -> str:
    """Return whether the scores that compete can be told apart at this depth."""
    taus = ", ".join(f"{format_signed(proxy.tau)} for {name_proxy(proxy.proxy)}" for proxy in depth.proxies)
    answer = f"{describe_depth(depth)}: Kendall's tau with full distillation is {taus}."
    names = [proxy.proxy for proxy in depth.proxies if proxy.proxy != "none"]  # the first and the last compete for time
    for pair in depth.differences:
        if (pair.one, pair.other) == (names[0], names[-1]):
            difference = f"{name_proxy(pair.one).capitalize()} less {name_proxy(pair.other)}: {format_signed(pair.tau)}"
            answer += f" {difference}, {judge_scores(pair)}."
    if depth.ceiling.tau.value is None:
        return f"{answer} Each candidate was distilled once, so how well a final repeats itself is not known."
    return f"{answer} Two finals of the same candidates agree to {format_signed(depth.ceiling.tau)}."


def judge_scores(difference: ProxyDifference) -> str:
    """Return what a difference and its interval allow to say."""
    if difference.favours is None:
        return "cannot tell them apart"
    return f"in favour of {name_proxy(difference.favours)}"


def format_share(share: float | None, *, places: int) -> str:
    """Return a share in per cent."""
    return ABSENT if share is None else f"{format_number(100 * share, places=places)}\u00a0%"


# ---- recoveries


def tell_recoveries(
    comparison: RecoveryComparison, rows: Sequence[RecoveredRow], *, names: Names, repeat: Mapping[str, Any]
) -> Findings:
    """Tell which way to recover the same models is best."""
    ledger, titles = comparison.ledger, {name: title for name, (title, _) in names.items()}
    theirs = titles[comparison.reference]
    groups: dict[tuple[str, str], list[RecoveredRow]] = {}
    panels: dict[str, list[Dot]] = {}
    for row in rows:
        groups.setdefault((row.key, row.at), []).append(row)
        dot = Dot(
            row=f"{titles[row.recovery]}, {row.at}",
            estimate=take_percent(row.excess),
            color=OTHER if row.at == "equal time" else DEPTH_COLORS[0],
        )
        panels.setdefault(name_key(row.key), []).append(dot)
    tables = []
    for (key, at), group in groups.items():
        cells = [
            {
                "recovery": titles[row.recovery],
                "tokens": f"{row.tokens:,}",
                "seconds": format_number(row.seconds, places=1),
                "PPL ratio": format_interval(row.ppl_ratio),
                f"PPL above {theirs}": None if row.recovery == comparison.reference else format_change(row.excess),
                "verdict": "reference" if row.recovery == comparison.reference else row.verdict,
            }
            for row in group
        ]
        tables.append(make_table(cells, title=f"{name_key(key)}, at {at}; on test text, best first"))
    figure = draw_dots(
        panels,
        title="What each recovery reached",
        x_title="PPL above the reference, %",
        lines=(0.0, -0.5, 0.5),
    )
    rates: dict[str, dict[str, None]] = {}
    for run in ledger.runs:
        rates.setdefault(run.recovery, {})[f"{run.learning_rate:g}"] = None
    return Findings(
        study=ledger.study,
        question="which recovery is best?",
        answers=[describe_recovered(group, reference=comparison.reference, titles=titles) for group in groups.values()],
        note=f"{RATIOS.format(theirs=theirs)} Equivalent: two one-sided tests at 5\u00a0% put the difference within {MARGIN_PERCENT} of "
        "perplexity; lower or higher: the 95\u00a0% interval excludes zero; else these runs cannot tell. Equal time: as many tokens as "
        f"fit the seconds that the reference took for {comparison.equal_tokens:,}.",
        figures=[(figure, EXCESSES.format(theirs=theirs))],
        tables=tables,
        settings={
            "model": ledger.model,
            "parameters of the dense model": f"{ledger.dense_num_params:,}",
            "documents of the test text": f"{len(ledger.test_counts):,}",
            "reference": theirs,
            **ledger.settings,
            "learning rates of each": {
                titles[name]: f"{names[name][1]}; {', '.join(found)}" for name, found in rates.items()
            },
        },
        repeat=repeat,
    )


def describe_recovered(rows: Sequence[RecoveredRow], *, reference: str, titles: Mapping[str, str]) -> str:
    """Return which recovery of one model at one budget is best, and how the others lie to the reference."""
    begin = f"{name_key(rows[0].key)}, at {rows[0].at}".capitalize()
    theirs, best = titles[reference], rows[0]
    if best.ppl_ratio.value is None:
        return f"{begin}: no recovery ended with losses that are numbers."
    is_clear = best.recovery == reference or best.verdict == "lower"
    though = "" if is_clear else f", though not measurably below {theirs}"
    others = [(titles[row.recovery], row.excess, row.verdict) for row in rows if row.recovery != reference]
    answer = f"{begin}: {titles[best.recovery]} ends lowest, PPL ratio {format_interval(best.ppl_ratio)}{though}."
    return answer + describe_others(theirs, others)


def name_key(key: str) -> str:
    """Return what people call the model of a key: ``without 3, 5``; others keep it."""
    parts = read_dropped(key)
    if not parts:
        return key
    return f"without {list_layers(tuple(map(int, parts))) if all(map(str.isdigit, parts)) else ', '.join(parts)}"
