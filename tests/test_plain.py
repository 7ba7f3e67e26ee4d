"""What would steer a terminal is spelt out."""

import pytest

from seed.plain import spell_controls


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ± text, 日本語, é\n\tindented", "plain ± text, 日本語, é\n\tindented"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b[2J\x1b[1;1H", "\\x1b[2J\\x1b[1;1H"),
        ("over\rwritten\b", "over\\x0dwritten\\x08"),
        ("\x9b31m", "\\x9b31m"),
        ("exe\u202etxt.\u2066", "exe\\u202etxt.\\u2066"),
        ("half \ud800 a pair", "half \\ud800 a pair"),
    ],
)
def test_control_characters_are_spelt_out_and_all_else_stays(text, shown):
    assert spell_controls(text) == shown
