"""The journal in a study's folder, in Optuna's own form, fit for many processes of one host of which any may be killed.

Who appends holds the file itself, which the kernel lets go of when the process ends, and first cuts off a torn last line.
Each line carries a checksum in a field that Optuna passes over. What the lines mean is Optuna's business.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from seed import sealed, untrusted
from seed.errors import StudyError

TAIL_BYTES = 1 << 16  # looked at once for the end of the last whole line


class Journal(JournalFileBackend):
    """Optuna's journal file, without a lock file that a killed process would leave behind."""

    line = 1  # number of the one at hand, counted from 1

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        self.line = log_number_from + 1
        for log in super().read_logs(log_number_from):
            yield log
            self.line += 1

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [sealed.seal_line(json.dumps(log, separators=(",", ":")).encode()) + b"\n" for log in logs]
        append_lines(Path(self._file_path), b"".join(lines), sync=True)


def open_journal(path: Path) -> JournalStorage:
    """Return the storage that a journal is.

    Raises:
        StudyError: a line is none that Optuna writes.
    """
    untrusted.require_size(path, limit=untrusted.JOURNAL_BYTES)
    journal = Journal(str(path))
    try:
        return JournalStorage(journal)
    except OSError:
        raise
    except Exception as error:  # a line of another shape fails wherever Optuna comes to look at it
        raise refuse_line(path, journal.line, error) from error


def refuse_line(path: Path, number: int, error: Exception) -> StudyError:
    """What is raised where a line of a journal is none that Optuna writes."""
    return StudyError(
        f"{path}: line {number} is damaged, or was not written by Optuna ({type(error).__name__}: {error}). Remove that line if "
        "something else wrote it; else restore the file from a copy, or start a study of another name (--study NAME)."
    )


def repair_journal(path: Path) -> None:
    """Cut a torn last line, which a killed writer leaves, and what else at the end is not what Optuna writes.

    Others may be at work: they are kept waiting. A lock that a killed writer of Optuna's own kind left goes too.

    Raises:
        StudyError: a line before the last is not what Optuna writes, or there is more of it than a search writes.
    """
    for leftover in path.parent.glob(f"{path.name}.lock*"):
        leftover.unlink(missing_ok=True)
    if not path.exists():
        return
    untrusted.require_size(path, limit=untrusted.JOURNAL_BYTES)
    with path.open("r+b") as handle, hold(handle):
        content = handle.read()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        for number, line in enumerate(lines, 1):
            try:
                json.loads(sealed.open_line(line))
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    whole = whole[: len(whole) - len(line) - 1]
                    break
                raise refuse_line(path, number, error) from error
        if whole != content:
            handle.truncate(len(whole))
            os.fsync(handle.fileno())


def append_lines(path: Path, lines: bytes, *, sync: bool) -> None:
    """Add whole lines to a file that others may write too; ``sync``: and wait until they are on the disk.

    Raises:
        OSError: the disk does not take them; the file is as it was, but for a torn last line.
    """
    with path.open("a+b") as handle, hold(handle):
        end = cut_torn_line(handle)
        try:
            handle.write(lines)
            handle.flush()
            if sync:
                os.fsync(handle.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                handle.truncate(end)
            raise


@contextlib.contextmanager
def hold(handle: BinaryIO) -> Iterator[None]:
    """Hold an open file, waiting as long as another process of this host holds it."""
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)


def cut_torn_line(handle: BinaryIO) -> int:
    """Cut what follows the last whole line of a held file, open for reading and writing; return its length then."""
    end = length = handle.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - TAIL_BYTES)
        handle.seek(begin)
        found = handle.read(end - begin).rfind(b"\n")
        end = begin + found + 1
        if found >= 0:
            break
    if end < length:
        handle.truncate(end)
    handle.seek(0, os.SEEK_END)
    return end
