"""Closed-form recovery by one map for each gap, fitted on the dense model's own states and shared by all candidates.

The layer before a gap is changed so that its output matches the dense model's state behind the gap; layers behind it stay as
they are. A candidate then costs no more than without recovery, and there is calibration text enough for wide projections.

Attention sinks, positions whose states are a hundred times as large as others, are a few rows of thousands: the rest are
weighted by what the next norm makes of them, and those are held by more.

Where a norm follows the projection, the projection is fitted to write in the direction of what the norm must put out, and
then the norm's multipliers, channel by channel. Shapes: B sequences, T tokens, F and D as in ``closed_form``.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from seed.models.anatomy import Anatomy
from seed.models.output_projection import NormedProjection, measure_size, normalize
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
            weigh_positions(output, states[places[-1]])
            for output, states in zip(outputs, self.uncut_states, strict=True)
        ]
        read = [batch.reshape(*weight.shape[:2], -1) for batch, weight in zip(recorded, weights, strict=True)]
        normed = outlet if isinstance(outlet, NormedProjection) else None
        written = [] if normed is None else [normed.projection.module(batch).float() for batch in read]
        inputs = []
        for i, (batch, weight) in enumerate(zip(read, weights, strict=True)):
            rows = batch.float()
            rows = torch.cat([rows, torch.ones_like(weight)], dim=-1) if outlet.has_bias else rows
            # behind a norm an error counts by its share of what is written
            inputs.append(rows * (weight if normed is None else weight / measure_size(written[i])))
        fit = ProjectionFit(inputs, has_bias=False)
        for place in places:
            missing = [
                (states[place] - output).float() / self.gains[layer]
                for states, output in zip(self.uncut_states, outputs, strict=True)
            ]
            if normed is not None:
                wanted = [normed.module(batch) + gap for batch, gap in zip(written, missing, strict=True)]
                found, scale = _fit_normed(fit, written, wanted, weights)
                scale = scale - normed.multipliers
            else:
                gaps = [gap * weight for gap, weight in zip(missing, weights, strict=True)]
                found, scale = fit.solve(gaps).weight.float(), None
            bias = found[-1] if outlet.has_bias else None
            self.maps[layer, place] = Correction(weight=found[: outlet.num_inputs], bias=bias, scale=scale)
        while self.count_bytes() > MAP_BYTES and len(self.maps) > len(places):
            del self.maps[next(iter(self.maps))]


def _fit_normed(
    fit: ProjectionFit, written: Sequence[Tensor], wanted: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Fit a projection, and the multipliers (D) of the norm behind it, towards what the norm must put out; batches of (B, T, D)."""
    before = [normalize(batch) * weight for batch, weight in zip(written, weights, strict=True)]
    # at first the multipliers are as large as the channels
    squares = sum((batch * weight).square().sum((0, 1)) for batch, weight in zip(wanted, weights, strict=True))
    sizes_D = torch.as_tensor(squares / sum(weight.square().sum() for weight in weights)).sqrt().clamp_min(1e-12)
    gaps = [
        normalize(batch / sizes_D) * weight - unit for batch, weight, unit in zip(wanted, weights, before, strict=True)
    ]
    change = fit.solve(gaps).weight.float()
    cross_D, square_D = torch.zeros_like(sizes_D), torch.zeros_like(sizes_D)
    for batch, weight, unit, inputs in zip(wanted, weights, before, fit.inputs, strict=True):
        after = normalize(unit + inputs @ change) * weight
        cross_D += (batch * weight * after).sum((0, 1))
        square_D += after.square().sum((0, 1))
    return change, cross_D / square_D.clamp_min(1e-12)


def weigh_positions(output_BTD: Tensor, wanted_BTD: Tensor) -> Tensor:
    """How much each position counts in a fit (B, T, 1): as its state does behind a norm, and sinks by more."""
    norm = torch.maximum(output_BTD.float().norm(dim=-1, keepdim=True), wanted_BTD.float().norm(dim=-1, keepdim=True))
    median = norm.median().clamp_min(1e-12)
    weight = (median / norm.clamp_min(1e-12)).clamp_max(LARGEST_WEIGHT)
    return torch.where(norm > SINK * median, SINK_WEIGHT * weight, weight)
