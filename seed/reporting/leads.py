"""Whose model leads within a margin of perplexity, and by how much: studies beside one another, in words.

Plain text only. Which model a study would ship is decided in ``answers``; each is judged by its own study's protocol.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seed.findings import StudyRecord
from seed.records import Estimate, Latency
from seed.reporting.answers import MARGINS, Contender, name_contender, recommend, say_quality, say_within
from seed.reporting.wording import describe_size, describe_speed


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The model that a study would ship within a margin."""

    study: str
    contender: Contender
    certainty: str
    behind: Estimate  # its latency ratio over the leader's, less 1

    @property
    def is_level(self) -> bool:
        """Can no difference in speed to the leader be told?"""
        if self.behind.low is None or self.behind.high is None:
            return True
        return self.behind.low <= 0 <= self.behind.high


def rank_studies(studies: Mapping[str, StudyRecord], *, margin: int) -> list[Standing]:
    """Return the studies that have a model within a margin, in per cent, the leader first, then by speed.

    The leader is the fastest; of those whose speed cannot be told from the fastest one's, it is the one that loses the
    least perplexity.
    """
    found: dict[str, tuple[Contender, str]] = {}
    for study, record in studies.items():
        [chosen] = recommend(record, margins=[margin])
        if chosen.contender is not None:
            found[study] = (chosen.contender, say_within(chosen))
    if not found:
        return []
    fastest = min((one for one, _ in found.values()), key=lambda one: one.latency.ratio)
    standings = _stand(found, fastest)
    leader = min((one for one in standings if one.is_level), key=lambda one: one.contender.ppl_ratio.value or math.inf)
    standings = _stand(found, leader.contender)
    return sorted(standings, key=lambda one: (one.study != leader.study, one.contender.latency.ratio))


def measure_lead(latency: Latency, best: Latency) -> Estimate:
    """Return one latency ratio over another, less 1, with its 95 % interval; without, where one was timed too few times.

    The two were measured apart, so their intervals are joined as those of independent estimates, on the logarithmic
    scale (Zou and Donner, Statistics in Medicine 27, 2008).
    """
    ends = (latency.ratio_low, latency.ratio_high, best.ratio_low, best.ratio_high)
    if None in ends:
        return Estimate(value=latency.ratio / best.ratio - 1, low=None, high=None)
    one, other, low, high, floor, top = (
        math.log(max(ratio or 0.0, 1e-9)) for ratio in (latency.ratio, best.ratio, *ends)
    )
    return Estimate(
        value=math.expm1(one - other),
        low=math.expm1(one - other - math.hypot(one - low, top - other)),
        high=math.expm1(one - other + math.hypot(high - one, other - floor)),
    )


def say_comparison(studies: Mapping[str, StudyRecord]) -> list[str]:
    """Return, for each margin, whose model leads, and how far the others are behind."""
    ranked = {margin: rank_studies(studies, margin=margin) for margin in MARGINS}
    return [
        f"{say_leader(studies, standings, margin=margin)} {say_others(studies, standings)}".strip()
        for margin, standings in ranked.items()
    ]


def say_leader(studies: Mapping[str, StudyRecord], standings: Sequence[Standing], *, margin: int) -> str:
    """Return whose model is the fastest within a margin."""
    if not standings:
        return f"Fastest within {margin}\u00a0% PPL: none in any of them."
    best = standings[0].contender
    size = describe_size(best.size.num_params, dense_num_params=studies[standings[0].study].dense.size.num_params)
    return (
        f"Fastest within {margin}\u00a0% PPL: {standings[0].study}, {name_contender(best)}, {describe_speed(best.latency)}, "
        f"{size}, {say_quality(best)}, 95\u00a0% interval: {standings[0].certainty}."
    )


def say_others(studies: Mapping[str, StudyRecord], standings: Sequence[Standing]) -> str:
    """Return how the models of the other studies stand beside the leader; nothing where none has one."""
    if not standings:
        return ""
    beside = [say_standing(one, standings[0].contender) for one in standings[1:]]
    missing = [study for study in studies if study not in {one.study for one in standings}]
    beside += [f"{', '.join(missing)}: none"] if missing else []
    return f"Beside it {'; '.join(beside)}."


def say_standing(standing: Standing, best: Contender) -> str:
    """Return a model beside the leading one: which layers, how far behind, and its perplexity."""
    one, behind = standing.contender, standing.behind
    assert behind.value is not None
    lead = f"{100 * behind.value:+z.1f}\u00a0%, timed too few times to tell"
    if behind.low is not None and behind.high is not None:
        value, low, high = (f"{100 * share:+z.1f}" for share in (behind.value, behind.low, behind.high))
        lead = f"{value} [{low}, {high}]\u00a0%{', no measurable difference' if standing.is_level else ''}"
    layers = "the same layers" if one.candidate == best.candidate else name_contender(one)
    return f"{standing.study}: {layers}, latency ratio {lead}, {say_quality(one)}"


def join_words(words: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _stand(found: Mapping[str, tuple[Contender, str]], leader: Contender) -> list[Standing]:
    nothing = Estimate(value=0.0, low=0.0, high=0.0)
    return [
        Standing(
            study=study,
            contender=one,
            certainty=certainty,
            behind=nothing if one is leader else measure_lead(one.latency, leader.latency),
        )
        for study, (one, certainty) in found.items()
    ]
