"""Updates of zero change nothing, trained ones are merged into what leaves, and no trace of PEFT stays."""

import pytest
import torch
from torch import nn

from seed.distillation import lora
from seed.errors import ModelError
from seed.models.anatomy import Anatomy
from seed.models.surgery import make_student
from seed.records import Candidate
from tests.models.families import KINDS, compute_logits, make_model, make_tokens

CUT = Candidate.keep(num_layers=4, kept_layers=(0, 3))
REFUSED = ("mamba", "qwen2_moe")  # PEFT's own refusal, and fused experts
TAKEN = tuple(family for family in KINDS if family not in REFUSED)


def make_start(family: str) -> nn.Module:
    return make_student(Anatomy(make_model(family)), CUT)


def make_updates_matter(student: nn.Module, *, rng_seed: int = 0) -> None:
    """Give every trainable weight a random value, as training would."""
    generator = torch.Generator().manual_seed(rng_seed)
    with torch.no_grad():
        for weight in student.parameters():
            if weight.requires_grad:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("family", TAKEN)
def test_fresh_updates_change_nothing_and_trained_ones_are_merged(family: str) -> None:
    student, tokens = make_start(family), make_tokens()
    modules = [type(module) for module in student.modules()]
    keys, before = list(student.state_dict()), compute_logits(student, tokens)
    lora.add_updates(student, rank=2, rng_seed=0)
    assert torch.equal(compute_logits(student, tokens), before)
    trained = [name for name, weight in student.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    make_updates_matter(student)
    moved = compute_logits(student, tokens)
    assert float((moved - before).abs().max()) > 1e-3
    lora.merge_updates(student)
    assert torch.allclose(compute_logits(student, tokens), moved, atol=2e-4)
    assert [type(module) for module in student.modules()] == modules
    assert list(student.state_dict()) == keys


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_takes_no_updates_is_refused(family: str) -> None:
    with pytest.raises(ModelError, match="--lora-rank: low-rank updates do not fit"):
        lora.add_updates(make_start(family), rank=2, rng_seed=0)
