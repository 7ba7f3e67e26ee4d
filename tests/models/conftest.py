"""A checkpoint of a test's own."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import MakeCheckpoint


@pytest.fixture
def checkpoint(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """Tiny, with its tokenizer; to be damaged."""
    return Path(shutil.copytree(make_checkpoint(), tmp_path / "checkpoint"))
