"""What makes a set worth asking for: how much the frontier of size and loss is expected to grow by it."""

import math

import numpy as np
from scipy.special import ndtr

from seed.optimize.surrogate import Array


def rank_by_turns(groups: Array, losses: Array) -> np.ndarray:
    """Order: the best of each group, then the second best of each, and so on (M,)."""
    order = np.lexsort((losses, groups))
    sorted_groups = groups[order]
    starts = np.searchsorted(sorted_groups, sorted_groups)
    ranks = np.arange(len(order)) - starts
    result: np.ndarray = order[np.lexsort((sorted_groups, ranks))]
    return result


def expect_growth(
    expected_M: Array,
    spread_M: Array,
    sizes_M: Array,
    *,
    known_losses: Array,
    known_sizes: Array,
    thresholds: Array,
) -> Array:
    """Expected growth of the frontier (M,): improvement on the best known set of each size or more, summed over sizes.

    Where nothing so large is known yet, the worst known loss stands in for the best.
    """
    growth = np.zeros(len(expected_M))
    for threshold in thresholds:
        large_enough = known_sizes >= threshold - 1e-9
        best = known_losses[large_enough].min() if large_enough.any() else known_losses.max()
        reached = sizes_M >= threshold - 1e-9
        growth[reached] += expect_improvement(best - expected_M[reached], spread_M[reached])
    return growth


def expect_improvement(gain_M: Array, spread_M: Array) -> Array:
    """E[max(0, X)] of normal X with these means and standard deviations (Jones et al. 1998, equation 15)."""
    z = gain_M / spread_M
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    improvement: Array = np.maximum(spread_M * density + gain_M * ndtr(z), 0.0)
    return improvement
