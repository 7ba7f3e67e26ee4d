"""What a study shows: its report, and note, figures and cards for Optuna Dashboard; also while its search runs.

What is shown is read by ``study_record``, drawn and worded by ``reporting``, and kept in the study by ``optimize.display``.
"""

import time
from collections.abc import Callable

from optuna import Study

from seed import study_dir
from seed.errors import ResourceError, StudyError, first_line
from seed.evidence import StudyRecord
from seed.optimize.display import show_note, show_study
from seed.optimize.storage import load_study, open_storage, view_storage
from seed.optimize.study import FINGERPRINT
from seed.optimize.urls import hide_secrets
from seed.plans import SearchPlan
from seed.records import DenseResult, Frontier
from seed.reporting.page import draw_dashboard, write_note, write_page
from seed.results import StudyResult, compute_result
from seed.stages.study_record import gather_record
from seed.study_dir import StudyFolder

FIRST_SECONDS = 5.0  # of scoring, before which there is little to see
SHARE = 0.02  # of the time at most goes into showing what is known so far


def open_shown(
    study: StudyFolder, plan: SearchPlan, *, storage: str | None, on_warning: Callable[[str], None]
) -> Study | None:
    """Open the Optuna study that shows a searched study, whose folder the caller holds. None, and ``on_warning`` is told: it cannot be.

    ``storage``: the database that the user typed; the one that the plan names is opened by no word of the plan.

    Raises:
        StudyError: the storage that was typed cannot be opened, or holds another study of this name.
    """
    if storage is None and plan.storage is not None:
        on_warning(
            f"Optuna Dashboard: shows what it showed, since {hide_secrets(plan.storage)} is opened only where you type it. Add "
            "--storage URL to show this too."
        )
        return None
    try:
        if storage is None and study.journal.is_file():
            opened = load_study(open_storage(None, journal=study.journal), plan.name)
        else:  # where there is none, none is made
            opened = load_study(view_storage(storage, journal=study.journal), plan.name)
        if opened.user_attrs.get(FINGERPRINT) != plan.fingerprint:
            raise StudyError(f"study {plan.name}: the storage holds a study of this name with another plan.")
    except StudyError as error:
        if storage is not None:
            raise
        on_warning(f"Optuna Dashboard: {error}")
        return None
    return opened


def refresh_report(
    study: StudyFolder, *, opened: Study | None, on_warning: Callable[[str], None], is_running: bool = False
) -> StudyResult:
    """Gather a searched study, write its report, and the same into the Optuna study that shows it, if that is open.

    ``is_running``: the search goes on, with distillation.

    A storage that does not take what the dashboard shows costs no report: ``on_warning`` is told.

    Raises:
        StudyError: the study is not searched yet, or torn.
    """
    return publish_record(study, opened, gather_record(study, is_running=is_running), on_warning=on_warning)


def publish_record(
    study: StudyFolder, opened: Study | None, record: StudyRecord, *, on_warning: Callable[[str], None]
) -> StudyResult:
    """Write the report, then note, figures and exported models' cards into the Optuna study, if that is open.

    Returns what they show.
    """
    result = compute_result(record)
    write_page(result, study.report)
    if opened is None:
        return result
    cards = {f"{one.key}.md": study.model(one.key) / "README.md" for one in result.distilled}
    try:
        show_study(
            opened,
            note=write_note(record.plan, root=study.root, result=result),
            figures=draw_dashboard(result),
            cards={name: path.read_text(encoding="utf-8") for name, path in cards.items() if path.is_file()},
            artifacts=study.artifacts,
        )
    except (StudyError, ResourceError) as error:
        on_warning(f"Optuna Dashboard: {error}")
    return result


def announce_search(study: StudyFolder, opened: Study, plan: SearchPlan, *, on_warning: Callable[[str], None]) -> None:
    """Say in Optuna Dashboard that a search has begun, where it has no answer from before."""
    if study.frontier.exists():
        return
    try:
        show_note(opened, write_note(plan, root=study.root), artifacts=study.artifacts)
    except (StudyError, ResourceError) as error:
        on_warning(f"Optuna Dashboard: {error}")


class LiveReport:
    """Shows a search while it runs, now and then, for a small share of the time.

    Args:
        study: its folder.
        opened: its Optuna study.
        select: makes a frontier of what is scored so far, and raises StudyError where there is none yet.
        describe_dense: says what is known of the dense model so far.
        on_warning: is told what went wrong; a search does not end for that.
    """

    def __init__(
        self,
        study: StudyFolder,
        opened: Study,
        *,
        select: Callable[[], Frontier],
        describe_dense: Callable[[], DenseResult],
        on_warning: Callable[[str], None],
    ) -> None:
        self.study, self.opened, self.select, self.on_warning = study, opened, select, on_warning
        self.describe_dense = describe_dense
        self.next_time = time.monotonic() + FIRST_SECONDS

    def hear(self) -> None:
        """One more trial is finished."""
        if time.monotonic() < self.next_time:
            return
        began = time.monotonic()
        try:
            path = self.study.dense
            dense = study_dir.read_record(path, DenseResult) if path.exists() else self.describe_dense()
            record = gather_record(self.study, frontier=self.select(), dense=dense, is_running=True)
            publish_record(self.study, self.opened, record, on_warning=self.on_warning)
        except StudyError:  # nothing keeps the limits yet
            pass
        except Exception as error:  # whatever is wrong with a picture, a search goes on
            self.on_warning(f"{self.study.report}: {first_line(error)}")
        self.next_time = time.monotonic() + (time.monotonic() - began) / SHARE
