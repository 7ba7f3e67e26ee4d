"""Distillation lowers the loss, never hands back less than its best look, and continues bit for bit."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from msgspec import structs
from torch import nn

from seed.distillation import loop
from seed.distillation.loop import (
    Distilled,
    DistillSettings,
    TrainingJob,
    choose_windows,
    distill,
    draw_windows,
    schedule,
)
from seed.distillation.losses import Objective
from seed.distillation.teacher_states import store_states
from seed.evaluation.perplexity import forward_kl
from seed.models.anatomy import Anatomy
from seed.models.surgery import cast_weights, make_student
from seed.records import Candidate, CurvePoint
from tests.interrupting import StoppedError
from tests.models.families import make_model
from tests.proxy.streams import draw_stream

SETTINGS = DistillSettings(steps=24, batch_windows=4, micro_batch=4, learning_rate=3e-3, rng_seed=0, looks=4)
SHORT = structs.replace(SETTINGS, steps=3, looks=1)
TEACHER = make_model("llama")
DENSE = Anatomy(TEACHER)
CUT = Candidate.keep(num_layers=4, kept_layers=(0, 3))
RECOVERY = draw_stream(18, 16, rng_seed=1)
VALIDATION = draw_stream(8, 16, rng_seed=2)


def make_start() -> nn.Module:
    return make_student(DENSE, CUT)


@torch.no_grad()
def validate(model: nn.Module) -> float:
    """Divergence from the teacher on held-out tokens: a loss that only closeness lowers."""
    logits = [each(input_ids=VALIDATION.tokens_NT, use_cache=False).logits for each in (TEACHER, model)]
    return forward_kl(*logits).mean().item()


def run(
    student: nn.Module,
    settings: DistillSettings = SETTINGS,
    *,
    dense: Anatomy = DENSE,
    validate: Callable[[nn.Module], float] = validate,
    checkpoint: Path | None = None,
    **more: Any,
) -> Distilled:
    """Train one student alone."""
    job = TrainingJob(student=student, settings=settings, validate=validate, checkpoint=checkpoint)
    [distilled] = distill([job], dense, RECOVERY, **more)
    return distilled


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
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(loop, "SAVING_SHARE", -1.0)


def stop_at(step: int) -> Callable[[int], None]:
    def stop(done: int) -> None:
        if done == step:
            raise StoppedError

    return stop


def test_the_loss_goes_down_from_before_the_first_step_to_the_last(unbroken: tuple[nn.Module, Distilled]) -> None:
    student, distilled = unbroken
    curve = distilled.curve
    assert [point.step for point in curve] == [0, 6, 12, 18, 24]
    assert [point.tokens for point in curve] == [0, 6 * 64, 12 * 64, 18 * 64, 24 * 64]
    assert curve[0].validation_loss == validate(make_start())
    assert curve[0].kl_divergence is None
    assert all(point.kl_divergence > 0 for point in curve[1:])
    assert curve[-1].validation_loss < 0.8 * curve[0].validation_loss
    assert curve[-1].kl_divergence < 0.8 * curve[1].kl_divergence
    assert distilled.best_step > 0
    assert not any(parameter.requires_grad for parameter in student.parameters())
    assert_same_weights(TEACHER, make_model("llama"))
    assert all(parameter.grad is None for parameter in TEACHER.parameters())


@pytest.mark.parametrize("learning_rate", [0.3, 30.0])
def test_the_student_comes_back_with_its_best_look(learning_rate: float) -> None:
    student = make_start()
    distilled = run(student, structs.replace(SETTINGS, learning_rate=learning_rate))
    losses = {point.step: point.validation_loss for point in distilled.curve}
    assert losses[distilled.best_step] == min(losses.values())
    assert validate(student) == min(losses.values())
    if learning_rate == 30.0:
        assert distilled.best_step == 0
        assert_same_weights(student, make_start())


def test_a_training_that_diverges_ends_at_once_with_its_best_weights_and_says_so() -> None:
    student, other = make_start(), make_start()
    settings = structs.replace(SETTINGS, steps=8, looks=2, learning_rate=1e9)
    said: list[str] = []
    steps: list[int] = []
    outcome, unharmed = distill(
        [
            TrainingJob(student=student, settings=settings, validate=validate, on_warning=said.append),
            TrainingJob(student=other, settings=structs.replace(settings, learning_rate=3e-3), validate=validate),
        ],
        DENSE,
        RECOVERY,
        on_step=steps.append,
    )
    assert outcome.diverged_at is not None
    assert outcome.diverged_at < settings.steps
    assert outcome.best_step == 0
    assert all(math.isfinite(point.validation_loss) for point in outcome.curve)
    assert_same_weights(student, make_start())
    assert said == [
        f"training diverged at step {outcome.diverged_at} of 8 and ended there; the weights of step 0 are kept. Lower "
        "--learning-rate (1e+09)."
    ]
    assert unharmed.curve[-1].step == steps[-1] == 8
    assert unharmed.diverged_at is None
    assert msgspec.json.decode(msgspec.json.encode(outcome.curve), type=tuple[CurvePoint, ...]) == outcome.curve


def test_a_start_without_a_finite_loss_may_be_trained_out_of_it() -> None:
    losses = iter([math.nan, 2.0, 3.0, 1.5, 4.0])
    outcome = run(make_start(), structs.replace(SETTINGS, steps=4), validate=lambda model: next(losses))
    assert [point.validation_loss for point in outcome.curve] == [2.0, 3.0, 1.5, 4.0]
    assert (outcome.best_step, outcome.best_loss) == (3, 1.5)
    student = make_start()
    never = run(student, SHORT, validate=lambda model: math.nan)
    assert never.curve == ()
    assert math.isnan(never.best_loss)
    assert_same_weights(student, make_start())


@pytest.mark.usefixtures("save_every_step")
@pytest.mark.parametrize("stops", [[1], [7, 8, 13], [24]], ids=str)
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
@pytest.mark.parametrize("damage", ["torn", "only a fingerprint", "other weights", "other moments", "other settings"])
def test_a_checkpoint_that_is_no_use_is_ignored(damage: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "progress.pt"
    settings = structs.replace(SHORT, rng_seed=1) if damage == "other settings" else SHORT
    with pytest.raises(StoppedError):
        run(make_start(), settings, checkpoint=checkpoint, on_step=stop_at(2))
    content = checkpoint.read_bytes()
    if damage == "torn":
        checkpoint.write_bytes(content[: len(content) // 2])
    elif damage == "only a fingerprint":
        torch.save({"fingerprint": settings.fingerprint}, checkpoint)
    elif damage == "other weights":
        state = torch.load(checkpoint, weights_only=True)
        state["best"].popitem()
        torch.save(state, checkpoint)
    elif damage == "other moments":
        state = torch.load(checkpoint, weights_only=True)
        state["optimizer"]["state"] = {place: {"exp_avg": torch.zeros(3)} for place in state["optimizer"]["state"]}
        torch.save(state, checkpoint)
    steps: list[int] = []
    said: list[str] = []
    student = make_start()
    job = TrainingJob(student=student, settings=SHORT, validate=validate, checkpoint=checkpoint, on_warning=said.append)
    [distilled] = distill([job], DENSE, RECOVERY, on_step=steps.append)
    assert steps[0] == 1
    told = f"{checkpoint}: damaged, or not written by this version. It is not used: this training starts anew."
    assert said == ([] if damage == "other settings" else [told])
    whole = make_start()
    assert distilled == run(whole, SHORT)
    assert_same_weights(student, whole)


def test_dropout_is_off() -> None:
    teacher = make_model("gpt2")
    assert teacher.config.resid_pdrop > 0
    student = copy.deepcopy(teacher).train()
    settings = structs.replace(SETTINGS, steps=1, looks=1)
    distilled = run(student, dense=Anatomy(teacher), settings=settings, validate=lambda model: 0.0)
    assert distilled.curve[1].kl_divergence == pytest.approx(0.0, abs=1e-6)  # it is the teacher, after all


@pytest.mark.parametrize("num_windows", [10, 12, 3])
def test_every_window_comes_once_before_any_comes_again_by_step_and_seed_alone(num_windows: int) -> None:
    visited = [window for step in range(30) for window in choose_windows(step, num_windows, SETTINGS).tolist()]
    epochs = [visited[i : i + num_windows] for i in range(0, len(visited) - num_windows + 1, num_windows)]
    assert all(sorted(epoch) == list(range(num_windows)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    torch.manual_seed(1)
    assert draw_windows(range(13, 40), num_windows=num_windows, rng_seed=0).tolist() == visited[13:40]
    assert draw_windows(range(120), num_windows=num_windows, rng_seed=3).tolist() != visited


@pytest.mark.parametrize("steps", [1, 24])
def test_the_rate_warms_up_and_then_falls_to_near_zero(steps: int) -> None:
    settings = structs.replace(SETTINGS, steps=steps)
    rates = [schedule(step, settings) for step in range(steps)]
    peak = rates.index(max(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == pytest.approx(1.0, abs=0.05)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak <= max(1, 0.05 * steps)
    assert steps < 24 or rates[-1] < 0.1


# ---- the dense model's states


def test_stored_states_give_what_live_ones_give_to_the_bit(
    tmp_path: Path, unbroken: tuple[nn.Module, Distilled]
) -> None:
    teacher_states = store_states(DENSE, RECOVERY, range(18), directory=tmp_path, source="x", micro_batch=2)
    student, forwards = make_start(), list[int]()
    handle = DENSE.layers[0].register_forward_hook(lambda *_: forwards.append(1))
    try:
        distilled = run(student, teacher_states=teacher_states)
    finally:
        handle.remove()
    assert len(forwards) == len(distilled.curve)  # by validation alone
    assert distilled == unbroken[1]
    assert_same_weights(student, unbroken[0])


# ---- several students


@pytest.mark.parametrize("objective", [Objective(hidden_weight=0.5), Objective(ce_share=1.0)], ids=str)
def test_students_side_by_side_end_as_each_alone_to_the_bit(objective: Objective) -> None:
    cuts = [CUT, Candidate.keep(num_layers=4, kept_layers=(0, 1, 3)), Candidate.keep(num_layers=4, kept_layers=(2, 3))]
    rates = [3e-3, 1e-3, 3e-3]

    def make_job(cut: Candidate, rate: float) -> TrainingJob:
        return TrainingJob(
            student=make_student(DENSE, cut),
            settings=structs.replace(SETTINGS, steps=6, looks=2, learning_rate=rate, objective=objective),
            validate=validate,
            boundaries=(*cut.kept_layers[1:], 4),
        )

    alone = [make_job(cut, rate) for cut, rate in zip(cuts, rates, strict=True)]
    expected = [distill([job], DENSE, RECOVERY)[0] for job in alone]
    together = [make_job(cut, rate) for cut, rate in zip(cuts, rates, strict=True)]
    forwards: list[int] = []
    handle = DENSE.layers[0].register_forward_hook(lambda *_: forwards.append(1))
    try:
        assert distill(together, DENSE, RECOVERY) == expected
    finally:
        handle.remove()
    validations = sum(len(outcome.curve) for outcome in expected)
    assert len(forwards) - validations == (6 if objective.needs_teacher else 0)  # one pass a batch, not three
    for one, other in zip(together, alone, strict=True):
        assert_same_weights(one.student, other.student)


@pytest.mark.usefixtures("save_every_step")
def test_students_that_were_saved_at_different_steps_go_on_from_there(tmp_path: Path) -> None:
    settings = structs.replace(SETTINGS, steps=8, looks=2)

    def make_job(name: str, cut: Candidate) -> TrainingJob:
        return TrainingJob(
            student=make_student(DENSE, cut), settings=settings, validate=validate, checkpoint=tmp_path / f"{name}.pt"
        )

    other = Candidate.keep(num_layers=4, kept_layers=(0, 1, 3))
    expected = [distill([replace(make_job("x", cut), checkpoint=None)], DENSE, RECOVERY)[0] for cut in (CUT, other)]
    for name, cut, step in (("one", CUT, 6), ("other", other, 3)):
        with pytest.raises(StoppedError):
            distill([make_job(name, cut)], DENSE, RECOVERY, on_step=stop_at(step))
    steps: list[int] = []
    assert distill([make_job("one", CUT), make_job("other", other)], DENSE, RECOVERY, on_step=steps.append) == expected
    assert steps == list(range(3, 9))


# ---- frozen layers


def list_changes(student: nn.Module, start: nn.Module) -> set[str]:
    before = dict(start.named_parameters())
    return {name for name, weight in student.named_parameters() if not torch.equal(weight, before[name])}


@pytest.mark.parametrize(("family", "frozen"), [("llama", 0), ("llama", 2), ("gpt2", 1), ("qwen2", 0), ("qwen2", 1)])
def test_frozen_layers_stay_and_cost_nothing_and_all_behind_them_are_trained(family: str, frozen: int) -> None:
    dense = Anatomy(make_model(family))
    student = make_student(dense, Candidate.keep(num_layers=4, kept_layers=(0, 1, 3)))
    start = copy.deepcopy(student)
    trained: set[str] = set()

    def look(step: int) -> None:
        trained.update(name for name, weight in student.named_parameters() if weight.requires_grad)

    losses = iter([1.0, 0.0])
    settings = structs.replace(SHORT, frozen_layers=frozen)
    run(student, dense=dense, settings=settings, validate=lambda model: next(losses), on_step=look)
    everything = {name for name, _ in student.named_parameters()}
    layers = "transformer.h" if family == "gpt2" else "model.layers"
    kept = {name for name in everything if name.startswith(tuple(f"{layers}.{i}." for i in range(frozen)))}
    assert len(kept) == frozen * len({name for name in everything if name.startswith(f"{layers}.0.")})
    if frozen and family == "qwen2":
        kept.add("model.embed_tokens.weight")  # of its own; others are tied to the head, and trained
    assert trained == everything - kept
    if frozen and family == "gpt2":
        kept.add("transformer.wpe.weight")  # positions are added before the layers only: no gradient comes there
    # keys' biases move no attention weight: their gradient is rounding
    unmoved = {name for name in everything if name.endswith("k_proj.bias")}
    assert list_changes(student, start) - unmoved == everything - kept - unmoved
    assert not any(weight.requires_grad for weight in student.parameters())


# ---- low-rank updates

LORA = structs.replace(SETTINGS, lora_rank=4, learning_rate=1e-2)


def list_peft_modules(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "peft" in type(module).__module__]


@pytest.mark.parametrize(("family", "dtype"), [("llama", torch.bfloat16), ("gpt2", torch.float32)])
def test_low_rank_updates_alone_are_trained_and_merged_at_the_end(family: str, dtype: torch.dtype) -> None:
    teacher = cast_weights(make_model(family), dtype)
    dense = Anatomy(teacher)
    student = make_student(dense, CUT)
    start = copy.deepcopy(student)
    before = {name: weight.clone() for name, weight in start.named_parameters()}
    seen: list[int] = []

    def look(step: int) -> None:
        seen.append(step)
        trained = {name for name, weight in student.named_parameters() if weight.requires_grad}
        assert trained
        assert all("lora_" in name for name in trained)
        weights = {name.replace(".base_layer", ""): weight for name, weight in student.named_parameters()}
        for name, weight in before.items():
            assert torch.equal(weights[name], weight), name
        assert all(weights[name].dtype == torch.float32 for name in trained)

    @torch.no_grad()
    def measure(model: nn.Module) -> float:
        logits = [each(input_ids=VALIDATION.tokens_NT, use_cache=False).logits.float() for each in (teacher, model)]
        return forward_kl(*logits).mean().item()

    distilled = run(student, dense=dense, settings=LORA, validate=measure, on_step=look)
    assert seen == list(range(1, 25))
    assert type(student) is type(start)
    assert list(student.state_dict()) == list(start.state_dict())
    assert not list_peft_modules(student)
    assert [type(module) for module in student.modules()] == [type(module) for module in start.modules()]
    assert all(weight.dtype == dtype for weight in student.parameters())
    assert not any(weight.requires_grad for weight in student.parameters())
    curve = distilled.curve
    assert curve[-1].validation_loss < 0.85 * curve[0].validation_loss
    merged = min(point.validation_loss for point in curve)
    assert measure(student) == pytest.approx(merged, rel=1e-4 if dtype == torch.float32 else 0.1)
    changed = list_changes(student, start)
    assert all(weight.ndim == 2 for name, weight in student.named_parameters() if name in changed)
    projections = {name for name in before if "proj" in name or "c_" in name}
    assert changed == {name for name in projections if before[name].ndim == 2}


@pytest.mark.usefixtures("save_every_step")
def test_a_stopped_run_with_low_rank_updates_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    settings = structs.replace(LORA, steps=8, looks=2)
    whole, resumed = make_start(), make_start()
    expected = run(whole, settings)
    for step in (3, 6):
        with pytest.raises(StoppedError):
            run(make_start(), settings, checkpoint=tmp_path / "progress.pt", on_step=stop_at(step))
    torch.manual_seed(99)  # where the global random numbers stand does not matter
    assert run(resumed, settings, checkpoint=tmp_path / "progress.pt") == expected
    assert_same_weights(resumed, whole)


# ---- mixed precision


def test_mixed_precision_lowers_the_loss_as_float32_does(unbroken: tuple[nn.Module, Distilled]) -> None:
    mixed, exact = make_start(), unbroken[1].curve
    curve = run(mixed, structs.replace(SETTINGS, mixed_precision=True)).curve
    assert curve[0].validation_loss == exact[0].validation_loss  # validation is the caller's
    gained = curve[0].validation_loss - curve[-1].validation_loss
    assert gained == pytest.approx(exact[0].validation_loss - exact[-1].validation_loss, rel=0.1)
    assert [point.kl_divergence for point in curve[1:]] == pytest.approx(
        [point.kl_divergence for point in exact[1:]], rel=0.1
    )
    assert all(weight.dtype == torch.float32 for weight in mixed.parameters())
    assert list_changes(mixed, unbroken[0])  # it did compute otherwise
