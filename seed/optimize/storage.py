"""Where an Optuna study is kept and shown: a journal in the study's folder, or a database by its URL. It coordinates nothing.

Only one process, which holds the study's folder, writes it.
"""

import contextlib
import json
import os
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from seed import untrusted
from seed.errors import ResourceError, StudyError
from seed.optimize.urls import POSTGRES_CURE, check_storage_url, hide_secrets, name_driver, spell_error
from seed.study_dir import refuse_write

CONNECT_SECONDS = 10  # libpq waits for ever where packets are dropped
SQLITE = re.compile(r"sqlite(\+\w+)?:///(file:)?(?P<path>[^?]+)")
# Optuna's tables of one row; it writes them last, and anew where they are empty
NEEDED = ("version_info", "alembic_version")


def open_storage(url: str | None, *, journal: Path) -> BaseStorage:
    """Return the storage that a study is written into: the journal in its folder, mended where it is torn, or a database.

    Raises:
        StudyError: the journal is damaged, or the URL cannot be used.
        ResourceError: the journal cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is not None:
        return connect(url, is_written=True)
    if journal.exists():
        cut_torn_line(journal)
    return read_journal(journal)


def view_storage(url: str | None, *, journal: Path) -> BaseStorage:
    """Return the storage of a study as it is: the journal in its folder, or the database that the user named.

    Raises:
        StudyError: there is none yet, or it cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is not None:
        found = SQLITE.match(url)
        if found and not Path(found["path"]).is_file():  # SQLite would make an empty one
            raise StudyError(
                f"--storage {hide_secrets(url)}: no such file. Run this in the directory where the search was run, or restore the file."
            )
        return connect(url, is_written=False)
    if not journal.is_file():  # Optuna would make an empty one
        raise StudyError(f"{journal}: missing. Restore it from a copy, or run the search of this study again.")
    return read_journal(journal)


def find_study_id(storage: BaseStorage, name: str) -> int:
    """Return the id by which a storage knows a study.

    Raises:
        StudyError: it knows no study of this name.
    """
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        raise StudyError(
            f"study {name}: not in this storage. Run the search of this study again, which writes it."
        ) from None


def load_study(storage: BaseStorage, name: str) -> optuna.Study:
    """Return the study of this name.

    Raises:
        StudyError: the storage knows none.
    """
    find_study_id(storage, name)
    return optuna.load_study(study_name=name, storage=storage)


# ---- databases


def connect(url: str, *, is_written: bool) -> BaseStorage:
    """Return the storage that a database is. Where it is written, tables that are missing are made; else nothing is changed.

    Raises:
        StudyError: the URL holds a password, or it cannot be opened.
    """
    check_storage_url(url)
    try:
        import sqlalchemy  # takes a while, and a journal does without

        driven = name_driver(url)
        arguments = make_connect_arguments(driven)
        # without a pool, so that a failure leaves no connection behind
        alone = {"poolclass": sqlalchemy.NullPool, "connect_args": arguments}
        if not is_written:
            require_tables(driven, alone)
        RDBStorage(driven, engine_kwargs=alone, skip_table_creation=not is_written)  # refuses tables of another version
        # a search may not need its database for an hour, and firewalls and restarts cut what is idle
        settings = {"pool_pre_ping": True, "connect_args": arguments}
        database = RDBStorage(driven, engine_kwargs=settings, skip_table_creation=True)
    except StudyError:
        raise
    except Exception as error:  # drivers and servers fail in every way there is
        raise StudyError(describe_refusal(url, error)) from error
    storage = get_storage(database)
    weakref.finalize(storage, database.engine.dispose)
    return storage


def require_tables(url: str, settings: dict[str, Any]) -> None:
    """Raise unless a database holds Optuna's tables. Only reads, so a reader's rights are enough.

    Raises:
        StudyError: they are missing.
    """
    import sqlalchemy

    with sqlalchemy.create_engine(url, **settings).connect() as connection:
        names = sqlalchemy.inspect(connection).get_table_names()
        is_ready = all(
            name in names and connection.execute(sqlalchemy.text(f"SELECT 1 FROM {name}")).first()  # noqa: S608 - our own names
            for name in NEEDED
        )
    if not is_ready:
        raise StudyError("--storage: that database holds no studies yet. Run the search first, which makes them.")


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


# ---- journals


class NoLock(JournalFileOpenLock):
    """Waits for nobody, since one process writes, and leaves no lock file behind."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return


class Journal(JournalFileBackend):
    """Optuna's journal file. What the disk does not take whole is taken back."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=NoLock(str(path)))
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        length = self.path.stat().st_size if self.path.exists() else 0
        try:
            super().append_logs(logs)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, length)
            raise refuse_write(self.path, error) from error


def read_journal(path: Path) -> JournalStorage:
    """Return the storage that a journal is, as it is: a search may be writing it.

    Raises:
        StudyError: a line is none that Optuna writes, or there is more of it than a search writes.
    """
    untrusted.require_size(path, limit=untrusted.JOURNAL_BYTES)
    try:
        return JournalStorage(Journal(path))
    except OSError:
        raise
    except Exception as error:  # a line of another shape fails wherever Optuna comes to look at it
        raise StudyError(
            f"{path}: damaged, or was not written by Optuna ({type(error).__name__}: {error}). Remove the file: the search of "
            "this study makes it anew from its scores."
        ) from error


def cut_torn_line(path: Path) -> None:
    """Cut off the end of a journal that is no whole line of JSON.

    Raises:
        StudyError: it is larger than what a search writes.
        ResourceError: it cannot be written.
    """
    untrusted.require_size(path, limit=untrusted.JOURNAL_BYTES)
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    begin = content.rfind(b"\n", 0, max(0, end - 1)) + 1
    try:
        json.loads(content[begin:end] or b"{}")
    except (ValueError, RecursionError):
        end = begin
    if end < len(content):
        try:
            os.truncate(path, end)
        except OSError as error:
            raise refuse_write(path, error) from error
