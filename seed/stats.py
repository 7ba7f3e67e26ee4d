"""Statistics: ratios with errors clustered by document, intervals, Kendall's tau, and equivalence within a margin.

Shapes: D documents, P timed pairs, R runs, S random seeds of distillation, C candidates, B bootstrap draws.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from seed.records import MARGIN, Estimate

CONFIDENCE = 0.95
NOTHING = Estimate(value=None, low=None, high=None)
FEWEST_DOCUMENTS = 3.0  # effective ones; the interval of fewer spans several times what it is about
FEWEST_PAIRS = 4
MOST_BLOCKS, BLOCK_PAIRS = 12, 3  # a block of fewer pairs leaves what one pair has in common with the next uncounted
EQUIVALENT, LOWER, HIGHER, CANNOT_TELL = "equivalent", "lower", "higher", "cannot tell"
# Resamples of fewer are nearly all alike: a perfect order of four would get an interval of no width.
NEEDED_CANDIDATES = 5
TOST_CONFIDENCE = 0.90  # two one-sided tests at 5 % each


def student_t(freedom: float, *, confidence: float = CONFIDENCE) -> float:
    """How many standard errors an interval reaches to each side, with so many degrees of freedom."""
    return float(stdtrit(freedom, (1 + confidence) / 2))


# ---- over documents


def linearise_ratio(sums_D: np.ndarray, counts_D: np.ndarray) -> np.ndarray:
    """What each document adds to sum(sums) less what it would at the ratio of all, sum(sums) / sum(counts); (..., D)."""
    residuals_D: np.ndarray = sums_D - sums_D.sum(axis=-1, keepdims=True) / counts_D.sum() * counts_D
    return residuals_D


def clustered_standard_error(sums_D: np.ndarray, counts_D: np.ndarray) -> np.ndarray:
    """Standard error of sum(sums) / sum(counts) with documents as clusters, from (..., D) to (...); nan for one document."""
    num_documents = len(counts_D)
    squares = (linearise_ratio(sums_D, counts_D) ** 2).sum(axis=-1)
    if num_documents < 2:
        return np.full_like(squares, math.nan)
    errors: np.ndarray = np.sqrt(num_documents / (num_documents - 1) * squares) / counts_D.sum()
    return errors


def count_effective(counts_D: np.ndarray) -> float:
    """As how many documents of one length documents of these lengths count (Kish, Survey Sampling, 1965)."""
    counts_D = counts_D.astype(float)
    return float(counts_D.sum() ** 2 / (counts_D**2).sum())


def reach_over_documents(documents: float) -> float | None:
    """Standard errors on each side of a 95 % interval over so many effective documents; None: too few for an interval.

    Their number less one as degrees of freedom: with all documents counted alike, intervals over 8 documents of very
    uneven length hold the truth 79 times out of 100, with effective ones 96 times.
    """
    return student_t(documents - 1) if documents >= FEWEST_DOCUMENTS else None


# ---- over documents, random seeds and runs


def estimate_excess(
    ours_RSD: np.ndarray, theirs_RSD: np.ndarray, counts_D: np.ndarray, *, confidence: float = CONFIDENCE
) -> Estimate:
    """PPL over another less 1 and its interval (95 %), from summed losses of R runs, S seeds and D documents.

    Documents and seeds are paired; runs are not, and need not be as many. Nothing where a loss is no number.
    """
    if not (np.isfinite(ours_RSD).all() and np.isfinite(theirs_RSD).all()):
        return NOTHING
    tokens = counts_D.sum()
    difference_SD = _mean_of_runs(ours_RSD) - _mean_of_runs(theirs_RSD)
    difference_D = difference_SD.mean(axis=0)
    mean = float(difference_D.sum() / tokens)
    sources = [
        linearise_ratio(difference_D, counts_D) * len(counts_D) / tokens,
        difference_SD.sum(axis=1) / tokens,
        *(runs_RSD.mean(axis=1).sum(axis=1) / tokens for runs_RSD in (ours_RSD, theirs_RSD)),
    ]
    half = measure_margin(sources, confidence=confidence)
    return Estimate(value=math.expm1(mean), low=math.expm1(mean - half), high=math.expm1(mean + half))


def estimate_ratio(losses_RSD: np.ndarray, dense_D: Sequence[float], counts_D: np.ndarray) -> Estimate:
    """The PPL ratio to the dense model, mean over runs and seeds, and its 95 % interval."""
    excess = estimate_excess(losses_RSD, np.array([[dense_D]]), counts_D)
    if excess.value is None or excess.low is None or excess.high is None:
        return excess
    return Estimate(value=excess.value + 1.0, low=excess.low + 1.0, high=excess.high + 1.0)


def measure_margin(sources: Sequence[np.ndarray], *, confidence: float = CONFIDENCE) -> float:
    """Half an interval (95 %) around a mean that varies for several reasons, each known by independent draws of it.

    Their variances are added; Student's t for as many degrees of freedom as the sum has (Satterthwaite 1946).
    """
    known = [(values.var(ddof=1) / len(values), len(values) - 1) for values in sources if len(values) > 1]
    total = sum(variance for variance, _ in known)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in known)
    return student_t(freedom, confidence=confidence) * math.sqrt(total)


def judge_difference(
    one_RSD: np.ndarray,
    other_RSD: np.ndarray,
    counts_D: np.ndarray,
    *,
    margin: float = MARGIN,
    between_replicas: bool = False,
) -> tuple[Estimate, str]:
    """Return PPL of one over that of the other less 1 with its 95 % interval, and what that means.

    ``equivalent``: the 90 % interval lies within the margin either way (two one-sided tests, Schuirmann 1987); ``lower``
    or ``higher``: not so, and the 95 % interval excludes zero; else ``cannot tell``. One distillation of each says
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


def _mean_of_runs(sums_RSD: np.ndarray) -> np.ndarray:
    # Equal runs count once: their mean is then the same to the bit however many there are.
    different, times = np.unique(sums_RSD, axis=0, return_counts=True)
    mean_SD: np.ndarray = np.tensordot(times / times.sum(), different, axes=1)
    return mean_SD


# ---- over timed pairs


def estimate_pairs(logs_P: np.ndarray) -> tuple[float, float | None]:
    """The mean of logarithmic ratios of timed pairs, in the order they were taken, and half its 95 % interval.

    Pairs are cut into blocks of neighbours; Student's t over the blocks' medians: spikes do not count, and what drifts from
    block to block does. None: fewer than ``FEWEST_PAIRS`` pairs, and the mean is their median.
    """
    if len(logs_P) < FEWEST_PAIRS:
        return float(np.median(logs_P)), None
    num_blocks = min(MOST_BLOCKS, max(FEWEST_PAIRS, len(logs_P) // BLOCK_PAIRS))
    medians = np.array([np.median(block) for block in np.array_split(logs_P, num_blocks)])
    half = student_t(len(medians) - 1) * medians.std(ddof=1) / math.sqrt(len(medians))
    return float(medians.mean()), float(half)


# ---- orders, and the bootstrap


def draw_counts(in_first_half_N: np.ndarray, *, draws: int) -> np.ndarray:
    """Return how often each draw of the bootstrap holds each of N things, (B, N); two halves are resampled apart."""
    rng = np.random.default_rng(0)
    counts_BN = np.zeros((draws, len(in_first_half_N)))
    for members_N in (in_first_half_N, ~in_first_half_N):
        size = int(members_N.sum())
        if size:
            counts_BN[:, members_N] = rng.multinomial(size, np.full(size, 1 / size), draws)
    return counts_BN


def resample_tau(one_C: np.ndarray, *, other_C: np.ndarray, counts_BC: np.ndarray) -> np.ndarray:
    """Return Kendall's tau-b in each draw, of shape (B,); NaN where a draw leaves it undefined.

    Tied pairs count as in M. G. Kendall, "The treatment of ties in ranking problems", Biometrika 33 (1945):
    (concordant - discordant) / sqrt(pairs not tied in one * pairs not tied in the other).

    A draw that holds a candidate twice has pairs of that candidate with itself, tied in every score. They are
    dropped: they say nothing about order, and as ties they would pull tau about. Pairs of different candidates weigh
    as often as the draw holds them.
    """
    signs_CC = np.sign(one_C[:, None] - one_C)  # zero on the diagonal: a candidate with itself never counts
    other_signs_CC = np.sign(other_C[:, None] - other_C)
    agreeing_B, untied_B, other_untied_B = (
        ((counts_BC @ pairs_CC) * counts_BC).sum(axis=1)
        for pairs_CC in (signs_CC * other_signs_CC, signs_CC**2, other_signs_CC**2)
    )
    norms_B = np.sqrt(untied_B * other_untied_B)
    taus_B = np.full(len(counts_BC), np.nan)
    np.divide(agreeing_B, norms_B, out=taus_B, where=norms_B > 0)
    return taus_B


def average_tau(pairs: Sequence[tuple[np.ndarray, np.ndarray]], counts_BC: np.ndarray) -> np.ndarray:
    """Mean of Kendall's tau over pairs of scores, in each draw (B,); not a number where there is no pair."""
    if not pairs:
        return np.full(len(counts_BC), np.nan)
    taus_B: np.ndarray = np.mean(
        [resample_tau(one, other_C=other, counts_BC=counts_BC) for one, other in pairs], axis=0
    )
    return taus_B


def put_interval(values_B: np.ndarray, *, num_candidates: int) -> Estimate:
    """The first value with the interval that holds 95 % of the others."""
    value, draws_B = float(values_B[0]), values_B[1:]
    if not math.isfinite(value):
        return NOTHING
    if num_candidates < NEEDED_CANDIDATES:
        return Estimate(value=value, low=None, high=None)
    low, high = np.quantile(draws_B[np.isfinite(draws_B)], [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high))
