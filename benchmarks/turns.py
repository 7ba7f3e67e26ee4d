"""Ways to do the same, timed in turns: what a shared machine does to one it does to the other, and ratios survive."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Way = Callable[[], object]


def time_call(run: Way) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def time_turn(ways: Mapping[str, Way], *, number: int) -> dict[str, float]:
    """Seconds of one call of each way; every other turn goes backwards, so that none is always first."""
    names = list(ways)
    return {name: time_call(ways[name]) for name in (names if number % 2 == 0 else reversed(names))}


def spread_of(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median, and 10th and 90th percentile, of what repeated measurements gave."""
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    return {"median": float(middle), "p10": float(low), "p90": float(high)}


def show_spread(spread: Mapping[str, Any], *, digits: int = 2) -> str:
    """``3.02 (2.95 to 3.08)``."""
    return f"{spread['median']:.{digits}f} ({spread['p10']:.{digits}f} to {spread['p90']:.{digits}f})"


def range_of(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median, least and most of what a few repeated measurements gave."""
    return {"median": float(np.median(values)), "min": float(np.min(values)), "max": float(np.max(values))}


def show_range(spread: Mapping[str, Any], *, digits: int = 2) -> str:
    """``3.02 (2.95 to 3.08)``."""
    return f"{spread['median']:.{digits}f} ({spread['min']:.{digits}f} to {spread['max']:.{digits}f})"
