"""What the process that leads a search tells those that help: what is searched, and what can be shared out now.

Orders lie in the study's folder, and hold as long as their lead is at work. Nothing is done here.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from seed import folder
from seed.errors import StudyError
from seed.folder import StudyFolder
from seed.plans import SearchPlan
from seed.presence import Presence
from seed.records import Record, SearchSpace
from seed.stages.finals import Budget
from seed.stages.schooling import Member
from seed.stages.settings import SearchSettings

POLL_SECONDS = 0.5
# Settings that each process may have its own of, or that it takes over: the type to compute in is the study's.
OWN = ("device", "workers", "studies_dir", "study", "storage", "dtype")


class LeadOrder(Record, frozen=True, kw_only=True):
    """Who leads, and what was asked for."""

    lead: str
    pid: int
    settings: dict[str, Any]


class SearchOrder(Record, frozen=True, kw_only=True):
    """Candidates can be scored: latencies are written down."""

    lead: str
    plan: SearchPlan
    space: SearchSpace  # as limits bound it


class DistillOrder(Record, frozen=True, kw_only=True):
    """Models can be distilled."""

    lead: str
    members: tuple[Member, ...]
    budget: Budget


Order = TypeVar("Order", LeadOrder, SearchOrder, DistillOrder)


def describe_settings(settings: SearchSettings) -> dict[str, Any]:
    """What all processes of a search must have alike, as JSON knows it."""
    return {name: value for name, value in settings.describe().items() if name not in OWN}


@contextlib.contextmanager
def lead(study: StudyFolder, presence: Presence, settings: SearchSettings, *, pid: int) -> Iterator[None]:
    """Lead a search until the block ends: orders of whoever led before do not count."""
    for path in (study.search_order, study.distill_order):
        path.unlink(missing_ok=True)
    with presence.be_there():
        folder.write_record(study.lead, LeadOrder(lead=presence.name, pid=pid, settings=describe_settings(settings)))
        try:
            yield
        finally:
            for path in (study.lead, study.search_order, study.distill_order):
                path.unlink(missing_ok=True)


def find_lead(study: StudyFolder, presence: Presence) -> LeadOrder | None:
    """Who leads a search in this folder now, if anybody does."""
    return _read(study.lead, LeadOrder, presence)


def require_same_settings(found: LeadOrder, settings: SearchSettings, *, place: Path) -> None:
    """Raise when a search that runs was asked for otherwise than we are.

    Raises:
        StudyError: with every difference.
    """
    changed = list_changed(found.settings, describe_settings(settings))
    if changed:
        raise StudyError(
            f"{place}: a search runs there (pid {found.pid}) that was asked for otherwise ({', '.join(changed)}). Give the "
            "same options to help it, wait for its end, or start a study of another name with --study NAME."
        )


def list_changed(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Say, setting by setting, how two processes were asked otherwise."""
    return [
        f"{name}: {there.get(name)} there, {here.get(name)} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]


def wait_for(
    path: Path,
    kind: type[Order],
    presence: Presence,
    *,
    is_over: Callable[[], bool],
) -> Order | None:
    """Wait for an order of a lead that is at work; None when it is over before that."""
    while True:
        found = _read(path, kind, presence)
        if found is not None:
            return found
        if is_over():
            return None
        time.sleep(POLL_SECONDS)


def _read(path: Path, kind: type[Order], presence: Presence) -> Order | None:
    if not path.is_file():
        return None
    try:
        found = folder.read_record(path, kind)
    except StudyError:  # just removed, or of another version: its lead is not ours
        return None
    return found if presence.is_there(found.lead) else None
