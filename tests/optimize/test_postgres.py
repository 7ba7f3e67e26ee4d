"""Studies shown by a real PostgreSQL server: written, looked at, gone in the middle, locked with a password."""

import os
import time
from pathlib import Path

import optuna
import psycopg
import pytest

from seed.errors import ResourceError, StudyError
from seed.optimize.storage import load_study, open_storage, view_storage
from tests.optimize import test_trials as search
from tests.postgres import PASSWORD, PostgresServer

JOURNAL = Path("nowhere") / "journal.log"


def open_study(url: str) -> optuna.Study:
    storage = open_storage(url, journal=JOURNAL)
    return optuna.create_study(storage=storage, study_name="here", load_if_exists=True)


def list_values(url: str) -> list[float | None]:
    return [trial.value for trial in load_study(view_storage(url, journal=JOURNAL), "here").trials]


# ---- the server goes away


def test_a_connection_that_the_server_ended_is_replaced_without_a_word(postgres: PostgresServer) -> None:
    url = postgres.make_database()
    study = open_study(url)
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [url.rpartition("/")[2]]
        )
    study.tell(study.ask(), 1.0)
    postgres.restart("immediate")
    study.tell(study.ask(), 2.0)
    assert list_values(url) == [1.0, 2.0]


def test_a_search_whose_server_goes_away_goes_on_where_it_stood(postgres: PostgresServer, tmp_path: Path) -> None:
    url = postgres.make_database()
    order = search.run(tmp_path / "unbroken", trials=5)
    place = tmp_path / "here"
    try:
        with pytest.raises(ResourceError, match=r"Connection refused.*run the same command again"):
            search.run(place, url=url, trials=5, score=search.break_at(2, postgres.stop))
    finally:
        postgres.start()
    known = [key for _, key, _ in search.kept(place)]
    assert search.measured(place) == order[:3]
    known += search.run(place, url=url, trials=4)
    assert known + search.run(place, url=url, trials=5) == order
    search.require_agreement(place, url)
    assert not (place / "journal.log").exists()


# ---- passwords and rights


def test_a_password_in_the_environment_or_in_a_file_opens_the_door(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = postgres.make_database()
    assert PASSWORD not in postgres.url
    assert os.environ["PGPASSWORD"] == PASSWORD
    assert open_study(url).study_name == "here"
    monkeypatch.delenv("PGPASSWORD")
    passfile = tmp_path / "pass"
    passfile.write_text(f"127.0.0.1:{postgres.port}:*:seed:{PASSWORD}\n")
    passfile.chmod(0o600)
    open_storage(f"{url}?passfile={passfile}", journal=JOURNAL)


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


def test_looking_creates_nothing(postgres: PostgresServer) -> None:
    url = postgres.make_database()
    with pytest.raises(StudyError, match="holds no studies yet"):
        view_storage(url, journal=JOURNAL)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall() == []
    with pytest.raises(StudyError, match=r'database "nowhere" does not exist.*a database that exists'):
        open_storage(f"postgresql://seed@127.0.0.1:{postgres.port}/nowhere", journal=JOURNAL)


def test_who_may_only_read_may_look_and_not_search(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.make_database()
    study = open_study(url)
    study.tell(study.ask(), 1.0)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN PASSWORD 'reading'")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    monkeypatch.setenv("PGPASSWORD", "reading")
    theirs = url.replace("seed@", "reader@")
    assert list_values(theirs) == [1.0]
    with pytest.raises(StudyError, match=r"permission denied for schema.*may create tables"):
        open_storage(postgres.url.replace("seed@", "reader@"), journal=JOURNAL)
