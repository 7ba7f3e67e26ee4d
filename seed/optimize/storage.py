"""Where an Optuna study is kept: a journal in the study's folder, or a database by its URL. Opened, and mended where it is torn.

What a study holds, and who may work on it, is decided elsewhere.
"""

import os
import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage

from seed.errors import StudyError
from seed.optimize.journal import open_journal, repair_journal
from seed.optimize.urls import POSTGRES_CURE, check_storage_url, hide_secrets, name_driver, spell_error

HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60  # six heartbeats missed: the worker is gone
PATIENCE_SECONDS = 300.0  # a server's restart takes seconds, a machine's reboot a few minutes
CONNECT_SECONDS = 10  # libpq waits for ever where packets are dropped
OPENING_TRIES = 20
TAKEN_STATES = ("23505", "40P01", "42710", "42P06", "42P07")  # SQLSTATE: somebody else made it, or is making it


def open_storage(
    url: str | None,
    *,
    journal: Path,
    complain: Callable[[str], None] | None = None,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
    grace_seconds: int = GRACE_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
) -> BaseStorage:
    """Return the study's storage: the journal in its folder, or the database that a URL names.

    A database has heartbeats, and is waited for when it is away: ``complain`` is told so (seed/optimize/patience.py). It is
    not waited for while it is opened, since a mistake in the URL is likelier then. Any number of processes may open one at
    once. A journal has neither.

    Raises:
        StudyError: the URL cannot be used.
    """
    if url is None:
        repair_journal(journal)
        return open_journal(journal)
    from seed.optimize.patience import PatientStorage, ignore  # SQLAlchemy takes a while, and a journal does without

    check_storage_url(url)
    database = connect(url, heartbeat_seconds=heartbeat_seconds, grace_seconds=grace_seconds, prepare=create_tables)
    return PatientStorage(database, complain=complain or ignore, patience_seconds=patience_seconds)


def connect(
    url: str,
    *,
    heartbeat_seconds: int | None,
    grace_seconds: int | None,
    prepare: Callable[[str, dict[str, Any]], None],
) -> BaseStorage:
    """Return Optuna's cache over a database that ``prepare`` has made ready, or has refused.

    Raises:
        StudyError: it cannot be opened.
    """
    try:
        driven = name_driver(url)
        arguments = make_connect_arguments(driven)
        prepare(driven, arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
            database = RDBStorage(
                driven,
                # the search may not need the database for an hour, and a firewall or a restart cuts what is idle
                engine_kwargs={"pool_pre_ping": True, "connect_args": arguments},
                skip_compatibility_check=True,
                skip_table_creation=True,
                heartbeat_interval=heartbeat_seconds,
                grace_period=grace_seconds,
            )
        # we do send heartbeats (seed/optimize/heartbeats.py); Optuna says this whenever a trial is asked for
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used with")
        return optuna.storages.get_storage(database)
    except StudyError:
        raise
    except Exception as error:  # drivers and servers fail in every way there is
        raise StudyError(describe_failure(url, error)) from error


def create_tables(url: str, arguments: dict[str, Any]) -> None:
    """Create Optuna's tables where they are missing, or check that they are of this Optuna's version.

    Optuna looks for tables and then creates them, so that all but one of the processes that open a new database at once
    fail. They look again.
    """
    import sqlalchemy

    rng = random.Random()
    for left in reversed(range(OPENING_TRIES)):
        try:
            # without a pool, so that a failure leaves no connection behind
            RDBStorage(url, engine_kwargs={"poolclass": sqlalchemy.NullPool, "connect_args": arguments})
            return
        except Exception as error:
            if not left or not is_race(error):
                raise
        time.sleep(rng.uniform(0.05, 0.5))


def is_race(error: BaseException) -> bool:
    """Did somebody else create the same tables at the same time?"""
    from sqlalchemy import exc

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, exc.DBAPIError) and cause.orig is not None:
            state = getattr(cause.orig, "sqlstate", None) or getattr(cause.orig, "pgcode", None)
            told = str(cause.orig)
            return (
                isinstance(cause, exc.IntegrityError)
                or state in TAKEN_STATES
                or "already exists" in told
                or "database is locked" in told
            )
        cause = cause.__cause__
    return False


def make_connect_arguments(url: str) -> dict[str, Any]:
    """What a driver is told besides the URL, whose own settings win: a dead connection to PostgreSQL is noticed in a minute."""
    import sqlalchemy

    parsed = sqlalchemy.make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StudyError(
            "--storage: a database in memory is gone when the search ends. Name a file, sqlite:///studies.db."
        )
    if parsed.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    wanted = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
    if "PGCONNECT_TIMEOUT" not in os.environ:
        wanted["connect_timeout"] = CONNECT_SECONDS
    return {name: value for name, value in wanted.items() if name not in parsed.query}


def describe_failure(url: str, error: Exception) -> str:
    """Say what was found and what is wanted when a database cannot be opened."""
    told = spell_error(find_first_cause(error))
    place = f"--storage {hide_secrets(url)}: cannot be opened ({told})."
    if not url.startswith("postgresql"):
        return (
            f"{place} Wanted: an Optuna storage URL such as sqlite:///studies.db or postgresql://USER@HOST/DATABASE, "
            "its server running and its driver installed."
        )
    if isinstance(find_first_cause(error), ImportError):
        return f"{place} {POSTGRES_CURE}"
    if "password" in told:
        return f"{place} Put the user's password into ~/.pgpass or PGPASSWORD, then run the command again."
    return (
        f"{place} Wanted: postgresql://USER@HOST/DATABASE, its server running, and a database that exists and where this "
        "user may create tables."
    )


def find_first_cause(error: BaseException) -> BaseException:
    """Return what a library wrapped, SQLAlchemy's wrapping of a driver's error included."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
