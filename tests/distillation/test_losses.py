"""Gradients written down are those that autograd finds, for every part of an objective and any split of a batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seed.distillation import losses
from seed.distillation.loop import PREDICTIONS
from seed.distillation.losses import (
    Learner,
    Objective,
    accumulate_gradients,
    kl_and_gradient,
    soften,
)
from seed.distillation.teacher_states import run_teacher
from seed.evaluation import perplexity
from seed.evaluation.perplexity import forward_kl
from seed.models.anatomy import Anatomy
from seed.models.surgery import make_student
from seed.records import Candidate
from tests.models.families import KINDS, make_model
from tests.proxy.streams import draw_stream

DENSE = Anatomy(make_model("llama"))
CUT = Candidate.keep(num_layers=4, kept_layers=(0, 3))
BOUNDARIES = (3, 4)  # what stands before layer 3, and what stands after all
RECOVERY = draw_stream(18, 16, rng_seed=1)


def learn(
    student: nn.Module, dense: Anatomy, windows: Tensor, objective: Objective = PREDICTIONS, **changes: Any
) -> float | None:
    """Add the gradient of one batch to a student's weights."""
    [divergence] = accumulate_gradients(
        [Learner(anatomy=Anatomy(student), boundaries=BOUNDARIES)],
        dense,
        RECOVERY,
        windows,
        objective,
        **{"micro_batch": 4, "mixed_precision": False, "teacher_states": run_teacher(dense, RECOVERY)} | changes,
    )
    return divergence


@pytest.mark.parametrize(("scale", "temperature"), [(0.1, 1.0), (3.0, 2.5), (30.0, 1.0)])
def test_divergence_and_gradient_are_those_of_autograd(scale: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (scale * torch.randn(2, 5, 257, generator=generator) for _ in range(2))
    wanted = soften(teacher, temperature=temperature)
    before = wanted.clone(), student.clone()
    divergence, gradient = kl_and_gradient(wanted, student, temperature=temperature)
    assert torch.equal(wanted, before[0])
    assert torch.equal(student, before[1])
    leaf = student.double().requires_grad_(True)
    expected = forward_kl(teacher.double() / temperature, leaf / temperature)
    (temperature**2 * expected.sum()).backward()
    assert torch.allclose(divergence.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    assert torch.allclose(gradient.double(), leaf.grad, atol=1e-5)
    assert divergence.shape == (2, 5)
    assert torch.allclose(gradient.sum(-1), torch.zeros(2, 5), atol=1e-5)


def differentiate_directly(teacher: nn.Module, student: nn.Module, windows: Tensor) -> float:
    """Mean KL by one forward pass of both models on the whole batch, its gradient left in the student."""
    tokens = RECOVERY.tokens_NT[windows]
    with torch.no_grad():
        wanted = teacher(input_ids=tokens, use_cache=False).logits
    divergence = forward_kl(wanted, student(input_ids=tokens, use_cache=False).logits).mean()
    divergence.backward()
    return divergence.item()


def take_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


# windows of 16 tokens: parts of 5 positions, one window and a half, three, and all at once
@pytest.mark.parametrize(
    ("family", "positions"),
    [*((kind, 24) for kind in KINDS), ("granite", 48), ("llama", 1), ("llama", 5), ("llama", 16), ("llama", 10_000)],
)
def test_the_gradient_is_that_of_whole_logits(family: str, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = make_model(family)
    dense = Anatomy(teacher)
    student = make_student(dense, CUT).requires_grad_(True)
    windows = torch.tensor([4, 0, 11, 7, 2])
    expected = differentiate_directly(teacher, student, windows)
    wanted = take_gradients(student)
    monkeypatch.setitem(perplexity.HEAD_POSITIONS, "cpu", positions)
    monkeypatch.setitem(losses.CACHED_BYTES, "cpu", 4 * 257 * max(1, positions // 2))  # each part in two or more
    for micro_batch in (1, 3, 8):
        divergence = learn(student, dense, windows, micro_batch=micro_batch)
        assert divergence == pytest.approx(expected, rel=1e-5)
        found = take_gradients(student)
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            assert torch.allclose(gradient, wanted[name], rtol=1e-3, atol=1e-4 * float(wanted[name].abs().max())), name
    assert all(weight.grad is None for weight in teacher.parameters())


def compute_directly(
    teacher: nn.Module, student: nn.Module, windows: Tensor, objective: Objective
) -> tuple[Tensor, Tensor]:
    """The objective's loss and the mean KL divergence, as its definition reads, by one pass of both on the whole batch."""
    tokens = RECOVERY.tokens_NT[windows]
    with torch.no_grad():
        wanted = teacher(input_ids=tokens, use_cache=False, output_hidden_states=True)
    with Anatomy(student).record_states() as outputs:
        logits = student(input_ids=tokens, use_cache=False).logits
    temperature = objective.temperature
    divergence = forward_kl(wanted.logits / temperature, logits / temperature).mean()
    text = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss = (1 - objective.ce_share) * temperature**2 * divergence + objective.ce_share * text
    if objective.hidden_weight:
        states = Anatomy(teacher).trace(tokens)
        distances = [
            (outputs[i] - states[place]).square().sum() / states[place].square().sum()
            for i, place in enumerate(BOUNDARIES)
        ]
        loss = loss + objective.hidden_weight * sum(distances) / 2
    return loss, divergence


OBJECTIVES = [
    Objective(temperature=2.0),
    Objective(ce_share=0.3),
    Objective(ce_share=1.0),
    Objective(ce_share=0.4, temperature=3.0),
    Objective(hidden_weight=0.7),
    Objective(ce_share=1.0, hidden_weight=2.0),
]


@pytest.mark.parametrize("positions", [5, 10_000])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=Objective.describe)
def test_every_mixture_has_the_gradient_of_its_definition(
    objective: Objective, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = make_student(DENSE, CUT).requires_grad_(True)
    windows = torch.tensor([4, 0, 11, 7])
    loss, divergence = compute_directly(DENSE.model, student, windows, objective)
    loss.backward()
    wanted = take_gradients(student)
    monkeypatch.setitem(perplexity.HEAD_POSITIONS, "cpu", positions)
    monkeypatch.setitem(losses.CACHED_BYTES, "cpu", 4 * 257 * max(1, positions // 2))  # each part in two or more
    found_divergence = learn(
        student, DENSE, windows, objective
    )  # all windows in one micro-batch: distances are shares of it
    if objective.ce_share == 1:
        assert found_divergence is None
    else:
        assert found_divergence == pytest.approx(divergence.item(), rel=1e-4)
    found = take_gradients(student)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-3, atol=1e-4 * float(wanted[name].abs().max())), name


@pytest.mark.parametrize("family", KINDS)
def test_layers_that_run_again_on_the_way_back_give_the_same_gradient(family: str) -> None:
    dense = Anatomy(make_model(family))
    student = make_student(dense, CUT).requires_grad_(True)
    found, runs = [], list[int]()
    first = next(Anatomy(student).layers[0].children())
    handle = first.register_forward_hook(lambda *_: runs.append(1))
    for recomputes in (False, True):
        learn(student, dense, torch.tensor([4, 0, 11]), recomputes=recomputes)
        found.append(take_gradients(student))
    handle.remove()
    assert len(runs) == 3  # once, then twice
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name
    assert all("forward" not in vars(layer) for layer in Anatomy(student).layers)
