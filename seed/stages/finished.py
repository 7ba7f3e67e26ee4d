"""A finished search, known again without opening its model: told the same, with every file that it stands on as it was.

Where anything differs, or cannot be told, the search goes its usual way, which proves and mends.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seed import __version__, resolve, study_dir
from seed.config import StudyConfig
from seed.console import Terminal
from seed.errors import SeedError
from seed.findings import StudyRecord
from seed.records import Record
from seed.reporting.summary import show_result
from seed.stages.study_record import gather_record
from seed.study_dir import StudyFolder

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
    show_result(terminal, record, study=study, storage=str(study.journal))
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
