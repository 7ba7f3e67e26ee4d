"""A study's folder as one record: everything a report shows, read back without model or text."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from optuna import Study

from seed import folder
from seed.errors import StudyError
from seed.findings import SearchGain, StudyRecord
from seed.folder import StudyFolder
from seed.optimize.frontier import measure_agreement
from seed.optimize.progress import measure_progress
from seed.optimize.replication import compare_replicated, summarize_replicas
from seed.optimize.sensitivity import read_sensitivities
from seed.optimize.storage import open_storage
from seed.optimize.study import open_study, read_trials
from seed.plans import Environment, SearchPlan
from seed.records import DenseResult, DistillResult, Frontier, Quality, SweepRow, TrialRecord
from seed.reporting.wording import count_things
from seed.rows import read_rows
from seed.stages.planning import read_protocol


def open_searched(study: StudyFolder) -> Study:
    """Open the Optuna study of a searched study, whose folder the caller holds.

    Raises:
        StudyError: its journal is missing, or its storage cannot be opened.
    """
    plan = folder.read_record(study.plan, SearchPlan)
    if plan.storage is None and not study.journal.is_file():
        raise StudyError(f"{study.journal}: missing, and with it all trials. Restore it from a copy, or search anew.")
    storage = open_storage(plan.storage, journal=study.journal)
    rung = read_protocol(plan, place=study.root).rung
    return open_study(storage, name=plan.name, rung=rung, fingerprint=plan.study_fingerprint)


def gather_record(
    study: StudyFolder, *, opened: Study | None = None, frontier: Frontier | None = None, is_running: bool = False
) -> StudyRecord:
    """Read a searched study.

    Args:
        study: its folder.
        opened: its Optuna study, where that is open already.
        frontier: what stands for its frontier before one is written down.
        is_running: its search goes on.

    Raises:
        StudyError: something that a search writes is missing or torn.
    """
    plan = folder.read_record(study.plan, SearchPlan)
    protocol = read_protocol(plan, place=study.root)
    frontier = folder.read_record(study.frontier, Frontier) if frontier is None else frontier
    opened = open_searched(study) if opened is None else opened
    distilled, baselines = read_distilled(study), read_baselines(study)
    dense = folder.read_record(study.dense, DenseResult)
    replicated = [result for result in (*distilled, *baselines) if len(result.replicas) > 1]
    comparable = [result for result in distilled if result.replicas and dense.test_sums is not None]
    trials = read_trials(opened)
    if not trials:
        raise StudyError(f"{study.root}: no candidate is scored yet. Run the search of this study first.")
    complete = sum(trial.state == "COMPLETE" for trial in trials)
    if complete < frontier.num_scored:
        raise StudyError(
            f"{study.root}: holds {complete:,} of {count_things(frontier.num_scored, 'scored trial')} that its frontier was chosen from; the others "
            "are lost. Run the search of this study again, which scores them anew, or restore its storage from a copy."
        )
    rows = read_rows(study.sweep, SweepRow) if study.sweep.is_file() else []
    return StudyRecord(
        plan=plan,
        environment=folder.read_record(study.environment, Environment),
        space=protocol.space,
        dense=dense,
        trials=trials,
        is_running=is_running,
        frontier=frontier,
        distilled=distilled,
        agreement=measure_agreement(trials, distilled, rung=protocol.rung),
        gain=folder.read_record(study.gain, SearchGain) if study.gain.is_file() else None,
        baselines=baselines,
        replications={result.key: summarize_replicas(result.replicas, dense) for result in replicated},
        equivalences=compare_replicated(comparable, dense),
        sensitivities=read_sensitivities(rows, protocol.space),
        progress=measure_progress(trials, rung=protocol.rung),
    )


def find_trial(record: StudyRecord, number: int, *, place: Path) -> TrialRecord:
    """The trial of that number.

    Raises:
        StudyError: there is no such finished trial.
    """
    known = {one.number: one for one in record.trials}
    if number not in known:
        raise StudyError(
            f"--trial {number}: {place} has no such finished trial; its trials are numbered "
            f"{min(known)} to {max(known)}. The report's table and Optuna Dashboard list them."
        )
    return known[number]


def read_distilled(study: StudyFolder) -> tuple[DistillResult, ...]:
    """Every finished distillation of a set of layers, fewest dropped first."""
    return tuple(result for result in _read_results(study) if result.width is None)


def read_baselines(study: StudyFolder) -> tuple[DistillResult, ...]:
    """Every finished distillation of a uniform width, the largest first."""
    return tuple(result for result in _read_results(study) if result.width is not None)


def _read_results(study: StudyFolder) -> list[DistillResult]:
    results = [folder.read_record(path, DistillResult) for path in sorted((study.root / "distilled").glob("*.json"))]
    return sorted(results, key=lambda r: (-r.size.num_params, r.validation.loss))


def find_learning_rate(distilled: tuple[DistillResult, ...]) -> float | None:
    """The learning rate that the study's own finals used."""
    return float(distilled[0].settings["learning_rate"]) if distilled else None


def read_losses(study: StudyFolder) -> Callable[[Quality], tuple[np.ndarray, np.ndarray]]:
    """Return what finds a quality's summed losses and token counts by document in the study's sweep.

    Raises:
        StudyError: the sweep is missing or damaged, or has no such row.
    """
    if not study.sweep.is_file():
        raise StudyError(
            f"{study.sweep}: missing, and candidates cannot be compared without it. Restore it from a copy, or start a "
            "study of another name (--study NAME)."
        )
    rows = {f"{study.sweep.name}#{row.rung}/{row.key}": row for row in read_rows(study.sweep, SweepRow)}

    def find_row(path: str | None) -> SweepRow:
        row = rows.get(path or "")
        if row is None:
            raise StudyError(
                f"{study.sweep}: has no row for {path}, and candidates cannot be compared without it. Restore the file from a "
                "copy, or start a study of another name (--study NAME)."
            )
        return row

    counts = np.array(find_row(f"{study.sweep.name}#dense/dense").counts)

    def find(quality: Quality) -> tuple[np.ndarray, np.ndarray]:
        return np.array(find_row(quality.document_losses_path).sums, dtype=np.float64), counts

    return find
