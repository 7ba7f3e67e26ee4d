"""Layers run one by one, and the head after them, are the model: to the bit, in every family."""

import pytest
import torch
from torch import nn

from seed.errors import ModelError
from seed.models.anatomy import Anatomy, find_layers, record_output
from tests.models.families import compute_logits, make_model, make_tokens

FAMILIES = ("llama", "gpt2", "qwen2", "gemma2", "bloom", "falcon", "mpt", "opt", "granite", "mixtral", "gpt_neo")


def run_all_layers(anatomy: Anatomy, hidden_BTD: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        for layer in range(anatomy.num_layers):
            hidden_BTD = anatomy.run_layer(layer, hidden_BTD)
    return hidden_BTD


@pytest.mark.parametrize("family", FAMILIES)
def test_running_every_layer_and_the_head_reproduces_the_logits_to_the_bit(family: str) -> None:
    model = make_model(family)
    anatomy = Anatomy(model)
    tokens = make_tokens()
    states = anatomy.trace(tokens)
    last = run_all_layers(anatomy, states[0])
    assert torch.equal(last, states[-1])
    with torch.no_grad():
        logits = anatomy.compute_logits(last, tokens)
    assert torch.equal(logits, compute_logits(model, tokens))


@pytest.mark.parametrize("family", ["bloom", "falcon", "mpt"])
def test_these_families_do_return_tuples(family: str) -> None:
    anatomy = Anatomy(make_model(family))
    anatomy.trace(make_tokens())
    assert anatomy.returns_tuple


def test_states_are_those_before_each_layer_and_after_the_last() -> None:
    model = make_model("llama")
    tokens = make_tokens()
    states = Anatomy(model).trace(tokens)
    with torch.no_grad():
        theirs = model(input_ids=tokens, use_cache=False, output_hidden_states=True).hidden_states
    assert len(states) == 5
    for ours, expected in zip(states[:4], theirs[:4], strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(model.model.norm(states[4]), theirs[4])  # the library's last state is behind the norm


def test_batches_of_several_shapes_can_be_traced_and_run_in_turn() -> None:
    model = make_model("qwen2")
    anatomy = Anatomy(model)
    batches = [make_tokens(2, 24), make_tokens(1, 24, rng_seed=1), make_tokens(2, 11, rng_seed=2)]
    firsts = [anatomy.trace(tokens)[0] for tokens in batches]
    for tokens, first in zip(batches, firsts, strict=True):
        logits = anatomy.compute_logits(run_all_layers(anatomy, first), tokens)
        assert torch.equal(logits, compute_logits(model, tokens))


def test_nothing_is_left_behind_on_the_model() -> None:
    model = make_model("llama")
    anatomy = Anatomy(model)
    layers = model.model.layers
    tokens = make_tokens()
    states = anatomy.trace(tokens)
    anatomy.compute_logits(states[-1], tokens)
    with pytest.raises(RuntimeError):
        anatomy.compute_logits(states[-1][..., :5], tokens)  # the head fails; the layers come back all the same
    assert model.model.layers is layers
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_a_kind_tells_attention_and_size_apart() -> None:
    llama = Anatomy(make_model("llama"))
    assert len({llama.layer_kind(layer) for layer in range(4)}) == 1
    qwen2 = Anatomy(make_model("qwen2"))
    kinds = [qwen2.layer_kind(layer) for layer in range(4)]
    assert kinds[0] == kinds[1] != kinds[2] == kinds[3]
    assert kinds[0].startswith("full_attention")
    assert kinds[2].startswith("sliding_attention")
    mixed = Anatomy(make_model("qwen2_moe"))  # layers 1 and 2 are dense; 0 slides
    kinds = [mixed.layer_kind(layer) for layer in range(4)]
    assert kinds[1] == kinds[2]
    assert len(set(kinds)) == 3


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.{}.mlp.down_proj"),
        ("gpt2", "transformer.h.{}.mlp.c_proj"),
        ("opt", "model.decoder.layers.{}.fc2"),
        ("gpt_neox", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
        ("bloom", "transformer.h.{}.mlp.dense_4h_to_h"),
        ("mpt", "transformer.blocks.{}.ffn.down_proj"),
        ("gpt_neo", "transformer.h.{}.mlp.c_proj"),
    ],
)
def test_the_projection_that_writes_into_the_residual_stream_is_found(family: str, name: str) -> None:
    model = make_model(family)
    anatomy = Anatomy(model)
    for layer in range(4):
        assert anatomy.mlp_output(layer) is model.get_submodule(name.format(layer))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_a_layer_of_experts_has_no_such_projection(family: str) -> None:
    assert Anatomy(make_model(family)).mlp_output(0) is None


def test_two_lists_of_layers_are_refused() -> None:
    model = make_model("llama")
    assert find_layers(model) == (model.model, "layers")
    model.model.more_layers = nn.ModuleList([nn.Identity() for _ in range(4)])
    with pytest.raises(ModelError, match="found 2 lists of 4 layers"):
        find_layers(model)


def test_layers_that_are_called_twice_are_refused() -> None:
    model = make_model("llama")
    first, second = model.model.layers[0], model.model.layers[1]
    model.model.layers = nn.ModuleList([first, second, first, second])
    with pytest.raises(ModelError, match="called once each"):
        Anatomy(model).trace(make_tokens())


def test_outputs_are_recorded_while_the_block_runs_only() -> None:
    layer = nn.Linear(3, 2)
    sink: list[torch.Tensor] = []
    inputs = torch.ones(1, 3)
    with record_output(layer, sink):
        expected = layer(inputs)
    layer(inputs)
    assert len(sink) == 1
    assert torch.equal(sink[0], expected)
    assert not sink[0].requires_grad
