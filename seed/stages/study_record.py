"""A study's folder as one record: everything a report shows, read back without model, text or Optuna."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from seed import __version__, resolve, study_dir
from seed.config import StudyConfig
from seed.console import Terminal
from seed.errors import SeedError, StudyError
from seed.evidence import SearchGain, StudyRecord
from seed.optimize.analysis import compare_replicated, measure_progress, read_sensitivities, summarize_replicas
from seed.optimize.frontier import measure_agreement
from seed.plans import Environment, read_plan
from seed.records import DenseResult, DistillResult, Frontier, Quality, Record, ScoreRow, TrialRecord
from seed.reporting.result_text import show_result
from seed.reporting.wording import count_things
from seed.results import compute_result
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
    plan = read_plan(study)
    protocol = plan.protocol
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
        agreement=measure_agreement(trials, distilled, proxy=protocol.proxy),
        gain=study_dir.read_record(study.gain, SearchGain) if study.gain.is_file() else None,
        baselines=baselines,
        replications={result.key: summarize_replicas(result.replicas, dense) for result in replicated},
        equivalences=compare_replicated(comparable, dense),
        sensitivities=read_sensitivities(rows, protocol.space),
        progress=measure_progress(trials, proxy=protocol.proxy),
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


ELSEWHERE = ("studies_dir", "study", "workers", "ray", "device")  # settings that say where, not what
PLACES = ("model", "space", "start")
Stamps = dict[str, tuple[int, int]]  # bytes and time of change in nanoseconds, by path


class Finished(Record, frozen=True, kw_only=True):
    """What a search was told, and the files that it read and wrote."""

    seed_version: str
    settings: dict[str, Any]
    stamps: Stamps  # paths in the study's folder, which can be copied, are seen from there
    journal_bytes: int  # other commands add to it


def save_finished(study: StudyFolder, settings: StudyConfig, *, model: Path) -> None:
    """Write down that a search is finished, of resolved settings. ``model``: its directory.

    Of a search that a database shows, nothing is: what stands there cannot be told at a glance.
    """
    if settings.storage is not None:
        return
    records = [path for path in sorted(study.root.glob("*.json*")) if path != study.finished]
    ours = [*records, study.scores, study.models, study.distilled]
    stamps = {str(path): stamp(path) for path in (*list_files(model.absolute()), *list_given(settings))}
    stamps |= {str(path.relative_to(study.root)): stamp(path) for place in ours for path in list_files(place)}
    record = Finished(
        seed_version=__version__,
        settings=describe(settings),
        stamps=stamps,
        journal_bytes=study.journal.stat().st_size,
    )
    study_dir.write_record(study.finished, record)


def load_finished(settings: StudyConfig, terminal: Terminal) -> StudyRecord | None:
    """Show what a search found, where it is finished; None: there is something to do, or to look at."""
    settings = resolve.resolve_config(settings)
    study = StudyFolder(settings.studies_dir / resolve.name_study(settings))
    if settings.storage is not None or not (study.finished.is_file() and study.report.is_file()):
        return None
    try:
        with study_dir.lock(study):
            known = study_dir.read_record(study.finished, Finished)
            if (known.seed_version, known.settings) != (__version__, describe(settings)):
                return None
            is_shorter = study.journal.stat().st_size < known.journal_bytes
            is_more = any(str(path) not in known.stamps for path in list_given(settings))
            if is_shorter or is_more or any(stamp(study.root / path) != was for path, was in known.stamps.items()):
                return None
            record = gather_record(study)
    except (SeedError, OSError):  # the usual way says what is wrong
        return None
    terminal.say(f"finished before: nothing is left to do in {study.root}")
    show_result(terminal, compute_result(record), study=study, storage=str(study.journal))
    return record


def describe(settings: StudyConfig) -> dict[str, Any]:
    """What a search was told, seen from any directory."""
    model, space = Path(settings.model).expanduser(), settings.space
    told = {name: value for name, value in settings.describe().items() if name not in ELSEWHERE}
    told["model"] = str(model.resolve()) if model.is_dir() else settings.model
    given = sorted(
        name for name in told if settings.is_given(name) and name not in PLACES
    )  # default or told: it differs
    return told | {"space": None if space is None else str(space.resolve()), "given": given}


def list_given(settings: StudyConfig) -> list[Path]:
    """The files of texts, search space and models that were named by their place."""
    given = (settings.model, settings.recovery_text, settings.validation_text, settings.test_text)
    places = [Path(text).expanduser() for text in given if text is not None and text not in resolve.NAMED_TEXTS]
    places += [place for place in (settings.space, settings.start) if place is not None]
    return [path for place in places for path in list_files(place.absolute())]


def list_files(place: Path) -> Iterator[Path]:
    """A file itself, or all files in a directory; none where there is neither."""
    if place.is_file():
        yield place
    elif place.is_dir():
        yield from sorted(path for path in place.rglob("*") if path.is_file())


def stamp(path: Path) -> tuple[int, int]:
    """How large a file is, and when it was changed."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns
