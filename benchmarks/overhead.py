"""What a search spends outside the model: asking, telling, bookkeeping, writing.

A search of the embedded model is run as it is, with the calls that run the model timed; the share is the rest of what
the scoring stage took. ``overhead_share`` is of the demo's own kind of search, a sweep whose scores become trials. The
share of a search that asks Optuna for every candidate stands beside it.
"""

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from seed.console import Terminal
from seed.proxy import sweep
from seed.proxy.subset_walker import SubsetWalker
from seed.search import find_frontier
from seed.stages import searching

MAX_DROPPED, MAX_DROPPED_FULL = 2, 3  # the demo's own is 3
ASKED, ASKED_FULL = 30, 200


class Stopwatch:
    """Adds up the seconds spent in the calls that it watches; it starts anew at ``restart``."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was timed."""
        self.seconds, self.calls = 0.0, 0

    def watch(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call, timed."""

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began
                self.calls += 1

        return timed


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Run a search that sweeps and one that asks."""
    max_dropped, asked = (MAX_DROPPED_FULL, ASKED_FULL) if full else (MAX_DROPPED, ASKED)
    with terminal.stage("overhead", total=2) as advance:
        swept = watch_search(max_dropped=max_dropped)
        advance(1, "swept")
        sampled = watch_search(max_dropped=4, trials=asked, sweep_budget=0)
        advance(1, "asked")
    return {"overhead_share": swept["share"], "overhead_details": {"sweep": swept, "asked for": sampled}}


def watch_search(**settings: Any) -> dict[str, float]:
    """Seconds of the scoring stage of a demo search, and how much of them the model took."""
    model, stage, model_seconds = Stopwatch(), Stopwatch(), 0.0
    score_space = stage.watch(searching.score_space)

    def score_anew(*args: Any, **more: Any) -> None:
        nonlocal model_seconds
        model.restart()  # proofs and latencies came before, baselines come later
        score_space(*args, **more)
        model_seconds = model.seconds

    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(SubsetWalker, "__init__", model.watch(SubsetWalker.__init__)),
        mock.patch.object(SubsetWalker, "measure", model.watch(SubsetWalker.measure)),
        mock.patch.object(sweep, "measure_unrecovered", model.watch(sweep.measure_unrecovered)),
        mock.patch.object(searching, "score_space", score_anew),
    ):
        record = find_frontier(quiet=True, studies_dir=Path(directory), distill=False, **settings).record
    return {
        "share": 1 - model_seconds / stage.seconds,
        "seconds": stage.seconds,
        "model_seconds": model_seconds,
        "trials": len(record.trials),
        "ms_a_trial": 1000 * (stage.seconds - model_seconds) / len(record.trials),
    }


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print what is not the model."""
    rows = [
        [
            name,
            f"{row['trials']}",
            f"{row['seconds']:.1f}",
            f"{row['model_seconds']:.1f}",
            f"{row['ms_a_trial']:.1f}",
            f"{row['share']:.1%}",
        ]
        for name, row in fields["overhead_details"].items()
    ]
    columns = ["scoring stage", "trials", "s", "s in the model", "ms a trial besides", "share besides"]
    terminal.show_table(columns, rows, title="What is not the model: at most 3 % of a sweep wanted")
