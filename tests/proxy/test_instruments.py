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
from seed.evaluation.perplexity import DocumentLosses, forward_kl, logits_of, measure_losses
from seed.models.anatomy import Anatomy
from seed.models.checkpoint import load_checkpoint, write_checkpoint
from seed.models.surgery import cast_weights
from seed.proxy.instruments import Instruments, exported_losses, make_walker, size_of, start_student, train_student
from tests.conftest import make_tokenizer
from tests.models.families import compute_logits, make_model, make_tokens
from tests.proxy.opened import CPU, CUT, DENSE, drop, open_grafted, open_instruments

SETTINGS = DistillSettings(steps=1, batch_windows=1, micro_batch=1, learning_rate=1e-3, rng_seed=0)


def export(student: torch.nn.Module, target: Path) -> None:
    """Write a student in bfloat16, with nothing said of it."""
    write_checkpoint(student, target, tokenizer=make_tokenizer(), dtype=torch.bfloat16)


def judge(instruments: Instruments, student: torch.nn.Module) -> DocumentLosses:
    return exported_losses(instruments, student, instruments.validation)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_sizes_are_those_of_exported_students(family: str, tmp_path: Path) -> None:
    instruments = open_instruments(family, stored=torch.bfloat16)
    size = size_of(instruments, CUT)
    export(start_student(instruments, CUT, None), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors").values()
    assert size.num_params == sum(tensor.numel() for tensor in tensors)
    assert size.weight_bytes == sum(tensor.nbytes for tensor in tensors)
    assert size.kv_bytes_per_token == size_of(instruments, DENSE).kv_bytes_per_token / 2
    grafted, _ = open_grafted(family)
    for candidate in (drop(1), drop(1, 3)):
        student = start_student(grafted, candidate, None)
        assert size_of(grafted, candidate).num_params == sum(weight.numel() for weight in student.parameters())


def test_a_student_is_judged_as_it_is_exported_and_left_as_it_was(tmp_path: Path) -> None:
    instruments = open_instruments(stored=torch.bfloat16)
    student = start_student(instruments, CUT, None).requires_grad_(True)
    before = copy.deepcopy(student.state_dict())
    found = judge(instruments, student).loss
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in student.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())
    export(student, tmp_path / "out")
    exported = load_checkpoint(tmp_path / "out", device=CPU, dtype=torch.float32)
    assert measure_losses(logits_of(exported), instruments.validation, micro_batch=4, device=CPU).loss == found


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_low_rank_updates_are_judged_merged_and_train_on(stored: torch.dtype) -> None:
    instruments = open_instruments(stored=stored)
    student = start_student(instruments, CUT, None)
    raw = judge(instruments, student).loss
    lora.add_updates(student, rank=4, rng_seed=0)
    assert judge(instruments, student).loss == raw  # updates of zero
    generator = torch.Generator().manual_seed(0)
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in trained:
            weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    values = [weight.clone() for weight in trained]
    found = judge(instruments, student)
    assert all(torch.equal(weight, value) for weight, value in zip(trained, values, strict=True))
    assert abs(found.loss - raw) > 1e-3
    lora.merge_updates(student)
    assert found.sums.tolist() == judge(instruments, student).sums.tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2", "grafted"])
def test_a_student_starts_raw_or_with_the_maps_folded_in_and_the_teacher_stays_as_it_was(family: str) -> None:
    tokens, candidate = make_tokens(), drop(1, 2)
    instruments, recovered = open_grafted() if family == "grafted" else (open_instruments(family), None)
    if recovered is not None:  # students are cut from it
        alone = start_student(instruments, drop(1), None)
        assert torch.equal(compute_logits(alone, tokens), compute_logits(recovered, tokens))
    before = compute_logits(instruments.teacher, tokens)
    losses, refit = make_walker(instruments).measure(candidate)
    folded, raw = (start_student(instruments, candidate, maps) for maps in (refit, None))
    assert judge(instruments, folded).loss == pytest.approx(losses.loss, abs=1e-5)
    assert judge(instruments, raw).loss != pytest.approx(losses.loss, abs=1e-4)
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
    student = start_student(instruments, CUT, make_walker(instruments).measure(CUT)[1], settings=settings)
    assert {weight.dtype for weight in student.parameters()} == {dtype}
    assert {weight.dtype for weight in start_student(instruments, CUT, None).parameters()} == {torch.float32}
    assert {weight.dtype for weight in instruments.teacher.parameters()} == {torch.bfloat16}


def test_the_teacher_stays_the_dense_model() -> None:
    instruments, _ = open_grafted()
    plain = open_instruments("llama")
    assert (plain.source, instruments.teacher) == (plain.anatomy, plain.teacher)
    tokens = instruments.recovery.tokens_NT
    settings = structs.replace(SETTINGS, batch_windows=len(tokens))  # a step on all of the text
    student = start_student(instruments, drop(1), None)
    expected = float(forward_kl(compute_logits(plain.teacher, tokens), compute_logits(student, tokens)).mean())
    curve = train_student(instruments, student, settings).curve
    assert curve[1].kl_divergence == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3
