"""Records: keys that name one set each, nothing changed after the fact, JSON that comes back as it went."""

import inspect
import itertools
import re

import msgspec
import pytest

from seed import plans, records
from seed.evidence import StudyRecord
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


def test_keys_say_what_is_gone_and_are_one_for_each_set() -> None:
    assert drop().key == "dense"
    assert drop(4, 11).key == drop(11, 4).key == "drop-4-11"
    assert drop(4, 11).dropped_layers == (4, 11)
    assert drop(4, 11).parts == ("4", "11")
    keys = {drop(*dropped).key for depth in range(12) for dropped in itertools.combinations(range(12), depth)}
    assert len(keys) == 2**12 - 1  # all but the empty model
    assert all(re.fullmatch(r"[a-z0-9-]{1,64}", key) for key in keys)


def test_parts_of_layers_are_named_and_counted_as_halves() -> None:
    candidate = Candidate(num_layers=12, parts=("1.mlp", "4.attn", "7", "11.attn"))
    assert candidate.key == "drop-1.mlp-4.attn-7-11.attn"
    assert records.read_dropped(candidate.key) == candidate.parts
    assert (candidate.dropped_layers, candidate.lacking) == ((7,), {1: "mlp", 4: "attn", 11: "attn"})
    assert candidate.num_dropped == 1 + 3 / 2
    assert candidate.sublayers.dropped_layers == (3, 8, 14, 15, 22)
    assert len(candidate.kept_layers) == 11


@pytest.mark.parametrize(
    "parts", [("4.attn", "4.mlp"), ("4", "4.mlp"), ("7", "4"), ("4.x",), ("12.mlp",), ("-1",), ("",)]
)
def test_parts_that_are_none_are_refused(parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        Candidate(num_layers=12, parts=parts)
    assert records.read_dropped("-".join(("drop", *parts))) is None or parts == ("12.mlp",)


def test_long_lists_end_in_a_hash_and_stay_apart() -> None:
    exact = drop(*range(1, 3), *range(10, 28), num_layers=80)  # as long as may be
    assert len(exact.key) == 62
    assert exact.key.endswith("-27")
    long = [drop(*(layer for layer in range(10, 40) if layer != kept), num_layers=80) for kept in range(10, 40)]
    assert all(re.fullmatch(r"drop-29-[0-9a-f]{12}", candidate.key) for candidate in long)
    assert len({candidate.key for candidate in long}) == 30
    assert drop(*range(40), num_layers=80).key == "drop-40-9e65b66e46f1"  # in every version
    assert records.hash_text("seed") == "19b25856e1c150ca834cffc8b59b23adbd0ec0389e58eb22b3b64768098d002b"


def test_a_space_without_gone_layers_is_written_as_before_there_were_any() -> None:
    space = SearchSpace(num_layers=4, droppable_layers=(1, 2), min_dropped=1, max_dropped=2)
    written = b'{"num_layers":4,"droppable_layers":[1,2],"min_dropped":1,"max_dropped":2}'
    assert msgspec.json.encode(space) == written
    assert msgspec.json.decode(written, type=SearchSpace) == space
    gone = msgspec.structs.replace(space, gone_layers=(0,))
    assert msgspec.json.decode(msgspec.json.encode(gone), type=SearchSpace) == gone


# ---- what holds for every record


def test_every_record_is_frozen_keyword_only_and_strict() -> None:
    for kind in ALL:
        assert kind.__struct_config__.frozen
        assert kind.__struct_config__.forbid_unknown_fields
        with pytest.raises(TypeError, match="positional"):
            kind(1)


def test_a_whole_study_comes_back_as_it_went_and_nothing_else_does() -> None:
    for record in (factory.make_record(), factory.without_distilled(factory.make_record())):
        again = msgspec.json.decode(msgspec.json.encode(record), type=StudyRecord)
        assert again == record
        assert isinstance(again.trials[0].evaluation.candidate.kept_layers, tuple)
    content = msgspec.to_builtins(record)
    content["trials"][0]["evaluation"]["latency"]["colour"] = "red"
    with pytest.raises(msgspec.ValidationError, match=r"colour.*trials.*latency"):
        msgspec.json.decode(msgspec.json.encode(content), type=StudyRecord)
