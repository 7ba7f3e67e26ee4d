"""``python -m seed.report`` refuses what it cannot honour: one clear error, exit code 2, nothing written."""

from pathlib import Path

import pytest

from seed import study_dir
from tests.running import error_of, run_seed


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Folders that look like studies from afar."""
    for name in ("a", "b", "staged/stage-1", "staged/stage-2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "plan.json").write_text("{}")
    (tmp_path / "staged" / "stages.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: not a study"),
        (["a", "nowhere"], "nowhere: not a study"),
        (["a", "a/../a"], "the same study more than once"),
        (["a", "--output", "x.html"], "--output: is for several studies"),
        (["a", "b", "--output", "a/plan.json"], "--output a/plan.json: a page is an HTML file"),
        (["a", "b", "--json"], "--json: is for one study, and 2 were given"),
        (["a", "staged"], "staged: a search in stages"),
        (["staged", "--storage=sqlite:///x.db"], "Name one of them: staged/stage-1, staged/stage-2"),
    ],
)
def test_what_cannot_be_honoured_is_refused(place: Path, words: list[str], said: str) -> None:
    before = sorted(place.rglob("*"))
    assert said in error_of(run_seed("seed.report", *words, cwd=place, code=2))
    assert sorted(path for path in place.rglob("*") if path.name != ".lock") == before


def test_a_study_in_use_is_told(place: Path) -> None:
    with study_dir.lock(study_dir.open_existing(place / "a")):
        assert "a: in use by another process" in error_of(run_seed("seed.report", "a", "b", cwd=place, code=2))
