"""Pictures of a study for papers and READMEs: every figure, and the top of its report, drawn by the browser that is there."""

import base64
import contextlib
import html
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from seed import study_dir
from seed.errors import SeedError, first_line
from seed.reporting.document import render
from seed.reporting.figures import draw_gallery
from seed.results import StudyResult

WIDTH_PX = 900
PAGE_WIDTH_PX = 1200
SCALE = 2  # pixels of a PNG for each of the figure
MARGIN_PX = 24
INSTALL = (
    "Install the distribution's package (Debian: apt-get install chromium) or run choreo_get_chrome; or name a browser with "
    "the environment variable BROWSER_PATH."
)
SECONDS = 120.0  # for what a browser is started for; one that takes longer hangs
SWITCHES = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files")
LAST_SECTION = "pareto"  # of the page, that its picture shows whole
MEASURE = """<script>addEventListener("load", () => {
  const last = document.getElementById("%s") ?? document.querySelector("main");
  document.body.dataset.bottom = Math.ceil(last.getBoundingClientRect().bottom + scrollY);
});</script>"""


def draw_figures(result: StudyResult) -> dict[str, go.Figure]:
    """Return every figure of a study that has something to show, fitted to paper, by the name of its picture."""
    return {name: fit_paper(figure) for name, figure in draw_gallery(result).items()}


def fit_paper(figure: go.Figure) -> go.Figure:
    """Return a figure without the caption that a paper sets itself, at a paper's width."""
    height = (figure.layout.height or 480) + 30
    top = (figure.layout.margin.t or 28) + 34
    title = {"text": figure.layout.title.text, "automargin": False, "y": 0.98, "yanchor": "top"}
    return go.Figure(figure).update_layout(title=title, width=WIDTH_PX, height=height, margin={"t": top})


def write_pictures(drawn: dict[str, go.Figure], *, page: Path, target: Path, formats: Sequence[str]) -> list[Path]:
    """Write pictures of figures, and with PNG of the page's top, all of them or none; return their paths.

    Args:
        drawn: figures by name.
        page: the report.
        target: the directory; pictures of the same names are replaced.
        formats: ``png``, ``svg``.

    Raises:
        SeedError: there is no browser, or the one that is there does not draw.
        ResourceError: the pictures cannot be written.
    """
    browser = find_browser()
    with tempfile.TemporaryDirectory(prefix="seed-pictures-", ignore_cleanup_errors=True) as scratch:
        try:
            pictures = draw_all(browser, drawn, formats=formats, scratch=Path(scratch))
            if "png" in formats:
                pictures["report.png"] = photograph(browser, page, scratch=Path(scratch))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise SeedError(
                f"--{formats[0]}: the browser {browser} does not draw ({first_line(error)}), and no picture was written. Wanted: "
                f"Chromium or Chrome that runs without a window, as `{browser} --headless --no-sandbox --dump-dom about:blank` "
                f"does. {INSTALL}"
            ) from error
    for name, content in pictures.items():
        study_dir.write_bytes(target / name, content)
    return [target / name for name in pictures]


def find_browser() -> str:
    """Return the path of the browser that is there: the environment's BROWSER_PATH, or Chromium, Chrome or Edge.

    Raises:
        SeedError: there is none.
    """
    named = os.environ.get("BROWSER_PATH")
    if named:
        found = shutil.which(named)
        looked = f"BROWSER_PATH names {named}, which is no program"
    else:
        from choreographer.browsers.chromium import Chromium

        found = Chromium.find_browser(skip_local=False)
        looked = "no Chromium, Chrome, Edge, Brave or Vivaldi was found on the PATH or where they usually are"
    if not found or not Path(found).is_file():
        raise SeedError(f"pictures need a browser, and {looked}. {INSTALL}")
    return str(found)


def draw_all(browser: str, drawn: dict[str, go.Figure], *, formats: Sequence[str], scratch: Path) -> dict[str, bytes]:
    """Return the content of each picture by its file's name."""
    page = scratch / "figures.html"
    figures = {name: json.loads(figure.to_json()) for name, figure in drawn.items()}
    page.write_text(render("pictures.html", figures=figures, formats=formats, scale=SCALE), encoding="utf-8")
    found = re.search(r'<body id="drawn">(.*?)</body>', look_at(browser, page, scratch=scratch), re.DOTALL)
    if found is None:
        raise ValueError("it ended before it had drawn")
    return {name: decode(url) for name, url in json.loads(html.unescape(found[1])).items()}


def decode(url: str) -> bytes:
    """Return what a data URL holds."""
    kind, _, data = url.partition(",")
    return base64.b64decode(data) if kind.endswith(";base64") else urllib.parse.unquote_to_bytes(data)


def photograph(browser: str, page: Path, *, scratch: Path) -> bytes:
    """Return the page from its top to the end of the Pareto plot, as a desktop shows it in light colours."""
    copy, picture = scratch / "report.html", scratch / "report.png"
    text = page.read_text(encoding="utf-8")
    copy.write_text(text.replace("</body>", MEASURE % LAST_SECTION + "</body>"), encoding="utf-8")
    found = re.search(r'data-bottom="(\d+)"', look_at(browser, copy, scratch=scratch))
    if found is None:
        raise ValueError("it ended before it had drawn")
    size = f"--window-size={PAGE_WIDTH_PX},{int(found[1]) + MARGIN_PX}"
    start_browser(browser, f"--screenshot={picture}", size, page.resolve().as_uri(), scratch=scratch)
    return picture.read_bytes()


def look_at(browser: str, page: Path, *, scratch: Path) -> str:
    """Return a page as it stands when its scripts have run."""
    size = f"--window-size={PAGE_WIDTH_PX},{PAGE_WIDTH_PX}"
    return start_browser(browser, "--dump-dom", size, page.as_uri(), scratch=scratch)


def start_browser(browser: str, *options: str, scratch: Path) -> str:
    """Return what a browser says; whatever it started ends with it."""
    command = [
        browser,
        *SWITCHES,
        f"--user-data-dir={scratch / 'profile'}",
        f"--virtual-time-budget={int(500 * SECONDS)}",
        *options,
    ]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise ValueError(f"no answer within {SECONDS:.0f} seconds") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise ValueError(f"it ended with exit code {process.returncode}")
    return said.decode(errors="replace")
