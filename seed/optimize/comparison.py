"""What strategies reached at equal cost: means over random seeds, and paired differences with their uncertainty.

Three things vary: which documents are read, what the random seed of distillation does, and what that of a search does. The
variances of the mean that each brings are added, and Student's t for as many degrees of freedom as the sum has
(Satterthwaite 1946) gives the interval. Documents and distillations are paired; runs of different strategies are not.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from seed.evidence import Comparison, ComparisonSummary, Reached, StrategyRun
from seed.records import Candidate, Estimate
from seed.stats import CONFIDENCE, student_t

REFERENCE = "subset"
WIDTH = "uniform_width"  # all layers kept, each cut evenly to the size of a depth
NOTHING = Estimate(value=None, low=None, high=None)


def summarize_comparison(comparison: Comparison, *, reference: str = REFERENCE) -> ComparisonSummary:
    """Return what each strategy reached at each depth, beside the reference's picks of the same depth.

    A depth counts where every pick of a strategy there is distilled; a strategy that chose nothing has no row. One whose
    picks end as no model at all, with losses that are no numbers, has a row without a value, the last.
    """
    by_strategy: dict[str, list[StrategyRun]] = defaultdict(list)
    for run in comparison.runs:
        by_strategy[run.strategy].append(run)
    losses = read_losses(comparison)
    counts_D = np.array(comparison.test_counts)
    depths = sorted({len(pick.dropped_layers) for run in comparison.runs for pick in run.picks})
    rows = []
    for depth in depths:
        theirs = find_picks(by_strategy.get(reference, []), depth=depth)
        found = []
        for strategy, runs in by_strategy.items():
            picks = find_picks(runs, depth=depth)
            if strategy == WIDTH:
                ours_RSD = read_width_losses(comparison, depth=depth)
            elif any(pick not in losses for pick in picks):
                continue
            else:
                ours_RSD = np.array([losses[pick] for pick in picks])
            if not len(ours_RSD):
                continue
            excess = NOTHING
            if strategy == reference:
                excess = Estimate(value=0.0, low=0.0, high=0.0)
            elif theirs and all(pick in losses for pick in theirs):
                excess = estimate_excess(ours_RSD, np.stack([losses[pick] for pick in theirs]), counts_D)
            found.append(
                Reached(
                    strategy=strategy,
                    num_dropped=depth,
                    picks=picks,
                    num_runs=len(runs),
                    num_without=0 if strategy == WIDTH else len(runs) - len(picks),
                    cost=float(np.mean([run.cost for run in runs])),
                    ppl_ratio=estimate_ratio(ours_RSD, comparison.dense_test_sums, counts_D),
                    excess=excess,
                )
            )
        rows += sorted(found, key=lambda row: (row.ppl_ratio.value or math.inf, row.cost, row.strategy))
    return ComparisonSummary(reference=reference, rows=tuple(rows))


def read_losses(comparison: Comparison) -> dict[Candidate, np.ndarray]:
    """Summed test losses by candidate (S seeds in order, D documents), of those distilled under every random seed.

    Not a number where a student was broken.
    """
    seeds = sorted({final.rng_seed for final in comparison.finals})
    found: dict[Candidate, dict[int, list[float | None]]] = defaultdict(dict)
    for final in comparison.finals:
        if final.width is not None:
            continue
        found[final.candidate][final.rng_seed] = final.test_sums
    return {
        candidate: np.array([sums[seed] for seed in seeds], dtype=float)
        for candidate, sums in found.items()
        if len(sums) == len(seeds)
    }


def read_width_losses(comparison: Comparison, *, depth: int) -> np.ndarray:
    """Summed test losses of the width of a depth's size (1, S, D), or nothing where a random seed is missing."""
    seeds = sorted({final.rng_seed for final in comparison.finals})
    found = {final.rng_seed: final.test_sums for final in comparison.finals if final.like_dropped == depth}
    if set(found) != set(seeds):
        return np.empty((0, 0, 0))
    return np.array([[found[seed] for seed in seeds]], dtype=float)


def find_picks(runs: Sequence[StrategyRun], *, depth: int) -> tuple[Candidate, ...]:
    """Picks of this depth, one of each run that has one."""
    return tuple(pick for run in runs for pick in run.picks if len(pick.dropped_layers) == depth)


def estimate_excess(
    ours_RSD: np.ndarray, theirs_RSD: np.ndarray, counts_D: np.ndarray, *, confidence: float = CONFIDENCE
) -> Estimate:
    """PPL over another less 1 and its interval (95 %), from summed losses of R runs, S seeds and D documents.

    The runs of the two need not be as many. Nothing where a loss is no number.
    """
    if not (np.isfinite(ours_RSD).all() and np.isfinite(theirs_RSD).all()):
        return NOTHING
    tokens = counts_D.sum()
    difference_SD = _mean_of_runs(ours_RSD) - _mean_of_runs(theirs_RSD)
    mean = float(difference_SD.mean(axis=0).sum() / tokens)
    off_D = (difference_SD.mean(axis=0) - mean * counts_D) * len(counts_D) / tokens  # of a ratio of sums, linearised
    sources = [
        off_D,
        difference_SD.sum(axis=1) / tokens,
        *(runs_RSD.mean(axis=1).sum(axis=1) / tokens for runs_RSD in (ours_RSD, theirs_RSD)),
    ]
    half = measure_margin(sources, confidence=confidence)
    return Estimate(value=math.expm1(mean), low=math.expm1(mean - half), high=math.expm1(mean + half))


def estimate_ratio(losses_RSD: np.ndarray, dense_D: Sequence[float], counts_D: np.ndarray) -> Estimate:
    """The PPL ratio to the dense model, mean over runs and seeds, and its 95 % interval."""
    return shift(estimate_excess(losses_RSD, np.array([[dense_D]]), counts_D), by=1.0)


def measure_margin(sources: Sequence[np.ndarray], *, confidence: float = CONFIDENCE) -> float:
    """Half an interval (95 %) around a mean that varies for several reasons, each known by independent draws (N of it)."""
    known = [(values.var(ddof=1) / len(values), len(values) - 1) for values in sources if len(values) > 1]
    total = sum(variance for variance, _ in known)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in known)
    return student_t(freedom, confidence=confidence) * math.sqrt(total)


def shift(estimate: Estimate, *, by: float) -> Estimate:
    """The estimate moved by a constant."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return estimate
    return Estimate(value=estimate.value + by, low=estimate.low + by, high=estimate.high + by)


def _mean_of_runs(sums_RSD: np.ndarray) -> np.ndarray:
    # Equal runs count once: their mean is then the same to the bit however many there are.
    different, times = np.unique(sums_RSD, axis=0, return_counts=True)
    mean_SD: np.ndarray = np.tensordot(times / times.sum(), different, axes=1)
    return mean_SD
