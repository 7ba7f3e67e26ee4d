"""A grafted model is the recovered one at the original's indices, and leaves the original alone."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from seed.errors import ModelError
from seed.models.anatomy import Anatomy
from seed.models.checkpoint import load_checkpoint
from seed.models.grafting import graft
from seed.models.surgery import cast_weights, make_student
from seed.records import Candidate
from tests.models.families import FAMILIES, compute_logits, make_model, make_tokens, scramble

SUBSETS = ((0, 1, 3), (1, 2, 3), (0, 2), (0, 1, 2))


def keep(*layers: int) -> Candidate:
    return Candidate(num_layers=4, kept_layers=layers)


def recover(anatomy: Anatomy, candidate: Candidate) -> nn.Module:
    """A model of these layers whose weights are all others, as after distillation."""
    return scramble(make_student(anatomy, candidate), rng_seed=1)


def reload(model: nn.Module, directory: Path) -> nn.Module:
    model.save_pretrained(directory)
    return load_checkpoint(directory, device=torch.device("cpu"), dtype=torch.float32)  # weights aligned as others are


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_the_same_layers_is_the_recovered_model_to_the_bit(family: str, tmp_path: Path) -> None:
    anatomy, tokens = Anatomy(make_model(family)), make_tokens()
    before = compute_logits(anatomy.model, tokens)
    for kept in SUBSETS:
        candidate = keep(*kept)
        recovered = reload(recover(anatomy, candidate), tmp_path / candidate.key)
        expected = compute_logits(recovered, tokens)
        grafted = graft(anatomy, recovered, candidate)
        student = make_student(grafted, candidate)
        assert torch.equal(compute_logits(student, tokens), expected), kept
        assert torch.equal(compute_logits(reload(student, tmp_path / "again"), tokens), expected), kept
        assert not torch.equal(expected, compute_logits(make_student(anatomy, candidate), tokens))
        assert grafted.gone_layers == candidate.dropped_layers
    assert torch.equal(compute_logits(anatomy.model, tokens), before)
    assert anatomy.gone_layers == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_grafted_model_computes_what_the_recovered_one_does(family: str) -> None:
    anatomy, tokens = Anatomy(make_model(family)), make_tokens()
    for kept in SUBSETS:
        recovered = recover(anatomy, keep(*kept))
        expected = compute_logits(recovered, tokens)
        theirs = Anatomy(recovered).trace(tokens)
        grafted = graft(anatomy, recovered, keep(*kept))
        states = grafted.trace(tokens)
        assert torch.equal(compute_logits(grafted.model, tokens), expected), kept
        assert len(states) == 5
        for position, layer in enumerate((*kept, 4)):
            assert torch.equal(states[layer], theirs[position]), (kept, layer)
        for layer in grafted.gone_layers:
            assert torch.equal(states[layer], states[layer + 1])
        hidden = grafted.embed(tokens)
        with torch.no_grad():
            for layer in kept:
                hidden = grafted.run_layer(layer, hidden)
            assert torch.equal(grafted.compute_logits(hidden, tokens), expected), kept


@pytest.mark.parametrize(("family", "is_tied"), [("llama", True), ("gpt2", True), ("qwen2", False)])
def test_ties_stay_tied(family: str, is_tied: bool) -> None:
    anatomy = Anatomy(make_model(family))
    model = graft(anatomy, recover(anatomy, keep(0, 2)), keep(0, 2)).model
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == is_tied


def test_the_original_is_neither_changed_nor_shared() -> None:
    model = make_model("llama")
    anatomy = Anatomy(model)
    weights, config = copy.deepcopy(model.state_dict()), copy.deepcopy(model.config.__dict__)
    recovered = recover(anatomy, keep(0, 2))
    grafted = graft(anatomy, recovered, keep(0, 2)).model
    theirs = {weight.data_ptr() for other in (model, recovered) for weight in other.parameters()}
    assert theirs.isdisjoint(weight.data_ptr() for weight in grafted.parameters())
    with torch.no_grad():
        for weight in grafted.parameters():
            weight.zero_()
    assert model.config.__dict__ == config == grafted.config.__dict__
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_gaps_hold_no_weights() -> None:
    anatomy = Anatomy(make_model("llama"))
    recovered = recover(anatomy, keep(0, 2))
    grafted = graft(anatomy, recovered, keep(0, 2)).model
    assert sum(weight.numel() for weight in grafted.parameters()) == sum(w.numel() for w in recovered.parameters())


def test_a_bfloat16_checkpoint_takes_the_types_of_the_original() -> None:
    anatomy = Anatomy(make_model("llama"))
    recovered = cast_weights(recover(anatomy, keep(0, 2)), torch.bfloat16)
    grafted = graft(anatomy, recovered, keep(0, 2)).model
    assert {weight.dtype for weight in grafted.parameters()} == {torch.float32}
    expected = compute_logits(cast_weights(copy.deepcopy(recovered), torch.float32), make_tokens())
    assert torch.equal(compute_logits(grafted, make_tokens()), expected)


def test_a_gap_cannot_be_kept() -> None:
    anatomy = Anatomy(make_model("llama"))
    grafted = graft(anatomy, recover(anatomy, keep(0, 2)), keep(0, 2))
    with pytest.raises(AssertionError, match="gone cannot be kept"):
        make_student(grafted, keep(0, 1))
    make_student(grafted, keep(2))


def test_a_grafted_model_can_be_grafted_into() -> None:
    anatomy, tokens = Anatomy(make_model("llama")), make_tokens()
    grafted = graft(anatomy, recover(anatomy, keep(0, 2, 3)), keep(0, 2, 3))
    recovered = scramble(make_student(grafted, keep(0, 3)), rng_seed=2)
    again = graft(grafted, recovered, keep(0, 3))
    assert again.gone_layers == (1, 2)
    assert torch.equal(compute_logits(again.model, tokens), compute_logits(recovered, tokens))


# ---- what is refused


def test_a_model_of_another_depth_is_refused() -> None:
    anatomy = Anatomy(make_model("llama"))
    with pytest.raises(ModelError, match=r"without layer 1: .*num_hidden_layers = 2, .* have 3\. Give the model"):
        graft(anatomy, make_student(anatomy, keep(0, 2)), keep(0, 2, 3))


def test_layers_of_another_kind_are_refused() -> None:
    anatomy = Anatomy(make_model("qwen2"))  # two with full attention, two with sliding windows
    with pytest.raises(ModelError, match=r"layer_types = \['full_attention', 'sliding_attention'\]"):
        graft(anatomy, make_student(anatomy, keep(0, 2)), keep(2, 3))


def test_weights_of_another_shape_are_refused() -> None:
    anatomy = Anatomy(make_model("llama"))
    recovered = make_student(anatomy, keep(0, 2))
    recovered.model.norm.weight = nn.Parameter(torch.ones(8))
    with pytest.raises(ModelError, match=r"do not fit the original model's .*norm\.weight.* Give a model"):
        graft(anatomy, recovered, keep(0, 2))


def test_a_head_of_its_own_is_refused_where_the_original_ties_it() -> None:
    anatomy = Anatomy(make_model("llama"))
    recovered = make_student(anatomy, keep(0, 2))
    recovered.lm_head.weight = nn.Parameter(torch.ones_like(recovered.lm_head.weight))
    with pytest.raises(ModelError, match=r"is tied to another weight in the original model"):
        graft(anatomy, recovered, keep(0, 2))
