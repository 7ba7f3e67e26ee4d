"""What several distillations of a model say together, and whether models of a depth are the same but for a margin."""

from collections.abc import Sequence

import numpy as np

from seed.evidence import TrainedRun
from seed.findings import Equivalence, Replication
from seed.records import DenseResult, DistillResult, Replica
from seed.stats import estimate_ratio, judge_difference


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
