"""Costs are counted before any work: by hand where they can be, infinite where nothing can be swept, refused in time."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from seed.errors import ResourceError
from seed.models.anatomy import Anatomy
from seed.optimize.space import enumerate_candidates
from seed.records import SearchSpace
from seed.scoring import memory
from seed.scoring.refit import count_fit_bytes
from seed.scoring.subsets import count_work
from seed.stages import costs
from seed.stages.costs import (
    Cost,
    Shape,
    Speed,
    describe_shape,
    estimate_cost,
    estimate_peak,
    estimate_sweep,
    measure_mlp_width,
    require_resources,
)
from seed.stages.planning import SearchSettings
from seed.stages.workbench import Workbench
from tests.scoring.opened import CPU
from tests.stages.opened import PROTOCOL, SPACE, make_plan, open_bench

SPEED = Speed(layer=1e-6, head=1e-5, fit=0.25, solve=0.05, num_layers=4)


GPU = Shape(  # TinyLlama's, as the preset has it
    num_layers=22,
    width=2048,
    mlp_width=5632,
    vocabulary=32_000,
    num_params=1_100_048_384,
    layer_params=44_044_288,
    number_bytes=4,
    stored_bytes=4,
    kept_bytes=108_168,
    kept_copies=88_080_384,
    gpu_bytes=80 * 10**9,
    calibration_tokens=16_384,
    validation_tokens=32_768,
    test_tokens=344_064,
    recovery_windows=1427,
)


def estimate(bench: Workbench, *, trials: int = 5, covers_space: bool = False, distill: bool = False) -> Cost:
    plan = make_plan(bench, SearchSettings(), trials=trials, covers_space=covers_space)
    return estimate_cost(describe_shape(bench), bench.protocol, plan, SPEED, distill=distill)


def test_a_sweep_is_the_sum_of_its_counted_parts(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    work = count_work(enumerate_candidates(SPACE), closed_form=True)
    calibration, validation = 768, 12 * 32
    assert estimate_sweep(describe_shape(bench), SPACE, SPEED) == pytest.approx(
        work.plain_layers * validation * 1e-6
        + work.run_layers * ((calibration + validation) * 1e-6 + 0.25)
        + work.solved_layers * 0.05
        + 10 * validation * 1e-5
    )


def test_a_sweep_counted_by_hand(tmp_path: Path) -> None:
    last = SearchSpace(num_layers=4, droppable_layers=(3,), min_dropped=1, max_dropped=1)
    # 0 and 1 are as in the dense model, 2 stands before the end
    assert estimate_sweep(describe_shape(open_bench(tmp_path)), last, SPEED) == pytest.approx(
        2 * 384e-6 + (1152e-6 + 0.25 + 0.05) + 384e-5
    )


def test_a_family_without_closed_form_has_no_sweep(tmp_path: Path) -> None:
    bench = open_bench(tmp_path, family="gemma2")
    assert bench.gains is None
    assert estimate_sweep(describe_shape(bench), SPACE, SPEED) == math.inf
    assert describe_shape(bench).mlp_width == 0


def test_a_space_beyond_counting_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = open_bench(tmp_path)
    huge = SearchSpace(num_layers=80, droppable_layers=tuple(range(80)), min_dropped=1, max_dropped=20)
    assert huge.size > 10**18
    assert estimate_sweep(describe_shape(bench), huge, SPEED) == math.inf
    monkeypatch.setattr(costs, "COUNTED_SETS", 10)
    assert math.isfinite(estimate_sweep(describe_shape(bench), SPACE, SPEED))
    monkeypatch.setattr(costs, "COUNTED_SETS", 9)
    assert estimate_sweep(describe_shape(bench), SPACE, SPEED) == math.inf


def test_the_widest_projection_is_measured(tmp_path: Path) -> None:
    assert measure_mlp_width(open_bench(tmp_path / "llama").anatomy) == 64
    assert (
        measure_mlp_width(open_bench(tmp_path / "gpt2", family="gpt2").anatomy) == 128
    )  # Conv1D keeps it the other way round


def test_parts_are_timed(tmp_path: Path) -> None:
    for family, has_fit in (("llama", True), ("gpt2", True), ("gemma2", False)):
        bench = open_bench(tmp_path / family, family=family)
        for fit_width in (None, 16):
            shape = describe_shape(bench)
            speed = costs.time_parts(bench.anatomy, shape, costs.take_micro_batch(bench), fit_width=fit_width)
            assert 0 < speed.layer < 0.1
            assert 0 < speed.head < 0.1
            assert (speed.fit > 0) == has_fit
            assert speed.forward == pytest.approx(4 * speed.layer + speed.head)


def test_a_search_that_is_swept_costs_the_sweep(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    sweep = estimate_sweep(describe_shape(bench), SPACE, SPEED)
    assert estimate(bench, covers_space=True).search_seconds == pytest.approx(sweep)
    one_walk = (768 + 384) * SPEED.forward + 4 * (0.25 + 0.05)
    assert estimate(bench, trials=5).search_seconds == pytest.approx(5 * one_walk)
    assert estimate(bench, trials=10).search_seconds == pytest.approx(10 * one_walk)


def test_a_climb_comes_on_top(tmp_path: Path) -> None:
    bench = open_bench(tmp_path, rung="short_distillation")
    swept, searched = (estimate(bench, covers_space=covers).search_seconds for covers in (True, False))
    assert swept - searched == pytest.approx(estimate_sweep(describe_shape(bench), SPACE, SPEED))
    short = (costs.TRAINING_FORWARDS * 2 * 256 + 4 * 384) * SPEED.forward
    one_walk = (768 + 384) * SPEED.forward + 4 * (0.25 + 0.05)
    assert searched == pytest.approx(5 * (short + one_walk))
    other = estimate(open_bench(tmp_path / "other", family="gemma2", rung="short_distillation"))
    assert other.search_seconds == pytest.approx(5 * short)


def test_finals_cost_only_where_there_are_some(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    without, whole = estimate(bench), estimate(bench, distill=True)
    assert (without.num_finals, without.distill_seconds) == (0, 0.0)
    assert whole.num_finals == 5  # six are wanted, five are scored
    assert whole.distill_seconds > 0
    assert whole.search_seconds == without.search_seconds
    assert whole.disk_bytes > without.disk_bytes
    assert whole.memory_bytes > without.memory_bytes


def test_memory_is_told_with_its_parts(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    params = sum(weight.numel() for weight in bench.anatomy.model.parameters())
    states = 4 * (5 * (2 * 768 + 384) * 32 + 4 * (768 + 384) * (32 + 64)) + 4 * count_fit_bytes(64)
    cost = estimate(bench)
    assert cost.memory_bytes == 4 * params + states
    assert "L = 4, C = 768, V = 384, D = 32, F = 64" in cost.memory_formula
    assert estimate(bench, distill=True).memory_bytes == cost.memory_bytes + 5 * 20 * params
    low_rank = open_bench(tmp_path / "low", lora_rank=4)
    assert estimate(low_rank, distill=True).memory_bytes == cost.memory_bytes + 5 * 8 * params
    no_walk = estimate(open_bench(tmp_path / "gemma2", family="gemma2"))
    assert "states of the sweep" not in no_walk.memory_formula


def test_a_search_without_room_is_refused(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    cost = estimate(bench)
    require_resources(cost, root=tmp_path, device=CPU)
    with pytest.raises(ResourceError, match=r"of memory, but cpu has .*--lora-rank 16"):
        require_resources(replace(cost, memory_bytes=10**18), root=tmp_path, device=CPU)
    with pytest.raises(ResourceError, match="this search needs about"):
        require_resources(replace(cost, disk_bytes=10**18), root=tmp_path, device=CPU)
    require_resources(cost, root=tmp_path / "not" / "yet" / "there", device=CPU)


def test_states_past_what_is_stored_take_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = open_bench(tmp_path, rung="short_distillation")
    stored = estimate(bench).disk_bytes
    monkeypatch.setattr(costs, "STORED_BYTES", 10)
    assert stored - estimate(bench).disk_bytes == 8 * 64 * 32 * 4  # two steps of four windows
    assert msgspec.structs.asdict(bench.protocol)["short_steps"] == 2


def test_states_past_what_is_stored_are_computed_in_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = open_bench(tmp_path, rung="short_distillation")
    stored = estimate(bench).search_seconds
    monkeypatch.setattr(costs, "STORED_BYTES", 10)
    assert estimate(bench).search_seconds - stored == pytest.approx(5 * 2 * 256 * SPEED.forward)


def test_memory_of_a_gpu_counted_by_hand() -> None:
    protocol = msgspec.structs.replace(
        PROTOCOL,
        window_tokens=2048,
        space=SearchSpace(num_layers=22, droppable_layers=tuple(range(22)), min_dropped=1, max_dropped=7),
    )
    dense, logits = 4 * 1_100_048_384, 6 * 4 * 2048 * 32_000
    peak = estimate_peak(GPU, protocol, trains=True, climbs=False, num_dropped=2)
    left = 1_100_048_384 - 2 * 44_044_288
    training = 16 * left + 20 * (2048 * 108_168 + 88_080_384)
    assert peak.num_bytes == dense + training + logits
    assert "20 layers" in peak.describe(in_detail=True)
    assert peak.remark
    again = estimate_peak(replace(GPU, gpu_bytes=24 * 10**9), protocol, trains=True, climbs=False, num_dropped=2)
    inputs = 20 * 2048 * 2048 * 4
    assert again.num_bytes == dense + 16 * left + inputs + 2048 * 108_168 + 88_080_384 + logits < 24e9
    assert "run again" in again.describe(in_detail=True)
    largest = estimate_peak(GPU, protocol, trains=True, climbs=False)
    assert largest.num_bytes - peak.num_bytes == 16 * 44_044_288 + 2048 * 108_168 + 88_080_384
    swept = estimate_peak(GPU, protocol, trains=False, climbs=False)
    states = 4 * 23 * (2 * 16_384 + 32_768) * 2048
    siblings = 4 * (16_384 + 32_768) * (2048 + 5632) + count_fit_bytes(5632)
    assert swept.num_bytes == dense + states + siblings + logits < 24e9
    assert not swept.remark
    low_rank = estimate_peak(
        GPU, msgspec.structs.replace(protocol, lora_rank=16), trains=True, climbs=False, num_dropped=2
    )
    assert peak.num_bytes - low_rank.num_bytes == (16 - 8) * left or low_rank.num_bytes == swept.num_bytes


def test_what_training_keeps_grows_with_the_tokens(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    tokens = costs.take_micro_batch(bench)
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


def test_multiply_adds_are_counted_by_the_same_formulas(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    shape = describe_shape(bench)
    plain, precise = costs.count_parts(bench.anatomy, shape, window_tokens=64)
    matrices = sum(weight.numel() for weight in bench.anatomy.layers[0].parameters() if weight.ndim > 1)
    assert plain.layer == matrices + 64 * 32
    assert plain.head == 257 * 32
    assert plain.fit == 768 * 64**2
    assert precise.fit == pytest.approx(6 * 64**3 / 3)
    assert (precise.layer, precise.head) == (0, 0)
    assert estimate_sweep(shape, SPACE, plain) > estimate_sweep(shape, SPACE, precise) > 0
