"""The report in a real browser, from file:// and without a network: the slider, what sorts, filters, downloads and stays text."""

import csv
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from seed.evidence import StudyRecord
from seed.records import Candidate, Evaluation, TrialRecord
from seed.reporting.page import write_page
from seed.results import Model, StudyResult, compute_result, recommend, recommend_faster

from . import factory

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator[Browser]:
    """The browser that is there, without a window."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def path(record: StudyRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the finished study."""
    found = tmp_path_factory.mktemp("page") / "report.html"
    write_page(compute_result(record), found)
    return found


class Visit:
    """A page open in the browser, and what it complained of."""

    def __init__(self, context: BrowserContext, path: Path) -> None:
        self.complaints: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("#trials-body tr", state="attached")
        self.page.wait_for_selector("#figure-pareto .main-svg")
        self.page.locator("#trials summary").click()

    def wait_until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true; the page's policy forbids that it evaluates strings by itself."""
        until = time.monotonic() + 5
        while not self.page.evaluate(expression):
            assert time.monotonic() < until, expression
            self.page.wait_for_timeout(20)

    def column(self, title: str) -> list[str]:
        """Cells of the table of trials under a heading."""
        titles = self.page.locator("#trials-table thead th").all_inner_texts()
        [place] = [index for index, text in enumerate(titles) if text.strip(" ↑↓\n") == title]
        return self.page.locator(f"#trials-body tr > :nth-child({place + 1})").all_inner_texts()


@pytest.fixture(scope="module")
def shown(browser: Browser, path: Path) -> Visit:
    """The finished study's page on a desktop."""
    return Visit(browser.new_context(viewport=DESKTOP, offline=True, accept_downloads=True), path)


@pytest.fixture
def visit(shown: Visit) -> Iterator[Visit]:
    """The page with nothing filtered, which complains of nothing."""
    yield shown
    assert shown.complaints == []
    for name in ("depth", "state"):
        shown.page.locator(f"#trials-{name}").select_option("")


def test_it_opens_without_a_network_and_without_complaints(visit: Visit) -> None:
    assert visit.page.title() == "Seed: demo"
    drawn = visit.page.locator(".js-plotly-plot .main-svg").count()
    assert drawn >= 2 * 4  # a plot has more than one layer
    assert visit.page.locator("#trials-count").inner_text().startswith("180 of 180 trials")


def test_the_slider_changes_the_model_its_lines_and_the_star(visit: Visit, result: StudyResult) -> None:
    def read() -> tuple[str, list[float], str]:
        found = """() => [[...document.querySelectorAll(".pick")].filter(one => one.checkVisibility()).map(one => one.dataset.id).join(),
            (({x, y}) => [x[0], y[0]])(document.getElementById("figure-pareto").data.find(one => one.name === "to ship")),
            document.getElementById("certainty").textContent]"""
        link, star, told = visit.page.evaluate(found)
        return link, star, told

    def slide(place: int) -> tuple[str, list[float], str]:
        visit.page.locator("#limit").fill(str(place))
        return read()

    def expect(model: Model | None) -> tuple[str, list[float | None]]:
        return ("", [None, None]) if model is None else (model.key, [model.latency.ratio, model.ppl_ratio.value])

    assert read()[:2] == expect(result.shipped)
    for loss in (0, 1, 2, 4, 10):
        assert slide(loss)[:2] == expect(recommend(result.best, margin=loss).chosen)
    visit.page.locator(".pick:not([hidden]) .copy").nth(1).click()
    visit.wait_until('[...document.querySelectorAll(".copy")].some(one => one.textContent === "copied")')
    visit.page.get_by_label("the speed that I want").check()
    for step in (0, 3, 5):
        assert slide(step)[:2] == expect(recommend_faster(result.best, speedup=1 + 0.05 * step))
    visit.page.get_by_label("the loss that I accept").check()
    assert read()[:2] == expect(result.shipped)
    lines = visit.page.locator(".pick:not([hidden]) pre").all_inner_texts()
    assert all(f"models/{result.shipped.key}" in line for line in lines)


def test_a_figure_is_saved_by_its_button(visit: Visit) -> None:
    with visit.page.expect_download() as download:
        visit.page.locator("#figure-pareto .modebar-btn").dispatch_event("click")
    assert download.value.suggested_filename == "pareto.svg"
    assert download.value.path().read_text(encoding="utf-8").startswith("<svg")


def test_the_table_sorts_both_ways_with_the_missing_last(visit: Visit) -> None:
    title = "PPL ratio, validation (short distillation)"
    best = [float(cell) for cell in visit.column(title)]
    assert best == sorted(best)
    heading = visit.page.get_by_role("button", name=title)
    heading.click()
    worst = [float(cell) for cell in visit.column(title)]
    assert worst == sorted(worst, reverse=True)
    assert worst[0] > best[-1]
    assert visit.page.locator('th[aria-sort="descending"]').inner_text().startswith(title)
    visit.page.get_by_role("button", name="PPL ratio, test (distilled)").click()
    shown = visit.column("PPL ratio, test (distilled)")
    assert [cell == "–" for cell in shown[:7]] == [False] * 6 + [True]


def test_the_table_filters_and_turns_pages(visit: Visit) -> None:
    count = visit.page.locator("#trials-count")
    visit.page.locator("#trials-find").fill("1, 5")
    for cell in visit.column("dropped layers"):
        assert {"1", "5"} <= set(cell.split(", ")) or "–" in cell  # a dash joins runs
    matching = int(count.inner_text().split()[0])
    assert 0 < matching < 180
    visit.page.locator("#trials-depth").select_option("2")
    assert visit.column("dropped layers") == ["1, 5"]
    visit.page.locator("#trials-find").fill("99")
    assert count.inner_text().startswith("0 of 180")
    visit.page.locator("#trials-find").fill("")
    visit.page.locator("#trials-depth").select_option("")
    visit.page.locator("#trials-state").select_option("pruned")
    assert visit.column("no value because") == ["closed form shows it to be hopeless"]
    visit.page.locator("#trials-state").select_option("")
    first = visit.column("trial")
    visit.page.get_by_role("button", name="next").click()
    assert not set(first) & set(visit.column("trial"))
    assert "page 2 of 8" in count.inner_text()


def test_the_table_downloads_what_is_filtered(visit: Visit, record: StudyRecord, tmp_path: Path) -> None:
    visit.page.locator("#trials-depth").select_option("1")
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name="Download CSV").click()
    assert download.value.suggested_filename == "demo-trials.csv"
    download.value.save_as(tmp_path / "trials.csv")
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text(encoding="utf-8").splitlines()))
    singles = {t.number: t for t in record.trials if len(t.evaluation.candidate.dropped_layers) == 1}
    assert {int(row["trial"]) for row in rows} == set(singles)
    for row in rows:
        evaluation = singles[int(row["trial"])].evaluation
        assert float(row["PPL ratio, validation (short distillation)"]) == pytest.approx(
            evaluation.qualities[factory.PROXY].ppl_ratio, abs=1e-4
        )
        assert row["parameters"] == str(evaluation.size.num_params)


def test_hostile_text_stays_text_and_no_cell_of_the_download_is_a_formula(
    browser: Browser, record: StudyRecord, tmp_path: Path
) -> None:
    formulas = ['=HYPERLINK("http://evil")', "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1"]
    said, replace = itertools.cycle([HOSTILE, *formulas, 'plain, "text"']), msgspec.structs.replace
    protocol = replace(record.plan.protocol, model=HOSTILE)
    plan = replace(record.plan, name=HOSTILE, protocol=protocol, command=HOSTILE)
    trials = tuple(
        replace(trial, evaluation=replace(trial.evaluation, skipped_because=next(said)), state="PRUNED")
        for trial in record.trials
    )
    latency = replace(record.dense.latency, workload=HOSTILE, device=HOSTILE)
    hostile = replace(record, plan=plan, trials=trials, dense=replace(record.dense, latency=latency))
    write_page(compute_result(hostile), tmp_path / "report.html")
    context = browser.new_context(viewport=DESKTOP, offline=True, accept_downloads=True)
    visit = Visit(context, tmp_path / "report.html")
    assert visit.page.locator("h1").inner_text() == HOSTILE
    assert HOSTILE in visit.column("no value because")
    assert visit.page.locator("img").count() == 0
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name="Download CSV").click()
    download.value.save_as(tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(encoding="utf-8", newline="") as handle:
        cells = {row["no value because"] for row in csv.DictReader(handle)}
    assert cells == {HOSTILE, 'plain, "text"', *(f"'{formula}" for formula in formulas)}
    assert visit.complaints == []
    context.close()


def test_a_phone_reads_it_without_scrolling_sideways(browser: Browser, path: Path) -> None:
    context = browser.new_context(viewport=PHONE, offline=True, has_touch=True, color_scheme="dark")  # type: ignore[arg-type]
    visit = Visit(context, path)
    for scheme in ("dark", "light"):
        visit.page.emulate_media(color_scheme=scheme)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        ink, paper = visit.page.evaluate(
            "(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))"
        )
        bright = [sum(map(int, color[4:-1].split(","))) for color in (ink, paper)]
        assert (bright[0] > bright[1]) == (scheme == "dark")
    for element in visit.page.locator("#answer .pick:not([hidden]) *").all():
        box = element.bounding_box()
        assert box is None or box["x"] + box["width"] <= PHONE["width"]
    assert visit.complaints == []
    context.close()


def make_large(record: StudyRecord, num_trials: int) -> StudyRecord:
    """The study with thousands of trials of a model of 32 layers."""
    rng = np.random.default_rng(0)
    subsets = itertools.islice(itertools.combinations(range(32), 3), num_trials)
    trials = []
    for number, dropped in enumerate(subsets):
        candidate = Candidate(num_layers=32, parts=tuple(map(str, dropped)))
        evaluation = msgspec.structs.replace(
            record.trials[number % 178].evaluation,
            candidate=candidate,
            qualities={factory.PROXY: factory.make_quality(math.exp(rng.gamma(2.0, 0.1)))},
        )
        trials.append(
            TrialRecord(number=number, state="COMPLETE", evaluation=Evaluation(**msgspec.structs.asdict(evaluation)))
        )
    assert len(trials) == num_trials
    frontier = msgspec.structs.replace(record.frontier, members=())
    return msgspec.structs.replace(record, trials=tuple(trials), frontier=frontier, distilled=(), equivalences=())


def test_thousands_of_trials_are_shown_a_page_at_a_time(browser: Browser, record: StudyRecord, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(compute_result(make_large(record, 4960)), path)
    assert path.stat().st_size < 6_000_000
    context = browser.new_context(viewport=DESKTOP, offline=True)
    visit = Visit(context, path)
    assert visit.complaints == []
    assert visit.page.locator("#trials-body tr").count() <= 100  # a page of them at a time
    visit.page.locator("#trials-find").fill("7 9")
    assert visit.page.locator("#trials-count").inner_text().startswith("30 of 4,960")
    context.close()
