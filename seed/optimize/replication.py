"""What several distillations of a model say together, and whether two models are the same but for a margin.

Means over random seeds with Student's t over what varies (``comparison``); equivalence by two one-sided tests
(Schuirmann 1987): the 90 % interval of the paired difference lies within the margin.
"""

import math
from collections.abc import Sequence

import numpy as np

from seed.evidence import TrainedRun
from seed.findings import Equivalence, Replication
from seed.optimize.comparison import estimate_excess, estimate_ratio
from seed.records import DenseResult, DistillResult, Estimate, Replica

MARGIN = 0.005  # of perplexity: what nobody would choose a model for
EQUIVALENT, LOWER, HIGHER, CANNOT_TELL = "equivalent", "lower", "higher", "cannot tell"
TOST_CONFIDENCE = 0.90  # two one-sided tests at 5 % each


def stack_losses(replicas: Sequence[Replica | TrainedRun]) -> np.ndarray:
    """Summed test losses of S distillations over D documents, as estimates take them: (1, S, D); not a number where a student was broken."""
    return np.array([[replica.test_sums for replica in replicas]], dtype=float)


def is_paired(ours: Sequence[Replica | TrainedRun], theirs: Sequence[Replica | TrainedRun]) -> bool:
    """Were two models distilled under the same random seeds, in the same order? Only then are they compared."""
    return bool(ours) and [one.rng_seed for one in ours] == [one.rng_seed for one in theirs]


def list_ratios(losses_RSD: np.ndarray, dense_D: Sequence[float], counts_D: np.ndarray) -> np.ndarray:
    """The PPL ratio of each of S distillations to the dense model (S)."""
    ratios_S: np.ndarray = np.exp((losses_RSD[0] - np.array(dense_D)).sum(axis=-1) / counts_D.sum())
    return ratios_S


def summarize_replicas(replicas: Sequence[Replica], dense: DenseResult) -> Replication:
    """Return the mean PPL ratio of replicas to the dense model with its interval, and their spread."""
    assert dense.test_sums is not None
    assert dense.test_counts is not None
    losses_RSD, counts_D = stack_losses(replicas), np.array(dense.test_counts)
    ratios_S = list_ratios(losses_RSD, dense.test_sums, counts_D)
    is_known = len(replicas) > 1 and bool(np.isfinite(ratios_S).all())
    return Replication(
        rng_seeds=tuple(replica.rng_seed for replica in replicas),
        ppl_ratio=estimate_ratio(losses_RSD, dense.test_sums, counts_D),
        spread=float(ratios_S.std(ddof=1)) if is_known else None,
    )


def judge_difference(
    one_RSD: np.ndarray,
    other_RSD: np.ndarray,
    counts_D: np.ndarray,
    *,
    margin: float = MARGIN,
    between_replicas: bool = False,
) -> tuple[Estimate, str]:
    """Return PPL of one over that of the other less 1 with its 95 % interval, and what that means.

    ``equivalent``: the 90 % interval lies within the margin either way; ``lower`` or ``higher``: not so, and the 95 %
    interval excludes zero; else ``cannot tell``. Documents and random seeds are paired. One distillation of each says
    nothing of how distillations vary, so that it never makes two models equivalent, unless the two are replicas of one
    model and their difference is what is asked for.
    """
    excess = estimate_excess(one_RSD, other_RSD, counts_D)
    narrow = estimate_excess(one_RSD, other_RSD, counts_D, confidence=TOST_CONFIDENCE)
    if excess.low is None or excess.high is None or narrow.low is None or narrow.high is None:
        return excess, CANNOT_TELL
    can_be_equivalent = one_RSD.shape[1] > 1 or between_replicas
    if can_be_equivalent and max(-math.log1p(narrow.low), math.log1p(narrow.high)) < math.log1p(margin):
        return excess, EQUIVALENT
    if excess.low > 0 or excess.high < 0:
        return excess, HIGHER if excess.low > 0 else LOWER
    return excess, CANNOT_TELL


def compare_replicated(results: Sequence[DistillResult], dense: DenseResult) -> tuple[Equivalence, ...]:
    """Compare, within each depth, every replicated model with the one that validated best; fewest dropped first."""
    if not results:
        return ()
    assert dense.test_counts is not None
    by_depth: dict[int, list[DistillResult]] = {}
    for result in results:
        by_depth.setdefault(len(result.candidate.dropped_layers), []).append(result)
    found = []
    for _, group in sorted(by_depth.items()):
        best = min(group, key=lambda result: result.validation.loss)
        for other in group:
            is_alike = other.settings.get("distill_tokens") == best.settings.get("distill_tokens")
            if other is best or not (is_alike and is_paired(other.replicas, best.replicas)):
                continue
            excess, verdict = judge_difference(
                stack_losses(other.replicas), stack_losses(best.replicas), np.array(dense.test_counts)
            )
            found.append(Equivalence(one=other.key, other=best.key, excess=excess, verdict=verdict))
    return tuple(found)
