"""Closed-form recovery by maps around each gap, fitted on the dense model's own states and shared by all candidates.

The layer before a gap is changed so that its output matches the dense model's state behind the gap, and the next two behind it so
that theirs do, as if there were no other gap; where maps of several gaps meet in a layer they are added. A candidate then costs no
more than without recovery, and there is calibration text enough for wide projections.

Where a norm follows the projection, the projection is fitted to write in the direction of what the norm must put out, and then
the norm's multipliers, channel by channel; layers behind stay as they are.

Attention sinks, positions whose states are a hundred times as large as others, are a few rows of thousands. So rows are
weighted by what the next norm makes of them, and sinks by more, before and behind the layer that makes them. Shapes: B
sequences, T tokens, F and D as in ``closed_form``.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from seed.models.anatomy import Anatomy
from seed.models.output_projection import NormedProjection, OutputProjection, measure_size, normalize
from seed.proxy.closed_form import Correction, ProjectionFit
from seed.records import Edge

WIDE = 1024  # past so many inputs of a projection
SINK = 8.0  # a state so many times as large as the median, at any layer, makes its position one
SINK_WEIGHT = 30.0
LARGEST_WEIGHT = 4.0  # of small states
MAP_BYTES = 4 * 10**9
BEFORE_ALL = -1  # in a gap's place of the layer before it: there is none
REACH = 2  # whole layers behind a gap that have maps, too


def shares_maps(anatomy: Anatomy) -> bool:
    """Has closed form maps that candidates share? Behind norms always; and where fits for each candidate would be most of its time."""
    found = [anatomy.find_output_projection(layer) for layer in range(anatomy.num_layers)]
    return any(isinstance(one, NormedProjection) or (one is not None and one.num_inputs > WIDE) for one in found)


def find_reach(anatomy: Anatomy) -> int:
    """Steps behind a gap that have maps: of whole layers, or of attention and MLP in turn."""
    return REACH * anatomy.num_layers // len(anatomy.layers)


class SharedMaps:
    """Maps by gap, made when they are first asked for. A gap is an edge: the layer before it, and the one behind it."""

    def __init__(
        self, anatomy: Anatomy, uncut_states: Sequence[Sequence[Tensor]], *, gains: Mapping[int, float]
    ) -> None:
        """``uncut_states``: by batch of calibration text, then by layer (B, T, D)."""
        self.anatomy, self.uncut_states, self.gains = anatomy, uncut_states, gains
        self.reach = find_reach(anatomy)
        self.sinks = [torch.stack([measure_ratio(state) for state in states]).amax(0) > SINK for states in uncut_states]
        self.maps: dict[Edge, dict[int, Correction]] = {}
        self.or_none = True  # is a map left out that makes held-out text worse?

    @torch.no_grad()
    def find(self, gap: Edge) -> dict[int, Correction]:
        """The maps of a gap by layer: of the one before it, and of the next ones behind it."""
        self.maps[gap] = self.maps.pop(gap) if gap in self.maps else self._fit(*gap)  # the last in use come last
        while self.count_bytes() > MAP_BYTES and len(self.maps) > 1:
            del self.maps[next(iter(self.maps))]
        return self.maps[gap]

    def add_up(self, layer: int, gaps: Iterable[Edge]) -> Correction | None:
        """What a layer writes in addition, where these gaps come before it or next; None: nothing."""
        near = [(before, behind) for before, behind in gaps if layer == before or behind <= layer < behind + self.reach]
        found = [maps[layer] for maps in map(self.find, near) if layer in maps]
        return functools.reduce(_add, found) if found else None

    def count_bytes(self) -> int:
        """Bytes of the maps."""
        return sum(one.weight.nbytes for maps in self.maps.values() for one in maps.values())

    def _fit(self, before: int, behind: int) -> dict[int, Correction]:
        """Fit layers one after another, each on what those before it make of the calibration text."""
        hidden = [states[max(0, before)] for states in self.uncut_states]
        found: dict[int, Correction] = {}
        for layer in (before, *range(behind, min(behind + self.reach, self.anatomy.num_layers))):
            if layer not in self.gains:  # gone already, or before all
                continue
            place = behind if layer == before else layer + 1
            found[layer], hidden = self._fit_layer(layer, hidden, [states[place] for states in self.uncut_states])
            if not hidden:
                break
        return found

    def _fit_layer(
        self, layer: int, hidden: Sequence[Tensor], wanted: Sequence[Tensor]
    ) -> tuple[Correction, list[Tensor]]:
        """Fit a layer's output on these states to those wanted; return its map, and the output with it, none behind a norm."""
        outlet, gain = self.anatomy.find_output_projection(layer), self.gains[layer]
        assert outlet is not None, "measure_gains proved that there is one"
        if isinstance(outlet, NormedProjection):
            return self._fit_normed(layer, outlet, hidden, wanted), []
        inputs, gaps, outputs, reads = [], [], [], []
        for state, target, is_sink in zip(hidden, wanted, self.sinks, strict=True):
            output, read, rows = self._record(layer, outlet, state)
            weight = weigh_positions([output, target], is_sink)
            inputs.append(rows * weight)
            gaps.append((target - output).float() / gain * weight)
            outputs.append(output)
            reads.append(read)
        solved = ProjectionFit(inputs, has_bias=False).solve(gaps, or_none=self.or_none).weight.float()
        found = Correction(weight=solved[: outlet.num_inputs], bias=solved[-1] if outlet.has_bias else None)
        return found, [output + gain * found.apply(read) for output, read in zip(outputs, reads, strict=True)]

    def _record(self, layer: int, outlet: OutputProjection, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run a layer; return its output (B, T, D), what its projection reads (B, T, F), and that as a fit's rows, a one for a bias."""
        with outlet.record_inputs() as recorded:
            output = self.anatomy.run_layer(layer, state)
        read = recorded[0].reshape(*output.shape[:2], -1)
        rows = torch.nn.functional.pad(read.float(), (0, int(outlet.has_bias)), value=1.0)
        return output, read, rows

    def _fit_normed(
        self, layer: int, outlet: NormedProjection, hidden: Sequence[Tensor], wanted: Sequence[Tensor]
    ) -> Correction:
        """Fit a projection and the multipliers of the norm behind it, whose output meets the states wanted beside what comes in."""
        inputs, targets, weights, before = [], [], [], []
        for state, target, is_sink in zip(hidden, wanted, self.sinks, strict=True):
            output, read, rows = self._record(layer, outlet, state)
            weight = weigh_positions([output, target], is_sink)
            written = outlet.projection.module(read).float()
            # behind a norm an error counts by its share of what is written
            inputs.append(rows * weight / measure_size(written))
            targets.append(outlet.module(written) + (target - output).float() / self.gains[layer])
            weights.append(weight)
            before.append(normalize(written) * weight)
        # at first the multipliers are as large as the channels
        squares = sum((target * weight).square().sum((0, 1)) for target, weight in zip(targets, weights, strict=True))
        sizes_D = torch.as_tensor(squares / sum(weight.square().sum() for weight in weights)).sqrt().clamp_min(1e-12)
        gaps = [
            normalize(target / sizes_D) * weight - unit
            for target, weight, unit in zip(targets, weights, before, strict=True)
        ]
        change = ProjectionFit(inputs, has_bias=False).solve(gaps, or_none=self.or_none).weight.float()
        cross_D, square_D = torch.zeros_like(sizes_D), torch.zeros_like(sizes_D)
        for target, weight, unit, rows in zip(targets, weights, before, inputs, strict=True):
            after = normalize(unit + rows @ change) * weight
            cross_D += (target * weight * after).sum((0, 1))
            square_D += after.square().sum((0, 1))
        return Correction(
            weight=change[: outlet.num_inputs],
            bias=change[-1] if outlet.has_bias else None,
            scale=cross_D / square_D.clamp_min(1e-12) - outlet.multipliers,
        )


def _add(one: Correction, other: Correction) -> Correction:
    return Correction(
        weight=one.weight + other.weight,
        bias=None if one.bias is None or other.bias is None else one.bias + other.bias,
        scale=None if one.scale is None or other.scale is None else one.scale + other.scale,
    )


def measure_ratio(states_BTD: Tensor) -> Tensor:
    """How many times as large as the median's each position's state is (B, T, 1)."""
    norm: Tensor = torch.linalg.vector_norm(states_BTD.float(), dim=-1, keepdim=True)
    return norm / norm.median().clamp_min(1e-12)


def weigh_positions(states: Sequence[Tensor], is_sink: Tensor) -> Tensor:
    """How much each position counts in a fit (B, T, 1): as the larger of its states (B, T, D) does behind a norm; sinks by more."""
    ratio = torch.stack([measure_ratio(state) for state in states]).amax(0)
    weight = (1 / ratio.clamp_min(1e-12)).clamp_max(LARGEST_WEIGHT)
    return torch.where(is_sink, SINK_WEIGHT * weight, weight)
