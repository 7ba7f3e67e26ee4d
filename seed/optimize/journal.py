"""The journal in a study's folder, in Optuna's own form, written by the one process that holds the folder.

What the lines mean is Optuna's business.
"""

import contextlib
import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from seed import untrusted
from seed.errors import StudyError
from seed.study_dir import refuse_write


class NoLock(JournalFileOpenLock):
    """Waits for nobody, since one process writes, and leaves no lock file behind."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return


class Journal(JournalFileBackend):
    """Optuna's journal file. What the disk does not take whole is taken back."""

    line = 1  # number of the one at hand, counted from 1

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=NoLock(str(path)))
        self.path = path

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        self.line = log_number_from + 1
        for log in super().read_logs(log_number_from):
            yield log
            self.line += 1

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        length = self.path.stat().st_size if self.path.exists() else 0
        try:
            super().append_logs(logs)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, length)
            raise refuse_write(self.path, error) from error


def open_journal(path: Path) -> JournalStorage:
    """Return the storage that a journal is, to be written: what a killed writer left half-written is cut off first.

    Raises:
        StudyError: a line is none that Optuna writes, or there is more of it than a search writes.
        ResourceError: it cannot be written.
    """
    if path.exists():
        cut_torn_line(path)
    return read_journal(path)


def read_journal(path: Path) -> JournalStorage:
    """Return the storage that a journal is, as it is: a search may be writing it.

    Raises:
        StudyError: a line is none that Optuna writes, or there is more of it than a search writes.
    """
    untrusted.require_size(path, limit=untrusted.JOURNAL_BYTES)
    journal = Journal(path)
    try:
        return JournalStorage(journal)
    except OSError:
        raise
    except Exception as error:  # a line of another shape fails wherever Optuna comes to look at it
        raise StudyError(
            f"{path}: line {journal.line} is damaged, or was not written by Optuna ({type(error).__name__}: {error}). Remove "
            "the file: the search of this study makes it anew from its scores."
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
