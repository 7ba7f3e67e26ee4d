"""Files that may come from anyone: what they are and how large, how they are replaced, what a terminal may show."""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from seed.errors import StudyError
from seed.records import MAX_LAYERS

# The largest record that a search writes is some MB (summed losses of every test document under every random seed), and a
# decoded one takes ten times its size in memory.
RECORD_BYTES = 128 * 2**20
# A score holds a number for each document: 9 bytes of 1.8 million documents.
ROW_BYTES = 16 * 2**20
# All scores are held in memory together: a hundred thousand candidates on two thousand documents are 1.6 GB.
ROWS_BYTES = 8 * 2**30
# Optuna reads all of it on opening: 2 kB a trial, and figures.
JOURNAL_BYTES = 2 * 2**30


def refuse_strays(root: Path) -> None:
    """Raise StudyError when something below ``root`` leads out of it, or is neither a file nor a folder: writing there is writing elsewhere.

    The folder itself may be a link, as may be what is above it. What is not there has no strays.
    """
    whole = root.resolve()
    for place, folders, files in os.walk(whole):
        for name in (*folders, *files):
            path = Path(place, name)
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # a search that runs has renamed it meanwhile
                continue
            if stat.S_ISLNK(mode) and not path.resolve().is_relative_to(whole):
                raise StudyError(
                    f"{root / path.relative_to(whole)}: a link that leads out of the study's folder, to {os.readlink(path)}, and "
                    "what is written there would be written over other files. Put a copy in its place, or move the whole "
                    "folder to where there is room."
                )
            if not (stat.S_ISLNK(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise StudyError(
                    f"{root / path.relative_to(whole)}: neither a file nor a folder, and a study holds nothing else. Remove it."
                )


def read_bounded(path: Path, *, limit: int = RECORD_BYTES) -> bytes:
    """Return a file's content, of at most ``limit`` bytes.

    Raises:
        StudyError: it is larger.
        OSError: it cannot be read.
    """
    with open_regular(path) as handle:
        content = handle.read(limit + 1)
    if len(content) > limit:
        raise _refuse_size(path, found=path.stat().st_size, limit=limit)
    return content


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file that ends, to be read. Opening a pipe would wait for whoever writes into it.

    Raises:
        OSError: it cannot be opened, or is a pipe or a device.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise OSError(errno.EINVAL, "a pipe or a device, and no file", str(path))
        yield handle


def find_excess(config: object) -> str | None:
    """Say which number of layers in a model's config is one that no model has; None: none is."""
    todo = [config]
    while todo:
        found = todo.pop()
        if isinstance(found, dict):
            for name, value in found.items():
                is_count = str(name).endswith(("layer", "layers")) and not str(name).endswith("per_layer")
                if is_count and isinstance(value, int | float) and value > MAX_LAYERS:
                    return f"{name} = {str(value)[:20]}, and no model has more than {MAX_LAYERS:,} layers"
            todo.extend(found.values())
        elif isinstance(found, list):
            todo.extend(one for one in found if isinstance(one, dict | list))
    return None


def require_size(path: Path, *, limit: int) -> None:
    """Raise StudyError when a file that others read whole is larger than ``limit`` bytes; one that is not there is not."""
    if path.is_file() and (found := path.stat().st_size) > limit:
        raise _refuse_size(path, found=found, limit=limit)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Yield what to write a file to: it takes its place when all is on the disk, so that readers see the old one or the new one.

    Where the block fails, what lay there stays and nothing else does. A link that waits in a place is never followed.

    Raises:
        OSError: the disk does not take it.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(aside, flags, 0o666), "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def _refuse_size(path: Path, *, found: int, limit: int) -> StudyError:
    return StudyError(
        f"{path}: {found / 2**20:,.0f} MB, and what a search writes there is below {limit / 2**20:,.0f} MB. It is not read. "
        "Restore it from a copy, or start a study of another name (--study NAME)."
    )


# C0 without tab and line end, DEL, C1 (some terminals obey them as UTF-8 too), and what turns the direction of writing.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def spell_controls(text: str) -> str:
    r"""Return text in which every control character is spelt out.

    Example:
        >>> spell_controls("evil\x1b[2J")
        'evil\\x1b[2J'
    """
    return STEERING.sub(_spell, text)


def is_utf8(text: str) -> bool:
    """Can the text be written down? A file's name that is not UTF-8 reaches Python as text that cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _spell(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
