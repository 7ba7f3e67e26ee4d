"""What layers, neurons and heads are worth is what the papers' formulas give, worked out again with plain loops."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from seed.evaluation.perplexity import logits_of, measure_losses
from seed.models.anatomy import Anatomy
from seed.models.output_projection import Projection
from seed.models.width import find_widths, weight_by_input
from seed.proxy.importance import (
    measure_angular_distances,
    measure_attention_influence,
    measure_block_influence,
    measure_magnitude,
    measure_taylor,
    measure_width_importance,
)
from tests.models.families import compute_logits, make_model
from tests.proxy.streams import draw_stream

STREAM = draw_stream(5, 12, rng_seed=3)  # not a multiple of most micro-batches
UNEVEN = (2, 8)


def cosine(one: Tensor, other: Tensor) -> float:
    """Of two vectors, number by number."""
    pairs = list(zip(one.tolist(), other.tolist(), strict=True))
    lengths = math.sqrt(sum(a * a for a, _ in pairs)) * math.sqrt(sum(b * b for _, b in pairs))
    return sum(a * b for a, b in pairs) / lengths


def trace(anatomy: Anatomy) -> list[Tensor]:
    return anatomy.trace(STREAM.tokens_NT)  # all windows at once


@pytest.mark.parametrize(("family", "micro_batch"), [("llama", 2), ("gpt2", 8)])
def test_block_influence_is_the_mean_turn_of_all_tokens(family: str, micro_batch: int) -> None:
    anatomy = Anatomy(make_model(family))
    states = trace(anatomy)
    found = measure_block_influence(anatomy, STREAM, micro_batch=micro_batch)
    assert len(found) == 4
    for layer, influence in enumerate(found):
        before, after = (states[i].flatten(0, 1) for i in (layer, layer + 1))
        cosines = [cosine(one, other) for one, other in zip(before, after, strict=True)]
        assert len(cosines) == 60
        assert influence == pytest.approx(1 - sum(cosines) / 60, abs=1e-5)
    assert max(found) - min(found) > 1e-3  # they do differ


@pytest.mark.parametrize("micro_batch", UNEVEN)
def test_attention_influence_is_the_mean_turn_from_before_attention_to_before_the_mlp(micro_batch: int) -> None:
    anatomy = Anatomy(make_model("llama"))
    read: list[Tensor] = []  # by the norm before each MLP
    for layer in anatomy.layers:
        layer.get_submodule("post_attention_layernorm").register_forward_pre_hook(lambda _, args: read.append(args[0]))
    states = trace(anatomy)
    after_attention = list(read)
    found = measure_attention_influence(anatomy, STREAM, micro_batch=micro_batch)
    assert len(found) == 4
    for influence, *pair in zip(found, states[:-1], after_attention, strict=True):
        before, after = (state.flatten(0, 1) for state in pair)
        cosines = [cosine(one, other) for one, other in zip(before, after, strict=True)]
        assert influence == pytest.approx(1 - sum(cosines) / 60, abs=1e-5)
    assert max(found) - min(found) > 1e-3


@pytest.mark.parametrize(("num_layers", "micro_batch"), [(1, 2), (2, 8), (4, 2)])
def test_the_angle_over_a_block_is_that_of_last_tokens(num_layers: int, micro_batch: int) -> None:
    anatomy = Anatomy(make_model("llama"))
    states = trace(anatomy)
    found = measure_angular_distances(anatomy, STREAM, num_layers=num_layers, micro_batch=micro_batch)
    assert len(found) == 4 - num_layers + 1
    for first, angle in enumerate(found):
        angles = [
            math.acos(cosine(states[first][row, -1], states[first + num_layers][row, -1])) / math.pi for row in range(5)
        ]
        assert angle == pytest.approx(sum(angles) / 5, abs=1e-5)


def taylor_by_hand(anatomy: Anatomy) -> list[float]:
    """From one gradient of the whole stream's mean loss."""
    named = [
        (layer, weight)
        for layer, module in enumerate(anatomy.layers)
        for weight in module.parameters()
        if weight.ndim > 1
    ]
    for _, weight in named:
        weight.requires_grad_(True)
    logits = anatomy.model(input_ids=STREAM.tokens_NT, use_cache=False).logits[:, :-1]
    chosen = logits.log_softmax(-1).gather(-1, STREAM.tokens_NT[:, 1:, None])
    gradients = torch.autograd.grad(-chosen.sum() / STREAM.num_tokens, [weight for _, weight in named])
    totals = [0.0] * anatomy.num_layers
    for (layer, weight), gradient in zip(named, gradients, strict=True):
        totals[layer] += float((weight.detach() * gradient).abs().sum())
        weight.requires_grad_(False)
    return totals


@pytest.mark.parametrize("micro_batch", UNEVEN)
def test_taylor_is_taken_of_the_whole_streams_gradient(micro_batch: int) -> None:
    anatomy = Anatomy(make_model("llama"))
    expected = taylor_by_hand(anatomy)
    found = measure_taylor(anatomy, STREAM, micro_batch=micro_batch)
    assert found == pytest.approx(expected, rel=1e-4)  # not a sum of absolute values of batches
    assert min(found) > 0


def test_taylor_leaves_the_model_as_it_was_even_when_it_fails() -> None:
    model = make_model("llama")
    anatomy = Anatomy(model)
    names = [name for name, _ in model.named_parameters()]
    trained = {names[0], names[-1], names[3]}
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)
    before = measure_losses(logits_of(model), STREAM, micro_batch=5, device=anatomy.device).sums.tolist()

    def fail(*_: object) -> None:
        raise ArithmeticError

    measure_taylor(anatomy, STREAM, micro_batch=2)
    handle = anatomy.layers[3].register_forward_hook(fail)
    with pytest.raises(ArithmeticError):
        measure_taylor(anatomy, STREAM, micro_batch=2)
    handle.remove()
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == trained
    assert all(weight.grad is None for weight in model.parameters())
    assert measure_losses(logits_of(model), STREAM, micro_batch=5, device=anatomy.device).sums.tolist() == before


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_magnitude_adds_up_matrices_and_neither_norms_nor_biases(family: str) -> None:
    anatomy = Anatomy(make_model(family))
    found = measure_magnitude(anatomy)
    for layer, magnitude in enumerate(found):
        weights = [weight for name, weight in anatomy.layers[layer].named_parameters() if is_matrix(name)]
        assert len(weights) == {"llama": 7, "gpt2": 4}[family]
        assert magnitude == pytest.approx(sum(sum(map(abs, weight.flatten().tolist())) for weight in weights))


def is_matrix(name: str) -> bool:
    return name.endswith(".weight") and "norm" not in name and "ln_" not in name


# ---- width


def measure_by_hand(anatomy: Anatomy, path: str, count: int) -> Iterator[list[float]]:
    """For each layer, the norm over tokens of what each unit adds, one unit at a time."""
    for layer in anatomy.layers:
        reader = layer.get_submodule(path)
        with Projection(module=reader, num_inputs=0, has_bias=False).record_inputs() as inputs:
            compute_logits(anatomy.model, STREAM.tokens_NT)
        read = inputs[0].flatten(0, -2)
        size = read.shape[1] // count
        weight = weight_by_input(reader)
        yield [
            float((read[:, first : first + size] @ weight[first : first + size]).norm())
            for first in range(0, count * size, size)
        ]


@pytest.mark.parametrize(("family", "micro_batch"), [("llama", 2), ("gpt2", 8), ("gemma3_text", 1)])
def test_importance_is_the_norm_of_what_a_unit_adds(family: str, micro_batch: int) -> None:
    anatomy = Anatomy(make_model(family))
    widths = find_widths(anatomy)
    found = measure_width_importance(anatomy, STREAM, micro_batch=micro_batch)
    expected = measure_by_hand(anatomy, widths.mlp_reader, widths.dense.mlp_width)
    for importance, by_hand in zip(found.neurons_LF.tolist(), expected, strict=True):
        assert importance == pytest.approx(by_hand, rel=1e-4)
    if widths.attention_reader is None:
        assert found.heads_LH is None
        return
    assert found.heads_LH is not None
    expected = measure_by_hand(anatomy, widths.attention_reader, widths.dense.num_heads)
    for importance, by_hand in zip(found.heads_LH.tolist(), expected, strict=True):
        assert importance == pytest.approx(by_hand, rel=1e-4)


def test_a_neuron_that_is_loud_but_unheard_goes_before_one_that_is_heard() -> None:
    anatomy = Anatomy(make_model("llama"))
    mlp = anatomy.layers[1].mlp
    mlp.up_proj.weight[7] *= 100
    mlp.down_proj.weight[:, 7] *= 1e-6
    mlp.down_proj.weight[:, 9] *= 100
    neurons = measure_width_importance(anatomy, STREAM, micro_batch=2).neurons_LF[1]
    assert int(neurons.argmin()) == 7
    assert int(neurons.argmax()) == 9
