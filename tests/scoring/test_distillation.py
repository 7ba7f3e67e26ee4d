"""Distillation lowers the loss, never hands back less than its best look, and continues bit for bit."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from seed.models.anatomy import Anatomy
from seed.models.surgery import make_student
from seed.records import Candidate
from seed.scoring import distillation
from seed.scoring.distillation import Distilled, DistillSettings, choose_windows, distill, schedule, tune_learning_rate
from seed.scoring.quality import forward_kl
from tests.models.families import make_model
from tests.scoring.streams import draw_stream

SETTINGS = DistillSettings(steps=24, batch_windows=4, micro_batch=4, learning_rate=3e-3, rng_seed=0, looks=4)
TEACHER = make_model("llama")
RECOVERY = draw_stream(18, 16, rng_seed=1)
VALIDATION = draw_stream(8, 16, rng_seed=2)


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def make_start() -> nn.Module:
    return make_student(Anatomy(TEACHER), Candidate(num_layers=4, kept_layers=(0, 3)))


@torch.no_grad()
def validate(model: nn.Module) -> float:
    """Divergence from the teacher on held-out tokens: a loss that only closeness lowers."""
    logits = [each(input_ids=VALIDATION.tokens_NT, use_cache=False).logits for each in (TEACHER, model)]
    return forward_kl(*logits).mean().item()


def run(
    student: nn.Module,
    settings: DistillSettings = SETTINGS,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Distilled:
    return distill(student, TEACHER, RECOVERY, settings, validate=validate, checkpoint=checkpoint, on_step=on_step)


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.fixture(scope="module")
def unbroken() -> tuple[nn.Module, Distilled]:
    """A run that nothing stopped."""
    student = make_start()
    return student, run(student)


@pytest.fixture
def save_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save progress at every step instead of every half minute."""
    monkeypatch.setattr(distillation, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(distillation, "SAVING_SHARE", -1.0)


def stop_at(step: int) -> Callable[[int], None]:
    def stop(done: int) -> None:
        if done == step:
            raise StoppedError

    return stop


def test_the_loss_goes_down(unbroken: tuple[nn.Module, Distilled]) -> None:
    student, distilled = unbroken
    curve = distilled.curve
    assert curve[-1].validation_loss < 0.8 * curve[0].validation_loss
    assert curve[-1].kl_divergence < 0.8 * curve[1].kl_divergence
    assert not any(parameter.requires_grad for parameter in student.parameters())


def test_the_curve_begins_before_the_first_step_and_ends_at_the_last(unbroken: tuple[nn.Module, Distilled]) -> None:
    curve = unbroken[1].curve
    assert [point.step for point in curve] == [0, 6, 12, 18, 24]
    assert [point.tokens for point in curve] == [0, 6 * 64, 12 * 64, 18 * 64, 24 * 64]
    assert curve[0].validation_loss == validate(make_start())
    assert curve[0].kl_divergence is None
    assert all(point.kl_divergence > 0 for point in curve[1:])


@pytest.mark.parametrize("learning_rate", [1e-3, 3e-2, 0.3, 30.0])
def test_the_student_comes_back_with_its_best_look(learning_rate: float) -> None:
    student = make_start()
    distilled = run(student, replace(SETTINGS, learning_rate=learning_rate))
    losses = {point.step: point.validation_loss for point in distilled.curve}
    assert losses[distilled.best_step] == min(losses.values())
    assert validate(student) == min(losses.values())
    if learning_rate == 30.0:
        assert distilled.best_step == 0
        assert_same_weights(student, make_start())


def test_the_teacher_is_left_alone(unbroken: tuple[nn.Module, Distilled]) -> None:
    assert unbroken[1].best_step > 0
    assert_same_weights(TEACHER, make_model("llama"))
    assert all(parameter.grad is None for parameter in TEACHER.parameters())


@pytest.mark.usefixtures("save_every_step")
@pytest.mark.parametrize("stops", [[1], [6], [7, 8, 13], [23], [24]], ids=str)
def test_a_run_that_was_stopped_ends_as_an_unbroken_one_to_the_bit(
    stops: list[int], tmp_path: Path, unbroken: tuple[nn.Module, Distilled]
) -> None:
    checkpoint = tmp_path / "work" / "progress.pt"
    for step in stops:
        with pytest.raises(StoppedError):
            run(make_start(), checkpoint=checkpoint, on_step=stop_at(step))
    steps: list[int] = []
    student = make_start()
    distilled = run(student, checkpoint=checkpoint, on_step=steps.append)
    assert steps == list(range(stops[-1], 25))  # the step whose saving was cut off runs again
    assert distilled == unbroken[1]
    assert_same_weights(student, unbroken[0])


@pytest.mark.usefixtures("save_every_step")
@pytest.mark.parametrize("damage", ["torn", "empty", "not a state", "other settings"])
def test_a_checkpoint_that_is_no_use_is_ignored(
    damage: str, tmp_path: Path, unbroken: tuple[nn.Module, Distilled]
) -> None:
    checkpoint = tmp_path / "progress.pt"
    settings = replace(SETTINGS, rng_seed=1) if damage == "other settings" else SETTINGS
    with pytest.raises(StoppedError):
        run(make_start(), settings, checkpoint=checkpoint, on_step=stop_at(9))
    content = checkpoint.read_bytes()
    if damage == "torn":
        checkpoint.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        checkpoint.write_bytes(b"")
    elif damage == "not a state":
        torch.save([1, 2, 3], checkpoint)
    steps: list[int] = []
    student = make_start()
    distilled = run(student, checkpoint=checkpoint, on_step=steps.append)
    assert steps[0] == 1
    assert distilled == unbroken[1]
    assert_same_weights(student, unbroken[0])


def test_micro_batches_add_up_to_the_batch(unbroken: tuple[nn.Module, Distilled]) -> None:
    distilled = run(make_start(), replace(SETTINGS, micro_batch=1))
    for mine, whole in zip(distilled.curve, unbroken[1].curve, strict=True):
        assert mine.validation_loss == pytest.approx(whole.validation_loss, rel=1e-3)
        assert mine.kl_divergence == (whole.kl_divergence and pytest.approx(whole.kl_divergence, rel=1e-3))


def test_dropout_is_off() -> None:
    teacher = make_model("gpt2")
    assert teacher.config.resid_pdrop > 0
    student = copy.deepcopy(teacher).train()
    distilled = distill(student, teacher, RECOVERY, replace(SETTINGS, steps=1, looks=1), validate=lambda model: 0.0)
    assert distilled.curve[1].kl_divergence == pytest.approx(0.0, abs=1e-6)  # it is the teacher, after all


@pytest.mark.parametrize("num_windows", [10, 12, 3])
def test_every_window_comes_once_before_any_comes_again(num_windows: int) -> None:
    visited = [window for step in range(30) for window in choose_windows(step, num_windows, SETTINGS).tolist()]
    epochs = [visited[i : i + num_windows] for i in range(0, len(visited) - num_windows + 1, num_windows)]
    assert all(sorted(epoch) == list(range(num_windows)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_windows_depend_on_the_step_and_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = choose_windows(7, 100, SETTINGS)
    torch.manual_seed(2)
    assert torch.equal(choose_windows(7, 100, SETTINGS), first)
    assert not torch.equal(choose_windows(7, 100, replace(SETTINGS, rng_seed=1)), first)


@pytest.mark.parametrize("steps", [1, 2, 24, 400])
def test_the_rate_warms_up_and_then_falls_to_near_zero(steps: int) -> None:
    settings = replace(SETTINGS, steps=steps)
    rates = [schedule(step, settings) for step in range(steps)]
    peak = rates.index(max(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == pytest.approx(1.0, abs=0.05)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak <= max(1, 0.05 * steps)
    assert steps < 24 or rates[-1] < 0.1


def test_the_rate_with_the_lowest_loss_wins_and_rates_behind_a_rise_are_not_tried() -> None:
    losses = {1e-4: 3.0, 3e-4: 2.5, 1e-3: 2.2, 3e-3: 2.4, 1e-2: 1.0}
    tried: list[float] = []

    def measure(rate: float) -> float:
        tried.append(rate)
        return losses[rate]

    best, found = tune_learning_rate([1e-2, 1e-4, 3e-3, 3e-4, 1e-3], measure)
    assert best == 1e-3
    assert tried == [1e-4, 3e-4, 1e-3, 3e-3]
    assert found == {rate: losses[rate] for rate in tried}
    assert tune_learning_rate([1e-3, 1e-4], lambda rate: 1 - rate)[0] == 1e-3


def test_other_settings_have_another_fingerprint() -> None:
    assert SETTINGS.fingerprint == replace(SETTINGS).fingerprint
    for change in ({"steps": 25}, {"learning_rate": 1e-3}, {"rng_seed": 1}, {"looks": 5}, {"batch_windows": 5}):
        assert replace(SETTINGS, **change).fingerprint != SETTINGS.fingerprint
