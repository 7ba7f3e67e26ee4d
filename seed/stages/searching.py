"""Scoring a space: all of it by closed form where that fits the budget, else what a sampler proposes; then the climb.

The order in which candidates are scored is chosen here; how one is scored is ``scoring.proxy``'s business, by whom the
executor's, and what Optuna is told ``optimize.trials``'.
"""

import contextlib
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from seed.console import Terminal
from seed.optimize.screening import Screen
from seed.optimize.space import contains, drop_more, enumerate_candidates
from seed.optimize.trials import KEEP_SECONDS, Proposer, Sampled, Trials, Walk, run_search
from seed.plans import SearchPlan
from seed.records import (
    Candidate,
    Frontier,
    Latency,
    Quality,
    Scored,
    SearchSpace,
    SweepRow,
    TrialRecord,
)
from seed.reporting.readings import read_reach
from seed.reporting.wording import count_things
from seed.scores import ScoreStore
from seed.scoring.book import ScoreBook
from seed.scoring.sweep import Sweep
from seed.stages import recovering
from seed.stages.settings import SearchSettings
from seed.stages.workbench import Workbench

BEST_NOTE = "best PPL ratios by layers dropped (without which)"
RECOVERY_SAMPLE = 16  # sets of a sweep that are scored without recovery too, to say what closed form recovers
TIMED_BATCH = 64  # candidates that are scored before latencies that are new are measured


class Scorers(Protocol):
    """Those who score, spread over what there is."""

    num_evaluators: int

    def score(
        self,
        candidates: Sequence[Candidate],
        *,
        rows: Sequence[SweepRow],
        table: Mapping[str, Latency],
        screen: Screen | None = None,
    ) -> Iterator[Scored]:
        """Score candidates at the study's rung."""

    def sweep_space(
    terminal: Terminal, scorers: Scorers, order: Sequence[Candidate], *, store: ScoreStore, book: ScoreBook
) -> dict[Candidate, Quality]:
    """Score candidates by closed form, in the order given; return the qualities of all."""
    found = {one: book.known(one)["closed_form"] for one in order if book.is_known(one, "closed_form")}
    best = Best()
    with terminal.stage("sweep", total=len(order)) as advance:
        for candidate, quality in found.items():
            best.compare(candidate, quality)
        if found:
            advance(len(found), BEST_NOTE, best.list_cells())
        with keeping_rows(store, book) as keep:
            for candidate, quality, rows in scorers.sweep_space([one for one in order if one not in found]):
                keep(rows)
                found[candidate] = quality
                best.compare(candidate, quality)
                advance(1, BEST_NOTE, best.list_cells())
    return found


@contextlib.contextmanager
def keeping_rows(store: ScoreStore, book: ScoreBook) -> Iterator[Callable[[Sequence[SweepRow]], None]]:
    """Yield what to hand new scores to; they are kept some at a time, and all of them when the block ends, however it ends."""
    waiting: list[SweepRow] = []
    kept = time.monotonic()

    def hear(rows: Sequence[SweepRow]) -> None:
        nonlocal kept
        waiting.extend(rows)
        if time.monotonic() - kept >= KEEP_SECONDS:
            flush()
            kept = time.monotonic()

    def flush() -> None:
        keep_rows(store, book, waiting)
        waiting.clear()

    try:
        yield hear
    finally:
        flush()


class Best:
    """The best candidate of each depth so far, for people who watch; what is chosen, ``optimize.frontier`` decides."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[float, Candidate]] = {}

    def compare(self, candidate: Candidate, quality: Quality) -> None:
        """Take note of a candidate where it beats its depth."""
        depth = len(candidate.dropped_layers)
        if math.isfinite(quality.ppl_ratio) and (depth not in self._found or quality.ppl_ratio < self._found[depth][0]):
            self._found[depth] = (quality.ppl_ratio, candidate)

    def learn(self, trial: TrialRecord, *, rung: str) -> None:
        """Take note of a trial's candidate, if the trial is complete."""
        if trial.state == "COMPLETE":
            self.compare(trial.evaluation.candidate, trial.evaluation.qualities[rung])

    def list_cells(self) -> list[str]:
        """Return ``-2: 1.107 (1, 7)`` for each depth: PPL ratio without which layers."""
        return [
            f"-{depth}: {ratio:.3f} ({', '.join(candidate.dropped_parts)})"
            for depth, (ratio, candidate) in sorted(self._found.items())
        ]


def rank_candidates(qualities: dict[Candidate, Quality]) -> list[Candidate]:
    """The best of every depth, then the second best of every depth, and so on."""
    by_depth: dict[int, list[Candidate]] = defaultdict(list)

    def order(candidate: Candidate) -> tuple[float, str]:
        loss = qualities[candidate].loss
        return (math.inf if math.isnan(loss) else loss), candidate.key

    for candidate in sorted(qualities, key=order):
        by_depth[len(candidate.dropped_layers)].append(candidate)
    rank = {candidate: i for group in by_depth.values() for i, candidate in enumerate(group)}
    return sorted(qualities, key=lambda candidate: (rank[candidate], len(candidate.dropped_layers)))


def store_states(
    terminal: Terminal,
    bench: Workbench,
    sweep: Sweep,
    *,
    steps: int,
    rng_seeds: Sequence[int] | None = None,
) -> None:
    """Compute the dense model's last hidden states for distillations of so many steps, or find them computed."""
    if not recovering.uses_stored_states(bench):
        return
    seeds = [bench.protocol.rng_seed] if rng_seeds is None else rng_seeds
    total = len(recovering.list_windows(bench, steps=steps, rng_seeds=seeds))
    with terminal.stage("dense states", total=total) as advance:  # windows of text
        sweep.instruments = recovering.store_teacher_states(
            bench, sweep.instruments, steps=steps, rng_seeds=seeds, on_window=lambda count: advance(count, "")
        )
    if sweep.instruments.recall is None:
        terminal.say("  they would take too much disk: the dense model runs in every step instead")


def say_recovery(sample: Sequence[dict[str, Quality]], num_swept: int) -> str:
    """One line on how much of the loss of cutting closed form wins back."""
    shares = sorted(share for share in map(measure_recovery, sample) if share is not None)
    if not shares:
        return "what closed form recovers cannot be told: what cutting costs is within the noise of the validation text"
    return (
        f"closed form recovers {statistics.median(shares):.0%} of what cutting costs in loss "
        f"(median of {count_things(len(shares), 'set')} out of {num_swept}; {shares[0]:.0%} to {shares[-1]:.0%})"
    )


def measure_recovery(qualities: dict[str, Quality]) -> float | None:
    """Share of the loss of cutting that closed form wins back; None where cutting costs nothing that could be measured."""
    raw = qualities["none"]
    lost = math.log(raw.ppl_ratio)
    reach = read_reach(raw)
    if reach is None or lost <= reach * raw.ppl_ratio_standard_error / raw.ppl_ratio:
        return None
    return 1 - math.log(qualities["closed_form"].ppl_ratio) / lost
