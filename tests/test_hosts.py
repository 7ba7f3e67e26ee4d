"""Several hosts on one study in a PostgreSQL database, as users start and lose them. A host is a folder of its own here."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest

from seed.folder import StudyFolder
from seed.optimize.storage import open_storage
from seed.optimize.study import read_trials
from seed.optimize.teamwork import WORKER
from seed.records import SweepRow
from seed.rows import read_rows
from tests.postgres import PostgresServer
from tests.test_commands import TINY, environment, error_of, run_seed
from tests.test_workers import RUNG_2, TRIALS

# the command line, in a hurry: a host is given up after seconds instead of a minute
COMMAND = """
import sys
from seed.optimize import leadership, storage
leadership.Leadership.__init__.__kwdefaults__.update(beat_seconds=0.5, settle_seconds=0.5)
storage.open_storage.__kwdefaults__.update(heartbeat_seconds=1, grace_seconds=4)
from seed import search
from seed.console import run_command
sys.argv[0] = "seed.search"
run_command(search.main)
"""


class Host:
    """A host that searches, and what it says."""

    def __init__(self, root: Path, words: list[str]) -> None:
        root.mkdir(exist_ok=True)
        self.folder = StudyFolder(root / "studies" / "tiny")
        self.output = root / "output.txt"
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, *words], cwd=root, env=environment(), stdout=output, stderr=output
            )

    def read(self) -> str:
        return self.output.read_text()

    def wait_for(self, words: str, *, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while words not in self.read():
            assert self.process.poll() is None, self.read()
            assert time.monotonic() < until, self.read()
            time.sleep(0.2)

    def end(self) -> int:
        return self.process.wait(200)


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.make_database()


@pytest.fixture
def start(make_checkpoint, text_file: Path, tmp_path: Path, url: str) -> Iterator[Callable[..., Host]]:
    """Return what starts a host of a name; whatever still runs in the end is killed."""
    started: list[Host] = []

    def make(name: str, *more: str) -> Host:
        model = ["--model", str(make_checkpoint("llama", num_layers=6)), "--recovery-text", str(text_file)]
        started.append(Host(tmp_path / name, [*model, *TINY, "--study", "tiny", "--storage", url, *RUNG_2, *more]))
        return started[-1]

    yield make
    for host in started:
        host.process.kill()
        host.process.wait()


def open_trials(url: str) -> optuna.Study:
    return optuna.load_study(storage=open_storage(url, journal=Path("nowhere")), study_name="tiny")


def list_scored(url: str) -> list[str]:
    return [record.evaluation.candidate.key for record in read_trials(open_trials(url)) if record.state == "COMPLETE"]


def wait_until_each_has_scored(url: str, *hosts: Host) -> None:
    """Wait until some trials of so many hosts are complete."""
    until = time.monotonic() + 120
    while True:
        trials = open_trials(url).get_trials(states=(optuna.trial.TrialState.COMPLETE,))
        if len({trial.system_attrs[WORKER].partition(":")[0] for trial in trials}) >= len(hosts):
            return
        assert time.monotonic() < until, [host.read() for host in hosts]
        time.sleep(0.2)


def require_result(host: Host, url: str) -> None:
    """Check that a host has the whole result, other hosts' scores included."""
    scored = list_scored(url)
    assert len(scored) == len(set(scored)) == TRIALS
    rows = [row for row in read_rows(host.folder.sweep, SweepRow) if row.rung == "short_distillation"]
    assert Counter(row.key for row in rows) == Counter(scored)
    assert len(list(host.folder.models.iterdir())) == 2
    assert host.folder.report.is_file()


def test_two_hosts_share_a_search_and_one_has_the_result(start: Callable[..., Host], url: str) -> None:
    first = start("first")
    first.wait_for("[4/6] dense states")
    second, other = start("second"), start("third", "--trials=10")
    second.wait_for("leads this search; this host scores candidates for it")
    wait_until_each_has_scored(url, first, second)
    assert second.end() == 0, second.read()
    assert first.end() == 0, first.read()
    require_result(first, url)
    assert other.end() == 2
    assert "(trials: 9 there, 10 here). Give the same options to help it" in other.read()
    assert f"in {first.folder.root} on" in second.read()
    assert not second.folder.models.exists()


def test_a_host_takes_the_lead_where_the_one_that_led_is_gone(start: Callable[..., Host], url: str) -> None:
    first = start("first")
    first.wait_for("[4/6] dense states")
    second = start("second")
    wait_until_each_has_scored(url, first, second)
    before = list_scored(url)
    first.process.kill()
    assert second.end() == 0, second.read()
    assert "this host leads from now on" in second.read()
    assert set(before) <= set(list_scored(url))
    require_result(second, url)


def test_a_search_goes_on_where_its_database_crashed_and_came_back(
    start: Callable[..., Host], url: str, postgres: PostgresServer
) -> None:
    host = start("first", "--no-distill")
    host.wait_for("dense states")
    wait_until_each_has_scored(url, host)
    before = list_scored(url)
    postgres.restart(mode="immediate", away_seconds=3)
    assert host.end() == 0, host.read()
    scored = list_scored(url)
    assert set(before) < set(scored)
    assert len(scored) == len(set(scored)) == TRIALS
    rows = [row for row in read_rows(host.folder.sweep, SweepRow) if row.rung == "short_distillation"]
    assert Counter(row.key for row in rows) == Counter(scored)
    assert "error: " not in host.read()


def test_a_study_whose_trials_are_elsewhere_is_not_begun_anew(start: Callable[..., Host], url: str) -> None:
    first = start("first", "--no-distill", "--trials=1")
    assert first.end() == 0, first.read()
    words = first.process.args[3:]
    assert isinstance(words, list)
    words = [word for word in words if word not in ("--storage", url)]
    done = run_seed("seed.search", *words, cwd=first.output.parent, code=2)
    assert f"its trials are in {url}, and its folder has none of them. To go on, add --storage {url}" in error_of(done)
    assert not first.folder.journal.exists()
