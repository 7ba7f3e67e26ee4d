"""Error bars, the reach of an axis, and percentages, for figures and pages of claims."""

import math
import statistics
from collections.abc import Sequence

from seed.records import Estimate
from seed.reporting.marks import draw_errors
from seed.reporting.wording import ABSENT, format_estimate

FAR = 6  # times the median's distance from the best


def find_limit(values: Sequence[float]) -> float:
    """Return how far an axis reaches: one or two hopeless strategies would press all others into a corner."""
    values = [value for value in values if math.isfinite(value)] or [1.0]  # broken models are beyond any
    least, middle = min(values), statistics.median(set(values))  # those that chose the same count once
    return max((value for value in values if value - least <= FAR * (middle - least)), default=max(values))


def find_edge(estimates: Sequence[Estimate], *, limit: float) -> float:
    """Return where the farthest bar of those within the limit ends."""
    near = [estimate for estimate in estimates if estimate.value is not None and estimate.value <= limit]
    return max((estimate.high for estimate in near if estimate.high is not None), default=limit)


def draw_estimates(estimates: Sequence[Estimate], *, limit: float, scale: float = 1.0) -> dict[str, object]:
    """Return error bars from ``low`` to ``high``; none where the value lies beyond the limit."""

    def measure(high: float | None, low: float | None, value: float | None) -> float:
        if high is None or low is None or value is None or value > limit:
            return 0.0
        return max(0.0, scale * (high - low))  # a percentile interval need not hold its point

    above = [measure(estimate.high, estimate.value, estimate.value) for estimate in estimates]
    below = [measure(estimate.value, estimate.low, estimate.value) for estimate in estimates]
    return {**draw_errors(above), "symmetric": False, "arrayminus": below}


def format_percent(estimate: Estimate) -> str:
    """Return ``+1.30 [+0.80, +1.90] %``."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ABSENT
    scaled = Estimate(value=100 * estimate.value, low=100 * estimate.low, high=100 * estimate.high)
    return f"{format_estimate(scaled)}\u00a0%"
