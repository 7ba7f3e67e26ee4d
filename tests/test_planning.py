"""Planning: a plan repeats itself, and studies never mix."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

import seed
from seed import planning, study_dir
from seed.config import StudyConfig
from seed.errors import StudyError
from seed.plans import Protocol, SearchPlan, StreamRecord
from seed.records import SearchSpace
from tests.stages import opened


def stream(name: str) -> StreamRecord:
    return StreamRecord(source="Python 3.11 standard library", tokens=16384, documents=40, sha256=name * 32)


PROTOCOL = msgspec.structs.replace(
    opened.PROTOCOL,
    model="demo",
    location="demo",
    license="apache-2.0",
    space=SearchSpace(num_layers=12, droppable_layers=tuple(range(12)), min_dropped=1, max_dropped=3),
    test_tokens=49152,
    streams={"recovery": stream("a1"), "validation": stream("b2"), "test": stream("c3")},
)


def make_plan(protocol: Protocol = PROTOCOL, *, covers_space: bool = False, **settings: Any) -> SearchPlan:
    return planning.make_plan(
        StudyConfig(**settings),
        protocol,
        name="demo",
        trials=298,
        distill_tokens=100_000,
        covers_space=covers_space,
    )


# ---- one study, one protocol


def test_a_plan_repeats_the_settings() -> None:
    plan = make_plan(trials=298, max_ppl_ratio=1.1, frontier_size=4)
    assert (plan.trials, plan.frontier_size, plan.distill_tokens, plan.max_ppl_ratio) == (298, 4, 100_000, 1.1)
    assert plan.command == "python -m seed.search --max-ppl-ratio 1.1 --trials 298 --frontier-size 4"
    assert plan.seed_version == seed.__version__
    assert planning.read_protocol(plan, place=Path("studies/demo")) == PROTOCOL


def test_a_plan_from_its_file_is_the_same_study(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = make_plan()
    study_dir.write_record(path, plan)
    again = study_dir.read_record(path, SearchPlan)
    assert again.fingerprint == plan.fingerprint
    assert planning.read_protocol(again, place=tmp_path) == PROTOCOL
    planning.continue_plan(again, make_plan(trials=500, max_ppl_ratio=1.5, frontier_size=1), place=tmp_path)


def test_what_is_said_of_the_text_makes_no_other_study() -> None:
    noted = {
        name: msgspec.structs.replace(stream, notes=("3 files read",)) for name, stream in PROTOCOL.streams.items()
    }
    wanted = make_plan(msgspec.structs.replace(PROTOCOL, streams=noted))
    found = make_plan()
    for stream in found.identity["streams"].values():
        del stream["notes"]  # as an earlier version wrote it
    assert planning.continue_plan(found, wanted, place=Path("studies/demo")).identity == found.identity
    assert planning.compare_protocols(found.identity, wanted.identity) == []


@pytest.mark.parametrize("covered", [True, False])
def test_whether_to_sweep_is_settled_when_the_study_begins(covered: bool) -> None:
    found = make_plan(covers_space=covered, trials=10)
    wanted = make_plan(covers_space=not covered, trials=20)  # the machine is busier, or less busy, today
    continued = planning.continue_plan(found, wanted, place=Path("studies/demo"))
    assert continued == msgspec.structs.replace(wanted, covers_space=covered)
    assert continued.command == "python -m seed.search --trials 20"
    another = make_plan(covers_space=not covered, sweep_budget=7200.0)  # settles it anew
    assert planning.continue_plan(found, another, place=Path("studies/demo")) == another


def test_differences_are_said_field_by_field() -> None:
    assert planning.compare_protocols(PROTOCOL, PROTOCOL) == []
    other = msgspec.structs.replace(
        PROTOCOL,
        rng_seed=3,
        test_tokens=None,
        space=msgspec.structs.replace(PROTOCOL.space, max_dropped=4),
        streams={**PROTOCOL.streams, "test": msgspec.structs.replace(PROTOCOL.streams["test"], tokens=7)},
    )
    assert planning.compare_protocols(PROTOCOL, other) == [
        "rng_seed: 0 in the study, 3 now",
        "space.max_dropped: 3 in the study, 4 now",
        "streams.test.tokens: 16384 in the study, 7 now",
        "test_tokens: 49152 in the study, None now",
    ]


@pytest.mark.parametrize("field", Protocol.__struct_fields__)
def test_a_study_refuses_another_protocol_and_names_the_field(field: str) -> None:
    value = getattr(PROTOCOL, field)
    changed: Any
    if field == "space":
        changed = msgspec.structs.replace(value, min_dropped=2)
    elif field == "streams":
        changed = {**value, "test": stream("d4")}
    elif isinstance(value, bool):
        changed = not value
    elif field == "lora_rank":
        changed = 16
    elif isinstance(value, (int, float)):
        changed = value + 1
    else:
        changed = f"{value}-other"
    other = make_plan(msgspec.structs.replace(PROTOCOL, **{field: changed}))
    with pytest.raises(StudyError) as caught:
        planning.continue_plan(make_plan(), other, place=Path("studies/demo"))
    message = str(caught.value)
    assert message.startswith(f"studies/demo: holds a study of another plan ({'proxy' if field == 'proxy' else field}")
    assert " in the study, " in message
    assert "--study NAME" in message


def test_many_differences_are_counted() -> None:
    other = msgspec.structs.replace(
        PROTOCOL,
        **{name: getattr(PROTOCOL, name) + 1 for name in ("window_tokens", "calibration_tokens", "validation_tokens")},
        **{name: getattr(PROTOCOL, name) + 1 for name in ("short_steps", "batch_tokens", "latency_batch")},
        **{
            name: getattr(PROTOCOL, name) + 1 for name in ("prompt_tokens", "new_tokens", "latency_repeats", "rng_seed")
        },
    )
    with pytest.raises(StudyError, match="; and 2 more"):
        planning.continue_plan(make_plan(), make_plan(other), place=Path("studies/demo"))


@pytest.mark.parametrize(
    "identity",
    [
        {},
        {**msgspec.to_builtins(PROTOCOL), "new_field": 1},
        {**msgspec.to_builtins(PROTOCOL), "rng_seed": "zero"},
    ],
)
def test_a_plan_of_another_version_is_refused_with_both_versions(identity: dict[str, object]) -> None:
    plan = msgspec.structs.replace(make_plan(), identity=identity, seed_version="9.9")
    with pytest.raises(StudyError, match=rf"written by seed 9\.9, and this is {seed.__version__}") as caught:
        planning.continue_plan(plan, make_plan(), place=Path("studies/demo"))
    assert "--study NAME" in str(caught.value)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (seed.__version__, r"its plan.json is damaged, .*`int`.*window_tokens"),
        ("0.0.9", rf"its plan was written by seed 0\.0\.9, and this is {seed.__version__} .*window_tokens"),
    ],
)
def test_a_plan_that_does_not_read_is_told_with_its_field(version: str, said: str) -> None:
    plan = make_plan()
    torn = msgspec.structs.replace(plan, identity={**plan.identity, "window_tokens": "many"}, seed_version=version)
    with pytest.raises(StudyError, match=said):
        planning.read_protocol(torn, place=Path("studies/demo"))
