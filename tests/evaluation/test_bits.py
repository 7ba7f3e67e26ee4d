"""Weights of fewer bits: what they weigh, and what is left of the numbers."""

import copy

import pytest
import torch
from torch import nn

from seed.evaluation.bits import pack_weights
from tests.conftest import make_model


def fill(weight: nn.Parameter, rows: torch.Tensor) -> None:
    with torch.no_grad():
        weight.copy_(rows)


def test_eight_bits_keep_whole_numbers_and_four_round_them_to_sixteen_levels() -> None:
    model = nn.Linear(32, 2)
    rows = torch.stack([torch.arange(32) - 127.0, torch.linspace(-8, 7, 32)])
    fill(model.weight, rows)
    bias = model.bias.clone()
    # 32 bytes and a scale of 2 for each row; the bias as it is stored
    assert pack_weights(model, bits=8, stored_dtype=torch.bfloat16) == 2 * 34 + 2 * 2
    assert torch.equal(model.weight[0], rows[0])
    assert pack_weights(model, bits=4, stored_dtype=torch.float32) == 2 * 18 + 2 * 4
    assert set(model.weight[1].round().tolist()) == set(range(-8, 8))
    assert torch.equal(model.bias, bias)


def test_tied_weights_count_once_and_what_fits_no_block_stays() -> None:
    model = nn.Module()
    model.table, model.head, model.odd = nn.Embedding(3, 64), nn.Linear(64, 3, bias=False), nn.Linear(33, 1, bias=False)
    model.head.weight = model.table.weight
    odd = model.odd.weight.clone()
    assert pack_weights(model, bits=8, stored_dtype=torch.bfloat16) == 3 * 2 * 34 + 33 * 2
    assert torch.equal(model.odd.weight, odd)
    assert model.head.weight is model.table.weight


def test_gpt2_is_packed_along_what_an_output_reads() -> None:
    model = make_model("gpt2", num_layers=1)
    layer = model.transformer.h[0].mlp.c_fc  # inputs by outputs
    fill(layer.weight, torch.ones(32, 1) * torch.arange(1.0, 129.0))  # each output has a size of its own
    expected = layer.weight.clone()
    pack_weights(model, bits=4, stored_dtype=torch.float32)
    assert torch.allclose(layer.weight, expected, rtol=0.13)  # 7/8 of the largest is the next level
    assert (layer.weight.std(0) == 0).all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_more_bits_lie_nearer(family: str) -> None:
    model = make_model(family, num_layers=2)
    tokens = torch.arange(64)[None]
    logits, distances, sizes = model(tokens).logits, [], []
    for bits in (8, 5, 4):
        packed = copy.deepcopy(model)
        sizes.append(pack_weights(packed, bits=bits, stored_dtype=torch.float32))
        distances.append(float((packed(tokens).logits - logits).norm() / logits.norm()))
    assert 0 < distances[0] < distances[1] < distances[2]
    assert distances[0] < 0.05
    assert sizes[0] > sizes[1] > sizes[2]
