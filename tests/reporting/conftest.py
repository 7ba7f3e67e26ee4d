"""One finished study for all tests of this wing; records are frozen, so that they may share it."""

import os
from pathlib import Path

import pytest

from seed.evidence import StudyRecord
from seed.results import StudyResult, compute_result

from . import factory

SNAPSHOTS = Path(__file__).parent / "snapshots"


def check_snapshot(name: str, text: str) -> None:
    """Hold a text against the one that was looked at and kept; WRITE_SNAPSHOTS=1 keeps this one."""
    path = SNAPSHOTS / name
    if os.environ.get("WRITE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def record() -> StudyRecord:
    """A finished study of 12 layers with six distilled models."""
    return factory.make_record()


@pytest.fixture(scope="session")
def result(record: StudyRecord) -> StudyResult:
    """What it found."""
    return compute_result(record)


@pytest.fixture(scope="session")
def undistilled() -> StudyRecord:
    """The same study, run without distillation."""
    return factory.without_distilled(factory.make_record())


@pytest.fixture(scope="session")
def full() -> StudyRecord:
    """The study with replicas, a uniform width, baselines, and a machine that was busy."""
    return factory.make_full()
