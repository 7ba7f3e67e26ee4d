"""What evidence for claims says in numbers: which runs belong to a role, means with intervals, and what an interval tells.

Verdicts on claims are ``claims``' business.
"""

from collections.abc import Sequence

import numpy as np

from seed import stats
from seed.evidence import ClaimsEvidence, TrainedRun
from seed.optimize.replication import stack_losses
from seed.records import Estimate, Latency
from seed.stats import CANNOT_TELL, MARGIN, estimate_mean, judge_difference

HOLDS, FAILS = "holds", "does not hold"


def select_runs(
    evidence: ClaimsEvidence, role: str, *, recovery: str = "distillation", staged: bool = False
) -> list[TrainedRun]:
    """The runs of the model that plays a role, by random seed."""
    if not staged:
        return select_model(evidence, evidence.roles.get(role), recovery=recovery)
    return sorted((run for run in evidence.ledger.runs if run.stages), key=lambda run: run.rng_seed)


def select_model(evidence: ClaimsEvidence, key: str | None, *, recovery: str = "distillation") -> list[TrainedRun]:
    """The runs of a model, by random seed."""
    tokens = evidence.ledger.settings["distill_tokens"]
    found = [run for run in evidence.ledger.runs if not run.stages and run.tokens == tokens]
    return sorted((run for run in found if run.key == key and run.recovery == recovery), key=lambda run: run.rng_seed)


def estimate_ratio(evidence: ClaimsEvidence, runs: Sequence[TrainedRun]) -> Estimate:
    """The PPL ratio to the dense model on test text, mean over runs, with its 95 % interval."""
    ledger = evidence.ledger
    return stats.estimate_ratio(stack_losses(runs), ledger.dense_test_sums, np.array(ledger.test_counts))


def compare_runs(
    evidence: ClaimsEvidence, ours: Sequence[TrainedRun], theirs: Sequence[TrainedRun]
) -> tuple[Estimate, str]:
    """PPL of one over another less 1, and the verdict, of runs under the same random seeds."""
    return judge_difference(stack_losses(ours), stack_losses(theirs), np.array(evidence.ledger.test_counts))


def estimate_cost(evidence: ClaimsEvidence, weights: dict[int, float], *, rung: str) -> Estimate:
    """A weighted sum of the log PPL ratios of single removals at a rung, with its interval over documents."""
    counts_D = np.array(evidence.validation_counts)
    dense_D = np.array(evidence.dense_validation_sums)
    sums_D = sum(
        weight * (np.array(evidence.singles[rung][str(layer)], dtype=float) - dense_D)
        for layer, weight in weights.items()
    )
    assert isinstance(sums_D, np.ndarray)
    return estimate_mean(sums_D, counts_D)


def tell(estimate: Estimate, *, above: float | None = None, below: float | None = None) -> str:
    """Does the whole interval lie above (or below) a number?"""
    if estimate.low is None or estimate.high is None:
        return CANNOT_TELL
    if above is not None:
        return HOLDS if estimate.low > above else FAILS if estimate.high < above else CANNOT_TELL
    assert below is not None
    return HOLDS if estimate.high < below else FAILS if estimate.low > below else CANNOT_TELL


def tell_all(verdicts: Sequence[str], *, needed: int = 1) -> str:
    """All must hold, and so many must be there; one that does not hold is enough to say that the claim does not."""
    if FAILS in verdicts:
        return FAILS
    is_whole = len(verdicts) >= needed and all(verdict == HOLDS for verdict in verdicts)
    return HOLDS if is_whole else CANNOT_TELL


def estimate_latency(latency: Latency) -> Estimate:
    """A latency ratio with its interval."""
    return Estimate(value=latency.ratio, low=latency.ratio_low, high=latency.ratio_high)


def tell_beyond(estimate: Estimate, *, margin: float = MARGIN) -> str:
    """Does the whole interval lie beyond a margin on one side? Then what was to be within it does not hold."""
    if estimate.low is None or estimate.high is None:
        return CANNOT_TELL
    return FAILS if estimate.low > margin or estimate.high < 1 / (1 + margin) - 1 else CANNOT_TELL


def name_best_rung(evidence: ClaimsEvidence) -> str:
    """The rung with recovery where singles were scored by it."""
    return "closed_form" if "closed_form" in evidence.singles else "none"


def show(estimate: Estimate, *, unit: str = "") -> str:
    """``1.055 [1.050, 1.060]``, or in per cent ``+1.2 [+0.9, +1.5] %``."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "not known"
    if unit == "%":
        return f"{100 * estimate.value:+.2f} [{100 * estimate.low:+.2f}, {100 * estimate.high:+.2f}] %"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
