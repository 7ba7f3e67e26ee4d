"""What strategies reached at equal cost: means over random seeds, and paired differences with their uncertainty.

Three things vary: which documents are read, and what the random seeds of distillation and of search do. All are resampled,
documents and distillations in pairs, runs of a search by themselves.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

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
        theirs = list_picks(by_strategy.get(reference, []), depth=depth)
        found = []
        for strategy, runs in by_strategy.items():
            picks = list_picks(runs, depth=depth)
            if not picks or any(pick not in losses for pick in picks):
                continue
            is_compared = bool(theirs) and all(pick in losses for pick in theirs)
            ratio, excess = compare_picks(comparison, losses, picks, beside=theirs if is_compared else ())
            if strategy == reference:
                excess = Estimate(value=0.0, low=0.0, high=0.0)
            found.append(
                Reached(
                    strategy=strategy,
                    num_dropped=depth,
                    picks=picks,
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


def list_picks(runs: Sequence[StrategyRun], *, depth: int) -> tuple[Candidate, ...]:
    """Picks of this depth, one of each run that has one."""
    return tuple(pick for run in runs for pick in run.picks if len(pick.dropped_layers) == depth)


def compare_picks(
    comparison: Comparison,
    losses: Mapping[Candidate, np.ndarray],
    picks: Sequence[Candidate],
    *,
    beside: Sequence[Candidate],
) -> tuple[Estimate, Estimate]:
    """PPL ratio to the dense model, and PPL over that of other picks less 1, each with its 95 % bootstrap interval."""
    counts, dense_D = np.array(comparison.test_counts), np.array(comparison.dense_test_sums)
    rng = np.random.default_rng(0)
    num_seeds, num_documents = losses[picks[0]].shape
    documents_BD = draw_counts(rng, np.ones(num_documents))
    seeds_BS = draw_counts(rng, np.ones(num_seeds)) / num_seeds

    def resample(chosen: Sequence[Candidate]) -> np.ndarray:
        """Summed losses by document: as they are, then in each resample (1 + B, D)."""
        times = Counter(chosen)
        runs_BU = draw_counts(rng, np.array(list(times.values()))) / len(chosen)
        losses_USD = np.stack([losses[pick] for pick in times])
        mean_D = np.einsum("u,usd->d", np.array(list(times.values())) / len(chosen), losses_USD) / num_seeds
        return np.concatenate([mean_D[None], np.einsum("bu,bs,usd->bd", runs_BU, seeds_BS, losses_USD)])

    def estimate(differences: np.ndarray, *, less: float) -> Estimate:
        mean = differences[0].sum() / counts.sum()
        drawn = (differences[1:] * documents_BD).sum(axis=1) / (documents_BD @ counts)
        low, high = np.quantile(drawn, QUANTILES)
        return Estimate(
            value=float(np.exp(mean) - less), low=float(np.exp(low) - less), high=float(np.exp(high) - less)
        )

    ours = resample(picks)
    ratio = estimate(ours - dense_D, less=0.0)
    if not beside:
        return ratio, Estimate(value=None, low=None, high=None)
    return ratio, estimate(ours - resample(beside), less=1.0)


def draw_counts(rng: np.random.Generator, weights_N: np.ndarray) -> np.ndarray:
    """How often each is drawn in every resample, as many draws as the weights add up to (B, N)."""
    total = weights_N.sum()
    return rng.multinomial(int(total), weights_N / total, BOOTSTRAP_DRAWS)
