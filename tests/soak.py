"""A soak: workers search with a fake evaluator while they are killed at random: python -m tests.soak --minutes 10

Prints how many trials were finished, how often workers were killed and started again, and how many finished trials were
lost or sets scored twice. Both must be none; the exit code says so.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import TrialState
from seed.optimize.teamwork import Claims, Worker
from seed.presence import Presence

from seed.optimize.sampler import candidate_of
from seed.optimize.space import enumerate_candidates
from seed.optimize.storage import open_storage
from seed.optimize.study import open_study
from seed.optimize.trials import run_trials
from seed.records import Candidate, Evaluation, SearchSpace
from tests.reporting import factory

SPACE = SearchSpace(num_layers=12, droppable_layers=tuple(range(1, 11)), min_dropped=1, max_dropped=3)  # 175 sets
BUDGET = 140  # of them
SAMPLERS = ("subset", "random", "order")
EVALUATION_SECONDS = 0.05
KILL_SECONDS = (0.5, 2.5)  # between kills; starting takes a worker a second or two
KILL_TRIALS = 0  # told between kills, at least; so that a slow machine gets on too


@dataclass
class Count:
    """What a soak has seen."""

    trials: int = 0
    kills: int = 0
    starts: int = 0
    lost: int = 0
    duplicated: int = 0
    over: int = 0  # trials beyond a budget
    studies: int = 0
    faults: list[str] = field(default_factory=list)

    def describe(self, minutes: float) -> str:
        """One line."""
        return (
            f"{minutes:.1f} min: {self.trials:,} trials finished in {self.studies} searches, {self.kills} kills, "
            f"{self.starts} starts of workers; lost {self.lost}, duplicated {self.duplicated}, beyond the budget {self.over}"
        )


def open_here(place: Path, url: str | None):  # type: ignore[no-untyped-def]
    """The study that is soaked."""
    storage = open_storage(url, journal=place / "journal.log", heartbeat_seconds=1, grace_seconds=4)
    return open_study(storage, name=place.name, rung=factory.RUNG, fingerprint="soak")


def evaluate(candidate: Candidate) -> Evaluation:
    """A score by what is dropped, after a while."""
    time.sleep(EVALUATION_SECONDS)
    return factory.make_evaluation(candidate.dropped_layers, 1 + sum(candidate.dropped_layers) / 100)


def work(place: Path, url: str | None, sampler: str, log: Path, budget: int) -> None:
    """Be one worker: every trial that the study took is written down."""
    presence = Presence(place / "present")
    tell = Claims.tell

    def tell_and_log(claims: Claims, trial, values, **more):  # type: ignore[no-untyped-def]
        is_told = tell(claims, trial, values, **more)
        if is_told:
            with log.open("a") as handle:
                handle.write(f"{trial.number} {candidate_of(SPACE, trial.params).key}\n")
        return is_told

    Claims.tell = tell_and_log  # type: ignore[method-assign]
    with presence.be_there():
        run_trials(
            open_here(place, url),
            SPACE,
            trials=budget,
            sampler="random" if sampler == "order" else sampler,
            order=list(enumerate_candidates(SPACE)) if sampler == "order" else (),
            rng_seed=0,
            rung=factory.RUNG,
            evaluate=evaluate,
            worker=Worker(name=presence.name, is_there=presence.is_there),
        )


def soak_one(
    place: Path,
    url: str | None,
    sampler: str,
    count: Count,
    *,
    num_workers: int,
    rng: random.Random,
    budget: int = BUDGET,
) -> None:
    """Run one search to its end while its workers are killed."""
    open_here(place, url)
    workers: list[subprocess.Popen[bytes] | None] = [None] * num_workers
    logs: list[Path] = []
    next_kill, told_before = time.monotonic() + rng.uniform(*KILL_SECONDS), 0
    try:
        while not all(worker is not None and worker.poll() == 0 for worker in workers):
            for place_of, worker in enumerate(workers):
                if worker is not None and worker.poll() in (None, 0):
                    continue
                if worker is not None and worker.returncode != -signal.SIGKILL:
                    count.faults.append(f"{place.name}: a worker ended with {worker.returncode}")
                    return
                logs.append(place / f"told-{len(logs)}.txt")
                words = ["--work", str(place), "--sampler", sampler, "--log", str(logs[-1]), "--trials", str(budget)]
                more = ["--storage", url] if url else []
                workers[place_of] = subprocess.Popen([sys.executable, "-m", "tests.soak", *words, *more])
                count.starts += 1
            if time.monotonic() > next_kill and (told := len(read_told(logs))) >= told_before + KILL_TRIALS:
                alive = [worker for worker in workers if worker is not None and worker.poll() is None]
                victims = alive if rng.random() < 0.2 else alive[:1] if rng.random() < 0.5 else alive[-1:]
                for worker in victims:
                    worker.kill()
                    worker.wait()
                    count.kills += 1
                next_kill, told_before = time.monotonic() + rng.uniform(*KILL_SECONDS), told
            time.sleep(0.2)
    finally:
        for worker in workers:
            if worker is not None:
                worker.kill()
                worker.wait()
    check(place, url, logs, count, budget)


def read_told(logs: list[Path]) -> dict[str, str]:
    """The sets that workers were told are theirs, by the number of the trial."""
    lines = [line.split() for log in logs if log.exists() for line in log.read_text().splitlines()]
    return {line[0]: line[1] for line in lines if len(line) == 2}  # a killed worker may have written half of one


def check(place: Path, url: str | None, logs: list[Path], count: Count, budget: int) -> None:
    """Compare what the study holds with what workers were told."""
    trials = open_here(place, url).get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    held = {trial.number: candidate_of(SPACE, trial.params).key for trial in trials}
    told = read_told(logs)
    lost = [number for number, key in told.items() if held.get(int(number)) != key]
    copies = [key for key, times in Counter(held.values()).items() if times > 1]
    count.trials += len(held)
    count.lost += len(lost)
    count.duplicated += len(copies)
    count.over += max(0, len(held) - budget)
    count.studies += 1
    if len(held) < budget:
        count.faults.append(f"{place.name}: ended with {len(held)} trials of {budget}")


def main() -> None:
    """Soak for so many minutes, or be one of the workers."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rng-seed", type=int, default=0)
    parser.add_argument("--storage", help="a database to soak instead of journals")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sampler", help=argparse.SUPPRESS)
    parser.add_argument("--trials", type=int, default=BUDGET, help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        work(args.work, args.storage, args.sampler, args.log, args.trials)
        return
    rng, count, began = random.Random(args.rng_seed), Count(), time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        while (minutes := (time.monotonic() - began) / 60) < args.minutes and not count.faults:
            place = Path(directory) / f"soak-{os.getpid()}-{count.studies}"
            place.mkdir()
            sampler = SAMPLERS[count.studies % len(SAMPLERS)]
            soak_one(place, args.storage, sampler, count, num_workers=args.workers, rng=rng, budget=args.trials)
            print(count.describe((time.monotonic() - began) / 60), flush=True)
    print(json.dumps({"minutes": round(minutes, 2), **vars(count)}))
    if count.faults or count.lost or count.duplicated or count.over:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
