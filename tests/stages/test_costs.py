"""Costs are counted before any work: by hand where they can be, infinite where nothing can be swept, refused in time."""

import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from seed.errors import ResourceError
from seed.optimize.space import enumerate_candidates
from seed.records import SearchSpace
from seed.scoring.refit import count_fit_bytes
from seed.scoring.subsets import count_work
from seed.stages import costs
from seed.stages.costs import (
    Cost,
    Speed,
    estimate_cost,
    estimate_sweep,
    require_resources,
)
from seed.stages.settings import SearchSettings
from seed.stages.shapes import describe_shape, take_micro_batch
from seed.stages.workbench import Workbench
from tests.scoring.opened import CPU
from tests.stages.opened import SPACE, make_plan, open_bench

SPEED = Speed(layer=1e-6, head=1e-5, fit=0.25, solve=0.05, num_layers=4)


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


def test_parts_are_timed(tmp_path: Path) -> None:
    for family, has_fit in (("llama", True), ("gpt2", True), ("gemma2", False)):
        bench = open_bench(tmp_path / family, family=family)
        for fit_width in (None, 16):
            shape = describe_shape(bench)
            speed = costs.time_parts(bench.anatomy, shape, take_micro_batch(bench), fit_width=fit_width)
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
