"""Plans: one repeats itself, studies never mix, and what another version wrote is refused."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

import seed
from seed import plans, protocols, study_dir
from seed.config import StudyConfig
from seed.errors import StudyError
from seed.plans import Protocol, SearchPlan, StreamRecord
from seed.records import SearchSpace
from seed.study_dir import StudyFolder
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
PLACE = Path("studies/demo")


def make_plan(protocol: Protocol = PROTOCOL, *, covers_space: bool = False, **settings: Any) -> SearchPlan:
    return protocols.make_plan(
        StudyConfig(**settings),
        protocol,
        name="demo",
        trials=298,
        distill_tokens=100_000,
        covers_space=covers_space,
    )


def test_a_plan_repeats_the_settings_and_comes_back_from_its_file(tmp_path: Path) -> None:
    plan = make_plan(trials=298, max_ppl_ratio=1.1, frontier_size=4)
    assert (plan.trials, plan.frontier_size, plan.distill_tokens, plan.max_ppl_ratio) == (298, 4, 100_000, 1.1)
    assert plan.command == "python -m seed.search --max-ppl-ratio 1.1 --trials 298 --frontier-size 4"
    assert plan.seed_version == seed.__version__
    study = StudyFolder(tmp_path)
    study_dir.write_record(study.plan, plan)
    again = plans.read_plan(study)
    assert (again, again.fingerprint) == (plan, plan.fingerprint)
    budgets = make_plan(trials=500, max_ppl_ratio=1.5, frontier_size=1)
    assert plans.continue_plan(again, budgets, place=PLACE) == budgets
    assert budgets.fingerprint == plan.fingerprint


def test_what_is_said_of_the_text_makes_no_other_study() -> None:
    noted = {
        name: msgspec.structs.replace(stream, notes=("3 files read",)) for name, stream in PROTOCOL.streams.items()
    }
    found, wanted = make_plan(), make_plan(msgspec.structs.replace(PROTOCOL, streams=noted))
    assert plans.continue_plan(found, wanted, place=PLACE).fingerprint == found.fingerprint
    assert plans.compare_protocols(found.protocol, wanted.protocol) == []


@pytest.mark.parametrize("covered", [True, False])
def test_whether_to_sweep_is_settled_when_the_study_begins(covered: bool) -> None:
    found = make_plan(covers_space=covered, trials=10)
    wanted = make_plan(covers_space=not covered, trials=20)  # the machine is busier, or less busy, today
    continued = plans.continue_plan(found, wanted, place=PLACE)
    assert continued == msgspec.structs.replace(wanted, covers_space=covered)
    assert continued.command == "python -m seed.search --trials 20"
    another = make_plan(covers_space=not covered, sweep_budget=7200.0)  # settles it anew
    assert plans.continue_plan(found, another, place=PLACE) == another


def test_differences_are_said_field_by_field() -> None:
    other = msgspec.structs.replace(
        PROTOCOL,
        rng_seed=3,
        test_tokens=None,
        space=msgspec.structs.replace(PROTOCOL.space, max_dropped=4),
        streams={**PROTOCOL.streams, "test": msgspec.structs.replace(PROTOCOL.streams["test"], tokens=7)},
    )
    assert plans.compare_protocols(PROTOCOL, other) == [
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
    assert other.fingerprint != make_plan().fingerprint
    with pytest.raises(StudyError) as caught:
        plans.continue_plan(make_plan(), other, place=PLACE)
    message = str(caught.value)
    assert message.startswith(f"studies/demo: holds a study of another plan ({field}")
    assert " in the study, " in message
    assert "--study NAME" in message


def test_many_differences_are_counted() -> None:
    names = ("window_tokens", "calibration_tokens", "validation_tokens", "short_steps", "batch_tokens")
    names += ("latency_batch", "prompt_tokens", "new_tokens", "latency_repeats", "rng_seed")
    other = msgspec.structs.replace(PROTOCOL, **{name: getattr(PROTOCOL, name) + 1 for name in names})
    with pytest.raises(StudyError, match="; and 2 more"):
        plans.continue_plan(make_plan(), make_plan(other), place=PLACE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window_tokens": "many"}, r"`int`.*window_tokens"),
        ({"new_field": 1}, "new_field"),
        (
            {"space": {"num_layers": 200, "droppable_layers": list(range(200)), "min_dropped": 1, "max_dropped": 100}},
            "no search scores",
        ),
        (None, "protocol"),
    ],
)
def test_a_plan_that_is_damaged_or_of_another_version_is_refused(
    change: dict[str, Any] | None, said: str, tmp_path: Path
) -> None:
    study = StudyFolder(tmp_path)
    content = msgspec.to_builtins(make_plan(covers_space=True))
    content["protocol"] = None if change is None else content["protocol"] | change
    study_dir.write_record(study.plan, content)
    with pytest.raises(StudyError, match=rf"plan.json: damaged \(.*{said}.*Restore it from a copy"):
        plans.read_plan(study)
    study_dir.write_record(study.plan, content | {"seed_version": "0.1.0"})
    with pytest.raises(
        StudyError, match=rf"a study of Seed 0\.1\.0, and this is {seed.__version__}.*{said}.*--study NAME"
    ):
        plans.read_plan(study)


def test_few_steps_are_warned_of() -> None:
    assert PROTOCOL.describe_training(200) == "256 tokens (1 step of 256, the nearest to 200)"
    assert PROTOCOL.describe_training(2560) == "2,560 tokens (10 steps of 256)"
    assert PROTOCOL.warn_of_few_steps(2560) == []
    assert "give --distill-tokens 2,560 or more" in PROTOCOL.warn_of_few_steps(200)[0]
