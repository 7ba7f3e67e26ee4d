"""Who of several hosts leads a study: one of them by its storage's word, as long as its heartbeat goes on.

A storage has no locks, and knows only attributes, of which the last one written holds. What leading means is decided
elsewhere.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec
import optuna

from seed.errors import StudyError
from seed.optimize.heartbeats import repeating
from seed.records import Record

LEADER = "seed:leader"
BEAT = "seed:beat:"  # and the place: a number that rises
BEAT_SECONDS = 5.0
SILENT_BEATS = 12  # without one the leader is gone
SETTLE_SECONDS = 2.0  # from writing that we lead to believing it: longer than a read and a write take

T = TypeVar("T")


class Leader(Record, frozen=True, kw_only=True):
    """Who leads a study, or has led it to its end."""

    place: str  # the word of a study's folder: who is started again there goes on as the same, under whatever host name
    name: str  # of the process
    host: str
    pid: int
    folder: str
    is_done: bool = False


class Leadership:
    """One process that may lead a study, among others on other hosts.

    Who finds no leader writes down that it leads, waits for others that found none at the same time, and leads if its word
    still holds (Fischer's algorithm, Lamport 1987, "A fast mutual exclusion algorithm"). Where a host took longer from
    reading to writing than others waited, two may lead for a while: the earlier one finds that out by ``require``.
    """

    def __init__(
        self,
        study: optuna.Study,
        ours: Leader,
        *,
        beat_seconds: float = BEAT_SECONDS,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self.study, self.ours = study, ours
        self.beat_seconds, self.settle_seconds = beat_seconds, settle_seconds

    def find(self) -> Leader | None:
        """Who leads, or has led, by the storage's word."""
        return read_shared(self.study, LEADER, Leader)

    def take(self) -> bool:
        """Say that we lead, where nobody at work does; False: somebody was faster."""
        write_shared(self.study, LEADER, self.ours)
        time.sleep(self.settle_seconds)
        return self.find() == self.ours

    def find_at_work(self, *, on_silence: Callable[[Leader], None] = lambda leader: None) -> Leader | None:
        """Who leads and is at work, or has led to the end; None: nobody, or our own folder has.

        Waits for a heartbeat, at most as long as it takes to say that the leader must be gone; time in which the storage does
        not answer is not counted, since nobody could write a heartbeat then. ``on_silence`` hears of a leader whose heartbeat
        is late.
        """
        leader = self.find()
        while leader is not None and not self._is_ours(leader) and not leader.is_done:
            is_at_work = self._wait_for_beat(leader, on_silence)
            before, leader = leader, self.find()
            if leader == before:
                return leader if is_at_work else None
        return None if leader is None or self._is_ours(leader) else leader

    def _is_ours(self, leader: Leader) -> bool:
        """Did it lead from our folder, which we hold? In a copy of it on another host, it may still do so."""
        return leader.place == self.ours.place and (leader.is_done or leader.host == self.ours.host)

    def _wait_for_beat(self, leader: Leader, on_silence: Callable[[Leader], None]) -> bool:
        before = self._count_beats(leader)
        for wait in range(2 * SILENT_BEATS):
            if self._count_beats(leader) != before:
                return True
            if self.find() != leader:
                return False
            if wait == 4:  # two heartbeats are missing
                on_silence(leader)
            time.sleep(self.beat_seconds / 2)
        return False

    @contextlib.contextmanager
    def lead(self) -> Iterator[None]:
        """Show that we are at work until the block ends; if it fails, nobody leads from then on."""

        def beat() -> None:
            _write(self.study, BEAT + self.ours.place, self._count_beats(self.ours) + 1)

        try:
            with repeating(beat, every_seconds=self.beat_seconds, name="heartbeat of the leader"):
                yield
        except BaseException:
            with contextlib.suppress(Exception):
                self._leave(None)
            raise
        with contextlib.suppress(StudyError):  # the storage went away after all was done
            self._leave(msgspec.structs.replace(self.ours, is_done=True))

    def _leave(self, leader: Leader | None) -> None:
        """Lead no more, unless somebody else does already. Without a successor this is no time to wait for the storage."""
        storage = (
            self.study._storage if leader is not None else getattr(self.study._storage, "inner", self.study._storage)
        )
        found = storage.get_study_system_attrs(self.study._study_id).get(LEADER)
        if found == msgspec.to_builtins(self.ours):
            value = None if leader is None else msgspec.to_builtins(leader)
            storage.set_study_system_attr(self.study._study_id, LEADER, value)

    def require(self) -> None:
        """Raise when another host leads by now: ours was taken for dead.

        Raises:
            StudyError: it does.
        """
        found = self.find()
        if found != self.ours:
            who = f"{found.host} (pid {found.pid})" if found is not None else "another host"
            raise StudyError(
                f"study {self.study.study_name}: this host gave no sign of life for so long that {who} leads the search by now. "
                "Run the same command again to help it."
            )

    def _count_beats(self, leader: Leader) -> int:
        found = _read(self.study).get(BEAT + leader.place)
        return found if isinstance(found, int) else 0


def read_shared(study: optuna.Study, name: str, kind: type[T]) -> T | None:
    """Return what hosts share under a name, or None.

    Raises:
        StudyError: it is not what this version of Seed writes.
    """
    found = _read(study).get(name)
    if found is None:
        return None
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise StudyError(
            f"study {study.study_name}: what another host wrote into the storage cannot be read ({name}: {error}). Use the same "
            "version of Seed on all hosts, or start a study of another name with --study NAME."
        ) from error


def write_shared(study: optuna.Study, name: str, record: Record) -> None:
    """Let all hosts of a study know something."""
    _write(study, name, msgspec.to_builtins(record))


def _read(study: optuna.Study) -> dict[str, Any]:
    return study._storage.get_study_system_attrs(study._study_id)


def _write(study: optuna.Study, name: str, value: Any) -> None:
    study._storage.set_study_system_attr(study._study_id, name, value)
