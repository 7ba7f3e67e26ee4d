"""The latency table: each structure timed once beside the dense model, and what limits make of it.

How a model is timed is ``evaluation.latency``'s business; here is which, when, and where it is written down.
"""

import contextlib
import functools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence

import msgspec
import torch
from torch import nn

from seed import study_dir
from seed.errors import SpaceError
from seed.evaluation import latency as timing
from seed.models.checkpoint import measure_size
from seed.models.surgery import make_student, view_layers
from seed.optimize.frontier import Limits
from seed.optimize.space import drop_deepest, drop_layers, drop_parts
from seed.protocols import name_device
from seed.records import Candidate, Evaluation, Latency, SearchSpace
from seed.reporting.wording import format_bytes
from seed.sessions import Session


class LatencyTable:
    """Latencies by structure, each measured once, and written down as soon as it is known.

    Args:
        session: the opened study.
        measure: times a candidate's structure beside the dense model, on the reference device, while nothing else runs.
    """

    def __init__(
        self,
        session: Session,
        *,
        measure: Callable[[Candidate], Latency],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.session, self.measure, self.say = session, measure, say
        path = session.folder.latency
        self.measured = study_dir.read_record(path, dict[str, Latency]) if path.exists() else {}
        self.table = smooth_latencies(session, self.measured)

    @property
    def is_complete(self) -> bool:
        """Are there no more structures than depths? Models with several kinds of layers have more."""
        return len(self.session.anatomy.layer_kinds) == 1 and not self.session.has_parts

    def measure_depths(self, space: SearchSpace, *, on_structure: Callable[[str], None]) -> None:
        """Time each depth of the space once."""
        if self.session.has_parts:
            self._predict([])
            on_structure("attention and MLP")
            return
        for num_dropped in range(space.min_dropped, space.max_dropped + 1):
            candidate = drop_deepest(space, num_dropped)
            structure = timing.name_structure(self.session.anatomy, candidate)
            if structure not in self.measured:
                self._keep(self.measure(candidate))
            on_structure(structure)
        self.table = smooth_latencies(self.session, self.measured)

    def time(self, candidates: Sequence[Candidate]) -> dict[str, Latency]:
        """Latencies by structure, these candidates' among them; those that are known stay as they are.

        Where attention and MLP go alone there are too many structures to time: a few are, and others predicted from them.
        """
        if self.session.has_parts:
            return self._predict(candidates)
        for candidate in candidates:
            structure = timing.name_structure(self.session.anatomy, candidate)
            if structure not in self.table:
                self.say(f"timing {structure} beside the dense model")
                latency = self.measure(candidate)
                if self.is_complete:
                    latency = keep_order(latency, self.table)
                self._keep(latency)
                self.table = self.table | {structure: latency}
        return self.table

    def time_predicted(self, evaluations: Sequence[Evaluation]) -> bool:
        """Time the structures of candidates whose latency is only predicted; was there any?"""
        new = {one.latency.structure: one for one in evaluations if one.latency.structure not in self.measured}
        for structure, evaluation in new.items():
            self._keep(self.measure(evaluation.candidate))
            found, expected = self.measured[structure].ratio, evaluation.latency.ratio
            self.say(f"timed {structure}: {found:.3f} of the dense model's time, where {expected:.3f} was predicted")
        self.table = self.table | self.measured
        return bool(new)

    def _predict(self, candidates: Sequence[Candidate]) -> dict[str, Latency]:
        anatomy, corners = self.session.anatomy, list_corners(self.session.protocol.space)
        for corner in corners:
            if timing.name_structure(anatomy, corner) not in self.measured:
                self._keep(self.measure(corner))
        timed = [self.measured[timing.name_structure(anatomy, corner)] for corner in corners]
        known = dict.fromkeys(timing.name_structure(anatomy, candidate) for candidate in candidates)
        predicted = {name: timing.predict_latency(name, timed, num_layers=anatomy.num_layers) for name in known}
        self.table = predicted | self.table | self.measured
        return self.table

    def _keep(self, latency: Latency) -> None:
        self.measured[latency.structure] = latency
        study_dir.write_record(self.session.folder.latency, self.measured)


def list_corners(space: SearchSpace) -> list[Candidate]:
    """Candidates from whose latencies all others' are predicted: as many parts gone as can be, and half as many, of each kind and of both."""
    most = min(2 * space.max_dropped, len(space.droppable_layers), space.num_layers - 1)
    found = {}
    for count in (most, -(-most // 2)):
        for kinds in dict.fromkeys([*((kind,) for kind in space.kinds), space.kinds]):
            layers = space.droppable_layers[-max(1, count // len(kinds)) :]
            candidate = drop_parts(space, [f"{layer}.{kind}" for layer in layers for kind in kinds])
            found[candidate.key] = candidate
    return list(found.values())


def keep_order(latency: Latency, table: Mapping[str, Latency]) -> Latency:
    """Let a new ratio lie between those of the depths on either side, so that noise cannot delete a depth."""
    layers = count_layers(latency.structure)
    fewer = [known.ratio for name, known in table.items() if count_layers(name) < layers]
    more = [known.ratio for name, known in table.items() if count_layers(name) > layers]
    return timing.move_ratio(latency, min(max(latency.ratio, *fewer, 0.0), *more, math.inf))


def count_layers(structure: str) -> int:
    """How many layers a structure has, all of one kind."""
    return int(structure.split()[0])


def smooth_latencies(session: Session, table: dict[str, Latency]) -> dict[str, Latency]:
    """Let ratios rise with depth where all layers are of one kind; else as measured."""
    if len(session.anatomy.layer_kinds) > 1 or session.has_parts or not table:
        return table
    names = list(table)
    smoothed = timing.smooth_over_depth([table[name] for name in names], list(map(count_layers, names)))
    return dict(zip(names, smoothed, strict=True))


def measure_latency(session: Session, candidate: Candidate) -> Latency:
    """Time a candidate's structure beside the dense model, by our workload or by the user's command."""
    structure = timing.name_structure(session.anatomy, candidate)
    if session.protocol.latency_command:
        return _measure_by_command(session, candidate, structure, session.protocol.latency_command)
    if session.workload.compiled:  # a compiled graph needs a model that stays as it is
        torch.compiler.reset()
        return time_beside_dense(session, make_student(session.anatomy, candidate), structure=structure)
    view = functools.partial(view_layers, session.anatomy, candidate)
    return time_beside_dense(session, session.teacher.model, structure=structure, within=view)


def time_beside_dense(
    session: Session,
    model: nn.Module,
    *,
    structure: str,
    within: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Latency:
    """Time a model beside the dense one, by our workload. ``within``: what makes it a smaller one while it runs."""
    workload, vocabulary = session.workload, session.anatomy.config.vocab_size
    dense = timing.prepare_decoder(session.teacher.model, workload, vocabulary=vocabulary)
    cut = timing.prepare_decoder(model, workload, vocabulary=vocabulary, within=within)
    return timing.measure_pair(dense, cut, workload, structure=structure, device=name_device(session.device))


def _measure_by_command(session: Session, candidate: Candidate, structure: str, command: str) -> Latency:
    """Export dense and cut models undistilled, and let the user's command time them in turns."""
    paths = []
    for name, layers in (("dense", drop_layers(session.anatomy.num_layers, [])), ("cut", candidate)):
        paths.append(session.folder.work / f"latency-{name}")
        session.write_checkpoint(make_student(session.anatomy, layers), paths[-1])
    device, repeats = name_device(session.device), session.protocol.latency_repeats
    latency = timing.measure_by_command(command, *paths, structure=structure, device=device, repeats=repeats)
    for path in paths:
        shutil.rmtree(path)
    return latency


def bound_space(session: Session, table: Mapping[str, Latency], limits: Limits) -> SearchSpace:
    """Turn limits on latency and memory into a bound on how few layers may go, before the first trial.

    ``table``: of each depth, where latency is limited.

    Raises:
        SpaceError: no candidate of the space can keep the limits.
    """
    space, max_ratio, reached, fewest = session.protocol.space, limits.max_latency_ratio, "", None
    deepest_first = [drop_deepest(space, count) for count in range(space.max_dropped, space.min_dropped - 1, -1)]
    for candidate in list_corners(space) if space.kinds else deepest_first:
        ratio = 0.0 if max_ratio is None else table[timing.name_structure(session.anatomy, candidate)].ratio
        with view_layers(session.anatomy, candidate) as view:
            size = measure_size(view, dtype=session.teacher.stored_dtype)
        memory = size.weight_bytes + size.kv_bytes_per_token * limits.cached_tokens
        if not reached:
            latency = "" if max_ratio is None else f"the latency ratio is {ratio:.3f} and "
            layers = f"{candidate.num_dropped:g} layer{'' if candidate.num_dropped == 1 else 's'}"
            reached = f"with {layers} dropped {latency}memory is {format_bytes(memory)}"
        if ratio <= (max_ratio or math.inf) and memory <= (limits.max_memory_bytes or math.inf):
            fewest = candidate
        elif not space.kinds:
            break
    if fewest is None:
        raise SpaceError(f"no candidate can keep the limits: {reached}. Raise --max-dropped, or the limit.")
    if space.kinds:  # what few parts save depends on which: there limits are constraints, no bound
        return space
    return msgspec.structs.replace(space, min_dropped=len(fewest.dropped_layers))
