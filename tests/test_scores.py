"""Scores and trials come back as they were, survive a kill, and are read while they are written; a foreign file is refused."""

import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path

import msgspec
import pytest

from seed import untrusted
from seed.errors import ResourceError, StudyError
from seed.records import ScoreRow, TrialRecord
from seed.scores import ScoreStore, list_database_files
from tests.reporting.factory import make_trials

DENSE = ScoreRow(key="dense", proxy="dense", sums=[1.5, math.pi, 1e-300], counts=[1, 2, 3])
TRIALS = make_trials()[:5]


def make_row(number: int, *, proxy: str = "none") -> ScoreRow:
    return ScoreRow(key=f"drop-{number}", proxy=proxy, sums=[number + 0.1, 0.1 + 0.2, 1e300], seconds=1.25)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a study: 50% #1?" / "scores.sqlite"


def write(path: Path, *, rows: int = 3) -> list[ScoreRow]:
    """Write a store, and return its rows."""
    known = [DENSE, *map(make_row, range(rows))]
    with ScoreStore(path) as store:
        store.keep(known, TRIALS)
    return known


def read(path: Path) -> tuple[list[ScoreRow], tuple[TrialRecord, ...]]:
    with ScoreStore(path, read_only=True) as store:
        return store.read_rows(), store.read_trials()


def change(path: Path, statement: str, *values: object) -> None:
    """Do to a store what Seed never does."""
    db = sqlite3.connect(path)
    db.execute(statement, values)
    db.commit()
    db.close()


def test_what_is_kept_is_read_back_to_the_bit_and_in_order(path: Path) -> None:
    nothing = ScoreRow(key="drop-9", proxy="closed-form", sums=[None, None, None], seconds=0.5)
    partly = ScoreRow(key="drop-8", proxy="closed-form", sums=[1.0, None, -0.0])
    rows = [DENSE, nothing, make_row(3), partly, make_row(1), make_row(3, proxy="closed-form")]
    with ScoreStore(path) as store:
        for row in rows:
            store.keep([row])
        store.keep([], TRIALS[::-1])
        assert store.read_rows() == rows
    assert list(path.parent.iterdir()) == [path]
    assert read(path) == (rows, TRIALS)
    assert str(read(path)[0][3].sums) == "[1.0, None, -0.0]"


def test_a_score_stays_as_it_was_first_and_a_trial_as_it_was_last(path: Path) -> None:
    rows = write(path)
    again = msgspec.structs.replace(rows[1], sums=[9.0, 9.0, 9.0])
    later = msgspec.structs.replace(TRIALS[1], state="PRUNED")
    with ScoreStore(path) as store:
        store.keep([again, make_row(7)], [later])
    assert read(path) == ([*rows, make_row(7)], (TRIALS[0], later, *TRIALS[2:]))


def test_an_evaluation_that_is_no_number_comes_back(path: Path) -> None:
    quality = msgspec.structs.replace(
        TRIALS[0].evaluation.qualities["none"], loss=math.nan, standard_error=math.inf, ppl_ratio=math.nan
    )
    evaluation = msgspec.structs.replace(TRIALS[0].evaluation, qualities={"none": quality})
    with ScoreStore(path) as store:
        store.keep([], [msgspec.structs.replace(TRIALS[0], evaluation=evaluation)])
        [found] = store.read_trials()
    assert math.isnan(found.evaluation.qualities["none"].loss)
    assert found.evaluation.qualities["none"].standard_error == math.inf
    assert found.evaluation.explain_failure("none") == evaluation.explain_failure("none") is not None


def test_all_is_written_or_nothing_and_a_reader_sees_what_is_committed(path: Path) -> None:
    rows = write(path)
    with ScoreStore(path) as store, ScoreStore(path, read_only=True) as reader:
        bad = msgspec.structs.replace(TRIALS[0], number=2**70)
        with pytest.raises(OverflowError):
            store.keep([make_row(9)], [bad])
        assert store.read_rows() == reader.read_rows() == rows
        store.keep([make_row(9)])
        assert store.read_rows() == reader.read_rows() == [*rows, make_row(9)]


KILLED = """
import itertools, os, sys
from pathlib import Path
from seed.scores import ScoreStore
from tests.test_scores import make_row
store = ScoreStore(Path(sys.argv[1]))
for number in itertools.count():
    store.keep([make_row(number), make_row(number, proxy="closed-form")])
    print(number, flush=True)
"""


def test_a_kill_loses_nothing_that_was_kept_and_halves_nothing(path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(200):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        told = 200 + len(writer.stdout.read().split())
    assert list_database_files(path)[1].stat().st_size > 0
    rows, _ = read(path)  # before any writer has put it in order
    assert rows[: 2 * told : 2] == [make_row(number) for number in range(told)]
    assert len(rows) in (2 * told, 2 * told + 2)
    with ScoreStore(path) as store:
        assert store.read_rows() == rows
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file_is_told_to_readers_and_made_by_writers(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"scores\.sqlite: missing.*Restore it from a copy"):
        ScoreStore(path, read_only=True)
    path.parent.mkdir()
    for leftover in list_database_files(path.with_name(f".{path.name}.new")) + list_database_files(path)[1:]:
        leftover.write_bytes(b"of a killed process")
    with ScoreStore(path) as store:
        assert store.read_rows() == []
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ResourceError, match=r"scores\.sqlite: cannot be written"):
        ScoreStore(tmp_path / "file" / "scores.sqlite")


def require_refused(path: Path, said: str) -> None:
    """Check that neither readers nor writers open it."""
    for read_only in (True, False):
        with pytest.raises(StudyError, match=said):
            ScoreStore(path, read_only=read_only)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW more AS SELECT * FROM scores",
        "CREATE TRIGGER more AFTER INSERT ON scores BEGIN DELETE FROM trials; END",
        "CREATE INDEX more ON scores (abs(crc32))",
        "ALTER TABLE scores ADD COLUMN more",
        "DROP TABLE trials",
    ],
)
def test_tables_that_are_not_ours_are_refused(path: Path, statement: str) -> None:
    write(path)
    change(path, statement)
    require_refused(path, r"scores\.sqlite: not the scores of a search.*Restore it from a copy")


def test_a_file_of_another_kind_is_refused(path: Path) -> None:
    path.parent.mkdir()
    for content in (b"", b'{"key":"dense"}\n' * 100, b"SQLite format 3\0" + b"\0" * 500):
        path.write_bytes(content)
        require_refused(path, r"scores\.sqlite: (not the scores|cannot be read|damaged).*Restore it")
        assert path.read_bytes() == content


@pytest.mark.parametrize("value", ["no blob", b"\0" * 24, 7.0])
def test_a_record_that_was_changed_is_refused_by_its_name(path: Path, value: object) -> None:
    write(path)
    change(path, "UPDATE trials SET record = ? WHERE number = 3", value)
    with pytest.raises(StudyError, match=r"scores\.sqlite: trial 3 is damaged .*Restore it"):
        read(path)
    change(path, "UPDATE scores SET record = ? WHERE key = 'drop-1'", value)
    with pytest.raises(StudyError, match=r"scores\.sqlite: the score of 'drop-1' is damaged .*Restore it"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"\xc0", msgspec.msgpack.encode({"key": "x"}), b"\x91" * 200_000])
def test_records_of_another_form_are_refused_even_with_their_checksum(path: Path, content: bytes) -> None:
    write(path)
    for table in ("trials", "scores"):
        change(path, f"UPDATE {table} SET record = ?, crc32 = ?", content, zlib.crc32(content))
        with pytest.raises(StudyError, match=r"(trial 0|the score of 'dense') is damaged"):
            read(path)


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_loss_that_is_no_finite_number_is_refused(path: Path, loss: float) -> None:
    with ScoreStore(path) as store:
        store.keep([msgspec.structs.replace(make_row(1), sums=[loss])])
        with pytest.raises(StudyError, match=r"the score of 'drop-1' \('none'\) is damaged"):
            store.read_rows()


def test_damaged_pages_are_told_with_the_cure(path: Path) -> None:
    write(path, rows=400)
    content = path.read_bytes()
    for begin in range(4096, len(content) - 4096, len(content) // 12 // 4096 * 4096):
        path.write_bytes(content[:begin] + os.urandom(4096) + content[begin + 4096 :])
        with pytest.raises(StudyError, match=r"scores\.sqlite: .*Restore it from a copy"):
            read(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(StudyError, match=r"scores\.sqlite: .*Restore it from a copy"):
        read(path)


def test_what_is_too_large_is_not_read(path: Path) -> None:
    write(path)
    change(path, "UPDATE scores SET record = zeroblob(?)", untrusted.ROW_BYTES + 1)
    with pytest.raises(StudyError, match=r"scores\.sqlite: cannot be read .*too big"):
        read(path)
    with path.open("r+b") as handle:
        handle.truncate(100 * 2**30)
    with pytest.raises(StudyError, match=r"scores\.sqlite: 102,400 MB"):
        read(path)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_link_is_never_followed(path: Path, tmp_path: Path, suffix: str) -> None:
    write(path)
    elsewhere = tmp_path / "precious"
    place = path.with_name(path.name + suffix)
    if suffix == "":
        path.rename(elsewhere)
    else:
        elsewhere.write_bytes(b"precious")
    content = elsewhere.read_bytes()
    place.symlink_to(elsewhere)
    require_refused(path, re.escape(f"{place}: "))
    assert elsewhere.read_bytes() == content


def test_a_rollback_journal_is_refused_since_it_names_files_to_remove(path: Path) -> None:
    write(path)
    path.with_name(f"{path.name}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\0" * 600)
    require_refused(path, r"scores\.sqlite-journal: no search writes such a file. Remove it")


FULL = """
import resource, sys
from pathlib import Path
from seed.errors import ResourceError
from seed.scores import ScoreStore
from tests.test_scores import make_row
path = Path(sys.argv[1])
with ScoreStore(path) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    kept = 0
    try:
        while True:
            store.keep([make_row(kept)])
            kept += 1
    except ResourceError as error:
        print(kept, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.keep([make_row(kept)])
"""


def test_a_full_disk_loses_nothing_and_work_goes_on_when_there_is_room(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    kept, said = done.stdout.split(" ", 1)
    assert int(kept) > 10
    assert re.search(r"scores\.sqlite: cannot be written .*Free some room and run the same command again", said)
    assert read(path)[0] == [make_row(number) for number in range(int(kept) + 1)]


def can_mount() -> bool:
    """May this process mount a disk that only it sees?"""
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


READ = """
import sys
from pathlib import Path
from seed.scores import ScoreStore
with ScoreStore(Path(sys.argv[1]), read_only=True) as store:
    print(len(store.read_rows()))
"""


@pytest.mark.skipif(not can_mount(), reason="a disk that can only be read is mounted by root")
@pytest.mark.parametrize("state", ["closed", "killed"])
def test_a_disk_that_can_only_be_read_is_enough_for_readers(path: Path, state: str) -> None:
    write(path)
    if state == "killed":
        store = ScoreStore(path)
        store.keep([make_row(9)])
        left = {one: one.read_bytes() for one in list_database_files(path)}
        store.close()
        for one, content in left.items():
            one.write_bytes(content)
    mount = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$2" -c "$3" "$4"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", str(path.parent), sys.executable, READ, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"{5 if state == 'killed' else 4}\n", done.stderr
