"""The one loop of a search: a batch of candidates is proposed, scored, kept and told, until the budget is spent.

One process runs it, and alone writes. What a candidate is worth is handed in. Scores and trials go into the study's score
store in one transaction, then Optuna is told; where a process dies between the two, that is when the study goes on.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import optuna
from optuna.trial import FrozenTrial, TrialState

from seed import interrupts
from seed.errors import ResourceError, StudyError
from seed.optimize.sampler import (
    UNSKIPPED_STATES,
    candidate_of,
    flag_distributions,
    flags_of,
    make_sampler,
    make_subset_sampler,
)
from seed.optimize.space import contains
from seed.optimize.storage import explain_outage
from seed.optimize.study import Limits, describe_candidate, describe_evaluation, make_trial, values_of
from seed.optimize.subset_sampler import FINAL, FLAG, INTERRUPTED, MOST_FAILURES, TAKEN_STATES, VERDICT, weigh_failure
from seed.records import Candidate, Scored, SearchSpace, TrialRecord, hash_text
from seed.scores import ScoreStore

SKIPPED_PER_TRIAL = 4
MOST_FAILED_IN_A_ROW = 5  # then it is not the candidates
MOST_IN_VAIN = 20  # proposals of a batch that are no candidates, or were scored before
KEEP_SECONDS = 0.25  # between two transactions: what a killed process has to score again

T = TypeVar("T")
Score = Callable[[Sequence[Candidate]], Iterator[Scored]]


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
    """The trials of a study: in its score store, which holds all that was measured, and in Optuna, which proposes and shows.

    Args:
        study: an opened study.
        space: the candidates there are.
        store: the score store, ours to write.
        proxy: whose PPL ratio is a trial's first value.
        limits: bounds that trials carry as constraints.

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
    ) -> None:
        self.study, self.space, self.store, self.proxy, self.limits = study, space, store, proxy, limits
        self.listeners: list[Callable[[TrialRecord], None]] = []
        self.asked: dict[Candidate, optuna.Trial] = {}  # and not told yet
        self.complete: set[Candidate] = set()  # these three: of the space
        self.skipped: set[Candidate] = set()
        self.failed: set[Candidate] = set()  # that cannot be scored
        self._reconcile(store.read_trials())

    def count_taken(self, *, retry_skipped: bool) -> int:
        """How many candidates are not asked for any more."""
        return len(self.complete) + len(self.failed) + len(self.asked) + (0 if retry_skipped else len(self.skipped))

    def ask(self) -> Candidate | None:
        """Make a trial of the candidate that the study's sampler proposes; None: it proposed what is no candidate."""
        trial = self.study.ask()
        try:
            flags = {name: trial.suggest_categorical(name, FLAG.choices) for name in flag_distributions(self.space)}
            candidate: Candidate | None = candidate_of(self.space, flags)
        except ValueError:  # somebody queued what no flag can be
            candidate = None
        if (
            candidate is None
            or not contains(self.space, candidate)
            or candidate in self.asked
            or candidate in self.complete
        ):
            trial.set_user_attr(VERDICT, INTERRUPTED)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        for name, value in describe_candidate(candidate).items():
            trial.set_user_attr(name, value)
        self.asked[candidate] = trial
        return candidate

    def count_waiting(self) -> int:
        """How many trials are queued, by us or by somebody else; they are asked first."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def keep(self, scored: Sequence[Scored]) -> None:
        """Keep what was scored, and tell Optuna."""
        rows = [row for one in scored for row in one.rows]
        try:
            records = self._describe(scored)
        except BaseException:  # the database went away: what was measured need not be measured again
            self.store.keep(rows)
            raise
        self.store.keep(rows, records)
        trials = {one.candidate: self.asked.pop(one.candidate, None) for one in scored}
        for record in records:
            self._tell(record, trials[record.evaluation.candidate])
            self._learn(record)
        for one in scored:
            if one.failure is not None:
                self._fail(one.candidate, one.failure, trials[one.candidate])
        for record in records:
            for hear in self.listeners:
                hear(record)

    @contextlib.contextmanager
    def heard_by(self, hear: Callable[[TrialRecord], None]) -> Iterator[None]:
        """Let somebody hear of every trial that is finished until the block ends."""
        self.listeners.append(hear)
        try:
            yield
        finally:
            self.listeners.remove(hear)

    @contextlib.contextmanager
    def keeping(self) -> Iterator[Callable[[Scored], None]]:
        """Yield what to hand scored candidates to; some at a time, and whatever happens all of them, are kept.

        Candidates that were asked for and not scored when the block fails are asked for again, through no fault of theirs.
        """
        try:
            with keeping_some(self.keep) as hear:
                yield hear
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong first is what is told
                for trial in self.asked.values():
                    trial.set_user_attr(VERDICT, INTERRUPTED)
            raise

    def _learn(self, record: TrialRecord) -> None:
        candidate = record.evaluation.candidate
        if not contains(self.space, candidate):
            return
        if record.state == "COMPLETE":
            self.complete.add(candidate)
            self.skipped.discard(candidate)
        elif record.evaluation.explain_failure(self.proxy):
            self.failed.add(candidate)
        else:
            self.skipped.add(candidate)

    def _describe(self, scored: Sequence[Scored]) -> list[TrialRecord]:
        """Records of what was scored; trials that were asked for show it already, so that they need only be told."""
        records, number = [], len(self.study.get_trials(deepcopy=False))
        for evaluation in [one.evaluation for one in scored if one.evaluation is not None]:
            trial = self.asked.get(evaluation.candidate)
            state = "COMPLETE" if values_of(evaluation, proxy=self.proxy) else "PRUNED"
            if trial is None:
                records.append(TrialRecord(number=number, state=state, evaluation=evaluation))
                number += 1
                continue
            records.append(TrialRecord(number=trial.number, state=state, evaluation=evaluation))
            for name, value in describe_evaluation(evaluation, proxy=self.proxy).items():
                trial.set_user_attr(name, value)
            for name, excess in self.limits.measure(evaluation, proxy=self.proxy).items():
                trial.set_constraint(name, excess)
        return records

    def _tell(self, record: TrialRecord, trial: optuna.Trial | None) -> None:
        if trial is None:
            self.study.add_trial(make_trial(record, self.space, proxy=self.proxy, limits=self.limits))
        else:
            self.study.tell(trial, values_of(record.evaluation, proxy=self.proxy), state=TrialState[record.state])

    def _fail(self, candidate: Candidate, reason: str, trial: optuna.Trial | None) -> None:
        self.failed.add(candidate)
        said = {"failed": reason, VERDICT: FINAL}
        if trial is None:
            self.study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.FAIL,
                    params=flags_of(self.space, candidate),
                    distributions=flag_distributions(self.space),
                    user_attrs=describe_candidate(candidate) | said,
                )
            )
            return
        for name, value in said.items():
            trial.set_user_attr(name, value)
        self.study.tell(trial, state=TrialState.FAIL)

    def _reconcile(self, records: Sequence[TrialRecord]) -> None:
        """Tell Optuna what the store holds beyond it, and end what a killed process left running; it is asked for again."""
        known = {trial.number: trial for trial in self.study.get_trials(deepcopy=False)}
        ours = {record.number: record for record in records}
        for number, trial in known.items():
            if not self._agrees(trial, ours.get(number)):
                raise StorageMismatchError(
                    f"{self.store.path}: does not hold what trial {number} of the Optuna study {self.study.study_name} says. Restore it "
                    "from a copy, or start a study of another name (--study NAME)."
                )
        count = len(known)
        for record in records:
            self._learn(record)
            if record.number not in known:
                for _ in range(record.number - count):  # numbers stay as they are
                    self.study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
                self.study.add_trial(make_trial(record, self.space, proxy=self.proxy, limits=self.limits))
                count = record.number + 1
            elif known[record.number].state == TrialState.RUNNING:
                values = values_of(record.evaluation, proxy=self.proxy)
                self.study.tell(record.number, values, state=TrialState[record.state])
        self._end_running()

    def _agrees(self, trial: FrozenTrial, record: TrialRecord | None) -> bool:
        """Is a trial as it was kept, or at least on its way there?"""
        if record is None:
            return trial.state not in (TrialState.COMPLETE, TrialState.PRUNED)
        is_whole = flag_distributions(self.space).keys() <= trial.params.keys()
        is_same = is_whole and candidate_of(self.space, trial.params) == record.evaluation.candidate
        return is_same and trial.state.name in (record.state, "RUNNING")

    def _end_running(self) -> None:
        deaths: dict[Candidate, int] = {}
        running = []
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.FAIL, TrialState.RUNNING)):
            is_whole = flag_distributions(self.space).keys() <= trial.params.keys()
            candidate = candidate_of(self.space, trial.params) if is_whole else None
            if candidate is not None:
                deaths[candidate] = deaths.get(candidate, 0) + weigh_failure(trial)
            if trial.state == TrialState.RUNNING:
                running.append((trial, candidate))
        for trial, candidate in running:
            self.study.tell(trial.number, state=TrialState.FAIL)
            if candidate is not None and contains(self.space, candidate) and deaths[candidate] < MOST_FAILURES:
                self.study.enqueue_trial(trial.params)
        hopeless = {candidate for candidate, count in deaths.items() if count >= MOST_FAILURES}
        self.failed |= {candidate for candidate in hopeless - self.complete if contains(self.space, candidate)}


class Proposer(Protocol):
    """Says what is to be scored next. ``batch``: so many at once."""

    batch: int

    def propose(self, count: int) -> list[Candidate]:
        """At most so many candidates, none twice; none: there is nothing left."""


class EnumeratedProposer:
    """Goes through candidates in a given order, neighbours beside one another."""

    def __init__(self, trials: Trials, order: Sequence[Candidate], *, batch: int, retry_skipped: bool) -> None:
        self.trials, self.batch = trials, batch
        self.order = list(dict.fromkeys(order))
        self.retry_skipped = retry_skipped

    def propose(self, count: int) -> list[Candidate]:
        taken = self.trials.complete | self.trials.failed
        taken |= set() if self.retry_skipped else self.trials.skipped
        return [candidate for candidate in self.order if candidate not in taken][:count]


class SamplerProposer:
    """Asks one of the samplers.

    Args:
        trials: of the study.
        sampler: its name.
        rng_seed: of all random numbers.
        batch: how many candidates are asked for before any is scored.
        retry_skipped: ask for candidates again that were skipped.
        prior: a PPL ratio by a cheaper score, for the subset sampler.
    """

    def __init__(
        self,
        trials: Trials,
        *,
        sampler: str,
        rng_seed: int,
        batch: int,
        retry_skipped: bool,
        prior: Callable[[Candidate], float] | None = None,
    ) -> None:
        self.trials, self.batch = trials, batch
        self.sampler, self.rng_seed, self.retry_skipped = sampler, rng_seed, retry_skipped
        self.states = UNSKIPPED_STATES if retry_skipped else TAKEN_STATES
        self.subset = make_subset_sampler(trials.space, rng_seed=rng_seed, taken_states=self.states, prior=prior)

    def propose(self, count: int) -> list[Candidate]:
        found: list[Candidate] = []
        count = min(count, self.trials.count_waiting() or count)  # a batch that was broken is finished first, as it was
        for _ in range(count + MOST_IN_VAIN + self.trials.count_waiting()):
            if (
                len(found) == count
                or self.trials.count_taken(retry_skipped=self.retry_skipped) >= self.trials.space.size
            ):
                break
            self.trials.study.sampler = self.subset if self.sampler == "subset" else self._make_sampler()
            if (candidate := self.trials.ask()) is not None:
                found.append(candidate)
        return found

    def _make_sampler(self) -> optuna.samplers.BaseSampler:
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        asked = self.trials.study.get_trials(deepcopy=False, states=states)
        state = int(hash_text(f"{self.rng_seed}/{len(asked)}")[:8], 16)
        return make_sampler(self.sampler, self.trials.space, random_state=state, taken_states=self.states)


@explain_outage()
def run_search(trials: Trials, proposer: Proposer, score: Score, *, target: int, retry_skipped: bool = False) -> None:
    """Propose, score, keep and tell until ``target`` candidates carry a value, or none is left.

    A search that skips ``SKIPPED_PER_TRIAL`` times as many ends too: what is left is hopeless.

    Args:
        trials: of the study.
        proposer: what comes next.
        score: scores a batch, in the order in which results are kept.
        target: how many candidates are to carry a value.
        retry_skipped: candidates that were skipped are asked for again, so that none makes the rest hopeless.

    Raises:
        ResourceError: candidate after candidate cannot be scored, or the database goes away.
    """
    failed_in_a_row = 0
    while (left := target - len(trials.complete)) > 0:
        if not retry_skipped and len(trials.skipped) >= SKIPPED_PER_TRIAL * target:
            return
        with trials.keeping() as keep:
            batch = proposer.propose(min(left, proposer.batch))
            if not batch:
                return
            for scored in score(batch):
                keep(scored)
                failed_in_a_row = 0 if scored.failure is None else failed_in_a_row + 1
                if failed_in_a_row >= MOST_FAILED_IN_A_ROW:
                    raise ResourceError(
                        f"{failed_in_a_row} candidates in a row failed, the last one so: {scored.failure}"
                    )
