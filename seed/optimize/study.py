"""The Optuna study: opened, repaired, asked and told. What a candidate is worth is handed in.

Embedded storage is a journal in the study's folder: no server, no locks between processes that matter,
and readable by Optuna Dashboard while a search runs.
"""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from seed.errors import StudyError
from seed.optimize.sampler import (
    UNSKIPPED_STATES,
    candidate_of,
    flag_distributions,
    flags_of,
    make_sampler,
    make_subset_sampler,
    taken_keys,
)
from seed.optimize.space import contains
from seed.optimize.subset import TAKEN_STATES
from seed.records import Candidate, Evaluation, SearchSpace, TrialRecord, find_runs, hash_text

EVALUATION = "evaluation"
FINGERPRINT = "plan_fingerprint"
SKIPPED_PER_TRIAL = 4
CHOOSING_SECONDS = 60.0  # a worker that has not chosen its flags by then is taken for dead


def open_study(storage: BaseStorage, *, name: str, rung: str, fingerprint: str) -> optuna.Study:
    """Create or continue the study with objectives PPL ratio and latency ratio, both to be minimised.

    Raises:
        StudyError: a study of this name in this storage was planned otherwise.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage, study_name=name, directions=["minimize", "minimize"], load_if_exists=True
    )
    known = study.user_attrs.get(FINGERPRINT)
    if known is not None and known != fingerprint:
        raise StudyError(
            f"study {name}: the storage holds a study of this name with another plan. Choose another name with --study NAME."
        )
    if known is None:
        study.set_user_attr(FINGERPRINT, fingerprint)
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([f"PPL ratio ({rung.replace('_', ' ')})", "latency ratio"])
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    return study


def run_trials(
    study: optuna.Study,
    space: SearchSpace,
    *,
    trials: int,
    sampler: str,
    rng_seed: int,
    rung: str,
    evaluate: Callable[[Candidate], Evaluation],
    prior: Callable[[Candidate], float] | None = None,
    retry_skipped: bool = False,
    on_trial: Callable[[TrialRecord], None] = lambda trial: None,
) -> None:
    """Ask, evaluate and tell until ``trials`` candidates carry a value at ``rung`` or the space is exhausted.

    A search that skips ``SKIPPED_PER_TRIAL`` times as many ends too: what is left is hopeless. Workers of one study never
    evaluate the same candidate. Random state comes from ``rng_seed`` and the number of trials that did not fail, and trials
    of killed processes do not count, so that a resumed run asks what an unbroken one would. ``prior`` is a PPL ratio by a
    cheaper score, for the subset sampler.
    """
    distributions = flag_distributions(space)
    target = min(trials, space.size)
    states = UNSKIPPED_STATES if retry_skipped else TAKEN_STATES
    subset = make_subset_sampler(space, rng_seed=rng_seed, taken_states=states, prior=prior)
    claims = Claims(study, space, states=states)
    while True:
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        num_skipped = sum(trial.state == TrialState.PRUNED for trial in finished)
        is_hopeless = not retry_skipped and num_skipped >= SKIPPED_PER_TRIAL * trials
        is_exhausted = len(taken_keys(study, space, states=states)) >= space.size
        if count_complete(study, space) >= target or is_exhausted or is_hopeless:
            return
        if sampler == "subset":
            study.sampler = subset
        else:
            state = int(hash_text(f"{rng_seed}/{len(finished)}")[:8], 16)
            study.sampler = make_sampler(sampler, space, random_state=state, taken_states=states)
        began = time.monotonic()
        trial = study.ask(fixed_distributions=distributions)
        if not claims.claim(trial, asked_seconds=time.monotonic() - began):
            study.tell(trial, state=TrialState.FAIL)
            continue
        candidate = candidate_of(space, trial.params)
        try:
            evaluation = evaluate(candidate)
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            raise
        for name, value in describe_evaluation(evaluation).items():
            trial.set_user_attr(name, value)
        study._storage.set_trial_system_attr(trial._trial_id, EVALUATION, spell_evaluation(evaluation))
        values = values_of(evaluation, rung=rung)
        study.tell(trial, values, state=None if values else TrialState.PRUNED)
        on_trial(_record(trial.number, evaluation, values))


class Claims:
    """Makes sure that no two workers of a study evaluate the same candidate.

    A storage keeps no two trials from holding the same flags. So a worker that has written its flags looks around before it
    evaluates: it waits for lower-numbered trials that are still choosing, and gives way to those that hold its set (the
    bakery algorithm, Lamport 1974, with trial numbers as tickets). A worker that took so long to choose that others may have
    stopped waiting gives way to higher numbers too.
    """

    def __init__(
        self, study: optuna.Study, space: SearchSpace, *, states: tuple[TrialState, ...] = TAKEN_STATES
    ) -> None:
        self.study, self.space, self.states = study, space, states
        self.flags = set(flag_distributions(space))
        self.given_up: set[int] = set()  # trials that never chose: their workers are gone

    def claim(self, trial: optuna.Trial, *, asked_seconds: float) -> bool:
        """Is this trial's candidate ours? ``asked_seconds``: from before the trial was made until its flags were written."""
        ours = candidate_of(self.space, trial.params).key
        until = time.monotonic() + CHOOSING_SECONDS
        while True:
            others = [other for other in self.study.get_trials(deepcopy=False) if other.number != trial.number]
            choosing = {
                other.number
                for other in others
                if other.number < trial.number
                and other.state == TrialState.RUNNING
                and not self.flags <= set(other.params)
            } - self.given_up
            if not choosing:
                break
            if time.monotonic() > until:
                self.given_up |= choosing
                break
            time.sleep(0.02)
        is_late = asked_seconds > CHOOSING_SECONDS / 2
        return not any(
            other.state in self.states
            and self.flags <= set(other.params)
            and candidate_of(self.space, other.params).key == ours
            and (is_late or other.number < trial.number)
            for other in others
        )


def add_trials(
    study: optuna.Study,
    space: SearchSpace,
    order: Iterable[Candidate],
    *,
    trials: int,
    rung: str,
    evaluate: Callable[[Candidate], Evaluation],
    retry_skipped: bool = False,
    on_trial: Callable[[TrialRecord], None] = lambda trial: None,
) -> None:
    """Evaluate candidates in a given order until ``trials`` of them carry a value at ``rung``, or none is left.

    They are added as finished trials, which costs Optuna a tenth of asking for them. Those the study has are passed over.
    """
    distributions = flag_distributions(space)
    taken = taken_keys(study, space, states=UNSKIPPED_STATES if retry_skipped else TAKEN_STATES)
    complete, number = count_complete(study, space), len(study.get_trials(deepcopy=False))
    for candidate in order:
        if complete >= trials:
            return
        if candidate.key in taken:
            continue
        taken.add(candidate.key)
        evaluation = evaluate(candidate)
        values = values_of(evaluation, rung=rung)
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if values else TrialState.PRUNED,
                values=values,
                params=flags_of(space, candidate),
                distributions=distributions,
                user_attrs=describe_evaluation(evaluation),
                system_attrs={EVALUATION: spell_evaluation(evaluation)},
            )
        )
        complete += bool(values)
        on_trial(_record(number, evaluation, values))
        number += 1


def count_complete(study: optuna.Study, space: SearchSpace) -> int:
    """How many candidates of the space carry a value."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sum(contains(space, candidate_of(space, trial.params)) for trial in complete)


def describe_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """A trial's user attributes, which Optuna Dashboard shows: few and short."""
    candidate = evaluation.candidate
    known: dict[str, Any] = {
        "kept": spell_layers(candidate.kept_layers),
        "dropped": ", ".join(candidate.dropped_parts),
        "num_params": evaluation.size.num_params,
    }
    return known | ({"skipped": evaluation.skipped_because} if evaluation.skipped_because else {})


def spell_layers(layers: Sequence[int]) -> str:
    """``0, 2-6, 8``: runs of three and more are joined."""
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in find_runs(layers))


def spell_evaluation(evaluation: Evaluation) -> str:
    """The whole evaluation as JSON: a system attribute, since 2 kB in one line would push all else off the dashboard."""
    return json.dumps(msgspec.to_builtins(evaluation))


def values_of(evaluation: Evaluation, *, rung: str) -> list[float] | None:
    """A trial's values, or None when it was skipped or has none."""
    value = evaluation.qualities[rung].ppl_ratio if rung in evaluation.qualities else math.nan
    if evaluation.skipped_because or not math.isfinite(value):
        return None
    return [value, evaluation.latency.ratio]


def _record(number: int, evaluation: Evaluation, values: list[float] | None) -> TrialRecord:
    return TrialRecord(number=number, state="COMPLETE" if values else "PRUNED", evaluation=evaluation)


def read_trials(study: optuna.Study) -> tuple[TrialRecord, ...]:
    """Return the scored and skipped trials as records, in order."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    # studies of earlier versions hold the evaluation as a user attribute
    stored = [(trial, trial.system_attrs.get(EVALUATION, trial.user_attrs.get(EVALUATION))) for trial in finished]
    try:
        return tuple(
            TrialRecord(
                number=trial.number,
                state=trial.state.name,
                evaluation=msgspec.convert(json.loads(evaluation), Evaluation),
            )
            for trial, evaluation in stored
            if evaluation is not None
        )
    except (msgspec.DecodeError, ValueError) as error:
        raise StudyError(
            f"study {study.study_name}: a trial was stored by another version of Seed ({error}). Use that version, or start "
            "a study of another name (--study NAME)."
        ) from error
