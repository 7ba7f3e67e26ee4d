"""A study's folder as one record: everything a report shows, read back without model, text or Optuna."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from seed import __version__, resolve, scores, study_dir
from seed.config import StudyConfig
from seed.console import Terminal
from seed.errors import SeedError, StudyError
from seed.evidence import SearchGain, StudyRecord
from seed.optimize.analysis import compare_replicated, list_task_scores, read_sensitivities, summarize_replicas
from seed.optimize.frontier import measure_agreement
from seed.plans import Environment, SearchPlan, continue_plan, read_plan
from seed.records import (
    DENSE,
    DenseResult,
    DistillResult,
    Frontier,
    Latency,
    PackedByKey,
    Quality,
    Record,
    ScoreRow,
    TaskRecord,
    TrialRecord,
    hash_text,
)
from seed.reporting.wording import count_things
from seed.scores import ScoreStore
from seed.study_dir import StudyFolder


def gather_record(
    study: StudyFolder,
    *,
    frontier: Frontier | None = None,
    dense: DenseResult | None = None,
    is_running: bool = False,
) -> StudyRecord:
    """Read a searched study.

    Args:
        study: its folder.
        frontier: what stands for its frontier before one is written down.
        dense: what stands for the dense model's numbers until then.
        is_running: its search goes on.

    Raises:
        StudyError: something that a search writes is missing or torn.
    """
    plan = read_plan(study)
    protocol = plan.protocol
    frontier = study_dir.read_record(study.frontier, Frontier) if frontier is None else frontier
    distilled, width_baselines = read_results(study)
    dense = study_dir.read_record(study.dense, DenseResult) if dense is None else dense
    checkpoints = {DENSE: None} | {result.key: result.provenance_sha256 for result in distilled}
    packed = study_dir.read_record(study.bits, PackedByKey) if study.bits.is_file() else {}
    tasks = study_dir.read_record(study.tasks, TaskRecord) if study.tasks.is_file() else TaskRecord(floors={}, runs={})
    replicated = [result for result in (*distilled, *width_baselines) if len(result.replicas) > 1]
    with ScoreStore(study.scores, read_only=True) as store:
        trials, rows = store.read_trials(), store.read_rows()
    if study.latency.exists():
        trials = use_measured(trials, study_dir.read_record(study.latency, dict[str, Latency]))
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
        agreement=measure_agreement(trials, distilled, proxy=protocol.proxy),
        gain=study_dir.read_record(study.gain, SearchGain) if study.gain.is_file() else None,
        width_baselines=width_baselines,
        replications={result.key: summarize_replicas(result.replicas, dense) for result in replicated},
        equivalences=compare_replicated(distilled, dense),
        sensitivities=read_sensitivities(rows, protocol.space),
        packed={  # of models as they are now
            key: tuple(one for one in packed.get(key, ()) if one.provenance_sha256 == sha256)
            for key, sha256 in checkpoints.items()
            if key in packed
        },
        tasks=list_task_scores(tasks, checkpoints),
        floors=tasks.floors,
    )


def use_measured(trials: Sequence[TrialRecord], measured: Mapping[str, Latency]) -> tuple[TrialRecord, ...]:
    """Trials with latencies that were measured after they were told, in place of those predicted."""

    def update(trial: TrialRecord) -> TrialRecord:
        latency = trial.evaluation.latency
        found = latency if latency.repeats else measured.get(latency.structure, latency)
        return replace(trial, evaluation=replace(trial.evaluation, latency=found))

    return tuple(map(update, trials))


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


def read_results(study: StudyFolder) -> tuple[tuple[DistillResult, ...], tuple[DistillResult, ...]]:
    """Every finished distillation: of sets of layers, fewest dropped first, and of uniform widths, the largest first."""
    found = [study_dir.read_record(path, DistillResult) for path in sorted(study.distilled.glob("*.json"))]
    found.sort(key=lambda one: (-one.size.num_params, one.validation.loss))
    return tuple(one for one in found if one.width is None), tuple(one for one in found if one.width is not None)


def find_learning_rate(distilled: tuple[DistillResult, ...]) -> float | None:
    """The learning rate that the study's own finals used."""
    return float(distilled[0].settings["learning_rate"]) if distilled else None


def read_losses(study: StudyFolder) -> Callable[[Quality], tuple[np.ndarray, np.ndarray]]:
    """Return what finds a quality's summed losses and token counts by document among the study's scores.

    Raises:
        StudyError: they are missing or damaged, or have no such row.
    """
    with ScoreStore(study.scores, read_only=True) as store:
        rows = {f"{study.scores.name}#{row.proxy}/{row.key}": row for row in store.read_rows()}

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


def continue_or_replace(study: StudyFolder, wanted: SearchPlan, *, say: Callable[[str], None]) -> SearchPlan:
    """The plan to go on with where a search was planned before; one of another plan gives way where it holds no score.

    Raises:
        StudyError: it holds some, or is shown in a database, which keeps its first plan.
    """
    found = read_plan(study)
    try:
        return continue_plan(found, wanted, place=study.root)
    except StudyError:
        if found.storage is not None or wanted.storage is not None or holds_score(study):
            raise
    shutil.rmtree(study.work, ignore_errors=True)
    # the plan goes last, so that who is stopped here begins here again
    for path in (study.journal, study.latency, study.dense, *scores.list_database_files(study.scores), study.plan):
        path.unlink(missing_ok=True)
    say(f"{study.root}: held a search of another plan that ended before its first score; this one replaces it")
    return wanted


def holds_score(study: StudyFolder) -> bool:
    """Is a candidate scored, or anything made of one?"""
    if study.frontier.exists() or any(place.exists() for place in (study.models, study.distilled, study.unrecovered)):
        return True
    if not study.scores.exists():
        return False
    with ScoreStore(study.scores, read_only=True) as store:
        return any(row.key != "dense" for row in store.read_rows()) or bool(store.read_trials())


ELSEWHERE = ("studies_dir", "study", "workers", "ray", "device")  # settings that say where, not what
PLACES = (
    "model",
    "space",
    "start",
    "recovery_text",
    "validation_text",
    "test_text",
    "include_path",
)  # that may name files


class Finished(Record, frozen=True, kw_only=True):
    """How a finished search is known again."""

    model: str  # the directory that it was opened from
    fingerprint: str  # of what the search was told, and of the files that it read and wrote


def save_finished(study: StudyFolder, settings: StudyConfig, *, model: Path) -> None:
    """Write down that a search is finished, of resolved settings. ``model``: its directory.

    Of a search that a database shows, nothing is: what stands there cannot be told at a glance.
    """
    if settings.storage is None:
        found = Finished(model=str(model.absolute()), fingerprint=fingerprint_files(study, settings, model=model))
        study_dir.write_record(study.finished, found)


def load_finished(settings: StudyConfig, terminal: Terminal) -> StudyRecord | None:
    """Read what a search found, where it is finished; None: there is something to do, or to look at."""
    settings = resolve.resolve_config(settings)
    study = StudyFolder(settings.studies_dir / resolve.name_study(settings))
    if settings.storage is not None or not (study.finished.is_file() and study.report.is_file()):
        return None
    try:
        with study_dir.lock(study):
            known = study_dir.read_record(study.finished, Finished)
            if fingerprint_files(study, settings, model=Path(known.model)) != known.fingerprint:
                return None
            record = gather_record(study)
    except (SeedError, OSError):  # the usual way says what is wrong
        return None
    terminal.say(f"finished before: nothing is left to do in {study.root}")
    return record


def fingerprint_files(study: StudyFolder, settings: StudyConfig, *, model: Path) -> str:
    """A hash of what a search is told, seen from any directory, and of the size and time of every file that it reads and makes.

    Files of the study, which can be copied, are named from its folder.
    """
    told = {name: value for name, value in settings.describe().items() if name not in (*ELSEWHERE, *PLACES)}
    given = sorted(name for name in told if settings.is_given(name))  # default or told: it differs
    named = {name: str(getattr(settings, name)) for name in PLACES if getattr(settings, name) is not None}
    texts = {name: place for name, place in named.items() if place not in resolve.NAMED_TEXTS}
    paths = {name: Path(place).expanduser().absolute() for name, place in texts.items()}
    named |= {name: str(path) for name, path in paths.items() if path.exists()}
    made = [
        study.plan,
        study.environment,
        study.latency,
        study.dense,
        study.scores,
        study.frontier,
        study.gain,
        study.bits,
        study.tasks,
    ]
    files = {str(path): path for place in (model.absolute(), *paths.values()) for path in walk_files(place)}
    for place in (*made, study.distilled, study.models):
        files |= {str(path.relative_to(study.root)): path for path in walk_files(place)}
    stamps = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in sorted(files.items())]
    return hash_text(repr((__version__, told, given, named, stamps, study.journal.is_file())))


def walk_files(place: Path) -> Iterator[Path]:
    """A file itself, or all files in a directory; none where there is neither."""
    if place.is_file():
        yield place
    elif place.is_dir():
        yield from (path for path in place.rglob("*") if path.is_file())
