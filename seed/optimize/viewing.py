"""A study's storage opened beside a search that may be writing it: nothing is repaired, failed, created or waited for."""

import re
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage

from seed.errors import StudyError
from seed.optimize.journal import open_journal
from seed.optimize.storage import connect
from seed.optimize.urls import check_storage_url

SQLITE = re.compile(r"sqlite(\+\w+)?:///(file:)?(?P<path>[^?]+)")
NEEDED = (
    "version_info",
    "alembic_version",
)  # Optuna's tables of one row; it writes them last, and anew where they are empty


def view_storage(url: str | None, *, journal: Path) -> BaseStorage:
    """Return the storage of a study as it is: the journal in its folder, or what ``url`` names.

    Raises:
        StudyError: there is none yet, or it cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is not None:
        found = SQLITE.match(url)
        if found and not Path(found["path"]).is_file():  # SQLite would make an empty one
            raise StudyError(
                f"{found['path']}: no such file, but the study's plan names it as its storage. Run this in the directory "
                "where the search was run, or restore the file."
            )
        return view_database(url)
    if not journal.is_file():  # Optuna would make an empty one
        raise StudyError(
            f"{journal}: missing, and with it all trials. Restore it from a copy, or run the search first."
        )
    return open_journal(journal)


def view_database(url: str) -> BaseStorage:
    """Return the storage that a URL names, without heartbeats and without patience.

    Raises:
        StudyError: nothing was ever searched there, or it cannot be opened.
    """
    from seed.optimize.patience import close_with, find_engine

    check_storage_url(url)
    storage = connect(url, heartbeat_seconds=None, grace_seconds=None, prepare=require_tables)
    engine = find_engine(storage)
    assert engine is not None
    close_with(storage, engine)
    return storage


def require_tables(url: str, arguments: dict[str, Any]) -> None:
    """Raise unless a database holds Optuna's tables, of this Optuna's version. Only reads, so a reader's rights are enough.

    Raises:
        StudyError: they are missing.
    """
    import sqlalchemy

    settings = {"poolclass": sqlalchemy.NullPool, "connect_args": arguments}
    with sqlalchemy.create_engine(url, **settings).connect() as connection:
        names = sqlalchemy.inspect(connection).get_table_names()
        is_ready = all(
            name in names and connection.execute(sqlalchemy.text(f"SELECT 1 FROM {name}")).first() for name in NEEDED
        )
    if not is_ready:
        raise StudyError(
            "the storage that the study's plan names holds no studies yet. Run the search first, which makes them."
        )
    RDBStorage(url, engine_kwargs=settings, skip_table_creation=True)  # refuses tables of another version


def find_study_id(storage: BaseStorage, name: str) -> int:
    """Return the id by which a storage knows a study.

    Raises:
        StudyError: it knows no study of this name.
    """
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        raise StudyError(
            f"study {name}: not in the storage that its plan names. Run the search of this study again, which writes it."
        ) from None
