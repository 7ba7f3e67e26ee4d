"""The terminal: sentences as they are, plain progress where nobody watches, and errors without tracebacks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import seed
from seed import console
from seed.console import Terminal, format_seconds
from seed.errors import SeedError, StudyError
from seed.reporting.summary import distilled_table

from .reporting import factory

REPOSITORY = Path(seed.__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, whatever the tests run in."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


# ---- numbers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (8.2, "8 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_seconds_are_said_as_people_do(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


# ---- sentences and tables


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "[bold]not markup[/bold] and [/closed]",
        "/models/[v2]/drop-4",
        "hub:NAME[:CONFIG]",
        ":key: is a layer's name",
        "long " * 100 + "end",
    ],
)
def test_a_sentence_is_printed_as_it_is(capsys: pytest.CaptureFixture[str], text: str) -> None:
    Terminal().say(text)
    assert capsys.readouterr().out == text + "\n"


def test_a_table_shows_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["4, 11", "1.0123 ± 0.0020"], ["1, 4, 11", "1.0456 ± 0.0030"]]
    Terminal().show_table(["dropped layers", "PPL ratio"], rows, title="Frontier")
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.strip()]
    assert lines[0].strip() == "Frontier"
    assert lines[1].split() == ["dropped", "layers", "PPL", "ratio"]
    assert [re.split(r"\s{2,}", line.strip()) for line in lines[3:]] == rows
    assert "\x1b" not in out


def test_a_cell_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().show_table(["model", "ratio"], [["a[b]c", "0.845 [0.840, 0.851]"]], title="of [x]")
    out = capsys.readouterr().out
    assert "a[b]c" in out
    assert "0.845 [0.840, 0.851]" in out
    assert "of [x]" in out


def test_the_widest_table_is_not_wrapped_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    results = factory.make_record().distilled
    columns, rows = distilled_table(results, factory.make_record().dense, {})
    Terminal().show_table(columns, rows)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [re.split(r"\s{2,}", line.strip()) for line in (lines[0], *lines[2:])] == [columns, *rows]


def test_a_quiet_terminal_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(quiet=True)
    terminal.say("hello")
    terminal.show_table(["a"], [["b"]])
    with terminal.stage("search", total=2) as advance:
        advance(1, "note")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


# ---- stages


def test_a_stage_prints_plain_lines_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    monkeypatch.setattr(console, "BEFORE_SECONDS", 0.0)
    with Terminal().stage("search", total=4, unit="candidates") as advance:
        for done in range(1, 5):
            advance(1, f"best [{done}]")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"search: {done} of 4 candidates, 0 s left. best [{done}]" for done in (1, 2, 3)]
    assert lines[3:] == ["search: done in 0 s"]  # the last step needs no line of its own


def test_what_was_finished_before_makes_no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    pace = console.Pace(100)
    pace.add(60)
    assert pace.estimate_left() is None
    now = 110.0
    pace.add(10)  # 10 in 10 s, 30 are left
    assert pace.estimate_left() == pytest.approx(30)
    now = 115.0
    assert pace.estimate_left() == pytest.approx(25)
    now = 500.0
    assert pace.estimate_left() == 0
    assert pace.say_done("candidates") == "70 of 100 candidates"
    assert pace.say_done("") == "70 %"


def test_a_short_stage_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().stage("proofs", total=2) as advance:
        advance(1, "cut")
        advance(1, "fold")
    assert capsys.readouterr().out == "proofs: done in 0 s\n"


def test_fractions_of_work_add_up(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    with Terminal().stage("distill", total=3) as advance:
        advance(0.5, "a")
        advance(1.0, "b")
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "distill: 17 %. a",
        "distill: 50 %. b",
        "distill: done in 0 s",
    ]


def test_a_stage_that_fails_is_not_said_to_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StudyError), Terminal().stage("search", total=2):
        raise StudyError("no")
    assert "done" not in capsys.readouterr().out


# ---- commands


def test_an_error_ends_a_command_with_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise StudyError("studies/demo: in use. Wait for it.")

    with pytest.raises(SystemExit) as caught:
        console.run_command(fail)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == "error: studies/demo: in use. Wait for it.\n"
    assert captured.out == ""


def test_every_error_of_ours_is_a_seed_error() -> None:
    from seed import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) == 7
    assert all(issubclass(kind, SeedError) for kind in kinds)


def test_a_bug_of_ours_is_not_hidden() -> None:
    def fail() -> None:
        raise AssertionError("ours")

    with pytest.raises(AssertionError, match="ours"):
        console.run_command(fail)


def test_a_command_that_works_ends_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    console.run_command(lambda: None)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def run_python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], env=ENVIRONMENT, cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )


def test_a_wrong_setting_ends_the_real_command_in_one_line() -> None:
    done = run_python("-m", "seed.search", "--trials", "0")
    assert done.returncode == 2
    assert done.stderr == "error: --trials 0: must be above 0.\n"
    assert done.stdout == ""


def test_a_missing_study_ends_the_real_command_in_one_line(tmp_path: Path) -> None:
    done = run_python("-m", "seed.report", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: not a study")
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_ends_a_command_with_130() -> None:
    script = "from seed.console import run_command\ndef main():\n    raise KeyboardInterrupt\nrun_command(main)"
    done = run_python("-c", script)
    assert done.returncode == 130
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
