"""A whole pass in this process, killed at each of its steps and gone on with: the same result, and nothing finished done twice."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seed import study_dir
from seed.config import StudyConfig
from seed.console import Terminal
from seed.errors import StudyError
from seed.plans import SearchPlan
from seed.proxy.proxy import Proxy
from seed.records import Candidate, Evaluation, ScoreRow
from seed.results import compute_result
from seed.scores import ScoreStore
from seed.search import search
from seed.stages import judging, latency_table, publishing, students, study_record
from seed.study_dir import StudyFolder
from tests.finished import Finished, describe, timed_alike
from tests.reporting.factory import make_trials
from tests.stages.opened import PROTOCOL, make_plan

QUIET = Terminal(quiet=True)


class KilledError(BaseException):
    """Stands for whatever ends a pass at once; what it leaves behind is copied before anything can tidy up."""


# the step, what is killed there, and behind how many calls, or behind which; each pass gets further than the one before
MOMENTS: dict[str, tuple[Any, str, int | str]] = {
    "latency": (latency_table, "measure_latency", 1),
    "search": (Proxy, "evaluate", 4),
    "distill": (students, "train_students", 0),
    "judge": (judging, "judge_exported", 1),
    "half a model": (os, "rename", r"/models/\.[^/]+\.new/"),
    "a model without a record": (os, "rename", r"/models/\.[^/]+\.new$"),
    "one of two models": (os, "replace", "/distilled/"),
    "report": (publishing, "write_page", 1),  # the first shows what there is before it is distilled
}


def kill_behind(when: int | str, work: Callable[..., Any], *, study: StudyFolder, left: Path) -> Callable[..., Any]:
    """What ends the pass behind so many calls, or behind the first that is given such a path; its folder is left as it was then."""
    calls = 0

    def end() -> None:
        shutil.copytree(study.root, left / study.name)
        raise KilledError

    def kill(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if calls == when:
            end()
        calls += 1
        found = work(*args, **kwargs)
        if isinstance(when, str) and any(re.search(when, str(path)) for path in args):
            end()
        return found

    return kill


def test_a_pass_killed_again_and_again_ends_as_an_unbroken_one(
    finished_study: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, study = finished_study.move(tmp_path / "begun")
    scored: list[Candidate] = []
    judged: list[object] = []
    written: dict[str, int] = {}
    evaluate, judge_dense = Proxy.evaluate, judging.judge_dense

    def count_scored(proxy: Proxy, candidate: Candidate, **more: Any) -> Evaluation:
        evaluation = evaluate(proxy, candidate, **more)
        scored.append(candidate)
        return evaluation

    def count_judged(*args: Any) -> Any:
        judged.append(judge_dense(*args))
        return judged[-1]

    def list_written() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in study.distilled.glob("*.json")}

    monkeypatch.setattr(Proxy, "evaluate", count_scored)
    monkeypatch.setattr(judging, "judge_dense", count_judged)
    with timed_alike() as timed:
        for moment, (place, name, when) in MOMENTS.items():
            left = tmp_path / moment
            with monkeypatch.context() as patch:
                patch.setattr(place, name, kill_behind(when, getattr(place, name), study=study, left=left))
                with pytest.raises(KilledError):
                    search(settings, QUIET)
            settings, study = finished_study.move(left)
            assert study.frontier.exists() == (list(MOMENTS).index(moment) > list(MOMENTS).index("search"))
            if moment == "search":
                assert len(scored) == 4
            if moment == "one of two models":
                assert len(list_written()) == 1
            assert written.items() <= list_written().items()
            written = list_written()
        record = search(settings, QUIET)
    assert written == list_written()  # none is made twice
    assert record.distilled
    assert describe(study) == describe(finished_study.folder)
    assert timed == finished_study.timed
    assert len(set(scored)) == record.frontier.num_scored >= len(scored) - 4  # what was not kept yet is scored again
    assert len(judged) == 1
    assert not list(study.root.rglob(".*.new"))


def draw_plan(rng_seed: int, *, storage: str | None = None) -> SearchPlan:
    """A plan with this random seed."""
    return make_plan(msgspec.structs.replace(PROTOCOL, rng_seed=rng_seed), StudyConfig(storage=storage))


@pytest.fixture
def failed(tmp_path: Path) -> StudyFolder:
    """A folder as a search leaves it whose --eval-command failed on the original."""
    study = study_dir.create(tmp_path / "tiny")
    study_dir.write_record(study.plan, draw_plan(0))
    for path in (study.latency, study.dense, study.journal, study.work / "old" / "x", study.root / "mine.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    with ScoreStore(study.scores) as store:
        store.keep([ScoreRow(key="dense", proxy="dense", sums=[1.0])])
    return study


def test_a_search_that_failed_makes_room_for_another_plan_and_goes_on_with_its_own(failed: StudyFolder) -> None:
    said: list[str] = []
    own, other = draw_plan(0), draw_plan(1)
    assert study_record.continue_or_replace(failed, own, say=said.append).fingerprint == own.fingerprint
    assert not said
    assert failed.latency.exists()
    assert study_record.continue_or_replace(failed, other, say=said.append) == other
    assert [path.name for path in failed.root.iterdir()] == ["mine.txt"]
    assert "ended before its first score" in said[0]


@pytest.mark.parametrize("what", ["score", "trial", "frontier", "models", "storage"])
def test_what_holds_something_is_never_replaced(failed: StudyFolder, what: str) -> None:
    if what == "frontier":
        failed.frontier.write_text("{}")
    elif what == "models":
        failed.models.mkdir()
    elif what == "storage":
        study_dir.write_record(failed.plan, draw_plan(0, storage="sqlite:///trials.db"))
    else:
        with ScoreStore(failed.scores) as store:
            row = ScoreRow(key="drop-1", proxy="none", sums=[1.0])
            store.keep([row] if what == "score" else [], make_trials()[:1] if what == "trial" else [])
    before = sorted(failed.root.rglob("*"))
    with pytest.raises(StudyError, match=r"holds a study of another plan .rng_seed: 0 in the study, 1 now"):
        study_record.continue_or_replace(failed, draw_plan(1), say=print)
    assert sorted(path for path in failed.root.rglob("*") if not path.name.endswith(("-shm", "-wal"))) == [
        path for path in before if not path.name.endswith(("-shm", "-wal"))
    ]


def test_finished_models_are_judged_in_fewer_bits_each_once(
    finished_study: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, study = finished_study.move(tmp_path)
    shutil.copytree(finished_study.folder.root, study.root)
    packed: list[int] = []
    pack = judging.pack_weights

    def count(model: Any, *, bits: int, **more: Any) -> int:
        packed.append(bits)
        return pack(model, bits=bits, **more)

    monkeypatch.setattr(judging, "pack_weights", count)
    first = search(settings.change(bits=(8,)), QUIET)
    assert packed == [8] * (1 + len(first.distilled))
    record = search(settings.change(bits=(4, 8)), QUIET)
    assert packed[len(packed) // 2 :] == [4] * (1 + len(first.distilled))
    assert record.distilled == finished_study.record.distilled  # none is made again
    stored = compute_result(record).stored
    assert len(stored) == 3 * (1 + len(record.distilled))
    sizes = {(one.model and one.model.key, one.bits): one.weight_bytes for one in stored}
    for model in (None, *(one.key for one in record.distilled)):
        assert sizes[model, None] > sizes[model, 8] > sizes[model, 4]
    # of a model that is another now, nothing is known
    result = record.distilled[0]
    study_dir.write_record(study.result(result.key), msgspec.structs.replace(result, provenance_sha256="0" * 64))
    again = study_record.gather_record(study)
    assert again.packed[result.key] == ()
    assert again.packed["dense"] == record.packed["dense"]
