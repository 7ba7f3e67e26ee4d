"""The Optuna study: opened, repaired, asked and told. What a candidate is worth is handed in.

Embedded storage is a journal in the study's folder: no server, no locks between processes that matter,
and readable by Optuna Dashboard while a search runs.
"""

import json
import warnings
from collections.abc import Container, Iterable, Sequence
from typing import Any

import msgspec
import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from seed.errors import StudyError
from seed.optimize.sampler import candidate_of
from seed.optimize.space import contains
from seed.optimize.subset import FINAL, VERDICT
from seed.records import Evaluation, SearchSpace, SweepRow, TrialRecord, find_runs

EVALUATION = "evaluation"
LOSSES = "seed:losses"  # of a trial that another host may have scored: its rows of the sweep
FINGERPRINT = "plan_fingerprint"


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
    return study


def find_study(storage: BaseStorage, *, name: str) -> optuna.Study | None:
    """Return the study of this name, if the storage holds one."""
    known = {found.study_name for found in storage.get_all_studies()}
    return optuna.load_study(storage=storage, study_name=name) if name in known else None


def count_complete(study: optuna.Study, space: SearchSpace) -> int:
    """How many candidates of the space carry a value."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sum(contains(space, candidate_of(space, trial.params)) for trial in complete)


def describe_evaluation(evaluation: Evaluation, *, rung: str) -> dict[str, Any]:
    """A trial's user attributes, which Optuna Dashboard shows: few and short."""
    candidate = evaluation.candidate
    known: dict[str, Any] = {
        "kept": spell_layers(candidate.kept_layers),
        "dropped": ", ".join(candidate.dropped_parts),
        "num_params": evaluation.size.num_params,
    }
    reasons = {"skipped": evaluation.skipped_because, "failed": evaluation.explain_failure(rung)}
    return known | {name: reason for name, reason in reasons.items() if reason}


def judge_evaluation(evaluation: Evaluation, *, rung: str) -> dict[str, str]:
    """A trial's system attribute that says whether to ask for its set again: not, where its loss is not a number."""
    return {VERDICT: FINAL} if evaluation.explain_failure(rung) else {}


def spell_layers(layers: Sequence[int]) -> str:
    """``0, 2-6, 8``: runs of three and more are joined."""
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in find_runs(layers))


def spell_evaluation(evaluation: Evaluation) -> str:
    """The whole evaluation as JSON: a system attribute, since 2 kB in one line would push all else off the dashboard."""
    return json.dumps(msgspec.to_builtins(evaluation))


def values_of(evaluation: Evaluation, *, rung: str) -> list[float] | None:
    """A trial's values, or None when it was skipped or has none."""
    if evaluation.skipped_because or evaluation.explain_failure(rung):
        return None
    return [evaluation.qualities[rung].ppl_ratio, evaluation.latency.ratio]


def read_trials(study: optuna.Study, *, but: Container[int] = ()) -> tuple[TrialRecord, ...]:
    """Return the scored and skipped trials as records, in order, but for those of these numbers.

    Raises:
        StudyError: a trial was stored by another version of Seed.
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    # studies of earlier versions hold the evaluation as a user attribute
    stored = [
        (trial, trial.system_attrs.get(EVALUATION, trial.user_attrs.get(EVALUATION)))
        for trial in finished
        if trial.number not in but
    ]
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


def spell_rows(rows: Iterable[SweepRow]) -> str:
    """A candidate's losses by document as JSON, for hosts that did not score it."""
    return msgspec.json.encode(list(rows)).decode()


def read_shared_rows(study: optuna.Study, numbers: Container[int]) -> list[SweepRow]:
    """Return what the trials of these numbers carry of losses by document; none where their evaluation carries none.

    Raises:
        StudyError: a trial was stored by another version of Seed.
    """
    found: list[SweepRow] = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if trial.number not in numbers or LOSSES not in trial.system_attrs:
            continue
        try:
            found += msgspec.json.decode(trial.system_attrs[LOSSES], type=list[SweepRow])
        except (msgspec.DecodeError, TypeError) as error:
            raise StudyError(
                f"study {study.study_name}: losses of trial {trial.number} were stored by another version of Seed ({error}). Use "
                "that version, or start a study of another name (--study NAME)."
            ) from error
    return found
