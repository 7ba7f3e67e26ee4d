"""Layers run one by one, and the head after them, are the model: to the bit, in every family."""

import pytest
import torch
from torch import nn

from seed.errors import ModelError
from seed.models.anatomy import Anatomy, find_layers
from seed.models.surgery import cast_weights
from tests.models.families import FAMILIES, compute_logits, make_model, make_tokens


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


# ---- no further than wanted


def list_hooks(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_and_the_last_states_are_those_of_a_trace_to_the_bit(family: str, dtype: torch.dtype) -> None:
    model = cast_weights(make_model(family), dtype)
    tokens, longer = make_tokens(), make_tokens(1, 30, rng_seed=1)
    expected = [Anatomy(model).trace(batch) for batch in (tokens, longer)]
    logits = compute_logits(model, tokens)
    anatomy = Anatomy(model)
    assert torch.equal(anatomy.run_layers(longer), expected[1][-1])  # of a shape that was never traced
    for batch, states in ((tokens, expected[0]), (longer, expected[1]), (tokens, expected[0])):
        assert torch.equal(anatomy.embed(batch), states[0])
        assert torch.equal(anatomy.embed(batch), states[0])  # now that the shape is known
        assert torch.equal(anatomy.run_layers(batch), states[-1])
        assert torch.equal(run_all_layers(anatomy, anatomy.embed(batch)), states[-1])
    assert not list_hooks(model)
    assert torch.equal(compute_logits(model, tokens), logits)


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_logits_follow_from_states_of_a_model_that_was_never_traced(family: str) -> None:
    model = make_model(family)
    anatomy, tokens = Anatomy(model), make_tokens()
    with torch.no_grad():
        assert torch.equal(anatomy.compute_logits(anatomy.run_layers(tokens), tokens), compute_logits(model, tokens))


def count_runs(model: nn.Module, layers: nn.ModuleList) -> dict[str, int]:
    """Count, from now on, how often the layers and the head run."""
    counts = {"layers": 0, "head": 0}

    def count(name: str) -> None:
        counts[name] += 1

    for layer in layers:
        layer.register_forward_hook(lambda *_: count("layers"))
    model.get_output_embeddings().register_forward_hook(lambda *_: count("head"))
    return counts


def test_what_is_not_wanted_is_not_run() -> None:
    model = make_model("llama")
    anatomy, tokens = Anatomy(model), make_tokens()
    anatomy.embed(tokens)
    counts = count_runs(model, anatomy.layers)
    anatomy.embed(tokens)
    assert counts == {"layers": 0, "head": 0}
    anatomy.embed(make_tokens(1, 7))  # a new shape: its masks and positions come from a whole forward pass
    assert counts == {"layers": 4, "head": 1}
    anatomy.run_layers(tokens)
    assert counts["head"] == 1
    assert counts["layers"] == 8


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_flow_through_the_layers_as_through_the_model(family: str) -> None:
    model = make_model(family).requires_grad_(True)
    anatomy, tokens = Anatomy(model), make_tokens()
    hidden = anatomy.run_layers(tokens)
    assert hidden.requires_grad
    weights = {name: weight for name, weight in model.named_parameters() if "layers" in name or ".h." in name}
    logits = model(input_ids=tokens, use_cache=False).logits
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(logits.shape, generator=generator)
    expected = torch.autograd.grad((logits * direction).sum(), list(model.parameters()), allow_unused=True)
    leaf = hidden.detach().requires_grad_(True)
    (anatomy.compute_logits(leaf, tokens) * direction).sum().backward()
    hidden.backward(leaf.grad)
    for (name, weight), wanted in zip(model.named_parameters(), expected, strict=True):
        assert (weight.grad is None) == (wanted is None), name
        if wanted is not None:
            assert torch.allclose(weight.grad, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()) + 1e-9), name
    assert all(weight.grad is not None for weight in weights.values()) or "moe" in family or family == "deepseek_v3"


def test_states_carry_no_gradient_where_there_is_none() -> None:
    anatomy, tokens = Anatomy(make_model("llama").requires_grad_(True)), make_tokens()
    with torch.no_grad():
        assert not anatomy.run_layers(tokens).requires_grad
    assert not anatomy.embed(tokens).requires_grad


class BrokenError(Exception):
    """Stands for whatever goes wrong inside a model."""


@pytest.mark.parametrize("layer", [0, 3])
def test_no_hook_stays_when_the_model_fails(layer: int) -> None:
    model = make_model("llama")
    anatomy, tokens = Anatomy(model), make_tokens()
    states = anatomy.trace(tokens)

    def fail(*_: object) -> None:
        raise BrokenError

    handle = anatomy.layers[layer].mlp.register_forward_pre_hook(fail)
    with pytest.raises(BrokenError):
        anatomy.run_layers(tokens)
    with pytest.raises(BrokenError):
        anatomy.trace(tokens)
    handle.remove()
    assert not list_hooks(model)
    with pytest.raises(IndexError):
        anatomy.run_layers(tokens + 1000)  # no such tokens
    with pytest.raises(IndexError):
        anatomy.embed(tokens + 1000)
    assert not list_hooks(model)
    assert torch.equal(anatomy.run_layers(tokens), states[-1])


def test_hooks_of_others_stay() -> None:
    model = make_model("llama")
    anatomy, tokens = Anatomy(model), make_tokens()
    anatomy.trace(tokens)
    seen: list[int] = []
    handle = anatomy.layers[0].register_forward_pre_hook(lambda *_: seen.append(0))
    anatomy.embed(tokens)
    anatomy.run_layers(tokens)
    assert seen == [0, 0]
    assert list_hooks(model) == ["model.layers.0"]
    handle.remove()


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


def test_two_lists_of_layers_are_refused() -> None:
    model = make_model("llama")
    assert find_layers(model) == (model.model, "layers")
    model.model.rotations = nn.ModuleList([nn.Identity() for _ in range(4)])  # granite_swa has as many as rotary bases
    assert find_layers(model) == (model.model, "layers")
    model.model.more_layers = nn.ModuleList([nn.Linear(1, 1) for _ in range(4)])
    with pytest.raises(ModelError, match="found 2 lists of 4 layers"):
        find_layers(model)


def test_layers_that_are_called_twice_are_refused() -> None:
    model = make_model("llama")
    first, second = model.model.layers[0], model.model.layers[1]
    model.model.layers = nn.ModuleList([first, second, first, second])
    with pytest.raises(ModelError, match="called once each"):
        Anatomy(model).trace(make_tokens())
