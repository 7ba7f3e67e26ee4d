"""Shapes: what estimates know of a model is measured on the model itself."""

import copy
from pathlib import Path

import pytest
import torch

from seed.models.anatomy import Anatomy
from seed.scoring import memory
from seed.stages.shapes import measure_mlp_width, take_micro_batch
from tests.stages.opened import open_bench


def test_the_widest_projection_is_measured(tmp_path: Path) -> None:
    assert measure_mlp_width(open_bench(tmp_path / "llama").anatomy) == 64
    assert (
        measure_mlp_width(open_bench(tmp_path / "gpt2", family="gpt2").anatomy) == 128
    )  # Conv1D keeps it the other way round


def test_what_training_keeps_grows_with_the_tokens(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    tokens = take_micro_batch(bench)
    per_token, copies = memory.count_kept_bytes(bench.anatomy, tokens, mixed_precision=False)
    # at least what both norms, the projections and the MLP read: float32 numbers, 32 and 64 wide
    assert per_token >= 4 * (3 * 32 + 64)
    assert per_token < 4 * 40 * 64
    assert copies < 4 * 64 * 64  # no weight is kept twice in float32
    matrices = sum(weight.numel() for weight in bench.anatomy.layers[2].parameters() if weight.ndim > 1)
    _, rounded = memory.count_kept_bytes(bench.anatomy, tokens, mixed_precision=True)
    assert rounded == pytest.approx(2 * matrices, rel=0.2)
    assert not any(weight.requires_grad for weight in bench.anatomy.model.parameters())
    stored = Anatomy(copy.deepcopy(bench.anatomy.model).to(torch.bfloat16))
    # a student is trained in float32, whatever the dense model is stored in
    assert memory.count_kept_bytes(stored, tokens, mixed_precision=True)[1] == rounded
    assert {weight.dtype for weight in stored.model.parameters()} == {torch.bfloat16}
