"""A short soak of what ``python -m tests.soak`` does for minutes, with more kills."""

import random
from pathlib import Path

import pytest

from tests import soak

TRIALS = 60


def test_workers_killed_at_random_lose_nothing_and_do_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "KILL_SECONDS", (0.0, 0.5))
    monkeypatch.setattr(soak, "KILL_TRIALS", 10)
    count = soak.Count()
    soak.soak_one(tmp_path, None, "subset", count, num_workers=3, rng=random.Random(0), budget=TRIALS)
    assert not count.faults
    assert (count.lost, count.duplicated, count.over) == (0, 0, 0)
    assert count.trials == TRIALS
    assert count.kills > 0
