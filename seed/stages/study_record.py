"""A study's folder as one record: everything a report shows, read back without model, text or Optuna."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from seed import study_dir
from seed.errors import StudyError
from seed.findings import SearchGain, StudyRecord
from seed.optimize.frontier import measure_agreement
from seed.optimize.hypervolume import measure_progress
from seed.optimize.replication import compare_replicated, summarize_replicas
from seed.optimize.sensitivity import read_sensitivities
from seed.planning import read_protocol
from seed.plans import Environment, SearchPlan
from seed.records import DenseResult, DistillResult, Frontier, Quality, ScoreRow, TrialRecord
from seed.reporting.wording import count_things
from seed.scores import ScoreStore
from seed.study_dir import StudyFolder


def gather_record(study: StudyFolder, *, frontier: Frontier | None = None, is_running: bool = False) -> StudyRecord:
    """Read a searched study.

    Args:
        study: its folder.
        frontier: what stands for its frontier before one is written down.
        is_running: its search goes on.

    Raises:
        StudyError: something that a search writes is missing or torn.
    """
    plan = study_dir.read_record(study.plan, SearchPlan)
    protocol = read_protocol(plan, place=study.root)
    frontier = study_dir.read_record(study.frontier, Frontier) if frontier is None else frontier
    distilled, baselines = read_distilled(study), read_baselines(study)
    dense = study_dir.read_record(study.dense, DenseResult)
    replicated = [result for result in (*distilled, *baselines) if len(result.replicas) > 1]
    comparable = [result for result in distilled if result.replicas and dense.test_sums is not None]
    with ScoreStore(study.scores, read_only=True) as store:
        trials, rows = store.read_trials(), store.read_rows()
    if not trials:
        raise StudyError(f"{study.root}: no candidate is scored yet. Run the search of this study first.")
    complete = sum(trial.state == "COMPLETE" for trial in trials)
    if complete < frontier.num_scored:
        raise StudyError(
            f"{study.root}: holds {complete:,} of {count_things(frontier.num_scored, 'scored trial')} that its frontier was chosen from; the others "
            f"are lost. Run the search of this study again, which scores them anew, or restore {study.scores.name} from a copy."
        )
    return StudyRecord(
        plan=plan,
        environment=study_dir.read_record(study.environment, Environment),
        space=protocol.space,
        dense=dense,
        trials=trials,
        is_running=is_running,
        frontier=frontier,
        distilled=distilled,
        agreement=measure_agreement(trials, distilled, rung=protocol.rung),
        gain=study_dir.read_record(study.gain, SearchGain) if study.gain.is_file() else None,
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
    results = [study_dir.read_record(path, DistillResult) for path in sorted((study.root / "distilled").glob("*.json"))]
    return sorted(results, key=lambda r: (-r.size.num_params, r.validation.loss))


def find_learning_rate(distilled: tuple[DistillResult, ...]) -> float | None:
    """The learning rate that the study's own finals used."""
    return float(distilled[0].settings["learning_rate"]) if distilled else None


def read_losses(study: StudyFolder) -> Callable[[Quality], tuple[np.ndarray, np.ndarray]]:
    """Return what finds a quality's summed losses and token counts by document among the study's scores.

    Raises:
        StudyError: they are missing or damaged, or have no such row.
    """
    with ScoreStore(study.scores, read_only=True) as store:
        rows = {f"{study.scores.name}#{row.rung}/{row.key}": row for row in store.read_rows()}

    def find_row(path: str | None) -> ScoreRow:
        row = rows.get(path or "")
        if row is None:
            raise StudyError(
                f"{study.scores}: has no row for {path}, and candidates cannot be compared without it. Restore the file from a "
                "copy, or start a study of another name (--study NAME)."
            )
        return row

    counts = np.array(find_row(f"{study.scores.name}#dense/dense").counts)

    def find(quality: Quality) -> tuple[np.ndarray, np.ndarray]:
        return np.array(find_row(quality.document_losses_path).sums, dtype=np.float64), counts

    return find
