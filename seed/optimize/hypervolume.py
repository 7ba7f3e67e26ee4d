"""How the frontier grew while a study ran: the hypervolume of two objectives, trial by trial."""

from bisect import bisect_right
from collections.abc import Sequence

from seed.findings import Progress
from seed.records import TrialRecord

USEFUL = 2.0  # PPL ratio: a depth whose best lies beyond does not move the corner
ROOM = 2.0  # the corner lies at twice what the worst leader of a depth loses, so that every leader counts


def measure_hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the area that points dominate, both coordinates to be minimised, up to the corner ``reference``.

    Source: Zitzler and Thiele 1998 (the size of the space covered), for two objectives by sorting.
    """
    area, ceiling = 0.0, reference[1]
    for x, y in sorted(points):
        if x < reference[0] and y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = y
    return area


def measure_progress(trials: Sequence[TrialRecord], *, rung: str) -> Progress | None:
    """Return where in a study the hypervolume grew; None where no trial is faster than the dense model.

    The corner has the dense model's latency, 1, and a PPL ratio that loses twice what the worst of the depths' best loses,
    so that the last value does not hang on hopeless candidates.
    """
    scored = [
        (trial.number, trial.evaluation.qualities[rung].ppl_ratio, trial.evaluation.latency)
        for trial in trials
        if trial.state == "COMPLETE" and rung in trial.evaluation.qualities
    ]
    best: dict[str, float] = {}
    for _, ratio, latency in scored:
        if latency.ratio < 1:
            best[latency.structure] = min(best.get(latency.structure, ratio), ratio)
    if not best:
        return None
    worst = max([ratio for ratio in best.values() if ratio <= USEFUL] or [min(best.values())])
    reference = (1 + ROOM * max(worst - 1, 0.01), 1.0)
    front: list[tuple[float, float]] = []
    steps: list[tuple[int, float]] = []
    for number, ratio, latency in scored:
        point = (ratio, latency.ratio)
        place = bisect_right(front, point)
        if any(other[1] <= point[1] for other in front[:place]) or not (ratio < reference[0] and latency.ratio < 1):
            continue
        front = [*front[:place], point, *(other for other in front[place:] if other[1] < point[1])]
        steps.append((number, measure_hypervolume(front, reference)))
    return Progress(reference=reference, num_trials=max(number for number, *_ in scored) + 1, steps=tuple(steps))
