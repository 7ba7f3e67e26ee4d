"""What a set of dropped parts is expected to cost, how sure that is, and which set is worth asking for: a Gaussian process."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]

# Variances in units of the data's own scale: what one part does besides the common share, what a pair adds, and what
# neither explains.
PART_VARIANCES = (0.3, 1.0, 3.0, 10.0)
PAIR_VARIANCES = (0.01, 0.03, 0.1, 0.3)
NOISE_VARIANCES = (1e-3, 3e-2)
OFFSET_VARIANCE = 1.0
COMMON_VARIANCE = 1.0
MOST_TUNED = 100  # sets that the variances are chosen on
MOST_FITTED = 384  # sets that are fitted: the work grows with their cube, and is 10 ms for so many


@dataclass(frozen=True, kw_only=True)
class Variances:
    """Prior variances, in units of the data's scale squared."""

    part: float
    pair: float
    noise: float


class Surrogate:
    """A Gaussian process fitted to the losses of some sets."""

    def __init__(self, dropped_NP: Array, losses_N: Array, *, prior_N: Array | None = None) -> None:
        """Fit.

        Args:
            dropped_NP: 1 where a part is dropped, else 0; the sets that matter most first, since of more than
                ``MOST_FITTED`` the rest is left out.
            losses_N: finite numbers, in any unit.
            prior_N: a cheaper score of the same sets in about the same unit; the process then learns what it gets wrong.
        """
        self.sets = dropped_NP[:MOST_FITTED]
        losses = losses_N[:MOST_FITTED]
        self.prior = np.zeros(len(losses)) if prior_N is None else prior_N[:MOST_FITTED]
        residual = losses - self.prior
        self.offset = float(np.median(residual))
        self.scale = float(np.mean(np.abs(residual - self.offset))) or 1.0
        targets = (residual - self.offset) / self.scale
        self.variances = _choose_variances(self.sets[:MOST_TUNED], targets[:MOST_TUNED])
        covariance = _covariance(self.sets, self.sets, self.variances)
        covariance[np.diag_indices(len(losses))] += self.variances.noise
        self.precision = np.linalg.inv(covariance)
        self.weights = self.precision @ targets

    def expect(self, dropped_MP: Array, *, prior_M: Array | None = None) -> Array:
        """Return the expected losses (M,).

        The mean is a quadratic form in the sets, so that its cost does not grow with N.
        """
        v, counts = self.variances, dropped_MP.sum(axis=1)
        linear = self.sets.T @ self.weights
        quadratic = (self.sets * self.weights[:, None]).T @ self.sets
        pairs = 0.5 * (((dropped_MP @ quadratic) * dropped_MP).sum(axis=1) - dropped_MP @ linear)
        mean = OFFSET_VARIANCE * self.weights.sum() + v.part * dropped_MP @ linear + v.pair * pairs
        mean += COMMON_VARIANCE * counts * (self.weights @ self.sets.sum(axis=1))
        losses: Array = self.offset + self.scale * mean + (0.0 if prior_M is None else prior_M)
        return losses

    def spread(self, dropped_MP: Array) -> Array:
        """Return the standard deviations of the losses (M,), without noise."""
        v, counts = self.variances, dropped_MP.sum(axis=1)
        cross = _covariance(dropped_MP, self.sets, v)
        before = OFFSET_VARIANCE + v.part * counts + v.pair * counts * (counts - 1) / 2 + COMMON_VARIANCE * counts**2
        known = ((cross @ self.precision) * cross).sum(axis=1)
        deviations: Array = self.scale * np.sqrt(np.maximum(before - known, 1e-9))
        return deviations


def _covariance(one_MP: Array, other_NP: Array, variances: Variances) -> Array:
    """Prior covariance of sets (M, N): what two of them share in parts, in pairs of parts, and in number."""
    shared = one_MP @ other_NP.T
    common = COMMON_VARIANCE * np.outer(one_MP.sum(axis=1), other_NP.sum(axis=1))
    return OFFSET_VARIANCE + common + shared * (variances.part + variances.pair * (shared - 1) / 2)


def _choose_variances(sets: Array, targets: Array) -> Variances:
    """The variances under which the targets are likeliest."""
    shared = sets @ sets.T
    pairs = shared * (shared - 1) / 2
    counts = sets.sum(axis=1)
    common = OFFSET_VARIANCE + COMMON_VARIANCE * np.outer(counts, counts)
    diagonal = np.eye(len(sets))

    def weigh(variances: Variances) -> float:
        factor = np.linalg.cholesky(
            common + variances.part * shared + variances.pair * pairs + variances.noise * diagonal
        )
        half = np.linalg.solve(factor, targets)
        return float(-0.5 * half @ half - np.log(np.diag(factor)).sum())

    choices = itertools.product(PART_VARIANCES, PAIR_VARIANCES, NOISE_VARIANCES)
    return max((Variances(part=part, pair=pair, noise=noise) for part, pair, noise in choices), key=weigh)


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
