"""Closed-form recovery: a linear map on the output of each kept layer's MLP projection, by ridge regression.

Behind the first cut, each kept layer's map makes the layer's output match the teacher's state just before
the next kept layer's original position. A map folds into the projection's weight, so the student stays an
ordinary checkpoint. Related: ReplaceMe (arXiv 2505.02819) fits one map for one contiguous cut.

It needs a projection whose output is *added* to the residual stream, perhaps times a constant (granite);
``measure_gains`` proves that and finds the constant, or says that this family has none.

Shapes: K calibration positions, D hidden width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seed.models.anatomy import Anatomy
from seed.records import Candidate

# Shares of the projection outputs' mean square that are added to the diagonal; the best on held-out
# calibration windows is used. A wide range: narrow families need little, rank-deficient ones much.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT_ONE_IN = 4
HELD_OUT_BLOCK = 64  # neighbouring positions, so that held-out ones are not all next to fitted ones


@dataclass(frozen=True, kw_only=True)
class Refit:
    """Maps of one candidate: ``corrections[layer]`` (D, D) is what is added to the identity."""

    corrections: Mapping[int, Tensor]


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


def fit_correction(outputs: Sequence[Tensor], gaps: Sequence[Tensor]) -> Tensor:
    """Return C (D, D) so that outputs @ C comes close to gaps.

    Args:
        outputs: what the projection adds to the residual stream, batches of (B, T, D).
        gaps: the teacher's states minus the layer's outputs, same shapes.

    Ridge towards zero correction; its strength is chosen on every fourth block of positions, then all are
    used. float64, so that rank deficiency is harmless.
    """
    first = outputs[0]
    gram_fit, cross_fit = _zeros(first), _zeros(first)
    gram_all, cross_all = _zeros(first), _zeros(first)
    held_out: list[tuple[Tensor, Tensor]] = []
    offset = 0
    for output, gap in zip(outputs, gaps, strict=True):
        rows, targets = output.flatten(0, -2).double(), gap.flatten(0, -2).double()
        block = torch.arange(offset, offset + len(rows), device=rows.device) // HELD_OUT_BLOCK
        is_held_out = block % HELD_OUT_ONE_IN == HELD_OUT_ONE_IN - 1
        offset += len(rows)
        held_out.append((rows[is_held_out], targets[is_held_out]))
        fit_rows, fit_targets = rows[~is_held_out], targets[~is_held_out]
        gram_fit += fit_rows.T @ fit_rows
        cross_fit += fit_rows.T @ fit_targets
        gram_all += rows.T @ rows
        cross_all += rows.T @ targets
    best: tuple[float, float] | None = None
    for ridge in RIDGES:
        correction = _solve(gram_fit, cross_fit, ridge)
        error = sum(float((targets - rows @ correction).pow(2).sum()) for rows, targets in held_out)
        if best is None or error < best[0]:
            best = (error, ridge)
    assert best is not None
    return _solve(gram_all, cross_all, best[1])


def fold_refit(student: nn.Module, candidate: Candidate, refit: Refit) -> None:
    """Fold the maps into the projections' weights and biases of a standalone student, in place."""
    anatomy = Anatomy(student)
    with torch.no_grad():
        for position, layer in enumerate(candidate.kept_layers):
            if layer not in refit.corrections:
                continue
            projection = anatomy.mlp_output(position)
            assert projection is not None, "measure_gains proved that there is one"
            weight: Tensor = projection.weight  # type: ignore[assignment]
            correction = refit.corrections[layer].double()
            columns = weight.double() if isinstance(projection, nn.Linear) else weight.double().T  # (D, F)
            folded = columns + correction.T @ columns
            weight.copy_(folded if isinstance(projection, nn.Linear) else folded.T)
            bias = getattr(projection, "bias", None)
            if bias is not None:
                bias.copy_(bias.double() + bias.double() @ correction)


def _solve(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    scale = gram.diagonal().mean().clamp_min(1e-30)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(cross, torch.linalg.cholesky(gram + ridge * scale * identity))


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape[-1], like.shape[-1], dtype=torch.float64, device=like.device)
