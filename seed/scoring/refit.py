"""Closed-form recovery: the MLP's output projection of each kept layer is fitted anew, by ridge regression.

Behind the first cut, each kept layer's projection is changed so that the layer's output matches the teacher's state
just before the next kept layer's original position. The change is linear in what the projection reads, so it is added
to the projection's weight (and bias, where there is one), and the student stays an ordinary checkpoint. Related:
ReplaceMe (arXiv 2505.02819) fits one map of the projection's output for one contiguous cut; fitting what the projection
reads instead has more freedom, and recovered a third more of the loss at 1.2 times the cost (studies/notes.md).

It needs a projection whose output is *added* to the residual stream, perhaps times a constant (granite);
``measure_gains`` proves that and finds the constant, or says that this family has none.

Shapes: B sequences, T tokens, D hidden width, F width of what the projection reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seed.models.anatomy import Anatomy
from seed.records import Candidate

# Shares of the projection inputs' mean square that are added to the diagonal; the best on held-out
# calibration windows is used. A wide range: narrow families need little, rank-deficient ones much.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT_ONE_IN = 4
HELD_OUT_BLOCK = 64  # neighbouring positions, so that held-out ones are not all next to fitted ones


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What is added to a projection: ``weight`` (F, D) and, where it has a bias, ``bias`` (D). float64."""

    weight: Tensor
    bias: Tensor | None

    def apply(self, inputs: Tensor) -> Tensor:
        """What a projection that reads ``inputs`` (B, T, F) writes in addition (B, T, D)."""
        change = inputs @ self.weight.to(inputs.dtype)
        return change if self.bias is None else change + self.bias.to(inputs.dtype)


@dataclass(frozen=True, kw_only=True)
class Refit:
    """Corrections of one candidate, by layer of the original model."""

    corrections: Mapping[int, Correction]


@torch.no_grad()
def measure_gains(anatomy: Anatomy, states: Sequence[Tensor]) -> dict[int, float] | None:
    """Return how much of a change at each layer's MLP projection reaches its output, or None.

    ``states`` are the hidden states before each layer (B, T, D) of a traced batch. None means that for
    some layer there is no such projection, or that its change does not arrive as a multiple of itself.
    """
    gains = {}
    for layer in range(anatomy.num_layers):
        projection = anatomy.mlp_output(layer)
        if projection is None:
            return None
        hidden = states[layer]
        plain = anatomy.run_layer(layer, hidden)
        generator = torch.Generator().manual_seed(layer)
        noise = torch.randn(plain.shape, generator=generator).to(plain) * plain.float().std().to(plain.dtype)
        handle = projection.register_forward_hook(lambda _m, _a, output, noise=noise: output + noise.view_as(output))
        try:
            moved = anatomy.run_layer(layer, hidden)
        finally:
            handle.remove()
        change, noise = (moved - plain).double(), noise.double()
        gain = float((change * noise).sum() / (noise * noise).sum())
        error = float((change - gain * noise).norm() / change.norm().clamp_min(1e-12))
        if abs(gain) < 1e-6 or error > (1e-3 if plain.dtype == torch.float32 else 3e-2):
            return None
        gains[layer] = gain
    return gains


def fit_correction(inputs: Sequence[Tensor], gaps: Sequence[Tensor], *, has_bias: bool) -> Correction:
    """Return the correction that brings a layer's output closest to the teacher's state.

    Args:
        inputs: what the projection reads, batches of (B, T, F).
        gaps: what is missing at its output, batches of (B, T, D).
        has_bias: whether a constant can be added too.

    Normal equations, streamed: products in float32, sums and solutions in float64. Ridge towards no correction
    keeps them well conditioned when inputs are rank-deficient; its strength is chosen on every fourth block of
    positions, then all are used.
    """
    # With a constant to fit, inputs are counted from a point in their midst, where float32 is precise.
    origin = inputs[0].flatten(0, -2).float().mean(0) if has_bias else torch.zeros_like(inputs[0][0, 0]).float()
    total, held_out = _Moments(inputs[0], gaps[0]), _Moments(inputs[0], gaps[0])
    offset = 0
    for read, gap in zip(inputs, gaps, strict=True):
        rows, targets = read.flatten(0, -2).float() - origin, gap.flatten(0, -2).float()
        block = torch.arange(offset, offset + len(rows), device=rows.device) // HELD_OUT_BLOCK
        is_held_out = (block % HELD_OUT_ONE_IN == HELD_OUT_ONE_IN - 1).nonzero().squeeze(1)
        offset += len(rows)
        total.add(rows, targets)
        held_out.add(rows[is_held_out], targets[is_held_out])
    fitted = total.without(held_out)
    best = min(RIDGES, key=lambda ridge: held_out.measure_error(fitted.solve(ridge, has_bias=has_bias)))
    correction = total.solve(best, has_bias=has_bias)
    if correction.bias is None:
        return correction
    return Correction(weight=correction.weight, bias=correction.bias - origin.double() @ correction.weight)


class _Moments:
    """Sums over positions that a least-squares fit needs, float64."""

    def __init__(self, read: Tensor, gap: Tensor) -> None:
        num_inputs, width, device = read.shape[-1], gap.shape[-1], read.device
        self.count = 0
        self.gram = torch.zeros(num_inputs, num_inputs, dtype=torch.float64, device=device)
        self.cross = torch.zeros(num_inputs, width, dtype=torch.float64, device=device)
        self.inputs = torch.zeros(num_inputs, dtype=torch.float64, device=device)
        self.gaps = torch.zeros(width, dtype=torch.float64, device=device)

    def add(self, rows: Tensor, targets: Tensor) -> None:
        self.count += len(rows)
        self.gram += rows.T @ rows
        self.cross += rows.T @ targets
        self.inputs += rows.sum(0)
        self.gaps += targets.sum(0)

    def without(self, other: "_Moments") -> "_Moments":
        rest = _Moments.__new__(_Moments)
        for name, value in vars(self).items():
            setattr(rest, name, value - getattr(other, name))
        return rest

    def solve(self, ridge: float, *, has_bias: bool) -> Correction:
        gram, cross = self.gram, self.cross
        mean = self.inputs / max(1, self.count)
        if has_bias:
            gram, cross = gram - torch.outer(mean, self.inputs), cross - torch.outer(mean, self.gaps)
        regular = gram.clone()
        strength = gram.diagonal().mean().clamp_min(1e-30)
        regular.diagonal().add_(ridge * strength)
        factor, failed = torch.linalg.cholesky_ex(regular)
        if failed:  # float32 products left it indefinite, or an input was no number
            regular.diagonal().add_(strength)
            factor, failed = torch.linalg.cholesky_ex(regular)
        weight = torch.zeros_like(cross) if failed else torch.cholesky_solve(cross, factor)
        bias = self.gaps / max(1, self.count) - mean @ weight if has_bias else None
        return Correction(weight=weight, bias=bias)

    def measure_error(self, correction: Correction) -> float:
        """Squared error of a correction on these positions, less the gaps' own squares, which no correction changes."""
        weight, bias = correction.weight, correction.bias
        error = (weight * (self.gram @ weight - 2 * self.cross)).sum()
        if bias is not None:
            error = error + (bias * (self.count * bias + 2 * (self.inputs @ weight - self.gaps))).sum()
        return float(error)


def fold_refit(student: nn.Module, candidate: Candidate, refit: Refit) -> None:
    """Add the corrections to the projections' weights and biases of a standalone student, in place."""
    anatomy = Anatomy(student)
    with torch.no_grad():
        for position, layer in enumerate(candidate.kept_layers):
            if layer not in refit.corrections:
                continue
            projection = anatomy.mlp_output(position)
            assert projection is not None, "measure_gains proved that there is one"
            correction = refit.corrections[layer]
            weight: Tensor = projection.weight  # type: ignore[assignment]
            change = correction.weight.T if isinstance(projection, nn.Linear) else correction.weight
            weight.copy_(weight.double() + change)
            if correction.bias is not None:
                bias: Tensor = projection.bias  # type: ignore[assignment]
                bias.copy_(bias.double() + correction.bias)
