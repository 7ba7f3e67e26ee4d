"""What was worth it: the nondominated candidates, their runners-up, ties, and whether the proxy ranks.

Latency depends on structure alone, so the frontier holds at most one candidate of a structure; room left
goes to runners-up, which make "does the proxy rank?" a question with an answer.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from seed.errors import StudyError
from seed.evidence import Agreement
from seed.records import DistillResult, Evaluation, Frontier, FrontierMember, Quality, SearchSpace, TrialRecord
from seed.stats import clustered_standard_error, count_effective, draw_counts, reach_over_documents

LoadLosses = Callable[[Quality], tuple[np.ndarray, np.ndarray]]  # sums and counts by document
BOOTSTRAP_DRAWS = 1000
NEEDED_PAIRS = 10


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that candidates are to keep, constraints of their trials; None: there is no such bound."""

    max_ppl_ratio: float | None = None
    max_latency_ratio: float | None = None
    max_memory_bytes: float | None = None
    cached_tokens: int = 0  # of the timed workload, whose KV cache counts as memory

    def measure(self, evaluation: Evaluation, *, proxy: str) -> dict[str, float]:
        """By how much each bound is exceeded, by name; 0 or less where it is kept."""
        size, found = evaluation.size, {}
        if self.max_ppl_ratio is not None and evaluation.has_value(proxy):
            found["PPL ratio"] = evaluation.qualities[proxy].ppl_ratio - self.max_ppl_ratio
        if self.max_latency_ratio is not None:
            found["latency ratio"] = evaluation.latency.ratio - self.max_latency_ratio
        if self.max_memory_bytes is not None:
            memory = size.weight_bytes + size.kv_bytes_per_token * self.cached_tokens
            found["memory bytes"] = memory - self.max_memory_bytes
        return found

    def keeps(self, evaluation: Evaluation, *, proxy: str) -> bool:
        """Is no bound exceeded?"""
        return all(excess <= 0 for excess in self.measure(evaluation, proxy=proxy).values())


UNLIMITED = Limits()


def dominates(one: Evaluation, other: Evaluation, *, proxy: str) -> bool:
    """Is ``one`` at least as good in PPL, latency, size and KV cache, and better in one of them?

    Size breaks ties in latency: where noise makes two depths equally fast, the smaller is still worth having.
    """
    ours, theirs = (
        (it.qualities[proxy].ppl_ratio, it.latency.ratio, it.size.num_params, it.size.kv_bytes_per_token)
        for it in (one, other)
    )
    return all(a <= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs


def select_frontier(
    trials: Sequence[TrialRecord],
    *,
    proxy: str,
    size: int,
    space: SearchSpace,
    load_losses: LoadLosses,
    limits: Limits = UNLIMITED,
) -> Frontier:
    """Return at most ``size`` members: the nondominated first, then runners-up, one round of ranks at a time.

    Raises:
        StudyError: no scored candidate keeps the limits.
    """
    scored = [trial for trial in trials if trial.state == "COMPLETE" and proxy in trial.evaluation.qualities]
    groups: dict[str, list[TrialRecord]] = defaultdict(list)  # by structure, the best first
    for trial in sorted(scored, key=lambda t: (t.evaluation.qualities[proxy].loss, t.evaluation.candidate.key)):
        groups[trial.evaluation.latency.structure].append(trial)
    within: dict[str, list[TrialRecord]] = {}
    for structure, group in groups.items():
        if kept := [trial for trial in group if limits.keeps(trial.evaluation, proxy=proxy)]:
            within[structure] = kept
    if not scored:
        raise StudyError("no candidate was scored. Run the search again.")
    if not within:
        best = min(trial.evaluation.qualities[proxy].ppl_ratio for trial in scored)
        raise StudyError(
            f"none of the {len(scored)} scored candidates keeps the limits; the lowest PPL ratio is {best:.3f}. "
            "Raise --max-ppl-ratio, --max-latency-ratio or --max-memory."
        )
    structures = find_leaders({structure: group[0].evaluation for structure, group in within.items()}, proxy=proxy)
    if len(structures) > size:  # thin evenly, both ends kept
        structures = [structures[i] for i in np.unique(np.linspace(0, len(structures) - 1, size).round().astype(int))]
    rounds = enumerate(itertools.zip_longest(*(within[structure] for structure in structures)))
    chosen = [(trial, rank) for rank, found in rounds for trial in found if trial is not None][:size]
    certainty: dict[int, tuple[float, tuple[str, ...]]] = {}
    for structure in structures:
        certainty |= _weigh(groups[structure], proxy, load_losses)
    members = [
        FrontierMember(
            trial_number=trial.number,
            evaluation=trial.evaluation,
            rank=rank,
            probability_best=certainty[trial.number][0],
            tied_with=certainty[trial.number][1],
        )
        for trial, rank in chosen
    ]
    members.sort(key=lambda member: (-member.evaluation.size.num_params, member.rank))
    return Frontier(proxy=proxy, members=tuple(members), num_scored=len(scored), space=space)


def find_leaders(best: dict[str, Evaluation], *, proxy: str) -> list[str]:
    """Structures whose best no other's dominates, the largest first."""
    leaders = [
        structure
        for structure, ours in best.items()
        if not any(dominates(theirs, ours, proxy=proxy) for theirs in best.values())
    ]
    return sorted(leaders, key=lambda structure: -best[structure].size.num_params)


def measure_agreement(trials: Sequence[TrialRecord], distilled: Sequence[DistillResult], *, proxy: str) -> Agreement:
    """Count pairs that the proxy and the final validation loss order alike: of one structure and one budget."""
    scored = {t.evaluation.candidate.key: t.evaluation for t in trials if proxy in t.evaluation.qualities}
    groups: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for result in distilled:
        evaluation = scored.get(result.candidate.key)
        if evaluation is not None:
            pair = (evaluation.qualities[proxy].loss, result.validation.loss)
            groups[evaluation.latency.structure, str(sorted(result.settings.items()))].append(pair)
    concordant = discordant = 0
    for group in groups.values():
        for i, (proxy_i, final_i) in enumerate(group):
            for proxy_j, final_j in group[i + 1 :]:
                product = (proxy_i - proxy_j) * (final_i - final_j)
                concordant += product > 0
                discordant += product < 0
    agreement = Agreement(proxy=proxy, concordant=concordant, discordant=discordant, verdict="")
    return msgspec.structs.replace(agreement, verdict=_say_agreement(agreement))


def _weigh(
    group: Sequence[TrialRecord], proxy: str, load_losses: LoadLosses
) -> dict[int, tuple[float, tuple[str, ...]]]:
    """For each trial of a structure: its bootstrap probability of being best, and whom it is tied with."""
    qualities = [trial.evaluation.qualities[proxy] for trial in group]
    loaded = [load_losses(quality) for quality in qualities]
    sums = np.stack([pair[0] for pair in loaded])  # (candidates, documents)
    counts = loaded[0][1]
    weights = draw_counts(np.ones(len(counts), dtype=bool), draws=BOOTSTRAP_DRAWS)
    winners = np.argmin((weights @ sums.T) / (weights @ counts)[:, None], axis=1)
    wins = np.bincount(winners, minlength=len(group)) / BOOTSTRAP_DRAWS
    reach = reach_over_documents(count_effective(counts)) or math.inf  # of too few documents nothing can be told apart
    result = {}
    for i, trial in enumerate(group):
        differences = sums - sums[i]
        means = differences.sum(axis=1) / counts.sum()
        errors = clustered_standard_error(differences, counts)
        tied = [
            other.evaluation.candidate.key
            for j, other in enumerate(group)
            if j != i and (abs(means[j]) <= reach * errors[j] or reach == math.inf)
        ]
        result[trial.number] = (float(wins[i]), tuple(tied))
    return result


def _say_agreement(found: Agreement) -> str:
    pairs, tau = found.concordant + found.discordant, found.kendall_tau
    if tau is None:
        return "Cannot tell: no two distilled models of equal structure can be compared."
    counted = f"proxy and full distillation order {found.concordant} of {pairs} pairs of equal structure alike"
    if pairs < NEEDED_PAIRS:
        return f"Cannot tell: {counted}, and fewer than {NEEDED_PAIRS} pairs say little."
    return f"{counted[0].upper()}{counted[1:]} (Kendall tau {tau:+.2f})."
