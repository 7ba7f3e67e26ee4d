"""Who works on which trial of a study: every candidate is evaluated once, the budget is kept to the trial, the dead are found.

A storage knows trials, and nothing of who works on them. So a trial carries its worker's name from the moment that it is
made, and workers look at one another's trials before they evaluate. What a candidate is worth, and which one is next, is
decided elsewhere.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from seed.optimize.heartbeats import beating, fail_stale_trials, give_heartbeat
from seed.optimize.sampler import candidate_of, flag_distributions, flags_of
from seed.optimize.space import contains
from seed.optimize.subset import FINAL, MOST_FAILURES, PARDONED, TAKEN_STATES, VERDICT, settles, weigh_failure
from seed.records import Candidate, SearchSpace

WORKER = "seed:worker"  # of a trial: the name of who works on it
CHOOSING_SECONDS = 60.0  # a worker that has not chosen its flags by then is taken for dead
LOOK_SECONDS = 0.02  # between looks at trials that are choosing


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One of those who work on a study.

    Args:
        name: unlike that of any other worker, ever.
        is_there: is the worker of this name at work? None: that cannot be told from here, and its heartbeat decides.
        beat: shows the storage that a trial's worker lives, until the block ends.
    """

    name: str
    is_there: Callable[[str], bool | None]
    beat: Callable[[BaseStorage, int], AbstractContextManager[None]] = beating


ALONE = Worker(name="alone", is_there=lambda name: name == "alone")


@dataclass(kw_only=True)
class Standing:
    """How far a study is, at one moment."""

    complete: int = 0  # candidates of the space that carry a value
    skipped: int = 0
    running: dict[int, str | None] = field(default_factory=dict)  # others' candidates by number; None: still choosing
    taken: set[str] = field(default_factory=set)  # keys that are not asked for
    lost: dict[str, Candidate] = field(default_factory=dict)  # whose workers died, and which are to be tried again


def clear_study(study: optuna.Study) -> None:
    """Fail trials that wait or run, in a study that nobody else works on: no worker's name need say whose they were."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        fail_trial(study._storage, trial._trial_id)


def fail_trial(storage: BaseStorage, trial_id: int) -> None:
    """Fail a trial, unless it is finished by now."""
    with contextlib.suppress(UpdateFinishedTrialError):
        storage.set_trial_state_values(trial_id, TrialState.FAIL)


class Claims:
    """One worker's view of a study, and its claims on candidates.

    A storage keeps no two trials from holding the same flags. So a worker that has written its flags looks around before it
    evaluates: it waits for lower-numbered trials that are still choosing, and gives way to those that hold its set (the
    bakery algorithm, Lamport 1974, with trial numbers as tickets). It gives way too where complete trials and lower-numbered
    running ones make up the budget. A worker that took so long to choose that others may have stopped waiting gives way to
    higher numbers too.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        *,
        worker: Worker = ALONE,
        states: tuple[TrialState, ...] = TAKEN_STATES,
    ) -> None:
        self.study, self.space, self.worker, self.states = study, space, worker, states
        self.storage: BaseStorage = study._storage
        self.distributions = flag_distributions(space)
        self.own: int | None = None  # the trial at hand
        self.given_up: set[int] = set()  # trials that never chose: their workers are gone
        self._first_seen: dict[int, float] = {}  # running trials of workers that cannot be seen from here
        self._given: set[int] = set()  # those that got a heartbeat from us
        self._candidates: dict[int, Candidate | None] = {}  # of finished trials

    def look(self) -> Standing:
        """See how far the study is; trials of workers that are gone are failed first."""
        self.bury()
        standing = Standing()
        deaths: dict[str, int] = {}
        for trial in self.study.get_trials(deepcopy=False):
            candidate = self._read_candidate(trial)
            inside = candidate is not None and contains(self.space, candidate)
            if trial.state == TrialState.RUNNING and trial.number != self.own:
                standing.running[trial.number] = candidate.key if candidate is not None else None
            if trial.state == TrialState.PRUNED:
                standing.skipped += 1
            if candidate is None or not inside:
                continue
            standing.complete += trial.state == TrialState.COMPLETE
            if settles(trial, self.states):
                standing.taken.add(candidate.key)
            if trial.state == TrialState.FAIL:
                deaths[candidate.key] = deaths.get(candidate.key, 0) + weigh_failure(trial)
                if WORKER in trial.system_attrs and VERDICT not in trial.system_attrs:
                    standing.lost[candidate.key] = candidate
        standing.taken |= {key for key, count in deaths.items() if count >= MOST_FAILURES}
        standing.lost = {key: lost for key, lost in standing.lost.items() if key not in standing.taken}
        return standing

    def bury(self) -> None:
        """Fail trials whose workers are gone, so that their candidates are tried again."""
        fail_stale_trials(self.study)
        now = time.monotonic()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number == self.own:
                continue
            name = trial.system_attrs.get(WORKER)
            is_there = None if name is None else self.worker.is_there(name)
            is_old = is_there is None and now - self._first_seen.setdefault(trial.number, now) > CHOOSING_SECONDS
            is_ours = name == self.worker.name  # made without being told so, since the storage went away
            # without a name: of somebody else's program, or of one killed in the act
            is_gone = is_ours or is_there is False or (name is None and is_old)
            if is_gone:
                fail_trial(self.storage, trial._trial_id)
            elif is_old and trial.number not in self._given:  # killed elsewhere before its first heartbeat, perhaps
                self._given.add(trial.number)
                give_heartbeat(self.storage, trial._trial_id)

    def make(self, candidate: Candidate | None) -> optuna.Trial | None:
        """Make a trial of a candidate, or let the study's sampler choose one; None: others took us for dead meanwhile."""
        self.study._thread_local.cached_all_trials = None  # as Study.ask does: samplers shall see what is new
        trial_id = self._create({} if candidate is None else flags_of(self.space, candidate))
        trial = optuna.Trial(self.study, trial_id)
        self.own = trial.number
        try:
            for name, distribution in self.distributions.items():
                trial._suggest(name, distribution)
        except UpdateFinishedTrialError:
            self.own = None
            return None
        return trial

    def claim(self, trial: optuna.Trial, *, asked_seconds: float, trials: int | None = None) -> bool:
        """Is this trial's candidate ours to evaluate?

        Args:
            trial: with all its flags.
            asked_seconds: from before the trial was made until its flags were written.
            trials: the budget of complete trials; None: there is none.
        """
        ours = candidate_of(self.space, trial.params).key
        until = time.monotonic() + CHOOSING_SECONDS
        while True:
            others = [other for other in self.study.get_trials(deepcopy=False) if other.number != trial.number]
            choosing = {
                other.number
                for other in others
                if other.number < trial.number
                and other.state == TrialState.RUNNING
                and not self.distributions.keys() <= other.params.keys()
                and self._may_choose(other)
            } - self.given_up
            if not choosing:
                break
            if time.monotonic() > until:
                self.given_up |= choosing
                break
            time.sleep(LOOK_SECONDS)
        is_late = asked_seconds > CHOOSING_SECONDS / 2
        counted = 0
        for other in others:
            candidate = self._read_candidate(other)
            if candidate is None or not contains(self.space, candidate):
                continue
            is_before = is_late or other.number < trial.number
            if settles(other, self.states) and candidate.key == ours and is_before:
                return False
            counted += other.state == TrialState.COMPLETE or (other.state == TrialState.RUNNING and is_before)
        return trials is None or counted < trials

    def pardon(self, trial: optuna.Trial) -> None:
        """Fail a trial, through no fault of its candidate's."""
        self._close(trial, PARDONED)

    def condemn(self, trial: optuna.Trial, reason: str) -> None:
        """Fail a trial whose candidate cannot be evaluated, and say why; it is not asked for again."""
        with contextlib.suppress(UpdateFinishedTrialError):
            trial.set_user_attr("failed", reason)
        self._close(trial, FINAL)

    def tell(
        self,
        trial: optuna.Trial,
        values: list[float] | None,
        *,
        user_attrs: Mapping[str, Any],
        system_attrs: Mapping[str, str],
    ) -> bool:
        """Finish a trial; without values it is pruned. False: others took us for dead, and it is not ours any more."""
        try:
            for name, value in user_attrs.items():
                trial.set_user_attr(name, value)
            for name, text in system_attrs.items():
                self.storage.set_trial_system_attr(trial._trial_id, name, text)
            self.study.tell(trial, values, state=None if values else TrialState.PRUNED)
        except (UpdateFinishedTrialError, ValueError):  # Optuna's word for a trial that is finished already
            if not self.storage.get_trial(trial._trial_id).state.is_finished():
                raise
            return False
        finally:
            self.own = None
        return True

    def _create(self, flags: dict[str, int]) -> int:
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=flags,
            distributions={name: self.distributions[name] for name in flags},
            system_attrs={WORKER: self.worker.name},
        )
        return self.storage.create_new_trial(self.study._study_id, template_trial=template)

    def _close(self, trial: optuna.Trial, verdict: str) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):
            self.storage.set_trial_system_attr(trial._trial_id, VERDICT, verdict)
        fail_trial(self.storage, trial._trial_id)
        self.own = None

    def _may_choose(self, trial: FrozenTrial) -> bool:
        name = trial.system_attrs.get(WORKER)
        if name is None or self.worker.is_there(name) is not False:
            return True
        fail_trial(self.storage, trial._trial_id)
        return False

    def _read_candidate(self, trial: FrozenTrial) -> Candidate | None:
        """The candidate of a trial that has chosen."""
        if trial.number in self._candidates:
            return self._candidates[trial.number]
        whole = self.distributions.keys() <= trial.params.keys()
        found = candidate_of(self.space, trial.params) if whole else None
        if trial.state.is_finished():
            self._candidates[trial.number] = found
        return found
