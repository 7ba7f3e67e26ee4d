"""A study is read back from its folder alone; losses by document are found by what a quality says of itself."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from seed import sessions, study_dir
from seed.errors import StudyError
from seed.optimize.frontier import select_frontier
from seed.proxy.instruments import size_of
from seed.records import Evaluation, TrialRecord
from seed.scores import ScoreStore
from seed.stages import judging, publishing
from seed.stages.study_record import gather_record, read_losses
from seed.study_dir import StudyFolder
from tests.proxy.opened import CUT, drop, keep, time_candidate
from tests.stages.opened import SPACE, make_plan, make_table, open_session, open_sweep


def test_losses_are_those_that_were_judged(tmp_path: Path) -> None:
    session = open_session(tmp_path)
    sweep = open_sweep(session)
    qualities = [sweep.measure(CUT), sweep.measure(keep(0, 1)), *sweep.measure_unrecovered([CUT])]
    find = read_losses(session.folder)
    for quality in qualities:
        sums, counts = find(quality)
        assert sums.sum() / counts.sum() == quality.loss
        assert (int(counts.sum()), len(counts)) == (quality.tokens, quality.documents)
    assert not np.array_equal(find(qualities[0])[0], find(qualities[2])[0])  # one candidate, two proxies


@pytest.mark.parametrize("path", [None, "scores.sqlite#closed-form/drop-3", "losses/none/drop-1-2.npz"])
def test_a_quality_without_a_row_is_named(tmp_path: Path, path: str | None) -> None:
    session = open_session(tmp_path)
    quality = msgspec.structs.replace(open_sweep(session).measure(CUT), document_losses_path=path)
    with pytest.raises(StudyError, match=rf"scores\.sqlite: has no row for {path}.*--study NAME"):
        read_losses(session.folder)(quality)


def test_scores_that_are_missing_or_lack_the_dense_model_are_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"scores\.sqlite: missing.*Restore it from a copy"):
        read_losses(StudyFolder(tmp_path))
    ScoreStore(StudyFolder(tmp_path).scores).close()
    with pytest.raises(StudyError, match=r"scores\.sqlite: has no row for scores\.sqlite#dense/dense"):
        read_losses(StudyFolder(tmp_path))


@pytest.fixture
def searched(tmp_path: Path) -> tuple[StudyFolder, tuple[TrialRecord, ...]]:
    """A study of three trials as a search without distillation leaves it, but without an Optuna study."""
    session = open_session(tmp_path / "tiny")
    sweep, study = open_sweep(session), session.folder
    study_dir.write_record(study.plan, make_plan(session.protocol, trials=3, covers_space=False))
    study_dir.write_record(study.environment, sessions.describe_environment(session))
    dense = judging.judge_dense(session, sweep.instruments, next(iter(make_table().values())))
    study_dir.write_record(study.dense, dense)
    trials = tuple(
        TrialRecord(
            number=number,
            state="COMPLETE",
            evaluation=Evaluation(
                candidate=candidate,
                qualities={"closed-form": sweep.measure(candidate)},
                latency=time_candidate(candidate),
                size=size_of(sweep.instruments, candidate),
                seconds=1.0,
            ),
        )
        for number, candidate in enumerate((drop(1), drop(2), drop(1, 2)))
    )
    assert sweep.store is not None
    sweep.store.keep([], trials)
    sweep.store.close()
    losses = read_losses(study)
    frontier = select_frontier(trials, proxy="closed-form", size=2, space=SPACE, load_losses=losses)
    study_dir.write_record(study.frontier, frontier)
    return study, trials


def test_trials_that_are_lost_are_told(searched: tuple[StudyFolder, tuple[TrialRecord, ...]]) -> None:
    study, trials = searched
    with ScoreStore(study.scores) as store:
        rows = store.read_rows()
    study.scores.unlink()
    with pytest.raises(StudyError, match=r"scores\.sqlite: missing"):
        gather_record(study)
    with ScoreStore(study.scores) as store:
        store.keep(rows)
        with pytest.raises(StudyError, match="no candidate is scored yet"):
            gather_record(study)
        store.keep([], trials[:2])
        with pytest.raises(StudyError, match=r"holds 2 of 3 scored trials.*restore scores\.sqlite from a copy"):
            gather_record(study)


def test_a_report_is_written_though_nothing_can_be_shown_in_optuna(
    searched: tuple[StudyFolder, tuple[TrialRecord, ...]],
) -> None:
    study, trials = searched
    result = publishing.refresh_report(study, opened=None, on_warning=pytest.fail)
    assert result.record.trials == trials
    assert study.report.stat().st_size > 1_000_000
