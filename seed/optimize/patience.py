"""A storage that is waited for: when its server is away for a while, the search pauses and then goes on.

Where a study is kept, and what it holds, is decided elsewhere. What is not an outage goes through untouched.
"""

import contextlib
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Container, Sequence
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import exc
from sqlalchemy.engine import ExceptionContext

from seed.errors import StudyError
from seed.optimize.urls import spell_error

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
SQLITE_OUTAGES = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_FULL")
LASTING_CLASSES = ("28", "3D", "42")  # SQLSTATE: not allowed in, no such database, no such table

Answer = TypeVar("Answer")


class StorageAwayError(Exception):
    """The server of a storage does not answer; the message says why."""


def ignore(message: str) -> None:
    """Say nothing."""


class PatientStorage(BaseStorage, BaseHeartbeat):
    """Passes everything on to ``inner``; while that is away, waits with growing pauses and tries again.

    ``complain`` is told once when waiting begins and once when it is over, however many threads wait. After
    ``patience_seconds`` a StudyError says what to do.

    What is tried again may have been done already, its answer lost on the way:

    - Attributes, flags and intermediate values are overwritten by themselves.
    - A trial found finished, with exactly the state and the values that were to be written, counts as written.
    - A finished trial that was to be added and is there, to the microsecond of its times, is not added again.
    - ``create_new_trial`` without a template, and a WAITING trial that was to be started, may leave a RUNNING trial that
      nobody works on and that has no heartbeat: who asks for trials has to pass over such trials. An enqueued trial (a
      WAITING template) may be there twice.
    - A named study may have been created: DuplicatedStudyError goes through, and ``load_if_exists`` copes with it.

    Heartbeats are not waited for, since a late one is worth nothing: whoever sends them sends another. And since nobody
    could send any while the storage was away, no trial counts as stale until two intervals after it is back.
    """

    def __init__(
        self,
        inner: BaseStorage,
        *,
        complain: Callable[[str], None] = ignore,
        patience_seconds: float,
    ) -> None:
        self.inner, self.complain, self.patience_seconds = inner, complain, patience_seconds
        self._prepare()

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._is_waited_for = False
        self._seen_away: float | None = None  # monotonic seconds
        # pauses differ between workers, and the state of the module's own generator is not ours to move
        self._rng = random.Random()
        engine = find_engine(self.inner)
        if engine is not None:
            sqlalchemy.event.listen(engine, "handle_error", name_outage)
            keep_utc(engine)
            close_with(self, engine)

    def close(self) -> None:
        """Close the connections to the server. They close by themselves when the storage is no longer used."""
        engine = find_engine(self.inner)
        if engine is not None:
            engine.dispose()

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner, "complain": self.complain, "patience_seconds": self.patience_seconds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def _insist(self, call: Callable[[], Answer], *, repeat: Callable[[], Answer] | None = None) -> Answer:
        """Call until there is an answer; ``repeat`` is what is called after the first time."""
        began = time.monotonic()
        pause, is_waiting = FIRST_PAUSE_SECONDS, False
        while True:
            try:
                answer = (repeat or call)() if is_waiting else call()
            except Exception as error:
                reason = find_outage(error)
                if reason is None:
                    raise
                self._seen_away = time.monotonic()
                if not is_waiting:
                    began, is_waiting = self._seen_away, True
                left = began + self.patience_seconds - time.monotonic()
                if left <= 0:
                    self._is_waited_for = False
                    raise StudyError(
                        f"the storage did not answer for {self.patience_seconds:.0f} s ({reason}). Start its server again, "
                        "then run the same command: what was told to the storage is kept, and the search goes on from there."
                    ) from error
                self._announce(reason)
            else:
                if is_waiting:
                    self._announce(None, seconds=time.monotonic() - began)
                return answer
            time.sleep(min(pause * self._rng.uniform(0.7, 1.3), left))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _announce(self, reason: str | None, *, seconds: float = 0.0) -> None:
        with self._lock:
            is_news = self._is_waited_for != (reason is not None)
            self._is_waited_for = reason is not None
        if is_news and reason is not None:
            self.complain(f"the storage does not answer ({reason}); waiting for it")
        elif is_news:
            self.complain(f"the storage answers again, after {seconds:.0f} s")

    # ---- studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return self._insist(lambda: self.inner.create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        self._insist(lambda: self.inner.delete_study(study_id))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._insist(lambda: self.inner.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._insist(lambda: self.inner.set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._insist(lambda: self.inner.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._insist(lambda: self.inner.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._insist(lambda: self.inner.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._insist(lambda: self.inner.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._insist(lambda: self.inner.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        return self._insist(self.inner.get_all_studies)

    # ---- trials, written

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        def repeat() -> int:
            added = None if template_trial is None else find_added_trial(self.inner, study_id, template_trial)
            return added if added is not None else self.inner.create_new_trial(study_id, template_trial)

        return self._insist(lambda: self.inner.create_new_trial(study_id, template_trial), repeat=repeat)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._insist(lambda: self.inner.set_trial_param(trial_id, param_name, param_value_internal, distribution))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        def repeat() -> bool:
            try:
                return self.inner.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                stored = self.inner.get_trial(trial_id)
                wanted = None if values is None else list(values)
                if (stored.state, stored.values) == (state, wanted):
                    return True
                raise

        return self._insist(lambda: self.inner.set_trial_state_values(trial_id, state, values), repeat=repeat)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._insist(lambda: self.inner.set_trial_intermediate_value(trial_id, step, intermediate_value))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._insist(lambda: self.inner.set_trial_user_attr(trial_id, key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._insist(lambda: self.inner.set_trial_system_attr(trial_id, key, value))

    # ---- trials, read

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._insist(lambda: self.inner.get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return self._insist(lambda: self.inner.get_all_trials(study_id, deepcopy, states))

    def get_n_trials(self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None) -> int:
        return self._insist(lambda: self.inner.get_n_trials(study_id, state))

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        return self._insist(lambda: self.inner.get_best_trial(study_id))

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self._insist(lambda: self.inner.get_trial_id_from_study_id_trial_number(study_id, trial_number))

    def get_trial_number_from_id(self, trial_id: int) -> int:
        return self._insist(lambda: self.inner.get_trial_number_from_id(trial_id))

    def get_trial_param(self, trial_id: int, param_name: str) -> float:
        return self._insist(lambda: self.inner.get_trial_param(trial_id, param_name))

    def get_trial_params(self, trial_id: int) -> dict[str, Any]:
        return self._insist(lambda: self.inner.get_trial_params(trial_id))

    def get_trial_user_attrs(self, trial_id: int) -> dict[str, Any]:
        return self._insist(lambda: self.inner.get_trial_user_attrs(trial_id))

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        return self._insist(lambda: self.inner.get_trial_system_attrs(trial_id))

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        self._insist(lambda: self.inner.check_trial_is_updatable(trial_id, trial_state))

    def remove_session(self) -> None:
        self.inner.remove_session()

    # ---- heartbeats

    def record_heartbeat(self, trial_id: int) -> None:
        if not isinstance(self.inner, BaseHeartbeat):
            return
        try:
            self.inner.record_heartbeat(trial_id)
        except Exception as error:
            if find_outage(error) is not None:
                self._seen_away = time.monotonic()
            raise

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        inner, interval = self.inner, self.get_heartbeat_interval()
        if not isinstance(inner, BaseHeartbeat) or interval is None:
            return []
        stale = self._insist(lambda: inner._get_stale_trial_ids(study_id))
        if self._seen_away is not None and time.monotonic() - self._seen_away < 2 * interval:
            return []  # the living had no chance yet to say so
        return stale

    def get_heartbeat_interval(self) -> int | None:
        return self.inner.get_heartbeat_interval() if isinstance(self.inner, BaseHeartbeat) else None

    def get_heartbeat_stale_trial_callback(self) -> Callable[[optuna.Study, FrozenTrial], None] | None:
        return self.inner.get_heartbeat_stale_trial_callback() if isinstance(self.inner, BaseHeartbeat) else None


def find_added_trial(storage: BaseStorage, study_id: int, template: FrozenTrial) -> int | None:
    """Return the id of the trial that was added from a finished template, if it is there: its times tell it from any other."""
    if template.datetime_start is None or template.datetime_complete is None:
        return None

    def identify(trial: FrozenTrial) -> tuple[Any, ...]:
        return (trial.state, trial.datetime_start, trial.datetime_complete, trial.values, trial.params)

    return next(
        (
            trial._trial_id
            for trial in reversed(storage.get_all_trials(study_id, deepcopy=False))
            if identify(trial) == identify(template)
        ),
        None,
    )


def find_outage(error: BaseException) -> str | None:
    """Say why a storage is away, if that is what an error means; None for every other error."""
    if isinstance(error, StorageAwayError):
        return str(error)
    if not isinstance(error, (StorageInternalError, exc.SQLAlchemyError)):
        return None
    # Optuna wraps what it meets, and SQLAlchemy complains of a transaction that an outage broke: the last cause tells most
    reason, seen = None, set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, StorageAwayError):
            return str(cause)
        if isinstance(cause, exc.SQLAlchemyError) and is_outage(cause):
            reason = spell_error(cause.orig if isinstance(cause, exc.DBAPIError) and cause.orig else cause)
        cause = cause.__cause__ or cause.__context__
    return reason


def is_outage(error: exc.SQLAlchemyError) -> bool:
    """May what failed succeed a little later, when the server is back, or the file free?"""
    if isinstance(error, (exc.TimeoutError, exc.DisconnectionError, exc.PendingRollbackError)):
        return True
    if not isinstance(error, exc.DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):  # OperationalError is also what a missing table is to SQLite
        return getattr(error.orig, "sqlite_errorname", "").startswith(SQLITE_OUTAGES)
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None) or ""
    is_kind = isinstance(error, (exc.OperationalError, exc.InterfaceError)) and not state.startswith(LASTING_CLASSES)
    return error.connection_invalidated or is_kind


def name_outage(context: ExceptionContext) -> Exception | None:
    """Give outages a name of our own, as SQLAlchemy's handler of errors.

    Optuna tries again by itself when a trial cannot be created, which adds it twice if only the answer was lost, and takes an
    outage amid reading for too long a query. It does so for SQLAlchemy's errors only.
    """
    error = context.sqlalchemy_exception
    if error is None or getattr(context, "is_pre_ping", False) or not is_outage(error):
        return None
    return StorageAwayError(find_outage(error))


def keep_utc(engine: sqlalchemy.Engine) -> None:
    """Let PostgreSQL tell the time in UTC: heartbeats are stored without a zone, and clocks that go forward would end them all."""
    if engine.name != "postgresql":
        return

    def set_zone(connection: Any, record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET TIME ZONE 'UTC'")
        connection.commit()

    sqlalchemy.event.listen(engine, "connect", set_zone)
    engine.dispose()  # the connection that is open already does not know


def find_engine(storage: BaseStorage) -> sqlalchemy.Engine | None:
    """Return what connects a storage, or Optuna's cache over it, to a database; None where nothing does."""
    engine = getattr(getattr(storage, "_backend", storage), "engine", None)
    return engine if isinstance(engine, sqlalchemy.Engine) else None


def close_with(storage: BaseStorage, engine: sqlalchemy.Engine) -> None:
    """Close an engine's connections when its storage is no longer used."""
    weakref.finalize(storage, _dispose, engine, os.getpid())


def _dispose(engine: sqlalchemy.Engine, pid: int) -> None:
    # a forked child must not say goodbye on a connection that is its parent's
    with contextlib.suppress(exc.SQLAlchemyError):
        engine.dispose(close=os.getpid() == pid)
