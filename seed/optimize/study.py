"""The Optuna study: opened, and what a trial of it shows. What was measured lies in the study's score store.

Embedded storage is a journal in the study's folder, readable by Optuna Dashboard while a search runs.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from seed.errors import StudyError
from seed.optimize.sampler import flag_distributions, flags_of
from seed.optimize.storage import explain_outage
from seed.optimize.subset_sampler import FINAL, VERDICT
from seed.records import Candidate, Evaluation, SearchSpace, TrialRecord, find_runs

FINGERPRINT = "plan_fingerprint"
OWNER = "score_store"  # of a study in a database: which folder's scores it shows


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that candidates are to keep, which trials carry as constraints; None: there is no such bound."""

    max_ppl_ratio: float | None = None
    max_latency_ratio: float | None = None
    max_memory_bytes: float | None = None
    cached_tokens: int = 0  # of the timed workload, whose KV cache counts as memory

    def measure(self, evaluation: Evaluation, *, proxy: str) -> dict[str, float]:
        """By how much each bound is exceeded, by name; 0 or less where it is kept."""
        size, found = evaluation.size, {}
        if self.max_ppl_ratio is not None and values_of(evaluation, proxy=proxy):
            found["PPL ratio"] = evaluation.qualities[proxy].ppl_ratio - self.max_ppl_ratio
        if self.max_latency_ratio is not None:
            found["latency ratio"] = evaluation.latency.ratio - self.max_latency_ratio
        if self.max_memory_bytes is not None:
            memory = size.weight_bytes + size.kv_bytes_per_token * self.cached_tokens
            found["memory bytes"] = memory - self.max_memory_bytes
        return found


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
            study.set_metric_names([f"PPL ratio ({proxy.replace('_', ' ')})", "latency ratio"])
    return study


def describe_candidate(candidate: Candidate) -> dict[str, Any]:
    """A trial's user attributes before it is scored, which Optuna Dashboard shows: few and short."""
    return {"kept": spell_layers(candidate.kept_layers), "dropped": ", ".join(candidate.dropped_parts)}


def describe_evaluation(evaluation: Evaluation, *, proxy: str) -> dict[str, Any]:
    """A trial's user attributes once it is scored; a set whose loss is no number is not asked for again."""
    failed = evaluation.explain_failure(proxy)
    known: dict[str, Any] = {"num_params": evaluation.size.num_params}
    reasons = {"skipped": evaluation.skipped_because, "failed": failed, VERDICT: FINAL if failed else None}
    return known | {name: reason for name, reason in reasons.items() if reason}


def make_trial(record: TrialRecord, space: SearchSpace, *, proxy: str, limits: Limits) -> FrozenTrial:
    """A finished trial, to be added to a study."""
    evaluation = record.evaluation
    return optuna.trial.create_trial(
        state=TrialState[record.state],
        values=values_of(evaluation, proxy=proxy),
        params=flags_of(space, evaluation.candidate),
        distributions=flag_distributions(space),
        user_attrs=describe_candidate(evaluation.candidate) | describe_evaluation(evaluation, proxy=proxy),
        constraints=limits.measure(evaluation, proxy=proxy),
    )


def spell_layers(layers: Sequence[int]) -> str:
    """``0, 2-6, 8``: runs of three and more are joined."""
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in find_runs(layers))


def values_of(evaluation: Evaluation, *, proxy: str) -> list[float] | None:
    """A trial's values, or None when it was skipped or has none."""
    if evaluation.skipped_because or evaluation.explain_failure(proxy):
        return None
    return [evaluation.qualities[proxy].ppl_ratio, evaluation.latency.ratio]
