"""Recoveries are compared at equal tokens, then for as long as the reference took; what is done is kept."""

from pathlib import Path

import msgspec
import pytest

from seed.errors import StudyError
from seed.evidence import RecoveryComparison
from seed.optimize.recovered import summarize_recoveries
from seed.stages import restoring, training
from seed.stages.restoring import RestoreSettings
from tests.reporting.factory import make_record
from tests.scoring.opened import drop
from tests.stages.opened import open_bench, open_sweep

SETTINGS = RestoreSettings(
    candidates=(drop(1), drop(1, 2)),
    recoveries=("distillation", "pretraining", "hidden-states"),
    distill_tokens=1024,
    rng_seeds=(0, 1),
    rates=(1e-3,),
)


def compare(directory: Path, settings: RestoreSettings = SETTINGS) -> RecoveryComparison:
    bench = open_bench(directory)
    sweep = open_sweep(bench)
    comparison = restoring.start_comparison(bench, settings, reference="distillation")
    wanted = restoring.list_equal_tokens(settings)
    rates = training.choose_rates(bench, sweep, wanted, rates=settings.rates, on_step=lambda key: None)

    def train(comparison: RecoveryComparison, wanted: list[training.Wanted]) -> RecoveryComparison:
        ledger = training.train_wanted(
            bench,
            sweep,
            comparison.ledger,
            wanted,
            rates=rates,
            keep=lambda ledger: restoring.keep(bench, comparison, ledger),
            on_step=lambda key: None,
        )
        return restoring.keep(bench, comparison, ledger)

    comparison = restoring.settle_times(bench, train(comparison, wanted))
    return train(comparison, restoring.list_equal_time(settings, comparison))


def test_every_recovery_runs_at_equal_tokens_and_at_equal_time(tmp_path: Path) -> None:
    comparison = compare(tmp_path)
    rows = summarize_recoveries(comparison)
    found = {(row.key, row.at, row.recovery) for row in rows}
    assert found == {
        (key, at, recovery)
        for key in ("drop-1", "drop-1-2")
        for at in ("equal tokens", "equal time")
        for recovery in SETTINGS.recoveries
    }
    assert all(row.tokens == 1024 for row in rows if row.at == "equal tokens")
    assert all(row.tokens == 1024 for row in rows if row.recovery == "distillation")
    assert all(len(run.test_sums) == len(comparison.ledger.test_counts) for run in comparison.ledger.runs)
    assert compare(tmp_path) == comparison  # nothing is done twice


def test_more_recoveries_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    few = compare(tmp_path, change_settings(recoveries=("distillation", "pretraining")))
    more = compare(tmp_path)
    assert all(run in more.ledger.runs for run in few.ledger.runs)
    assert {run.recovery for run in more.ledger.runs} == set(SETTINGS.recoveries)


def change_settings(**changes: object) -> RestoreSettings:
    return RestoreSettings(**{**vars(SETTINGS), **changes})


def test_times_are_settled_once_and_small_differences_do_not_count(tmp_path: Path) -> None:
    comparison = compare(tmp_path)
    seconds = {"distillation": 10.0, "pretraining": 5.0, "hidden-states": 10.1}
    runs = tuple(
        msgspec.structs.replace(run, seconds=seconds[run.recovery])
        for run in comparison.ledger.runs
        if run.tokens == 1024
    )
    ledger = msgspec.structs.replace(comparison.ledger, runs=runs)
    timed = msgspec.structs.replace(comparison, ledger=ledger, equal_time={})
    assert restoring.fit_times(timed)["drop-1"] == {"distillation": 1024, "pretraining": 2048, "hidden-states": 1024}
    known = {"drop-1": {"pretraining": 77}}
    again = restoring.fit_times(msgspec.structs.replace(timed, equal_time=known))
    assert again["drop-1"]["pretraining"] == 77


def test_models_are_the_deepest_of_the_frontier_or_those_asked_for() -> None:
    record = make_record()
    [deepest] = restoring.choose_candidates(record, ())
    assert len(deepest.dropped_layers) == max(
        len(member.evaluation.candidate.dropped_layers) for member in record.frontier.members
    )
    number = record.trials[0].number
    assert restoring.choose_candidates(record, (number,)) == (record.trials[0].evaluation.candidate,)
    with pytest.raises(StudyError, match="--trials 99999"):
        restoring.choose_candidates(record, (99999,))
