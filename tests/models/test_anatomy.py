"""Layers run one by one, and the head after them, are the model: to the bit, in every kind of family."""

from typing import Any

import pytest
import torch
from torch import nn

from seed.errors import ModelError
from seed.models.anatomy import Anatomy, find_layers
from seed.models.surgery import cast_weights
from tests.interrupting import StoppedError
from tests.models.families import KINDS, compute_logits, make_model, make_tokens


def run_all_layers(anatomy: Anatomy, hidden_BTD: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        for layer in range(anatomy.num_layers):
            hidden_BTD = anatomy.run_layer(layer, hidden_BTD)
    return hidden_BTD


def list_hooks(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", KINDS)
def test_layers_one_by_one_and_the_head_are_the_model_to_the_bit(family: str, dtype: torch.dtype) -> None:
    model = cast_weights(make_model(family), dtype)
    tokens, longer = make_tokens(), make_tokens(1, 30, rng_seed=1)
    logits = compute_logits(model, tokens)
    expected = [Anatomy(model).trace(batch) for batch in (tokens, longer)]
    anatomy = Anatomy(model)
    with torch.no_grad():  # of a model and a shape that were never traced
        assert torch.equal(anatomy.compute_logits(anatomy.run_layers(tokens), tokens), logits)
    for batch, states in ((longer, expected[1]), (tokens, expected[0]), (longer, expected[1])):
        assert len(states) == 5
        for _ in range(2):  # the second time the shape is known
            assert torch.equal(anatomy.embed(batch), states[0])
        assert torch.equal(anatomy.run_layers(batch), states[-1])
        last = run_all_layers(anatomy, anatomy.embed(batch))
        assert torch.equal(last, states[-1])
        with torch.no_grad():
            assert torch.equal(anatomy.compute_logits(last, batch), compute_logits(model, batch))
    assert anatomy.returns_tuple == (family == "falcon")
    assert not list_hooks(model)


def test_states_are_those_before_each_layer_and_after_the_last() -> None:
    model = make_model("llama")
    tokens = make_tokens()
    states = Anatomy(model).trace(tokens)
    with torch.no_grad():
        theirs = model(input_ids=tokens, use_cache=False, output_hidden_states=True).hidden_states
    for ours, expected in zip([*states[:4], model.model.norm(states[4])], theirs, strict=True):
        assert torch.equal(ours, expected)  # the library's last state is behind the norm


def test_what_is_not_wanted_is_not_run_and_hooks_of_others_stay() -> None:
    model = make_model("llama")
    anatomy, tokens = Anatomy(model), make_tokens()
    anatomy.embed(tokens)
    runs: list[str] = []
    for layer in anatomy.layers:
        layer.register_forward_hook(lambda *_: runs.append("layer"))
    model.get_output_embeddings().register_forward_hook(lambda *_: runs.append("head"))
    hooks = list_hooks(model)
    anatomy.embed(tokens)
    assert runs == []
    anatomy.embed(make_tokens(1, 7))  # a new shape: its masks and positions come from a whole forward pass
    assert runs == ["layer"] * 4 + ["head"]
    anatomy.run_layers(tokens)
    assert runs[5:] == ["layer"] * 4
    assert list_hooks(model) == hooks


@pytest.mark.parametrize("family", KINDS)
def test_gradients_flow_through_the_layers_as_through_the_model(family: str) -> None:
    model = make_model(family).requires_grad_(True)
    anatomy, tokens = Anatomy(model), make_tokens()
    with torch.no_grad():
        assert not anatomy.run_layers(tokens).requires_grad
    assert not anatomy.embed(tokens).requires_grad
    hidden = anatomy.run_layers(tokens)
    logits = model(input_ids=tokens, use_cache=False).logits
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad((logits * direction).sum(), list(model.parameters()), allow_unused=True)
    leaf = hidden.detach().requires_grad_(True)
    (anatomy.compute_logits(leaf, tokens) * direction).sum().backward()
    hidden.backward(leaf.grad)
    for (name, weight), wanted in zip(model.named_parameters(), expected, strict=True):
        assert (weight.grad is None) == (wanted is None), name
        if wanted is not None:
            assert torch.allclose(weight.grad, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()) + 1e-9), name


@pytest.mark.parametrize("layer", [0, 3])
def test_nothing_is_left_behind_when_the_model_fails(layer: int) -> None:
    model = make_model("llama")
    anatomy, tokens = Anatomy(model), make_tokens()
    states, layers = anatomy.trace(tokens), anatomy.layers

    def fail(*_: Any) -> None:
        raise StoppedError

    handle = anatomy.layers[layer].mlp.register_forward_pre_hook(fail)
    for run in (anatomy.run_layers, anatomy.trace):
        with pytest.raises(StoppedError):
            run(tokens)
    handle.remove()
    for run in (anatomy.run_layers, anatomy.embed):
        with pytest.raises(IndexError):
            run(tokens + 1000)  # no such tokens
    with pytest.raises(RuntimeError):
        anatomy.compute_logits(states[-1][..., :5], tokens)  # the head fails
    assert anatomy.layers is layers
    assert not list_hooks(model)
    assert torch.equal(anatomy.run_layers(tokens), states[-1])


def test_a_kind_tells_attention_and_size_apart() -> None:
    assert len(Anatomy(make_model("llama")).layer_kinds) == 1
    mixed = Anatomy(make_model("qwen2_moe"))  # layers 1 and 2 are dense, and 0 attends within windows
    kinds = [mixed.layer_kind(layer) for layer in range(4)]
    assert [kind.partition("/")[0] for kind in kinds] == ["sliding_attention", *["full_attention"] * 3]
    assert kinds[1] == kinds[2]
    assert len(mixed.layer_kinds) == len(set(kinds)) == 3


def test_lists_of_layers_that_are_not_plain_are_refused() -> None:
    model = make_model("llama")
    model.model.rotations = nn.ModuleList([nn.Identity() for _ in range(4)])  # granite_swa has as many as rotary bases
    assert find_layers(model) == (model.model, "layers")
    first, second = model.model.layers[0], model.model.layers[1]
    model.model.layers = nn.ModuleList([first, second, first, second])
    with pytest.raises(ModelError, match="called once each"):
        Anatomy(model).trace(make_tokens())
    model.model.more_layers = nn.ModuleList([nn.Linear(1, 1) for _ in range(4)])
    with pytest.raises(ModelError, match="found 2 lists of 4 layers"):
        find_layers(model)
