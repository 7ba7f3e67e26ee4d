"""A soak: searches of a tiny model, in one process or over Ray, are stopped and killed at random: python -m benchmarks.soak --minutes 10

Each is gone on with until it ends, and then compared with one that nobody broke. The last line says, as JSON, what was seen;
anything that should not be is a fault, and the exit code says so.
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

import optuna
from optuna.trial import TrialState

from seed.models.provenance import find_damage
from seed.optimize.storage import open_storage
from seed.scores import ScoreStore
from seed.study_dir import StudyFolder
from tests import conftest

WORDS = [
    "--window-tokens=64",
    "--calibration-tokens=512",
    "--validation-tokens=1024",
    "--test-tokens=1024",
    "--prompt-tokens=4",
    "--new-tokens=2",
    "--latency-repeats=3",
    "--distill-tokens=40000",
    "--learning-rate=1e-3",
    "--frontier-size=2",
    "--max-dropped=3",
    "--device=cpu",
]
LATENCY = """--latency-command=sh -c 'stat -c %s "$0/model.safetensors"'"""  # so that no timing decides anything
WHOLE, BUDGET = 41, 12  # candidates of the space, and of a search that is sampled
SAMPLED = [f"--trials={BUDGET}", "--sweep-budget=0", "--no-distill"]
KINDS = ([], ["--workers=2"], SAMPLED, [*SAMPLED, "--workers=2"])
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
MOST_BREAKS = 4  # of one search
LEFT_SECONDS = 240.0  # in which all processes of a search that ended are gone; agents of Ray's that were just starting take longest


@dataclass
class Count:
    """What a soak has seen."""

    studies: int = 0
    starts: int = 0
    signals: Counter[str] = field(default_factory=Counter)
    trials: int = 0
    models: int = 0
    slowest_stop_seconds: float = 0.0  # from SIGINT or SIGTERM to the end
    faults: list[str] = field(default_factory=list)


def make_words(place: Path) -> list[str]:
    """Make a model and a text, and return the command that searches it."""
    conftest.make_model("llama", num_layers=6).save_pretrained(place / "model")
    conftest.make_tokenizer().save_pretrained(place / "model")
    rng = random.Random(0)
    (place / "text.txt").write_text("\n\n".join("".join(rng.choices("abcdefgh  ", k=200)) for _ in range(300)))
    given = [f"--model={place / 'model'}", f"--recovery-text={place / 'text.txt'}", f"--studies-dir={place}"]
    return [sys.executable, "-m", "seed.search", *given, LATENCY, *WORDS]


def run(words: list[str], study: StudyFolder, count: Count, *, stop: tuple[float, int] | None) -> bool:
    """Run a search, and after so many seconds send it that signal; is it finished?"""
    log = study.root.with_suffix(".log")
    count.starts += 1
    mark = f"SOAK={os.getpid()}-{count.starts}"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | dict([mark.split("=")])
    with log.open("w") as handle:
        process = subprocess.Popen(words, env=environment, stdout=handle, stderr=handle)
    while process.poll() is None and not log.stat().st_size:
        time.sleep(0.05)  # it is told to stop only once it listens
    expected = {0}
    try:
        process.wait(None if stop is None else stop[0])
    except subprocess.TimeoutExpired:
        assert stop is not None
        name, began = signal.Signals(stop[1]).name, time.monotonic()
        process.send_signal(stop[1])
        count.signals[name] += 1
        expected |= {128 + stop[1], -stop[1]}
        process.wait()
        count.slowest_stop_seconds = max(count.slowest_stop_seconds, round(time.monotonic() - began, 1))
    if process.returncode not in expected or "Traceback" in log.read_text():
        count.faults.append(f"{study.root.name}: ended with {process.returncode}: {log.read_text()[-2000:]}")
    until = time.monotonic() + LEFT_SECONDS
    while process.returncode != -signal.SIGKILL and (
        left := list_processes(f"{mark}\0")
    ):  # else agents of Ray's stay a while
        if time.monotonic() > until:
            count.faults.append(f"{study.root.name}: left behind: {left}")
            break
        time.sleep(0.2)
    return process.returncode == 0


def list_processes(mark: str) -> list[str]:
    """What processes are called whose environment holds a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append((path.parent / "comm").read_text().strip())
        except OSError:
            continue
    return found


def describe(study: StudyFolder) -> dict[str, object]:
    """What two searches of one kind have in common to the bit."""
    with ScoreStore(study.scores, read_only=True) as store:
        scores = {(row.key, row.proxy): (row.sums, row.counts) for row in store.read_rows()}
    frontier = [one["evaluation"]["candidate"] for one in json.loads(study.frontier.read_text())["members"]]
    results = [json.loads(path.read_text()) for path in sorted(study.distilled.glob("*.json"))]
    return {
        "scores": scores,
        "frontier": frontier,
        "tests": [(one["candidate"], one["validation"], one["test"]) for one in results],
    }


def check(study: StudyFolder, count: Count, unbroken: dict[str, object] | None) -> None:
    """Compare a finished study with what it should be."""
    with ScoreStore(study.scores, read_only=True) as store:
        kept = [trial.evaluation.candidate.key for trial in store.read_trials() if trial.state == "COMPLETE"]
    told = optuna.load_study(study_name=study.root.name, storage=open_storage(None, journal=study.journal))
    shown = [trial.user_attrs["dropped"] for trial in told.get_trials(states=(TrialState.COMPLETE,))]
    wanted = BUDGET if unbroken is None else WHOLE
    for name, keys in (("kept", kept), ("told", shown)):
        if not len(keys) == len(set(keys)) == wanted:
            count.faults.append(
                f"{study.root.name}: {len(keys)} trials {name} of {len(set(keys))} candidates, not {wanted}"
            )
    if unbroken is not None:
        found = describe(study)
        differing = [name for name in unbroken if found[name] != unbroken[name]]
        count.faults += [f"{study.root.name}: {name} differ from those of an unbroken search" for name in differing]
    models = list(study.models.glob("*"))
    damaged = [path for path in models if find_damage(path) is not None]
    left = [str(path) for path in study.root.rglob(".*.new")]
    count.faults += [f"{study.root.name}: {path}: damaged, or left half-written" for path in [*damaged, *left]]
    count.trials, count.models, count.studies = count.trials + len(kept), count.models + len(models), count.studies + 1


def main() -> None:
    """Soak for so many minutes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rng-seed", type=int, default=0)
    args = parser.parse_args()
    rng, count, began = random.Random(args.rng_seed), Count(), time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        words, alone = make_words(place), StudyFolder(place / "alone")
        run([*words, "--study=alone"], alone, count, stop=None)
        seconds = (time.monotonic() - began) / 2  # within which a search is stopped
        unbroken = {} if count.faults else describe(alone)
        while (minutes := (time.monotonic() - began) / 60) < args.minutes and not count.faults:
            kind = KINDS[count.studies % len(KINDS)]
            study = StudyFolder(place / f"soak-{count.studies}")
            stops = [(seconds * rng.random() ** 2, rng.choice(SIGNALS)) for _ in range(rng.randint(1, MOST_BREAKS))]
            for stop in (*stops, None):
                if run([*words, f"--study={study.root.name}", *kind], study, count, stop=stop) or count.faults:
                    break
            if not count.faults:
                check(study, count, None if "--no-distill" in kind else unbroken)
            print(json.dumps(vars(count)), flush=True)
    print(json.dumps({"minutes": round(minutes, 2), **vars(count)}))
    raise SystemExit(bool(count.faults))


if __name__ == "__main__":
    main()
