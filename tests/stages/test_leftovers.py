"""A search that failed before its first score makes room for another plan; whatever holds something never does."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import optuna
import pytest

from seed import folder
from seed.config import StudyConfig
from seed.errors import StudyError
from seed.folder import StudyFolder
from seed.optimize.storage import open_storage
from seed.plans import SearchPlan
from seed.records import SweepRow, TrialRecord
from seed.scores import ScoreStore
from seed.stages import planning
from seed.stages.leftovers import continue_or_replace
from tests.reporting.factory import make_trials
from tests.stages.opened import PROTOCOL


def make_plan(*, rng_seed: int, storage: str | None = None) -> SearchPlan:
    protocol = msgspec.structs.replace(PROTOCOL, rng_seed=rng_seed)
    settings = StudyConfig(storage=storage)
    return planning.make_plan(settings, protocol, name="tiny", trials=10, distill_tokens=1000, covers_space=True)


@pytest.fixture
def failed(tmp_path: Path) -> StudyFolder:
    """A folder as a search leaves it whose --eval-command failed on the original."""
    study = folder.create(tmp_path / "tiny")
    folder.write_record(study.plan, make_plan(rng_seed=0))
    for path in (
        study.latency,
        study.dense,
        study.environment,
        study.work / "teacher.states",
        study.work / "old" / "x",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    add_rows(study, SweepRow(key="dense", rung="dense", sums=[1.0]))
    optuna.create_study(storage=open_storage(None, journal=study.journal), study_name="tiny").ask()
    (study.root / "mine.txt").write_text("not Seed's")
    return study


def list_files(study: StudyFolder) -> list[str]:
    """What is there, but for what SQLite leaves where somebody has read."""
    paths = (path for path in study.root.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(study.root)) for path in paths if not path.name.endswith(("-shm", "-wal")))


def add_rows(study: StudyFolder, *rows: SweepRow, trials: Sequence[TrialRecord] = ()) -> None:
    with ScoreStore(study.scores) as store:
        store.keep(rows, trials)


def test_a_failed_search_makes_room_for_another_plan_and_goes_on_with_its_own(failed: StudyFolder) -> None:
    said: list[str] = []
    before = list_files(failed)
    own, other = make_plan(rng_seed=0), make_plan(rng_seed=1)
    assert continue_or_replace(failed, own, say=said.append).fingerprint == own.fingerprint
    assert (list_files(failed), said) == (before, [])
    assert continue_or_replace(failed, other, say=said.append) == other
    assert said == [
        f"{failed.root}: held a search of another plan that ended before its first score; this one replaces it"
    ]
    assert list_files(failed) == ["mine.txt"]


def add_score(study: StudyFolder) -> None:
    add_rows(study, SweepRow(key="drop-1", rung="none", sums=[1.0]))


def add_trial(study: StudyFolder) -> None:
    add_rows(study, trials=make_trials()[:1])


def add_file(name: str) -> Callable[[StudyFolder], None]:
    def add(study: StudyFolder) -> None:
        (study.root / name).parent.mkdir(parents=True, exist_ok=True)
        (study.root / name).write_text("{}")

    return add


def keep_elsewhere(study: StudyFolder) -> None:
    folder.write_record(study.plan, make_plan(rng_seed=0, storage="sqlite:///trials.db"))


@pytest.mark.parametrize(
    "add",
    [
        add_score,
        add_trial,
        keep_elsewhere,
        *map(
            add_file, ("models/drop-1/config.json", "distilled/drop-1.json", "unrecovered/x/seed.json", "compare.json")
        ),
    ],
)
def test_what_holds_something_is_never_replaced(failed: StudyFolder, add: Callable[[StudyFolder], None]) -> None:
    add(failed)
    before = list_files(failed)
    with pytest.raises(StudyError, match=r"holds a study of another plan .rng_seed: 0 in the study, 1 now"):
        continue_or_replace(failed, make_plan(rng_seed=1), say=print)
    assert list_files(failed) == before
