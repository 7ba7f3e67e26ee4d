"""What a library says is told in one line, however much or little it says."""

import pytest
import transformers

from seed.errors import first_line, is_offline
from seed.untrusted import spell_controls


def test_an_error_is_told_in_one_line() -> None:
    assert first_line(ValueError("\n  first of several\nsecond")) == "first of several"
    assert first_line(KeyError("name")) == "'name'"
    assert first_line(MemoryError("  \n ")) == "MemoryError"
    with pytest.raises(Exception, match="hidden_size") as caught:
        transformers.LlamaConfig(hidden_size="abc")
    assert "hidden_size" in first_line(caught.value)
    assert "\n" not in first_line(caught.value)


def test_an_error_that_was_raised_from_a_lost_connection_is_one_of_the_network() -> None:
    lost = ValueError("cannot open")
    lost.__cause__ = ConnectionRefusedError("no route")
    assert is_offline(lost)
    assert not is_offline(ValueError("cannot open"))


def test_control_characters_are_spelt_out_and_all_else_stays() -> None:
    plain = "plain ± text, 日本語, é\n\tindented"
    assert spell_controls(plain) == plain
    assert spell_controls("\x1b[2J\x9b31m over\rwritten\b") == "\\x1b[2J\\x9b31m over\\x0dwritten\\x08"
    assert spell_controls("exe\u202etxt.\u2066, half \ud800 a pair") == "exe\\u202etxt.\\u2066, half \\ud800 a pair"
