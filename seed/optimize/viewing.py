"""A study's storage opened beside a search that may be writing it: nothing is repaired, failed, created or waited for."""

import re
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage

from seed.errors import StudyError
from seed.optimize.journal import read_journal
from seed.optimize.storage import connect
from seed.optimize.urls import hide_secrets

SQLITE = re.compile(r"sqlite(\+\w+)?:///(file:)?(?P<path>[^?]+)")
# Optuna's tables of one row; it writes them last, and anew where they are empty
NEEDED = ("version_info", "alembic_version")


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
        return connect(url, prepare=require_tables)
    if not journal.is_file():  # Optuna would make an empty one
        raise StudyError(f"{journal}: missing. Restore it from a copy, or run the search of this study again.")
    return read_journal(journal)


def require_tables(url: str, settings: dict[str, Any]) -> None:
    """Raise unless a database holds Optuna's tables, of this Optuna's version. Only reads, so a reader's rights are enough.

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
    RDBStorage(url, engine_kwargs=settings, skip_table_creation=True)  # refuses tables of another version


def find_study_id(storage: BaseStorage, name: str) -> int:
    """Return the id by which a storage knows a study.

    Raises:
        StudyError: it knows no study of this name.
    """
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        raise refuse_unknown(name) from None


def load_study(storage: BaseStorage, name: str) -> optuna.Study:
    """Return the study of this name.

    Raises:
        StudyError: the storage knows none.
    """
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        raise refuse_unknown(name) from None


def refuse_unknown(name: str) -> StudyError:
    """What is raised where a storage does not know a study."""
    return StudyError(f"study {name}: not in this storage. Run the search of this study again, which writes it.")
