"""The Optuna study: of one plan, with names for people; what a trial of it shows."""

from pathlib import Path

import msgspec
import optuna
import pytest

from seed.errors import StudyError
from seed.optimize import study as studies
from seed.optimize.frontier import Limits
from seed.optimize.storage import open_storage
from seed.records import SearchSpace

from ..reporting import factory

PROXY = factory.PROXY
SPACE = SearchSpace(num_layers=12, droppable_layers=(1, 3, 6, 9), min_dropped=1, max_dropped=2)


def open_again(place: Path, *, fingerprint: str = "one") -> optuna.Study:
    storage = open_storage(None, journal=place / "journal.log")
    return studies.open_study(storage, name="here", proxy=PROXY, fingerprint=fingerprint)


def test_a_study_of_another_plan_is_refused(tmp_path: Path) -> None:
    open_again(tmp_path)
    with pytest.raises(StudyError, match=r"another plan.*--study NAME"):
        open_again(tmp_path, fingerprint="two")
    assert open_again(tmp_path).user_attrs[studies.FINGERPRINT] == "one"


def test_a_study_killed_while_it_was_made_still_gets_its_names(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    names = open_again(tmp_path).metric_names
    assert names == ["PPL ratio (short-distillation)", "latency ratio"]
    lines = path.read_bytes().splitlines(keepends=True)
    for count in range(len(lines)):
        path.write_bytes(b"".join(lines[:count]))
        again = open_again(tmp_path)
        assert again.user_attrs[studies.FINGERPRINT] == "one"
        assert again.metric_names == names
        assert [direction.name for direction in again.directions] == ["MINIMIZE", "MINIMIZE"]


def test_limits_say_by_how_much_they_are_exceeded() -> None:
    evaluation = factory.make_evaluation((1, 3), 1.25)
    assert Limits().measure(evaluation, proxy=PROXY) == {}
    limits = Limits(max_ppl_ratio=1.5, max_latency_ratio=0.5, max_memory_bytes=1000, cached_tokens=10)
    size = evaluation.size
    assert limits.measure(evaluation, proxy=PROXY) == {
        "PPL ratio": -0.25,
        "latency ratio": evaluation.latency.ratio - 0.5,
        "memory bytes": size.weight_bytes + 10 * size.kv_bytes_per_token - 1000,
    }
    skipped = msgspec.structs.replace(evaluation, qualities={}, skipped_because="hopeless")
    assert limits.measure(skipped, proxy=PROXY).keys() == {"latency ratio", "memory bytes"}
