"""The surrogate: a Gaussian process over parts and pairs, against its formulas written out."""

import itertools
import math

import numpy as np
import pytest

from seed.optimize import surrogate as surrogates
from seed.optimize.surrogate import Array, Surrogate, Variances

PARTS = 8
GRID = [
    Variances(part=part, pair=pair, noise=noise)
    for part, pair, noise in itertools.product(
        surrogates.PART_VARIANCES, surrogates.PAIR_VARIANCES, surrogates.NOISE_VARIANCES
    )
]


def sets_of(*counts: int, parts: int = PARTS) -> Array:
    """Every set of so many parts."""
    dropped = [d for count in counts for d in itertools.combinations(range(parts), count)]
    return np.array([[float(part in d) for part in range(parts)] for d in dropped])


class Truth:
    """A loss that is a sum over parts and pairs of parts."""

    def __init__(self, *, pair_size: float, parts: int = PARTS, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.parts = rng.normal(0.3, 0.2, parts)
        self.pairs = np.triu(rng.normal(0, pair_size, (parts, parts)), 1)

    def __call__(self, dropped_MP: Array) -> Array:
        return 4.0 + dropped_MP @ self.parts + np.einsum("mp,pq,mq->m", dropped_MP, self.pairs, dropped_MP)


def kernel(one: Array, other: Array, v: Variances) -> float:
    shared = int((one * other).sum())
    return 1.0 + one.sum() * other.sum() + v.part * shared + v.pair * math.comb(shared, 2)


def kernel_matrix(one_MP: Array, other_NP: Array, v: Variances) -> Array:
    return np.array([[kernel(one, other, v) for other in other_NP] for one in one_MP])


def noisy_matrix(sets: Array, v: Variances) -> Array:
    return kernel_matrix(sets, sets, v) + v.noise * np.eye(len(sets))


def targets_of(losses: Array) -> tuple[Array, float, float]:
    """Losses from their median, in units of their mean distance from it."""
    offset = float(np.median(losses))
    scale = float(np.abs(losses - offset).mean())
    return (losses - offset) / scale, offset, scale


def rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


def test_predictions_are_the_formulas_of_gaussian_processes() -> None:
    rng = np.random.default_rng(1)
    seen, asked = sets_of(1, 2, 3)[::3], np.concatenate([sets_of(0, 1, 4, 8)[::5], sets_of(2)[:3]])
    losses = rng.normal(2.0, 3.0, len(seen))
    fitted = Surrogate(seen, losses)
    v = fitted.variances
    targets, offset, scale = targets_of(losses)
    inverse, cross = np.linalg.inv(noisy_matrix(seen, v)), kernel_matrix(asked, seen, v)
    np.testing.assert_allclose(fitted.expect(asked), offset + scale * cross @ inverse @ targets, rtol=1e-8)
    known = np.einsum("mn,nk,mk->m", cross, inverse, cross)
    variance = np.array([kernel(one, one, v) for one in asked]) - known
    np.testing.assert_allclose(fitted.spread(asked), scale * np.sqrt(variance), rtol=1e-6)


@pytest.mark.parametrize(("pair_size", "noise"), [(0.0, 0.0), (0.2, 0.0), (0.02, 0.1)])
def test_variances_are_those_under_which_the_losses_are_likeliest(pair_size: float, noise: float) -> None:
    seen = sets_of(1, 2, 3)[::2]
    losses = Truth(pair_size=pair_size)(seen) + noise * np.random.default_rng(2).normal(size=len(seen))
    targets, _, _ = targets_of(losses)

    def likelihood(v: Variances) -> float:
        matrix = noisy_matrix(seen, v)
        return float(-0.5 * targets @ np.linalg.solve(matrix, targets) - 0.5 * np.linalg.slogdet(matrix)[1])

    assert Surrogate(seen, losses).variances == max(GRID, key=likelihood)


def test_equal_losses_are_expected_everywhere() -> None:
    fitted = Surrogate(sets_of(1), np.full(PARTS, 7.0))
    np.testing.assert_allclose(fitted.expect(sets_of(3)), 7.0)
    assert np.isfinite(fitted.spread(sets_of(3))).all()


def test_a_prior_that_is_the_truth_up_to_noise_is_followed() -> None:
    rng = np.random.default_rng(3)
    seen, unseen = sets_of(1, 2), sets_of(3, 4)
    truth_seen, truth_unseen = rng.normal(5, 1, len(seen)), rng.normal(5, 1, len(unseen))  # no structure at all
    prior_seen, prior_unseen = (t + 0.02 * rng.normal(size=len(t)) for t in (truth_seen, truth_unseen))
    guided = Surrogate(seen, truth_seen, prior_N=prior_seen)
    blind = Surrogate(seen, truth_seen)
    assert rms(guided.expect(unseen, prior_M=prior_unseen) - truth_unseen) < 0.1
    assert rms(blind.expect(unseen) - truth_unseen) > 0.5
    assert guided.spread(unseen).max() < 0.2 * blind.spread(unseen).min()


def test_of_too_many_sets_the_first_are_fitted() -> None:
    most, rng = surrogates.MOST_FITTED, np.random.default_rng(5)
    seen = rng.permutation(sets_of(2, 3, 4, parts=11))[: most + 40]
    losses = Truth(pair_size=0.1, parts=11)(seen)
    losses[most:] = 1e6  # would be seen in anything
    prior = 0.1 * rng.normal(size=len(seen))
    every = Surrogate(seen, losses, prior_N=prior)
    first = Surrogate(seen[:most], losses[:most], prior_N=prior[:most])
    asked = sets_of(1, 5, parts=11)[::20]
    np.testing.assert_array_equal(every.expect(asked), first.expect(asked))
    np.testing.assert_array_equal(every.spread(asked), first.spread(asked))
    shorter = Surrogate(seen[: most - 1], losses[: most - 1], prior_N=prior[: most - 1])
    assert not np.array_equal(every.expect(asked), shorter.expect(asked))
