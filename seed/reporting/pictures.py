"""Pictures of a study for papers and READMEs: every figure, and the top of its report, drawn by the browser that is there."""

import asyncio
import base64
import contextlib
import logging
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import plotly.graph_objects as go

from seed import study_dir
from seed.errors import SeedError, first_line
from seed.reporting.figures import draw_gallery
from seed.results import StudyResult

T = TypeVar("T")
WIDTH_PX = 900
PAGE_WIDTH_PX = 1200
SCALE = 2  # pixels of a PNG for each of the figure
MARGIN_PX = 24
CLOSING_SECONDS = 5.0
KILLING_SECONDS = 1.0
INSTALL = (
    "Install the distribution's package (Debian: apt-get install chromium) or run plotly_get_chrome; or name a browser with "
    "the environment variable BROWSER_PATH."
)
SECONDS = 60.0  # for one picture; a browser that takes longer hangs
LAST_SECTION = "pareto"  # of the page, that its picture shows whole
BOTTOM = f"""(element => element.getBoundingClientRect().bottom + scrollY)(
  document.getElementById("{LAST_SECTION}") ?? document.querySelector("main"))"""


def draw_figures(result: StudyResult) -> dict[str, go.Figure]:
    """Return every figure of a study that has something to show, fitted to paper, by the name of its picture."""
    return {name: fit_paper(figure) for name, figure in draw_gallery(result).items()}


def fit_paper(figure: go.Figure) -> go.Figure:
    """Return a figure without the caption that a paper sets itself, at a paper's width."""
    height = (figure.layout.height or 480) + 30
    top = (figure.layout.margin.t or 28) + 34
    title = {"text": figure.layout.title.text, "automargin": False, "y": 0.98, "yanchor": "top"}
    return go.Figure(figure).update_layout(title=title, width=WIDTH_PX, height=height, margin={"t": top})


def write_pictures(
    drawn: dict[str, go.Figure],
    *,
    page: Path,
    target: Path,
    formats: Sequence[str],
    on_picture: Callable[[str], None],
) -> list[Path]:
    """Write pictures of figures, and with PNG of the page's top, all of them or none; return their paths.

    Args:
        drawn: figures by name.
        page: the report.
        target: the directory; pictures of the same names are replaced.
        formats: ``png``, ``svg``.
        on_picture: hears of each that is drawn.

    Raises:
        SeedError: there is no browser, or the one that is there does not draw.
        ResourceError: the pictures cannot be written.
    """
    browser = find_browser()
    logging.getLogger("kaleido").setLevel(logging.CRITICAL)  # what goes wrong is told below, once
    logging.getLogger("choreographer").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pictures = asyncio.run(_draw(browser, drawn, page=page.resolve(), formats=formats, on_picture=on_picture))
    except SeedError:
        raise
    except Exception as error:  # browsers fail in every way there is
        raise SeedError(
            f"--{formats[0]}: the browser {browser} does not draw ({first_line(error)}), and no picture was written. Wanted: Chromium or "
            f"Chrome that runs without a window, as `{browser} --headless --no-sandbox --dump-dom about:blank` does. {INSTALL}"
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


async def _draw(
    browser_path: str,
    drawn: dict[str, go.Figure],
    *,
    page: Path,
    formats: Sequence[str],
    on_picture: Callable[[str], None],
) -> dict[str, bytes]:
    """Return the content of each picture by its file's name."""
    from kaleido import Kaleido

    # what the library's own tasks leave behind when a browser ends is not for readers; what matters is raised here
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    browser = Kaleido(path=browser_path, mathjax=False, timeout=SECONDS)
    pictures: dict[str, bytes] = {}
    try:
        await _open(browser)
        for name, figure in drawn.items():
            for form in formats:
                options = {"format": form, "width": figure.layout.width, "height": figure.layout.height}
                options |= {"scale": SCALE} if form == "png" else {}
                pictures[f"{name}.{form}"] = await _await_within(SECONDS, browser.calc_fig(figure, options))
                on_picture(f"{name}.{form}")
        if "png" in formats:
            pictures["report.png"] = await _await_within(SECONDS, _photograph(browser, page))
            on_picture("report.png")
    finally:
        await _close(browser)
    return pictures


async def _open(browser: Any) -> None:
    try:
        await _await_within(SECONDS, browser.open())
    except TimeoutError:
        raise
    except Exception as error:  # the library's own words are about the library
        raise ConnectionError("it ended at once") from error


async def _await_within(seconds: float, work: Awaitable[T]) -> T:
    """Return what comes of work that may hang, or that the library cancels or refuses when the browser ends."""
    from choreographer.errors import BrowserClosedError, ChannelClosedError

    task = asyncio.ensure_future(work)
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        task.cancel()
        raise TimeoutError(f"no answer within {seconds:.0f} seconds")
    try:
        return task.result()
    except (asyncio.CancelledError, BrowserClosedError, ChannelClosedError) as error:
        raise ConnectionError("it ended while it drew") from error


async def _photograph(browser: Any, page: Path) -> bytes:
    """Return the page from its top to the end of the Pareto plot, as a desktop shows it in light colours."""
    tab = await browser.create_tab("about:blank")
    size = {"width": PAGE_WIDTH_PX, "height": PAGE_WIDTH_PX, "deviceScaleFactor": 1, "mobile": False}
    await tab.send_command("Emulation.setDeviceMetricsOverride", params=size)
    light = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    await tab.send_command("Emulation.setEmulatedMedia", params=light)
    await tab.send_command("Page.enable")
    loaded = tab.subscribe_once("Page.loadEventFired")
    await tab.send_command("Page.navigate", params={"url": page.as_uri()})
    await loaded
    measured = await tab.send_command("Runtime.evaluate", params={"expression": BOTTOM})
    clip = {
        "x": 0,
        "y": 0,
        "width": PAGE_WIDTH_PX,
        "height": measured["result"]["result"]["value"] + MARGIN_PX,
        "scale": 1,
    }
    asked = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    taken = await tab.send_command("Page.captureScreenshot", params=asked)
    return base64.b64decode(taken["result"]["data"])


async def _close(browser: Any) -> None:
    """End the browser, one that does not answer too; threads of its library would otherwise wait for ever."""
    closing = asyncio.ensure_future(browser.close())
    await asyncio.wait({closing}, timeout=CLOSING_SECONDS)
    process = getattr(browser, "subprocess", None)
    if closing.done() or process is None:
        return
    # Cancelled, the library first closes its end of the pipe, which its reading thread waits on, and then asks the browser's
    # whole process group to end. Some do not, so they are killed from a thread, since the library waits in the loop's own.
    killer = threading.Timer(KILLING_SECONDS, _kill_group, [process.pid])
    killer.start()
    closing.cancel()
    await asyncio.wait({closing}, timeout=CLOSING_SECONDS)
    killer.join()


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
