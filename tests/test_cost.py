"""Costs are counted before any work: by hand where they can be, infinite where nothing can be swept, refused in time."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from seed import cost, protocols
from seed.config import StudyConfig
from seed.cost import Cost, Estimator, Memory, Shape
from seed.distillation import memory
from seed.errors import ResourceError
from seed.models.anatomy import Anatomy
from seed.optimize.space import drop_layers, enumerate_candidates
from seed.proxy.closed_form import count_fit_bytes
from seed.proxy.subset_walker import count_work
from seed.records import SearchSpace
from seed.sessions import Session
from seed.speed import Speed
from tests.stages.opened import PROTOCOL, SPACE, make_plan, open_session

SPEED = Speed(layer=1e-6, head=1e-5, recovery=(0.5, 0.0), step=1e-3, num_layers=4)
TOKENS = 768  # of each stream and for calibration
UNRECOVERED_SINGLES = 9 * TOKENS * 1e-6 + 4 * TOKENS * 1e-5  # 0 1 2, 3 behind 0 1, 2 3 behind 0, 1 2 3; and their heads
DEPTHS = 2  # of each, greedy removal walks once
GPU = Shape(  # TinyLlama's, as the preset has it
    num_layers=22,
    width=2048,
    mlp_width=5632,
    vocabulary=32_000,
    num_params=1_100_048_384,
    layer_params=44_044_288,
    update_params=22 * (4 * 2048 + 2 * (2048 + 256) + 3 * (2048 + 5632)),
    cache_bytes=22 * 2 * 256 * 4,
    number_bytes=4,
    stored_bytes=4,
    kept_bytes=108_168,
    kept_copies=88_080_384,
    gpu_bytes=80 * 10**9,
)
GPU_PROTOCOL = msgspec.structs.replace(
    PROTOCOL,
    window_tokens=2048,
    calibration_tokens=16_384,
    streams={name: msgspec.structs.replace(one, tokens=32_768) for name, one in PROTOCOL.streams.items()},
    space=SearchSpace(num_layers=22, droppable_layers=tuple(range(22)), min_dropped=2, max_dropped=7),
)


def measure(session: Session, *, for_gpu: bool = False) -> tuple[Shape, Speed]:
    return cost.measure_parts(
        session.anatomy,
        whole=session.anatomy.model,
        window_tokens=session.protocol.window_tokens,
        gains=session.gains,
        dtype=session.dtype,
        stored_dtype=session.dtype,
        for_gpu=for_gpu,
        trains=False,
    )


def price(session: Session) -> Estimator:
    return Estimator(protocol=session.protocol, shape=measure(session)[0], speed=SPEED)


def estimate(session: Session, *, trials: int = 5, covers_space: bool = False, distill: bool = False) -> Cost:
    plan = make_plan(session.protocol, trials=trials, covers_space=covers_space)
    return price(session).estimate_cost(plan, distill=distill)


def price_sweep(session: Session, *, space: SearchSpace = SPACE) -> float:
    return price(session).with_protocol(space=space).price_sweep()


def price_one(session: Session) -> float:
    """By closed form, in the mean: of all candidates it is that of those that are drawn, nearly."""
    estimator = price(session)
    works = [count_work([one], closed_form=True) for one in enumerate_candidates(SPACE)]
    found = estimator.price_closed_form()
    assert found == pytest.approx(sum(map(estimator.price_work, works)) / len(works), rel=0.2)
    return found


def price_singles(session: Session) -> float:
    singles = [drop_layers(4, [layer]) for layer in (3, 2, 1, 0)]
    return price(session).price_work(count_work(singles, closed_form=True))


def estimate_peak(shape: Shape = GPU, *, trains: bool = False, **changes: Any) -> Memory:
    return Estimator(protocol=msgspec.structs.replace(GPU_PROTOCOL, **changes), shape=shape, speed=SPEED).estimate_peak(
        trains=trains
    )


def test_a_sweep_is_the_sum_of_its_counted_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(tmp_path)
    work = count_work(enumerate_candidates(SPACE), closed_form=True)
    assert price_sweep(session) == pytest.approx(
        work.plain_layers * TOKENS * 1e-6
        + work.run_layers * (2 * TOKENS * 1e-6 + 0.25)
        + work.solved_layers * 0.25
        + 10 * TOKENS * 1e-5
    )
    last = SearchSpace(num_layers=4, droppable_layers=(3,), min_dropped=1, max_dropped=1)
    by_hand = 2 * TOKENS * 1e-6 + (2 * TOKENS * 1e-6 + 0.5) + TOKENS * 1e-5
    assert price_sweep(session, space=last) == pytest.approx(by_hand)  # 0 and 1 are the dense model's, 2 is the last
    huge = SearchSpace(num_layers=80, droppable_layers=tuple(range(80)), min_dropped=1, max_dropped=20)
    assert price_sweep(session, space=huge) == math.inf  # and not counted
    monkeypatch.setattr(cost, "COUNTED_SETS", 9)
    assert price_sweep(session) == math.inf


@pytest.mark.parametrize(("family", "mlp_width"), [("llama", 64), ("gpt2", 128), ("gemma2", 64), ("opt_post_norm", 0)])
def test_parts_are_measured(family: str, mlp_width: int, tmp_path: Path) -> None:
    session = open_session(tmp_path, family=family)
    shape, speed = measure(session)
    assert shape.mlp_width == mlp_width  # 0: no closed form, and no sweep
    assert math.isinf(price_sweep(session)) == (not mlp_width)
    assert 0 < speed.layer < 0.1
    assert 0 < speed.head < 0.1
    assert 0 < speed.step < 1
    assert (sum(speed.recovery) > 0) == (mlp_width > 0)
    assert speed.forward == pytest.approx(4 * speed.layer + speed.head)


def test_a_search_costs_its_walks_or_its_sweep_and_what_is_scored_beside_them(tmp_path: Path) -> None:
    session = open_session(tmp_path)
    one = price_one(session)
    swept, tried, few = (estimate(session, covers_space=True), estimate(session, trials=5), estimate(session, trials=3))
    assert (swept.search_seconds, swept.baselines_seconds) == pytest.approx((price_sweep(session), UNRECOVERED_SINGLES))
    beside = UNRECOVERED_SINGLES + price_singles(session) + DEPTHS * one
    assert (tried.search_seconds, tried.baselines_seconds) == pytest.approx((5 * one, beside))
    assert (few.search_seconds, few.baselines_seconds) == pytest.approx((3 * one, 0.0))  # fewer than layers


@pytest.mark.parametrize(("in_file", "trials"), [((), 10), (("trials",), 3)])
def test_trials_of_the_user_s_file_cap_a_sweep_and_a_preset_s_do_not(
    in_file: tuple[str, ...], trials: int, tmp_path: Path
) -> None:
    session = open_session(tmp_path)
    settings = StudyConfig(trials=3, in_file=frozenset(in_file), is_settled=True)
    plan = protocols.settle_trials(make_plan(session.protocol, settings, trials=3, covers_space=True), settings)
    assert (plan.trials, plan.covers_space) == (trials, trials == 10)


def test_latencies_are_counted(tmp_path: Path) -> None:
    session = open_session(tmp_path)
    run = 8 * SPEED.forward + 4 * SPEED.step
    assert estimate(session).latency_seconds == pytest.approx(2 * 2 * (3 + 1) * run)
    many = estimate(open_session(tmp_path / "many", latency_batch=1000)).latency_seconds
    assert many == pytest.approx(2 * 2 * (3 + 1) * 1000 * 12 * SPEED.forward)
    own = open_session(tmp_path / "own", latency_command="time.sh", latency_batch=10**9)
    assert estimate(own).latency_seconds == 0
    assert estimate(own).memory == estimate(session).memory


def test_short_distillation_comes_on_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(tmp_path, proxy="short-distillation")
    short = 3.3 * 2 * 256 * SPEED.run(2.5) + 4 * TOKENS * SPEED.forward
    found = estimate(session)
    assert found.search_seconds == pytest.approx(5 * (short + price_one(session)))
    swept = estimate(session, covers_space=True).search_seconds
    assert swept - found.search_seconds == pytest.approx(price_sweep(session))
    other = estimate(open_session(tmp_path / "other", family="opt_post_norm", proxy="short-distillation"))
    assert other.search_seconds == pytest.approx(5 * short)
    # greedy removal goes on where the layers alone end, up to as many scores as trials
    assert other.baselines_seconds == pytest.approx(UNRECOVERED_SINGLES * 5 / 4)
    monkeypatch.setattr(cost, "STORED_BYTES", 10)  # more states than are stored: computed in every step, no disk
    again = estimate(session)
    assert again.search_seconds - found.search_seconds == pytest.approx(5 * 2 * 256 * SPEED.forward)
    assert found.disk_bytes - again.disk_bytes == 8 * 64 * 32 * 4


def test_finals_cost_only_where_there_are_some(tmp_path: Path) -> None:
    session = open_session(tmp_path)
    without, whole = estimate(session), estimate(session, distill=True)
    assert (without.num_finals, without.distill_seconds) == (0, 0.0)
    assert whole.num_finals == 5  # six are wanted, five are scored
    assert whole.distill_seconds > 0
    assert whole.search_seconds == without.search_seconds
    assert whole.disk_bytes > without.disk_bytes


def test_memory_is_told_with_its_parts(tmp_path: Path) -> None:
    session = open_session(tmp_path)
    params = sum(weight.numel() for weight in session.anatomy.model.parameters())
    left = params - sum(weight.numel() for weight in session.anatomy.layers[0].parameters())
    states = 4 * (5 * 3 * TOKENS * 32 + 4 * 2 * TOKENS * (32 + 64)) + 4 * count_fit_bytes(64)
    without, whole = estimate(session).memory, estimate(session, distill=True).memory
    assert without.num_bytes == 4 * params + states
    assert [part.what for part in without.parts] == ["dense model", "states of a sweep"]
    assert whole.num_bytes == without.num_bytes + 5 * 20 * left
    assert "5 students in training side by side" in str(whole)
    low_rank = open_session(tmp_path / "low", lora_rank=4)
    update = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))  # of rank 1: q and o, k and v, three of the MLP
    found = estimate(low_rank, distill=True).memory
    assert found.num_bytes == without.num_bytes + 5 * (8 * left + 20 * 4 * update)


def test_memory_of_a_gpu_counted_by_hand() -> None:
    dense, logits = 4 * 1_100_048_384, 6 * 4 * 2048 * 32_000
    left = 1_100_048_384 - 2 * 44_044_288
    peak = estimate_peak(trains=True)
    one = 2048 * 108_168 + 88_080_384
    # of the sweep's states at most a gigabyte is kept meanwhile
    assert peak.num_bytes == dense + 16 * left + 20 * one + logits + 10**9
    again = estimate_peak(replace(GPU, gpu_bytes=24 * 10**9), trains=True)
    assert again.num_bytes == dense + 16 * left + 20 * 2048 * 2048 * 4 + one + logits + 10**9 < 24e9
    assert "each run again then" in str(again)
    swept = estimate_peak()
    states = 4 * 23 * (2 * 16_384 + 32_768) * 2048
    siblings = 4 * (16_384 + 32_768) * (2048 + 5632) + count_fit_bytes(5632)
    assert swept.num_bytes == dense + states + siblings + logits < 24e9
    low_rank = estimate_peak(trains=True, lora_rank=16)
    updates = 16 * 16 * GPU.update_params  # four float32 numbers for each of rank 16
    assert low_rank.num_bytes == max(swept.num_bytes, dense + 8 * left + updates + 20 * one + logits + 10**9)
    many = {"latency_batch": 1000, "prompt_tokens": 2000, "new_tokens": 500}
    timed = estimate_peak(**many)
    cache = 1000 * 2500 * GPU.cache_bytes
    assert timed.num_bytes == dense + cache + 1000 * 2000 * (4 * (32_000 + 4 * 2048 + 2 * 4 * 2048) + 8)
    # the dense and the cut model keep a cache each
    assert estimate_peak(**many, compiled=True).num_bytes == timed.num_bytes + cache


def test_what_training_keeps_grows_with_the_tokens(tmp_path: Path) -> None:
    session = open_session(tmp_path)
    tokens = session.streams["validation"].tokens_NT[:4]
    per_token, copies = memory.count_kept_bytes(session.anatomy, tokens, mixed_precision=False)
    # at least what both norms, the projections and the MLP read: float32 numbers, 32 and 64 wide
    assert 4 * (3 * 32 + 64) <= per_token < 4 * 40 * 64
    assert copies < 4 * 64 * 64  # no weight is kept twice in float32
    matrices = sum(weight.numel() for weight in session.anatomy.layers[2].parameters() if weight.ndim > 1)
    _, rounded = memory.count_kept_bytes(session.anatomy, tokens, mixed_precision=True)
    assert rounded == pytest.approx(2 * matrices, rel=0.2)
    assert measure(session, for_gpu=True)[0].kept_copies == rounded
    assert not any(weight.requires_grad for weight in session.anatomy.model.parameters())
    stored = Anatomy(copy.deepcopy(session.anatomy.model).to(torch.bfloat16))
    # a student is trained in float32, whatever the dense model is stored in
    assert memory.count_kept_bytes(stored, tokens, mixed_precision=True)[1] == rounded
    assert {weight.dtype for weight in stored.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ({"calibration_tokens": 10**9}, "Lower --calibration-tokens and"),
        ({"latency_batch": 10**9}, "Lower --latency-batch and --prompt-tokens"),
        ({"lora_rank": 10**8}, "Lower --lora-rank"),
    ],
)
def test_a_search_without_room_is_refused(tmp_path: Path, changes: dict[str, int], cure: str) -> None:
    found = estimate(open_session(tmp_path, **changes), distill=True)
    with pytest.raises(ResourceError, match=rf"of memory, but cpu has .*\. {cure}"):
        cost.require_resources(found, root=tmp_path, free_bytes=10**9, device="cpu")
    cost.require_resources(found, root=tmp_path / "not" / "yet" / "there", free_bytes=10**18)
    with pytest.raises(ResourceError, match="this search needs about"):
        cost.require_resources(replace(found, disk_bytes=10**18), root=tmp_path, free_bytes=10**18)


def test_what_will_be_done_and_read_is_told(tmp_path: Path) -> None:
    noted = msgspec.structs.replace(PROTOCOL.streams["test"], notes=("3 files read",))
    session = open_session(tmp_path, streams=PROTOCOL.streams | {"test": noted})  # steps of 256 tokens
    plan = make_plan(session.protocol, trials=5, covers_space=False)
    plan = msgspec.structs.replace(plan, distill_tokens=200)
    found = price(session).estimate_cost(plan, distill=True)
    said = cost.describe_plan(plan, found)
    assert "5 models distilled for 256 tokens (1 step of 256, the nearest to 200) each, " in said[0]
    assert "give --distill-tokens 2,560 or more" in said[1]
    assert "  test: 768 tokens in 6 documents of notes.txt; 3 files read" in said
