"""Command lines made from records: numbers read as people write them, mistakes in one line, commands spelled back."""

import importlib
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seed import cli
from seed.cli import (
    COUNT,
    PATH,
    POSITIVE,
    SHARE,
    SWITCH,
    TEXT,
    WHOLE,
    argument,
    entry,
    option,
    read_command,
    spell_command,
)
from seed.optimize import strategies
from seed.resolve import list_presets
from tests.running import environment

READ = [
    (
        cli.BYTES.parse,
        {
            "6GB": 6e9,
            "800MB": 8e8,
            "1.8 GB": 1.8e9,
            "2 TB": 2e12,
            " 5kB ": 5e3,
            "7g": 7e9,
            "6GiB": 6 * 2**30,
            "512 mib": 2**29,
            "1e9": 1e9,
            "1,000,000": 1e6,
            "2 bytes": 2.0,
            "123B": 123.0,
        },
        ["", "GB", "1.2.3GB", ".", "6PB", "6GBB", "nan", "1,8GB"],
    ),
    (
        cli.SECONDS.parse,
        {
            "90": 90.0,
            "1.5s": 1.5,
            "10m": 600.0,
            "10M": 600.0,
            "10 minutes": 600.0,
            "0.5h": 1800.0,
            " 10 m ": 600.0,
            "0s": 0.0,
            ".5m": 30.0,
            "1h30m": 5400.0,
            "2 h 05 min": 7500.0,
            "2 days 1 hour": 176400.0,
            "1e3": 1000.0,
        },
        ["", "m", ".", "1.2.3", "1 h 30", "90 m x", "3 weeks of work", "10y", "nan", "inf", "1,5h"],
    ),
    (
        cli.COUNT.parse,
        {"1e3": 1000, "10k": 10_000, "45m": 45_000_000, "1.5M": 1_500_000, "2B": 2 * 10**9, "10_000": 10_000}
        | {"10,000": 10_000, " 7 ": 7, "-5": -5, "1.0": 1},
        ["1.5", "1e-3", "1,00", "1__0", "10kB", "0x10", "", "nan", "1e99999"],
    ),
    (
        cli.LAYERS.parse,
        {"0,1,4-6": (0, 1, 4, 5, 6), "7": (7,), " 2 - 3 , 5": (2, 3, 5), "3-3": (3,)},
        ["", "1,", "-1", "a", "0-99999999"],
    ),
]


@pytest.mark.parametrize(("parse", "good", "bad"), READ)
def test_numbers_are_read_as_people_write_them(
    parse: Callable[[str], Any], good: dict[str, Any], bad: list[str]
) -> None:
    assert {text: parse(text) for text in good} == good
    for text in bad:
        with pytest.raises(ValueError):  # noqa: PT011
            parse(text)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (COUNT, ["abc", "0", "-1", "1e30", 0, 2.5, True]),
        (WHOLE, ["-1", "2147483648", None]),
        (POSITIVE, ["abc", "0", "-1", "nan", "inf", float("nan"), True]),
        (SHARE, ["1.5", -0.1]),
        (cli.BYTES, ["-1GB", "0"]),
        (cli.SECONDS, ["-1", "-1s", float("inf")]),
        (cli.LAYERS, ["3-1", "1,1", "2,1", "0-3,3", (2, 1)]),
        (SWITCH, ["yes", 1]),
        (TEXT, ["", " ", "caf\udce9", 3]),
        (PATH, ["", 3]),
    ],
)
def test_what_is_not_allowed_is_told_with_what_is(kind: cli.Kind, bad: list[Any]) -> None:
    for given in bad:
        with pytest.raises(ValueError, match="wanted ") as caught:
            kind.read(given)
        assert str(caught.value) == f"wanted {kind.wanted}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Things: of a kind."""

    size: int = option("how many", 3)
    hidden: int | None = entry()


@dataclass(frozen=True, kw_only=True)
class Command(Group):
    """A command of our own.

    More of it.
    """

    paths: tuple[Path, ...] = argument("some", metavar="FILE", many=True)
    quiet: bool = option("say 0 % of it", False)
    loud: bool = option("do not", True)


def read(*words: str) -> Command:
    return read_command(Command, words)


def test_a_record_is_filled_from_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert read("a", "b") == Command(paths=(Path("a"), Path("b")))
    assert read("a", "--size=2k", "--quiet", "--no-loud") == Command(
        paths=(Path("a"),), size=2000, quiet=True, loud=False
    )
    assert read("a", "--no-quiet", "--loud") == read("a")
    with pytest.raises(SystemExit):
        read("--help")
    shown = capsys.readouterr().out
    assert "\nA command of our own.\n" in shown
    assert shown.endswith("\nMore of it.\n")
    assert "Things: of a kind:\n  --size N " in shown
    assert "say 0 % of it" in shown
    assert "--no-loud" in shown
    assert "--hidden" not in shown
    with pytest.raises(SystemExit):
        read("a", "--hidden=3")


COMMANDS = (
    "seed.search",
    "seed.distill",
    "seed.evaluate",
    "seed.export",
    "seed.report",
    "seed.experiment fidelity",
    "seed.experiment compare",
    "seed.experiment recoveries",
    "seed.dashboard",
    "studies.claims",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistake_is_answered_in_one_line_by_every_command(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, said in (
        (["--device", ""], " : wanted "),  # of an option, or where there is none of that name, of the study
        (["--device", "caf\udce9"], "caf\\udce9: wanted "),
        ([*["study"] * (command != "seed.search"), "--no-such-option"], "--no-such-option"),
    ):
        module, *name = command.split()
        monkeypatch.setattr(sys, "argv", [module, *name, *words])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(module if module.startswith("seed.") else f"{module}.__main__").main()
        assert ended.value.code == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("error: ")
        assert said in shown.err
        assert shown.err.endswith(f"All options: python -m {command} --help\n")
        assert shown.err.count("\n") == 1


def measure_children() -> float:
    """Seconds of work that processes of ours took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("words", ["seed.search --help", "seed.experiment compare --help"])
def test_the_help_is_there_at_once_with_a_line_for_each_option(words: str, tmp_path: Path) -> None:
    began = measure_children()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *words.split()],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert measure_children() - began < 1
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "datasets", "plotly", "huggingface_hub", "optuna", "scipy", "numpy"}
    if words.startswith("seed.experiment"):
        assert all(name in done.stdout for name in strategies.STRATEGIES)
        return
    shown = done.stdout.partition("options:")[2]
    assert all(name in shown for name in list_presets())
    assert all(line.startswith("  -") for line in shown.splitlines() if line.startswith(" "))
    assert max(map(len, done.stdout.splitlines())) <= cli.HELP_WIDTH


def test_a_command_is_spelled_as_the_shell_reads_it() -> None:
    given = {"rng_seeds": (0, 1), "cost": None, "quiet": True, "distill": False, "near_margin": 0.03}
    command = spell_command("seed.experiment", given, "my studies/demo")
    words = ["python", "-m", "seed.experiment", "my studies/demo", "--rng-seeds", "0", "1", "--quiet", "--no-distill"]
    assert shlex.split(command) == [*words, "--near-margin", "0.03"]
