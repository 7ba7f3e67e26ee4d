"""Closed-form recovery: what ends each kept layer's MLP is fitted anew, by ridge regression.

Behind the first cut, each kept layer's projection is changed so that the layer's output matches the state that the
uncut model has just before the next kept layer's original position. The change is linear in what the projection reads
(or what a mixture of experts writes), so it is added to the weights, and the student stays an ordinary checkpoint.
Related: ReplaceMe (arXiv 2505.02819) fits one map of the projection's output for one contiguous cut.

It needs an output that is *added* to the residual stream, perhaps times a constant (granite), perhaps behind a norm (whose
weight is then fitted too); ``measure_gains`` proves that and finds the constant, or says that this family has none.

Shapes: B sequences, T tokens, D hidden width, F width of what corrections are computed from.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seed.models.anatomy import Anatomy, SublayerAnatomy
from seed.records import Candidate

# Shares of the inputs' mean square that are added to the diagonal; the best on held-out
# calibration windows is used. A wide range: narrow families need little, rank-deficient ones much.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT_ONE_IN = 4
HELD_OUT_BLOCK = 64  # neighbouring positions, so that held-out ones are not all next to fitted ones


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What a layer writes in addition, for what it is computed from: ``weight`` (F, D), and ``bias`` (D) or None.

    Where a norm follows, it makes another thing of it, and its multipliers change by ``scale`` (D).
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None = None

    def apply(self, inputs: Tensor) -> Tensor:
        """What is written in addition (B, T, D) where the outlet's inputs are these (B, T, F)."""
        change = inputs @ self.weight.to(inputs.dtype)
        return change if self.bias is None else change + self.bias.to(inputs.dtype)


Refit = Mapping[int, Correction]  # of one candidate, by layer of the original model as its anatomy counts them


@torch.no_grad()
def measure_gains(anatomy: Anatomy, states: Sequence[Tensor]) -> dict[int, float] | None:
    """Return how much of a change of what each layer writes last reaches the layer's output, or None.

    ``states`` are the hidden states before each layer (B, T, D) of a traced batch. None means that for
    some layer it is not known what writes, or that its change does not arrive as a multiple of itself, or that the family
    carries more than one stream of states (deepseek_v4). Layers that are gone have no gain.
    """
    gains = {}
    for layer in sorted(set(range(anatomy.num_layers)) - set(anatomy.gone_layers)):
        outlet = anatomy.find_output_projection(layer)
        hidden = states[layer]
        if outlet is None or hidden.ndim != 3:
            return None
        run_layer = functools.partial(anatomy.run_layer, layer, hidden)
        if not outlet.is_whole(run_layer):
            return None
        plain = run_layer()
        generator = torch.Generator().manual_seed(layer)
        noise = torch.randn(plain.shape, generator=generator).to(plain) * plain.float().std().to(plain.dtype)
        with outlet.add(noise):
            moved = run_layer()
        change, noise = (moved - plain).double(), noise.double()
        gain = float((change * noise).sum() / (noise * noise).sum())
        error = float((change - gain * noise).norm() / change.norm().clamp_min(1e-12))
        bound = 1e-3 if plain.dtype == torch.float32 else 3e-2
        if not (abs(gain) >= 1e-6 and error <= bound):  # or no numbers
            return None
        gains[layer] = gain
    return gains


def count_fit_bytes(num_inputs: int) -> int:
    """Bytes of a fit's sums and factors: three of one kind, one of the other for each ridge and for the best on all; F * F float64."""
    return (4 + len(RIDGES)) * num_inputs**2 * 8


class ProjectionFit:
    """Ridge regressions on one outlet's inputs, for whatever may be missing at its layer's output.

    Normal equations, streamed: products in float32, sums and solutions in float64. Ridge towards no correction
    keeps them well conditioned when inputs are rank-deficient; its strength is chosen on every fourth block of
    positions, then all are used. What depends on the inputs alone is computed once.
    """

    def __init__(self, inputs: Sequence[Tensor], *, has_bias: bool) -> None:
        """``inputs``: batches of (B, T, F), kept by reference. ``has_bias``: whether a constant can be added too."""
        self.inputs = inputs
        self.has_bias = has_bias
        # With a constant to fit, inputs are counted from a point in their midst, where float32 is precise.
        first = inputs[0].flatten(0, -2).float()
        self.origin = first.mean(0) if has_bias else torch.zeros_like(first[0])
        self.splits: list[tuple[Tensor, Tensor]] = []  # of each batch: positions to fit on, positions held out
        offset = 0
        for read in inputs:
            positions = torch.arange(read.shape[0] * read.shape[1], device=read.device)
            is_held_out = (positions + offset) // HELD_OUT_BLOCK % HELD_OUT_ONE_IN == HELD_OUT_ONE_IN - 1
            self.splits.append((positions[~is_held_out], positions[is_held_out]))
            offset += len(positions)
        self.fitted, self.held_out = self._count(0), self._count(1)
        self.everything = self.fitted.plus(self.held_out)

    def solve(self, gaps: Sequence[Tensor], *, or_none: bool = False) -> Correction:
        """Return the correction for gaps of the same positions, batches of (B, T, D).

        ``or_none``: one of zero where the best makes held-out positions worse.
        """
        fitted, held_out = self._cross(gaps, 0), self._cross(gaps, 1)
        candidates = {ridge: self.fitted.solve(fitted, ridge) for ridge in RIDGES}
        best = min(RIDGES, key=lambda ridge: self.held_out.measure_error(held_out, candidates[ridge]))
        if or_none and self.held_out.measure_error(held_out, candidates[best]) > 0:
            none = torch.zeros_like(fitted.cross)
            return Correction(weight=none, bias=torch.zeros_like(fitted.total) if self.has_bias else None)
        correction = self.everything.solve(fitted.plus(held_out), best)
        if correction.bias is None:
            return correction
        return Correction(weight=correction.weight, bias=correction.bias - self.origin.double() @ correction.weight)

    def count_bytes(self) -> int:
        """Bytes of what is held, inputs included."""
        return count_fit_bytes(self.inputs[0].shape[-1]) + sum(read.nbytes for read in self.inputs)

    def _count(self, part: int) -> "_Inputs":
        width = self.inputs[0].shape[-1]
        gram = torch.zeros(width, width, dtype=torch.float64, device=self.origin.device)
        total = torch.zeros(width, dtype=torch.float64, device=self.origin.device)
        for rows in self._select(self.inputs, part):
            rows -= self.origin  # noqa: PLW2901  a copy of its own
            gram += rows.T @ rows
            total += rows.sum(0)
        return _Inputs(
            count=sum(len(split[part]) for split in self.splits), gram=gram, total=total, has_bias=self.has_bias
        )

    def _cross(self, gaps: Sequence[Tensor], part: int) -> "_Gaps":
        width, read = gaps[0].shape[-1], self.inputs[0].shape[-1]
        cross = torch.zeros(read, width, dtype=torch.float64, device=self.origin.device)
        total = torch.zeros(width, dtype=torch.float64, device=self.origin.device)
        for rows, targets in zip(self._select(self.inputs, part), self._select(gaps, part), strict=True):
            cross += (rows - self.origin).T @ targets
            total += targets.sum(0)
        return _Gaps(cross=cross, total=total)

    def _select(self, batches: Sequence[Tensor], part: int) -> Iterator[Tensor]:
        for batch, split in zip(batches, self.splits, strict=True):
            yield batch.flatten(0, -2)[split[part]].float()


@dataclass(frozen=True, kw_only=True)
class _Gaps:
    """Sums over some positions, float64: of products of inputs and gaps (F, D), and of gaps (D)."""

    cross: Tensor
    total: Tensor

    def plus(self, other: "_Gaps") -> "_Gaps":
        return _Gaps(cross=self.cross + other.cross, total=self.total + other.total)


class _Inputs:
    """Sums over some positions, float64: of products of inputs (F, F), and of inputs (F); and their factors by ridge."""

    def __init__(self, *, count: int, gram: Tensor, total: Tensor, has_bias: bool) -> None:
        self.count = count
        self.gram = gram
        self.total = total
        self.has_bias = has_bias
        self.factors: dict[float, Tensor | None] = {}

    def plus(self, other: "_Inputs") -> "_Inputs":
        return _Inputs(
            count=self.count + other.count,
            gram=self.gram + other.gram,
            total=self.total + other.total,
            has_bias=self.has_bias,
        )

    def solve(self, gaps: _Gaps, ridge: float) -> Correction:
        mean = self.total / max(1, self.count)
        cross = gaps.cross - torch.outer(mean, gaps.total) if self.has_bias else gaps.cross
        if ridge not in self.factors:
            self.factors[ridge] = self._factor(mean, ridge)
        factor = self.factors[ridge]
        weight = torch.zeros_like(cross) if factor is None else torch.cholesky_solve(cross, factor)
        bias = gaps.total / max(1, self.count) - mean @ weight if self.has_bias else None
        return Correction(weight=weight, bias=bias)

    def measure_error(self, gaps: _Gaps, correction: Correction) -> float:
        """Squared error of a correction on these positions, less the gaps' own squares, which no correction changes."""
        weight, bias = correction.weight, correction.bias
        error = (weight * (self.gram @ weight - 2 * gaps.cross)).sum()
        if bias is not None:
            error = error + (bias * (self.count * bias + 2 * (self.total @ weight - gaps.total))).sum()
        return float(error)

    def _factor(self, mean: Tensor, ridge: float) -> Tensor | None:
        regular = self.gram - torch.outer(mean, self.total) if self.has_bias else self.gram.clone()
        strength = regular.diagonal().mean().clamp_min(1e-30)
        regular.diagonal().add_(ridge * strength)
        factor, failed = torch.linalg.cholesky_ex(regular)
        if failed:  # float32 products left it indefinite, or an input was no number
            regular.diagonal().add_(strength)
            factor, failed = torch.linalg.cholesky_ex(regular)
        return None if failed else factor


def fold_refit(student: nn.Module, candidate: Candidate, refit: Refit, *, by_sublayers: bool = False) -> None:
    """Put the corrections into the weights of a standalone student, in place. ``by_sublayers``: they go by ``SublayerAnatomy``."""
    anatomy = SublayerAnatomy(student) if by_sublayers else Anatomy(student)
    per_layer = anatomy.num_layers // len(candidate.kept_layers)
    for position, layer in enumerate(candidate.kept_layers):
        for at in range(per_layer):
            if (correction := refit.get(layer * per_layer + at)) is None:
                continue
            outlet = anatomy.find_output_projection(position * per_layer + at)
            assert outlet is not None, "measure_gains proved that there is one"
            weight, bias = correction.weight, correction.bias
            outlet.fold(weight.double(), None if bias is None else bias.double(), correction.scale)
