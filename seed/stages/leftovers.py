"""What a search that failed before its first score leaves in its folder: told from a study that holds something, and removed.

Latency and the original's losses are measured anew in minutes; scores, models, and what other commands measured, stay.
"""

import shutil
from collections.abc import Callable

from seed import folder
from seed.errors import StudyError
from seed.folder import MEASURED, StudyFolder
from seed.plans import SearchPlan
from seed.scores import ScoreStore, list_files
from seed.stages import planning


def continue_or_replace(study: StudyFolder, wanted: SearchPlan, *, say: Callable[[str], None]) -> SearchPlan:
    """Return the plan to go on with where a search was planned before; one of another plan goes where it holds no score.

    Raises:
        StudyError: it holds some, or is shown in a database, which keeps its first plan.
    """
    found = folder.read_record(study.plan, SearchPlan)
    try:
        return planning.continue_plan(found, wanted, place=study.root)
    except StudyError:
        if found.storage is not None or wanted.storage is not None or holds_score(study):
            raise
    remove(study)
    say(f"{study.root}: held a search of another plan that ended before its first score; this one replaces it")
    return wanted


def holds_score(study: StudyFolder) -> bool:
    """Is a candidate scored, or anything trained, exported or compared in a study's folder?

    Raises:
        StudyError: its scores cannot be read.
    """
    if any(place.is_dir() and any(place.iterdir()) for place in (study.models, study.distilled, study.unrecovered)):
        return True
    if any((study.root / name).exists() for name in MEASURED):
        return True
    if not study.scores.exists():
        return False
    with ScoreStore(study.scores, read_only=True) as store:
        return any(row.key != "dense" for row in store.read_rows()) or bool(store.read_trials())


def remove(study: StudyFolder) -> None:
    """Remove what a search writes before its first score. The plan goes last, so that who is stopped here begins here again; its folder is held."""
    for path in (
        study.journal,
        study.latency,
        study.dense,
        study.frontier,
        study.environment,
        study.report,
        *list_files(study.scores),
        study.gain,
        study.root / "learning_rate.json",
    ):
        path.unlink(missing_ok=True)
    for place in (study.pictures, study.artifacts, study.work):
        for path in place.iterdir() if place.is_dir() else ():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    study.plan.unlink(missing_ok=True)
