"""Which candidates are not worth short distillation, judged by what closed form has said of those that had it.

Within a structure, short distillation's log PPL ratio is regressed on closed form's. A candidate is hopeless when even
the lower end of its prediction interval, far out at one in a thousand, is worse than what is already found: so the
margin is the measured spread between the two proxies, not the sampling error of one. Few pairs, or pairs that say
nothing of such a candidate, give a wide interval and screen nothing.
"""

import math
from collections import defaultdict

import numpy as np

from seed.records import Candidate, Evaluation, Quality
from seed.stats import student_t

NEEDED_PAIRS = 8  # of a structure, before any of its candidates is skipped
PROXIES = ("closed-form", "short-distillation")
CONFIDENCE = 0.998  # one-sided: one in a thousand lies lower


class Screen:
    """Learns from finished trials of a study, and says what to skip."""

    def __init__(self, *, keep: int) -> None:
        """``keep``: how many candidates of each structure are wanted."""
        self.keep = keep
        self.pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def learn(self, evaluation: Evaluation) -> None:
        """Take in a finished trial's evaluation; one without both proxies says nothing."""
        if evaluation.qualities.keys() >= set(PROXIES):
            cheap, wanted = (math.log(evaluation.qualities[proxy].ppl_ratio) for proxy in PROXIES)
            if math.isfinite(cheap) and math.isfinite(wanted):
                self.pairs[evaluation.latency.structure].append((cheap, wanted))

    def judge(self, candidate: Candidate, quality: Quality, *, structure: str) -> str | None:
        """Say why the candidate is not worth the next proxy, or None."""
        pairs = self.pairs[structure]
        if len(pairs) < max(NEEDED_PAIRS, self.keep):
            return None
        known = np.array(pairs)
        goal = float(np.sort(known[:, 1])[self.keep - 1])
        lowest = predict_lowest(known[:, 0], known[:, 1], math.log(quality.ppl_ratio))
        if not lowest > goal:
            return None
        return (
            f"PPL ratio {quality.ppl_ratio:.3f} by closed form: short distillation would leave at least {math.exp(lowest):.3f}, "
            f"by what it made of {len(pairs)} others of equal structure, where {math.exp(goal):.3f} is reached"
        )


def predict_lowest(cheap: np.ndarray, wanted: np.ndarray, at: float) -> float:
    """Lower end of the prediction interval of a straight line's value ``at``, one-sided, one in a thousand."""
    count = len(cheap)
    mean = cheap.mean()
    spread = float(((cheap - mean) ** 2).sum())
    if spread == 0:
        return -math.inf
    slope = float(((cheap - mean) * (wanted - wanted.mean())).sum()) / spread
    residuals = wanted - wanted.mean() - slope * (cheap - mean)
    variance = float((residuals**2).sum()) / (count - 2)
    width = math.sqrt(variance * (1 + 1 / count + (at - mean) ** 2 / spread))
    return float(wanted.mean() + slope * (at - mean) - student_t(count - 2, confidence=CONFIDENCE) * width)
