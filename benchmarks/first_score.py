"""Seconds from the command to the first score, and of which parts: what a user waits before anything is known.

A search of the embedded model, and of SmolLM2 where ``SEED_REAL_MODELS`` names a directory with its weights and text
(``smollm2-135m-instruct``, ``text``), each in a process of its own that is stopped at its first score. Parts are the
calls of the pass that take most; what is left over is imports and bookkeeping.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import turns
from seed.console import Terminal

RUNS, RUNS_FULL = 1, 3
SMOL = ("--validation-tokens", "4096", "--calibration-tokens", "4096", "--trials", "12", "--max-dropped", "2")


class FirstScoreError(BaseException):
    """Ends the search: there is a score."""


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Begin each search some times."""
    searches: dict[str, tuple[str, ...]] = {"demo": ()}
    if real := os.environ.get("SEED_REAL_MODELS"):
        place = Path(real)
        searches["SmolLM2-135M"] = (
            *("--model", str(place / "smollm2-135m-instruct"), "--recovery-text", str(place / "text")),
            *SMOL,
        )
    number = RUNS_FULL if full else RUNS
    found: dict[str, list[dict[str, float]]] = {name: [] for name in searches}
    with terminal.stage("first score", total=number * len(searches)) as advance:
        for _ in range(number):
            for name, words in searches.items():
                found[name].append(begin_search(words))
                advance(1, name)
    return {"first_score": {name: summarise(runs) for name, runs in found.items()}}


def begin_search(words: tuple[str, ...]) -> dict[str, float]:
    """Seconds by part of a search that ends with its first score, in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        command = (sys.executable, "-m", "benchmarks.first_score", *words, "--studies-dir", directory)
        began = time.time()
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"SEED_BEGAN": repr(began)}
        )
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def summarise(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median and range of each part."""
    return {part: turns.range_of([run[part] for run in runs]) for part in runs[0]}


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print how long the first score took."""
    rows = [
        [name, part, turns.show_range(seconds, digits=1)]
        for name, parts in fields["first_score"].items()
        for part, seconds in parts.items()
    ]
    terminal.show_table(["search", "part", "s"], rows, title="From the command to the first score", num_words=2)


def main() -> None:
    """Search until there is a score, and print the seconds of each part as one line."""
    began = float(os.environ["SEED_BEGAN"])
    from seed import pipeline, search
    from seed.evaluator import Evaluator
    from seed.proxy.sweep import Sweep

    seconds = {"imports": time.time() - began}

    def watch(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.time()
            try:
                return call(*args, **kwargs)
            finally:
                seconds[part] = seconds.get(part, 0.0) + time.time() - started

        return timed

    def stop(*_: object, **__: object) -> None:
        raise FirstScoreError

    watched: dict[str, tuple[Any, str]] = {
        "opening": (pipeline, "open_session"),
        "planning": (pipeline, "plan_search"),
        "proofs": (Evaluator, "prove"),
        "latency": (Evaluator, "measure_latency"),
        "candidate": (Sweep, "recover"),
    }
    for part, (owner, name) in watched.items():
        mock.patch.object(owner, name, watch(part, getattr(owner, name))).start()
    mock.patch.object(Sweep, "keep", stop).start()
    try:
        search.main()
    except FirstScoreError:
        seconds["all"] = time.time() - began
        print(json.dumps(seconds))


if __name__ == "__main__":
    main()
