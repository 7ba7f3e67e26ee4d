"""Importance is what the docstring says, worked out again, and it keeps what matters."""

from collections.abc import Iterator

import pytest
import torch

from seed.models.anatomy import Anatomy
from seed.models.output_projection import Projection
from seed.models.width import find_widths, weight_by_input
from seed.proxy.width_order import measure_width_importance
from tests.models.families import compute_logits, make_model, make_tokens
from tests.proxy.streams import draw_stream

STREAM = draw_stream(5, 12, rng_seed=3)  # not a multiple of most micro-batches


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


def test_measuring_leaves_no_hook_and_no_gradient() -> None:
    anatomy = Anatomy(make_model("llama"))
    before = compute_logits(anatomy.model, make_tokens())
    measure_width_importance(anatomy, STREAM, micro_batch=2)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in anatomy.model.modules())
    assert all(parameter.grad is None for parameter in anatomy.model.parameters())
    assert torch.equal(compute_logits(anatomy.model, make_tokens()), before)
