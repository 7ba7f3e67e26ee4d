"""Ways to recover the same models: at equal tokens, then for as long as the reference took for those.

Which ways there are is ``recoveries``' business, what the numbers say ``optimize.recovered``'s. Everything finished is
written as it comes; a stopped comparison goes on.
"""

from dataclasses import dataclass

import msgspec
import numpy as np

from seed import folder
from seed.errors import StudyError
from seed.evidence import Ledger, RecoveryComparison
from seed.findings import StudyRecord
from seed.records import Candidate
from seed.stages import planning, training
from seed.stages.schooling import Member
from seed.stages.training import TrainingSettings, Wanted
from seed.stages.workbench import Workbench

LIKE = 0.03  # times that differ by less are equal: nothing is trained again for so little


@dataclass(frozen=True, kw_only=True)
class RestoreSettings(TrainingSettings):
    """What a comparison of recoveries does."""

    candidates: tuple[Candidate, ...]
    recoveries: tuple[str, ...]


def choose_candidates(record: StudyRecord, trials: tuple[int, ...]) -> tuple[Candidate, ...]:
    """The candidates of these trials, or without any the frontier's best of the deepest cut.

    Raises:
        StudyError: there is no such trial.
    """
    if not trials:
        best = [member.evaluation.candidate for member in record.frontier.members if member.rank == 0]
        return (max(best, key=lambda candidate: len(candidate.dropped_layers)),)
    known = {trial.number: trial.evaluation.candidate for trial in record.trials}
    if unknown := [number for number in trials if number not in known]:
        raise StudyError(
            f"--trials {' '.join(map(str, unknown))}: {record.plan.name} has no such trial; its trials are numbered "
            f"{min(known)} to {max(known)}. The report's table and Optuna Dashboard list them."
        )
    return tuple(dict.fromkeys(known[number] for number in trials))


def start_comparison(bench: Workbench, settings: RestoreSettings, *, reference: str) -> RecoveryComparison:
    """Begin a comparison, or read back the one that was begun.

    Raises:
        StudyError: it was begun with other settings.
    """
    described = training.describe_settings(bench, settings)
    path = bench.folder.recoveries
    if path.exists():
        known = folder.read_record(path, RecoveryComparison)
        planning.require_same_settings(known.ledger.settings, described, place=path)
        return known
    return RecoveryComparison(
        ledger=training.open_ledger(bench, described),
        reference=reference,
        equal_tokens=settings.distill_tokens,
        equal_time={},
    )


def list_equal_tokens(settings: RestoreSettings) -> list[Wanted]:
    """The trainings at equal tokens, seed by seed; the recoveries take turns, so that a machine's drift favours none."""
    return [
        Wanted(member=Member(candidate=candidate), recovery=name, tokens=settings.distill_tokens, rng_seed=rng_seed)
        for rng_seed in settings.rng_seeds
        for candidate in settings.candidates
        for name in settings.recoveries
    ]


def list_equal_time(settings: RestoreSettings, comparison: RecoveryComparison) -> list[Wanted]:
    """The trainings that take as long as the reference took, by what each took at equal tokens."""
    times = comparison.equal_time
    return [
        Wanted(member=Member(candidate=candidate), recovery=name, tokens=times[candidate.key][name], rng_seed=rng_seed)
        for rng_seed in settings.rng_seeds
        for candidate in settings.candidates
        for name in settings.recoveries
        if name in times.get(candidate.key, {})
    ]


def fit_times(comparison: RecoveryComparison) -> dict[str, dict[str, int]]:
    """For each model and recovery how many tokens take as long as the reference's; settled once, since times vary."""
    found = {key: dict(known) for key, known in comparison.equal_time.items()}
    runs = [run for run in comparison.ledger.runs if run.tokens == comparison.equal_tokens]
    for key in dict.fromkeys(run.key for run in runs):
        seconds = {
            name: float(np.median([run.seconds for run in runs if (run.key, run.recovery) == (key, name)]))
            for name in dict.fromkeys(run.recovery for run in runs if run.key == key)
        }
        for name, took in seconds.items():
            ratio = seconds[comparison.reference] / took
            tokens = comparison.equal_tokens if abs(ratio - 1) < LIKE else round(ratio * comparison.equal_tokens)
            found.setdefault(key, {}).setdefault(name, tokens)
    return found


def keep(bench: Workbench, comparison: RecoveryComparison, ledger: Ledger) -> RecoveryComparison:
    """Write the comparison down with this ledger."""
    comparison = msgspec.structs.replace(comparison, ledger=ledger)
    folder.write_record(bench.folder.recoveries, comparison)
    return comparison


def settle_times(bench: Workbench, comparison: RecoveryComparison) -> RecoveryComparison:
    """Write down how many tokens each recovery gets at equal time."""
    settled = msgspec.structs.replace(comparison, equal_time=fit_times(comparison))
    return keep(bench, settled, settled.ledger)
