"""A pass within a time: what fits is chosen by the rule, what is told stays, and spent time is remembered."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seed import study_dir, time_budget
from seed.clock import Clock
from seed.config import StudyConfig, fill_by_size
from seed.cost import Cost, Estimator
from seed.errors import SeedError
from seed.plans import Protocol, read_plan
from seed.records import SearchSpace
from seed.search import search
from seed.speed import Speed
from seed.study_dir import StudyFolder
from tests.finished import Finished, Heard, timed_alike
from tests.stages.opened import PROTOCOL
from tests.test_cost import GPU

SPACE = SearchSpace(num_layers=30, droppable_layers=tuple(range(30)), min_dropped=1, max_dropped=10)
SHAPE = dataclasses.replace(GPU, num_layers=30, width=576, mlp_width=1536, num_params=134_515_008, gpu_bytes=0)
SPEED = Speed(layer=4e-5, head=2e-4, recovery=(0.5, 1e-4), step=0.04, num_layers=30)
PLENTY = msgspec.structs.replace(
    PROTOCOL,
    space=SPACE,
    window_tokens=1024,
    batch_tokens=8192,
    calibration_tokens=16_384,
    validation_tokens=65_536,
    prompt_tokens=128,
    new_tokens=64,
    latency_repeats=None,
    streams={
        name: msgspec.structs.replace(PROTOCOL.streams[name], tokens=tokens)
        for name, tokens in (("recovery", 10**6), ("validation", 65_536), ("test", 262_144))
    },
)


def settle(**told: Any) -> StudyConfig:
    asked = StudyConfig(**told, given=frozenset(told), is_settled=True)
    return fill_by_size(asked, num_layers=30, num_params=134_515_008, max_positions=8192)


def price(protocol: Protocol = PLENTY, speed: Speed = SPEED) -> Estimator:
    return Estimator(protocol=protocol, shape=SHAPE, speed=speed)


def plan(**told: Any) -> tuple[StudyConfig, Protocol]:
    """What is chosen, text first and then the rest, and the protocol that it makes."""
    settings = time_budget.fit_text(settle(**told), price())
    chosen = {name: getattr(settings, name) for name in time_budget.OF_TEXT}
    streams = {
        "recovery": PLENTY.streams["recovery"],
        "validation": msgspec.structs.replace(PLENTY.streams["validation"], tokens=settings.validation_tokens),
        "test": msgspec.structs.replace(PLENTY.streams["test"], tokens=settings.test_tokens),
    }
    protocol = msgspec.structs.replace(PLENTY, **chosen, streams=streams)
    return time_budget.fit_work(settings, price(protocol), spent=10.0), protocol


def estimate(settings: StudyConfig, protocol: Protocol) -> float:
    return estimate_cost(settings, price(protocol)).seconds


def estimate_cost(settings: StudyConfig, estimator: Estimator) -> Cost:
    drafted = estimator.draft_plan(settings, name="tiny")
    return estimator.estimate_cost(drafted, distill=settings.distill, is_tuned=settings.tunes_rate)


@pytest.mark.parametrize("hours", [0.75, 3, 12, 100])
@pytest.mark.parametrize("distill", [True, False])
def test_a_plan_takes_about_its_time(hours: float, distill: bool) -> None:
    settings, protocol = plan(time=3600 * hours, distill=distill)
    assert estimate(settings, protocol) <= 3600 * hours * 1.05
    if distill:
        assert estimate(settings, protocol) >= 3600 * hours * 0.8
    assert 4096 <= protocol.validation_tokens <= 65_536
    assert protocol.calibration_tokens <= protocol.validation_tokens


def test_more_time_gives_more_of_everything() -> None:
    plans = [plan(time=3600 * hours) for hours in (0.5, 3, 48)]
    for name in ("trials", "frontier_size", "validation_tokens"):
        numbers = [getattr(settings, name) for settings, _ in plans]
        assert numbers == sorted(numbers)
    assert plans[0][0].frontier_size < plans[2][0].frontier_size
    assert len(plan(time=600)[0].learning_rates or ()) == 1  # of one model it is not tuned
    assert len(plans[2][0].learning_rates or ()) == 3


def test_what_is_told_stays_and_counts() -> None:
    free, _ = plan(time=7200)
    settings, protocol = plan(time=7200, trials=20, validation_tokens=8192, latency_repeats=5)
    assert (settings.trials, protocol.validation_tokens, protocol.latency_repeats) == (20, 8192, 5)
    longer, _ = plan(time=7200, distill_tokens=1_000_000)
    assert longer.distill_tokens == 1_000_000
    assert (longer.trials or 0) <= (free.trials or 0)
    with pytest.raises(
        SeedError, match=r"^--time 10 min 00 s: --trials 1000 alone takes about .* Give more time, or leave it out"
    ):
        plan(time=600, trials=1000)


def test_a_usual_time_is_taken_where_the_defaults_would_take_days() -> None:
    slow = dataclasses.replace(SPEED, layer=1e-3)
    assert time_budget.choose_time(settle(), price(speed=slow)).time == 4 * 3600
    quick = Speed(layer=1e-9, head=1e-9, recovery=(0.0, 0.0), step=1e-9, num_layers=30)
    assert time_budget.choose_time(settle(), price(speed=quick)).time is None
    assert time_budget.fit_text(settle(), price(speed=slow)) == settle()  # without a time nothing is chosen


def test_the_search_has_its_share_where_all_is_slower_than_planned() -> None:
    settings, protocol = plan(time=7200)
    planned = estimate_cost(settings, price(protocol))
    assert (
        2700 < time_budget.end_search(settings, planned) == 7200 - planned.distill_seconds - planned.baselines_seconds
    )
    slow = dataclasses.replace(SPEED, layer=3 * SPEED.layer, head=3 * SPEED.head)
    assert time_budget.end_search(settings, estimate_cost(settings, price(protocol, slow))) == 2700


def test_spent_time_is_remembered(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    clock = Clock(study, began=time.monotonic() - 100)
    clock.save()
    assert not study.time.exists()  # there is no bound
    clock.seconds = 110.0
    clock.save()
    again = Clock(study, began=time.monotonic())
    again.seconds = 110.0
    assert again.spent == pytest.approx(100, abs=1)
    assert again.has_room(10)
    assert not again.has_room(30)


def test_a_pass_whose_time_is_spent_ends_with_fewer_and_goes_on_with_more(
    finished_study: Finished, tmp_path: Path
) -> None:
    settings, study = finished_study.move(tmp_path)
    settings, terminal = settings.change(time=3600.0), Heard()
    with timed_alike(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clock, "spent", property(lambda clock: 3601.0))
        record = search(settings, terminal)
    assert len(record.trials) == len(record.distilled) == 1
    assert any("time is spent" in line or "share of the time" in line for line in terminal.lines)
    plan = read_plan(study)
    with timed_alike():
        more = search(settings.change(time=7200.0), Heard())
    assert len(more.trials) > 1
    again = read_plan(study)
    assert (again.protocol, again.trials, again.distill_tokens) == (plan.protocol, plan.trials, plan.distill_tokens)
    assert study_dir.read_record(study.time, dict[str, float])["spent_seconds"] > 0
