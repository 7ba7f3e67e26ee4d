"""One small search to its end, and what commands do with what it leaves: nothing twice, and on its own text."""

from pathlib import Path
from typing import Any

import pytest

from seed import evaluate
from seed.console import Terminal
from seed.folder import StudyFolder
from seed.search import search_to_end
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
    assert line.protocol.startswith(f"{found.settings.recovery_text}; non-overlapping windows of {window} tokens")
    assert line.tokens == tokens - tokens // window  # the first of each is unscored
    assert line.ppl_ratio is not None  # beside the dense model
