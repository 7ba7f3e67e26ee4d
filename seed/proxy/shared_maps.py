"""Closed-form recovery by one map for each gap, fitted on the dense model's own states and shared by all candidates.

The layer before a gap is changed so that its output matches the dense model's state behind the gap; layers behind it stay as
they are. A candidate then costs no more than without recovery, and there is calibration text enough for wide projections.

Attention sinks, positions whose states are a hundred times as large as others, are a few rows of thousands: the rest are
weighted by what the next norm makes of them, and those are held by more. Shapes: B sequences, T tokens, F and D as in
``closed_form``.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from seed.models.anatomy import Anatomy
from seed.proxy.closed_form import Correction, ProjectionFit
from seed.records import Edge

SOLVED_AT_ONCE = 3  # gaps behind a layer, one layer long, two, ...: what they share is computed once
SINK = 8.0  # a state so many times as large as the median is one
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
        self.maps: dict[Edge, Correction] = {}

    @torch.no_grad()
    def find(self, edge: Edge) -> Correction:
        """The map of the layer before a gap."""
        if edge not in self.maps:
            layer, following = edge
            last = min(layer + 1 + SOLVED_AT_ONCE, self.anatomy.num_layers)
            self._fit(layer, range(layer + 2, last + 1) if following <= last else range(following, following + 1))
        return self.maps[edge]

    def count_bytes(self) -> int:
        """Bytes of the maps."""
        return sum(one.weight.nbytes for one in self.maps.values())

    def _fit(self, layer: int, places: range) -> None:
        """Fit the layer's maps towards the states before some later layers."""
        outlet = self.anatomy.find_output_projection(layer)
        assert outlet is not None, "measure_gains proved that there is one"
        with outlet.record_inputs() as recorded:
            outputs = [self.anatomy.run_layer(layer, states[layer]) for states in self.uncut_states]
        weights = [
            weigh_positions([output, *(states[place] for place in places)])
            for output, states in zip(outputs, self.uncut_states, strict=True)
        ]
        inputs = []
        for read, weight in zip(recorded, weights, strict=True):
            rows = read.reshape(*weight.shape[:2], -1).float()
            rows = torch.cat([rows, torch.ones_like(weight)], dim=-1) if outlet.has_bias else rows
            inputs.append(rows * weight)
        fit = ProjectionFit(inputs, has_bias=False)
        for place in places:
            gaps = [
                (states[place] - output).float() / self.gains[layer] * weight
                for states, output, weight in zip(self.uncut_states, outputs, weights, strict=True)
            ]
            found = fit.solve(gaps).weight.float()
            fit.ridges = (fit.best_ridge,)  # which the layer's other gaps share
            bias = found[-1] if outlet.has_bias else None
            self.maps[layer, place] = Correction(weight=found[: outlet.num_inputs], bias=bias)
        while self.count_bytes() > MAP_BYTES and len(self.maps) > len(places):
            del self.maps[next(iter(self.maps))]


def weigh_positions(states: Sequence[Tensor]) -> Tensor:
    """How much each position counts in a fit (B, T, 1): as the largest of its states (B, T, D) does behind a norm; sinks by more."""
    norms = [state.float().norm(dim=-1, keepdim=True) for state in states]
    ratio = torch.stack([norm / norm.median().clamp_min(1e-12) for norm in norms]).amax(0)
    weight = (1 / ratio.clamp_min(1e-12)).clamp_max(LARGEST_WEIGHT)
    return torch.where(ratio > SINK, SINK_WEIGHT * weight, weight)
