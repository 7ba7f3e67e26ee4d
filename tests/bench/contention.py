"""Trials a second that workers of one study reach when scoring costs nothing: what claims, asking and the storage take.

Each run has a new study, and so many processes that work on it; they are started, warmed up, and let go together. Its
seconds are from then until the last trial is complete. Three ways to take trials: asked for at random; in a given order by
``run_trials``, as searches with a database do; and in that order by ``add_trials`` in shares, as searches with a journal do.
What a trial costs grows with the trials that are there, so rates of runs of different length do not compare.

PostgreSQL is the server of ``tests/postgres.py``: beside the workers on the same cores, and it forces nothing to the disk.
Heartbeats are timed on it in turns with none; a trial without work sends one, and each look asks for stale trials.
One worker: python -m tests.bench.contention --work JOB
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from seed.console import Terminal
from seed.optimize.space import enumerate_candidates
from seed.optimize.storage import connect, create_tables, open_storage
from seed.optimize.study import open_study
from seed.optimize.teamwork import Worker
from seed.optimize.trials import add_trials, run_trials
from seed.presence import Presence
from seed.records import Candidate, Evaluation, SearchSpace
from seed.sharing import Shares
from tests.bench import turns
from tests.postgres import CURE, PostgresServer, find_binaries, run_server
from tests.processes import let_go
from tests.reporting import factory

SPACE = SearchSpace(num_layers=12, droppable_layers=tuple(range(12)), min_dropped=1, max_dropped=5)  # 1,585 sets
WORKERS = (1, 2, 4, 8)
WAYS = {"journal": ("random", "order", "shares"), "PostgreSQL": ("random", "order")}
BEATING_WORKERS = (1, 4)  # that are timed with and without heartbeats
TRIALS, TRIALS_FULL = 100, 1000
ROUNDS = 3
WARM_TRIALS = 3
MOST_SECONDS = 1800.0  # of one run


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One study that workers are let go on."""

    storage: str
    way: str
    workers: int
    trials: int
    beats: bool = True  # where the storage has heartbeats
    place: str = ""  # a folder of this study's own
    url: str | None = None  # None: a journal in the folder


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What one study took."""

    storage: str
    way: str
    workers: int
    trials: int
    beyond: int  # of them, beyond the budget
    seconds: float
    given_way: int  # trials that failed, since others had their candidates
    beats: bool = True


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Run all studies in rounds; every other round goes backwards."""
    trials = TRIALS_FULL if full else TRIALS
    with run_postgres() as server:
        jobs = list_jobs(trials, has_postgres=server is not None)
        runs: list[Run] = []
        with terminal.stage("contention", total=ROUNDS * len(jobs)) as advance:
            for number in range(ROUNDS):
                for job in jobs if number % 2 == 0 else reversed(jobs):
                    runs.append(run_job(job, server))
                    advance(1, f"{runs[-1].storage}, {job.way}, {job.workers}: {trials / runs[-1].seconds:.0f} / s")
    return {
        "contention": summarize_rates(runs),
        "contention_heartbeats": summarize_heartbeats(runs),
        "contention_details": {
            "trials": trials,
            "rounds": ROUNDS,
            "has_postgres": server is not None,
            "beyond": sum(run.beyond for run in runs),
            "studies": len(runs),
        },
    }


@contextlib.contextmanager
def run_postgres() -> Iterator[PostgresServer | None]:
    """A server; None where PostgreSQL is not installed."""
    if find_binaries() is None:
        yield None
        return
    with run_server() as server:
        yield server


def list_jobs(trials: int, *, has_postgres: bool) -> list[Job]:
    """One round: each storage, way and number of workers, those with heartbeats right beside those without."""
    jobs = []
    for storage in ("journal", "PostgreSQL") if has_postgres else ("journal",):
        for way in WAYS[storage]:
            for workers in WORKERS:
                jobs.append(Job(storage=storage, way=way, workers=workers, trials=trials))
                if storage == "PostgreSQL" and way == "order" and workers in BEATING_WORKERS:
                    jobs.append(msgspec.structs.replace(jobs[-1], beats=False))
    return jobs


def run_job(job: Job, server: PostgresServer | None) -> Run:
    """Let workers go on a new study, and see when its last trial was complete."""
    with tempfile.TemporaryDirectory() as directory:
        url = server.make_database() if server is not None and job.storage == "PostgreSQL" else None
        job = msgspec.structs.replace(job, place=directory, url=url)
        open_here(job)
        told = run_workers(job)
        trials = open_here(job).get_trials(deepcopy=False)
        complete = [trial.datetime_complete for trial in trials if trial.state == TrialState.COMPLETE]
        assert len(complete) >= job.trials, f"{len(complete)} trials of {job.trials}"
        return Run(
            storage=job.storage,
            way=job.way,
            workers=job.workers,
            trials=len(complete),
            beyond=len(complete) - job.trials,
            seconds=max(moment.timestamp() for moment in complete if moment) - told,
            given_way=len(trials) - len(complete),
            beats=job.beats,
        )


def run_workers(job: Job) -> float:
    """Start all workers of a job, let them go together, and wait for their end; return when they were let go."""
    command = [sys.executable, "-m", "tests.bench.contention", "--work", msgspec.json.encode(job).decode()]
    root = Path(__file__).parents[2]
    workers = [
        subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(job.workers)
    ]
    try:
        told = let_go(workers)
        for worker in workers:
            worker.communicate(timeout=MOST_SECONDS)
            assert worker.returncode == 0, f"a worker ended with {worker.returncode}"
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return told


def open_here(job: Job) -> optuna.Study:
    """The study of a job."""
    return open_study(open_storage_of(job), name="contention", rung=factory.RUNG, fingerprint="contention")


def open_storage_of(job: Job) -> BaseStorage:
    """Its storage; without heartbeats, what ``open_storage`` makes but for them."""
    if job.url is None or job.beats:
        return open_storage(job.url, journal=Path(job.place) / "journal.log")
    from seed.optimize.patience import PatientStorage

    silent = connect(job.url, heartbeat_seconds=None, grace_seconds=None, prepare=create_tables)
    return PatientStorage(silent, patience_seconds=60.0)


def evaluate(candidate: Candidate) -> Evaluation:
    """A score by what is dropped, at once."""
    return factory.make_evaluation(candidate.dropped_layers, 1 + sum(candidate.dropped_layers) / 100)


def work(job: Job) -> None:
    """Be one worker: warm up, say that we are ready, and wait for the word."""
    presence = Presence(Path(job.place) / "present")
    worker = Worker(name=presence.name, is_there=presence.is_there)
    study = open_here(job)
    warm = optuna.create_study(directions=["minimize", "minimize"])
    take_trials(warm, msgspec.structs.replace(job, trials=WARM_TRIALS), worker, shares=Shares(None))
    with presence.be_there():
        print("ready", flush=True)
        sys.stdin.readline()
        take_trials(study, job, worker, shares=Shares(Path(job.place) / "search.shares"))


def take_trials(study: optuna.Study, job: Job, worker: Worker, *, shares: Shares) -> None:
    """Take trials in the job's way until there are enough."""
    order = list(enumerate_candidates(SPACE))[: job.trials]
    if job.way == "shares":
        add_trials(study, SPACE, order, trials=job.trials, rung=factory.RUNG, evaluate=evaluate, shares=shares)
        return
    run_trials(
        study,
        SPACE,
        trials=job.trials,
        sampler="random",
        order=order if job.way == "order" else (),
        rng_seed=0,
        rung=factory.RUNG,
        evaluate=evaluate,
        worker=worker,
    )


def summarize_rates(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Trials a second and the share of trials that gave way, by storage, way and number of workers; with heartbeats."""
    kinds = dict.fromkeys((run.storage, run.way, run.workers) for run in runs)
    rows = []
    for kind in kinds:
        found = [run for run in runs if (run.storage, run.way, run.workers) == kind and run.beats]
        given_way = sum(run.given_way for run in found)
        rows.append(
            {
                "storage": kind[0],
                "way": kind[1],
                "workers": kind[2],
                "trials_per_second": turns.range_of([run.trials / run.seconds for run in found]),
                "given_way": given_way / (given_way + sum(run.trials for run in found)),
            }
        )
    return rows


def summarize_heartbeats(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Seconds with heartbeats over seconds without, round by round; nothing where there was no server."""
    rows = []
    for workers in BEATING_WORKERS:
        silent = [run for run in runs if run.workers == workers and not run.beats]
        beating = [run for run in runs if run.beats and (run.storage, run.way) == ("PostgreSQL", "order")]
        beating = [run for run in beating if run.workers == workers]
        if not silent:
            continue
        ms = {
            name: np.array([1000 * run.seconds / run.trials for run in found])
            for name, found in (("with", beating), ("without", silent))
        }
        rows.append(
            {
                "workers": workers,
                "ratio": turns.range_of(ms["with"] / ms["without"]),
                "ms_a_trial_more": turns.range_of(ms["with"] - ms["without"]),
                "ms_a_trial": {name: turns.range_of(each) for name, each in ms.items()},
            }
        )
    return rows


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print rates by number of workers, and what heartbeats cost."""
    details, found = fields["contention_details"], fields["contention"]
    rows = []
    for storage, way in dict.fromkeys((row["storage"], row["way"]) for row in found):
        cells = [row for row in found if (row["storage"], row["way"]) == (storage, way)]
        rates = [turns.show_range(row["trials_per_second"], digits=1) for row in cells]
        rows.append([f"{storage}, {way}", *rates, f"{cells[-1]['given_way']:.0%}"])
    title = f"Trials a second by workers, scores at once, {details['trials']} trials, {details['rounds']} rounds"
    columns = ["study", *(f"{count} (min to max)" for count in WORKERS), f"gave way, {WORKERS[-1]}"]
    terminal.show_table(columns, rows, title=title)
    if details["beyond"]:
        terminal.say(f"{details['beyond']} trials beyond the budgets of {details['studies']} studies")
    if not details["has_postgres"]:
        terminal.say(f"PostgreSQL is not installed, so nothing was measured on it. {CURE}")
        return
    rows = [
        [
            f"{row['workers']}",
            turns.show_range(row["ms_a_trial"]["with"], digits=1),
            turns.show_range(row["ms_a_trial"]["without"], digits=1),
            turns.show_range(row["ms_a_trial_more"], digits=1),
            turns.show_range(row["ratio"]),
        ]
        for row in fields["contention_heartbeats"]
    ]
    columns = ["workers", "ms a trial with", "without", "more", "with / without (min to max)"]
    terminal.show_table(columns, rows, title="Heartbeats on PostgreSQL, in a given order")


def main() -> None:
    """Be one worker."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", required=True, metavar="JOB", help="one JSON object")
    work(msgspec.convert(json.loads(parser.parse_args().work), Job))


if __name__ == "__main__":
    main()
