"""Scoring a space: all of it by closed form where that fits the budget, else what a sampler proposes; then the climb.

The order in which candidates are scored is chosen here; how one is scored is ``proxy.proxy``'s business, by whom the
executor's, and what Optuna is told ``optimize.trials``'.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from seed.config import StudyConfig
from seed.console import Terminal
from seed.optimize.screening import Screen
from seed.optimize.space import contains, drop_more, enumerate_candidates
from seed.optimize.trials import EnumeratedProposer, Proposer, SamplerProposer, Trials, keeping_some, run_search
from seed.plans import SearchPlan
from seed.proxy.sweep import ScoreCache
from seed.records import (
    Candidate,
    Frontier,
    Latency,
    Quality,
    Scored,
    ScoreRow,
    SearchSpace,
    TrialRecord,
)
from seed.reporting.wording import count_things
from seed.results import read_reach
from seed.scores import ScoreStore

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
        rows: Sequence[ScoreRow],
        table: Mapping[str, Latency],
        screen: Screen | None = None,
    ) -> Iterator[Scored]:
        """Score candidates at the study's proxy."""

    def sweep_space(self, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Quality, list[ScoreRow]]]:
        """Score candidates by closed form."""

    def measure_unrecovered(self, candidates: Sequence[Candidate]) -> tuple[list[Quality], list[ScoreRow]]:
        """Score candidates as they stand."""


class Timer(Protocol):
    """Knows the latency of every structure, and measures those that it has not met, while nothing else runs."""

    def time(self, candidates: Sequence[Candidate]) -> Mapping[str, Latency]:
        """Latencies by structure, these candidates' among them."""

    @property
    def is_complete(self) -> bool:
        """Is every structure of the space timed already?"""


def score_space(
    terminal: Terminal,
    scorers: Scorers,
    timer: Timer,
    trials: Trials,
    book: ScoreCache,
    plan: SearchPlan,
    settings: StudyConfig,
    *,
    rng_seed: int,
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Score candidates at the objective's proxy until the budget is spent or the space is exhausted.

    ``prepare``: called before the first is scored, where any is left.
    """
    space, store, retry_skipped = trials.space, trials.store, not settings.screen
    target = min(plan.trials, space.size)
    if trials.complete:
        terminal.say(f"{say_were(len(trials.complete))} scored before")
    if len(trials.complete) >= target or trials.count_taken(retry_skipped=retry_skipped) >= space.size:
        return
    is_whole = space.size <= plan.trials
    order = list(enumerate_candidates(space)) if plan.covers_space or is_whole else []
    sample = order[:: math.ceil(len(order) / RECOVERY_SAMPLE)] if plan.covers_space else []
    if missing := [candidate for candidate in sample if not book.is_known(candidate, "none")]:
        keep_rows(store, book, scorers.measure_unrecovered(missing)[1])
    swept: dict[Candidate, Quality] = {}
    if plan.covers_space and trials.proxy != "closed-form":
        swept = sweep_space(terminal, scorers, order, store=store, book=book)
        order = rank_candidates(swept)
    prepare()
    proposer: Proposer
    if is_whole:
        is_long = trials.proxy == "short-distillation"  # then what is screened depends on those before
        batch = scorers.num_evaluators if is_long else target if timer.is_complete else TIMED_BATCH
        proposer = EnumeratedProposer(trials, order, batch=batch, retry_skipped=retry_skipped)
    else:
        proposer = SamplerProposer(
            trials,
            sampler=settings.sampler,
            rng_seed=rng_seed,
            batch=scorers.num_evaluators,
            retry_skipped=retry_skipped,
            prior=(lambda candidate: swept[candidate].ppl_ratio) if swept else None,
        )
    seen = Seen(trials.proxy, Screen(keep=plan.frontier_size) if settings.screen else None)
    for trial in store.read_trials():
        if contains(space, trial.evaluation.candidate):
            seen.learn(trial)

    def score(candidates: Sequence[Candidate]) -> Iterator[Scored]:
        table = timer.time(candidates)
        for scored in scorers.score(candidates, rows=book.list_rows(candidates), table=table, screen=seen.screen):
            book.learn(scored.rows)
            yield scored

    with terminal.stage("search", total=target) as advance:
        if trials.complete:
            advance(len(trials.complete), BEST_NOTE, seen.best.list_cells())

        def show(trial: TrialRecord) -> None:
            seen.learn(trial)
            advance(int(trial.state == "COMPLETE"), BEST_NOTE, seen.best.list_cells())

        seen.skipped = seen.failed = 0
        with trials.heard_by(show):
            run_search(trials, proposer, score, target=target, retry_skipped=retry_skipped)
    for line in seen.describe():
        terminal.say(line)
    if sample:
        scored = [candidate for candidate in sample if book.is_known(candidate, "closed-form")]
        terminal.say(say_recovery([book.known(candidate) for candidate in scored], space.size))


class Seen:
    """What trials have shown: the best of each depth, what is not worth short distillation, how many have no value."""

    def __init__(self, proxy: str, screen: Screen | None) -> None:
        self.proxy, self.screen = proxy, screen
        self.best = Best()
        self.skipped = self.failed = 0

    def learn(self, trial: TrialRecord) -> None:
        """Take note of a finished trial."""
        if self.screen is not None:
            self.screen.learn([trial])
        self.skipped += trial.evaluation.skipped_because is not None
        self.failed += trial.evaluation.explain_failure(self.proxy) is not None
        self.best.learn(trial, proxy=self.proxy)

    def describe(self) -> list[str]:
        """Lines on those without a value."""
        lines = []
        if self.skipped:
            proxy = self.proxy.replace("_", " ")
            lines.append(f"{say_were(self.skipped)} not worth {proxy} and skipped; their trials say why")
        if self.failed:
            lines.append(
                f"{say_were(self.failed)} left without a value, since their loss is not a finite number; their trials say so"
            )
        return lines


def keep_rows(store: ScoreStore, book: ScoreCache, rows: Sequence[ScoreRow]) -> None:
    """Keep new scores that belong to no trial yet."""
    store.keep(rows)
    book.learn(rows)


def keeping_rows(store: ScoreStore, book: ScoreCache) -> AbstractContextManager[Callable[[list[ScoreRow]], None]]:
    """Yield what to hand new scores to, which are kept some at a time."""

    def keep_all(groups: list[list[ScoreRow]]) -> None:
        keep_rows(store, book, [row for rows in groups for row in rows])

    return keeping_some(keep_all)


def say_were(count: int) -> str:
    """``1 candidate was``, ``2 candidates were``."""
    return f"{count_things(count, 'candidate')} {'was' if count == 1 else 'were'}"


def score_singles(scorers: Scorers, store: ScoreStore, book: ScoreCache, space: SearchSpace, *, recovers: bool) -> None:
    """Score what each further layer costs alone, whether or not the space holds such sets: the report shows it.

    ``recovers``: by closed form too.
    """
    singles = sorted((drop_more(space, [layer]) for layer in space.droppable_layers), key=lambda one: one.kept_layers)
    if missing := [single for single in singles if not book.is_known(single, "none")]:
        keep_rows(store, book, scorers.measure_unrecovered(missing)[1])
    missing = [single for single in singles if not book.is_known(single, "closed-form")] if recovers else []
    with keeping_rows(store, book) as keep:
        for _, _, rows in scorers.sweep_space(missing):
            keep(rows)


def name_solver(plan: SearchPlan, settings: StudyConfig, space: SearchSpace, frontier: Frontier) -> str:
    """How the scored candidates were chosen, in a few words."""
    if frontier.num_scored >= space.size or space.size <= plan.trials:
        return "enumerated"
    swept = ", a sweep of all of them as its prior" if plan.covers_space and settings.sampler == "subset" else ""
    return f"searched with {settings.sampler}{swept}"


def sweep_space(
    terminal: Terminal, scorers: Scorers, order: Sequence[Candidate], *, store: ScoreStore, book: ScoreCache
) -> dict[Candidate, Quality]:
    """Score candidates by closed form, in the order given; return the qualities of all."""
    found = {one: book.known(one)["closed-form"] for one in order if book.is_known(one, "closed-form")}
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


class Best:
    """The best candidate of each depth so far, for people who watch; what is chosen, ``optimize.frontier`` decides."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[float, Candidate]] = {}

    def compare(self, candidate: Candidate, quality: Quality) -> None:
        """Take note of a candidate where it beats its depth."""
        depth = len(candidate.dropped_layers)
        if math.isfinite(quality.ppl_ratio) and (depth not in self._found or quality.ppl_ratio < self._found[depth][0]):
            self._found[depth] = (quality.ppl_ratio, candidate)

    def learn(self, trial: TrialRecord, *, proxy: str) -> None:
        """Take note of a trial's candidate, if the trial is complete."""
        if trial.state == "COMPLETE":
            self.compare(trial.evaluation.candidate, trial.evaluation.qualities[proxy])

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
    return 1 - math.log(qualities["closed-form"].ppl_ratio) / lost
