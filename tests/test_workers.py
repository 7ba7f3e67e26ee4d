"""Several workers on one study, as users start, stop and lose them: nothing finished is lost, nothing counts twice."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest

from seed.folder import StudyFolder
from seed.optimize.storage import open_storage
from seed.optimize.study import read_trials
from seed.records import SweepRow
from seed.rows import read_rows
from tests.test_commands import TINY, environment, error_of, run_seed

TRIALS = 9
RUNG_2 = ["--rung=2", "--short-steps=3", f"--trials={TRIALS}", "--sweep-budget=0", "--no-screen", "--frontier-size=2"]


class Search:
    """A search with workers, started as a user would, and what it says."""

    def __init__(self, model: Path, text: Path, place: Path, *more: str, study: str = "tiny", **extra: str) -> None:
        self.place = place
        self.words = [
            "seed.search",
            "--model",
            str(model),
            "--recovery-text",
            str(text),
            *TINY,
            "--study",
            study,
            *more,
        ]
        self.folder = StudyFolder(place / "studies" / study)
        self.output = place / f"output-{len(list(place.glob('output-*')))}.txt"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.words], cwd=place, env=environment(**extra), stdout=output, stderr=output
            )

    def read(self) -> str:
        return self.output.read_text()

    def wait_until(self, is_so: Callable[[], bool], *, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while not is_so():
            assert self.process.poll() is None, self.read()
            assert time.monotonic() < until, self.read()
            time.sleep(0.2)

    def end(self, *, seconds: float = 200) -> int:
        self.process.wait(seconds)
        return self.process.returncode

    def list_workers(self) -> list[int]:
        """Process numbers of the workers, the lead first."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return sorted(int(pid) for pid in children if "seed.worker" in read_command(pid))

    def list_scored(self) -> list[tuple[int, str]]:
        """Numbers and keys of the candidates that carry a value."""
        study = optuna.load_study(storage=open_storage(None, journal=self.folder.journal), study_name=self.folder.name)
        return [
            (record.number, record.evaluation.candidate.key)
            for record in read_trials(study)
            if record.state == "COMPLETE"
        ]

    def count_lines(self) -> int:
        """How much is in the journal: it grows with every step of a search."""
        return self.folder.journal.read_bytes().count(b"\n") if self.folder.journal.exists() else 0


def require_whole(search: Search, *, scored: int = TRIALS) -> None:
    """Check that a search ended with its budget kept to the trial, and with whole models."""
    found = search.list_scored()
    assert len(found) == len({key for _, key in found}) == scored
    rows = read_rows(search.folder.sweep, SweepRow)
    models = sorted(path.name for path in search.folder.models.iterdir())
    assert len(models) == 2
    assert not [name for name in models if name.startswith(".")]
    assert {row.key for row in rows} >= {key for _, key in found}
    assert search.folder.report.is_file()
    assert not list(search.folder.root.rglob(".*.new"))
    assert not list(search.folder.present.glob("*.lock"))


@pytest.fixture
def start(make_checkpoint, text_file: Path, tmp_path: Path) -> Iterator[Callable[..., Search]]:
    """Return what starts a search; whatever still runs in the end is killed."""
    started: list[Search] = []

    def make(*more: str, study: str = "tiny", **extra: str) -> Search:
        started.append(Search(make_checkpoint("llama", num_layers=6), text_file, tmp_path, *more, study=study, **extra))
        return started[-1]

    yield make
    for search in started:
        search.process.kill()
        search.process.wait()


def read_command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return ""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def has_scored(search: Search, count: int) -> Callable[[], bool]:
    return lambda: search.count_lines() > 3 and len(search.list_scored()) >= count


def test_a_killed_helper_and_a_killed_lead_are_started_again(start: Callable[..., Search]) -> None:
    search = start(*RUNG_2, "--workers=2")
    search.wait_until(has_scored(search, 2))
    lead, helper = search.list_workers()
    os.kill(helper, signal.SIGKILL)
    search.wait_until(lambda: "worker 2 was killed by SIGKILL; it is started again (1 of 3)" in search.read())
    search.wait_until(lambda: len(search.list_workers()) == 2)
    os.kill(lead, signal.SIGKILL)
    before = search.list_scored()
    search.wait_until(lambda: "worker 1 was killed by SIGKILL; it is started again (1 of 3)" in search.read())
    assert search.end() == 0, search.read()
    require_whole(search)
    assert set(before) <= set(search.list_scored())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_whoever_stops_the_parent_stops_all_and_the_same_command_goes_on(
    start: Callable[..., Search], number: signal.Signals
) -> None:
    search = start(*RUNG_2, "--workers=2")
    search.wait_until(has_scored(search, 3))
    workers = search.list_workers()
    search.process.send_signal(number)
    code = search.end(seconds=30)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 128 + number)
    assert ("run the same command again to go on" in search.read()) == (number != signal.SIGKILL)
    until = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    before = search.list_scored()
    again = start(*RUNG_2, "--workers=2")
    assert again.end() == 0, again.read()
    assert f"{len(before)} candidates were scored before" in again.read()
    require_whole(again)
    assert set(before) <= set(again.list_scored())


def test_the_same_command_started_twice_joins_and_another_is_told(start: Callable[..., Search]) -> None:
    first = start(*RUNG_2)
    first.wait_until(first.folder.search_order.is_file)
    second = start(*RUNG_2)
    third = start(*RUNG_2[:-1], "--frontier-size=3")
    assert third.end() == 2
    assert re.search(r"error: .*a search runs there \(pid \d+\) .*frontier_size: 2 there, 3 here", third.read())
    assert second.end() == 0, second.read()
    assert first.end() == 0, first.read()
    assert f"a search runs there (pid {first.process.pid}); this process helps it" in second.read()
    require_whole(first)


def test_two_workers_find_what_one_finds(start: Callable[..., Search]) -> None:
    whole = ["--no-distill"]
    searches = [start(*whole, f"--workers={count}", study=f"by-{count}") for count in (1, 2)]
    for search in searches:
        assert search.end() == 0, search.read()
    one, two = (
        {row.key: row.sums for row in read_rows(search.folder.sweep, SweepRow) if row.rung == "closed_form"}
        for search in searches
    )
    assert one.keys() == two.keys()
    for key, sums in one.items():
        assert two[key] == pytest.approx(sums, rel=1e-5)
    assert sorted(key for _, key in searches[0].list_scored()) == sorted(key for _, key in searches[1].list_scored())


def test_bad_input_is_one_error_and_leaves_nothing(text_file: Path, tmp_path: Path) -> None:
    done = run_seed(
        "seed.search", "--model=/no/such/model", "--recovery-text", str(text_file), "--workers=2", cwd=tmp_path, code=2
    )
    assert "/no/such/model" in error_of(done)
    assert not (tmp_path / "studies").exists()
