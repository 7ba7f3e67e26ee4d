"""What a study shows: its report, and notes, figures and cards for Optuna Dashboard; also while its search runs.

What is shown is read by ``gathering``, drawn and worded by ``reporting``, and kept in the study by ``optimize.display``.
"""

import time
from collections.abc import Callable

from optuna import Study

from seed.errors import ResourceError, StudyError
from seed.findings import StudyRecord
from seed.folder import StudyFolder
from seed.optimize.display import show_note, show_study
from seed.optimize.urls import name_driver
from seed.plans import SearchPlan
from seed.records import Frontier
from seed.reporting.board import draw_board
from seed.reporting.notes import write_opening_note, write_study_note, write_trial_notes
from seed.reporting.page import write_page
from seed.stages.gathering import gather_record, open_searched
from seed.stages.planning import read_protocol

FIRST_SECONDS = 5.0  # of scoring, before which there is little to see
SHARE = 0.02  # of the time at most goes into showing what is known so far
GROWTH = 1.25  # times as many trials as were shown last


def refresh_report(
    study: StudyFolder, *, complain: Callable[[str], None], opened: Study | None = None, is_running: bool = False
) -> StudyRecord:
    """Gather a searched study, write its report, and the same into the study for Optuna Dashboard.

    ``opened``: its Optuna study, where that is open. ``is_running``: the search goes on, with distillation.

    A storage that cannot be opened, or does not take what the dashboard shows costs no report: ``complain`` is told.

    Raises:
        StudyError: the study is not searched yet, or torn.
    """
    record = gather_record(study, is_running=is_running)
    try:
        opened = opened or open_searched(study)
    except StudyError as error:
        complain(f"Optuna Dashboard: {error}")
        opened = None
    publish_record(study, opened, record, complain=complain)
    return record


def spell_storage(plan: SearchPlan, study: StudyFolder) -> str:
    """Where a study's trials are, as ``optuna-dashboard`` wants to be told."""
    return str(study.journal) if plan.storage is None else name_driver(plan.storage)


def publish_record(
    study: StudyFolder, opened: Study | None, record: StudyRecord, *, complain: Callable[[str], None]
) -> None:
    """Write the report, then notes, figures and exported models' cards into the Optuna study, where it is open.

    Raises:
        ResourceError: the report cannot be written.
    """
    write_page(record, study.report, command=record.plan.command)
    if opened is None:
        return
    numbers = {trial.number for trial in record.trials}
    cards = {
        result.trial_number: study.model(result.key) / "README.md"
        for result in record.distilled
        if result.trial_number is not None and result.trial_number in numbers
    }
    try:
        show_study(
            opened,
            note=write_study_note(record, root=study.root),
            trial_notes={number: note for number, note in write_trial_notes(record).items() if number in numbers},
            figures=draw_board(record),
            cards={number: path.read_text(encoding="utf-8") for number, path in cards.items() if path.is_file()},
            artifacts=study.artifacts,
        )
    except (StudyError, ResourceError) as error:
        complain(f"Optuna Dashboard: {error}")


def announce_search(study: StudyFolder, opened: Study, plan: SearchPlan, *, complain: Callable[[str], None]) -> None:
    """Say in Optuna Dashboard that a search has begun, where it has no answer from before."""
    if study.frontier.exists():
        return
    rung = read_protocol(plan, place=study.root).rung
    try:
        show_note(opened, write_opening_note(plan, rung=rung, root=study.root))
    except StudyError as error:
        complain(f"Optuna Dashboard: {error}")


class LiveReport:
    """Shows a search while it runs: now and then, when enough is new, and for a small share of the time.

    Args:
        study: its folder.
        opened: its Optuna study.
        select: makes a frontier of what is scored so far, and raises StudyError where there is none yet.
        complain: is told what went wrong; a search does not end for that.
    """

    def __init__(
        self, study: StudyFolder, opened: Study, *, select: Callable[[], Frontier], complain: Callable[[str], None]
    ) -> None:
        self.study, self.opened, self.select, self.complain = study, opened, select, complain
        self.next_time = time.monotonic() + FIRST_SECONDS
        self.next_count = 1.0
        self.count = 0

    def hear(self) -> None:
        """One more trial is finished."""
        self.count += 1
        if self.count < self.next_count or time.monotonic() < self.next_time:
            return
        began = time.monotonic()
        try:
            record = gather_record(self.study, frontier=self.select(), is_running=True)
            publish_record(self.study, self.opened, record, complain=self.complain)
        except StudyError:  # nothing keeps the limits yet
            pass
        except ResourceError as error:
            self.complain(str(error))
        self.next_count = GROWTH * self.count
        self.next_time = time.monotonic() + (time.monotonic() - began) / SHARE
