"""Options of commands, read and spelled."""

import argparse
import shlex
from collections.abc import Callable

import pytest

from seed.stages.options import (
    parse_bytes,
    parse_layers,
    parse_seconds,
    positive_float,
    positive_int,
    spell_command,
    whole_number,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6GB", 6e9),
        ("800MB", 8e8),
        ("1.8GB", 1.8e9),
        ("2 TB", 2e12),
        (" 5kB ", 5e3),
        ("5K", 5e3),
        ("7g", None),
        ("123", 123.0),
        ("123B", 123.0),
        ("", None),
        ("GB", None),
        ("-1GB", None),
        ("1.2.3GB", None),
        (".", None),
        ("6PB", None),
        ("6GBB", None),
        ("nan", None),
        ("1,8GB", None),
    ],
)
def test_sizes_are_read_in_powers_of_ten(text: str, number: float | None) -> None:
    if number is None:
        with pytest.raises(ValueError):  # noqa: PT011
            parse_bytes(text)
    else:
        assert parse_bytes(text) == number


def test_a_size_in_powers_of_two_is_not_taken_for_one_in_powers_of_ten() -> None:
    try:
        number = parse_bytes("6GiB")
    except ValueError:
        return
    assert number == 6 * 2**30


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("1.5s", 1.5),
        ("10m", 600.0),
        ("2h", 7200.0),
        ("0.5h", 1800.0),
        (" 10 m ", 600.0),
        ("0", 0.0),
        ("0s", 0.0),
        (".5m", 30.0),
        ("", None),
        ("m", None),
        (".", None),
        ("-1", None),
        ("-1s", None),
        ("1.2.3", None),
        ("10M", None),
        ("10min", None),
        ("1h30m", None),
        ("1d", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("1,5h", None),
    ],
)
def test_times_are_seconds_minutes_or_hours(text: str, seconds: float | None) -> None:
    if seconds is None:
        with pytest.raises(ValueError):  # noqa: PT011
            parse_seconds(text)
    else:
        assert parse_seconds(text) == seconds


def test_numbers_for_argparse() -> None:
    assert positive_int("3") == 3
    assert positive_float("0.5") == 0.5
    for text in ("0", "-1"):
        with pytest.raises(argparse.ArgumentTypeError):
            positive_int(text)
    for text in ("0", "-1", "nan", "inf"):
        with pytest.raises(argparse.ArgumentTypeError):
            positive_float(text)
    assert whole_number("0") == 0
    for text in ("-1", "2147483648"):
        with pytest.raises(argparse.ArgumentTypeError):
            whole_number(text)


def test_a_command_is_spelled_as_the_shell_reads_it() -> None:
    given = {"rng_seeds": (0, 1), "cost": None, "quiet": True, "distill": False, "near_margin": 0.03}
    command = spell_command("seed.compare", given, "my studies/demo")
    words = ["python", "-m", "seed.compare", "my studies/demo", "--rng-seeds", "0", "1", "--quiet", "--no-distill"]
    assert shlex.split(command) == [*words, "--near-margin", "0.03"]


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("0,1,4-6", (0, 1, 4, 5, 6)),
        ("7", (7,)),
        (" 2 - 3 , 5", (2, 3, 5)),
        ("3-3", (3,)),
        ("", None),
        ("1,", None),
        ("-1", None),
        ("3-1", None),
        ("1,1", None),
        ("2,1", None),
        ("0-3,3", None),
        ("a", None),
        ("0-99999999", None),
    ],
)
def test_layers_are_read_in_rising_order(text: str, layers: tuple[int, ...] | None) -> None:
    if layers is None:
        with pytest.raises(argparse.ArgumentTypeError, match="0-3,6,8-21"):
            parse_layers(text)
    else:
        assert parse_layers(text) == layers


@pytest.mark.parametrize(
    ("read", "wanted"), [(positive_int, "whole number"), (whole_number, "whole number"), (positive_float, "number")]
)
def test_what_is_no_number_is_said_in_words(read: Callable[[str], float], wanted: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^'abc' is not a {wanted}$"):
        read("abc")
