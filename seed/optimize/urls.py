"""Storage URLs: checked for passwords, completed with a driver that is installed, and spelled without secrets.

Opens nothing.
"""

import importlib
import re
from urllib.parse import unquote_plus

from seed.errors import StudyError

SECRET_NAME = r"[\w-]*(?:password|passwd|pwd|secret|token)[\w-]*"  # noqa: S105 - passfile and sslkey are paths
HELD_PASSWORD = re.compile(r"://[^:/@]*:[^@]+@")
SHOWN_PASSWORD = re.compile(r"(://[^:/@\s]*):\S+@")  # to the last @: a password may hold one
SECRET_SETTING = re.compile(rf"((?:^|[?&;\s]){SECRET_NAME}\s*=\s*)[^&;\s]+", re.IGNORECASE)
POSTGRES_DRIVERS = ("psycopg", "psycopg2")
POSTGRES_CURE = "Install one: pip install 'seed-search[postgres]'"


def check_storage_url(url: str) -> None:
    """Raise when a storage URL holds a password: it would end up in shell history and logs.

    Raises:
        StudyError: it does. The message does not repeat it.
    """
    # decoded, since drivers decode too: pass%77ord=x, odbc_connect=DRIVER%3Dx%3BPWD%3Dy
    if HELD_PASSWORD.search(url) or SECRET_SETTING.search(unquote_plus(url)):
        raise StudyError(
            "--storage: the URL holds a password. Leave it out, and put it into ~/.pgpass or PGPASSWORD (PostgreSQL), "
            "or into an option file (MySQL), where only you can read it."
        )


def hide_secrets(message: str) -> str:
    """Return a message with everything hidden in it that might be a secret; whatever mentions a URL goes through here."""
    return SECRET_SETTING.sub(r"\1***", SHOWN_PASSWORD.sub(r"\1:***@", message))


def spell_error(error: BaseException) -> str:
    """A driver's message in one line and without secrets; drivers write several lines, and SQLAlchemy adds a link."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = " ".join(line for line in lines if line and not line.startswith(("(Background on this error", "[SQL:")))
    return hide_secrets(told)[:300] or type(error).__name__


def name_driver(url: str) -> str:
    """Return a URL that names its driver: SQLAlchemy 2.0 and 2.1 disagree about what ``postgresql://`` means.

    Raises:
        StudyError: no driver for PostgreSQL is installed.
    """
    if not url.startswith("postgresql://"):
        return url
    for driver in POSTGRES_DRIVERS:
        try:
            importlib.import_module(driver)
        except ImportError:  # psycopg without a libpq raises this too
            continue
        return url.replace("postgresql://", f"postgresql+{driver}://", 1)
    raise StudyError(f"--storage {hide_secrets(url)}: no driver for PostgreSQL is installed. {POSTGRES_CURE}")
