"""Where an Optuna study is kept and shown: a journal in the study's folder, or a database by its URL. It coordinates nothing.

Only one process, which holds the study's folder, asks and tells.
"""

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage

from seed.errors import ResourceError, StudyError
from seed.optimize.journal import open_journal
from seed.optimize.urls import POSTGRES_CURE, check_storage_url, hide_secrets, name_driver, spell_error

CONNECT_SECONDS = 10  # libpq waits for ever where packets are dropped


def open_storage(url: str | None, *, journal: Path) -> BaseStorage:
    """Return the storage that a study is written into: the journal in its folder, mended where it is torn, or a database.

    Raises:
        StudyError: the journal is damaged, or the URL cannot be used.
    """
    if url is None:
        return open_journal(journal)
    return connect(url, prepare=make_tables)


def connect(url: str, *, prepare: Callable[[str, dict[str, Any]], None]) -> BaseStorage:
    """Return the storage that a database is, which ``prepare`` has made ready or has refused, by its URL and SQLAlchemy's settings.

    Raises:
        StudyError: it cannot be opened.
    """
    with explain_refusal(url):
        import sqlalchemy  # takes a while, and a journal does without

        driven = name_driver(url)
        arguments = make_connect_arguments(driven)
        # without a pool, so that a failure leaves no connection behind
        prepare(driven, {"poolclass": sqlalchemy.NullPool, "connect_args": arguments})
        # a search may not need its database for an hour, and firewalls and restarts cut what is idle
        settings = {"pool_pre_ping": True, "connect_args": arguments}
        database = RDBStorage(driven, engine_kwargs=settings, skip_table_creation=True)
    storage = get_storage(database)
    weakref.finalize(storage, database.engine.dispose)
    return storage


def make_tables(url: str, settings: dict[str, Any]) -> None:
    """Create Optuna's tables where they are missing; Optuna refuses those of another version."""
    RDBStorage(url, engine_kwargs=settings)


def make_connect_arguments(url: str) -> dict[str, Any]:
    """What a driver is told besides the URL, whose own settings win: a dead connection to PostgreSQL is noticed in a minute.

    Raises:
        StudyError: the database would be in memory.
    """
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


@contextlib.contextmanager
def explain_refusal(url: str) -> Iterator[None]:
    """Refuse a URL that holds a password, and say what is wrong where a database cannot be opened.

    Raises:
        StudyError: one of these.
    """
    check_storage_url(url)
    try:
        yield
    except StudyError:
        raise
    except Exception as error:  # drivers and servers fail in every way there is
        raise StudyError(describe_refusal(url, error)) from error


@contextlib.contextmanager
def explain_outage() -> Iterator[None]:
    """Say what to do where a database goes away while it is asked or told; other errors pass as they are.

    Raises:
        ResourceError: it went away.
    """
    try:
        yield
    except Exception as error:
        from sqlalchemy.exc import SQLAlchemyError

        if not isinstance(error, (StorageInternalError, SQLAlchemyError)):
            raise
        raise ResourceError(
            f"--storage: the database does not answer any more ({spell_error(find_first_cause(error))}). Make sure that its "
            "server runs and can be written, then run the same command again to go on."
        ) from error


def describe_refusal(url: str, error: Exception) -> str:
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
