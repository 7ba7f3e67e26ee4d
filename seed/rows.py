"""A file of one JSON record a line that grows as work gets done, written by any number of processes of one host.

Whoever appends holds the file for that moment, and first cuts off a torn last line, which a killed writer or a full disk
leaves; whoever reads leaves such a line alone. Each line carries a checksum. No meaning of the records here.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

import msgspec

from seed import sealed, untrusted
from seed.errors import StudyError
from seed.folder import refuse_write

T = TypeVar("T")
TAIL_BYTES = 1 << 16  # looked at once for the end of the last whole line


class RowFile(Generic[T]):
    """A file of rows. Lines survive the process at once, the machine soon."""

    SYNC_SECONDS = 5.0

    def __init__(self, path: Path, kind: type[T]) -> None:
        self.path = path
        self.kind = kind
        self._synced = 0.0
        self._offset, self._number = 0, 0  # of what was read: bytes and lines

    def append(self, row: T) -> None:
        """Add a line.

        Raises:
            ResourceError: the disk does not take it; the file is as it was.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_due = time.monotonic() - self._synced > self.SYNC_SECONDS
            append_lines(self.path, sealed.seal_line(msgspec.json.encode(row)) + b"\n", sync=is_due)
            if is_due:
                self._synced = time.monotonic()
        except OSError as error:
            raise refuse_write(self.path, error) from error

    def read_new(self) -> list[T]:
        """Read the whole lines that were added since the last call, by whomever.

        Raises:
            StudyError: a line is damaged or of another form.
        """
        try:
            if self._offset == 0:  # what is added later, we or our like write
                untrusted.require_rows(self.path)
            with self.path.open("rb") as handle:
                handle.seek(self._offset)
                content = handle.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        rows = []
        for line in whole.splitlines():
            self._number += 1
            try:
                rows.append(msgspec.json.decode(sealed.open_line(line), type=self.kind))
            except (ValueError, RecursionError) as error:  # msgspec's and ours
                raise StudyError(
                    f"{self.path}: line {self._number} is damaged ({error}). Remove that line, and the search of this study "
                    "makes it up."
                ) from error
        self._offset += len(whole)
        return rows


def read_rows(path: Path, kind: type[T]) -> list[T]:
    """Read all rows of a file; a torn last line does not count.

    Raises:
        StudyError: another line is damaged or of another form.
    """
    return RowFile(path, kind).read_new()


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
