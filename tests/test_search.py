"""One small search to its end, and what commands do with what it leaves: nothing twice, and on its own text."""

import inspect
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from seed import evaluate
from seed.config import OPTIONS
from seed.console import Terminal
from seed.errors import SeedError
from seed.reporting.result_line import JudgedLine
from seed.search import find_frontier, search
from seed.stages import study_record
from tests.finished import SMALL, Finished, Heard


@pytest.mark.parametrize(("told", "tokens"), [({}, 1024), ({"test_tokens": 512}, 512), ({"window_tokens": 32}, 1024)])
def test_a_model_in_a_study_is_judged_on_the_study_s_text_whatever_else_is_told(
    finished_study: Finished, told: dict[str, int], tokens: int
) -> None:
    command = evaluate.EvaluateCommand(model=(str(finished_study.model),), **told)
    line = evaluate.evaluate(command, Terminal(quiet=True))
    assert isinstance(line, JudgedLine)
    window = told.get("window_tokens", 64)
    assert line.protocol.startswith(f"{finished_study.settings.recovery_text}; ")
    assert f"; non-overlapping windows of {window} tokens" in line.protocol
    assert line.tokens == tokens - tokens // window  # the first of each is unscored
    assert line.ppl_ratio is not None  # beside the dense model


def test_python_has_the_models_that_the_table_shows(finished_study: Finished, tmp_path: Path) -> None:
    settings, record = finished_study.settings, finished_study.record
    told = {name: getattr(settings, name) for name in (*SMALL, "recovery_text", "studies_dir", "study")}
    found = find_frontier(settings.model, quiet=True, **told)
    assert [one.dropped_layers for one in found.models] == [one.candidate.dropped_layers for one in record.distilled]
    assert repr(found).splitlines()[-1] == f"open: {found.report}"
    first, result = found.models[0], record.distilled[0]
    assert (first.path, first.ppl_ratio) == (finished_study.model, result.test.ppl_ratio)
    assert first.speedup == pytest.approx(1 / result.latency.ratio)
    model = first.load()
    assert sum(one.numel() for one in model.parameters()) == first.num_params == result.size.num_params
    assert found.shipped is None or found.shipped in found.models
    parameters = inspect.signature(find_frontier).parameters
    assert parameters.keys() == OPTIONS.keys() | {"quiet"}
    with pytest.raises(SeedError, match="is not distilled"):
        replace(first, path=None).load()


def test_steps_are_told_as_they_were_and_one_as_one(finished_study: Finished) -> None:
    assert "; 2 go on" in finished_study.said
    assert "2 models distilled for 8,192 tokens (1 step of 8,192, the nearest to 2,000) each" in finished_study.said
    assert "1 step of training can hardly recover anything: give --distill-tokens 81,920 or more" in finished_study.said
    assert re.search(r"\b(some )?0 s\b.*\bin all,|\b1 [a-z]+s (go|distilled|were|of)\b", finished_study.said) is None


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def test_a_finished_search_says_so_at_once_unless_something_changed(finished_study: Finished, tmp_path: Path) -> None:
    folder, settings = finished_study.folder, finished_study.settings
    text = Path(str(settings.recovery_text))
    changes: dict[Path, Callable[[Path], object]] = {
        finished_study.model / "config.json": damage,
        folder.scores: damage,
        folder.report: Path.unlink,
        folder.finished: lambda path: path.write_text("{}"),
        text: Path.touch,
    }
    for path, change in changes.items():
        shutil.copy2(path, tmp_path / path.name)
        change(path)
        assert study_record.load_finished(settings, Heard()) is None
        shutil.copy2(tmp_path / path.name, path)
    others = ({"given": frozenset({"rng_seed"})}, {"frontier_size": 3}, {"rng_seed": 1}, {"storage": "sqlite:///x.db"})
    for other in others:  # a default that is told is told
        assert study_record.load_finished(replace(settings, **other), Heard()) is None
    terminal = Heard()
    assert search(settings, terminal).distilled == finished_study.record.distilled
    assert terminal.lines == [f"finished before: nothing is left to do in {folder.root}"]
