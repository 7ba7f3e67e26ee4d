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
from seed.stats import NOTHING as NOTHING
from seed.stats import estimate_excess as estimate_excess
from seed.stats import estimate_ratio as estimate_ratio
from seed.stats import measure_margin as measure_margin

REFERENCE = "subset"
WIDTH = "uniform_width"  # all layers kept, each cut evenly to the size of a depth


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
