"""Signs of life of a trial that is being evaluated, so that others can tell a killed worker from a slow one.

Only storages on a server have them. Who fails the trials of the dead decides when.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator

import optuna
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeat

LEAVE_SECONDS = 1.0  # a thread that hangs in a dead connection is not waited for any longer


@contextlib.contextmanager
def beating(storage: BaseStorage, trial_id: int) -> Iterator[None]:
    """Record a heartbeat of a trial at once, and from then on every interval until left.

    The work never fails by it: when the storage does not take a heartbeat, the next is tried an interval later. Does nothing
    where the storage has no heartbeats. A trial that never had one never counts as stale, so enter this as soon as a trial
    is there.
    """
    interval = storage.get_heartbeat_interval() if isinstance(storage, BaseHeartbeat) else None
    if interval is None:
        yield
        return

    def beat() -> None:
        assert isinstance(storage, BaseHeartbeat)
        storage.record_heartbeat(trial_id)

    with repeating(beat, every_seconds=interval, name=f"heartbeat of trial {trial_id}"):
        yield


@contextlib.contextmanager
def repeating(action: Callable[[], None], *, every_seconds: float, name: str) -> Iterator[None]:
    """Call at once, and every so many seconds from then on until left. The work never fails by it: the next call is another try."""
    is_left = threading.Event()

    def act() -> None:
        with contextlib.suppress(Exception):
            action()

    def go_on() -> None:
        while not is_left.wait(every_seconds):
            act()

    act()
    thread = threading.Thread(target=go_on, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_left.set()
        thread.join(LEAVE_SECONDS)


def give_heartbeat(storage: BaseStorage, trial_id: int) -> None:
    """Record one heartbeat of a trial in its worker's stead: if it has none of its own, it counts as stale in a while."""
    if isinstance(storage, BaseHeartbeat) and storage.get_heartbeat_interval() is not None:
        with contextlib.suppress(Exception):
            storage.record_heartbeat(trial_id)


def fail_stale_trials(study: optuna.Study) -> None:
    """Fail the trials whose heartbeats ended longer ago than the storage's grace period; none where it has no heartbeats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
