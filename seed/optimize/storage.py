"""Where an Optuna study is kept: a journal in the study's folder, or a database by its URL. Opened, and mended where it is torn.

What a study holds, and who may work on it, is decided elsewhere.
"""

import re
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage

from seed.errors import StudyError
from seed.optimize.journal import Journal, repair_journal


def check_storage_url(url: str) -> None:
    """Raise when a storage URL holds a password: it would end up in shell history and logs."""
    if re.search(r"://[^:/@]*:[^@]+@", url) or re.search(r"[?&](password|passwd|pwd)=", url, re.IGNORECASE):
        raise StudyError(
            "--storage: the URL holds a password. Leave it out, and put it into ~/.pgpass or PGPASSWORD (PostgreSQL), "
            "or into an option file (MySQL), where only you can read it."
        )


def open_storage(url: str | None, *, journal: Path) -> BaseStorage:
    """Return the study's storage: the journal in its folder, or whatever Optuna makes of a URL.

    Raises:
        StudyError: the URL cannot be used.
    """
    if url is None:
        repair_journal(journal)
        return JournalStorage(Journal(str(journal)))
    check_storage_url(url)
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:  # drivers and servers fail in every way there is
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StudyError(
            f"--storage {url}: cannot be opened ({message}). Wanted: an Optuna storage URL such as sqlite:///studies.db or "
            "postgresql://USER@HOST/DATABASE, its server running and its driver installed."
        ) from error
