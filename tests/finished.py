"""One finished study that tests share: a whole pass over a model with two kinds of layers, in this process."""

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seed import study_dir
from seed.config import StudyConfig
from seed.console import Terminal
from seed.evaluation.latency import name_structure
from seed.records import Candidate, DistillResult, Latency
from seed.resolve import typed_command
from seed.scores import ScoreStore
from seed.search import search
from seed.sessions import Session
from seed.study_dir import StudyFolder
from tests import running
from tests.proxy.opened import time_candidate

NAME = "<img src=x onerror=alert(1)>"
SMALL: dict[str, Any] = running.SMALL | {"max_dropped": 2, "frontier_size": 2}


class Heard(Terminal):
    """A terminal that remembers its lines."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str = "", *, wrap: bool = True) -> None:
        self.lines.append(text)


@contextmanager
def timed_alike() -> Iterator[list[str]]:
    """Let no stopwatch decide, so that two passes can be compared; yield the structures that were timed."""
    timed: list[str] = []

    def measure(session: Session, candidate: Candidate) -> Latency:
        timed.append(name_structure(session.anatomy, candidate))
        return msgspec.structs.replace(time_candidate(candidate), structure=timed[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seed.stages.latency_table.measure_latency", measure)
        yield timed


class Finished:
    """A finished study, what its search said, and the structures that it timed."""

    def __init__(self, model: Path, text: Path, place: Path) -> None:
        self.settings = StudyConfig(model=str(model), recovery_text=str(text), studies_dir=place, study="tiny", **SMALL)
        self.folder = StudyFolder(place / "tiny")
        terminal = Heard()
        with timed_alike() as self.timed:
            self.record = search(self.settings, terminal)
        self.said = "\n".join(terminal.lines)
        self.model = self.folder.model(self.record.distilled[0].key)

    @property
    def words(self) -> list[str]:
        """The search as it is typed where ``copy`` made a study."""
        return shlex.split(typed_command(replace(self.settings, studies_dir=Path("studies"))))[2:]

    def copy(self, place: Path) -> StudyFolder:
        """The study once more, as ``studies/tiny`` in another place."""
        return StudyFolder(shutil.copytree(self.folder.root, place / "studies" / "tiny"))

    def move(self, place: Path) -> "tuple[StudyConfig, StudyFolder]":
        """The same search, to be run in another place."""
        return replace(self.settings, studies_dir=place), StudyFolder(place / "tiny")


def describe(study: StudyFolder) -> dict[str, Any]:
    """What of a study must not depend on how often it was stopped: everything but times."""
    with ScoreStore(study.scores, read_only=True) as store:
        rows, trials = store.read_rows(), store.read_trials()
    return {
        "scores": {(row.key, row.proxy): row.sums for row in rows},
        "trials": [(one.number, one.state, one.evaluation.candidate, one.evaluation.qualities) for one in trials],
        "frontier": [
            (one["rank"], one["trial_number"], one["evaluation"]["candidate"], one["tied_with"])
            for one in msgspec.json.decode(study.frontier.read_bytes())["members"]
        ],
        "results": {
            path.name: forget_times(study_dir.read_record(path, DistillResult)) for path in study.distilled.iterdir()
        },
        "models": {
            path.relative_to(study.models).as_posix(): path.read_bytes()
            for path in study.models.rglob("*")
            if path.is_file() and path.name not in ("README.md", "seed.json")  # which tell times
        },
    }


def forget_times(result: DistillResult) -> DistillResult:
    """The result without how long it took."""
    replicas = tuple(msgspec.structs.replace(replica, seconds=0.0) for replica in result.replicas)
    return msgspec.structs.replace(result, seconds=0.0, replicas=replicas, provenance_sha256=None)
