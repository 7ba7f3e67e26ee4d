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
    count_things,
    format_change,
    format_interval,
    format_number,
    format_signed,
    list_dropped,
    list_layers,
    name_drop,
    name_proxy,
)

Names = Mapping[str, tuple[str, str]]  # of strategies or recoveries: what people call each, and where it is published


# What an answer names; all others are in figure and table.
BASELINES = ("perplexity", "greedy", "greedy_parts", "greedy_recovered")
ONE, OTHER = (DEPTH_COLORS[0], "circle"), (DEPTH_COLORS[1], "diamond")

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
                series="reference" if row.strategy == summary.reference else "others",
                estimate=row.ppl_ratio,
                hover=f"PPL ratio {format_interval(row.ppl_ratio)}, above {theirs}: {format_change(row.excess)}; dropped: {list_picks(row)}",
            )
            for row, cost in zip(rows, costs, strict=True)
        ]
    figure = draw_dots(
        panels,
        {"others": ONE, "reference": OTHER},
        title="What each reached after distillation",
        x_title="PPL ratio",
    )
    scored: dict[str, list[str]] = {}
    for run in comparison.runs:
        scored.setdefault(run.strategy, []).append(f"{run.num_scores:,}")
    published = {name: names[name][1] for name in scored}
    return Findings(
        study=comparison.study,
        kind="compare",
        answers=answers,
        figure=figure,
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
        details={"theirs": theirs, "num_seeds": len({final.rng_seed for final in comparison.finals})},
        repeat=repeat,
    )


def describe_reached(summary: ComparisonSummary, rows: Sequence[Reached], *, titles: Mapping[str, str]) -> str:
    """Return what the reference reached at a depth, beside one-shot, greedy and whatever beats it."""
    found = {row.strategy: row for row in rows}
    begin = f"{count_things(rows[0].num_dropped, 'layer')} dropped: {titles[summary.reference]}"
    ours = found.get(summary.reference)
    if ours is None:
        return f"{begin} chose nothing of this depth."
    beside = [f"{titles[name]} {describe_excess(found[name], ours)}" for name in BASELINES if name in found]
    better = [
        f"{titles[name]} ({format_change(row.excess)})"
        for name, row in found.items()
        if name not in BASELINES and row.excess.high is not None and row.excess.high < 0
    ]
    reached = "; ".join([f"{begin} reaches a PPL ratio of {format_interval(ours.ppl_ratio)}", *beside])
    return f"{reached}. " + (
        f"Better than it: {', '.join(better)}." if better else "No other strategy is measurably better."
    )


def describe_excess(row: Reached, ours: Reached) -> str:
    """Return how a strategy's perplexity lies to the reference's."""
    excess = row.excess
    if set(row.picks) == set(ours.picks) and excess.value == 0:
        return f"chooses the same set{'s' * (len(set(row.picks)) > 1)}"
    if excess.low is None or excess.high is None:
        return "cannot be compared"
    if excess.low <= 0 <= excess.high:
        return f"cannot be told apart ({format_change(excess)})"
    return f"ends {'higher' if excess.low > 0 else 'lower'} ({format_change(excess)})"


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
            for series, tau in (("all candidates", proxy.tau), ("near the best", proxy.near_tau)):
                dots.append(
                    Dot(row=name + seconds, series=series, estimate=tau, hover=f"{series}: τ {format_signed(tau)}")
                )
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
    figure = draw_dots(
        panels,
        {"all candidates": ONE, "near the best": OTHER},
        title="Agreement and its price",
        x_title="Kendall's tau",
        lines=(0.0,),
        is_bounded=True,
    )
    doubled = study.settings.get("doubling_the_budget")
    return Findings(
        study=study.study,
        kind="fidelity",
        answers=[*map(describe_order, summary.depths), *([f"Twice the budget: {doubled}."] if doubled else [])],
        figure=figure,
        tables=[*tables, make_table(differences, title=title)],
        settings={
            "model": study.model,
            "candidates": len(study.rows),
            "dense loss, validation (nats per token)": format_number(study.dense_validation_loss, places=4),
            "dense loss, test (nats per token)": format_number(study.dense_test_loss, places=4),
            **study.settings,
        },
        details={
            "near_margin": study.near_margin,
            "left_out": sum(depth.num_left_out for depth in summary.depths),
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
    if difference.tau.value is None:
        return "there is no order to compare"
    if difference.tau.low is None:
        return "too few candidates to tell"
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
        value, low, high = (
            None if end is None else 100 * end for end in (row.excess.value, row.excess.low, row.excess.high)
        )
        dot = Dot(
            row=titles[row.recovery],
            series=row.at,
            estimate=Estimate(value=value, low=low, high=high),
            hover=f"at {row.at}, {row.tokens:,} tokens: {format_change(row.excess)}, PPL ratio {format_interval(row.ppl_ratio)}",
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
        {"equal tokens": ONE, "equal time": OTHER},
        title="What each recovery reached",
        x_title="PPL above the reference, %",
        lines=(0.0, -0.5, 0.5),
    )
    rates: dict[str, dict[str, None]] = {}
    for run in ledger.runs:
        rates.setdefault(run.recovery, {})[f"{run.learning_rate:g}"] = None
    return Findings(
        study=ledger.study,
        kind="recoveries",
        answers=[describe_recovered(group, reference=comparison.reference, titles=titles) for group in groups.values()],
        figure=figure,
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
        details={"theirs": theirs, "equal_tokens": comparison.equal_tokens},
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
    answer = f"{begin}: {titles[best.recovery]} ends lowest, PPL ratio {format_interval(best.ppl_ratio)}{though}."
    parts = []
    for verdict in ("lower", "equivalent", "cannot tell", "higher"):  # of seed.stats, from the best to the worst
        found = [row for row in rows if row.verdict == verdict and row.recovery != reference]
        named = [f"{titles[row.recovery]} ({format_change(row.excess)})" for row in found]
        if named:
            parts.append(f"{verdict}: {', '.join(named)}")
    return f"{answer} Beside {theirs}, {'; '.join(parts)}." if parts else answer


def name_key(key: str) -> str:
    """Return what people call the model of a key: ``without 3, 5``; others keep it."""
    parts = read_dropped(key)
    if not parts:
        return key
    return f"without {list_layers(tuple(map(int, parts))) if all(map(str.isdigit, parts)) else ', '.join(parts)}"
