"""Storage URLs: no secret gets in, none gets out, and PostgreSQL is spoken to by whichever driver is installed."""

import importlib
from types import ModuleType

import pytest

from seed.errors import StudyError
from seed.optimize.urls import check_storage_url, hide_secrets, name_driver, spell_error

SECRETS = [
    "postgresql://host/studies?user=me&password=hunter2",
    "postgresql://host/studies?pass%77ord=hunter2",
    "postgresql://host/studies?oauth_client_secret=hunter2",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7Bx%7D%3BUID%3Dme%3BPWD%3Dhunter2",
    "postgresql://me:hunter2 and more@host/studies",
]
HARMLESS = [
    "postgresql://me@host:5432/studies?sslmode=verify-full&sslrootcert=/etc/ca.pem&passfile=/home/me/.pgpass",
    "postgresql:///studies?host=/run/postgresql&user=me",
    "sqlite:///a:b@c.db",
    "sqlite:////tmp/token/password.db",
]


@pytest.mark.parametrize("url", SECRETS)
def test_a_url_that_carries_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StudyError, match="holds a password") as caught:
        check_storage_url(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", HARMLESS)
def test_a_url_without_a_secret_passes_and_is_spelled_as_it_is(url: str) -> None:
    check_storage_url(url)
    assert hide_secrets(f"--storage {url}: cannot be opened") == f"--storage {url}: cannot be opened"


@pytest.mark.parametrize(
    ("message", "hidden"),
    [
        ("postgresql://me:hunter2@host/x?y=z is gone", "postgresql://me:***@host/x?y=z is gone"),
        ("postgresql://me:hun@ter2@host/x is gone", "postgresql://me:***@host/x is gone"),
        ("x://host/y?password=hunter2&sslmode=a", "x://host/y?password=***&sslmode=a"),
        ("bad connection string: host=a password=hunter2 port=1", "bad connection string: host=a password=*** port=1"),
        ('password authentication failed for user "me"', 'password authentication failed for user "me"'),
    ],
)
def test_messages_hide_what_may_be_a_secret(message: str, hidden: str) -> None:
    assert hide_secrets(message) == hidden
    assert spell_error(ValueError(message)) == hidden


def test_a_drivers_message_becomes_one_line() -> None:
    told = "(psycopg.OperationalError) refused\n\tIs the server running?\n[SQL: SELECT 1]\n(Background on this error at: x)"
    assert spell_error(ValueError(told)) == "(psycopg.OperationalError) refused Is the server running?"
    assert spell_error(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("installed", "named"),
    [
        (("psycopg", "psycopg2"), "postgresql+psycopg://me@host/x"),
        (("psycopg2",), "postgresql+psycopg2://me@host/x"),
    ],
)
def test_the_installed_driver_is_named(monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], named: str) -> None:
    monkeypatch.setattr(importlib, "import_module", import_of(installed))
    assert name_driver("postgresql://me@host/x") == named


def test_a_url_that_names_its_driver_is_left_alone_and_without_one_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib, "import_module", import_of(()))
    for url in ("postgresql+psycopg2://me@host/x", "sqlite:///x.db", "mysql+pymysql://host/x"):
        assert name_driver(url) == url
    said = r"--storage postgresql://me@host/x: no driver for PostgreSQL is installed.*pip install 'seed-search\[postgres\]'"
    with pytest.raises(StudyError, match=said):
        name_driver("postgresql://me@host/x")


def import_of(installed: tuple[str, ...]):
    def find(name: str) -> ModuleType:
        if name not in installed:
            raise ImportError(name)
        return ModuleType(name)

    return find
