"""Closed-form recovery by one map for each gap, fitted on the dense model's own states and shared by all candidates.

The layer before a gap is changed so that its output matches the dense model's state behind the gap; layers behind it stay as
they are. A candidate then costs no more than without recovery, and there is calibration text enough for wide projections.

Attention sinks, positions whose states are a hundred times as large as others, are a few rows of thousands. So rows are
weighted by what the next norm makes of them, and sinks by more, before and behind the layer that makes them. Shapes: B sequences, T tokens, F and D as in
``closed_form``.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from seed.models.anatomy import Anatomy
from seed.proxy.closed_form import Correction, ProjectionFit
from seed.records import Edge

SINK = 8.0  # a state so many times as large as the median, at any layer, makes its position one
SINK_WEIGHT = 30.0
LARGEST_WEIGHT = 4.0  # of small states
MAP_BYTES = 4 * 10**9


class SharedMaps:
    """Maps by edge, made when they are first asked for."""

    def __init__(
        self, anatomy: Anatomy, uncut_states: Sequence[Sequence[Tensor]], *, gains: Mapping[int, float]
    ) -> None:
        """``uncut_states``: by batch of calibration text, then by layer (B, T, D)."""
        self.anatomy, self.uncut_states, self.gains = anatomy, uncut_states, gains
        self.sinks = [torch.stack([measure_ratio(state) for state in states]).amax(0) > SINK for states in uncut_states]
        self.maps: dict[Edge, Correction] = {}

    @torch.no_grad()
    def find(self, edge: Edge) -> Correction:
        """The map of the layer before a gap."""
        if edge not in self.maps:
            self.maps[edge] = self._fit(*edge)
            while self.count_bytes() > MAP_BYTES and len(self.maps) > 1:
                del self.maps[next(iter(self.maps))]
        return self.maps[edge]

    def count_bytes(self) -> int:
        """Bytes of the maps."""
        return sum(one.weight.nbytes for one in self.maps.values())

    def _fit(self, layer: int, place: int) -> Correction:
        """Fit the layer's output to the state before a later layer."""
        outlet = self.anatomy.find_output_projection(layer)
        assert outlet is not None, "measure_gains proved that there is one"
        inputs, gaps = [], []
        for states, is_sink in zip(self.uncut_states, self.sinks, strict=True):
            with outlet.record_inputs() as recorded:
                output = self.anatomy.run_layer(layer, states[layer])
            weight = weigh_positions([output, states[place]], is_sink)
            rows = recorded[0].reshape(*output.shape[:2], -1).float()
            rows = torch.cat([rows, torch.ones_like(weight)], dim=-1) if outlet.has_bias else rows
            inputs.append(rows * weight)
            gaps.append((states[place] - output).float() / self.gains[layer] * weight)
        found = ProjectionFit(inputs, has_bias=False).solve(gaps, or_none=True).weight.float()
        return Correction(weight=found[: outlet.num_inputs], bias=found[-1] if outlet.has_bias else None)


def measure_ratio(states_BTD: Tensor) -> Tensor:
    """How many times as large as the median's each position's state is (B, T, 1)."""
    norm: Tensor = torch.linalg.vector_norm(states_BTD.float(), dim=-1, keepdim=True)
    return norm / norm.median().clamp_min(1e-12)


def weigh_positions(states: Sequence[Tensor], is_sink: Tensor) -> Tensor:
    """How much each position counts in a fit (B, T, 1): as the larger of its states (B, T, D) does behind a norm; sinks by more."""
    ratio = torch.stack([measure_ratio(state) for state in states]).amax(0)
    weight = (1 / ratio.clamp_min(1e-12)).clamp_max(LARGEST_WEIGHT)
    return torch.where(is_sink, SINK_WEIGHT * weight, weight)
