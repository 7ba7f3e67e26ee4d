"""The study's folder: where things lie, who may write, and how nothing is half-written.

What a run that was killed finds again, and who reads it: the plan (``plans.read_plan``), scores and trials in ``scores.sqlite``
(``scores``, ``optimize.trials``), latencies (``stages.latency_table``), the dense model's numbers (``pipeline.judge_dense``), its stored
states (``distillation.teacher_states``), the learning rate (``stages.students``), a training half-way (``distillation.loop``), finished
models (``stages.finals``).
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from seed import untrusted
from seed.errors import ResourceError, SeedError, StudyError, first_line

T = TypeVar("T")
INSIDE = ".new"  # what a mounted directory is filled from
DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# safetensors and torch wrap the errno into a message of their own
WRAPPED = {
    errno.ENOSPC: re.compile(r"os error (27|28|122)\b|No space left on device|PytorchStreamWriter failed"),
    errno.EROFS: re.compile(r"os error 30\b|Read-only file system"),
}
MEMORY_MESSAGE = "can't allocate memory"  # torch on the CPU
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class StudyFolder:
    """Paths below ``studies/<name>`` and the few ways to read and write there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plan = root / "plan.json"
        self.journal = root / "journal.log"
        self.latency = root / "latency.json"
        self.dense = root / "dense.json"
        self.frontier = root / "frontier.json"
        self.environment = root / "environment.json"
        self.report = root / "report.html"
        self.models = root / "models"
        self.distilled = root / "distilled"
        self.unrecovered = root / "unrecovered"
        self.artifacts = root / "artifacts"
        self.scores = root / "scores.sqlite"
        self.gain = root / "gain.json"
        self.bits = root / "bits.json"
        self.tasks = root / "tasks.json"
        self.fidelity = root / "fidelity.json"
        self.comparison = root / "compare.json"
        self.recoveries = root / "recoveries.json"
        self.stages = root / "stages.json"
        self.stages_plan = root / "stages-plan.json"
        self.work = root / "work"
        self.time = root / "time.json"
        self.finished = self.work / "finished.json"

    @property
    def name(self) -> str:
        """The study's name is the folder's."""
        return self.root.name

    def model(self, key: str) -> Path:
        """Where the checkpoint of a candidate lies."""
        return self.models / key

    def result(self, key: str) -> Path:
        """Where the record of a finished distillation lies."""
        return self.distilled / f"{key}.json"


def name_study(name: str) -> str:
    """Return the name if it can be a folder's name, else raise."""
    if not STUDY_NAME.fullmatch(name):
        raise StudyError(
            f"--study {name!r}: a study's name is one folder name of letters, digits, '.', '_' and '-'. "
            "To write elsewhere, keep the name simple and add --studies-dir DIRECTORY."
        )
    return name


def create(root: Path) -> StudyFolder:
    """Make sure that the folder is there and can be written."""
    untrusted.refuse_strays(root)
    require_writable(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refuse_write(root, error) from error
    return StudyFolder(root)


def require_writable(root: Path) -> None:
    """Raise ResourceError when nothing can be written in a folder, or where it would be made; asked before there is any work to lose."""
    existing = next(place for place in (root.absolute(), *root.absolute().parents) if place.exists())
    if existing.is_dir() and not os.access(existing, os.W_OK | os.X_OK):
        is_read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
        number = errno.EROFS if is_read_only else errno.EACCES
        raise refuse_write(root, OSError(number, os.strerror(number)))


def open_existing(path: Path) -> StudyFolder:
    """Return the folder of a study that was planned before."""
    require_readable(path)
    folder = StudyFolder(path)
    if not folder.plan.is_file() and StudyFolder(path / "stage-1").plan.is_file():
        stages = ", ".join(sorted(str(plan.parent) for plan in path.glob("*/plan.json")))
        raise StudyError(
            f"{path}: a search in stages, of which each is a study of its own. Name one of them: {stages}."
        )
    if not folder.plan.is_file():
        raise StudyError(
            f"{path}: not a study (no plan.json there). Give the folder that a search wrote, such as studies/demo."
        )
    untrusted.refuse_strays(path)
    return folder


@contextlib.contextmanager
def lock(folder: StudyFolder) -> Iterator[None]:
    """Hold the study for this process; the kernel lets go when the process ends, however it ends."""
    try:
        opened = (folder.root / ".lock").open("a+")
    except OSError as error:
        raise refuse_write(folder.root, error) from error
    with opened as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            pid, _, host = handle.read().strip().partition(" on ")
            is_here = host in ("", socket.gethostname())
            by = f"by another process (pid {pid or 'unknown'})" if is_here else f"on {host} (pid {pid})"
            raise StudyError(
                f"{folder.root}: in use {by}. Wait for it, stop it, or start a study of another name with --study NAME."
            ) from error
        handle.truncate(0)
        handle.write(f"{os.getpid()} on {socket.gethostname()}")
        handle.flush()
        with explain_resource_errors(folder.root):
            yield


def is_out_of_memory(error: BaseException) -> bool:
    """Is this how Python or torch says that the memory is full?"""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or MEMORY_MESSAGE in str(error)


@contextlib.contextmanager
def explain_resource_errors(place: Path) -> Iterator[None]:
    """Turn what libraries raise when the disk or the memory is full, or access is denied, into a ResourceError."""
    try:
        yield
    except SeedError:  # has its own cure
        raise
    except Exception as error:
        if isinstance(error, PermissionError):
            raise deny(Path(error.filename or place)) from error
        link: BaseException | None = error
        while link is not None:
            if isinstance(link, OSError) and link.errno in (*DISK_ERRNOS, errno.EROFS):
                raise refuse_write(place, link) from error
            for number, message in WRAPPED.items():
                if message.search(str(link)):
                    raise refuse_write(place, OSError(number, str(link))) from error
            if is_out_of_memory(link):
                raise ResourceError(
                    f"{place}: out of memory ({first_line(link)}). Use a smaller model, shorter windows "
                    "(--window-tokens), or less text (--calibration-tokens, --validation-tokens); what was finished is kept."
                ) from error
            link = link.__cause__ or link.__context__
        raise


def require_readable(path: Path) -> None:
    """Raise ResourceError when a file or a folder is there and may not be read; what is not there, others miss."""
    try:
        wanted = os.R_OK | (os.X_OK if path.is_dir() else 0)
        if path.exists() and not os.access(path, wanted):
            raise deny(path)
    except PermissionError as error:  # so says what is above it
        raise deny(path) from error


def deny(path: Path) -> ResourceError:
    """What is raised where access to a place is denied."""
    return ResourceError(
        f"{path}: permission denied. Ask its owner for the right to it, or work on a copy of your own."
    )


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write aside, flush, and rename, so that readers see the old file or the new one."""
    try:
        with untrusted.replace_file(path) as handle:
            handle.write(content)
    except OSError as error:
        raise refuse_write(path, error) from error


def refuse_write(path: Path, error: OSError) -> ResourceError:
    """What is raised when a place cannot be written, with what helps against it."""
    cure = "Name a place that can be written, such as with --studies-dir DIRECTORY, or work on a copy of your own."
    if error.errno in (*DISK_ERRNOS, errno.EIO):
        cure = "Free some room and run the same command again; what was finished is kept."
    return ResourceError(f"{path}: cannot be written ({error.strerror or error}). {cure}")


def write_record(path: Path, record: msgspec.Struct | dict[str, Any]) -> None:
    """Write a record, or some by name, as indented JSON that reads back.

    Raises:
        StudyError: it would not, since a number in it is not finite, which JSON does not know.
        ResourceError: the disk does not take it.
    """
    content = msgspec.json.encode(record)
    try:
        msgspec.json.decode(content, type=type(record))
    except msgspec.ValidationError as error:
        raise StudyError(
            f"{path}: not written, since a number in it is not finite ({error}). Compute in float32 (--dtype float32), or give "
            "more text, as a study of another name (--study NAME)."
        ) from error
    write_bytes(path, msgspec.json.format(content, indent=1) + b"\n")


def read_record(path: Path, kind: type[T]) -> T:
    """Read a record back.

    Raises:
        StudyError: the file is missing, damaged, or of another form.
    """
    try:
        return msgspec.json.decode(untrusted.read_bounded(path), type=kind)
    except FileNotFoundError as error:
        raise StudyError(
            f"{path}: missing. Run the search of this study again; it makes up what is missing."
        ) from error
    except PermissionError as error:
        raise deny(path) from error
    except (ValueError, RecursionError, OSError) as error:
        raise StudyError(
            f"{path}: cannot be read ({error}). Remove this file and run the command again that wrote it; finished trials are kept."
        ) from error


@contextlib.contextmanager
def replace_directory(target: Path) -> Iterator[Path]:
    """Yield a directory beside ``target`` to fill; it takes the target's place only if nothing failed and all is on the disk."""
    is_mount = target.is_mount()  # such as a container's volume: it can be filled, not replaced
    aside = target / INSIDE if is_mount else target.with_name(f".{target.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in filter(Path.is_file, aside.rglob("*")):  # whoever wrote it
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        if is_mount:
            for path in aside.iterdir():
                path.replace(target / path.name)
            return
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        try:
            aside.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise refuse_write(target, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def make_scratch(path: Path) -> Iterator[Path]:
    """Make an empty directory of this name that is gone when the block ends; what a killed process left there goes too."""
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.mkdir(parents=True)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def require_room(
    path: Path,
    *,
    needed_bytes: int,
    purpose: str,
    cure: str = "Free some room, lower --frontier-size, or choose another disk with --studies-dir DIRECTORY.",
) -> None:
    """Raise when the disk under ``path`` has less room than ``needed_bytes``."""
    free = shutil.disk_usage(path).free
    if free < needed_bytes:
        raise ResourceError(
            f"{path}: {free / 1e9:.2f} GB free, but {purpose} needs about {needed_bytes / 1e9:.2f} GB. {cure}"
        )
