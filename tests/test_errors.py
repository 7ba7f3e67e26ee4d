"""What a library says is told in one line, however much or little it says."""

import pytest

from seed.errors import first_line


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("one line"), "one line"),
        (ValueError("\n  first of several\nsecond"), "first of several"),
        (KeyError("name"), "'name'"),
        (ValueError(), "ValueError"),
        (MemoryError("  \n "), "MemoryError"),
    ],
)
def test_an_error_is_told_in_one_line(error: Exception, told: str) -> None:
    assert first_line(error) == told
