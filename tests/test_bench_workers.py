"""What benchmarks of workers start, sum up and print: small runs, and numbers that can be checked by hand."""

import re
from collections import Counter

import msgspec
import pytest

from seed.console import Terminal
from tests.bench import contention, turns, workers
from tests.bench.contention import Job, Run
from tests.bench.workers import Pass


def make_run(storage: str = "PostgreSQL", way: str = "order", workers: int = 1, **changes) -> Run:
    return Run(storage=storage, way=way, workers=workers, **{"trials": 100, "beyond": 0, "given_way": 0, **changes})


def make_pass(command_seconds: float, search_seconds: float, *, key: str = "drop-1") -> Pass:
    return Pass(command_seconds=command_seconds, search_seconds=search_seconds, num_scored=12, keys=(key,))


def test_a_range_is_the_median_between_the_least_and_the_most() -> None:
    spread = turns.range_of([4.0, 1.0, 2.0])
    assert spread == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert turns.show_range(spread, digits=1) == "2.0 (1.0 to 4.0)"


@pytest.mark.parametrize("way", contention.WAYS["journal"])
def test_workers_are_let_go_on_one_study_and_end_with_its_budget(way: str) -> None:
    run = contention.run_job(Job(storage="journal", way=way, workers=2, trials=6), None)
    assert (run.storage, run.way, run.workers, run.trials - run.beyond) == ("journal", way, 2, 6)
    assert 0 < run.seconds < 60


def test_every_storage_has_the_same_numbers_of_workers_and_heartbeats_stand_beside_none() -> None:
    jobs = contention.list_jobs(5, has_postgres=True)
    assert set(Counter((job.storage, job.way) for job in jobs if job.beats).values()) == {4}
    for index, job in enumerate(jobs):
        if not job.beats:
            assert jobs[index - 1] == msgspec.structs.replace(job, beats=True)
    assert all(job.storage == "journal" for job in contention.list_jobs(5, has_postgres=False))


def test_rates_are_of_the_runs_with_heartbeats() -> None:
    runs = [
        make_run(seconds=10.0, given_way=100),
        make_run(seconds=5.0, given_way=200),
        make_run(seconds=1.0, beats=False),
    ]
    [row] = contention.summarize_rates(runs)
    assert row["trials_per_second"] == {"median": 15.0, "min": 10.0, "max": 20.0}
    assert row["given_way"] == pytest.approx(0.6)


def test_heartbeats_are_compared_round_by_round() -> None:
    runs = [
        make_run(seconds=seconds, beats=beats)
        for seconds, beats in ((2.0, True), (1.0, False), (3.0, False), (3.0, True))
    ]
    [row] = contention.summarize_heartbeats([*runs, make_run("journal", seconds=9.0)])
    assert row["ratio"] == {"median": 1.5, "min": 1.0, "max": 2.0}
    assert row["ms_a_trial_more"] == pytest.approx({"median": 5.0, "min": 0.0, "max": 10.0})


def show_contention(capsys, runs: list[Run], *, has_postgres: bool, beyond: int = 0) -> str:
    details = {"trials": 100, "rounds": 1, "has_postgres": has_postgres, "beyond": beyond, "studies": len(runs)}
    fields = {
        "contention": contention.summarize_rates(runs),
        "contention_heartbeats": contention.summarize_heartbeats(runs),
        "contention_details": details,
    }
    contention.show(Terminal(), fields)
    return capsys.readouterr().out


def test_rates_are_shown_by_study_and_number_of_workers(capsys) -> None:
    runs = [make_run(workers=count, seconds=10.0 / count, given_way=100) for count in contention.WORKERS]
    shown = show_contention(capsys, [*runs, make_run(seconds=5.0, beats=False)], has_postgres=True)
    row = next(line for line in shown.splitlines() if line.strip().startswith("PostgreSQL, order"))
    assert re.findall(r"([0-9.]+) \(", row) == ["10.0", "20.0", "40.0", "80.0"]
    assert row.split()[-1] == "50%"
    assert "2.00 (2.00 to 2.00)" in shown
    assert "beyond" not in shown


def test_what_was_left_out_and_what_went_wrong_is_said(capsys) -> None:
    runs = [make_run("journal", "shares", count, seconds=1.0) for count in contention.WORKERS]
    shown = show_contention(capsys, runs, has_postgres=False, beyond=2)
    assert "PostgreSQL is not installed" in shown
    assert "2 trials beyond the budgets of 4 studies" in shown
    assert "Heartbeats" not in shown


def test_two_workers_are_compared_with_one_round_by_round(capsys) -> None:
    fields = workers.summarize(
        {1: [make_pass(60.0, 30.0), make_pass(50.0, 20.0)], 2: [make_pass(60.0, 20.0), make_pass(40.0, 16.0)]}
    )
    assert fields["workers_command_speedup"] == {"median": 1.125, "min": 1.0, "max": 1.25}
    assert fields["workers_search_speedup"]["max"] == 1.5
    workers.show(Terminal(), fields)
    shown = capsys.readouterr().out
    assert "12 sets, 2 rounds" in shown
    assert "1.38 (1.25 to 1.50)" in shown
    assert "did not all choose" not in shown


def test_searches_that_chose_differently_are_told(capsys) -> None:
    workers.show(Terminal(), workers.summarize({1: [make_pass(3.0, 2.0)], 2: [make_pass(3.0, 2.0, key="drop-2")]}))
    assert "did not all choose the same sets" in capsys.readouterr().out


def test_a_search_steps_seconds_are_between_what_is_said_at_its_ends() -> None:
    lines = [
        (1.0, "[3/5] dense: done in 1 s\n"),
        (2.0, "[4/5] search: 1 of 12\n"),
        (4.5, "[4/5] search: done in 3 s\n"),
    ]
    assert workers.find_moment(lines, workers.LAST) - workers.find_moment(lines, workers.BEFORE) == 3.5
