"""Students are what the candidate says, judged as they would be exported, and cost the dense model nothing."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file

from seed.distillation import lora
from seed.distillation.loop import DistillSettings
from seed.evaluation.perplexity import forward_kl, logits_of, measure_losses
from seed.models.anatomy import Anatomy
from seed.models.checkpoint import load_checkpoint, write_checkpoint
from seed.models.surgery import cast_weights
from seed.proxy.instruments import make_walker, size_of, start_student, train_student, validation_losses
from tests.conftest import make_tokenizer
from tests.models.families import compute_logits, make_model, make_tokens
from tests.proxy.opened import CPU, CUT, DENSE, drop, open_grafted, open_instruments

SETTINGS = DistillSettings(steps=1, batch_windows=1, micro_batch=1, learning_rate=1e-3, rng_seed=0)


def export(student: torch.nn.Module, target: Path) -> None:
    """Write a student in bfloat16, with nothing said of it."""
    write_checkpoint(student, target, tokenizer=make_tokenizer(), dtype=torch.bfloat16)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_size_is_that_of_the_exported_student(family: str, tmp_path: Path) -> None:
    instruments = open_instruments(family, stored=torch.bfloat16)
    size = size_of(instruments, CUT)
    student = start_student(instruments, CUT, None)
    assert size.num_params == sum(parameter.numel() for parameter in student.parameters())
    export(student, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors").values()
    assert size.num_params == sum(tensor.numel() for tensor in tensors)
    assert size.weight_bytes == sum(tensor.nbytes for tensor in tensors)
    assert size.kv_bytes_per_token == size_of(instruments, DENSE).kv_bytes_per_token / 2


def test_a_student_is_validated_as_it_is_exported_and_left_as_it_was(tmp_path: Path) -> None:
    instruments = open_instruments(stored=torch.bfloat16)
    student = start_student(instruments, CUT, None).requires_grad_(True)
    before = copy.deepcopy(student.state_dict())
    found = validation_losses(instruments, student).loss
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in student.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())
    export(student, tmp_path / "out")
    exported = load_checkpoint(tmp_path / "out", device=CPU, dtype=torch.float32)
    losses = measure_losses(logits_of(exported), instruments.validation, micro_batch=4, device=CPU)
    assert losses.loss == found


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_low_rank_updates_are_validated_merged_and_train_on(stored: torch.dtype) -> None:
    instruments = open_instruments(stored=stored)
    student = start_student(instruments, CUT, None)
    raw = validation_losses(instruments, student).loss
    lora.add_updates(student, rank=4, rng_seed=0)
    assert validation_losses(instruments, student).loss == raw  # updates of zero
    generator = torch.Generator().manual_seed(0)
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in trained:
            weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    values = [weight.clone() for weight in trained]
    found = validation_losses(instruments, student)
    assert all(torch.equal(weight, value) for weight, value in zip(trained, values, strict=True))
    assert abs(found.loss - raw) > 1e-3
    lora.merge_updates(student)
    assert found.sums.tolist() == validation_losses(instruments, student).sums.tolist()


def test_a_student_starts_raw_or_with_the_maps_folded_in_and_the_teacher_stays_as_it_was() -> None:
    instruments, tokens = open_instruments(), make_tokens()
    before = compute_logits(instruments.teacher, tokens)
    losses, refit = make_walker(instruments).measure(CUT)
    folded, raw = (start_student(instruments, CUT, maps) for maps in (refit, None))
    assert validation_losses(instruments, folded).loss == pytest.approx(losses.loss, abs=1e-5)
    theirs = instruments.teacher.model.layers[3].mlp.down_proj.weight
    assert torch.equal(raw.model.layers[1].mlp.down_proj.weight, theirs)
    assert validation_losses(instruments, raw).loss > losses.loss
    with torch.no_grad():
        for weight in (*folded.parameters(), *raw.parameters()):
            weight.zero_()
    assert torch.equal(compute_logits(instruments.teacher, tokens), before)
    assert not any(parameter.requires_grad for parameter in instruments.teacher.parameters())


@pytest.mark.parametrize(
    ("lora_rank", "dtype"), [(None, torch.float32), (4, torch.bfloat16)], ids=["all weights", "low rank"]
)
def test_a_student_is_float32_unless_only_updates_are_trained(lora_rank: int | None, dtype: torch.dtype) -> None:
    anatomy = Anatomy(cast_weights(make_model("llama"), torch.bfloat16))
    instruments = replace(open_instruments(), anatomy=anatomy)
    settings = structs.replace(SETTINGS, lora_rank=lora_rank)
    _, refit = make_walker(instruments).measure(CUT)
    for maps in (None, refit):
        student = start_student(instruments, CUT, maps, settings=settings)
        assert {weight.dtype for weight in student.parameters()} == {dtype}
    assert {weight.dtype for weight in start_student(instruments, CUT, None).parameters()} == {torch.float32}
    assert {weight.dtype for weight in instruments.teacher.parameters()} == {torch.bfloat16}


def test_a_family_without_closed_form_has_no_walker() -> None:
    instruments = open_instruments("gemma3_text")
    assert instruments.gains is None
    with pytest.raises(AssertionError):
        make_walker(instruments)


# ---- candidates cut from a recovered model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_students_are_cut_from_the_grafted_model(family: str) -> None:
    instruments, recovered = open_grafted(family)
    tokens = make_tokens()
    assert torch.equal(
        compute_logits(start_student(instruments, drop(1), None), tokens), compute_logits(recovered, tokens)
    )
    losses, refit = make_walker(instruments).measure(drop(1, 2))
    folded = start_student(instruments, drop(1, 2), refit)
    assert validation_losses(instruments, folded).loss == pytest.approx(losses.loss, abs=1e-5)
    raw = start_student(instruments, drop(1, 2), None)
    assert validation_losses(instruments, raw).loss != pytest.approx(losses.loss, abs=1e-4)


def test_the_teacher_stays_the_dense_model() -> None:
    instruments, _ = open_grafted()
    plain = open_instruments("llama")
    assert plain.source is plain.anatomy
    assert instruments.source is not instruments.anatomy
    assert instruments.teacher is plain.teacher
    tokens = instruments.recovery.tokens_NT
    settings = structs.replace(SETTINGS, batch_windows=len(tokens))  # a step on all of the text
    student = start_student(instruments, drop(1), None)
    expected = float(forward_kl(compute_logits(plain.teacher, tokens), compute_logits(student, tokens)).mean())
    curve = train_student(instruments, student, settings).curve
    assert curve[1].kl_divergence == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_sizes_are_those_of_grafted_students(family: str) -> None:
    instruments, _ = open_grafted(family)
    for candidate in (drop(1), drop(1, 3)):
        student = start_student(instruments, candidate, None)
        assert size_of(instruments, candidate).num_params == sum(weight.numel() for weight in student.parameters())
    assert size_of(instruments, DENSE) == size_of(open_instruments(family), DENSE)
