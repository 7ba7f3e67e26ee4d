"""Studies on a real PostgreSQL server: searched, restarted amid the search, left by killed workers, locked with a password."""

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from seed.errors import StudyError
from seed.optimize import patience, teamwork
from seed.optimize import study as studies
from seed.optimize import trials as trials_of
from seed.optimize.heartbeats import beating, fail_stale_trials
from seed.optimize.patience import PatientStorage
from seed.optimize.storage import open_storage
from seed.optimize.viewing import find_study_id, view_storage
from seed.records import Candidate, Evaluation, SearchSpace
from tests import postgres as servers
from tests.optimize.test_storage import REPOSITORY, open_at_once, start_openers
from tests.postgres import PASSWORD, PostgresServer
from tests.reporting import factory

SPACE = SearchSpace(num_layers=12, droppable_layers=(1, 2, 3, 5, 8, 11), min_dropped=1, max_dropped=3)  # 41 candidates
JOURNAL = Path("nowhere") / "journal.log"


def open_database(url: str, **settings: object) -> PatientStorage:
    storage = open_storage(url, journal=JOURNAL, **settings)
    assert isinstance(storage, PatientStorage)
    return storage


def open_study(storage: BaseStorage) -> optuna.Study:
    return studies.open_study(storage, name="here", rung=factory.RUNG, fingerprint="one")


def evaluate(candidate: Candidate) -> Evaluation:
    ratio = math.exp(sum(factory.LAYER_COSTS[layer] for layer in candidate.dropped_layers))
    return factory.make_evaluation(candidate.dropped_layers, ratio)


def search(study: optuna.Study, *, trials: int, score: Callable[[Candidate], Evaluation] = evaluate) -> list[str]:
    """Run trials; return the keys of the candidates that were evaluated, in order."""
    asked: list[str] = []

    def remember(candidate: Candidate) -> Evaluation:
        asked.append(candidate.key)
        return score(candidate)

    trials_of.run_trials(
        study, SPACE, trials=trials, sampler="random", rng_seed=5, rung=factory.RUNG, evaluate=remember
    )
    return asked


def list_complete(study: optuna.Study) -> list[str]:
    return [record.evaluation.candidate.key for record in studies.read_trials(study)]


# ---- searching


def test_a_study_is_searched_continued_and_looked_at(postgres: PostgresServer) -> None:
    url = postgres.make_database()
    first = search(open_study(open_database(url)), trials=5)
    again = open_study(open_database(url))
    rest = search(again, trials=8)
    assert (len(first), len(rest)) == (5, 3)
    viewed = view_storage(url, journal=JOURNAL)
    study = optuna.load_study(storage=viewed, study_name="here")
    assert list_complete(study) == first + rest
    assert study.user_attrs == again.user_attrs
    assert viewed.get_study_name_from_id(find_study_id(viewed, "here")) == "here"


def test_it_is_what_a_journal_holds(postgres: PostgresServer) -> None:
    memory = open_study(optuna.storages.InMemoryStorage())
    database = open_study(open_database(postgres.make_database()))
    assert search(memory, trials=6) == search(database, trials=6)
    assert studies.read_trials(memory) == studies.read_trials(database)


def test_many_processes_may_open_a_new_database_at_once(postgres: PostgresServer) -> None:
    with start_openers(processes=4) as openers:
        for _ in range(3):
            open_at_once(openers, postgres.make_database())


def test_what_was_open_is_closed(postgres: PostgresServer) -> None:
    url = postgres.make_database()
    storage = open_database(url)
    open_study(storage)
    viewed = view_storage(url, journal=JOURNAL)
    viewed.get_all_studies()
    assert count_connections(postgres, url) == 2
    del storage, viewed
    until = time.monotonic() + 10  # the server takes a moment to notice
    while count_connections(postgres, url):
        assert time.monotonic() < until
        time.sleep(0.05)


def count_connections(postgres: PostgresServer, url: str) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
    with psycopg.connect(postgres.url) as connection:
        [count] = connection.execute(query, [url.rpartition("/")[2]]).fetchone()
    return count


# ---- the server goes away


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_search_goes_on_when_its_server_was_restarted(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(
        teamwork, "CHOOSING_SECONDS", 0.5
    )  # an answer that was lost may leave a trial that never chooses
    told: list[str] = []
    url = postgres.make_database()
    study = open_study(open_database(url, complain=told.append, patience_seconds=60))
    scored, asked, failed = [], [], []

    def score(candidate: Candidate) -> Evaluation:
        time.sleep(0.01)
        scored.append(candidate.key)
        return evaluate(candidate)

    def work() -> None:
        try:
            asked.extend(search(study, trials=36, score=score))
        except BaseException as error:
            failed.append(error)
            raise

    worker = threading.Thread(target=work)
    worker.start()
    for goal in (6, 16, 26):
        until = time.monotonic() + 60
        while len(scored) < goal and worker.is_alive():
            assert time.monotonic() < until
            time.sleep(0.003)
        postgres.restart(mode, away_seconds=0.5)
    worker.join(timeout=120)
    assert not worker.is_alive()
    assert failed == []
    assert len(asked) == len(set(asked)) == 36
    assert sorted(list_complete(optuna.load_study(storage=open_database(url), study_name="here"))) == sorted(asked)
    waits = [line for line in told if line.endswith("; waiting for it")]
    assert len(waits) >= 3
    assert len(told) == 2 * len(waits)
    assert not any(PASSWORD in line for line in told)


@pytest.mark.parametrize("is_done", [False, True])
def test_no_trial_is_lost_or_doubled_when_connections_break_at_commits(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    """Optuna by itself adds a trial again whose commit was not answered."""
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.001)
    storage = open_database(postgres.make_database(), patience_seconds=30)
    study = open_study(storage)
    engine = patience.find_engine(storage.inner)
    assert engine is not None
    commit, turns = engine.dialect.do_commit, iter(range(10**9))

    def break_off(connection: Any) -> None:
        is_broken = next(turns) % 3 == 0
        if is_done or not is_broken:
            commit(connection)
        if is_broken:
            connection.dbapi_connection.close()
            raise engine.dialect.loaded_dbapi.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(engine.dialect, "do_commit", break_off)
    for number in range(12):
        study.add_trial(optuna.trial.create_trial(values=[float(number), 0.5]))
        study.tell(study.ask(), [float(number), 1.5])
    complete = sorted(tuple(trial.values) for trial in study.get_trials(states=(TrialState.COMPLETE,)))
    assert complete == [(float(number), second) for number in range(12) for second in (0.5, 1.5)]


def test_a_connection_that_the_server_ended_is_replaced_without_a_word(postgres: PostgresServer) -> None:
    told: list[str] = []
    url = postgres.make_database()
    study = open_study(open_database(url, complain=told.append))
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [url.rpartition("/")[2]]
        )
    assert len(search(study, trials=2)) == 2
    assert told == []


def test_a_server_that_stays_away_ends_the_search_with_the_cure(postgres: PostgresServer) -> None:
    told: list[str] = []
    url = postgres.make_database()
    study = open_study(open_database(url, complain=told.append, patience_seconds=0.5))

    def stop(candidate: Candidate) -> Evaluation:
        postgres.stop()
        return evaluate(candidate)

    try:
        with pytest.raises(StudyError, match=r"did not answer for .*Connection refused.*run the same command"):
            search(study, trials=3, score=stop)
        with pytest.raises(StudyError, match=r"cannot be opened .*Connection refused.*its server running"):
            open_database(url)
        with pytest.raises(StudyError, match=r"cannot be opened .*Connection refused.*its server running"):
            view_storage(url, journal=JOURNAL)
    finally:
        postgres.start()
    assert [line.partition(" (")[0] for line in told] == ["the storage does not answer"]


# ---- heartbeats

WORKER = """
import sys, time
from pathlib import Path
from typing import Any
import optuna
from seed.optimize.heartbeats import beating
from seed.optimize.storage import open_storage

storage = open_storage(sys.argv[1], journal=Path("journal.log"), heartbeat_seconds=1, grace_seconds=3)
study = optuna.load_study(study_name="here", storage=storage)
trial = study.ask()
with beating(storage, trial._trial_id):
    print(trial.number, flush=True)
    sys.stdin.readline()
study.tell(trial, [1.0, 1.0])
print("told", flush=True)
"""


@contextmanager
def start_worker(url: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that works on a trial until it is told to end; with the trial's number."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, url],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert worker.stdout is not None
        line = worker.stdout.readline()
        assert line, worker.communicate()
        yield worker, int(line)
    finally:
        worker.kill()
        worker.communicate()


def test_a_killed_workers_trial_is_failed_and_a_slow_ones_is_kept(postgres: PostgresServer) -> None:
    url = postgres.make_database()
    study = open_study(open_database(url, heartbeat_seconds=1, grace_seconds=3))
    # what a clock says in Tokyo is of no account
    with start_worker(url) as (slow, kept), start_worker(url, PGTZ="Asia/Tokyo") as (killed, lost):
        fail_stale_trials(study)
        assert [trial.state for trial in study.trials] == [TrialState.RUNNING] * 2
        killed.kill()
        killed.wait()
        began = time.monotonic()
        while study.trials[lost].state == TrialState.RUNNING:
            assert time.monotonic() - began < 30
            time.sleep(0.2)
            fail_stale_trials(study)
        assert time.monotonic() - began > 1.5  # three seconds after the last heartbeat
        assert study.trials[lost].state == TrialState.FAIL
        time.sleep(2)
        fail_stale_trials(study)
        assert study.trials[kept].state == TrialState.RUNNING
        out, err = slow.communicate("end\n", timeout=60)
        assert (out, err) == ("told\n", "")
        assert study.trials[kept].state == TrialState.COMPLETE


def test_the_living_keep_their_trials_when_the_server_was_away_for_longer_than_the_grace(
    postgres: PostgresServer,
) -> None:
    url = postgres.make_database()
    storage = open_database(url, heartbeat_seconds=1, grace_seconds=2, patience_seconds=60)
    study = open_study(storage)
    trial = study.ask()
    with beating(storage, trial._trial_id):
        postgres.restart(away_seconds=4)
        fail_stale_trials(study)
        assert study.trials[0].state == TrialState.RUNNING
        time.sleep(2.5)
        fail_stale_trials(study)
        assert study.trials[0].state == TrialState.RUNNING
    study.tell(trial, [1.0, 1.0])


def test_leaving_is_prompt_while_the_server_is_away(postgres: PostgresServer) -> None:
    storage = open_database(postgres.make_database(), heartbeat_seconds=1)
    trial = open_study(storage).ask()
    postgres.stop("immediate")
    try:
        began = time.monotonic()
        with beating(storage, trial._trial_id):
            time.sleep(1.2)
        assert time.monotonic() - began < 10
    finally:
        postgres.start()


# ---- passwords and rights


def test_a_password_in_the_environment_opens_the_door(postgres: PostgresServer) -> None:
    assert PASSWORD not in postgres.url
    assert os.environ["PGPASSWORD"] == PASSWORD
    assert open_study(open_database(postgres.make_database())).study_name == "here"


def test_a_password_file_or_a_service_file_opens_it_too(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = postgres.make_database()
    name = url.rpartition("/")[2]
    monkeypatch.delenv("PGPASSWORD")
    passfile = tmp_path / "pass"
    passfile.write_text(f"127.0.0.1:{postgres.port}:*:seed:{PASSWORD}\n")
    passfile.chmod(0o600)
    open_database(f"{url}?passfile={passfile}")
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    open_database(url)
    service = tmp_path / "services"
    service.write_text(f"[mine]\nhost=127.0.0.1\nport={postgres.port}\ndbname={name}\nuser=seed\n")
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    open_database("postgresql:///?service=mine")
    monkeypatch.setenv("PGSERVICE", "mine")
    open_database("postgresql://")


@pytest.mark.parametrize("password", ["three blind rats", None])
def test_a_wrong_password_is_one_error_with_the_cure(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, password: str | None
) -> None:
    url = postgres.make_database()
    monkeypatch.setenv("HOME", "/nonexistent")  # no ~/.pgpass
    monkeypatch.delenv("PGPASSWORD")
    if password:
        monkeypatch.setenv("PGPASSWORD", password)
    for opened in (open_storage, view_storage):
        began = time.monotonic()
        with pytest.raises(StudyError) as caught:
            opened(url, journal=JOURNAL)
        message = str(caught.value)
        assert message.startswith(f"--storage {url}: cannot be opened (")
        assert "password authentication failed" in message or "no password supplied" in message
        assert "Put the user's password into ~/.pgpass or PGPASSWORD" in message
        assert "blind" not in message
        assert "\n" not in message
        assert time.monotonic() - began < 10  # it is not waited for


def test_a_database_that_does_not_exist_is_named(postgres: PostgresServer) -> None:
    with pytest.raises(StudyError, match=r'database "nowhere" does not exist.*a database that exists'):
        open_database(f"postgresql://seed@127.0.0.1:{postgres.port}/nowhere")


def list_tables(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return sorted(name for (name,) in found)


def test_looking_creates_nothing(postgres: PostgresServer) -> None:
    url = postgres.make_database()
    with pytest.raises(StudyError, match="holds no studies yet"):
        view_storage(url, journal=JOURNAL)
    assert list_tables(url) == []


def test_who_may_only_read_may_look_and_not_search(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.make_database()
    search(open_study(open_database(url)), trials=2)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN PASSWORD 'reading'")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    monkeypatch.setenv("PGPASSWORD", "reading")
    theirs = url.replace("seed@", "reader@")
    study = optuna.load_study(storage=view_storage(theirs, journal=JOURNAL), study_name="here")
    assert len(list_complete(study)) == 2
    with pytest.raises(StudyError, match=r"permission denied for schema.*may create tables"):
        open_database(postgres.url.replace("seed@", "reader@"))


# ---- the server of these tests


def test_without_postgresql_tests_are_skipped_and_fail_where_they_must_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "find_binaries", lambda: None)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("NEEDS_POSTGRES", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install"), servers.run_server():
        pass
    for name in ("CI", "NEEDS_POSTGRES"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            with pytest.raises(pytest.fail.Exception, match="apt-get install"), servers.run_server():
                pass
