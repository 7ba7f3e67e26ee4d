"""The study's folder: one writer, no half-written file, and the old one stays when the new one fails."""

import errno
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

import seed
from seed import folder
from seed.errors import ResourceError, StudyError
from seed.findings import StudyRecord
from seed.folder import StudyFolder
from seed.plans import StreamRecord
from seed.records import Candidate, DenseResult

from .reporting import factory

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(seed.__file__).parents[1])}


# ---- names and places


@pytest.mark.parametrize("name", ["demo", "a", "Llama-3.2_1B", "0", "a" * 100, "x..y"])
def test_names_that_can_be_folders_pass(name: str) -> None:
    assert folder.name_study(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../a", "/abs", "a b", "-x", "_x", "naïve", "a\n", "a" * 101, "a\0"]
)
def test_names_that_cannot_are_refused(name: str) -> None:
    with pytest.raises(StudyError, match="--study") as caught:
        folder.name_study(name)
    assert "--studies-dir" in str(caught.value)


def test_everything_lies_below_the_root(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "demo")
    assert study.name == "demo"
    assert study.model("drop-1") == tmp_path / "demo/models/drop-1"
    assert study.result("drop-1") == tmp_path / "demo/distilled/drop-1.json"
    paths = [value for value in vars(study).values() if isinstance(value, Path) and value != study.root]
    assert all(path.parent in (study.root, study.work) for path in paths)
    assert len(set(paths)) == len(paths) >= 10


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    study = folder.create(tmp_path / "studies" / "demo")
    assert list(study.root.iterdir()) == []
    (study.root / "kept").write_text("x")
    folder.create(study.root)  # again is fine
    assert [path.name for path in study.root.iterdir()] == ["kept"]


@pytest.mark.parametrize("place", ["file", "file/demo"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot write there") as caught:
        folder.create(tmp_path / place)
    assert str(tmp_path / place) in str(caught.value)
    assert "--studies-dir" in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_without_a_plan_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="not a study"):
        folder.open_existing(tmp_path)
    with pytest.raises(StudyError, match="not a study"):
        folder.open_existing(tmp_path / "nowhere")
    (tmp_path / "plan.json").write_text("{}")
    assert folder.open_existing(tmp_path).root == tmp_path


# ---- writing


def test_bytes_are_written_whole_into_new_directories(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    folder.write_bytes(path, b"old" * 1000)
    folder.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


FULL = """
import resource, sys
from pathlib import Path
from seed.errors import ResourceError
from seed.folder import write_bytes

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_bytes(Path(sys.argv[1]), b"n" * 100_000)
except ResourceError as error:
    print(error)
"""


def test_a_write_that_finds_no_room_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "frontier.json"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{path}: cannot be written (File too large)")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["frontier.json"]


def test_a_flush_that_finds_no_room_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "frontier.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)  # a disk that fills up between write and flush cannot be had otherwise
    with pytest.raises(ResourceError, match=r"frontier\.json: cannot be written \(No space left on device\)"):
        folder.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["frontier.json"]


def test_a_file_in_the_place_of_its_directory_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "distilled").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot be written"):
        folder.write_bytes(tmp_path / "distilled" / "drop-1.json", b"new")


# ---- records


def test_a_record_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record = factory.make_record()
    folder.write_record(path, record)
    assert folder.read_record(path, StudyRecord) == record
    assert path.read_text().endswith("}\n")
    assert len(path.read_text().splitlines()) > 1000  # people read it, too


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_record_that_would_not_read_back_is_not_written(tmp_path: Path, number: float) -> None:
    dense = factory.make_record().dense
    record = replace(dense, test=replace(dense.test, standard_error=number))
    with pytest.raises(StudyError, match=r"dense\.json: not written.*not finite.*test\.standard_error"):
        folder.write_record(tmp_path / "dense.json", record)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_torn_record_is_a_study_error(tmp_path: Path, share: float) -> None:
    path = tmp_path / "record.json"
    folder.write_record(path, factory.make_record())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(StudyError, match="cannot be read") as caught:
        folder.read_record(path, StudyRecord)
    assert str(path) in str(caught.value)
    assert "Remove this file and run the search of this study again" in str(caught.value)


def test_a_record_whose_numbers_changed_on_the_disk_is_a_study_error(tmp_path: Path) -> None:
    path = tmp_path / "dense.json"
    dense = factory.make_record().dense
    folder.write_record(path, dense)
    content = path.read_bytes()
    digit = content.index(b".", content.index(b'"loss"')) + 1
    path.write_bytes(content[:digit] + (b"7" if content[digit : digit + 1] != b"7" else b"3") + content[digit + 1 :])
    with pytest.raises(StudyError, match=r"dense\.json: cannot be read \(its checksum is that of another content\)"):
        folder.read_record(path, DenseResult)
    path.write_bytes(msgspec.json.encode(dense))  # as earlier versions wrote it
    assert folder.read_record(path, DenseResult) == dense


def test_records_by_name_come_back_and_none_do_too(tmp_path: Path) -> None:
    for known in ({}, {"2e-5": {"best": 1 / 3}}):
        folder.write_record(tmp_path / "rates.json", known)
        assert folder.read_record(tmp_path / "rates.json", dict[str, dict[str, float]]) == known


@pytest.mark.parametrize("name", ["compare.json", "fidelity.json"])
def test_what_no_search_makes_is_not_made_up_by_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(StudyError, match="Remove this file and run this command again, which begins anew"):
        folder.read_record(tmp_path / name, StudyRecord)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"null",
        b'{"num_layers": 12}',
        b'{"num_layers": "12", "kept_layers": []}',
        b'{"num_layers": 12, "kept_layers": [], "colour": "red"}',
        b"\0" * 40,
    ],
)
def test_a_record_of_another_form_is_a_study_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(StudyError, match="cannot be read"):
        folder.read_record(path, Candidate)


def test_a_record_that_is_not_text_is_a_study_error(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(b'{"source": "\xff\xfe", "tokens": 1, "documents": 1, "sha256": "x"}')
    with pytest.raises(StudyError, match="cannot be read"):
        folder.read_record(path, StreamRecord)


def test_a_missing_record_is_a_study_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"dense\.json: missing.*Run the search"):
        folder.read_record(tmp_path / "dense.json", Candidate)


def test_a_directory_in_the_place_of_a_record_is_a_study_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be read"):
        folder.read_record(tmp_path, Candidate)


# ---- the lock

HOLD = """
import sys
from pathlib import Path
from seed import folder

with folder.lock(folder.StudyFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the study until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_that_another_host_holds_is_not_waited_for(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    (tmp_path / ".lock").write_text("7 on elsewhere")
    with (
        pytest.raises(StudyError, match=r"in use on elsewhere \(pid 7\)\. Wait for it, stop it, or start"),
        folder.lock(StudyFolder(tmp_path)),
    ):
        raise AssertionError("two holders")


def test_a_study_has_one_holder_and_kill_9_frees_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    study = StudyFolder(tmp_path)
    with pytest.raises(StudyError, match=f"in use by another process \\(pid {holder.pid}\\)"), folder.lock(study):
        raise AssertionError("two holders")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(timeout=30)
    with folder.lock(study):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} on {socket.gethostname()}"


def test_a_study_is_free_after_its_holder_ends(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.communicate("", timeout=30)
    assert holder.returncode == 0
    with folder.lock(StudyFolder(tmp_path)):
        pass


def test_a_lock_is_freed_when_the_work_fails(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    with pytest.raises(ZeroDivisionError), folder.lock(study):
        raise ZeroDivisionError
    with folder.lock(study), pytest.raises(StudyError, match=f"pid {os.getpid()}"), folder.lock(study):
        raise AssertionError("two holders in one process")
    with folder.lock(study):
        pass


# ---- directories


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "models" / "drop-1"
    for content in ("old", "new"):
        with folder.replace_directory(target) as aside:
            assert aside.parent == target.parent  # one file system, so that renaming is one step
            (aside / content).write_text(content)
            assert not target.exists() or names(target) == ["old"]
        assert names(target) == [content]
        assert names(target.parent) == ["drop-1"]


def test_a_directory_that_is_mounted_is_filled_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "volume"
    target.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == target)
    before = target.stat().st_ino
    with pytest.raises(ResourceError, match="Name a place"), folder.replace_directory(target) as aside:
        shutil.copy(tmp_path / "gone", aside)
    assert names(target) == []
    with folder.replace_directory(target) as aside:
        (aside / "config.json").write_text("{}")
    assert names(target) == ["config.json"]
    assert target.stat().st_ino == before
    assert names(tmp_path) == ["volume"]


def test_files_are_on_the_disk_before_the_directory_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    sync = os.fsync

    def note(handle: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{handle}"))
        assert not (tmp_path / "drop-1").exists()
        sync(handle)

    monkeypatch.setattr(os, "fsync", note)
    with folder.replace_directory(tmp_path / "drop-1") as aside:
        (aside / "deeper").mkdir()
        files = [aside / "config.json", aside / "deeper" / "template.jinja"]
        for file in files:
            file.write_text("content")
    assert synced >= set(map(str, files))


class BrokenError(Exception):
    pass


def write_half(target: Path, fail: Callable[[], None]) -> None:
    """Begin to replace a directory, and fail."""
    with folder.replace_directory(target) as aside:
        (aside / "half").write_text("half")
        fail()


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt])
def test_a_directory_is_kept_when_the_work_fails(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        raise error

    target = tmp_path / "drop-1"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(error):
        write_half(target, fail)
    assert names(target) == ["old"]
    assert names(tmp_path) == ["drop-1"]


def test_a_directory_is_kept_when_the_disk_is_full(tmp_path: Path) -> None:
    target = tmp_path / "drop-1"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(ResourceError, match=r"drop-1: cannot be written \(No space left on device\)"):
        write_half(target, lambda: Path("/dev/full").write_text("x") and None)
    assert names(target) == ["old"]
    assert names(tmp_path) == ["drop-1"]


def test_a_directory_is_kept_when_its_successor_cannot_take_its_place(tmp_path: Path) -> None:
    target = tmp_path / "drop-1"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(ResourceError, match="cannot be written"), folder.replace_directory(target) as aside:
        aside.rmdir()  # someone tidied up; the last rename fails after the old one was set aside
    assert target.is_dir()
    assert names(target) == ["old"]


def test_leftovers_of_a_killed_run_do_not_get_in(tmp_path: Path) -> None:
    for name in (".drop-1.new", ".drop-1.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stale").write_text("stale")
    with folder.replace_directory(tmp_path / "drop-1") as aside:
        (aside / "new").write_text("new")
    assert names(tmp_path / "drop-1") == ["new"]
    assert names(tmp_path) == ["drop-1"]


# ---- room


def test_a_disk_without_room_is_refused_before_the_work(tmp_path: Path) -> None:
    folder.require_room(tmp_path, needed_bytes=1, purpose="nothing")
    with pytest.raises(ResourceError, match=r"six checkpoints needs about 1000000000\.00 GB.*--frontier-size"):
        folder.require_room(tmp_path, needed_bytes=10**18, purpose="six checkpoints")


def test_a_scratch_directory_is_empty_at_first_and_gone_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "work" / "scratch"
    path.mkdir(parents=True)
    (path / "left by a killed process").touch()
    with folder.make_scratch(path) as scratch:
        assert scratch == path
        assert not list(path.iterdir())
        (path / "file").touch()
    assert not path.exists()


def test_a_disk_that_can_only_be_read_is_not_told_to_be_full(tmp_path: Path) -> None:
    read_only = OSError(errno.EROFS, os.strerror(errno.EROFS))
    with (
        pytest.raises(ResourceError, match="can only be read: choose a writable place") as caught,
        folder.explain_resource_errors(tmp_path),
    ):
        raise read_only
    assert "room" not in str(caught.value)
    assert "room" not in str(folder.refuse_write(tmp_path / "plan.json", read_only))
    with pytest.raises(StudyError, match="its own cure"), folder.explain_resource_errors(tmp_path):
        raise StudyError("its own cure") from read_only


@pytest.mark.skipif(not Path("/proc/1").exists(), reason="no file system here that can only be read")
def test_a_place_that_cannot_be_written_is_refused_before_any_work() -> None:
    with pytest.raises(ResourceError, match="/proc/1/studies/demo: cannot write there"):
        folder.create(Path("/proc/1/studies/demo"))
