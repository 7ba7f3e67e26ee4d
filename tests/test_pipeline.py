"""A whole pass in this process, stopped at each of its steps and gone on with: the same result, and nothing finished done twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seed import protocols, sessions, study_dir
from seed.config import StudyConfig
from seed.console import Terminal
from seed.errors import StudyError
from seed.plans import SearchPlan
from seed.proxy.proxy import Proxy
from seed.records import Candidate, Evaluation, ScoreRow
from seed.scores import ScoreStore
from seed.search import search
from seed.stages import baselines, finals, judging, latency_table, publishing, students, study_record
from seed.study_dir import StudyFolder
from tests.finished import Finished, describe, timed_alike
from tests.reporting.factory import make_trials
from tests.stages.opened import PROTOCOL

QUIET = Terminal(quiet=True)


class StoppedError(Exception):
    """Stands for whatever ends a pass."""


def stop_behind(count: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """What does so much of the work and then ends the pass."""
    left = [count]

    def stop(*args: Any, **kwargs: Any) -> Any:
        if left[0] == 0:
            raise StoppedError
        left[0] -= 1
        return work(*args, **kwargs)

    return stop


# the step, what is stopped there, and behind how much of it; each pass gets further than the one before
STOPS: dict[str, tuple[object, str, int]] = {
    "proofs": (sessions, "prove", 0),
    "latency": (latency_table, "measure_latency", 1),
    "dense": (judging, "judge_dense", 0),
    "search": (Proxy, "evaluate", 4),
    "baselines": (baselines, "compare_baselines", 0),
    "distill": (students, "train_students", 0),
    "judge": (judging, "judge_exported", 1),
    "export": (finals, "keep_first", 1),
    "report": (publishing, "write_page", 0),
}


def test_a_pass_stopped_at_every_step_ends_as_an_unbroken_one(
    finished_study: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, study = finished_study.move(tmp_path)
    scored: list[Candidate] = []
    judged: list[object] = []
    evaluate, judge_dense = Proxy.evaluate, judging.judge_dense

    def count_scored(proxy: Proxy, candidate: Candidate, **more: Any) -> Evaluation:
        evaluation = evaluate(proxy, candidate, **more)
        scored.append(candidate)
        return evaluation

    def count_judged(*args: Any) -> Any:
        judged.append(judge_dense(*args))
        return judged[-1]

    monkeypatch.setattr(Proxy, "evaluate", count_scored)
    monkeypatch.setattr(judging, "judge_dense", count_judged)
    with timed_alike() as timed:
        for step, (place, name, count) in STOPS.items():
            with monkeypatch.context() as patch:
                patch.setattr(place, name, stop_behind(count, getattr(place, name)))
                with pytest.raises(StoppedError):
                    search(settings, QUIET)
            assert study.frontier.exists() == (list(STOPS).index(step) > list(STOPS).index("search"))
            if step == "search":
                assert len(scored) == 4
            if step == "export":
                [first] = study.distilled.iterdir()
                written = first.stat().st_mtime_ns
        record = search(settings, QUIET)
    assert first.stat().st_mtime_ns == written
    assert record.distilled
    assert describe(study) == describe(finished_study.folder)
    assert timed == finished_study.timed
    assert len(scored) == len(set(scored)) == record.frontier.num_scored
    assert len(judged) == 1
    assert not list(study.root.rglob(".*.new"))


def make_plan(*, rng_seed: int, storage: str | None = None) -> SearchPlan:
    protocol = msgspec.structs.replace(PROTOCOL, rng_seed=rng_seed)
    settings = StudyConfig(storage=storage)
    return protocols.make_plan(settings, protocol, name="tiny", trials=10, distill_tokens=1000, covers_space=True)


@pytest.fixture
def failed(tmp_path: Path) -> StudyFolder:
    """A folder as a search leaves it whose --eval-command failed on the original."""
    study = study_dir.create(tmp_path / "tiny")
    study_dir.write_record(study.plan, make_plan(rng_seed=0))
    for path in (study.latency, study.dense, study.journal, study.work / "old" / "x", study.root / "mine.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    with ScoreStore(study.scores) as store:
        store.keep([ScoreRow(key="dense", proxy="dense", sums=[1.0])])
    return study


def test_a_search_that_failed_makes_room_for_another_plan_and_goes_on_with_its_own(failed: StudyFolder) -> None:
    said: list[str] = []
    own, other = make_plan(rng_seed=0), make_plan(rng_seed=1)
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
        study_dir.write_record(failed.plan, make_plan(rng_seed=0, storage="sqlite:///trials.db"))
    else:
        with ScoreStore(failed.scores) as store:
            row = ScoreRow(key="drop-1", proxy="none", sums=[1.0])
            store.keep([row] if what == "score" else [], make_trials()[:1] if what == "trial" else [])
    before = sorted(failed.root.rglob("*"))
    with pytest.raises(StudyError, match=r"holds a study of another plan .rng_seed: 0 in the study, 1 now"):
        study_record.continue_or_replace(failed, make_plan(rng_seed=1), say=print)
    assert sorted(path for path in failed.root.rglob("*") if not path.name.endswith(("-shm", "-wal"))) == [
        path for path in before if not path.name.endswith(("-shm", "-wal"))
    ]
