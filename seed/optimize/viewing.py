"""A study's storage opened beside a search that may be writing it: nothing is repaired, failed, created or waited for."""

import re
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage

from seed import untrusted
from seed.errors import StudyError
from seed.optimize.journal import Journal
from seed.optimize.storage import open_storage

SQLITE = re.compile(r"sqlite(\+\w+)?:///(?P<path>[^?]+)")


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
        return open_storage(url, journal=journal)
    if not journal.is_file():  # Optuna would make an empty one
        raise StudyError(
            f"{journal}: missing, and with it all trials. Restore it from a copy, or run the search first."
        )
    untrusted.require_size(journal, limit=untrusted.JOURNAL_BYTES)
    try:
        return JournalStorage(Journal(str(journal)))
    except (ValueError, KeyError, RecursionError) as error:
        raise StudyError(
            f"{journal}: damaged ({error}). Run the search of this study again, which mends a last line that a killed "
            "process left torn, or restore the file from a copy."
        ) from error


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
