"""The patient storage: a storage as Optuna wants one, that waits for its server and does nothing twice."""

import inspect
import itertools
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import IntDistribution
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.storages._heartbeat import BaseHeartbeat, is_heartbeat_enabled
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState
from sqlalchemy import exc

from seed.errors import StudyError
from seed.optimize import patience
from seed.optimize.patience import PatientStorage, find_outage
from seed.optimize.storage import open_storage

MINIMIZE = [StudyDirection.MINIMIZE]
GONE = exc.OperationalError("SELECT 1", {}, Exception("server closed the connection\n\tunexpectedly"))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_SECONDS", 0.01)


# ---- Optuna's own contract


class TestOverMemory(StorageTestCase):
    @pytest.fixture
    def storage(self) -> BaseStorage:
        return PatientStorage(InMemoryStorage(), patience_seconds=5)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with tables, which take a while to create."""
    path = tmp_path_factory.mktemp("empty") / "studies.db"
    open_database(path)
    return path


@pytest.fixture
def database(tmp_path: Path, empty: Path) -> Path:
    return shutil.copy(empty, tmp_path / "studies.db")


def open_database(path: Path) -> PatientStorage:
    storage = open_storage(f"sqlite:///{path}", journal=path.parent / "journal.log", patience_seconds=20)
    assert isinstance(storage, PatientStorage)
    # nothing here outlives the machine, and waiting for the disk would take most of the time
    sqlalchemy.event.listen(
        patience.find_engine(storage.inner), "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF")
    )
    storage.close()
    return storage


class TestOverSqlite(StorageTestCase):
    @pytest.fixture
    def storage(self, database: Path) -> BaseStorage:
        return open_database(database)


def test_every_method_of_a_storage_is_passed_on() -> None:
    wanted = {
        name
        for base in (BaseStorage, BaseHeartbeat)
        for name, member in inspect.getmembers(base, inspect.isfunction)
        if not name.startswith("_") or getattr(member, "__isabstractmethod__", False)
    }
    wanted.remove("get_failed_trial_callback")  # deprecated: asks for get_heartbeat_stale_trial_callback
    assert wanted <= set(vars(PatientStorage))


@pytest.mark.parametrize("name", sorted(name for name in vars(PatientStorage) if name in dir(BaseStorage)))
def test_what_is_passed_on_has_the_signature_that_optuna_gives_it(name: str) -> None:
    if not name.startswith("_") and name != "close":
        assert list(inspect.signature(getattr(PatientStorage, name)).parameters.values()) == [
            parameter.replace(annotation=inspect.signature(getattr(PatientStorage, name)).parameters[key].annotation)
            for key, parameter in inspect.signature(getattr(BaseStorage, name)).parameters.items()
        ]


# ---- outages


class Server:
    """Stands before a storage and is away now and then: the next ``away`` calls fail, before or after they were done."""

    def __init__(self, inner: BaseStorage, *, error: Exception = GONE) -> None:
        self.inner, self.error, self.away, self.is_late, self.calls = inner, error, 0, False, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)

        def call(*args: Any, **settings: Any) -> Any:
            self.calls += 1
            if self.away and not self.is_late:
                self.away -= 1
                raise self.error
            answer = method(*args, **settings)
            if self.away:
                self.away -= 1
                raise self.error
            return answer

        return call


def surround(inner: BaseStorage | None = None, *, seconds: float = 30, error: Exception = GONE):
    """Return a server, the patient storage before it and what that complained of."""
    server, told = Server(inner or InMemoryStorage(), error=error), []
    return server, PatientStorage(server, complain=told.append, patience_seconds=seconds), told


def make_template(**changes: Any) -> optuna.trial.FrozenTrial:
    given = {"params": {"x": 1}, "distributions": {"x": IntDistribution(0, 3)}, "values": [1.5]}
    return optuna.trial.create_trial(**(given | changes))


def test_an_outage_is_waited_for_and_told_once() -> None:
    server, storage, told = surround()
    study_id = storage.create_new_study(MINIMIZE, "here")
    server.away = 5
    assert storage.get_study_id_from_name("here") == study_id
    assert told == [
        "the storage does not answer (server closed the connection unexpectedly); waiting for it",
        "the storage answers again, after 0 s",
    ]
    server.away = 1
    storage.get_all_studies()
    assert len(told) == 4


def test_threads_that_wait_together_tell_it_once() -> None:
    server, storage, told = surround()
    server.away = 40
    threads = [threading.Thread(target=storage.get_all_studies) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.away == 0
    assert len(told) == 2 * sum("waiting" in line for line in told)
    assert "waiting" in told[0]
    assert "again" in told[-1]


def test_patience_ends_with_the_cure_and_without_a_password() -> None:
    error = exc.OperationalError("SELECT 1", {}, Exception("x://me:hunter2@host?password=hunter2 is gone"))
    server, storage, told = surround(seconds=0.05, error=error)
    server.away = 10**9
    with pytest.raises(
        StudyError, match=r"did not answer for 0 s \(x://me:\*\*\*@host.*run the same command"
    ) as caught:
        storage.get_all_studies()
    assert server.calls > 2
    assert len(told) == 1
    assert not any("hunter2" in line for line in [*told, str(caught.value)])
    server.away = 1
    storage.get_all_studies()
    assert len(told) == 3  # a new outage is told anew


def test_without_patience_an_outage_is_an_error_at_once() -> None:
    server, storage, told = surround(seconds=0)
    server.away = 1
    with pytest.raises(StudyError):
        storage.get_all_studies()
    assert (server.calls, told) == (1, [])


def wrap(cause: Exception, error: Exception) -> Exception:
    error.__cause__ = cause
    return error


def busy(name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("told by SQLite")
    error.sqlite_errorname = name
    return error


def state(code: str) -> Exception:
    error = Exception("told by the server")
    error.sqlstate = code
    return error


OUTAGES = [
    GONE,
    exc.InterfaceError("", {}, Exception("the connection is closed")),
    exc.DBAPIError("", {}, Exception("broken"), connection_invalidated=True),
    exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached, connection timed out"),
    wrap(GONE, StorageInternalError("An exception is raised during the commit.")),
    wrap(exc.TimeoutError("pool"), StorageInternalError("An exception is raised during the commit.")),
    wrap(GONE, exc.PendingRollbackError("Can't reconnect until invalid transaction is rolled back.")),
    exc.OperationalError("", {}, state("57P01")),
    exc.OperationalError("", {}, state("53300")),
    exc.OperationalError("", {}, state("40P01")),
    exc.OperationalError("", {}, busy("SQLITE_BUSY")),
    exc.OperationalError("", {}, busy("SQLITE_BUSY_SNAPSHOT")),
    patience.StorageAwayError("gone"),
]
LASTING = [
    KeyError("study"),
    ValueError("x"),
    DuplicatedStudyError("here"),
    UpdateFinishedTrialError("x"),
    StorageInternalError("x"),
    exc.IntegrityError("", {}, Exception("duplicate key")),
    exc.ProgrammingError("", {}, Exception("no such table")),
    exc.DataError("", {}, Exception("too long")),
    wrap(
        exc.DataError("", {}, Exception("too long")), StorageInternalError("An exception is raised during the commit.")
    ),
    exc.OperationalError("", {}, state("28P01")),
    exc.OperationalError("", {}, state("3D000")),
    exc.OperationalError("", {}, busy("SQLITE_ERROR")),  # no such table, too many variables
    exc.OperationalError("", {}, busy("SQLITE_READONLY")),
    wrap(GONE, KeyError("study")),
]


@pytest.mark.parametrize("error", OUTAGES, ids=repr)
def test_outages_are_known(error: Exception) -> None:
    server, storage, _ = surround(error=error)
    server.away = 2
    assert storage.get_all_studies() == []
    assert server.calls == 3


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_is_no_outage_goes_through_untouched(error: Exception) -> None:
    server, storage, told = surround(error=error)
    server.away = 1
    with pytest.raises(type(error)) as caught:
        storage.get_all_studies()
    assert caught.value is error
    assert (server.calls, told) == (1, [])


def test_the_last_cause_is_told() -> None:
    pending = wrap(GONE, exc.PendingRollbackError("Can't reconnect until invalid transaction is rolled back."))
    assert find_outage(wrap(pending, StorageInternalError("x"))) == "server closed the connection unexpectedly"


# ---- what was done, its answer lost


def finish(storage: BaseStorage, trial_id: int) -> bool:
    return storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.5])


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(
    "write",
    [
        lambda storage, study_id, trial_id: storage.set_study_user_attr(study_id, "a", 1),
        lambda storage, study_id, trial_id: storage.set_study_system_attr(study_id, "a", 1),
        lambda storage, study_id, trial_id: storage.set_trial_user_attr(trial_id, "a", 1),
        lambda storage, study_id, trial_id: storage.set_trial_system_attr(trial_id, "a", 1),
        lambda storage, study_id, trial_id: storage.set_trial_intermediate_value(trial_id, 3, 0.5),
        lambda storage, study_id, trial_id: storage.set_trial_param(trial_id, "x", 1, IntDistribution(0, 3)),
        lambda storage, study_id, trial_id: finish(storage, trial_id),
        lambda storage, study_id, trial_id: storage.set_trial_state_values(trial_id, TrialState.FAIL),
        lambda storage, study_id, trial_id: storage.create_new_trial(study_id, TEMPLATE) and None,
    ],
)
def test_a_write_whose_answer_is_lost_is_written_once(write: Callable[..., Any], is_late: bool) -> None:
    found = []
    for away in (0, 1, 3):
        server, storage, _ = surround()
        study_id = storage.create_new_study(MINIMIZE, "here")
        trial_id = storage.create_new_trial(study_id)
        server.away, server.is_late = away, is_late
        answer = write(storage, study_id, trial_id)
        assert server.away < away or away == 0
        server.away = 0
        [study] = storage.get_all_studies()
        trials = [
            (trial.state, trial.values, trial.params, trial.user_attrs, trial.system_attrs, trial.intermediate_values)
            for trial in storage.get_all_trials(study_id)
        ]
        found.append((answer, study.user_attrs, study.system_attrs, trials))
    assert found[0] == found[1] == found[2]


TEMPLATE = make_template()


def test_a_trial_that_was_finished_otherwise_meanwhile_is_not_ours() -> None:
    server, storage, _ = surround()
    trial_id = storage.create_new_trial(storage.create_new_study(MINIMIZE, "here"))

    def fail_meanwhile(trial: int, *rest: Any) -> bool:
        if not server.inner.get_trial(trial).state.is_finished():
            server.inner.set_trial_state_values(trial, TrialState.FAIL)
            raise GONE
        return bool(server.inner.set_trial_state_values(trial, *rest))

    server.set_trial_state_values = fail_meanwhile
    with pytest.raises(UpdateFinishedTrialError):
        finish(storage, trial_id)


def test_a_finished_trial_is_not_ours_where_there_was_no_outage() -> None:
    _, storage, _ = surround()
    trial_id = storage.create_new_trial(storage.create_new_study(MINIMIZE, "here"))
    assert finish(storage, trial_id)
    with pytest.raises(UpdateFinishedTrialError):
        finish(storage, trial_id)


def test_a_trial_like_another_is_added_all_the_same() -> None:
    server, storage, _ = surround()
    study_id = storage.create_new_study(MINIMIZE, "here")
    storage.create_new_trial(study_id, make_template())
    server.away = 1
    storage.create_new_trial(study_id, make_template())  # equal but for its times
    assert storage.get_n_trials(study_id) == 2


def test_a_trial_that_is_asked_for_may_leave_another_that_runs() -> None:
    server, storage, _ = surround()
    study_id = storage.create_new_study(MINIMIZE, "here")
    server.away, server.is_late = 1, True
    assert storage.create_new_trial(study_id) == 1
    assert [trial.state for trial in storage.get_all_trials(study_id)] == [TrialState.RUNNING] * 2


# ---- a real database whose answers are lost


class LostError(sqlite3.OperationalError):
    sqlite_errorname = "SQLITE_IOERR"


def lose_commits(storage: PatientStorage, *, which: Callable[[int], bool], is_done: bool) -> None:
    """Let commits fail, after or before they were done."""
    engine = patience.find_engine(storage.inner)
    assert engine is not None
    commit, turns = engine.dialect.do_commit, itertools.count()

    def lose(connection: Any) -> None:
        is_lost = which(next(turns))
        if is_done or not is_lost:
            commit(connection)
        if is_lost:
            raise LostError("lost")

    engine.dialect.do_commit = lose


@pytest.mark.parametrize("is_done", [False, True])
def test_a_study_over_a_database_that_loses_every_third_commit_is_whole(database: Path, is_done: bool) -> None:
    storage = open_database(database)
    study = optuna.create_study(storage=storage, study_name="here")
    lose_commits(storage, which=lambda turn: turn % 3 == 0, is_done=is_done)
    told = []
    for number in range(20):
        if number % 2:
            study.add_trial(make_template(values=[float(number)]))
        else:
            trial = study.ask(fixed_distributions={"x": IntDistribution(0, 3)})
            trial.set_user_attr("number", number)
            study.tell(trial, float(number))
        told.append(float(number))
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert sorted(trial.value for trial in complete) == told
    assert [trial.user_attrs for trial in complete if trial.user_attrs] == [{"number": n} for n in range(0, 20, 2)]
    assert all(trial.params for trial in complete)
    others = [trial for trial in study.trials if trial.state != TrialState.COMPLETE]
    assert all(trial.state == TrialState.RUNNING and not trial.params for trial in others)
    assert is_done or not others


# ---- heartbeats


class Beaten(InMemoryStorage, BaseHeartbeat):
    stale: tuple[int, ...] = ()
    interval = 10

    def record_heartbeat(self, trial_id: int) -> None:
        pass

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        return list(self.stale)

    def get_heartbeat_interval(self) -> int:
        return self.interval

    def get_heartbeat_stale_trial_callback(self) -> None:
        return None


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_heartbeats_go_through() -> None:
    inner = Beaten()
    storage = PatientStorage(inner, patience_seconds=1)
    assert is_heartbeat_enabled(storage)
    assert storage.get_heartbeat_interval() == 10
    study = optuna.create_study(storage=storage)
    storage.create_new_trial(study._study_id)
    optuna.storages.fail_stale_trials(study)
    assert study.trials[0].state == TrialState.RUNNING
    inner.stale = (0,)
    optuna.storages.fail_stale_trials(study)
    assert study.trials[0].state == TrialState.FAIL
    assert not is_heartbeat_enabled(PatientStorage(InMemoryStorage(), patience_seconds=1))


def test_a_heartbeat_is_not_waited_for_and_after_an_outage_nobody_is_stale_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = Beaten()
    storage = PatientStorage(inner, patience_seconds=10**9)
    inner.stale = (0,)
    assert storage._get_stale_trial_ids(0) == [0]
    monkeypatch.setattr(inner, "record_heartbeat", lambda trial_id: (_ for _ in ()).throw(GONE))
    with pytest.raises(exc.OperationalError):
        storage.record_heartbeat(0)
    assert storage._get_stale_trial_ids(0) == []
    now = patience.time.monotonic()
    monkeypatch.setattr(patience.time, "monotonic", lambda: now + 2 * inner.interval)
    assert storage._get_stale_trial_ids(0) == [0]


# ---- connections


def test_connections_are_closed_when_the_storage_is_no_longer_used(database: Path) -> None:
    storage = open_database(database)
    engine = patience.find_engine(storage.inner)
    assert engine is not None
    storage.create_new_study(MINIMIZE, "here")
    closed = []
    sqlalchemy.event.listen(engine, "close", lambda *_: closed.append(True))
    del storage
    assert closed
