"""Options of commands, read and spelled."""

import argparse
import importlib
import shlex
from collections.abc import Callable

import pytest

from seed.stages.options import (
    CommandParser,
    parse_bytes,
    parse_count,
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
        ("7g", 7e9),
        ("1.8 GB", 1.8e9),
        ("6GiB", 6 * 2**30),
        ("512 mib", 2**29),
        ("1e9", 1e9),
        ("1,000,000", 1e6),
        ("2 bytes", 2.0),
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
        ("10M", 600.0),
        ("10min", 600.0),
        ("10 minutes", 600.0),
        ("1h30m", 5400.0),
        ("2 h 05 min", 7500.0),
        ("1d", 86400.0),
        ("2 days 1 hour", 176400.0),
        ("1e3", 1000.0),
        ("1 h 30", None),
        ("90 m x", None),
        ("3 weeks of work", None),
        ("nan", None),
        ("inf", None),
        ("1,5h", None),
    ],
)
def test_times_are_read_as_people_write_them(text: str, seconds: float | None) -> None:
    if seconds is None:
        with pytest.raises(ValueError):  # noqa: PT011
            parse_seconds(text)
    else:
        assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e3", 1000),
        ("10k", 10_000),
        ("45m", 45_000_000),
        ("1.5M", 1_500_000),
        ("2B", 2_000_000_000),
        ("10_000", 10_000),
        ("10,000", 10_000),
        (" 7 ", 7),
        ("-5", -5),
        ("1.0", 1),
        ("1.5", None),
        ("1e-3", None),
        ("1,00", None),
        ("1__0", None),
        ("10kB", None),
        ("0x10", None),
        ("", None),
        ("nan", None),
        ("1e99999", None),
    ],
)
def test_counts_are_read_as_people_write_them(text: str, number: int | None) -> None:
    if number is None:
        with pytest.raises(ValueError):  # noqa: PT011
            parse_count(text)
    else:
        assert parse_count(text) == number


COMMANDS = (
    "search",
    "distill",
    "evaluate",
    "export",
    "report",
    "fidelity",
    "compare",
    "recoveries",
    "dashboard",
)


def make_parser(command: str) -> CommandParser:
    found = importlib.import_module("seed.stages.arguments" if command == "search" else f"seed.{command}").make_parser()
    assert isinstance(found, CommandParser)
    return found


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", ""], "--device: is empty"),
        (["--device="], "--device: is empty"),
        (["--device", " "], "--device: is empty"),
        ([""], "is empty"),
        (["--device", "caf\udce9"], "is not UTF-8"),
        (["caf\udce9.txt"], "is not UTF-8"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_a_mistake_is_answered_in_one_line_by_every_command(
    command: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser(command).parse_args(["study"] * (said == "--no-such-option" and command != "search") + words)
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert said in shown.err
    assert shown.err.endswith(f"All options: python -m seed.{command} --help\n")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trials", "lots"], "--trials: 'lots' is not a whole number; write 20000, 20,000, 20k or 2e4"),
        (["--trials", "0"], "--trials: 0 must be 1 or more"),
        (["--trials", "1e30"], "--trials: 1e30 is more than 9,223,372,036,854,775,807"),
        (
            ["--rng-seed", "9223372036854775808"],
            "--rng-seed: 9223372036854775808 must be 0 or more, and below 2,147,483,648",
        ),
        (["--max-memory", "1.8 XB"], "--max-memory: '1.8 XB' is not a size"),
        (["--sweep-budget", "soon"], "--sweep-budget: 'soon' is not a time"),
        (["--max-ppl-ratio", "nan"], "--max-ppl-ratio: 'nan' is not a number"),
    ],
)
def test_what_was_typed_and_what_could_be_is_said(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        make_parser("search").parse_args(words)
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_the_search_reads_numbers_as_people_write_them() -> None:
    words = [
        "--trials",
        "1e3",
        "--distill-tokens",
        "45m",
        "--max-memory=1.8GB",
        "--rng-seed",
        "7",
        "--learning-rate",
        "1e-4",
    ]
    found = make_parser("search").parse_args([*words, "--sweep-budget", "10 min"])
    assert (found.trials, found.distill_tokens, found.max_memory) == (1000, 45_000_000, 1.8e9)
    assert (found.rng_seed, found.learning_rate, found.sweep_budget) == (7, 1e-4, 600.0)


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
    ("read", "wanted"),
    [(positive_int, "whole number; write"), (whole_number, "whole number; write"), (positive_float, "number; write")],
)
def test_what_is_no_number_is_said_in_words(read: Callable[[str], float], wanted: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^'abc' is not a {wanted} "):
        read("abc")
