"""The Optuna study: opened, repaired, asked and told. What a candidate is worth is handed in.

Embedded storage is a journal in the study's folder: no server, no locks between processes that matter,
and readable by Optuna Dashboard while a search runs.
"""

import json
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
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
IDENTITY = "seed:identity"  # of a study that hosts share: what the fingerprint is of


def open_study(
    storage: BaseStorage, *, name: str, rung: str, fingerprint: str, identity: Mapping[str, Any] | None = None
) -> optuna.Study:
    """Create or continue the study with objectives PPL ratio and latency ratio, both to be minimised.

    Args:
        storage: that holds it.
        name: of the study.
        rung: whose PPL ratio is the first objective.
        fingerprint: of what decides the meaning of its numbers.
        identity: that itself, for other hosts to compare with theirs.

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
        if identity is not None:
            storage.set_study_system_attr(study._study_id, IDENTITY, dict(identity))
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


def read_identity(study: optuna.Study) -> dict[str, Any] | None:
    """What another host, or we, said when the study was created; None: a study of one host, or of an earlier version."""
    found = study._storage.get_study_system_attrs(study._study_id).get(IDENTITY)
    return found if isinstance(found, dict) else None


def complete_keys(study: optuna.Study, space: SearchSpace) -> set[str]:
    """Keys of the candidates of the space that carry a value."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found = (candidate_of(space, trial.params) for trial in complete)
    return {candidate.key for candidate in found if contains(space, candidate)}


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


def read_shared_rows(study: optuna.Study, keys: Mapping[int, str]) -> list[list[SweepRow]]:
    """Return what trials carry of the losses by document of their candidates, each with the dense model's on that host.

    Args:
        study: an opened study.
        keys: of the candidates, by the trial's number.

    Raises:
        StudyError: a trial was stored by another version of Seed.
    """
    found: list[list[SweepRow]] = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if trial.number not in keys or LOSSES not in trial.system_attrs:
            continue
        try:
            rows = msgspec.json.decode(trial.system_attrs[LOSSES], type=list[SweepRow])
        except (msgspec.DecodeError, TypeError) as error:
            raise StudyError(
                f"study {study.study_name}: losses of trial {trial.number} were stored by another version of Seed ({error}). Use "
                "that version, or start a study of another name (--study NAME)."
            ) from error
        found.append([row for row in rows if row.key in (keys[trial.number], "dense")])
    return found
