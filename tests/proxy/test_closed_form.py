"""The map that closed form fits is the right one, only where one exists, and folding it in changes nothing."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from seed.models.anatomy import Anatomy
from seed.proxy.closed_form import RIDGES, Correction, ProjectionFit, measure_gains
from tests.models.families import make_model, make_tokens

WIDTH = 32


def fit_correction(inputs: Sequence[Tensor], gaps: Sequence[Tensor], *, has_bias: bool) -> Correction:
    return ProjectionFit(inputs, has_bias=has_bias).solve(gaps)


READ = 48  # numbers that a projection reads for a token


def draw(*shape: int, rng_seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rng_seed))


@pytest.mark.parametrize(
    ("family", "gain"), [("llama", 1.0), ("gpt2", 1.0), ("opt", 1.0), ("granite", 0.22), ("gemma2", 1.0)]
)
def test_the_gain_is_what_the_family_multiplies_its_mlp_by(family: str, gain: float) -> None:
    anatomy = Anatomy(make_model(family))
    gains = measure_gains(anatomy, anatomy.trace(make_tokens()))
    assert gains is not None
    assert sorted(gains) == [0, 1, 2, 3]
    assert list(gains.values()) == pytest.approx([gain] * 4, rel=1e-3)
    assert all(not module._forward_hooks for module in anatomy.model.modules())


@pytest.mark.parametrize("family", ["afmoe", "opt_post_norm", "deepseek_v4", "ctrl"])
def test_a_family_that_adds_nothing_as_it_is_written_has_no_gains(family: str) -> None:
    anatomy = Anatomy(make_model(family))
    assert measure_gains(anatomy, anatomy.trace(make_tokens())) is None


def test_a_weight_that_is_no_number_has_no_gain() -> None:
    model = make_model("llama")
    anatomy = Anatomy(model)
    states = anatomy.trace(make_tokens())
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    assert measure_gains(anatomy, states) is None


BIAS = pytest.mark.parametrize("has_bias", [False, True], ids=["without bias", "with bias"])
SHIFT = torch.linspace(-1, 1, WIDTH)  # what only a bias can add


def read_inputs(num_batches: int = 3, *, num_inputs: int = READ) -> list[Tensor]:
    return [draw(4, 64, num_inputs, rng_seed=seed + 1) for seed in range(num_batches)]


def make_gaps(
    inputs: Sequence[Tensor], known: Tensor, *, noise: float = 0.0, shift: Tensor | None = None
) -> list[Tensor]:
    gaps = []
    for i, read in enumerate(inputs):
        gap = read @ known + noise * draw(*read.shape[:-1], WIDTH, rng_seed=100 + i)
        gaps.append(gap if shift is None else gap + shift)
    return gaps


@BIAS
def test_rank_deficient_inputs_do_not_blow_the_map_up(has_bias: bool) -> None:
    basis = draw(4, READ)  # inputs live in 4 directions
    known = draw(READ, WIDTH, rng_seed=1) * 0.3
    inputs = [draw(2, 256, 4, rng_seed=seed) @ basis for seed in (2, 3)]
    found = fit_correction(inputs, make_gaps(inputs, known, noise=0.01), has_bias=has_bias)
    weight = found.weight.float()
    assert torch.isfinite(weight).all()
    assert weight.norm() < 2 * known.norm()
    fresh = draw(1, 512, 4, rng_seed=5) @ basis
    wanted = fresh @ known
    assert float((found.apply(fresh) - wanted).norm() / wanted.norm()) < 0.05
    # directions that calibration never showed stay as they were
    unseen = torch.linalg.svd(basis).Vh[4:]
    assert float((unseen @ weight).norm()) < 3e-2 * float(weight.norm())  # products are rounded to float32


def solve_directly(rows: Tensor, targets: Tensor, ridge: float, *, has_bias: bool) -> tuple[Tensor, Tensor]:
    """Ridge regression in float64: as least squares on more rows, not as normal equations. Weight and bias."""
    rows, targets = rows.double(), targets.double()
    shift, level = (rows.mean(0), targets.mean(0)) if has_bias else (rows.mean(0) * 0, targets.mean(0) * 0)
    rows, targets = rows - shift, targets - level
    strength = ridge * rows.pow(2).sum() / rows.shape[1]
    identity = torch.eye(rows.shape[1], dtype=torch.float64)
    stacked = torch.cat([rows, strength.sqrt() * identity])
    wanted = torch.cat([targets, torch.zeros(rows.shape[1], targets.shape[1], dtype=torch.float64)])
    weight = torch.linalg.lstsq(stacked, wanted).solution
    return weight, level - shift @ weight


def choose_directly(
    inputs: Sequence[Tensor], gaps: Sequence[Tensor], *, has_bias: bool
) -> tuple[Tensor, Tensor, float]:
    """The regression that is promised, its ridge chosen on every fourth block of 64 positions."""
    rows, targets = (torch.cat([each.flatten(0, -2) for each in batches]) for batches in (inputs, gaps))
    is_held_out = torch.arange(len(rows)) // 64 % 4 == 3

    def error(ridge: float) -> float:
        weight, bias = solve_directly(rows[~is_held_out], targets[~is_held_out], ridge, has_bias=has_bias)
        missed = targets[is_held_out].double() - rows[is_held_out].double() @ weight - bias
        return float(missed.pow(2).sum())

    best = min(RIDGES, key=error)
    return *solve_directly(rows, targets, best, has_bias=has_bias), best


@BIAS
@pytest.mark.parametrize(("noise", "ridge"), [(0.0, RIDGES[0]), (0.5, None), (3.0, None), (100.0, RIDGES[-1])], ids=str)
def test_the_correction_is_the_direct_solution(noise: float, ridge: float | None, has_bias: bool) -> None:
    known, scales = draw(READ, WIDTH) * 0.3, torch.logspace(-1.5, 0.5, READ)  # some inputs are a hundred times smaller
    inputs = [read * scales + 0.5 for read in read_inputs()]
    gaps = make_gaps(inputs, known, noise=noise, shift=SHIFT)
    weight, bias, chosen = choose_directly(inputs, gaps, has_bias=has_bias)
    assert chosen == ridge or ridge is None or not has_bias  # the shift is noise to a map without a bias
    found = fit_correction(inputs, gaps, has_bias=has_bias)
    assert float((found.weight - weight).norm() / weight.norm()) < 1e-3
    if has_bias:
        assert float((found.bias - bias).norm() / bias.norm()) < 1e-3


@BIAS
@pytest.mark.parametrize("positions", [2, 63, 64, 193, 256])
def test_fewer_positions_than_inputs_give_a_finite_map(positions: int, has_bias: bool) -> None:
    inputs, gaps = [draw(1, positions, 300)], [draw(1, positions, WIDTH, rng_seed=1)]
    found = fit_correction(inputs, gaps, has_bias=has_bias)
    assert torch.isfinite(found.weight).all()
    assert found.bias is None or torch.isfinite(found.bias).all()
    fitted = float(found.apply(inputs[0].double()).norm())
    assert 0 < fitted <= 1.01 * float(gaps[0].norm())


@BIAS
def test_inputs_that_hardly_vary_around_a_level_give_a_finite_map(has_bias: bool) -> None:
    # float32 sums of such inputs are rounded by more than they vary
    inputs = [300 * draw(1, 1, 300) + draw(4, 512, 300, rng_seed=seed) for seed in (1, 2)]
    gaps = [draw(4, 512, WIDTH, rng_seed=seed) for seed in (3, 4)]
    found = fit_correction(inputs, gaps, has_bias=has_bias)
    assert torch.isfinite(found.weight).all()
    fitted = torch.cat([found.apply(read.double()) for read in inputs])
    assert float(fitted.norm()) < 1.1 * float(torch.cat(gaps).norm())


def test_bfloat16_states_are_fitted_in_float32() -> None:
    known = draw(READ, WIDTH) * 0.3
    inputs = [read.bfloat16() for read in read_inputs()]
    gaps = [(read.float() @ known).bfloat16() for read in inputs]
    found = fit_correction(inputs, gaps, has_bias=False)
    assert float((found.weight - known).norm() / known.norm()) < 5e-3
    assert found.apply(inputs[0]).dtype == torch.bfloat16


def test_inputs_that_are_all_zero_or_a_constant_gap_give_no_map_and_at_most_a_bias() -> None:
    inputs, gaps = [torch.zeros(1, 256, READ)], [draw(1, 256, WIDTH)]
    found = fit_correction(inputs, gaps, has_bias=False)
    assert torch.equal(found.weight, torch.zeros(READ, WIDTH, dtype=torch.float64))
    assert found.bias is None
    found = fit_correction(inputs, gaps, has_bias=True)
    assert torch.equal(found.weight, torch.zeros(READ, WIDTH, dtype=torch.float64))
    assert torch.allclose(found.bias, gaps[0].double().mean((0, 1)), atol=1e-6)
    inputs = [read + 2 for read in read_inputs()]
    found = fit_correction(inputs, [SHIFT.expand(4, 64, WIDTH)] * 3, has_bias=True)
    assert torch.allclose(found.weight, torch.zeros(READ, WIDTH).double(), atol=1e-4)
    assert torch.allclose(found.bias, SHIFT.double(), atol=1e-3)


@BIAS
def test_how_rows_are_cut_into_batches_does_not_change_the_correction(has_bias: bool) -> None:
    inputs, gaps = draw(8, 64, READ), draw(8, 64, WIDTH, rng_seed=1)  # noise: the ridge's strength shows
    whole = fit_correction([inputs], [gaps], has_bias=has_bias)
    assert torch.equal(inputs, draw(8, 64, READ))  # what it is given it leaves alone
    for micro_batch in (4, 2, 1):
        pieces = fit_correction(inputs.split(micro_batch), gaps.split(micro_batch), has_bias=has_bias)
        assert torch.allclose(pieces.weight, whole.weight, rtol=1e-4, atol=1e-6), micro_batch
        assert not has_bias or torch.allclose(pieces.bias, whole.bias, rtol=1e-4, atol=1e-6), micro_batch
