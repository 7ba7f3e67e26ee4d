"""Storages: journals of one writer, mended where they are torn; databases, looked at without a trace."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from seed.errors import ResourceError, StudyError
from seed.optimize.storage import find_study_id, load_study, open_storage, view_storage

# ---- databases


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


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "studies.db").write_text("what is this? " * 1000)
    for opened in (open_storage, view_storage):
        with pytest.raises(StudyError, match="not a database"):
            opened(f"sqlite:///{tmp_path}/studies.db", journal=tmp_path / "journal.log")


def change(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


# ---- journals


def make_journal(path: Path) -> list[bytes]:
    study = optuna.create_study(storage=open_storage(None, journal=path), study_name="here")
    study.tell(study.ask({"x": optuna.distributions.IntDistribution(0, 3)}), 1.25)
    study.ask()
    return path.read_bytes().splitlines(keepends=True)


def count_trials(storage: BaseStorage) -> int:
    return len(optuna.load_study(storage=storage, study_name="here").trials)


@pytest.mark.parametrize(
    "line",
    [
        '{"op_code": 0, "worker_id": "x", "study_name": "y", "directions": [7]}',
        '{"op_code": "0", "worker_id": 5}',
        "what is this?",
    ],
)
@pytest.mark.parametrize("opened", [open_storage, view_storage])
def test_a_line_that_is_not_optunas_is_refused(opened: Callable[..., BaseStorage], line: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    first, *others = make_journal(path)
    path.write_bytes(content := b"".join([first, line.encode() + b"\n", *others]))
    with pytest.raises(StudyError, match=r"journal\.log: damaged, or was not written by Optuna .*Remove the file"):
        opened(None, journal=path)
    assert path.read_bytes() == content


def test_a_torn_last_line_is_cut_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    *whole, last = make_journal(path)
    kept = b"".join(whole)
    for torn in (*(last[:length] for length in range(len(last))), last[:-5] + b"\n", b"\0" * 100):
        path.write_bytes(kept + torn)
        assert count_trials(view_storage(None, journal=path)) == 1
        assert path.read_bytes() == kept + torn
        assert count_trials(open_storage(None, journal=path)) == 1
        assert path.read_bytes() == kept
    path.write_bytes(last[:-5])
    assert open_storage(None, journal=path).get_all_studies() == []


def test_a_line_that_the_disk_takes_in_part_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.log"
    make_journal(path)
    study = load_study(open_storage(None, journal=path), "here")
    content = path.read_bytes()

    def fill(self: JournalFileBackend, logs: list[dict[str, object]]) -> None:
        with path.open("ab") as handle:
            handle.write(b'{"op_code":4,"wor')
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(JournalFileBackend, "append_logs", fill)
        with pytest.raises(ResourceError, match=r"journal\.log: cannot be written"):
            study.ask()
    assert path.read_bytes() == content
    study.ask()
    assert count_trials(open_storage(None, journal=path)) == 3


def test_what_optuna_wrote_is_read_and_what_is_written_optuna_reads(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    own = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(path))), study_name="here")
    own.tell(own.ask(), 2.0)
    study = load_study(open_storage(None, journal=path), "here")
    study.tell(study.ask(), 3.0)
    plain = optuna.load_study(storage=JournalStorage(JournalFileBackend(str(path))), study_name="here")
    assert [trial.value for trial in plain.trials] == [2.0, 3.0]
    assert [trial.value for trial in own.trials] == [2.0, 3.0]
    assert {found.name for found in tmp_path.iterdir()} == {"journal.log"}


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
    for url in (None, f"sqlite:///{tmp_path}/none.db"):
        with pytest.raises(StudyError, match=r"missing|no such file"):
            view_storage(url, journal=tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()


def test_a_study_that_is_not_there_is_named(tmp_path: Path) -> None:
    make_journal(tmp_path / "journal.log")
    storage = view_storage(None, journal=tmp_path / "journal.log")
    for find in (find_study_id, load_study):
        with pytest.raises(StudyError, match=r"study there: not in this storage"):
            find(storage, "there")
