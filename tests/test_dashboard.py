"""``python -m seed.dashboard`` on a finished study and beside a running search, asked as a browser asks."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest

from seed import dashboard, study_dir
from seed.dashboard import make_app, mark_infeasible, open_server, refuse_strangers
from seed.plans import read_plan
from seed.stages.publishing import open_shown, refresh_report
from seed.study_dir import StudyFolder
from tests.finished import NAME, Finished
from tests.running import environment, error_of, run_seed


@contextmanager
def serve(study: StudyFolder) -> Iterator[str]:
    """Serve a study in this process; yield the address of its page."""
    app, path = make_app(study)
    with open_server(app, port=0, place=study.root) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{dashboard.HOST}:{server.server_port}{path}"
        finally:
            server.shutdown()
            thread.join()


def ask(address: str, path: str = "/api/studies/0") -> Any:
    with urllib.request.urlopen(address.partition("/dashboard")[0] + path, timeout=60) as answer:
        content = answer.read()
    return json.loads(content) if path.startswith("/api") else content.decode()


def test_a_finished_study_is_shown_with_names_notes_figures_and_cards(finished_study: Finished) -> None:
    study = finished_study.folder
    journal = study.journal.read_bytes()
    with study_dir.lock(study), serve(study) as address:  # as beside a search that goes on
        assert address.endswith("/dashboard/studies/0")
        found = ask(address)
        landing = ask(address, "/dashboard/studies/0")
        assert 'href="/dashboard/studies/0/note"' in landing
        assert 'href="/report"' in landing
        assert ask(address, "/report") == study.report.read_bytes().decode()
        assert found["objective_names"] == ["PPL ratio (closed-form)", "latency ratio"]
        assert "Fastest within" in found["note"]["body"]
        assert {"seed-pareto", "seed-layers"} <= {figure["id"] for figure in found["plotly_graph_objects"]}
        assert all(json.loads(figure["graph_object"])["data"] for figure in found["plotly_graph_objects"])
        assert {spec["key"] for spec in found["union_user_attrs"]} == {"kept", "dropped", "num_params"}
        cards = {card["filename"]: ask(address, f"/artifacts/0/{card['artifact_id']}") for card in found["artifacts"]}
    assert cards == {f"{model.name}.md": (model / "README.md").read_text() for model in study.models.iterdir()}
    assert study.journal.read_bytes() == journal


def test_beside_a_running_search_the_note_says_so(finished_study: Finished, tmp_path: Path) -> None:
    study = finished_study.copy(tmp_path)
    opened = open_shown(study, read_plan(study), storage=None, on_warning=pytest.fail)
    refresh_report(study, opened=opened, on_warning=pytest.fail, is_running=True)
    with serve(study) as address:
        assert "The search goes on" in ask(address)["note"]["body"]
    assert "the search goes on" in study.report.read_text()


def test_trials_that_break_a_constraint_are_marked_for_the_dashboard() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage)
    for excess in (-1.0, 2.0):
        trial = study.ask()
        trial.set_constraint("size", excess)
        study.tell(trial, 0.0)
    mark_infeasible(storage)
    assert [trial.system_attrs["constraints"] for trial in storage.get_all_trials(0)] == [[-1.0], [2.0]]


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
        ("GET", {"HTTP_HOST": "127.0.0.1.evil.example"}, 403),
        ("GET", {"HTTP_HOST": ""}, 403),
        ("GET", {"HTTP_SEC_FETCH_SITE": "cross-site"}, 200),  # a link from elsewhere; its page cannot read the answer
        ("POST", {}, 200),  # curl
        ("POST", {"HTTP_ORIGIN": OWN, "HTTP_SEC_FETCH_SITE": "same-origin"}, 200),
        ("POST", {"HTTP_HOST": "localhost:8080", "HTTP_ORIGIN": "http://localhost:8080"}, 200),
        ("POST", {"HTTP_ORIGIN": "https://evil.example"}, 403),
        ("POST", {"HTTP_ORIGIN": "null"}, 403),
        ("POST", {"HTTP_ORIGIN": "http://127.0.0.1:3000", "HTTP_SEC_FETCH_SITE": "same-site"}, 403),
        ("DELETE", {"HTTP_SEC_FETCH_SITE": "cross-site"}, 403),
        ("OPTIONS", {"HTTP_ORIGIN": "https://evil.example"}, 403),
    ],
)
def test_only_the_dashboards_own_pages_change_anything(method: str, headers: dict[str, str], status: int) -> None:
    assert send(method, **headers)[0].startswith(str(status))


def test_answers_say_what_a_browser_must_not_do_with_them() -> None:
    # Optuna Dashboard lets any page read artifacts
    _, headers = send("GET", answers=(("Access-Control-Allow-Origin", "*"), ("Content-Type", "text/html")))
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "SAMEORIGIN"
    assert headers["Content-Type"] == "text/html"
    assert "Content-Security-Policy" not in headers  # the page's own is the dashboard's
    assert "Access-Control-Allow-Origin" not in headers
    _, headers = send("GET", PATH_INFO="/artifacts/0/abc")
    assert headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")


HOSTILE_NOTE = """Hello <script>alert("script")</script><img src="x" onerror="alert('img')">
<iframe srcdoc="<script>parent.document.title='owned'</script>"></iframe>
<iframe src="/artifacts/0/{artifact}"></iframe>"""


def test_in_a_browser_a_foreign_studys_name_note_and_artifacts_run_nothing(
    finished_study: Finished, browser_path: str, tmp_path: Path
) -> None:
    from optuna import load_study
    from optuna.artifacts import FileSystemArtifactStore, upload_artifact
    from optuna_dashboard import save_note
    from playwright.sync_api import sync_playwright

    from seed.optimize.storage import open_storage

    foreign = finished_study.copy(tmp_path)
    study = load_study(study_name="tiny", storage=open_storage(None, journal=foreign.journal))
    (tmp_path / "evil.html").write_text("<script>parent.document.title = 'owned'</script>read me")
    artifact = upload_artifact(
        artifact_store=FileSystemArtifactStore(foreign.artifacts),
        file_path=str(tmp_path / "evil.html"),
        study_or_trial=study,
        mimetype="text/html",
    )
    with serve(foreign) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page()
        alerts: list[str] = []
        page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
        page.goto(f"{address}/note")
        page.get_by_text("Seed: which layers can").wait_for()
        assert NAME in page.locator("h1", has_text="Seed: which").inner_text()
        page.goto(address)
        page.get_by_text("Perplexity against latency").first.wait_for()
        figures = (
            """elements => elements.map(one => [one.getBoundingClientRect().top, one.id]).sort((a, b) => a[0] - b[0])"""
        )
        (top, first), *_ = page.eval_on_selector_all(".js-plotly-plot", figures)
        assert first == "user-defined-plot:seed-pareto"
        assert top < 200
        save_note(study, HOSTILE_NOTE.format(artifact=artifact))
        page.goto(f"{address}/note")
        page.get_by_text("Hello").first.wait_for()
        page.wait_for_timeout(500)
        assert page.title() != "owned"
        page.goto(address.partition("/dashboard")[0] + f"/artifacts/0/{artifact}")
        page.get_by_text("read me").wait_for()
        assert page.title() == ""
        assert alerts == []
        browser.close()


def run_until(words: list[str], act: Callable[[str], None], *, cwd: Path) -> tuple[int, str]:
    """Start a command; act when it has said its first line, then press Ctrl-C; return its exit code and errors."""
    process = subprocess.Popen(
        words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert process.stdout is not None
        act(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        return process.wait(30), process.communicate()[1]
    finally:
        process.kill()


def test_the_command_serves_until_ctrl_c(finished_study: Finished) -> None:
    def look(line: str) -> None:
        found = ask(re.search("http://127.0.0.1:.*", line)[0])  # type: ignore[index]
        assert NAME in found["note"]["body"]

    words = [sys.executable, "-m", "seed.dashboard", "tiny", "--no-browser"]
    assert run_until(words, look, cwd=finished_study.folder.root.parent) == (0, "")


def test_a_taken_port_and_what_is_no_study_are_told(finished_study: Finished, tmp_path: Path) -> None:
    study = finished_study.copy(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = error_of(run_seed("seed.dashboard", "studies/tiny", f"--port={port}", cwd=tmp_path, code=2))
        assert f"--port {port}: cannot listen there" in error
    assert "--port 70000" in error_of(run_seed("seed.dashboard", "studies/tiny", "--port=70000", cwd=tmp_path, code=2))
    assert "not a study" in error_of(run_seed("seed.dashboard", "nowhere", cwd=tmp_path, code=2))
    for stage in ("stage-1", "one-shot"):
        (tmp_path / "staged" / stage).mkdir(parents=True)
        shutil.copy(study.plan, tmp_path / "staged" / stage)
    error = error_of(run_seed("seed.dashboard", "staged", cwd=tmp_path, code=2))
    assert f"{Path('staged/one-shot')}, {Path('staged/stage-1')}" in error
    error = error_of(run_seed("seed.dashboard", "staged/stage-1", cwd=tmp_path, code=2))
    assert "journal.log: missing" in error
    assert not (tmp_path / "staged" / "stage-1" / "journal.log").exists()
