"""Files of rows: many may write and read one at the same time, and whatever tears a line costs that line alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import seed
from seed import rows, sealed
from seed.errors import ResourceError, StudyError
from seed.records import SweepRow
from seed.rows import RowFile, read_rows
from tests.processes import let_go

REPOSITORY = Path(seed.__file__).parents[1]


def make_row(number: int) -> SweepRow:
    return SweepRow(key=f"drop-{number}", rung="none", sums=[number + 1 / 3, 1e-300, 2.0**60], seconds=0.25)


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sweep.jsonl"
    wanted = [make_row(number) for number in range(5)]
    file = RowFile(path, SweepRow)
    for count, row in enumerate(wanted, 1):
        file.append(row)
        assert read_rows(path, SweepRow) == wanted[:count]  # at once
    assert path.read_bytes().count(b"\n") == 5
    again = RowFile(path, SweepRow)
    again.append(make_row(7))
    assert read_rows(path, SweepRow) == [*wanted, make_row(7)]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "sweep.jsonl").write_bytes(b"")
    assert read_rows(tmp_path / "sweep.jsonl", SweepRow) == []


def test_rows_reach_the_disk_at_once_and_then_every_few_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(rows.os, "fsync", synced.append)
    now = 1000.0
    monkeypatch.setattr(rows.time, "monotonic", lambda: now)
    file = RowFile(tmp_path / "sweep.jsonl", SweepRow)
    for seconds, count in ((0, 1), (1, 1), (3, 1), (2, 2), (1, 2), (100, 3)):
        now += seconds
        file.append(make_row(0))
        assert len(synced) == count


@pytest.mark.parametrize("offset", [1, 20, -1])
def test_a_torn_last_row_is_left_alone_by_readers_and_cut_off_by_the_next_writer(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "sweep.jsonl"
    file = RowFile(path, SweepRow)
    for number in range(3):
        file.append(make_row(number))
    whole = path.read_bytes()
    line = msgspec.json.encode(make_row(3)) + b"\n"
    path.write_bytes(whole + line[:offset])
    assert read_rows(path, SweepRow) == [make_row(0), make_row(1), make_row(2)]
    assert path.read_bytes() == whole + line[:offset]
    reader = RowFile(path, SweepRow)
    assert len(reader.read_new()) == 3
    file.append(make_row(4))
    assert path.read_bytes() == whole + sealed.seal_line(msgspec.json.encode(make_row(4))) + b"\n"
    assert reader.read_new() == [make_row(4)]
    assert reader.read_new() == []


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("damage", [b"{", b"", b"\xff\xfe", b'{"key":"a","rung":"none","sums":"many"}', b"null"])
def test_a_damaged_row_is_refused_with_file_and_line_and_left(tmp_path: Path, number: int, damage: bytes) -> None:
    path = tmp_path / "sweep.jsonl"
    lines = [msgspec.json.encode(make_row(i)) for i in range(3)]
    lines[number - 1] = damage
    path.write_bytes(content := b"\n".join(lines) + b"\n" + b'{"key":"torn')
    with pytest.raises(StudyError, match=rf"sweep\.jsonl: line {number} is damaged") as caught:
        read_rows(path, SweepRow)
    assert str(path) in str(caught.value)
    assert "Remove that line" in str(caught.value)
    assert path.read_bytes() == content


def test_a_row_whose_numbers_changed_on_the_disk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    file = RowFile(path, SweepRow)
    for number in range(3):
        file.append(make_row(number))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"[1.333", b"[1.433"))
    with pytest.raises(StudyError, match=r"line 2 is damaged \(its checksum is that of another content\)"):
        read_rows(path, SweepRow)
    path.write_bytes(content.replace(b'"crc32"', b'"cRc32"', 1))
    with pytest.raises(StudyError, match="line 1 is damaged"):
        read_rows(path, SweepRow)


def test_a_row_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.jsonl").write_text('{"key":"a","rung":"none","sums":[],"colour":"red"}\n')
    with pytest.raises(StudyError, match=r"line 1 is damaged .*colour"):
        read_rows(tmp_path / "sweep.jsonl", SweepRow)


def test_a_row_that_finds_no_room_is_a_resource_error() -> None:
    with pytest.raises(ResourceError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        RowFile(Path("/dev/full"), SweepRow).append(make_row(1))


def test_rows_in_a_place_that_cannot_be_written_are_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=r"sweep\.jsonl: cannot be written"):
        RowFile(tmp_path / "file" / "sweep.jsonl", SweepRow).append(make_row(1))


def test_a_disk_that_fills_up_within_a_row_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    program = """
import resource, sys
from pathlib import Path
from seed.errors import ResourceError
from seed.records import SweepRow
from seed.rows import RowFile

file = RowFile(Path(sys.argv[1]), SweepRow)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    while True:
        file.append(SweepRow(key="drop-1", rung="none", sums=[0.5] * 300))
except ResourceError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
file.append(SweepRow(key="drop-2", rung="none", sums=[0.5]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written (File too large)" in done.stdout
    found = read_rows(path, SweepRow)
    assert [row.key for row in found] == ["drop-1"] * (len(found) - 1) + ["drop-2"]
    assert len(found) > 2


WRITER = """
import sys
from pathlib import Path
from seed.records import SweepRow
from seed.rows import RowFile

file = RowFile(Path(sys.argv[1]), SweepRow)
print("ready", flush=True)
sys.stdin.readline()
for number in range(100_000):
    file.append(SweepRow(key=f"drop-{number}", rung=sys.argv[2], sums=[0.5] * 500))
    print(number, flush=True)
"""


def test_writers_killed_at_any_moment_lose_no_row_of_anybody(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(number)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    written = {}
    try:
        let_go(writers)
        for number, writer in enumerate(writers):
            assert writer.stdout is not None
            for _ in range(40 * (number + 1)):
                writer.stdout.readline()
            writer.send_signal(signal.SIGKILL)
            told = [line for line in writer.stdout.read().split("\n")[:-1] if line]
            written[str(number)] = int(told[-1]) + 1 if told else 40 * (number + 1)
            writer.wait(10)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    RowFile(path, SweepRow).append(SweepRow(key="last", rung="last", sums=[]))
    found = read_rows(path, SweepRow)
    for rung, count in written.items():
        keys = [row.key for row in found if row.rung == rung]
        assert keys == [f"drop-{number}" for number in range(len(keys))]
        assert len(keys) >= count  # what was told of is there
    assert found[-1].key == "last"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}
