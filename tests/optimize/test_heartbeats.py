"""Heartbeats: sent while the work lasts, whatever becomes of the storage, and not a moment longer."""

import threading
import time
from collections.abc import Iterator

import optuna
import pytest
from optuna.storages._heartbeat import is_heartbeat_enabled

from seed.optimize.heartbeats import beating, fail_stale_trials


class Beaten(optuna.storages.InMemoryStorage, optuna.storages._heartbeat.BaseHeartbeat):
    """Notes heartbeats; fails those that it is told to."""

    def __init__(self, *, interval: float = 0.02, failing: Iterator[bool] | None = None) -> None:
        super().__init__()
        self.interval, self.failing, self.threads = interval, failing, []

    def record_heartbeat(self, trial_id: int) -> None:
        self.threads.append(threading.current_thread().name)
        if self.failing is not None and next(self.failing):
            raise optuna.exceptions.StorageInternalError("away")

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        return []

    def get_heartbeat_interval(self) -> float:
        return self.interval

    def get_heartbeat_stale_trial_callback(self) -> None:
        return None


def wait_for(storage: Beaten, *, beats: int) -> None:
    until = time.monotonic() + 30
    while len(storage.threads) < beats:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_the_first_beat_is_recorded_before_the_work_begins_and_others_while_it_lasts() -> None:
    storage = Beaten()
    with beating(storage, 7):
        assert storage.threads[0] == threading.current_thread().name
        wait_for(storage, beats=4)
    assert set(storage.threads[1:]) == {"heartbeat of trial 7"}


def test_no_beat_follows_the_work_and_no_thread_is_left() -> None:
    storage = Beaten()
    with beating(storage, 7):
        wait_for(storage, beats=2)
    beats = len(storage.threads)
    assert "heartbeat of trial 7" not in {thread.name for thread in threading.enumerate()}
    time.sleep(0.1)
    assert len(storage.threads) == beats


def test_leaving_does_not_wait_for_the_next_beat() -> None:
    storage = Beaten(interval=3600)
    began = time.monotonic()
    with beating(storage, 7):
        pass
    assert time.monotonic() - began < 30
    assert len(storage.threads) == 1


def test_a_storage_that_is_away_disturbs_no_work_and_is_tried_again() -> None:
    storage = Beaten(failing=iter([True, True, False, True] + 10_000 * [False]))
    with beating(storage, 7):
        wait_for(storage, beats=6)


def test_an_error_of_the_work_goes_through() -> None:
    storage = Beaten()
    with pytest.raises(KeyError, match="mine"), beating(storage, 7):
        raise KeyError("mine")
    assert "heartbeat of trial 7" not in {thread.name for thread in threading.enumerate()}


def test_without_heartbeats_nothing_happens() -> None:
    storage = optuna.storages.InMemoryStorage()
    assert not is_heartbeat_enabled(storage)
    with beating(storage, 7):
        assert "heartbeat of trial 7" not in {thread.name for thread in threading.enumerate()}
    study = optuna.create_study(storage=storage)
    study.ask()
    fail_stale_trials(study)
    assert study.trials[0].state == optuna.trial.TrialState.RUNNING
