"""Costs are counted before any work: by hand where they can be, infinite where nothing can be swept, refused in time."""

import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from seed.config import StudyConfig
from seed.errors import ResourceError
from seed.optimize.space import drop_layers, enumerate_candidates
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
from seed.stages.shapes import describe_shape, take_micro_batch
from seed.stages.workbench import Workbench
from tests.scoring.opened import CPU
from tests.stages.opened import SPACE, make_plan, open_bench

SPEED = Speed(layer=1e-6, head=1e-5, fit=0.25, solve=0.05, step=1e-3, num_layers=4)
UNRECOVERED_SINGLES = 9 * 384e-6 + 4 * 384e-5  # 0 1 2, 3 behind 0 1, 2 3 behind 0, 1 2 3; and each one's head


def estimate(bench: Workbench, *, trials: int = 5, covers_space: bool = False, distill: bool = False) -> Cost:
    plan = make_plan(bench, StudyConfig(), trials=trials, covers_space=covers_space)
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
            assert 0 < speed.step < 1
            assert (speed.fit > 0) == has_fit
            assert speed.forward == pytest.approx(4 * speed.layer + speed.head)


def price_singles(bench: Workbench) -> float:
    singles = [drop_layers(4, [layer]) for layer in (3, 2, 1, 0)]
    return costs.price_work(count_work(singles, closed_form=True), describe_shape(bench), SPEED)


def test_a_search_that_is_swept_costs_the_sweep(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    sweep = estimate_sweep(describe_shape(bench), SPACE, SPEED)
    assert estimate(bench, covers_space=True).search_seconds == pytest.approx(sweep + UNRECOVERED_SINGLES)


def test_what_is_scored_beside_the_trials_is_counted(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    one_walk = (768 + 384) * SPEED.forward + 4 * (0.25 + 0.05)
    beside = UNRECOVERED_SINGLES + price_singles(bench) + 2 * one_walk  # and a rival's pick at both depths
    assert estimate(bench, trials=5).search_seconds == pytest.approx(5 * one_walk + beside)
    assert estimate(bench, trials=10).search_seconds == pytest.approx(10 * one_walk + beside)
    assert estimate(bench, trials=3).search_seconds == pytest.approx(3 * one_walk)  # fewer than layers: nothing beside


def test_latencies_are_counted(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    run = 8 * SPEED.forward + 4 * SPEED.step
    assert estimate(bench).latency_seconds == pytest.approx(2 * 2 * (3 + 1) * run)
    many = estimate(open_bench(tmp_path / "many", latency_batch=1000)).latency_seconds
    assert many == pytest.approx(2 * 2 * (3 + 1) * 1000 * 12 * SPEED.forward)
    own = open_bench(tmp_path / "own", latency_command="time.sh", latency_batch=10**9)
    assert estimate(own).latency_seconds == 0
    assert estimate(own).memory_bytes == estimate(bench).memory_bytes


def test_a_climb_comes_on_top(tmp_path: Path) -> None:
    bench = open_bench(tmp_path, rung="short_distillation")
    swept, searched = (estimate(bench, covers_space=covers).search_seconds for covers in (True, False))
    sweep = estimate_sweep(describe_shape(bench), SPACE, SPEED)
    assert swept - searched == pytest.approx(sweep - price_singles(bench))
    short = (costs.TRAINING_FORWARDS * 2 * 256 + 4 * 384) * SPEED.forward
    one_walk = (768 + 384) * SPEED.forward + 4 * (0.25 + 0.05)
    assert searched == pytest.approx(5 * (short + one_walk) + UNRECOVERED_SINGLES + price_singles(bench))
    other = estimate(open_bench(tmp_path / "other", family="gemma2", rung="short_distillation"))
    assert other.search_seconds == pytest.approx(5 * short + 5 / 4 * UNRECOVERED_SINGLES)


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
    update = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))  # of rank 1: q and o, k and v, three of the MLP
    assert estimate(low_rank, distill=True).memory_bytes == cost.memory_bytes + 5 * (8 * params + 20 * 4 * update)
    no_walk = estimate(open_bench(tmp_path / "gemma2", family="gemma2"))
    assert "states of the sweep" not in no_walk.memory_formula


def test_a_search_without_room_is_refused(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    cost = estimate(bench)
    require_resources(cost, root=tmp_path, free_bytes=10**9, device="cpu")
    with pytest.raises(ResourceError, match=r"of memory, but cpu has .*\. Lower --calibration-tokens and"):
        require_resources(replace(cost, memory_bytes=10**18), root=tmp_path, free_bytes=10**9, device="cpu")
    many = estimate(open_bench(tmp_path / "many", latency_batch=10**9))
    with pytest.raises(ResourceError, match=r"of memory, but cpu has .*\. Lower --latency-batch and --prompt-tokens"):
        require_resources(many, root=tmp_path, free_bytes=10**9, device="cpu")
    training = estimate(open_bench(tmp_path / "low", lora_rank=10**8), distill=True)
    with pytest.raises(ResourceError, match=r"of memory, but cpu has .*\. Lower --lora-rank"):
        require_resources(training, root=tmp_path, free_bytes=10**9, device="cpu")
    with pytest.raises(ResourceError, match="this search needs about"):
        require_resources(replace(cost, disk_bytes=10**18), root=tmp_path, free_bytes=10**9, device="cpu")
    require_resources(cost, root=tmp_path / "not" / "yet" / "there", free_bytes=10**18)


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


def test_steps_are_told_as_they_will_be(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)  # steps of 256 tokens
    for asked, told in (
        (200, "5 models distilled for 256 tokens (1 step of 256, the nearest to 200) each, "),
        (256, "5 models distilled for 256 tokens (1 step of 256) each, "),
        (10_000, "5 models distilled for 9,984 tokens (39 steps of 256, the nearest to 10,000) each, "),
    ):
        plan = make_plan(bench, StudyConfig(), trials=5, covers_space=False)
        plan = msgspec.structs.replace(plan, distill_tokens=asked)
        cost = estimate_cost(describe_shape(bench), bench.protocol, plan, SPEED, distill=True)
        said = costs.describe_plan(bench.protocol, plan, cost)
        assert told in said[0]
        assert ("give --distill-tokens 2,560 or more" in said[1]) == (asked < 2560)


def test_times_are_the_best_of_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy now and then tells the same as a quiet one."""
    clock, calls = [0.0], [0]

    def run() -> torch.Tensor:
        calls[0] += 1
        clock[0] += 0.5 if calls[0] % 3 else 0.01
        return torch.zeros(1)

    monkeypatch.setattr(costs.time, "perf_counter", lambda: clock[0])
    found = costs._time_in_turns({"layer": run, "head": run}, CPU)
    assert found == {"layer": pytest.approx(0.01), "head": pytest.approx(0.01)}


@pytest.mark.parametrize(("load", "is_told"), [(0.1, False), (50.0, True)])
def test_a_busy_machine_is_told(load: float, is_told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs.os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(costs.os, "cpu_count", lambda: 2)
    assert (costs.describe_load() is not None) == is_told
    assert not is_told or "busy (load 50.0 on 2 cores)" in str(costs.describe_load())
