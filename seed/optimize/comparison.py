"""What strategies reached at equal cost: means over random seeds, and paired differences with their uncertainty.

Two things vary: which documents are read, and what the random seed of distillation and search does. Both are resampled.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from seed.evidence import Comparison, ComparisonSummary, Estimate, Reached, StrategyRun
from seed.records import Candidate

REFERENCE = "subset"
BOOTSTRAP_DRAWS = 2000
QUANTILES = (0.025, 0.975)


def summarize_comparison(comparison: Comparison, *, reference: str = REFERENCE) -> ComparisonSummary:
    """Return what each strategy reached at each depth, beside the reference's picks of the same depth.

    A depth counts where every pick of a strategy there is distilled; a strategy that chose nothing has no row.
    """
    by_strategy: dict[str, list[StrategyRun]] = defaultdict(list)
    for run in comparison.runs:
        by_strategy[run.strategy].append(run)
    losses = read_losses(comparison)
    depths = sorted({len(pick.dropped_layers) for run in comparison.runs for pick in run.picks})
    rows = []
    for depth in depths:
        theirs = gather_sums(by_strategy.get(reference, []), losses, depth=depth)
        found = []
        for strategy, runs in by_strategy.items():
            sums_SD = gather_sums(runs, losses, depth=depth)
            if sums_SD is None:
                continue
            picks = [pick for run in runs for pick in run.picks if len(pick.dropped_layers) == depth]
            ratio, excess = compare_sums(comparison, sums_SD, theirs)
            found.append(
                Reached(
                    strategy=strategy,
                    num_dropped=depth,
                    picks=tuple(dict.fromkeys(picks)),
                    num_runs=len(runs),
                    num_without=len(runs) - len(picks),
                    cost=float(np.mean([run.cost for run in runs])),
                    ppl_ratio=ratio,
                    excess=excess,
                )
            )
        rows += sorted(found, key=lambda row: (row.ppl_ratio.value, row.cost, row.strategy))
    return ComparisonSummary(reference=reference, bootstrap_draws=BOOTSTRAP_DRAWS, rows=tuple(rows))


def read_losses(comparison: Comparison) -> dict[Candidate, np.ndarray]:
    """Summed test losses by candidate (S seeds in order, D documents), of those distilled under every random seed."""
    seeds = sorted({final.rng_seed for final in comparison.finals})
    found: dict[Candidate, dict[int, list[float]]] = defaultdict(dict)
    for final in comparison.finals:
        found[final.candidate][final.rng_seed] = final.test_sums
    return {
        candidate: np.array([sums[seed] for seed in seeds])
        for candidate, sums in found.items()
        if len(sums) == len(seeds)
    }


def gather_sums(runs: Sequence[StrategyRun], losses: dict[Candidate, np.ndarray], *, depth: int) -> np.ndarray | None:
    """Mean over runs of the losses of their picks (S, D); None without picks, or where one is not distilled."""
    picks = [pick for run in runs for pick in run.picks if len(pick.dropped_layers) == depth]
    if not picks or any(pick not in losses for pick in picks):
        return None
    mean: np.ndarray = np.mean([losses[pick] for pick in picks], axis=0)
    return mean


def compare_sums(
    comparison: Comparison, sums_SD: np.ndarray, reference_SD: np.ndarray | None
) -> tuple[Estimate, Estimate]:
    """PPL ratio to the dense model, and PPL over the reference's less 1, each with its 95 % bootstrap interval."""
    counts, dense = np.array(comparison.test_counts), np.array(comparison.dense_test_sums)
    rng = np.random.default_rng(0)
    num_seeds, num_documents = sums_SD.shape
    of_documents = rng.multinomial(num_documents, np.full(num_documents, 1 / num_documents), BOOTSTRAP_DRAWS)
    of_seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), BOOTSTRAP_DRAWS) / num_seeds

    def estimate(differences_SD: np.ndarray, *, less: float) -> Estimate:
        mean = differences_SD.mean(axis=0).sum() / counts.sum()
        drawn = np.einsum("bs,sd,bd->b", of_seeds, differences_SD, of_documents) / (of_documents @ counts)
        low, high = np.quantile(drawn, QUANTILES)
        return Estimate(
            value=float(np.exp(mean) - less), low=float(np.exp(low) - less), high=float(np.exp(high) - less)
        )

    ratio = estimate(sums_SD - dense, less=0.0)
    if reference_SD is None:
        return ratio, Estimate(value=None, low=None, high=None)
    return ratio, estimate(sums_SD - reference_SD, less=1.0)
