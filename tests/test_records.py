"""Records: keys that name one set each, nothing changed after the fact, JSON that comes back as it went."""

import inspect
import itertools
import re

import msgspec
import pytest

from seed import plans, records
from seed.findings import Agreement, StudyRecord
from seed.plans import SearchPlan
from seed.records import Candidate, Record, SearchSpace

from .reporting import factory

ALL = [
    kind
    for module in (plans, records)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, Record) and kind.__module__ == module.__name__ and kind is not Record
]


def drop(*dropped: int, num_layers: int = 12) -> Candidate:
    return factory.make_candidate(*dropped, num_layers=num_layers)


# ---- candidates


def test_keys_say_what_is_gone() -> None:
    assert drop().key == "dense"
    assert drop(4, 11).key == "drop-4-11"
    assert drop(11, 4).key == "drop-4-11"
    assert drop(0).key == "drop-0"


def test_dropped_and_kept_are_the_whole_model() -> None:
    candidate = drop(1, 5, num_layers=7)
    assert candidate.kept_layers == (0, 2, 3, 4, 6)
    assert candidate.dropped_layers == (1, 5)
    assert candidate.dropped_parts == ("1", "5")


def test_keys_are_unique_over_all_subsets_and_fit_for_folders() -> None:
    keys = {drop(*dropped).key for depth in range(12) for dropped in itertools.combinations(range(12), depth)}
    assert len(keys) == 2**12 - 1  # all but the empty model
    assert all(re.fullmatch(r"[a-z0-9-]{1,64}", key) for key in keys)


def test_long_lists_end_in_a_hash_and_stay_apart() -> None:
    spelled = drop(*range(10, 29), num_layers=80).key
    assert spelled == "drop-" + "-".join(map(str, range(10, 29)))
    assert len(spelled) == 61
    exact = drop(*range(1, 3), *range(10, 28), num_layers=80)  # as long as may be
    assert len(exact.key) == 62
    assert exact.key.endswith("-27")
    long = [drop(*(layer for layer in range(10, 40) if layer != kept), num_layers=80) for kept in range(10, 40)]
    assert all(re.fullmatch(r"drop-29-[0-9a-f]{12}", candidate.key) for candidate in long)
    assert len({candidate.key for candidate in long}) == 30


def test_a_key_does_not_change_from_run_to_run() -> None:
    assert (
        drop(*range(40), num_layers=80).key
        == "drop-40-" + records.hash_text("drop-" + "-".join(map(str, range(40))))[:12]
    )
    assert records.hash_text("seed") == "19b25856e1c150ca834cffc8b59b23adbd0ec0389e58eb22b3b64768098d002b"


def test_candidates_are_compared_by_value_and_can_be_keys() -> None:
    assert drop(3) == drop(3)
    assert drop(3) != drop(3, num_layers=13)
    assert len({drop(3), drop(3), drop(4)}) == 2


def test_the_size_of_a_space_counted_by_hand() -> None:
    space = SearchSpace(num_layers=12, droppable_layers=(1, 2, 3, 4, 5), min_dropped=2, max_dropped=3)
    assert space.size == 10 + 10


def test_layers_that_are_gone_count_as_dropped() -> None:
    space = SearchSpace(
        num_layers=12, droppable_layers=(2, 3, 4, 5, 6), min_dropped=3, max_dropped=4, gone_layers=(1, 7)
    )
    assert list(space.more_dropped) == [1, 2]
    assert space.size == 5 + 10


def test_a_space_without_gone_layers_is_written_as_before_there_were_any() -> None:
    space = SearchSpace(num_layers=4, droppable_layers=(1, 2), min_dropped=1, max_dropped=2)
    written = b'{"num_layers":4,"droppable_layers":[1,2],"min_dropped":1,"max_dropped":2}'
    assert msgspec.json.encode(space) == written
    assert msgspec.json.decode(written, type=SearchSpace) == space
    assert msgspec.to_builtins(space).keys() == {"num_layers", "droppable_layers", "min_dropped", "max_dropped"}
    gone = msgspec.structs.replace(space, gone_layers=(0,))
    assert msgspec.json.decode(msgspec.json.encode(gone), type=SearchSpace) == gone


# ---- what holds for every record


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_record_is_frozen_keyword_only_and_strict(kind: type[Record]) -> None:
    config = kind.__struct_config__
    assert config.frozen
    assert config.forbid_unknown_fields
    with pytest.raises(TypeError, match="positional"):
        kind(1)


def test_a_record_cannot_be_changed() -> None:
    candidate = drop(3)
    with pytest.raises(AttributeError, match="immutable"):
        candidate.num_layers = 5  # type: ignore[misc]
    changed = msgspec.structs.replace(candidate, num_layers=13)
    assert (candidate.num_layers, changed.num_layers) == (12, 13)


def test_an_unknown_field_is_refused() -> None:
    content = msgspec.to_builtins(drop(3)) | {"colour": "red"}
    with pytest.raises(msgspec.ValidationError, match="unknown field `colour`"):
        msgspec.json.decode(msgspec.json.encode(content), type=Candidate)


def test_an_unknown_field_deep_inside_is_refused() -> None:
    content = msgspec.to_builtins(factory.make_record())
    content["trials"][0]["evaluation"]["latency"]["colour"] = "red"
    with pytest.raises(msgspec.ValidationError, match=r"colour.*trials.*latency"):
        msgspec.json.decode(msgspec.json.encode(content), type=StudyRecord)


def test_a_missing_field_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="kept_layers"):
        msgspec.json.decode(b'{"num_layers":12}', type=Candidate)


@pytest.mark.parametrize("make", [factory.make_record, lambda: factory.without_distilled(factory.make_record())])
def test_a_whole_study_comes_back_as_it_went(make) -> None:
    record = make()
    again = msgspec.json.decode(msgspec.json.encode(record), type=StudyRecord)
    assert again == record
    assert isinstance(again.trials[0].evaluation.candidate.kept_layers, tuple)
    assert msgspec.json.encode(again) == msgspec.json.encode(record)


# ---- plans and agreement


def make_plan(**changes: object) -> SearchPlan:
    return msgspec.structs.replace(factory.make_record().plan, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"trials": 7},
        {"sweep_budget": 0.0},
        {"covers_space": True},
        {"frontier_size": 2},
        {"distill_tokens": 5},
        {"max_ppl_ratio": 1.1},
        {"storage": None},
        {"command": "python -m seed.search"},
        {"seed_version": "9.9"},
        {"created": "2030-01-01T00:00:00+00:00"},
    ],
)
def test_a_fingerprint_does_not_depend_on_budgets(changes: dict[str, object]) -> None:
    assert make_plan(**changes) != make_plan()
    assert make_plan(**changes).fingerprint == make_plan().fingerprint


def test_a_fingerprint_depends_on_everything_in_the_identity() -> None:
    plan = make_plan()
    found = {plan.fingerprint}
    for changed in (
        plan.identity | {"rng_seed": 1},
        plan.identity | {"window_tokens": 513},
        plan.identity | {"streams": {}},
        plan.identity | {"rungs": ["closed_form", "none", "short_distillation"]},
        {name: value for name, value in plan.identity.items() if name != "rungs"},
        plan.identity | {"new": None},
    ):
        found.add(make_plan(identity=changed).fingerprint)
    assert len(found) == 7


def test_a_fingerprint_survives_the_file_and_the_order_of_keys() -> None:
    plan = make_plan(identity={"b": (1, 2), "a": {"y": 3e-4, "x": None}})
    again = msgspec.json.decode(msgspec.json.encode(plan), type=SearchPlan)
    assert again.fingerprint == plan.fingerprint
    turned = make_plan(identity={"a": {"x": None, "y": 3e-4}, "b": [1, 2]})
    assert turned.fingerprint == plan.fingerprint


def test_kendall_tau_by_hand() -> None:
    def tau(concordant: int, discordant: int) -> float | None:
        return Agreement(rung="none", concordant=concordant, discordant=discordant, verdict="").kendall_tau

    assert tau(0, 0) is None
    assert tau(3, 1) == 0.5
    assert tau(0, 2) == -1.0
