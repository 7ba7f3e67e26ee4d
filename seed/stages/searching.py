"""Scoring a space: all of it by closed form where that fits the budget, else what a sampler proposes; then short distillation.

The order in which candidates are scored is chosen here; how one is scored is ``proxy.proxy``'s business, by whom the
executor's, and what Optuna is told ``optimize.trials``'.
"""

import functools
import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from seed.config import StudyConfig
from seed.console import Terminal
from seed.executor import Executor
from seed.optimize.screening import Screen
from seed.optimize.space import contains, drop_more, enumerate_candidates, order_walk
from seed.optimize.trials import Propose, SamplerProposer, Trials, keeping_some, propose_in_order, run_search
from seed.plans import SearchPlan
from seed.proxy.sweep import ScoreCache
from seed.records import Candidate, Frontier, Quality, Scored, ScoreRow, SearchSpace, TrialRecord
from seed.reporting.wording import count_things, name_proxy
from seed.scores import ScoreStore
from seed.stages.latency_table import LatencyTable
from seed.stats import reach_over_documents

BEST_NOTE = "best PPL ratios by layers dropped (without which)"
RECOVERY_SAMPLE = 16  # sets of a sweep that are scored without recovery too, to say what closed form recovers
TIMED_BATCH = 64  # candidates that are scored before latencies that are new are measured


@dataclass(frozen=True)
class Scoring:
    """Who scores candidates, and where their scores are kept."""

    executor: Executor
    store: ScoreStore
    cache: ScoreCache

    def keep(self, rows: Iterable[ScoreRow]) -> None:
        """Keep new scores that belong to no trial yet."""
        new = list(rows)
        self.store.keep(new)
        self.cache.learn(new)

    def score_unrecovered(self, candidates: Sequence[Candidate]) -> None:
        """Score candidates as they stand, those that were not before."""
        if missing := [candidate for candidate in candidates if not self.cache.is_known(candidate, "none")]:
            self.keep(self.executor.call("score_unrecovered", missing))

    def sweep(
        self,
        candidates: Sequence[Candidate],
        *,
        on_score: Callable[[Candidate, Quality], None] = lambda candidate, quality: None,
    ) -> None:
        """Score candidates by closed form, those that were not before, in the order given; scores are kept some at a time."""
        missing = [candidate for candidate in candidates if not self.cache.is_known(candidate, "closed-form")]

        def keep_groups(groups: list[list[ScoreRow]]) -> None:
            self.keep(itertools.chain(*groups))

        with keeping_some(keep_groups) as keep:
            for candidate, quality, rows in self.executor.call_each("sweep_space", missing, lambda some: {}):
                keep(rows)
                on_score(candidate, quality)

    def score_singles(self, space: SearchSpace, *, recovers: bool) -> None:
        """Score what each further layer costs alone, whether or not the space holds such sets: the report shows it.

        ``recovers``: by closed form too.
        """
        if len(space.kinds) == 1:  # whole layers stay there
            return
        singles = sorted((drop_more(space, [one]) for one in space.droppable_layers), key=order_walk)
        self.score_unrecovered(singles)
        if recovers:
            self.sweep(singles)


def score_space(
    terminal: Terminal,
    scoring: Scoring,
    table: LatencyTable,
    trials: Trials,
    plan: SearchPlan,
    settings: StudyConfig,
    *,
    prepare: Callable[[], None] = lambda: None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Score candidates by the objective's proxy until the budget is spent or the space is exhausted.

    ``prepare``: called before the first is scored, where any is left. ``check``: called after each, and may raise.
    """
    space, executor, cache = trials.space, scoring.executor, scoring.cache
    target = min(plan.trials, space.size)
    if trials.num_complete:
        terminal.say(f"{count_candidates(trials.num_complete)} scored before")
    if trials.num_complete >= target or not trials.num_left:
        return
    is_whole = space.size <= plan.trials
    order = list(enumerate_candidates(space)) if plan.covers_space or is_whole else []
    sample = order[:: math.ceil(len(order) / RECOVERY_SAMPLE)] if plan.covers_space else []
    scoring.score_unrecovered(sample)
    swept: dict[Candidate, Quality] = {}
    if plan.covers_space and trials.proxy != "closed-form":
        swept = sweep_space(terminal, scoring, order)
        order = rank_candidates(swept)
    prepare()
    batch = executor.num_evaluators
    propose: Propose
    if is_whole:
        propose = functools.partial(propose_in_order, trials, order)
        if trials.proxy != "short-distillation":  # there, what is screened depends on those before
            batch = target if table.is_complete else TIMED_BATCH
    else:
        prior = (lambda candidate: swept[candidate].ppl_ratio) if swept else None
        propose = SamplerProposer(
            trials, sampler=settings.sampler, rng_seed=settings.rng_seed, batch=batch, prior=prior
        ).propose
    screen, best = Screen(keep=plan.frontier_size) if settings.screen else None, Best()
    for trial in scoring.store.read_trials():
        if contains(space, trial.evaluation.candidate):
            learn_trial(trial, screen, best, proxy=trials.proxy)
    new: list[TrialRecord] = []

    def score(candidates: Sequence[Candidate]) -> Iterator[Scored]:
        latencies = table.time(candidates)
        for scored in executor.score(candidates, rows=cache.list_rows(candidates), table=latencies, screen=screen):
            cache.learn(scored.rows)
            yield scored
            check()

    with terminal.stage("search", total=target) as advance:
        if trials.num_complete:
            advance(trials.num_complete, BEST_NOTE, best.list_cells())

        def hear(trial: TrialRecord) -> None:
            new.append(trial)
            learn_trial(trial, screen, best, proxy=trials.proxy)
            advance(int(trial.state == "COMPLETE"), BEST_NOTE, best.list_cells())

        trials.listeners.append(hear)
        run_search(trials, propose, score, target=target, batch=batch)
        trials.listeners.remove(hear)
    for line in describe_valueless(new, proxy=trials.proxy):
        terminal.say(line)
    if sample:
        scored = [candidate for candidate in sample if cache.is_known(candidate, "closed-form")]
        terminal.say(describe_recovery([cache.known(candidate) for candidate in scored], space.size))


def learn_trial(trial: TrialRecord, screen: Screen | None, best: "Best", *, proxy: str) -> None:
    """Let a finished trial show what is best and what is not worth short distillation."""
    if screen is not None:
        screen.learn(trial.evaluation)
    if trial.state == "COMPLETE":
        best.learn(trial.evaluation.candidate, trial.evaluation.qualities[proxy])


def describe_valueless(trials: Sequence[TrialRecord], *, proxy: str) -> list[str]:
    """Lines on those without a value."""
    num_skipped = sum(trial.evaluation.skipped_because is not None for trial in trials)
    num_failed = sum(trial.evaluation.explain_failure(proxy) is not None for trial in trials)
    lines = []
    if num_skipped:
        lines.append(f"{count_candidates(num_skipped)} not worth {name_proxy(proxy)} and skipped; their trials say why")
    if num_failed:
        lines.append(
            f"{count_candidates(num_failed)} left without a value, since their loss is not a finite number; their trials say so"
        )
    return lines


def count_candidates(count: int) -> str:
    """``1 candidate was``, ``2 candidates were``."""
    return f"{count_things(count, 'candidate')} {'was' if count == 1 else 'were'}"


def name_solver(plan: SearchPlan, settings: StudyConfig, space: SearchSpace, frontier: Frontier) -> str:
    """How the scored candidates were chosen, in a few words."""
    if frontier.num_scored >= space.size or space.size <= plan.trials:
        return "enumerated"
    swept = ", a sweep of all of them as its prior" if plan.covers_space and settings.sampler == "subset" else ""
    return f"searched with {settings.sampler}{swept}"


def sweep_space(terminal: Terminal, scoring: Scoring, order: Sequence[Candidate]) -> dict[Candidate, Quality]:
    """Score candidates by closed form, in the order given; return the qualities of all."""
    cache = scoring.cache
    found = {one: cache.known(one)["closed-form"] for one in order if cache.is_known(one, "closed-form")}
    best = Best()
    with terminal.stage("sweep", total=len(order)) as advance:
        for candidate, quality in found.items():
            best.learn(candidate, quality)
        if found:
            advance(len(found), BEST_NOTE, best.list_cells())

        def hear(candidate: Candidate, quality: Quality) -> None:
            found[candidate] = quality
            best.learn(candidate, quality)
            advance(1, BEST_NOTE, best.list_cells())

        scoring.sweep(order, on_score=hear)
    return found


class Best:
    """The best candidate of each depth so far, for people who watch; what is chosen, ``optimize.frontier`` decides."""

    def __init__(self) -> None:
        self._found: dict[float, tuple[float, Candidate]] = {}

    def learn(self, candidate: Candidate, quality: Quality) -> None:
        """Take note of a candidate where it beats its depth."""
        depth = candidate.num_dropped
        if math.isfinite(quality.ppl_ratio) and (depth not in self._found or quality.ppl_ratio < self._found[depth][0]):
            self._found[depth] = (quality.ppl_ratio, candidate)

    def list_cells(self) -> list[str]:
        """Return ``-2: 1.107 (1, 7)`` for each depth: PPL ratio without which parts."""
        return [
            f"-{depth:g}: {ratio:.3f} ({', '.join(candidate.parts)})"
            for depth, (ratio, candidate) in sorted(self._found.items())
        ]


def rank_candidates(qualities: dict[Candidate, Quality]) -> list[Candidate]:
    """The best of every depth, then the second best of every depth, and so on."""
    by_depth: dict[float, list[Candidate]] = defaultdict(list)

    def order(candidate: Candidate) -> tuple[float, str]:
        loss = qualities[candidate].loss
        return (math.inf if math.isnan(loss) else loss), candidate.key

    for candidate in sorted(qualities, key=order):
        by_depth[candidate.num_dropped].append(candidate)
    rounds = itertools.zip_longest(*(by_depth[depth] for depth in sorted(by_depth)))
    return [candidate for found in rounds for candidate in found if candidate is not None]


def describe_recovery(sample: Sequence[dict[str, Quality]], num_swept: int) -> str:
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
    reach = reach_over_documents(raw.effective_documents)
    if reach is None or lost <= reach * raw.ppl_ratio_standard_error / raw.ppl_ratio:
        return None
    return 1 - math.log(qualities["closed-form"].ppl_ratio) / lost
