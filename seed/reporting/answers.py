"""The answer of a study in plain words: the best model of each depth, and which one to ship within a margin of perplexity.

Read by the page, the dashboard's notes, the terminal and ``--json``. Nothing is drawn here, and no HTML.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from seed.findings import Equivalence, StudyRecord
from seed.records import Candidate, DistillResult, Estimate, FrontierMember, Latency, Quality, Size
from seed.reporting.readings import choose_best_distilled, read_interval
from seed.reporting.replication import name_model, say_ratio
from seed.reporting.wording import (
    count_things,
    describe_size,
    describe_speed,
    format_number,
    format_ppl_ratio,
    list_layers,
    name_depth,
    name_rung,
)

MARGINS = (2, 5, 10)  # per cent of the dense model's perplexity


@dataclass(frozen=True, kw_only=True)
class Contender:
    """The best model of a depth: distilled and judged on test text, or else as the proxy sees it."""

    key: str
    candidate: Candidate
    size: Size
    latency: Latency
    ppl_ratio: Estimate  # with its 95 % interval
    said_ratio: str  # as people read it
    unrecovered: float | None  # PPL ratio of the same layers without recovery, on the same text
    is_distilled: bool
    num_tied: int = 0  # others of its structure that the proxy cannot tell from it, and that are not distilled


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The fastest contender whose perplexity is at most ``margin`` per cent above the dense model's.

    Of those whose speed cannot be told from the fastest one's, since the intervals overlap, it is the one that loses the
    least perplexity; none that is slower than the dense model.
    """

    margin: int
    contender: Contender | None  # None: none stays within and was measured faster
    is_sure: bool  # the whole 95 % interval stays within
    slower: Contender | None = None  # the best that stays within, where none of those was measured faster


def list_contenders(record: StudyRecord) -> list[Contender]:
    """Return the best model of each depth, least dropped first; distilled ones where there are any."""
    best = choose_best_distilled(record)
    if best:
        return [_take_distilled(result, record) for result in best]
    members = [member for member in record.frontier.members if member.rank == 0]
    return [_take_member(member, member.evaluation.qualities[record.frontier.rung]) for member in members]


def say_unhelped(results: Sequence[DistillResult]) -> str | None:
    """Return which distilled models are no better on test text than the same layers without recovery; None: all are."""
    unhelped = [name_model(one) for one in results if one.test.ppl_ratio >= one.test_unrecovered.ppl_ratio]
    if not unhelped:
        return None
    return f"Recovery did not help on test text without {'; '.join(unhelped)}. Give more --distill-tokens, or recovery text of its kind."


def recommend(record: StudyRecord, *, margins: Sequence[int] = MARGINS) -> list[Recommendation]:
    """Return, for each margin in per cent, which contender to ship."""
    contenders = list_contenders(record)
    found = []
    for margin in margins:
        limit = 1 + margin / 100
        within = [one for one in contenders if _read_ratio(one) <= limit]
        faster = [one for one in within if one.latency.ratio < 1]
        fastest = min(faster, key=lambda one: one.latency.ratio, default=None)
        level = [one for one in faster if fastest and _may_be_as_fast(one.latency, fastest.latency)]
        chosen = min(level, key=_read_ratio, default=None)
        is_sure = chosen is not None and chosen.ppl_ratio.high is not None and chosen.ppl_ratio.high <= limit
        slower = None if faster else min(within, key=_read_ratio, default=None)
        found.append(Recommendation(margin=margin, contender=chosen, is_sure=is_sure, slower=slower))
    return found


def say_introduction(record: StudyRecord) -> str:
    """Return what the sentences on contenders speak of."""
    if record.distilled:
        return f"{count_things(len(record.distilled), 'model')} distilled in full. The best of each depth, chosen on validation text:"
    if list_contenders(record):
        return (
            f"Nothing was distilled. By the proxy ({name_rung(record.frontier.rung)}, validation text), "
            "the best candidate of each depth is:"
        )
    return "No candidate was scored completely, so there is no frontier."


def say_contender(contender: Contender, record: StudyRecord) -> str:
    """Return a contender in a sentence: size, speed, perplexity, and which models of its depth are as good."""
    size = describe_size(contender.size.num_params, dense_num_params=record.dense.size.num_params)
    parts = [size, describe_speed(contender.latency), f"{say_quality(contender)}{_say_unrecovered(contender)}"]
    parts += [say_neighbour(found, record) for found in record.equivalences if found.other == contender.key]
    if contender.num_tied:
        verb = "was" if contender.num_tied == 1 else "were"
        apart = f" that {verb} not distilled" if contender.is_distilled else ""
        parts.append(f"by the proxy tied with {count_things(contender.num_tied, 'other')}{apart}")
    return f"{name_contender(contender)}: {', '.join(parts)}."


def say_disturbance(record: StudyRecord) -> str:
    """Return by what latency was disturbed while it was measured; nothing where the machine was quiet."""
    latencies = [trial.evaluation.latency for trial in record.trials]
    latencies += [result.latency for result in (*record.distilled, *record.baselines)]
    told = {latency.structure: latency.disturbance for latency in latencies if latency.disturbance}
    if not told:
        return ""
    listed = "; ".join(f"{structure}: {disturbance}" for structure, disturbance in list(told.items())[:3])
    more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
    return f"The machine was busy while latency was measured ({listed}{more}): at another time ratios may differ by more than their intervals."


def say_baselines(record: StudyRecord) -> str:
    """Return what became of the same sizes by cutting all layers evenly in width; nothing where that was not tried."""
    told = []
    for result in record.baselines:
        size = describe_size(result.size.num_params, dense_num_params=record.dense.size.num_params)
        ratio = say_ratio(result, record.replications.get(result.key))
        told.append(f"{size}, {describe_speed(result.latency)}, test PPL ratio {ratio}")
    return f"For comparison, all layers kept and cut evenly in width: {'; '.join(told)}." if told else ""


def name_contender(contender: Contender) -> str:
    """Return ``10 of 12 layers (without 1, 6)``."""
    return f"{name_depth(contender.candidate)} (without {list_layers(contender.candidate.dropped_layers)})"


def say_quality(contender: Contender) -> str:
    """Return ``test PPL ratio 1.015 ± 0.002``."""
    return f"{'test' if contender.is_distilled else 'validation'} PPL ratio {contender.said_ratio}"


def say_neighbour(found: Equivalence, record: StudyRecord) -> str:
    """Return how the best model of a depth, ``found.other``, lies to another distilled one, ``found.one``."""
    names = {result.key: name_model(result) for result in record.distilled}
    rival = f"the one without {names[found.one]}"
    excess = found.excess
    if excess.value is None or excess.low is None or excess.high is None:
        return f"not comparable with {rival}"
    verdicts = {
        "equivalent": "equivalent to",
        "cannot tell": "tied with",
        "higher": "better than",
        "lower": "worse than",
    }
    interval = f"{100 * excess.value:+.1f} [{100 * excess.low:+.1f}, {100 * excess.high:+.1f}]\u00a0%"
    return f"{verdicts[found.verdict]} {rival} (its PPL: {interval})"


def say_recommendation(found: Recommendation, record: StudyRecord) -> str:
    """Return which model to ship within a margin, and how sure that is."""
    limit = f"{found.margin}\u00a0%"
    if found.contender is None:
        why = say_none(found, record)
        return f"Within {limit} PPL: none{f'; {why}' if why else ''}."
    sure = say_certainty(found)
    chosen = found.contender
    return f"Fastest within {limit} PPL: {name_contender(chosen)}, {describe_speed(chosen.latency)}, {say_quality(chosen)}; {sure}."


def say_none(found: Recommendation, record: StudyRecord) -> str:
    """Return why no model is recommended: none is faster, or which loses the least; nothing where there is none."""
    if found.slower is not None:
        best = found.slower
        return (
            f"the best that stays within, {name_contender(best)}, {say_quality(best)}, was not measured faster than the dense "
            f"model: {describe_speed(best.latency)}"
        )
    known = [(one.ppl_ratio.value, one) for one in list_contenders(record) if one.ppl_ratio.value is not None]
    if not known:
        return ""
    _, nearest = min(known, key=lambda pair: pair[0])
    return f"the nearest is {name_contender(nearest)}, {say_quality(nearest)}"


def say_certainty(found: Recommendation, *, names_margin: bool = False) -> str:
    """Return whether the 95 % interval of a recommended model stays within the margin."""
    assert found.contender is not None
    ratio = found.contender.ppl_ratio
    if ratio.low is None or ratio.high is None:
        return "how sure that is cannot be told: too few documents for an interval"
    interval = f"95\u00a0% interval {format_number(ratio.low)} to {format_number(ratio.high)}"
    return f"{interval}, {say_within(found, names_margin=names_margin)}"


def say_within(found: Recommendation, *, names_margin: bool = False) -> str:
    """Return whether the whole 95 % interval of a recommended model stays within the margin."""
    margin = f" {found.margin}\u00a0%" if names_margin else ""
    return f"all of it within{margin}" if found.is_sure else f"some of it beyond{margin}"


def _may_be_as_fast(latency: Latency, fastest: Latency) -> bool:
    """Do the intervals of two latency ratios overlap? Timed too few times for intervals, they are told apart by nothing."""
    return latency.ratio_low is None or fastest.ratio_high is None or latency.ratio_low <= fastest.ratio_high


def _read_ratio(contender: Contender) -> float:
    return math.inf if contender.ppl_ratio.value is None else contender.ppl_ratio.value


def _take_distilled(result: DistillResult, record: StudyRecord) -> Contender:
    replication = record.replications.get(result.key)
    estimate = read_interval(result.test)
    if replication is not None and replication.ppl_ratio.value is not None:
        estimate = replication.ppl_ratio
    return Contender(
        key=result.key,
        candidate=result.candidate,
        size=result.size,
        latency=result.latency,
        ppl_ratio=estimate,
        said_ratio=say_ratio(result, replication),
        unrecovered=result.test_unrecovered.ppl_ratio,
        is_distilled=True,
        num_tied=_count_untried(result, record),
    )


def _count_untried(result: DistillResult, record: StudyRecord) -> int:
    tried = {one.key for one in record.distilled}
    tied = {
        key
        for member in record.frontier.members
        for key in member.tied_with
        if member.evaluation.candidate.key == result.key
    }
    return len(tied - tried)


def _take_member(member: FrontierMember, quality: Quality) -> Contender:
    raw = member.evaluation.qualities.get("none")
    return Contender(
        key=member.evaluation.candidate.key,
        candidate=member.evaluation.candidate,
        size=member.evaluation.size,
        latency=member.evaluation.latency,
        ppl_ratio=read_interval(quality),
        said_ratio=format_ppl_ratio(quality),
        unrecovered=None if raw is None or raw is quality else raw.ppl_ratio,
        is_distilled=False,
        num_tied=len(member.tied_with),
    )


def _say_unrecovered(contender: Contender) -> str:
    if contender.unrecovered is None:
        return ""
    return f" (without recovery {format_number(contender.unrecovered, places=2)})"
