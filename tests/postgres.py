"""A real PostgreSQL server for tests, thrown away at the end: each test process starts its own, since that takes two seconds.

Tests get it by the fixture ``postgres`` of conftest.py. It can be stopped and started in the middle of a test.
"""

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

USER = "seed"
PASSWORD = "three blind mice"
START_SECONDS = 60.0
CURE = "Install it (Debian: apt-get install --no-install-recommends postgresql)."
# the server's life hangs on a pipe to this process, so that it ends with it however that ends
ON_A_LEASH = """
"$@" & server=$!
cat >/dev/null
kill -QUIT $server 2>/dev/null
wait $server
"""
# Nothing outlives a test run, so nothing is forced to the disk. Commits are waited for all the same: without that an
# immediate stop loses the last of them, which no real server does unasked.
FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "autovacuum": "off",
    "max_connections": "50",
}
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class PostgresServer:
    """A cluster in a temporary folder that listens on 127.0.0.1 and wants a password (scram-sha-256).

    The password is not in ``url``: libpq reads it from PGPASSWORD, which ``run_server`` sets.
    """

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries, self.folder, self.data = binaries, folder, folder / "data"
        self.owner = find_owner()
        self.leash: subprocess.Popen[bytes] | None = None
        self.num_databases = 0
        password = folder / "password"
        password.write_text(PASSWORD)
        if self.owner:
            for path in (folder, password):
                shutil.chown(path, self.owner)
        self._run(
            "initdb",
            f"--pgdata={self.data}",
            f"--username={USER}",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )
        self.port = find_free_port()

    @property
    def url(self) -> str:
        return self._locate("postgres")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        assert self.leash is None
        settings = FAST | {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": ""}
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        command = [str(self.binaries / "postgres"), "-D", str(self.data), *flags]
        with (self.folder / "server.log").open("ab") as log:
            self.leash = subprocess.Popen(
                ["sh", "-c", ON_A_LEASH, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for the tests, which stop the server themselves
                **self._as_owner(),
            )
        until = time.monotonic() + START_SECONDS
        while not self._is_ready():
            assert time.monotonic() < until, f"PostgreSQL does not start: {self.read_log()[-2000:]}"
            time.sleep(0.05)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: fast (clients are told) or immediate (as a crash), and wait until it is gone."""
        assert self.leash is not None
        assert self.leash.stdin is not None
        pid = self._find_pid()
        if pid:
            os.kill(pid, STOP_SIGNALS[mode])
            until = time.monotonic() + START_SECONDS
            while is_alive(pid) and time.monotonic() < until:
                time.sleep(0.02)
        self.leash.stdin.close()  # what is left, if anything, is killed
        self.leash.wait(timeout=START_SECONDS)
        self.leash = None

    def restart(self, mode: str = "fast") -> None:
        self.stop(mode)
        self.start()

    def make_database(self) -> str:
        """Make an empty database; return its URL."""
        self.num_databases += 1
        name = f"studies_{self.num_databases}"
        with psycopg.connect(self.url, password=PASSWORD, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self._locate(name)

    def read_log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def _locate(self, database: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def _is_ready(self) -> bool:
        try:
            psycopg.connect(self.url, password=PASSWORD, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _find_pid(self) -> int | None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int((self.data / "postmaster.pid").read_text().splitlines()[0])
        return None

    def _run(self, name: str, *arguments: str) -> None:
        command = [str(self.binaries / name), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, **self._as_owner())
        assert done.returncode == 0, done.stderr

    def _as_owner(self) -> dict[str, object]:
        return {"user": self.owner, "group": pwd.getpwnam(self.owner).pw_gid, "extra_groups": []} if self.owner else {}


def find_owner() -> str | None:
    """Whom to run the server as, if not as ourselves: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


def find_binaries() -> Path | None:
    """Where initdb and postgres are: Debian keeps them off the PATH."""
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    needed = ("initdb", "postgres")
    return next((folder for folder in folders if all((folder / name).is_file() for name in needed)), None)


def find_free_port() -> int:
    """A port below those that the kernel hands out: a stopped server's must not go to a client that dials it."""
    for port in random.SystemRandom().sample(range(15000, 32000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port on 127.0.0.1")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def run_server() -> Iterator[PostgresServer]:
    """Run a server; PGPASSWORD holds its password meanwhile. Without PostgreSQL the test is skipped, or fails where CI is set."""
    binaries = find_binaries()
    if binaries is None:
        if os.environ.get("CI") or os.environ.get("NEEDS_POSTGRES"):
            pytest.fail(f"PostgreSQL is not installed, and tests need it. {CURE}")
        pytest.skip(f"PostgreSQL is not installed. {CURE}")
    with tempfile.TemporaryDirectory(prefix="seed-postgres-") as place, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PG")]:
            patch.delenv(name)
        patch.setenv("PGPASSWORD", PASSWORD)
        server = PostgresServer(binaries, Path(place))
        try:
            server.start()
            yield server
        finally:
            if server.leash is not None:
                server.stop("immediate")
