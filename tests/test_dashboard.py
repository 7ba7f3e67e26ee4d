"""``python -m seed.dashboard`` as users run it: on a finished study and beside a running search, asked as a browser asks."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from seed import folder
from seed.dashboard import refuse_strangers
from tests.test_commands import environment, error_of, run_seed, search_words

NAME = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def place(make_checkpoint, text_file, tmp_path_factory) -> Path:
    """A folder with a model of a hostile name, searched."""
    path = tmp_path_factory.mktemp("dashboard")
    shutil.copytree(make_checkpoint(), path / NAME)
    words = search_words(Path(NAME), text_file, "--study=tiny", "--frontier-size=1", "--max-dropped=2")
    done = run_seed(*words, cwd=path)
    assert "dashboard: python -m seed.dashboard studies/tiny\n" in done.stdout
    assert "optuna-dashboard studies/tiny/journal.log --artifact-dir studies/tiny/artifacts\n" in done.stdout
    assert "Experimental" not in done.stdout + done.stderr
    return path


@contextmanager
def serve(*words: str, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command; yield it and the address that it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "seed.dashboard", *words, "--no-browser"],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, process.communicate()
        yield process, line.split(": ", 1)[1].strip()
    finally:
        process.kill()
        process.communicate()


def ask(address: str, path: str = "/api/studies/0") -> Any:
    with urllib.request.urlopen(address.partition("/dashboard")[0] + path, timeout=60) as answer:
        content = answer.read()
    return json.loads(content) if path.startswith("/api") else content.decode()


def test_a_finished_study_is_shown_with_names_notes_figures_and_cards(place: Path) -> None:
    study = place / "studies" / "tiny"
    journal = (study / "journal.log").read_bytes()
    with serve("studies/tiny", cwd=place) as (process, address):
        assert address.endswith("/dashboard/studies/0")
        found = ask(address)
        assert found["objective_names"] == ["PPL ratio (closed form)", "latency ratio"]
        assert "Fastest within" in found["note"]["body"]
        assert f"`{NAME}`" in found["note"]["body"]
        assert {"seed-pareto", "seed-layers"} <= {figure["id"] for figure in found["plotly_graph_objects"]}
        assert all(json.loads(figure["graph_object"])["data"] for figure in found["plotly_graph_objects"])
        assert {spec["key"] for spec in found["union_user_attrs"]} == {"kept", "dropped", "num_params"}
        [artifact] = found["artifacts"]
        [model] = (study / "models").iterdir()
        assert artifact["filename"] == f"{model.name}.md"
        assert ask(address, f"/artifacts/0/{artifact['artifact_id']}") == (model / "README.md").read_text()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert err == ""
    assert (study / "journal.log").read_bytes() == journal


def test_in_a_browser_a_hostile_name_stays_text(place: Path, browser_path: str) -> None:
    from playwright.sync_api import sync_playwright

    with serve("studies/tiny", cwd=place) as (_, address), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page()
        alerts: list[str] = []
        page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
        page.goto(f"{address}/note")
        page.get_by_text("Seed: which layers can").wait_for()
        assert NAME in page.locator("h1", has_text="Seed: which").inner_text()
        page.goto(address)
        page.get_by_text("Perplexity against latency").first.wait_for()
        assert alerts == []
        browser.close()


def send(method: str, *, answers: tuple[tuple[str, str], ...] = (), **headers: str) -> tuple[str, dict[str, str]]:
    """Ask a guarded app; return the status and the headers of its answer."""
    answered: list[tuple[str, dict[str, str]]] = []
    app = refuse_strangers(lambda environ, start: (start("200 OK", list(answers)), [b""])[1])
    environ = {"REQUEST_METHOD": method, "PATH_INFO": "/api/studies", "HTTP_HOST": "127.0.0.1:8080"} | headers
    list(app(environ, lambda status, found, *_: answered.append((status, dict(found)))))  # type: ignore[arg-type, return-value]
    return answered[0]


OWN = "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, 200),
        ("GET", {"HTTP_HOST": "localhost:8080"}, 200),
        ("GET", {"HTTP_HOST": "evil.example:8080"}, 403),
        ("GET", {"HTTP_HOST": "127.0.0.1.evil.example"}, 403),
        ("GET", {"HTTP_HOST": ""}, 403),
        ("GET", {"HTTP_SEC_FETCH_SITE": "cross-site"}, 200),  # a link from elsewhere; its page cannot read the answer
        ("POST", {}, 200),  # curl
        ("POST", {"HTTP_ORIGIN": OWN, "HTTP_SEC_FETCH_SITE": "same-origin"}, 200),
        ("POST", {"HTTP_HOST": "localhost:8080", "HTTP_ORIGIN": "http://localhost:8080"}, 200),
        ("POST", {"HTTP_ORIGIN": "https://evil.example"}, 403),
        ("POST", {"HTTP_ORIGIN": "null"}, 403),
        ("POST", {"HTTP_ORIGIN": "http://127.0.0.1:3000", "HTTP_SEC_FETCH_SITE": "same-site"}, 403),
        ("POST", {"HTTP_SEC_FETCH_SITE": "cross-site"}, 403),
        ("PUT", {"HTTP_ORIGIN": "https://evil.example"}, 403),
        ("DELETE", {"HTTP_ORIGIN": "https://evil.example"}, 403),
        ("OPTIONS", {"HTTP_ORIGIN": "https://evil.example"}, 403),
    ],
)
def test_only_the_dashboards_own_pages_change_anything(method: str, headers: dict[str, str], status: int) -> None:
    assert send(method, **headers)[0].startswith(str(status))


def test_answers_say_what_a_browser_must_not_do_with_them() -> None:
    _, headers = send("GET")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "SAMEORIGIN"
    assert "Content-Security-Policy" not in headers  # the page's own is the dashboard's
    _, headers = send("GET", PATH_INFO="/artifacts/0/abc")
    assert headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    # Optuna Dashboard lets any page read artifacts
    _, headers = send("GET", answers=(("Access-Control-Allow-Origin", "*"), ("Content-Type", "text/html")))
    assert "Access-Control-Allow-Origin" not in headers
    assert headers["Content-Type"] == "text/html"


HOSTILE_NOTE = """Hello <script>alert("script")</script><img src="x" onerror="alert('img')">
<iframe srcdoc="<script>parent.document.title='owned'</script>"></iframe>
<iframe src="/artifacts/0/{artifact}"></iframe>"""


def test_in_a_browser_a_foreign_studys_note_and_artifacts_run_nothing(
    place: Path, browser_path: str, tmp_path: Path
) -> None:
    from optuna import load_study
    from optuna.artifacts import FileSystemArtifactStore, upload_artifact
    from optuna_dashboard import save_note
    from playwright.sync_api import sync_playwright

    from seed.optimize.storage import open_storage

    foreign = tmp_path / "foreign"
    shutil.copytree(place / "studies" / "tiny", foreign)
    study = load_study(study_name="tiny", storage=open_storage(None, journal=foreign / "journal.log"))
    (tmp_path / "evil.html").write_text("<script>parent.document.title = 'owned'</script>read me")
    artifact = upload_artifact(
        artifact_store=FileSystemArtifactStore(foreign / "artifacts"),
        file_path=str(tmp_path / "evil.html"),
        study_or_trial=study,
        mimetype="text/html",
    )
    save_note(study, HOSTILE_NOTE.format(artifact=artifact))
    with serve(str(foreign), cwd=tmp_path) as (_, address), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page()
        alerts: list[str] = []
        page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
        page.goto(f"{address}/note")
        page.get_by_text("Hello").first.wait_for()
        page.wait_for_timeout(500)
        assert page.title() != "owned"
        page.goto(address.partition("/dashboard")[0] + f"/artifacts/0/{artifact}")
        page.get_by_text("read me").wait_for()
        assert page.title() == ""
        assert alerts == []
        browser.close()


def test_beside_a_running_search_nothing_is_locked_mended_or_failed(place: Path, text_file: Path) -> None:
    words = search_words(
        Path(NAME), text_file, "--study=running", "--proxy=short-distillation", "--short-steps=20", "--no-distill"
    )
    search = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()
    )
    journal = place / "studies" / "running" / "journal.log"
    try:
        until = time.monotonic() + 100
        while not (journal.exists() and journal.read_text().count('"values":[') >= 1):
            assert search.poll() is None, search.stderr and search.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        with serve("studies/running", cwd=place) as (_, address):
            found = ask(address)
            assert search.poll() is None, "the search ended before it was looked at"
            assert found["objective_names"][0].startswith("PPL ratio (short distillation")
            # at first, and from when there is something to show
            assert re.search(r"The search (is running|goes on)", found["note"]["body"])
            assert found["trials"][0]["state"] == "Complete"
            assert not [trial for trial in found["trials"] if trial["state"] == "Fail"]
            while not (found := ask(address))["plotly_graph_objects"]:
                assert search.poll() is None, "the search ended before its figures were there"
                assert time.monotonic() < until
                time.sleep(0.2)
            assert "The search goes on" in found["note"]["body"]
            report = (place / "studies" / "running" / "report.html").read_text()
            assert "the search goes on" in report
    finally:
        search.kill()
        search.communicate()


def test_a_finished_study_that_is_searched_on_keeps_its_notes_and_figures(place: Path) -> None:
    with (
        folder.lock(folder.open_existing(place / "studies" / "tiny")),
        serve("studies/tiny", cwd=place) as (_, address),
    ):
        found = ask(address)
    assert "Fastest within" in found["note"]["body"]
    assert found["plotly_graph_objects"]


def test_the_plain_command_works_as_printed(place: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).with_name("optuna-dashboard")
    words = [str(command), "studies/tiny/journal.log", "--artifact-dir", "studies/tiny/artifacts", f"--port={port}"]
    process = subprocess.Popen(words, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                found = ask(f"http://127.0.0.1:{port}/dashboard")
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
        assert "Fastest within" in found["note"]["body"]
    finally:
        process.kill()
        process.wait()


def test_a_taken_port_and_what_is_no_study_are_told(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = error_of(run_seed("seed.dashboard", "studies/tiny", f"--port={port}", cwd=place, code=2))
        assert f"--port {port}: cannot listen there" in error
    assert "--port 70000" in error_of(run_seed("seed.dashboard", "studies/tiny", "--port=70000", cwd=place, code=2))
    assert "not a study" in error_of(run_seed("seed.dashboard", "nowhere", cwd=place, code=2))
    for stage in ("stage-1", "one-shot"):
        (place / "staged" / stage).mkdir(parents=True)
        shutil.copy(place / "studies" / "tiny" / "plan.json", place / "staged" / stage)
    error = error_of(run_seed("seed.dashboard", "staged", cwd=place, code=2))
    assert f"{Path('staged/one-shot')}, {Path('staged/stage-1')}" in error
    journal = place / "staged" / "stage-1" / "journal.log"
    assert "journal.log: missing" in error_of(run_seed("seed.dashboard", "staged/stage-1", cwd=place, code=2))
    assert not os.path.lexists(journal)
