"""Trials of a study: asked for or taken from a list, evaluated, told; by one worker or by many.

What a candidate is worth is handed in, and who may evaluate which one ``teamwork`` decides.
"""

import time
from collections.abc import Callable, Sequence

import optuna
from optuna.trial import TrialState

from seed.errors import CandidateError, ResourceError
from seed.optimize.sampler import (
    UNSKIPPED_STATES,
    candidate_of,
    flag_distributions,
    flags_of,
    make_sampler,
    make_subset_sampler,
    taken_keys,
)
from seed.optimize.study import (
    EVALUATION,
    complete_keys,
    describe_evaluation,
    judge_evaluation,
    read_trials,
    spell_evaluation,
    values_of,
)
from seed.optimize.subset import TAKEN_STATES
from seed.optimize.teamwork import ALONE, Claims, Standing, Worker
from seed.records import Candidate, Evaluation, SearchSpace, TrialRecord, hash_text
from seed.sharing import Shares, choose_next, cut_stretches

SKIPPED_PER_TRIAL = 4
MOST_FAILED_IN_A_ROW = 5  # then it is not the candidates
WAIT_SECONDS = 0.2  # between looks at a study of which others do the rest


def run_trials(
    study: optuna.Study,
    space: SearchSpace,
    *,
    trials: int,
    sampler: str,
    rng_seed: int,
    rung: str,
    evaluate: Callable[[Candidate], Evaluation],
    order: Sequence[Candidate] = (),
    prior: Callable[[Candidate], float] | None = None,
    retry_skipped: bool = False,
    worker: Worker = ALONE,
    attach: Callable[[Candidate], dict[str, str]] = lambda candidate: {},
    on_trial: Callable[[TrialRecord], None] = lambda trial: None,
    on_wait: Callable[[], None] = lambda: None,
) -> None:
    """Ask, evaluate and tell until ``trials`` candidates carry a value at ``rung`` or the space is exhausted.

    A search that skips ``SKIPPED_PER_TRIAL`` times as many ends too: what is left is hopeless. Workers of one study never
    evaluate the same candidate, and together evaluate no more than the budget. Random state comes from ``rng_seed`` and the
    number of trials that did not fail, and trials of killed processes do not count, so that a resumed run asks what an
    unbroken one would.

    Args:
        study: an opened study.
        space: the candidates there are.
        trials: how many are to carry a value, whoever evaluates them.
        sampler: chooses candidates, where no order is given.
        rng_seed: of all random numbers.
        rung: whose PPL ratio is a trial's first value.
        evaluate: scores a candidate.
        order: candidates to evaluate instead, neighbours beside one another.
        prior: a PPL ratio by a cheaper score, for the subset sampler.
        retry_skipped: ask for candidates again that were skipped.
        worker: who we are.
        attach: what else a scored candidate's trial carries, as system attributes.
        on_trial: hears of every trial that is finished, whoever did it.
        on_wait: called now and then while others do what is left.

    Raises:
        ResourceError: candidate after candidate cannot be evaluated.
    """
    target = min(trials, space.size)
    states = UNSKIPPED_STATES if retry_skipped else TAKEN_STATES
    subset = make_subset_sampler(space, rng_seed=rng_seed, taken_states=states, prior=prior)
    claims = Claims(study, space, worker=worker, states=states)
    news = News(study)
    queue = Queue(order)
    failed_in_a_row = 0
    while True:
        for record in news.read():
            on_trial(record)
        standing = claims.look()
        is_hopeless = not retry_skipped and standing.skipped >= SKIPPED_PER_TRIAL * trials
        is_exhausted = len(standing.taken) >= space.size
        if standing.complete >= target or is_hopeless or (is_exhausted and not standing.running):
            return
        if is_exhausted or standing.complete + len(standing.running) >= target:
            on_wait()  # who is running may fail, or be dead
            time.sleep(WAIT_SECONDS)
            continue
        began = time.monotonic()
        chosen = next(iter(standing.lost.values()), None) or queue.choose(standing)
        if order and chosen is None:  # the rest is others', or not in the order
            on_wait()
            time.sleep(WAIT_SECONDS)
            continue
        if chosen is None:
            study.sampler = subset if sampler == "subset" else _make_sampler(study, space, sampler, rng_seed, states)
        trial = claims.make(chosen)
        if trial is None:
            continue
        if not claims.claim(trial, asked_seconds=time.monotonic() - began, trials=target):
            claims.pardon(trial)
            queue.stretch = None  # somebody else is in it
            continue
        candidate = candidate_of(space, trial.params)
        try:
            with worker.beat(claims.storage, trial._trial_id):
                evaluation = evaluate(candidate)
        except CandidateError as error:
            claims.condemn(trial, str(error))
            failed_in_a_row += 1
            if failed_in_a_row >= MOST_FAILED_IN_A_ROW:
                raise ResourceError(
                    f"{failed_in_a_row} candidates in a row failed, the last one so: {error}"
                ) from error
            continue
        except BaseException:
            claims.pardon(trial)
            raise
        failed_in_a_row = 0
        values = values_of(evaluation, rung=rung)
        claims.tell(
            trial,
            values,
            user_attrs=describe_evaluation(evaluation, rung=rung),
            system_attrs={
                EVALUATION: spell_evaluation(evaluation),
                **judge_evaluation(evaluation, rung=rung),
                **(attach(candidate) if values else {}),
            },
        )


def _make_sampler(
    study: optuna.Study, space: SearchSpace, name: str, rng_seed: int, states: tuple[TrialState, ...]
) -> optuna.samplers.BaseSampler:
    # those that run are others': workers that ask for the same trial would draw the same set
    asked = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING))
    state = int(hash_text(f"{rng_seed}/{len(asked)}")[:8], 16)
    return make_sampler(name, space, random_state=state, taken_states=states)


def add_trials(
    study: optuna.Study,
    space: SearchSpace,
    order: Sequence[Candidate],
    *,
    trials: int,
    rung: str,
    evaluate: Callable[[Candidate], Evaluation],
    retry_skipped: bool = False,
    shares: Shares | None = None,
    on_trial: Callable[[TrialRecord], None] = lambda trial: None,
) -> None:
    """Evaluate candidates in a given order until ``trials`` of them carry a value at ``rung``, or none is left.

    They are added as finished trials, which costs Optuna a tenth of asking for them. Those the study has are passed over.
    With ``shares``, processes of one host do so together; each walks a part of the order.
    """
    distributions = flag_distributions(space)
    states = UNSKIPPED_STATES if retry_skipped else TAKEN_STATES
    order = list(dict.fromkeys(order))
    news = News(study)  # before what is known is read: what others finish meanwhile is then known twice, and not never
    taken, complete = taken_keys(study, space, states=states), complete_keys(study, space)

    def learn() -> None:
        for record in news.read():
            key = record.evaluation.candidate.key
            taken.add(key)
            if record.state == "COMPLETE":
                complete.add(key)
            on_trial(record)

    walk = (shares or Shares(None)).walk
    for piece in walk(len(order), is_done=lambda piece: order[piece].key in taken, refresh=learn):
        if len(complete) >= trials:
            return
        candidate = order[piece]
        evaluation = evaluate(candidate)
        values = values_of(evaluation, rung=rung)
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if values else TrialState.PRUNED,
                values=values,
                params=flags_of(space, candidate),
                distributions=distributions,
                user_attrs=describe_evaluation(evaluation, rung=rung),
                system_attrs={EVALUATION: spell_evaluation(evaluation), **judge_evaluation(evaluation, rung=rung)},
            )
        )
        learn()


class Queue:
    """Candidates in an order, of which each worker chooses where nobody is, and then goes on with the neighbour."""

    def __init__(self, order: Sequence[Candidate]) -> None:
        self.order = order
        self.stretches = cut_stretches(len(order))
        self.stretch: range | None = None  # where we are

    def choose(self, standing: Standing) -> Candidate | None:
        """Return the next candidate that nobody has; None where there is none."""
        running = set(standing.running.values())
        piece, self.stretch = choose_next(
            self.stretches,
            self.stretch,
            is_taken=lambda piece: self.order[piece].key in standing.taken,
            is_running=lambda piece: self.order[piece].key in running,
        )
        return None if piece is None else self.order[piece]


class News:
    """What has been finished in a study since it was looked at last, by whomever."""

    def __init__(self, study: optuna.Study) -> None:
        self.study = study
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        self._known = {trial.number for trial in finished}

    def read(self) -> tuple[TrialRecord, ...]:
        """Return the trials that were scored or skipped since the last call."""
        found = read_trials(self.study, but=self._known)
        self._known |= {record.number for record in found}
        return found
