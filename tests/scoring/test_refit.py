"""The map that closed form fits is the right one, only where one exists, and folding it in changes nothing."""

import contextlib

import pytest
import torch
from torch import Tensor

from seed.models.anatomy import Anatomy
from seed.models.surgery import make_student, view_layers
from seed.records import Candidate
from seed.scoring.refit import Refit, fit_correction, fold_refit, measure_gains
from tests.models.families import compute_logits, make_model, make_tokens

WIDTH = 32


def draw(*shape: int, rng_seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rng_seed))


@pytest.mark.parametrize(
    ("family", "gain"),
    [("llama", 1.0), ("gpt2", 1.0), ("opt", 1.0), ("bloom", 1.0), ("gpt_neox", 1.0), ("granite", 0.22)],
)
def test_the_gain_is_what_the_family_multiplies_its_mlp_by(family: str, gain: float) -> None:
    anatomy = Anatomy(make_model(family))
    gains = measure_gains(anatomy, anatomy.trace(make_tokens()))
    assert gains is not None
    assert sorted(gains) == [0, 1, 2, 3]
    assert list(gains.values()) == pytest.approx([gain] * 4, rel=1e-3)
    assert all(not module._forward_hooks for module in anatomy.model.modules())


@pytest.mark.parametrize("family", ["gemma2", "opt_post_norm", "mixtral", "qwen2_moe"])
def test_a_family_without_an_additive_projection_has_no_gains(family: str) -> None:
    anatomy = Anatomy(make_model(family))
    assert measure_gains(anatomy, anatomy.trace(make_tokens())) is None


def test_a_known_map_is_recovered_from_full_rank_outputs() -> None:
    known = draw(WIDTH, WIDTH) * 0.3
    outputs = [draw(2, 256, WIDTH, rng_seed=seed) for seed in (1, 2, 3)]
    found = fit_correction(outputs, [output @ known for output in outputs])
    assert found.dtype == torch.float64
    assert float((found - known).norm() / known.norm()) < 1e-3


def test_rank_deficient_outputs_do_not_blow_the_map_up() -> None:
    basis = draw(4, WIDTH)  # outputs live in 4 of 32 directions
    known = draw(WIDTH, WIDTH, rng_seed=1) * 0.3
    outputs = [draw(2, 256, 4, rng_seed=seed) @ basis for seed in (2, 3)]
    gaps = [output @ known + 0.01 * draw(2, 256, WIDTH, rng_seed=9) for output in outputs]
    found = fit_correction(outputs, gaps).float()
    assert torch.isfinite(found).all()
    assert found.norm() < 2 * known.norm()
    fresh = draw(1, 512, 4, rng_seed=5) @ basis
    wanted = fresh @ known
    assert float((fresh @ found - wanted).norm() / wanted.norm()) < 0.05
    # directions that calibration never showed stay as they were
    unseen = torch.linalg.svd(basis).Vh[4:]
    assert float((unseen @ found).norm()) < 1e-3 * float(found.norm())


def test_outputs_that_are_all_zero_give_no_correction() -> None:
    found = fit_correction([torch.zeros(1, 256, WIDTH)], [draw(1, 256, WIDTH)])
    assert torch.equal(found, torch.zeros(WIDTH, WIDTH, dtype=torch.float64))


def test_a_gap_that_outputs_do_not_explain_is_hardly_fitted() -> None:
    outputs, gaps = [draw(1, 512, WIDTH)], [draw(1, 512, WIDTH, rng_seed=1)]
    plain = torch.linalg.lstsq(outputs[0][0], gaps[0][0]).solution
    assert float(fit_correction(outputs, gaps).norm()) < 0.75 * float(plain.norm())


def test_how_rows_are_cut_into_batches_does_not_change_the_map() -> None:
    outputs, gaps = draw(8, 64, WIDTH), draw(8, 64, WIDTH, rng_seed=1)  # noise: the ridge's strength shows
    whole = fit_correction([outputs], [gaps])
    for micro_batch in (4, 2, 1):
        pieces = fit_correction(outputs.split(micro_batch), gaps.split(micro_batch))
        assert torch.allclose(pieces, whole, atol=1e-9), micro_batch


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "granite"])
def test_folding_maps_into_a_student_equals_applying_them_behind_the_projection(family: str) -> None:
    anatomy = Anatomy(make_model(family))
    tokens = make_tokens()
    candidate = Candidate(num_layers=4, kept_layers=(0, 2, 3))
    corrections = {layer: 0.3 * draw(WIDTH, WIDTH, rng_seed=layer).double() for layer in (0, 3)}
    projections = {layer: anatomy.mlp_output(layer) for layer in corrections}
    with view_layers(anatomy, candidate) as view, contextlib.ExitStack() as stack:
        unmapped = compute_logits(view, tokens)
        for layer, correction in corrections.items():
            map_ = torch.eye(WIDTH) + correction.float()
            hook = projections[layer].register_forward_hook(lambda _m, _a, output, map_=map_: output @ map_)
            stack.callback(hook.remove)
        expected = compute_logits(view, tokens)
    student = make_student(anatomy, candidate)
    fold_refit(student, candidate, Refit(corrections=corrections))
    folded = compute_logits(student, tokens)
    assert float((expected - unmapped).abs().max()) > 1e-2
    assert torch.allclose(folded, expected, atol=1e-4)
    assert torch.equal(student.get_input_embeddings().weight, anatomy.model.get_input_embeddings().weight)
    with torch.no_grad():
        first = anatomy.mlp_output(0)
        assert not torch.equal(first.weight, Anatomy(student).mlp_output(0).weight)  # the teacher's stays as it was
