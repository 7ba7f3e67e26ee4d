"""Whose word a plan has: what it names is opened only where this user typed it on this machine, or says so now.

A study's folder may come from anyone, and its plan names a model, texts, commands and a storage. What a search was told is
remembered outside of all folders, in a file that only its user can write, so that one's own studies go on without more
typing. Nothing is opened here.
"""

import contextlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from seed.errors import StudyError
from seed.optimize.urls import hide_secrets
from seed.plans import Protocol

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
HUB_TEXT = re.compile(r"hub:[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]*)?")
KNOWN_TEXTS = (None, "demo", "wikitext2")
TRUST_STUDY = "--trust-study"
TRUST_CODE = "--trust-remote-code"

# Where nothing can be written (no home, a read-only one), what was typed is known to this process alone.
_typed_here: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Door:
    """Something that a plan would open and that could do harm: what it is, and which."""

    kind: str
    value: str

    @property
    def line(self) -> str:
        """How it is remembered."""
        return json.dumps([self.kind, self.value])

    def describe(self) -> str:
        """For people."""
        return f"{self.kind} {hide_secrets(self.value)}"


def list_doors(protocol: Protocol) -> list[Door]:
    """What a plan's model and text would open, harmless things left out: the demo, and names of the hub without their code."""
    doors = []
    model = protocol.location
    named = f"{model}@{protocol.revision}" if protocol.revision else model
    if model != "demo" and not _is_of_hub(model, HUB_NAME):
        doors.append(Door(kind="model", value=named))
    if protocol.trust_remote_code:
        doors.append(Door(kind="remote code", value=named))
    if protocol.start is not None:
        doors.append(Door(kind="start", value=protocol.start))
    for text in dict.fromkeys((protocol.recovery_text, protocol.validation_text, protocol.test_text)):
        if text not in KNOWN_TEXTS and not _is_of_hub(text, HUB_TEXT):
            doors.append(Door(kind="text", value=text))
    if protocol.latency_command is not None:
        doors.append(Door(kind="command", value=protocol.latency_command))
    return doors


def list_storage(url: str | None, *, name: str) -> list[Door]:
    """The storage that a plan names, with the study in it: none for the journal in the folder."""
    return [] if url is None else [Door(kind="storage", value=f"{url} (study {name})")]


def vouch(doors: list[Door]) -> None:
    """Remember that the user typed this, or said that it may be opened."""
    known = _recall()
    missing = [door.line for door in doors if door.line not in known]
    if not missing:
        return
    _typed_here.update(missing)
    with contextlib.suppress(OSError), _open_memory() as memory:  # else the next command asks again, and says why
        memory.write("".join(f"{line}\n" for line in missing).encode())


def is_known(doors: list[Door]) -> bool:
    """Did the user type all of this before, or say that it may be opened?"""
    return {door.line for door in doors} <= _recall()


def require_word(doors: list[Door], *, place: Path, trust_study: bool = False, trust_remote_code: bool = False) -> None:
    """Raise unless the user typed all of this before, or says now that it may be opened; said once, it is remembered.

    Args:
        doors: what would be opened.
        place: the study's folder.
        trust_study: the user's word on all of it but code.
        trust_remote_code: the user's word on the code that a model brings along, which is never meant by the other.

    Raises:
        StudyError: naming each, and what to type.
    """
    known = _recall()
    strange = [door for door in doors if door.line not in known]
    needs_code = any(door.kind == "remote code" for door in strange) and not trust_remote_code
    needs_study = any(door.kind != "remote code" for door in strange) and not trust_study
    if needs_code or needs_study:
        flags = " ".join([TRUST_STUDY] * needs_study + [TRUST_CODE] * needs_code)
        kept = _is_remembering()
        once = f"once; it is remembered in {find_memory()}" if kept else "every time: no home here to remember it in"
        raise StudyError(
            f"{place}: its plan would open what was not typed by you on this machine: "
            f"{'; '.join(door.describe() for door in strange)}. A study's folder may come from anyone. If you trust all of "
            f"that, add {flags} ({once})."
        )
    vouch(strange)


def find_memory() -> Path | None:
    """Where it is remembered what this user typed: below XDG_STATE_HOME or ~/.local/state; None without a home."""
    named = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(named):  # the standard says to ignore any other
        return Path(named) / "seed" / "typed.jsonl"
    try:
        return Path.home() / ".local" / "state" / "seed" / "typed.jsonl"
    except RuntimeError:
        return None


def _recall() -> set[str]:
    """What was typed before; a file that others can write is not believed."""
    path = find_memory()
    if path is None:
        return _typed_here
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            if about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return _typed_here
            return _typed_here | set(file.read().decode().splitlines())
    except (OSError, UnicodeDecodeError):
        return _typed_here


def _is_of_hub(name: str, form: re.Pattern[str]) -> bool:
    """Is this a name of the hub, and of nothing here? A folder of that name would be opened instead."""
    return bool(form.fullmatch(name)) and not Path(name.removeprefix("hub:").partition(":")[0]).exists()


def _open_memory() -> BinaryIO:
    """Open it to add to.

    Raises:
        OSError: there is no home, or it cannot be written.
    """
    path = find_memory()
    if path is None:
        raise FileNotFoundError
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return os.fdopen(handle, "ab")


def _is_remembering() -> bool:
    try:
        _open_memory().close()
    except OSError:
        return False
    return True
