"""Open a study in Optuna Dashboard: python -m seed.dashboard studies/demo

Needs neither model nor text, and may run while a search does: the study is looked at, never locked or mended.
Only this machine can reach it.
"""

import errno
import os
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from seed import study_dir
from seed.cli import argument, option, read_command, storage_option
from seed.console import Terminal, run_command
from seed.errors import ResourceError, StudyError
from seed.plans import read_plan
from seed.study_dir import StudyFolder

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

HOST = "127.0.0.1"
PORT = 8080
PORTS_TRIED = 20
READING = ("GET", "HEAD")
# Optuna Dashboard sends a policy with its page, but none with artifacts, which a study can bring along as HTML, and which it
# lets pages from anywhere read.
SHARING = "access-control-allow-"
GUARDS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
)
ARTIFACT_POLICY = (
    "Content-Security-Policy",
    "sandbox; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'",
)
# Of a study that came from elsewhere, it may run what it is made of, but as a stranger to the dashboard.
REPORT_POLICY = (
    "Content-Security-Policy",
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:",
)
# The dashboard's own page, on which people land: the study's Pareto plot first and wide, its other figures next.
LANDING = """<body><style>
div:has(> .MuiGrid-container [id^="user-defined-plot:"]) {{ display: flex; flex-direction: column; }}
.MuiGrid-container:has(> .MuiGrid-grid-xs-6 [id^="user-defined-plot:"]) {{ order: -1; }}
.MuiGrid-grid-xs-6:has([id^="user-defined-plot:"]) {{ order: -1; }}
.MuiGrid-grid-xs-6:has([id="user-defined-plot:seed-pareto"]) {{ order: -2; flex-basis: 100%; max-width: 100%; }}
#seed {{ position: fixed; z-index: 2000; top: 0; right: 1.5rem; font: 1rem/4rem system-ui, sans-serif; }}
#seed a {{ margin-left: 1.5rem; color: white; }}
</style><nav id="seed"><a href="{study}/note">the answer</a><a href="/report">report</a></nav>"""


class Server(ThreadingMixIn, WSGIServer):
    """Answers several requests at once, and waits for none of them when it ends."""

    daemon_threads = True


class Handler(WSGIRequestHandler):
    """Answers without a line in the terminal for each request."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        return


@dataclass(frozen=True, kw_only=True)
class DashboardCommand:
    """Open a study in Optuna Dashboard, also while its search runs."""

    study: Path = argument("the study's folder, such as studies/demo", metavar="STUDY")
    port: int | None = option(f"port on {HOST} (default: the first free one from {PORT})")
    storage: str | None = storage_option()
    browser: bool = option("only print the address", True)


def main() -> None:
    """Read the command line and serve the dashboard until Ctrl-C."""
    args = read_command(DashboardCommand)
    terminal = Terminal()
    try:
        study = study_dir.open_existing(args.study)
        app, path = make_app(study, storage=args.storage)
        with open_server(app, port=args.port, place=study.root) as server:
            address = f"http://{HOST}:{server.server_port}{path}"
            terminal.say(f"{study.root}: {address}")
            terminal.say("Ctrl-C ends it; a search that runs is not touched.")
            sys.stdout.flush()
            if args.browser and has_display():
                webbrowser.open(address)
            server.serve_forever()
    except KeyboardInterrupt:
        terminal.say()


def make_app(study: StudyFolder, *, storage: str | None = None) -> "tuple[WSGIApplication, str]":
    """Return the dashboard over a study's storage and artifacts, and the path of the study's page in it.

    Args:
        study: its folder.
        storage: the database that shows it; None: the journal in its folder.

    Raises:
        StudyError: the storage is to be typed, cannot be opened, or does not have the study.
    """
    import optuna_dashboard
    from optuna.artifacts import FileSystemArtifactStore

    from seed.optimize.storage import find_study_id, view_storage
    from seed.optimize.urls import hide_secrets

    plan = read_plan(study)
    if plan.storage is not None and storage is None:
        raise StudyError(
            f"{study.root}: {hide_secrets(plan.storage)} shows this study, and a study's folder does not choose what is opened. "
            "If you trust it, add it as --storage URL."
        )
    viewed = view_storage(storage, journal=study.journal)
    path = f"/dashboard/studies/{find_study_id(viewed, plan.name)}"
    mark_infeasible(viewed)
    app = optuna_dashboard.wsgi(viewed, artifact_store=FileSystemArtifactStore(study.artifacts))
    return refuse_strangers(show_report(app, study, path=path)), path


def mark_infeasible(viewed: "BaseStorage") -> None:
    """Let the dashboard see the constraints of trials, which it looks for under an older name, so that it greys what breaks them."""
    read = viewed.get_all_trials

    def mark(*args: Any, **options: Any) -> "list[FrozenTrial]":
        trials = read(*args, **options)
        for trial in trials:
            if trial.constraints:
                trial.system_attrs["constraints"] = list(trial.constraints.values())
        return trials

    viewed.get_all_trials = mark  # type: ignore[method-assign]


def show_report(app: "WSGIApplication", study: StudyFolder, *, path: str) -> "WSGIApplication":
    """Return the dashboard with the study's report at ``/report``, and on its pages links to that and to the note."""

    def answer(environ: Any, start_response: Any) -> Any:
        asked = str(environ.get("PATH_INFO", ""))
        if asked == "/report" and not study.report.is_file():
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"There is no report yet: it is written when the first candidates are scored."]
        if asked == "/report":
            start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), REPORT_POLICY])
            return [study.report.read_bytes()]
        if not asked.startswith("/dashboard"):
            return app(environ, start_response)
        for name in ("HTTP_IF_MODIFIED_SINCE", "HTTP_RANGE"):
            environ.pop(name, None)
        begun: list[Any] = []
        parts: Any = app(environ, lambda *words: begun.append(words))  # type: ignore[arg-type]
        page = b"".join(parts)
        if hasattr(parts, "close"):
            parts.close()
        page = page.replace(b"<body>", LANDING.format(study=path).encode(), 1)
        status, headers = begun[0][:2]
        kept = [(name, value) for name, value in headers if name.lower() not in ("content-length", "last-modified")]
        start_response(status, [*kept, ("Content-Length", str(len(page)))])
        return [page]

    return answer


def refuse_strangers(app: "WSGIApplication") -> "WSGIApplication":
    """Return an app that answers only who asks for this machine by its own name, and lets only its own pages change anything.

    A page elsewhere may point a name of its own here, or send a form or a script's request to this address. What a study brought
    along is shown, but runs nothing.
    """

    def answer(environ: Any, start_response: Any) -> Any:
        if not _asks_for_us(environ) or (environ["REQUEST_METHOD"] not in READING and _comes_from_elsewhere(environ)):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"This dashboard is for this machine only.\n"]
        more = GUARDS if not str(environ.get("PATH_INFO", "")).startswith("/artifacts") else (*GUARDS, ARTIFACT_POLICY)

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            kept = [(name, value) for name, value in headers if not name.lower().startswith(SHARING)]
            return start_response(status, [*kept, *more], *rest)

        return app(environ, start)

    return answer


def _asks_for_us(environ: Any) -> bool:
    asked = str(environ.get("HTTP_HOST", ""))
    return (asked.rpartition(":")[0] or asked) in (HOST, "localhost")


def _comes_from_elsewhere(environ: Any) -> bool:
    """Does a browser say that another page sent this? What is no browser says nothing, and could say anything."""
    origin, site = environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE")
    return (origin is not None and origin != f"http://{environ['HTTP_HOST']}") or (
        site not in (None, "same-origin", "none")
    )


def open_server(app: "WSGIApplication", *, port: int | None, place: Path) -> WSGIServer:
    """Return a server that listens on ``port`` of this machine alone, or on the first free one.

    Raises:
        ResourceError: the port is taken or not to be had.
    """
    asked = range(PORT, PORT + PORTS_TRIED) if port is None else [port]
    for number in asked:
        try:
            return make_server(HOST, number, app, server_class=Server, handler_class=Handler)
        except (OSError, OverflowError) as error:
            if port is None and getattr(error, "errno", None) == errno.EADDRINUSE:
                continue
            raise ResourceError(
                f"--port {number}: cannot listen there ({getattr(error, 'strerror', None) or error}). Wanted: a free port "
                f"from 1024 to 65535. Leave --port out, which takes the first free one from {PORT}."
            ) from error
    raise ResourceError(
        f"{place}: ports {PORT} to {PORT + PORTS_TRIED - 1} are all taken. Stop a dashboard that runs there, or name a "
        "free port with --port N."
    )


def has_display() -> bool:
    """Is there a screen that a browser could open on?"""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    run_command(main)
