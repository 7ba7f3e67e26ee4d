"""A further stage of a search: from a recovered model on, layers still named by their index in the original.

The original stays the teacher and the base of every ratio; only what candidates are cut from changes.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import msgspec
from torch import nn

from seed.models.grafting import graft
from seed.models.surgery import cast_weights
from seed.optimize.space import drop_layers, enumerate_candidates, narrow_space
from seed.records import Candidate, SearchSpace
from seed.scoring.sweep import Sweep
from seed.stages.workbench import Workbench

COUNTED_SETS = 2000  # past this many, further layers are chosen one at a time


def enter_stage(bench: Workbench, sweep: Sweep, candidate: Candidate, recovered: nn.Module) -> Sweep:
    """A sweep whose candidates are cut from the recovered model of ``candidate``, as it would be exported.

    Its scores are of other weights than the study's, and are not kept.
    """
    exported = cast_weights(recovered, bench.teacher.stored_dtype)
    return Sweep(replace(sweep.instruments, grafted=graft(bench.anatomy, exported, candidate)))


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
        return choose_best(stage, list(enumerate_candidates(wanted)))
    return grow(stage, gone, num_dropped=num_dropped, layers=wanted.droppable_layers)


def grow(sweep: Sweep, candidate: Candidate, *, num_dropped: int, layers: Collection[int]) -> Candidate:
    """Drop the layer that costs least, out of ``layers``, until ``num_dropped`` are gone in all."""
    while len(candidate.dropped_layers) < num_dropped:
        left = [layer for layer in candidate.kept_layers if layer in layers]
        more = [drop_layers(candidate.num_layers, (*candidate.dropped_layers, layer)) for layer in left]
        candidate = choose_best(sweep, more)
    return candidate


def choose_best(sweep: Sweep, candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the lowest validation loss: with closed-form recovery where the family allows it, else as it stands.

    The first of those that are level; losses that are no number come last.
    """
    if sweep.instruments.gains is not None:
        losses = [sweep.measure(candidate).loss for candidate in candidates]
    else:
        losses = [quality.loss for quality in sweep.measure_unrecovered(candidates)]
    return candidates[find_lowest(losses)]


def find_lowest(losses: Sequence[float]) -> int:
    """Index of the lowest loss; those that are no number come last."""
    return min(range(len(losses)), key=lambda i: losses[i] if math.isfinite(losses[i]) else math.inf)
