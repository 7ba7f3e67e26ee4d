"""What a search that failed before its first score leaves in its folder: told from a study that holds something, and removed.

Latency and the original's losses are measured anew in minutes; scores, models, and what other commands measured, stay.
"""

import shutil
from collections.abc import Callable

from optuna.trial import TrialState

from seed import folder
from seed.errors import StudyError
from seed.folder import MEASURED, StudyFolder
from seed.optimize.viewing import view_storage
from seed.plans import SearchPlan
from seed.records import SweepRow
from seed.rows import read_rows
from seed.stages import planning


def continue_or_replace(study: StudyFolder, wanted: SearchPlan, *, say: Callable[[str], None]) -> SearchPlan:
    """Return the plan to go on with where a search was planned before; one of another plan goes where it holds no score.

    Raises:
        StudyError: it holds some, or its trials are in a database, which other hosts may know.
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
    """Is a candidate scored, or anything trained, exported or compared in a study's folder, whose trials are in its journal?

    Raises:
        StudyError: its scores or its trials cannot be read.
    """
    if any(place.is_dir() and any(place.iterdir()) for place in (study.models, study.distilled, study.unrecovered)):
        return True
    if any((study.root / name).exists() for name in MEASURED):
        return True
    if study.sweep.is_file() and any(row.key != "dense" for row in read_rows(study.sweep, SweepRow)):
        return True
    if not study.journal.is_file():
        return False
    storage = view_storage(None, journal=study.journal)
    return any(
        storage.get_all_trials(found._study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        for found in storage.get_all_studies()
    )


def remove(study: StudyFolder) -> None:
    """Remove what a search writes before its first score. The plan goes last, so that who is stopped here begins here again."""
    with folder.lock(study):
        for path in (
            study.journal,
            study.latency,
            study.dense,
            study.frontier,
            study.environment,
            study.report,
            study.sweep,
            study.gain,
            study.root / "learning_rate.json",
        ):
            path.unlink(missing_ok=True)
        for place in (study.pictures, study.artifacts, study.work):
            for path in place.iterdir() if place.is_dir() else ():
                if path.is_dir() and path != study.present:  # who works here, we among them, says so there
                    shutil.rmtree(path)
                elif not path.is_dir():
                    path.unlink(missing_ok=True)
        study.plan.unlink(missing_ok=True)
