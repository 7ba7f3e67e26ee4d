"""Databases: opened by many at once, looked at without a trace."""

import itertools
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

import seed
from seed.errors import StudyError
from seed.optimize.storage import open_storage
from seed.optimize.viewing import find_study_id, view_storage

REPOSITORY = Path(seed.__file__).parents[1]
OPENER = """
import sys
from pathlib import Path
import optuna
from seed.optimize.storage import open_storage

optuna.logging.set_verbosity(optuna.logging.WARNING)
print("ready", flush=True)
for url in sys.stdin:
    storage = open_storage(url.strip(), journal=Path("journal.log"))
    study = optuna.create_study(storage=storage, study_name="here", load_if_exists=True)
    trial = study.ask()
    study.tell(trial, 1.0)
    print("done", flush=True)
"""


@contextmanager
def start_openers(*, processes: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes that open the databases that they are told, and add a trial to each."""
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    try:
        for opener in openers:
            assert opener.stdout is not None
            assert opener.stdout.readline() == "ready\n", opener.communicate()
        yield openers
    finally:
        for opener in openers:
            opener.kill()
            opener.communicate()


def open_at_once(openers: list[subprocess.Popen[str]], url: str) -> None:
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write(f"{url}\n")
        opener.stdin.flush()
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "done\n", opener.communicate()
    study = optuna.load_study(storage=open_storage(url, journal=Path("journal.log")), study_name="here")
    assert [(trial.number, trial.value) for trial in study.trials] == [(n, 1.0) for n in range(len(openers))]


def test_many_processes_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    with start_openers(processes=4) as openers:
        for turn in range(3):
            open_at_once(openers, f"sqlite:///{tmp_path}/{turn}.db")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite+pysqlite:///"])
def test_a_database_in_memory_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"gone when the search ends\. Name a file"):
        open_storage(url, journal=tmp_path / "journal.log")


def test_tables_of_another_version_are_refused_with_the_cure(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    open_storage(url, journal=tmp_path / "journal.log")
    change(tmp_path / "studies.db", "UPDATE alembic_version SET version_num = 'v1.3.0.a'")
    for opened in (open_storage, view_storage):
        with pytest.raises(StudyError, match="optuna storage upgrade"):
            opened(url, journal=tmp_path / "journal.log")


def test_a_file_that_is_no_database_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "studies.db").write_text("what is this? " * 1000)
    for opened in (open_storage, view_storage):
        with pytest.raises(StudyError, match="not a database"):
            opened(f"sqlite:///{tmp_path}/studies.db", journal=tmp_path / "journal.log")


# ---- journals


def make_journal(path: Path) -> list[bytes]:
    study = optuna.create_study(storage=open_storage(None, journal=path), study_name="here")
    study.tell(study.ask({"x": optuna.distributions.IntDistribution(0, 3)}), 1.25)
    study.ask()
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    "line",
    [
        '{"op_code": 99, "worker_id": "x"}',
        '{"op_code": 0, "worker_id": "x"}',
        '{"op_code": 0, "worker_id": "x", "study_name": "y", "directions": [7]}',
        '{"op_code": "0", "worker_id": 5}',
        "{}",
        "5",
        "null",
        "[]",
        "what is this?",
    ],
)
@pytest.mark.parametrize("opened", [open_storage, view_storage])
def test_a_line_that_is_not_optunas_is_refused_with_its_number_and_may_be_removed(
    opened: Callable[..., BaseStorage], line: str, tmp_path: Path
) -> None:
    path = tmp_path / "journal.log"
    first, *others = make_journal(path)
    path.write_bytes(content := b"".join([first, line.encode() + b"\n", *others]))
    with pytest.raises(
        StudyError, match=r"journal\.log: line 2 is damaged, or was not written by Optuna .*Remove that line"
    ):
        opened(None, journal=path)
    assert path.read_bytes() == content
    path.write_bytes(b"".join([first, *others]))
    assert optuna.load_study(storage=opened(None, journal=path), study_name="here").trials[0].value == 1.25


def test_a_value_that_changed_on_the_disk_is_refused_and_journals_of_optunas_own_are_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    make_journal(path)
    path.write_bytes(path.read_bytes().replace(b'"values":[1.25]', b'"values":[1.35]'))
    with pytest.raises(StudyError, match=r"line \d+ is damaged.*checksum"):
        open_storage(None, journal=path)
    own = JournalStorage(JournalFileBackend(str(tmp_path / "own.log")))
    study = optuna.create_study(storage=own, study_name="own")
    study.tell(study.ask(), 2.0)
    opened = open_storage(None, journal=tmp_path / "own.log")
    assert optuna.load_study(storage=opened, study_name="own").trials[0].value == 2.0


# ---- looking


@pytest.mark.parametrize("forgotten", ["", "version_info", "alembic_version"])
def test_looking_creates_nothing(tmp_path: Path, forgotten: str) -> None:
    path = tmp_path / "studies.db"
    if forgotten:  # as a process leaves it that is killed while it creates them
        open_storage(f"sqlite:///{path}", journal=tmp_path / "journal.log")
        change(path, f"DELETE FROM {forgotten}")
    else:
        change(path, "CREATE TABLE mine (x)")
    content = path.read_bytes()
    with pytest.raises(StudyError, match="holds no studies yet"):
        view_storage(f"sqlite:///{path}", journal=tmp_path / "journal.log")
    assert path.read_bytes() == content
    open_storage(f"sqlite:///{path}", journal=tmp_path / "journal.log")
    view_storage(f"sqlite:///{path}", journal=tmp_path / "journal.log")


def test_looking_needs_no_right_to_write(tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    storage = open_storage(f"sqlite:///{path}", journal=tmp_path / "journal.log")
    study = optuna.create_study(storage=storage, study_name="here")
    study.tell(study.ask(), 1.0)
    content = path.read_bytes()
    # root may write everywhere, but not where SQLite itself was told to read only
    viewed = view_storage(f"sqlite:///file:{path}?mode=ro&uri=true", journal=tmp_path / "journal.log")
    assert viewed.get_n_trials(find_study_id(viewed, "here")) == 1
    assert path.read_bytes() == content


def change(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


def test_opening_again_and_again_is_given_up_when_it_never_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seed.optimize import storage as storages

    turns = itertools.count(1)

    def collide(*args: object, **settings: object) -> None:
        next(turns)
        error = storages.StudyError("table studies already exists")
        raise make_collision() from error

    monkeypatch.setattr(storages, "RDBStorage", collide)
    monkeypatch.setattr(storages.time, "sleep", lambda seconds: None)
    with pytest.raises(StudyError, match="already exists"):
        open_storage(f"sqlite:///{tmp_path}/studies.db", journal=tmp_path / "journal.log")
    assert next(turns) == storages.OPENING_TRIES + 1


def make_collision() -> Exception:
    from sqlalchemy import exc

    return exc.OperationalError("CREATE TABLE studies", {}, sqlite3.OperationalError("table studies already exists"))
