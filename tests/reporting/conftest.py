"""One finished study for all tests of this wing; records are frozen, so that they may share it."""

import pytest

from seed.findings import StudyRecord

from . import factory


@pytest.fixture(scope="session")
def record() -> StudyRecord:
    """A finished study of 12 layers with six distilled models."""
    return factory.make_record()


@pytest.fixture(scope="session")
def undistilled() -> StudyRecord:
    """The same study, run without distillation."""
    return factory.without_distilled(factory.make_record())
