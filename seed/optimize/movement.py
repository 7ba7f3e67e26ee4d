"""How the order in which layers go most easily moves from one stage of a search to the next."""

import itertools
from collections.abc import Sequence

from seed.evidence import RankMovement, StageRecord
from seed.stats import measure_tau


def measure_movements(stages: Sequence[StageRecord]) -> tuple[RankMovement, ...]:
    """Return Kendall's tau of each stage's order with the next one's, over the layers that both can drop."""
    found = []
    for before, after in itertools.pairwise(stages):
        common = sorted(before.singles.keys() & after.singles.keys(), key=int)
        tau = measure_tau(*([stage.singles[layer] for layer in common] for stage in (before, after)))
        found.append(RankMovement(before=before.name, after=after.name, num_layers=len(common), tau=tau))
    return tuple(found)
