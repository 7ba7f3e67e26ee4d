"""What was worth it: the nondominated candidates, their runners-up, ties, and whether the proxy ranks.

Latency depends on structure alone, so the frontier holds at most one candidate of a structure; room left
goes to runners-up, which make "does the proxy rank?" a question with an answer.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from seed.errors import StudyError
from seed.evidence import Agreement
from seed.records import DistillResult, Evaluation, Frontier, FrontierMember, Quality, TrialRecord
from seed.stats import clustered_standard_error, count_effective, draw_counts, reach_over_documents

LoadLosses = Callable[[Quality], tuple[np.ndarray, np.ndarray]]  # sums and counts by document
BOOTSTRAP_DRAWS = 1000
NEEDED_PAIRS = 10
# studies/fidelity.record: Kendall's tau within a depth, 20 candidates each, of a score with full distillation
PUBLISHED_AGREEMENT = {
    "closed-form": "Published for the demo model: Kendall tau +0.85 with 2 layers dropped, +0.85 with 3 (20 candidates each).",
    "short-distillation": "Published for the demo model, 30 steps: Kendall tau +0.87 with 2 layers dropped, +0.88 with 3 "
    "(20 candidates each).",
}


def dominates(one: Evaluation, other: Evaluation, *, proxy: str) -> bool:
    """Is ``one`` at least as good in PPL, latency and size, and better in one of them?

    Size breaks ties in latency: where noise makes two depths equally fast, the smaller is still worth having.
    """
    ours = (one.qualities[proxy].ppl_ratio, one.latency.ratio, one.size.num_params)
    theirs = (other.qualities[proxy].ppl_ratio, other.latency.ratio, other.size.num_params)
    return all(a <= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs


def select_frontier(
    trials: Sequence[TrialRecord],
    *,
    proxy: str,
    size: int,
    space_size: int,
    load_losses: LoadLosses,
    max_ppl_ratio: float | None = None,
    max_latency_ratio: float | None = None,
) -> Frontier:
    """Return at most ``size`` members: the nondominated first, then runners-up, one round of ranks at a time.

    Raises:
        StudyError: no scored candidate keeps the limits.
    """
    scored = [trial for trial in trials if trial.state == "COMPLETE" and proxy in trial.evaluation.qualities]
    by_structure: dict[str, list[TrialRecord]] = defaultdict(list)
    for trial in sorted(scored, key=lambda t: (t.evaluation.qualities[proxy].loss, t.evaluation.candidate.key)):
        by_structure[trial.evaluation.latency.structure].append(trial)
    within = {
        structure: [trial for trial in group if _keeps_limits(trial.evaluation, proxy, max_ppl_ratio, max_latency_ratio)]
        for structure, group in by_structure.items()
    }
    within = {structure: group for structure, group in within.items() if group}
    if not within:
        if not scored:
            raise StudyError("no candidate was scored. Run the search again.")
        best = min((trial.evaluation.qualities[proxy].ppl_ratio for trial in scored), default=math.nan)
        raise StudyError(
            f"none of the {len(scored)} scored candidates keeps the limits; the lowest PPL ratio is {best:.3f}. "
            "Raise --max-ppl-ratio or --max-latency-ratio."
        )
    leaders = [group[0] for group in within.values()]
    leaders = [
        leader
        for leader in leaders
        if not any(
            dominates(other.evaluation, leader.evaluation, proxy=proxy) for other in leaders if other is not leader
        )
    ]
    leaders.sort(key=lambda trial: -trial.evaluation.size.num_params)
    if len(leaders) > size:  # thin evenly, both ends kept
        leaders = [leaders[i] for i in np.unique(np.linspace(0, len(leaders) - 1, size).round().astype(int))]
    chosen = [(leader, 0) for leader in leaders]
    rank = 1
    while len(chosen) < size:
        more = [
            (within[leader.evaluation.latency.structure][rank], rank)
            for leader in leaders
            if len(within[leader.evaluation.latency.structure]) > rank
        ]
        if not more:
            break
        chosen += more[: size - len(chosen)]
        rank += 1
    certainty = {
        leader.evaluation.latency.structure: _weigh(
            by_structure[leader.evaluation.latency.structure], proxy, load_losses
        )
        for leader in leaders
    }
    members = [
        FrontierMember(
            trial_number=trial.number,
            evaluation=trial.evaluation,
            rank=rank,
            probability_best=certainty[trial.evaluation.latency.structure][trial.number][0],
            tied_with=certainty[trial.evaluation.latency.structure][trial.number][1],
        )
        for trial, rank in chosen
    ]
    members.sort(key=lambda member: (-member.evaluation.size.num_params, member.rank))
    return Frontier(proxy=proxy, members=tuple(members), num_scored=len(scored), space_size=space_size)


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


def _keeps_limits(
    evaluation: Evaluation, proxy: str, max_ppl_ratio: float | None, max_latency_ratio: float | None
) -> bool:
    return (max_ppl_ratio is None or evaluation.qualities[proxy].ppl_ratio <= max_ppl_ratio) and (
        max_latency_ratio is None or evaluation.latency.ratio <= max_latency_ratio
    )


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
    published = PUBLISHED_AGREEMENT.get(found.proxy, "")
    pairs, tau = found.concordant + found.discordant, found.kendall_tau
    if tau is None:
        return f"Cannot tell: no two distilled models of equal structure can be compared. {published}".strip()
    counted = f"proxy and full distillation order {found.concordant} of {pairs} pairs of equal structure alike"
    if pairs < NEEDED_PAIRS:
        return f"Cannot tell: {counted}, and fewer than {NEEDED_PAIRS} pairs say little. {published}".strip()
    return f"{counted[0].upper()}{counted[1:]} (Kendall tau {tau:+.2f})."
