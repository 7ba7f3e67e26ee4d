"""A further stage of a search: from a recovered model on, layers still named by their index in the original.

The original stays the teacher and the base of every ratio; only what candidates are cut from changes.
"""

import math
from dataclasses import replace
from pathlib import Path

import msgspec
from torch import nn

from seed.models.grafting import graft
from seed.models.surgery import cast_weights
from seed.optimize.space import drop_layers, enumerate_candidates, narrow_space
from seed.records import Candidate, SearchSpace
from seed.scoring.sweep import Sweep
from seed.stages.workbench import Workbench

COUNTED_SETS = 2000  # past this many, further layers are chosen one at a time


def enter_stage(bench: Workbench, sweep: Sweep, candidate: Candidate, recovered: nn.Module, *, path: Path) -> Sweep:
    """A sweep whose candidates are cut from the recovered model of ``candidate``, as it would be exported.

    Its scores lie in a file of their own: they are of other weights than the study's.
    """
    exported = cast_weights(recovered, bench.teacher.stored_dtype)
    return Sweep(replace(sweep.instruments, grafted=graft(bench.anatomy, exported, candidate)), path)


def further_space(space: SearchSpace, gone: Candidate, *, num_dropped: int) -> SearchSpace:
    """The sets with ``num_dropped`` layers gone in all, those of ``gone`` among them."""
    return narrow_space(
        msgspec.structs.replace(space, max_dropped=max(space.max_dropped, num_dropped)),
        gone_layers=gone.dropped_layers,
        min_dropped=num_dropped,
        max_dropped=num_dropped,
        place=f"the stage after {gone.key}",
    )


def choose_next(stage: Sweep, space: SearchSpace, gone: Candidate, *, num_dropped: int) -> Candidate:
    """The best set with ``num_dropped`` layers gone in all by the stage's scores: of all of them, or one more layer at a time."""
    wanted = further_space(space, gone, num_dropped=num_dropped)
    if wanted.size <= COUNTED_SETS:
        return min(enumerate_candidates(wanted), key=lambda candidate: measure_loss(stage, candidate))
    grown = gone
    while len(grown.dropped_layers) < num_dropped:
        more = [
            drop_layers(space.num_layers, (*grown.dropped_layers, layer))
            for layer in wanted.droppable_layers
            if layer in grown.kept_layers
        ]
        grown = min(more, key=lambda candidate: measure_loss(stage, candidate))
    return grown


def measure_loss(sweep: Sweep, candidate: Candidate) -> float:
    """Validation loss with closed-form recovery where the family allows it, else as it stands; infinite where it is no number."""
    if sweep.instruments.gains is not None:
        quality = sweep.measure(candidate)
    else:
        [quality] = sweep.measure_unrecovered([candidate])
    return quality.loss if math.isfinite(quality.loss) else math.inf
