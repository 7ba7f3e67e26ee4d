"""One small search to its end, and what commands do with what it leaves: nothing twice, and on its own text."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seed import evaluate
from seed.console import Terminal
from seed.folder import StudyFolder
from seed.search import search_to_end
from seed.stages import finished
from seed.stages.settings import SearchSettings
from tests.conftest import MakeCheckpoint

SMALL: dict[str, Any] = {
    "max_dropped": 1,
    "frontier_size": 1,
    "window_tokens": 64,
    "calibration_tokens": 512,
    "validation_tokens": 512,
    "test_tokens": 1024,
    "prompt_tokens": 4,
    "new_tokens": 2,
    "latency_repeats": 3,
    "distill_tokens": 2000,
    "learning_rate": 1e-3,
    "device": "cpu",
}


class Heard(Terminal):
    """A terminal that remembers its lines."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str = "", *, wrap: bool = True) -> None:
        self.lines.append(text)


class Found:
    """A finished study, and what its search said."""

    def __init__(self, settings: SearchSettings) -> None:
        self.settings, terminal = settings, Heard()
        self.record = search_to_end(settings, terminal)
        self.said = "\n".join(terminal.lines)
        self.folder = StudyFolder(settings.studies_dir / "tiny")
        [result] = self.record.distilled
        self.model = self.folder.model(result.key)


@pytest.fixture(scope="module")
def found(make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    place = tmp_path_factory.mktemp("search")
    return Found(
        SearchSettings(
            model=str(make_checkpoint()), recovery_text=str(text_file), studies_dir=place, study="tiny", **SMALL
        )
    )


@pytest.mark.parametrize(
    ("words", "tokens"), [([], 1024), (["--test-tokens=512"], 512), (["--window-tokens=32"], 1024)]
)
def test_a_model_in_a_study_is_judged_on_the_study_s_text_whatever_else_is_told(
    found: Found, words: list[str], tokens: int
) -> None:
    args = evaluate.make_parser().parse_args([str(found.model), *words])
    line = evaluate.evaluate(args, Terminal(quiet=True))
    window = 32 if "--window-tokens=32" in words else 64
    assert line.protocol.startswith(f"{found.settings.recovery_text}; ")
    assert f"; non-overlapping windows of {window} tokens" in line.protocol
    assert line.tokens == tokens - tokens // window  # the first of each is unscored
    assert line.ppl_ratio is not None  # beside the dense model


def test_one_is_told_as_one_and_steps_as_they_were(found: Found) -> None:
    assert "; 1 goes on" in found.said
    assert "1 model distilled for 8,192 tokens (1 step of 8,192, the nearest to 2,000) each" in found.said
    assert "1 step of training can hardly recover anything: give --distill-tokens 81,920 or more" in found.said
    assert re.search(r"\b(some )?0 s\b.*\bin all,|\b1 [a-z]+s (go|distilled|were|of)\b", found.said) is None


def search_again(found: Found, **changes: Any) -> str:
    terminal = Heard()
    record = search_to_end(replace(found.settings, **changes), terminal)
    assert record.distilled == found.record.distilled
    return "\n".join(terminal.lines)


def test_a_finished_search_says_so_at_once(found: Found) -> None:
    said = search_again(found)
    assert said.startswith(f"finished before: nothing is left to do in {found.folder.root}")
    assert "plan:" not in said
    assert said.partition("dense model:")[2] == found.said.partition("dense model:")[2]


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    "change",
    [
        lambda found: damage(found.model / "config.json"),
        lambda found: found.folder.report.unlink(),
        lambda found: damage(found.folder.scores),
        lambda found: found.folder.finished.write_text("{}"),
        lambda found: Path(found.settings.recovery_text).touch(),
    ],
)
def test_what_changed_is_looked_at(found: Found, change: Callable[[Found], None], tmp_path: Path) -> None:
    files = (
        found.model / "config.json",
        found.folder.report,
        found.folder.scores,
        found.folder.finished,
        Path(found.settings.recovery_text),
    )
    for path in files:
        shutil.copy2(path, tmp_path / path.name)
    change(found)
    assert finished.recall(found.settings, Heard()) is None
    for path in files:
        shutil.copy2(tmp_path / path.name, path)
    assert finished.recall(found.settings, Heard()) is not None


def test_other_settings_are_another_search(found: Found) -> None:
    for changes in ({"frontier_size": 2}, {"distill_tokens": 3000}, {"rng_seed": 1}, {"storage": "sqlite:///x.db"}):
        assert finished.recall(replace(found.settings, **changes), Heard()) is None
