"""Which processes are at work in a study's folder: each holds a file that the kernel lets go of when it ends, however it ends.

What they do there is not known here.
"""

import contextlib
import fcntl
import functools
import os
import re
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

# Names come from files and storages that others may write; whatever else one held would lead to another folder.
NAME = re.compile(r"[^/:+\0]+:[0-9]{1,20}:[0-9a-f]{12}")


class Presence:
    """One process among others at a folder.

    Its name is that of the place, the process and a random word, so that no two are alike, not even after a restart.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @functools.cached_property
    def word(self) -> str:
        """A random word that the folder keeps: what is copied or mounted elsewhere has the same, what only looks alike has not."""
        path = self.directory / ".place"
        self.directory.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{uuid.uuid4().hex}.new")
        aside.write_text(uuid.uuid4().hex[:12])
        try:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)  # whoever comes first makes it, whole
        except OSError:  # a file system without links
            if not path.exists():
                aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        with path.open() as handle:
            return re.sub(r"[^0-9a-f]", "", handle.read(12))

    @functools.cached_property
    def place(self) -> str:
        """``node7@1f0c9a``: a host, and a folder there; who works at one of the same name can be seen."""
        return f"{socket.gethostname()}@{self.word}"

    @functools.cached_property
    def name(self) -> str:
        """Of this process, here."""
        return f"{self.place}:{os.getpid()}:{uuid.uuid4().hex[:12]}"

    def is_there(self, name: str) -> bool | None:
        """Is the process of this name at work? None: it is one of another host or folder, which cannot be told from here."""
        if name == self.name:
            return True
        if not NAME.fullmatch(name):  # of nobody
            return False
        if name.partition(":")[0] != self.place:
            return None
        try:
            with self._locate(name).open("rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        self._locate(name).unlink(missing_ok=True)  # it was killed
        return False

    def count_others(self) -> int:
        """How many other processes of this host are at work here."""
        names = [path.name.removesuffix(".lock").replace("+", ":") for path in self.directory.glob("*.lock")]
        return sum(name != self.name and bool(self.is_there(name)) for name in names)

    @contextlib.contextmanager
    def be_there(self) -> Iterator[None]:
        """Be known to be at work until the block ends."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self._locate(self.name)
        with path.open("wb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def _locate(self, name: str) -> Path:
        return self.directory / f"{name.replace(':', '+')}.lock"
