"""The one loop of a search: a batch of candidates is proposed, scored, kept and shown, until the budget is spent.

One process runs it, and alone writes. What a candidate is worth is handed in. Scores and trials go into the study's score
store in one transaction, then into the Optuna study that people see; where a process dies between the two, they come there
when the search goes on. Samplers are asked in a copy in memory.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import optuna
from optuna.trial import FrozenTrial, TrialState

from seed import interrupts
from seed.errors import ResourceError, StudyError
from seed.optimize.frontier import Limits
from seed.optimize.sampler import SampledStudy, candidate_of, flags_of
from seed.optimize.space import contains
from seed.optimize.storage import explain_outage
from seed.optimize.study import FAILED, SKIPPED, make_trial
from seed.records import Candidate, Scored, SearchSpace, TrialRecord
from seed.scores import ScoreStore

SKIPPED_PER_TRIAL = 4
MOST_FAILED_IN_A_ROW = 5  # then it is not the candidates
MOST_IN_VAIN = 20  # proposals of a batch that are known already, where hardly anything is left
KEEP_SECONDS = 0.25  # between two transactions: what a killed process has to score again

T = TypeVar("T")
Score = Callable[[Sequence[Candidate]], Iterator[Scored]]
Propose = Callable[[int], list[Candidate]]


@contextlib.contextmanager
def keeping_some(keep: Callable[[list[T]], None]) -> Iterator[Callable[[T], None]]:
    """Yield what to hand things to; they are kept some at a time, and all of them when the block ends, however it ends."""
    waiting: list[T] = []
    kept = time.monotonic()

    def hear(one: T) -> None:
        nonlocal kept
        waiting.append(one)
        if time.monotonic() - kept >= KEEP_SECONDS:
            flush()
            kept = time.monotonic()

    def flush() -> None:
        with interrupts.hold():
            some = waiting.copy()
            waiting.clear()  # where keeping fails in its midst, nothing is kept twice
            if some:
                keep(some)

    try:
        yield hear
        flush()
    except BaseException:
        with contextlib.suppress(Exception):  # what went wrong first is what is told
            flush()
        raise


class StorageMismatchError(StudyError):
    """Optuna's trials are not those of the score store."""


class Trials:
    """The trials of a study: in its score store, which holds all that was measured, and in Optuna, which shows what is finished.

    Args:
        study: an opened study.
        space: the candidates there are.
        store: the score store, ours to write.
        proxy: whose PPL ratio is a trial's first value.
        limits: bounds that trials carry as constraints.
        retry_skipped: candidates that were skipped are to be scored after all.

    Raises:
        StorageMismatchError: Optuna has other trials.
        ResourceError: the database goes away.
    """

    @explain_outage()
    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        store: ScoreStore,
        *,
        proxy: str,
        limits: Limits,
        retry_skipped: bool = False,
    ) -> None:
        self.study, self.space, self.store, self.proxy, self.limits = study, space, store, proxy, limits
        self.retry_skipped = retry_skipped
        self.listeners: list[Callable[[TrialRecord], None]] = []  # they hear of every trial that is finished
        self.notes: dict[Candidate, dict[str, Any]] = {}  # that a sampler wants to find in the trial
        self.known: dict[Candidate, FrozenTrial] = {}  # what need not be scored any more, of the space
        self.num_trials = 0  # whose numbers are given away
        self._reconcile(store.read_trials())

    @property
    def num_complete(self) -> int:
        """How many candidates carry a value."""
        return sum(trial.state == TrialState.COMPLETE for trial in self.known.values())

    @property
    def num_skipped(self) -> int:
        """How many candidates were not worth a value."""
        return sum(SKIPPED in trial.user_attrs for trial in self.known.values())

    @property
    def num_left(self) -> int:
        """How many candidates can still be scored."""
        return self.space.size - len(self.known)

    def keep(self, scored: Sequence[Scored]) -> None:
        """Keep what was scored, and show it."""
        records = [
            TrialRecord(number=number, state="COMPLETE" if found.has_value(self.proxy) else "PRUNED", evaluation=found)
            for number, found in enumerate((one.evaluation for one in scored), self.num_trials)
            if found is not None
        ]
        self.store.keep([row for one in scored for row in one.rows], records)
        self.num_trials += len(scored)
        for one in scored:
            self._show(one)
        for record in records:
            for hear in self.listeners:
                hear(record)

    def _show(self, scored: Scored) -> None:
        notes = self.notes.pop(scored.candidate, None)
        trial = make_trial(scored, self.space, proxy=self.proxy, limits=self.limits, notes=notes)
        self.study.add_trial(trial)
        self._learn(scored.candidate, trial)

    def _learn(self, candidate: Candidate, trial: FrozenTrial) -> None:
        if contains(self.space, candidate) and not (self.retry_skipped and SKIPPED in trial.user_attrs):
            self.known[candidate] = trial

    def _reconcile(self, records: Sequence[TrialRecord]) -> None:
        """Check that Optuna shows what the store holds, and show what a killed process did not come to."""
        ours = {record.number: record for record in records}
        for trial in self.study.get_trials(deepcopy=False):
            record = ours.pop(trial.number, None)
            if record is None and trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
                if FAILED in trial.user_attrs:
                    self._learn(candidate_of(self.space, trial.params), trial)
            elif record is not None and self._agrees(trial, record):
                self._learn(record.evaluation.candidate, trial)
            else:
                raise StorageMismatchError(
                    f"{self.store.path}: does not hold what trial {trial.number} of the Optuna study {self.study.study_name} says. "
                    "Restore it from a copy, or start a study of another name (--study NAME)."
                )
            self.num_trials += 1
        for record in ours.values():
            for _ in range(record.number - self.num_trials):  # numbers stay as they are
                self.study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
            self.num_trials = record.number + 1
            self._show(Scored(candidate=record.evaluation.candidate, evaluation=record.evaluation))

    def _agrees(self, trial: FrozenTrial, record: TrialRecord) -> bool:
        flags = flags_of(self.space, record.evaluation.candidate)
        return (trial.state.name, trial.params) == (record.state, flags)


def propose_in_order(trials: Trials, order: Sequence[Candidate], count: int) -> list[Candidate]:
    """The next of an order of candidates, at most so many; none: there is nothing left."""
    return [candidate for candidate in order if candidate not in trials.known][:count]


class SamplerProposer:
    """Asks one of the samplers, in batches of ``batch`` candidates before any is scored.

    Batches are counted from the first trial, so that one that was broken is finished as it was begun.
    """

    def __init__(
        self,
        trials: Trials,
        *,
        sampler: str,
        rng_seed: int,
        batch: int,
        prior: Callable[[Candidate], float] | None = None,
    ) -> None:
        self.trials, self.batch = trials, batch
        self.study = SampledStudy(trials.space, sampler=sampler, rng_seed=rng_seed, prior=prior)
        known = list(trials.known)
        num_whole = len(known) - len(known) % batch
        for candidate in known[:num_whole]:
            self.study.add(trials.known[candidate])
        self.begun = known[num_whole:]  # of a batch that is not finished

    def propose(self, count: int) -> list[Candidate]:
        """At most so many candidates, none twice; none: there is nothing left."""
        known = self.trials.known
        for candidate in [one for one in self.study.asked if one in known]:
            self.study.tell(candidate, known[candidate].values, constraints=known[candidate].constraints)
        count = min(count, self.batch - len(self.begun), self.trials.num_left)
        found: dict[Candidate, None] = {}
        for _ in range(count + len(self.begun) + MOST_IN_VAIN):
            if len(found) == count:
                break
            candidate = self.study.ask()
            if candidate not in known:
                found[candidate] = None
                self.trials.notes[candidate] = self.study.read_notes(candidate)
        for candidate in self.begun:
            if candidate not in self.study.asked:
                self.study.add(known[candidate])
        self.begun = []
        return list(found)


@explain_outage()
def run_search(trials: Trials, propose: Propose, score: Score, *, target: int, batch: int) -> None:
    """Propose, score, keep and show until ``target`` candidates carry a value, or none is left.

    A search that skips ``SKIPPED_PER_TRIAL`` times as many ends too: what is left is hopeless.

    Args:
        trials: of the study.
        propose: says what comes next, at most so many.
        score: scores what was proposed, in the order in which results are kept.
        target: how many candidates are to carry a value.
        batch: how many are proposed at once.

    Raises:
        ResourceError: candidate after candidate cannot be scored, or the database goes away.
    """
    failed_in_a_row = 0
    while (left := target - trials.num_complete) > 0 and trials.num_skipped < SKIPPED_PER_TRIAL * target:
        candidates = propose(min(left, batch))
        if not candidates:
            return
        with keeping_some(trials.keep) as keep:
            for scored in score(candidates):
                keep(scored)
                failed_in_a_row = 0 if scored.failure is None else failed_in_a_row + 1
                if failed_in_a_row >= MOST_FAILED_IN_A_ROW:
                    raise ResourceError(
                        f"{failed_in_a_row} candidates in a row failed, the last one so: {scored.failure}"
                    )
