"""What a library says is told in one line, however much or little it says."""

import pytest
import transformers

from seed.errors import first_line, is_offline


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


def test_of_a_config_that_transformers_refuses_it_is_told_why() -> None:
    with pytest.raises(Exception, match="hidden_size") as caught:
        transformers.LlamaConfig(hidden_size="abc")
    assert "hidden_size" in first_line(caught.value)
    assert "\n" not in first_line(caught.value)


def test_an_error_that_was_raised_from_a_lost_connection_is_one_of_the_network() -> None:
    lost = ValueError("cannot open")
    lost.__cause__ = ConnectionRefusedError("no route")
    assert is_offline(lost)
    assert not is_offline(ValueError("cannot open"))
