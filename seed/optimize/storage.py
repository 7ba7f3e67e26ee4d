"""Where an Optuna study is kept: a journal in the study's folder, or a database by its URL. Opened, and mended where it is torn.

What a study holds, and who may work on it, is decided elsewhere.
"""

import json
import os
import re
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from seed.errors import StudyError


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
        return JournalStorage(JournalFileBackend(str(journal)))
    check_storage_url(url)
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:  # drivers and servers fail in every way there is
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StudyError(
            f"--storage {url}: cannot be opened ({message}). Wanted: an Optuna storage URL such as sqlite:///studies.db or "
            "postgresql://USER@HOST/DATABASE, its server running and its driver installed."
        ) from error


def repair_journal(path: Path) -> None:
    """Cut a torn last line, which a killed writer leaves and which would break every later open.

    The caller holds the study's folder, so nobody else writes; a lock left by a killed writer goes too.

    Raises:
        StudyError: a line before the last is not what Optuna writes.
    """
    for leftover in path.parent.glob(f"{path.name}.lock*"):
        leftover.unlink(missing_ok=True)
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)
        except ValueError as error:
            if number == len(lines):
                whole = whole[: len(whole) - len(line) - 1]
                break
            raise StudyError(
                f"{path}: line {number} is damaged. Restore the file from a copy, or start a study of another name (--study NAME)."
            ) from error
    if whole != content:
        with path.open("r+b") as handle:
            handle.truncate(len(whole))
            os.fsync(handle.fileno())
