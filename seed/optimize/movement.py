"""How the order in which layers go most easily moves from one stage of a search to the next."""

import itertools
import math
from collections.abc import Sequence

from seed.evidence import RankMovement, StageRecord


def measure_movements(stages: Sequence[StageRecord]) -> tuple[RankMovement, ...]:
    """Return Kendall's tau of each stage's order with the next one's, over the layers that both can drop."""
    from scipy.stats import kendalltau  # half a second, for searches in stages alone

    found = []
    for before, after in itertools.pairwise(stages):
        common = sorted(before.singles.keys() & after.singles.keys(), key=int)
        tau = None
        if len(common) > 1:
            value = kendalltau(*([stage.singles[layer] for layer in common] for stage in (before, after))).statistic
            tau = None if math.isnan(value) else float(value)  # all alike
        found.append(RankMovement(before=before.name, after=after.name, num_layers=len(common), tau=tau))
    return tuple(found)
