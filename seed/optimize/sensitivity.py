"""What each layer and each pair of layers costs, read out of the scores that a study keeps; nothing is scored here."""

import math
from collections.abc import Iterable

from seed.findings import Sensitivity
from seed.records import ScoreRow, SearchSpace, read_dropped

MAX_LOG_RATIO = 20.0  # a broken model's PPL ratio may be any number


def read_sensitivities(rows: Iterable[ScoreRow], space: SearchSpace) -> tuple[Sensitivity, ...]:
    """Return a sensitivity for each rung at which single layers were scored, those without recovery first.

    Args:
        rows: lines of the sweep, the dense model's among them.
        space: layers that were gone before count as gone everywhere.
    """
    losses: dict[str, dict[tuple[int, ...], float]] = {}
    dense: ScoreRow | None = None
    known = list(rows)
    for row in known:
        if row.counts is not None:
            dense = row
    if dense is None or dense.counts is None:
        return ()
    dense_sum, tokens = _add(dense.sums), sum(dense.counts)
    if dense_sum is None or not tokens:
        return ()
    for row in known:
        dropped, total = read_dropped(row.key), _add(row.sums)
        if dropped is not None and total is not None and row is not dense:
            ratio = math.exp(min((total - dense_sum) / tokens, MAX_LOG_RATIO))
            losses.setdefault(row.rung, {})[dropped] = ratio
    found = [_take_rung(rung, ratios, space) for rung, ratios in sorted(losses.items(), key=_order)]
    return tuple(one for one in found if any(ratio is not None for ratio in one.singles))


def _take_rung(rung: str, ratios: dict[tuple[int, ...], float], space: SearchSpace) -> Sensitivity:
    gone = set(space.gone_layers)
    singles: list[float | None] = [None] * space.num_layers
    pairs = []
    for dropped, ratio in sorted(ratios.items()):
        more = [layer for layer in dropped if layer not in gone]
        if len(dropped) - len(more) != len(gone) or max(dropped) >= space.num_layers:
            continue
        if len(more) == 1:
            singles[more[0]] = ratio
        elif len(more) == 2:
            pairs.append((more[0], more[1], ratio))
    base = ratios.get(space.gone_layers) if gone else 1.0
    return Sensitivity(rung=rung, base=base, singles=tuple(singles), pairs=tuple(pairs))


def _add(sums: list[float | None]) -> float | None:
    numbers = [number for number in sums if number is not None and math.isfinite(number)]
    return sum(numbers) if len(numbers) == len(sums) else None


def _order(item: tuple[str, object]) -> tuple[int, str]:
    return {"none": 0, "closed_form": 1}.get(item[0], 2), item[0]
