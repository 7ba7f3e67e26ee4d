"""A search shows itself while it runs: report and dashboard grow with it, at a small share of its time, and never end it."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from optuna_dashboard import get_note

from seed import sessions, study_dir
from seed.optimize.frontier import select_frontier
from seed.records import Frontier, TrialRecord
from seed.scores import ScoreStore
from seed.sessions import Session
from seed.stages import publishing
from seed.stages.publishing import LiveReport
from seed.stages.study_record import read_losses

from .opened import SPACE, TinyStudy, make_plan, make_table


class Stage:
    """A tiny study that is about to be scored, with all that a report reads."""

    def __init__(self, directory: Path) -> None:
        self.tiny = TinyStudy(directory)
        self.session: Session = self.tiny.session
        study_dir.write_record(self.session.folder.plan, make_plan(self.session.protocol))
        study_dir.write_record(self.session.folder.environment, sessions.describe_environment(self.session))
        with self.tiny.open() as opened:
            dense = opened.executor.call("judge_dense", next(iter(make_table().values())))
        self.dense = msgspec.structs.replace(dense, test=None, test_sums=[], test_counts=[])  # which wait for the end
        self.complaints: list[str] = []

    def read_trials(self) -> tuple[TrialRecord, ...]:
        with ScoreStore(self.session.folder.scores, read_only=True) as store:
            return store.read_trials()

    def select(self) -> Frontier:
        return select_frontier(
            self.read_trials(),
            proxy=self.session.protocol.proxy,
            size=3,
            space=SPACE,
            load_losses=read_losses(self.session.folder),
        )

    def open_live(self, select: Callable[[], Frontier] | None = None) -> LiveReport:
        return LiveReport(
            self.session.folder,
            self.tiny.optuna,
            select=select or self.select,
            describe_dense=lambda: self.dense,
            on_warning=self.complaints.append,
        )

    def score(self, live: LiveReport) -> None:
        with self.tiny.open() as opened:
            opened.trials.listeners.append(lambda record: live.hear())
            self.tiny.score(opened, trials=4)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "tiny")


def test_report_and_note_grow_with_the_search(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(publishing, "SHARE", 1e9)  # no time at all between two of them
    seen: list[int] = []
    live = stage.open_live()

    def watch(study: object, opened: object, record: object, *, on_warning: object) -> None:
        seen.append(len(record.trials))
        assert record.is_running
        publish(study, opened, record, on_warning=on_warning)

    publish = publishing.publish_record
    monkeypatch.setattr(publishing, "publish_record", watch)
    stage.score(live)
    assert len(seen) == seen[-1] == 4
    assert seen == sorted(seen)
    page = stage.session.folder.report.read_text()
    assert "the search goes on" in page
    assert "4 of 10" in page
    assert "**The search goes on**" in get_note(stage.tiny.optuna)
    assert not stage.session.folder.frontier.exists()  # what is written down is what the search chose in the end
    assert stage.complaints == []


def test_it_takes_a_small_share_of_the_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(publishing.time, "monotonic", lambda: now)
    shown: list[float] = []

    def show(*_: object, **__: object) -> None:
        nonlocal now
        shown.append(now)
        now += 0.5  # what it costs

    monkeypatch.setattr(publishing, "gather_record", show)
    monkeypatch.setattr(publishing, "publish_record", lambda *_, **__: None)
    live = stage.open_live(lambda: stage.select)
    for _ in range(4000):
        live.hear()
        now += 0.1
    assert shown[0] >= publishing.FIRST_SECONDS
    assert 3 <= len(shown) <= 20
    assert 0.5 * len(shown) / now <= publishing.SHARE


def test_a_full_disk_is_told_by_the_end_and_not_by_the_way(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "FIRST_SECONDS", 0.0)
    stage.session.folder.report.mkdir()  # nothing can be written there
    stage.score(stage.open_live())
    assert len(stage.read_trials()) == 4
    assert any("report.html: cannot be written" in complaint for complaint in stage.complaints)
    assert msgspec.json.decode(stage.session.folder.plan.read_bytes())["name"] == "tiny"
