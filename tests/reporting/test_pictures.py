"""Pictures by a real browser: every figure in every format, all of them or none, and one clear error without a browser."""

import stat
import struct
import subprocess
from pathlib import Path

import pytest
from choreographer.browsers.chromium import Chromium

from seed.errors import ResourceError, SeedError
from seed.reporting import pictures
from seed.reporting.page import write_page
from seed.reporting.pictures import SCALE, WIDTH_PX, draw_figures, find_browser, write_pictures
from seed.results import StudyResult


@pytest.fixture(scope="module")
def page(result: StudyResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the finished study."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(result, path)
    return path


def make_program(path: Path, text: str) -> Path:
    """An executable script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_figure_becomes_a_picture_in_every_format(
    result: StudyResult, page: Path, tmp_path: Path, browser_path: str
) -> None:
    drawn = draw_figures(result)
    assert list(drawn) == ["pareto", "layers", "sensitivity", "pairs", "agreement", "progress", "curves"]
    one = {"pareto": drawn["pareto"]}  # all of them are drawn as the README says
    written = write_pictures(one, page=page, target=tmp_path / "pictures", formats=("png", "svg"))
    names = ["pareto.png", "pareto.svg", "report.png"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == sorted(names)
    assert read_size(tmp_path / "pictures" / "pareto.png")[0] == SCALE * WIDTH_PX
    width, height = read_size(tmp_path / "pictures" / "report.png")
    assert width == 1200
    assert 1200 < height < 2500
    svg = (tmp_path / "pictures" / "pareto.svg").read_text()
    assert svg.startswith("<svg")
    assert "latency ratio" in svg


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_without_a_browser_the_error_says_what_to_install(
    result: StudyResult, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nothing"))
    with pytest.raises(
        SeedError, match=r"BROWSER_PATH names .*nothing, which is no program\. .*apt-get install chromium"
    ):
        write_pictures(draw_figures(result), page=page, target=tmp_path / "p", formats=("png",))
    assert not (tmp_path / "p").exists()
    monkeypatch.setenv("BROWSER_PATH", str(make_program(tmp_path / "there", "true")))
    assert find_browser() == str(tmp_path / "there")
    monkeypatch.setenv("BROWSER_PATH", "there")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_browser() == str(tmp_path / "there")
    monkeypatch.delenv("BROWSER_PATH")
    monkeypatch.setattr(Chromium, "find_browser", lambda **_: None)
    with pytest.raises(SeedError, match=r"no Chromium, .* was found on the PATH .*choreo_get_chrome"):
        find_browser()


@pytest.mark.parametrize(
    ("program", "seconds", "reason"),
    [
        ("echo broken >&2; exit 3", 60, "it ended with exit code 3"),
        ("kill -9 $$", 60, "it ended with exit code -9"),
        ("echo '<html><body></body></html>'", 60, "it ended before it had drawn"),
        ("trap '' TERM INT; sleep 60 & while :; do sleep 1; done", 2, "no answer within 2 seconds"),
    ],
)
def test_a_browser_that_does_not_draw_is_told_ended_and_nothing_is_written(
    result: StudyResult,
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    program: str,
    seconds: float,
    reason: str,
) -> None:
    monkeypatch.setattr(pictures, "SECONDS", seconds)
    broken = make_program(tmp_path / "browser", program)
    monkeypatch.setenv("BROWSER_PATH", str(broken))
    with pytest.raises(SeedError) as error:
        write_pictures(draw_figures(result), page=page, target=tmp_path / "p", formats=("svg",))
    assert str(error.value).startswith(
        f"--svg: the browser {broken} does not draw ({reason}), and no picture was written."
    )
    assert "BROWSER_PATH" in str(error.value)
    assert not (tmp_path / "p").exists()
    assert capfd.readouterr() == ("", "")
    assert subprocess.run(["pgrep", "-f", str(broken)], capture_output=True, text=True).stdout == ""


def test_pictures_that_cannot_be_written_are_told(
    result: StudyResult, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p").write_text("a file")
    drawn = '{"pareto.svg": "data:image/svg+xml,%3Csvg%3E"}'
    browser = make_program(tmp_path / "browser", f"echo '<body id=\"drawn\">{drawn}</body>'")
    monkeypatch.setenv("BROWSER_PATH", str(browser))
    with pytest.raises(ResourceError, match=r"pareto\.svg: cannot be written"):
        write_pictures(draw_figures(result), page=page, target=tmp_path / "p", formats=("svg",))
    assert (tmp_path / "p").read_text() == "a file"
    [written] = write_pictures(draw_figures(result), page=page, target=tmp_path / "q", formats=("svg",))
    assert written.read_text() == "<svg>"
