"""The study's folder: one writer, no half-written file, and the old one stays when the new one fails."""

import errno
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from seed import study_dir
from seed.errors import ResourceError, StudyError
from seed.evidence import StudyRecord
from seed.records import Candidate
from seed.study_dir import StudyFolder
from tests.running import environment

from .reporting import factory


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


# ---- names and places


def test_names_that_cannot_be_folders_are_refused() -> None:
    for name in ("demo", "a", "Llama-3.2_1B", "0", "a" * 100, "x..y"):
        assert study_dir.name_study(name) == name
    for name in ("", ".", "..", ".hidden", "a/b", "../a", "a b", "-x", "naïve", "a\n", "a" * 101, "a\0"):
        with pytest.raises(StudyError, match=r"--study.*--studies-dir"):
            study_dir.name_study(name)


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    study = study_dir.create(tmp_path / "studies" / "demo")
    assert names(study.root) == []
    (study.root / "kept").write_text("x")
    assert study_dir.create(study.root).name == "demo"  # again is fine
    assert names(study.root) == ["kept"]
    paths = [value for value in vars(study).values() if isinstance(value, Path) and value != study.root]
    assert all(path.parent in (study.root, study.work) for path in paths)
    assert len(set(paths)) == len(paths) >= 10


@pytest.mark.parametrize("place", ["file", "file/demo", "/proc/1/studies/demo"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=rf"{place}: cannot be written.*--studies-dir"):
        study_dir.create(tmp_path / place)
    assert (tmp_path / "file").read_text() == "in the way"


# ---- writing


@pytest.mark.parametrize("moment", ["write", "flush"])
def test_a_file_that_finds_no_room_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "frontier.json"
    path.write_bytes(b"old")
    before, heard = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if moment == "flush":
        monkeypatch.setattr(os, "fsync", full)  # a disk that fills up between the two cannot be had otherwise
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"frontier\.json: cannot be written \((File too|No space)") as caught:
            study_dir.write_bytes(path, b"n" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["frontier.json"]


# ---- records


def test_a_record_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record = factory.make_record()
    study_dir.write_record(path, record)
    assert study_dir.read_record(path, StudyRecord) == record
    assert path.read_text().endswith("}\n")
    assert len(path.read_text().splitlines()) > 1000  # people read it, too
    for known in ({}, {"2e-5": {"best": 1 / 3}}):
        study_dir.write_record(path, known)
        assert study_dir.read_record(path, dict[str, dict[str, float]]) == known


def test_a_record_that_would_not_read_back_is_not_written(tmp_path: Path) -> None:
    dense = factory.make_record().dense
    record = replace(dense, test=replace(dense.test, standard_error=float("nan")))
    with pytest.raises(StudyError, match=r"dense\.json: not written.*not finite.*test\.standard_error"):
        study_dir.write_record(tmp_path / "dense.json", record)
    assert not names(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read.*Remove this file and run the command again"),
        (b'{"num_layers": 12, "parts": ["0", "1', "cannot be read"),
        (b'{"num_layers": 12}', "parts"),
        (b'{"num_layers": "12", "parts": []}', "int"),
        (b'{"num_layers": 12, "parts": [], "colour": "red"}', "colour"),
        (b'{"num_layers": "\xff\xfe", "parts": []}', "cannot be read"),
        (b"\0" * 40, "cannot be read"),
        (None, r"missing.*Run the search"),
    ],
)
def test_a_record_of_another_form_is_a_study_error(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "record.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StudyError, match=said) as caught:
        study_dir.read_record(path, Candidate)
    assert str(caught.value).startswith(str(path))


# ---- the lock

HOLD = """
import sys
from pathlib import Path
from seed import study_dir

with study_dir.lock(study_dir.StudyFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the study until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_study_has_one_holder_and_kill_9_frees_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    study = StudyFolder(tmp_path)
    with pytest.raises(StudyError, match=f"in use by another process \\(pid {holder.pid}\\)"), study_dir.lock(study):
        raise AssertionError("two holders")
    (tmp_path / ".lock").write_text("7 on elsewhere")
    with pytest.raises(StudyError, match=r"in use on elsewhere \(pid 7\)\. Wait for it"), study_dir.lock(study):
        raise AssertionError("two holders")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(timeout=30)
    with study_dir.lock(study):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} on {socket.gethostname()}"


def test_a_lock_is_freed_when_the_work_fails(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    with pytest.raises(ZeroDivisionError), study_dir.lock(study):
        raise ZeroDivisionError
    with study_dir.lock(study), pytest.raises(StudyError, match=f"pid {os.getpid()}"), study_dir.lock(study):
        raise AssertionError("two holders in one process")
    with study_dir.lock(study):
        pass


# ---- directories


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A model that is to be replaced."""
    path = tmp_path / "models" / "drop-1"
    path.mkdir(parents=True)
    (path / "old").write_text("old")
    return path


def test_a_directory_is_replaced_as_a_whole_when_all_is_on_the_disk(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    sync = os.fsync

    def note(handle: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{handle}"))
        assert names(target) == ["old"]
        sync(handle)

    monkeypatch.setattr(os, "fsync", note)
    for leftover in (".drop-1.new", ".drop-1.old"):  # of a killed run
        (target.parent / leftover).mkdir()
        (target.parent / leftover / "stale").write_text("stale")
    with study_dir.replace_directory(target) as aside:
        assert aside.parent == target.parent  # one file system, so that renaming is one step
        (aside / "deeper").mkdir()
        files = [aside / "config.json", aside / "deeper" / "template.jinja"]
        for file in files:
            file.write_text("content")
    assert synced >= set(map(str, files))
    assert names(target) == ["config.json", "deeper"]
    assert names(target.parent) == ["drop-1"]


def test_a_directory_that_is_mounted_is_filled_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "volume"
    target.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == target)
    before = target.stat().st_ino
    with pytest.raises(ResourceError, match="Name a place"), study_dir.replace_directory(target) as aside:
        shutil.copy(tmp_path / "gone", aside)
    assert names(target) == []
    with study_dir.replace_directory(target) as aside:
        (aside / "config.json").write_text("{}")
    assert names(target) == ["config.json"]
    assert target.stat().st_ino == before
    assert names(tmp_path) == ["volume"]


def replace_and_fail(target: Path, fail: Callable[[Path], object]) -> None:
    with study_dir.replace_directory(target) as aside:
        (aside / "half").write_text("half")
        fail(aside)


def stop(aside: Path) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("fail", "error", "said"),
    [
        (stop, KeyboardInterrupt, None),
        (lambda aside: Path("/dev/full").write_text("x"), ResourceError, r"drop-1: cannot be written \(No space left"),
        # someone tidied up; the last rename fails after the old one was set aside
        (shutil.rmtree, ResourceError, "cannot be written"),
    ],
)
def test_a_directory_is_kept_when_the_work_fails(
    target: Path, fail: Callable[[Path], object], error: type[BaseException], said: str | None
) -> None:
    with pytest.raises(error, match=said):
        replace_and_fail(target, fail)
    assert names(target) == ["old"]
    assert names(target.parent) == ["drop-1"]


# ---- room


def test_a_disk_that_can_only_be_read_is_not_told_to_be_full(tmp_path: Path) -> None:
    read_only = OSError(errno.EROFS, os.strerror(errno.EROFS))
    with (
        pytest.raises(ResourceError, match="Name a place that can be written") as caught,
        study_dir.explain_resource_errors(tmp_path),
    ):
        raise read_only
    assert "room" not in str(caught.value)
    assert "room" not in str(study_dir.refuse_write(tmp_path / "plan.json", read_only))
    with pytest.raises(StudyError, match="its own cure"), study_dir.explain_resource_errors(tmp_path):
        raise StudyError("its own cure") from read_only
