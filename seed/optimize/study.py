"""The Optuna study that people see: opened, and what a trial of it shows. ``sampler`` asks for the next candidates.

Embedded storage is a journal in the study's folder, readable by Optuna Dashboard while a search runs.
"""

import warnings
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from seed.errors import StudyError
from seed.optimize.frontier import Limits
from seed.optimize.sampler import flag_distributions, flags_of
from seed.optimize.storage import explain_outage
from seed.records import Scored, SearchSpace

FINGERPRINT = "plan_fingerprint"
OWNER = "score_store"  # of a study in a database: which folder's scores it shows
SKIPPED, FAILED = "skipped", "failed"  # of a trial: why it has no value


@explain_outage()
def open_study(
    storage: BaseStorage, *, name: str, proxy: str, fingerprint: str, owner: int | None = None
) -> optuna.Study:
    """Create or continue the study with objectives PPL ratio and latency ratio, both to be minimised.

    Args:
        storage: that holds it.
        name: of the study.
        proxy: whose PPL ratio is the first objective.
        fingerprint: of what decides the meaning of its numbers.
        owner: the score store whose trials it shows; None: nobody else can.

    Raises:
        StudyError: a study of this name in this storage was planned otherwise.
        ResourceError: the database goes away.
    """
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
    if owner is not None and study.user_attrs.get(OWNER, owner) != owner:
        raise StudyError(
            f"study {name}: the storage shows the search of another folder under this name. Take another name with --study NAME, or "
            "leave --storage out; several machines share one search over Ray (--ray)."
        )
    if owner is not None:
        study.set_user_attr(OWNER, owner)
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([f"PPL ratio ({proxy})", "latency ratio"])
    return study


def make_trial(
    scored: Scored, space: SearchSpace, *, proxy: str, limits: Limits, notes: dict[str, Any] | None = None
) -> FrozenTrial:
    """A finished trial, to be added to a study. ``notes``: a sampler's.

    Its user attributes, which Optuna Dashboard shows, are few and short.
    """
    candidate, evaluation = scored.candidate, scored.evaluation
    shown: dict[str, Any] = {"kept": ", ".join(map(str, candidate.kept_layers)), "dropped": ", ".join(candidate.parts)}
    values, failure = None, scored.failure
    if evaluation is not None:
        failure = evaluation.explain_failure(proxy)
        if evaluation.has_value(proxy):
            values = [evaluation.qualities[proxy].ppl_ratio, evaluation.latency.ratio]
        shown["num_params"] = evaluation.size.num_params
        if evaluation.skipped_because:
            shown[SKIPPED] = evaluation.skipped_because
    if failure:
        shown[FAILED] = failure
    return optuna.trial.create_trial(
        state=TrialState.FAIL if evaluation is None else TrialState.COMPLETE if values else TrialState.PRUNED,
        values=values,
        params=flags_of(space, candidate),
        distributions=flag_distributions(space),
        user_attrs=shown,
        system_attrs=notes,
        constraints=None if evaluation is None else limits.measure(evaluation, proxy=proxy),
    )
