"""A finished search that an experiment may write to, and trainings that take a stated time and can be interrupted."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seed.experiment import run_experiment
from seed.stages import students
from seed.study_dir import StudyFolder
from tests.finished import Finished, Heard


class Bench:
    """Runs experiments on copies of a finished search."""

    def __init__(self, finished: Finished, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.finished, self.place, self.trained = finished, place, 0
        self.stop_at: int | None = None  # which training is interrupted
        self.terminal = Heard()
        distill_once = students.distill_once

        def distill(*args: Any, **more: Any) -> students.Trained:
            if self.trained == self.stop_at:
                raise KeyboardInterrupt
            self.trained += 1
            seconds = 5.0 if args[3].objective.ce_share == 1 else 10.0
            return replace(distill_once(*args, **more), seconds=seconds, whole_seconds=seconds)

        monkeypatch.setattr(students, "distill_once", distill)

    def copy(self, name: str) -> StudyFolder:
        """A copy of the search."""
        return StudyFolder(Path(shutil.copytree(self.finished.folder.root, self.place / name)))

    def run(self, experiment: str, study: StudyFolder, **asked: Any) -> dict[str, Any]:
        """Run an experiment, and return its record without the name of the copy and what a stopwatch said of scores."""
        self.terminal = Heard()
        run_experiment(experiment, study.root, terminal=self.terminal, device="cpu", **asked)
        record = msgspec.json.decode((study.root / f"{experiment}.json").read_bytes())
        record.get("ledger", record)["study"] = ""
        for row in record.get("rows", []):
            row["seconds"] = None
        return dict(record)

    def interrupt(self, experiment: str, study: StudyFolder, *, after: int, **asked: Any) -> None:
        """Run an experiment until so many more trainings are done."""
        self.trained, self.stop_at = 0, after
        with pytest.raises(KeyboardInterrupt):
            self.run(experiment, study, **asked)
        self.trained, self.stop_at = 0, None

    @property
    def said(self) -> str:
        """What the last run said."""
        return "\n".join(self.terminal.lines)


@pytest.fixture
def session(finished_study: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(finished_study, tmp_path, monkeypatch)
