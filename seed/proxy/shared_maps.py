"""Closed-form recovery by maps around each gap, fitted on the dense model's own states and shared by all candidates.

The layer before a gap is changed so that its output matches the dense model's state behind the gap, and the next layers behind it so
that theirs do, as if there were no other gap; where maps of several gaps meet in a layer they are added. A candidate then costs no
more than without recovery, and there is calibration text enough for wide projections.

Attention sinks, positions whose states are a hundred times as large as others, are a few rows of thousands. So rows are
weighted by what the next norm makes of them, and sinks by more, before and behind the layer that makes them. Shapes: B sequences, T tokens, F and D as in
``closed_form``.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from seed.models.anatomy import Anatomy
from seed.proxy.closed_form import Correction, ProjectionFit
from seed.records import Edge

SINK = 8.0  # a state so many times as large as the median, at any layer, makes its position one
SINK_WEIGHT = 30.0
LARGEST_WEIGHT = 4.0  # of small states
MAP_BYTES = 4 * 10**9
REACH = 2  # layers behind a gap that have maps, too


class SharedMaps:
    """Maps by gap, made when they are first asked for. A gap is an edge: the layer before it, and the one behind it."""

    def __init__(
        self, anatomy: Anatomy, uncut_states: Sequence[Sequence[Tensor]], *, gains: Mapping[int, float]
    ) -> None:
        """``uncut_states``: by batch of calibration text, then by layer (B, T, D)."""
        self.anatomy, self.uncut_states, self.gains = anatomy, uncut_states, gains
        self.sinks = [torch.stack([measure_ratio(state) for state in states]).amax(0) > SINK for states in uncut_states]
        self.maps: dict[Edge, dict[int, Correction]] = {}

    @torch.no_grad()
    def find(self, gap: Edge) -> dict[int, Correction]:
        """The maps of a gap by layer: of the one before it, and of the next ones behind it."""
        if gap not in self.maps:
            self.maps[gap] = self._fit(*gap)
            while self.count_bytes() > MAP_BYTES and len(self.maps) > 1:
                del self.maps[next(iter(self.maps))]
        return self.maps[gap]

    def add_up(self, layer: int, gaps: Iterable[Edge]) -> Correction | None:
        """What a layer writes in addition, where these gaps come before it or next; None: nothing."""
        found = [maps[layer] for maps in map(self.find, gaps) if layer in maps]
        if len(found) < 2:
            return found[0] if found else None
        weight = torch.stack([one.weight for one in found]).sum(0)
        biases = [one.bias for one in found if one.bias is not None]
        return Correction(weight=weight, bias=torch.stack(biases).sum(0) if biases else None)

    def count_bytes(self) -> int:
        """Bytes of the maps."""
        return sum(one.weight.nbytes for maps in self.maps.values() for one in maps.values())

    def _fit(self, before: int, behind: int) -> dict[int, Correction]:
        """Fit layers one after another, each on what those before it make of the calibration text."""
        hidden = [states[before] for states in self.uncut_states]
        found: dict[int, Correction] = {}
        for layer in (before, *range(behind, min(behind + REACH, self.anatomy.num_layers))):
            if layer not in self.gains:  # gone already
                continue
            place = behind if layer == before else layer + 1
            found[layer], hidden = self._fit_layer(layer, hidden, [states[place] for states in self.uncut_states])
        return found

    def _fit_layer(
        self, layer: int, hidden: Sequence[Tensor], wanted: Sequence[Tensor]
    ) -> tuple[Correction, list[Tensor]]:
        """Fit a layer's output on these states to those wanted; return its map, and the output with it."""
        outlet, gain = self.anatomy.find_output_projection(layer), self.gains[layer]
        assert outlet is not None, "measure_gains proved that there is one"
        inputs, gaps, outputs, reads = [], [], [], []
        for state, target, is_sink in zip(hidden, wanted, self.sinks, strict=True):
            with outlet.record_inputs() as recorded:
                output = self.anatomy.run_layer(layer, state)
            weight = weigh_positions([output, target], is_sink)
            read = recorded[0].reshape(*output.shape[:2], -1)
            rows = torch.cat([read.float(), torch.ones_like(weight)], dim=-1) if outlet.has_bias else read.float()
            inputs.append(rows * weight)
            gaps.append((target - output).float() / gain * weight)
            outputs.append(output)
            reads.append(read)
        solved = ProjectionFit(inputs, has_bias=False).solve(gaps, or_none=True).weight.float()
        found = Correction(weight=solved[: outlet.num_inputs], bias=solved[-1] if outlet.has_bias else None)
        return found, [output + gain * found.apply(read) for output, read in zip(outputs, reads, strict=True)]


def measure_ratio(states_BTD: Tensor) -> Tensor:
    """How many times as large as the median's each position's state is (B, T, 1)."""
    norm: Tensor = torch.linalg.vector_norm(states_BTD.float(), dim=-1, keepdim=True)
    return norm / norm.median().clamp_min(1e-12)


def weigh_positions(states: Sequence[Tensor], is_sink: Tensor) -> Tensor:
    """How much each position counts in a fit (B, T, 1): as the larger of its states (B, T, D) does behind a norm; sinks by more."""
    ratio = torch.stack([measure_ratio(state) for state in states]).amax(0)
    weight = (1 / ratio.clamp_min(1e-12)).clamp_max(LARGEST_WEIGHT)
    return torch.where(is_sink, SINK_WEIGHT * weight, weight)
