"""A grafted model is the recovered one at the original's indices, and leaves the original alone."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from seed.errors import ModelError
from seed.models.anatomy import Anatomy
from seed.models.checkpoint import load_checkpoint
from seed.models.surgery import graft, make_student
from seed.records import Candidate
from tests.models.families import KINDS, compute_logits, keep, make_model, make_tokens, scramble

SUBSETS = ((0, 1, 3), (1, 2, 3), (0, 2), (0, 1))


def recover(anatomy: Anatomy, candidate: Candidate) -> nn.Module:
    """A model of these layers whose weights are all others, as after distillation."""
    return scramble(make_student(anatomy, candidate), rng_seed=1)


def count_numbers(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def reload(model: nn.Module, directory: Path) -> nn.Module:
    model.save_pretrained(directory)
    return load_checkpoint(directory, device=torch.device("cpu"), dtype=torch.float32)  # weights aligned as others are


@pytest.mark.parametrize("family", KINDS)
def test_a_grafted_model_and_its_students_are_the_recovered_model_to_the_bit(family: str, tmp_path: Path) -> None:
    anatomy, tokens = Anatomy(make_model(family)), make_tokens()
    before = compute_logits(anatomy.model, tokens)
    config = copy.deepcopy(anatomy.model.config.__dict__)
    for kept in SUBSETS:
        candidate = keep(*kept)
        recovered = reload(recover(anatomy, candidate), tmp_path / candidate.key)
        expected, theirs = compute_logits(recovered, tokens), Anatomy(recovered).trace(tokens)
        grafted = graft(anatomy, recovered, candidate)
        states = grafted.trace(tokens)
        assert grafted.gone_layers == candidate.dropped_layers
        assert torch.equal(compute_logits(grafted.model, tokens), expected), kept
        assert len(states) == 5
        for position, layer in enumerate((*kept, 4)):
            assert torch.equal(states[layer], theirs[position]), (kept, layer)
        for layer in grafted.gone_layers:
            assert torch.equal(states[layer], states[layer + 1])
        student = make_student(grafted, candidate)
        assert torch.equal(compute_logits(student, tokens), expected), kept
        assert torch.equal(compute_logits(reload(student, tmp_path / "again"), tokens), expected), kept
        assert count_numbers(grafted.model) == count_numbers(recovered)  # gaps hold no weights, and ties stay tied
        for weight in grafted.model.parameters():
            weight.zero_()
        assert torch.equal(compute_logits(recovered, tokens), expected)
        assert not torch.equal(expected, compute_logits(make_student(anatomy, candidate), tokens))
    assert anatomy.model.config.__dict__ == config
    assert anatomy.gone_layers == ()
    assert torch.equal(compute_logits(anatomy.model, tokens), before)


def test_a_grafted_model_can_be_grafted_into_and_its_gaps_cannot_be_kept() -> None:
    anatomy, tokens = Anatomy(make_model("llama")), make_tokens()
    grafted = graft(anatomy, recover(anatomy, keep(0, 2, 3)), keep(0, 2, 3))
    recovered = scramble(make_student(grafted, keep(0, 3)), rng_seed=2)
    again = graft(grafted, recovered, keep(0, 3))
    assert again.gone_layers == (1, 2)
    assert torch.equal(compute_logits(again.model, tokens), compute_logits(recovered, tokens))
    with pytest.raises(AssertionError, match="gone cannot be kept"):
        make_student(grafted, keep(0, 1))


def test_a_model_that_does_not_fit_is_refused() -> None:
    llama, qwen2 = Anatomy(make_model("llama")), Anatomy(make_model("qwen2"))
    other_shape, own_head = (make_student(llama, keep(0, 2)) for _ in range(2))
    other_shape.model.norm.weight = nn.Parameter(torch.ones(8))
    own_head.lm_head.weight = nn.Parameter(torch.ones_like(own_head.lm_head.weight))
    for anatomy, recovered, kept, said in (
        (
            llama,
            make_student(llama, keep(0, 2)),
            (0, 2, 3),
            r"without layer 1: .*num_hidden_layers = 2, .* have 3\. Give",
        ),
        # two with full attention, two with sliding windows
        (qwen2, make_student(qwen2, keep(0, 2)), (2, 3), r"layer_types = \['full_attention', 'sliding_attention'\]"),
        (llama, other_shape, (0, 2), r"do not fit the original model's .*norm\.weight.* Give a model"),
        (llama, own_head, (0, 2), "is tied to another weight in the original model"),
    ):
        with pytest.raises(ModelError, match=said):
            graft(anatomy, recovered, keep(*kept))
