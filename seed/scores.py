"""Scores and trials of a study in one SQLite file, ``scores.sqlite``: written by its coordinator, read by anyone.

No meaning of the numbers here.
"""

import contextlib
import errno
import math
import os
import secrets
import sqlite3
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import msgspec

from seed import untrusted
from seed.errors import SeedError, StudyError
from seed.records import ScoreRow, TrialRecord
from seed.study_dir import deny, refuse_write, require_readable

T = TypeVar("T")
TABLES = {
    "scores": (
        "CREATE TABLE scores (key TEXT NOT NULL, proxy TEXT NOT NULL, record BLOB NOT NULL, crc32 INTEGER NOT NULL, "
        "PRIMARY KEY (key, proxy))"
    ),
    "trials": "CREATE TABLE trials (number INTEGER PRIMARY KEY, record BLOB NOT NULL, crc32 INTEGER NOT NULL)",
}
CHECKED_BYTES = 256 * 2**20  # up to which the whole file's structure is checked on opening, at some GB a second
BUSY_SECONDS = 60.0  # a reader that opens a killed writer's file puts it in order first, and holds it for that moment
DENIED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)


class ScoreStore:
    """The scores and trials of one study; the caller that writes holds the study's folder.

    The file is in write-ahead mode and every commit is synced: what ``keep`` returned from survives a killed process and a
    power cut, and what it was killed in has not happened. A commit takes .3 to 4 ms on an SSD, nearly all of it the sync; a
    row of 2,000 documents among many takes .2 ms, so many belong in one call. Readers neither wait for the writer nor hold
    it up, but on the same host only: hosts do not share memory, and what one writes on a network disk another is sure to
    read once the writer has closed it. Who copies the file while it is written copies its ``-wal`` too, which holds the
    last commits.

    Args:
        path: of the file. A writer makes it where it is missing.
        read_only: nothing is ever written, which works on a disk that can only be read.

    Raises:
        StudyError: the file is missing, damaged, foreign or too large.
        ResourceError: it cannot be opened, or the disk does not take it.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        require_file(path)
        if not path.exists():
            if read_only:
                raise StudyError(
                    f"{path}: missing, and with it all scores and trials. Restore it from a copy, or run the search of this study again."
                )
            _create(path)
        require_readable(path)
        try:
            self._db = self._open("mode=ro" if read_only else "mode=rw")
        except sqlite3.Error as error:
            raise self._explain(error, is_read=True) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; of a writer, all is then in the one file."""
        self._db.close()

    @property
    def number(self) -> int:
        """A number of its own, which a copy has too."""
        [number] = self._db.execute("PRAGMA application_id").fetchone()
        return int(number)

    def keep(self, rows: Sequence[ScoreRow], trials: Sequence[TrialRecord] = ()) -> None:
        """Write all or nothing. A row that is there stays as it is; a trial of the same number is replaced.

        Raises:
            ResourceError: the disk does not take it; the file is as it was.
        """
        assert not self.read_only
        scores = [(row.key, row.proxy, *_encode(row)) for row in rows]
        numbered = [(trial.number, *_encode(trial)) for trial in trials]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?)", scores)
            self._db.executemany("INSERT OR REPLACE INTO trials VALUES (?, ?, ?)", numbered)
            self._db.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._explain(error, is_read=False) from error
            raise

    def read_rows(self) -> list[ScoreRow]:
        """Return every score, in the order they came.

        Raises:
            StudyError: a row is damaged or of another form.
        """
        rows = self._read_records("SELECT record, crc32, key FROM scores ORDER BY rowid", ScoreRow, "the score of")
        for row in rows:
            if any(loss is not None and not math.isfinite(loss) for loss in row.sums):
                raise self._refuse(f"the score of {row.key!r} ({row.proxy!r}) is damaged (a loss is no finite number)")
        return rows

    def read_trials(self) -> tuple[TrialRecord, ...]:
        """Return every trial, by number.

        Raises:
            StudyError: a trial is damaged or of another form.
        """
        return tuple(
            self._read_records("SELECT record, crc32, number FROM trials ORDER BY number", TrialRecord, "trial")
        )

    def _read_records(self, query: str, kind: type[T], noun: str) -> list[T]:
        """Decode what a query finds: a record, its checksum, and the name by which it is refused."""
        decode, records = msgspec.msgpack.Decoder(kind).decode, []
        try:
            for content, crc32, name in self._db.execute(query):
                try:
                    if zlib.crc32(content) != crc32:
                        raise ValueError("its checksum is that of another content")
                    records.append(decode(content))
                except (ValueError, TypeError, RecursionError) as error:
                    raise self._refuse(f"{noun} {name!r} is damaged ({error})") from error
        except sqlite3.Error as error:
            raise self._explain(error, is_read=True) from error
        return records

    def _open(self, how: str) -> sqlite3.Connection:
        """Open the file, on a disk that can only be read as well, where no writer is at work."""
        try:
            return self._connect(how)
        except sqlite3.OperationalError as error:
            is_denied = _code(error) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
            if not (self.read_only and is_denied) or _wal(self.path).exists():
                raise
            return self._connect(f"{how}&immutable=1")

    def _connect(self, how: str) -> sqlite3.Connection:
        """Make sure that the file is ours and whole before anything else is asked of it."""
        place = f"file:{quote(str(self.path.absolute()))}?{how}"
        db = sqlite3.connect(place, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, untrusted.ROW_BYTES)
            db.execute("PRAGMA trusted_schema = OFF")  # the file may come from anyone
            db.execute("PRAGMA cell_size_check = ON")
            found = db.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
            if sorted(found) != [("table", name, sql) for name, sql in TABLES.items()]:
                raise self._refuse("not the scores of a search, or those of another version of Seed")
            if self.path.stat().st_size <= CHECKED_BYTES:
                [said] = db.execute("PRAGMA quick_check(1)").fetchone()
                if said != "ok":
                    raise self._refuse(f"damaged ({said.splitlines()[-1]})")
            if not self.read_only:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
        except BaseException:
            db.close()
            raise
        return db

    def _explain(self, error: sqlite3.Error, *, is_read: bool) -> SeedError:
        """What SQLite says, with the cure."""
        code = _code(error)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StudyError(f"{self.path}: in use by another process. Wait for it, or stop it.")
        if code in DENIED:
            return deny(self.path)
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and not is_read:
            kind = errno.ENOSPC if code == sqlite3.SQLITE_FULL else errno.EIO
            return refuse_write(self.path, OSError(kind, str(error)))
        if code == sqlite3.SQLITE_CANTOPEN and _wal(self.path).exists():
            return StudyError(
                f"{self.path}: its writer was stopped, and the disk does not let us take its last commits in. Work on a copy of the "
                "study's folder that can be written."
            )
        return self._refuse(f"cannot be read ({error})")

    def _refuse(self, what: str) -> StudyError:
        return StudyError(
            f"{self.path}: {what}. Restore it from a copy, or remove it and run the search of this study again, which scores "
            "everything anew."
        )


def list_database_files(path: Path) -> tuple[Path, ...]:
    """The file of a store, and those that stand beside it while it is written or after its writer was killed."""
    return (path, _wal(path), path.with_name(f"{path.name}-shm"))


def require_file(path: Path) -> None:
    """Raise StudyError when what lies where a store lies is no plain file of a size that a search writes, before SQLite opens it.

    Never opens it: in a process that has a database open, closing another handle of its file lets go of SQLite's locks.
    """
    for one in list_database_files(path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISREG(one.lstat().st_mode):
                raise StudyError(
                    f"{one}: a link, or no file at all. Put a copy of the file in its place, or remove it."
                )
            untrusted.require_size(one, limit=untrusted.ROWS_BYTES)
    journal = path.with_name(f"{path.name}-journal")
    if os.path.lexists(journal):  # SQLite would undo by it, and remove files that it names
        raise StudyError(f"{journal}: no search writes such a file. Remove it.")


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # the rest says more exactly which


def _create(path: Path) -> None:
    """Make an empty store aside and put it in its place, so that there is none or a whole one."""
    aside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for one in (*list_database_files(aside), aside.with_name(f"{aside.name}-journal"), *list_database_files(path)):
            one.unlink(missing_ok=True)  # a log that outlived its file belongs to no other
        db = sqlite3.connect(aside, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA application_id = {secrets.randbelow(2**31)}")
            for sql in TABLES.values():
                db.execute(sql)
        finally:
            db.close()
        aside.replace(path)
    except sqlite3.Error as error:
        raise refuse_write(path, OSError(errno.EIO, str(error))) from error
    except OSError as error:
        raise refuse_write(path, error) from error


def _encode(record: ScoreRow | TrialRecord) -> tuple[bytes, int]:
    """A record and its checksum: disks and copies that change bytes raise no error."""
    content = msgspec.msgpack.encode(record)
    return content, zlib.crc32(content)
