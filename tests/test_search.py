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
from seed.search import search
from seed.stages import study_record
from tests.finished import Finished, Heard


@pytest.fixture
def found(finished_study: Finished) -> Finished:
    return finished_study


@pytest.mark.parametrize(("told", "tokens"), [({}, 1024), ({"test_tokens": 512}, 512), ({"window_tokens": 32}, 1024)])
def test_a_model_in_a_study_is_judged_on_the_study_s_text_whatever_else_is_told(
    found: Finished, told: dict[str, int], tokens: int
) -> None:
    command = evaluate.EvaluateCommand(model=str(found.model), **told)
    line = evaluate.evaluate(command, Terminal(quiet=True))
    window = told.get("window_tokens", 64)
    assert line.protocol.startswith(f"{found.settings.recovery_text}; ")
    assert f"; non-overlapping windows of {window} tokens" in line.protocol
    assert line.tokens == tokens - tokens // window  # the first of each is unscored
    assert line.ppl_ratio is not None  # beside the dense model


def test_steps_are_told_as_they_were_and_one_as_one(found: Finished) -> None:
    assert "; 2 go on" in found.said
    assert "2 models distilled for 8,192 tokens (1 step of 8,192, the nearest to 2,000) each" in found.said
    assert "1 step of training can hardly recover anything: give --distill-tokens 81,920 or more" in found.said
    assert re.search(r"\b(some )?0 s\b.*\bin all,|\b1 [a-z]+s (go|distilled|were|of)\b", found.said) is None


def search_again(found: Finished, **changes: Any) -> str:
    terminal = Heard()
    record = search(replace(found.settings, **changes), terminal)
    assert record.distilled == found.record.distilled
    return "\n".join(terminal.lines)


def test_a_finished_search_says_so_at_once(found: Finished) -> None:
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
def test_what_changed_is_looked_at(found: Finished, change: Callable[[Finished], None], tmp_path: Path) -> None:
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
    assert study_record.load_finished(found.settings, Heard()) is None
    for path in files:
        shutil.copy2(tmp_path / path.name, path)
    assert study_record.load_finished(found.settings, Heard()) is not None


def test_other_settings_are_another_search(found: Finished) -> None:
    told = {"given": frozenset({"rng_seed"})}  # as it would be anyway
    for changes in (
        told,
        {"frontier_size": 3},
        {"distill_tokens": 3000},
        {"rng_seed": 1},
        {"storage": "sqlite:///x.db"},
    ):
        assert study_record.load_finished(replace(found.settings, **changes), Heard()) is None
