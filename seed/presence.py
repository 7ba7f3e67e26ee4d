"""Which processes are at work in a study's folder: each holds a file that the kernel lets go of when it ends, however it ends.

What they do there is not known here.
"""

import contextlib
import fcntl
import hashlib
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
        self.place = name_place(directory)
        self.name = f"{self.place}:{os.getpid()}:{uuid.uuid4().hex[:12]}"

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


def name_place(directory: Path) -> str:
    """``node7@1f0c9a``: a host since it was started, and a folder there; who works at one of the same name can be seen."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # not Linux: then the name of the host has to do
        start = ""
    folder = hashlib.sha256(f"{start}{directory.resolve()}".encode()).hexdigest()[:12]
    return f"{socket.gethostname()}@{folder}"


def name_host(place: str) -> str:
    """The host of a place, for people."""
    return place.rpartition("@")[0] or place
