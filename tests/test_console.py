"""The terminal: sentences as they are, plain progress where nobody watches, and errors without tracebacks."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
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


# ---- on a real terminal

SHOW = """
import sys, time
from seed import console
from seed.console import Terminal, run_command
def main():
    terminal = Terminal()
    terminal.say("plan: " + "word " * 30 + "end")
    terminal.say("report: /" + "long/" * 30, is_whole=True)
    with terminal.stage("search", total=40, unit="candidates") as advance:
        for done in range(4):
            time.sleep(0.25)
            advance(1, "best PPL ratio: " + "  ".join(f"-{depth}:1.{depth}{done}8" for depth in range(1, 10)))
        time.sleep(0.3)
        END
run_command(main)
"""


def watch(program: str, *, columns: int, signal_after: str | None = None, **extra: str) -> tuple[str, int]:
    """Run a program on a pseudo-terminal; return all that it wrote and its exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(ENVIRONMENT | {"TERM": "xterm-256color"} | extra)
        os.environ.pop("COLUMNS", None)
        os.execv(sys.executable, [sys.executable, "-c", program])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    written = b""
    with contextlib.suppress(OSError):  # the kernel's way to say that the program has ended
        while chunk := os.read(terminal, 65536):
            written += chunk
            if signal_after and signal_after in written.decode(errors="replace"):
                os.write(terminal, b"\x03")
                signal_after = None
    os.close(terminal)
    return written.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_narrow_terminal_shows_best_by_depth_and_wraps_between_words() -> None:
    written, code = watch(SHOW.replace("END", ""), columns=80)
    assert code == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written).replace("\r", "\n").split("\n")
    assert max(len(line) for line in lines if "long/" not in line) <= 80
    assert "report: /" + "long/" * 30 in "".join(lines)  # what people copy is in one piece
    shown = "\n".join(lines)
    assert "4 of 40 candidates" in shown
    assert "left" in shown
    for depth in range(1, 10):
        assert f"-{depth}:1.{depth}38" in shown
    assert [line for line in lines if line][-1] == "search: done in 1 s"


def test_no_color_leaves_colours_out_and_a_dumb_terminal_gets_plain_lines() -> None:
    colors = re.compile(r"\x1b\[[0-9;]*m")
    plain, _ = watch(SHOW.replace("END", ""), columns=80, NO_COLOR="1")
    shown = {code for found in colors.findall(plain) for code in found[2:-1].split(";")}
    assert not [code for code in shown if code.isdigit() and 30 <= int(code) <= 49]
    dumb, _ = watch(SHOW.replace("END", ""), columns=80, TERM="dumb")
    assert "\x1b" not in dumb


def test_an_interrupted_bar_leaves_the_terminal_in_order() -> None:
    written, code = watch(SHOW.replace("END", "time.sleep(60)"), columns=80, signal_after="4 of 40")
    assert code == 130
    assert "stopped. What was finished is kept" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back


def test_a_result_for_scripts_is_alone_on_standard_output() -> None:
    program = (
        "from seed.console import Terminal\nterminal = Terminal(is_aside=True)\nterminal.say('opening')\n"
        "with terminal.stage('search', total=1) as advance: advance(1, '')\nterminal.give('{}')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout == "{}\n"
    assert done.stderr == "opening\nsearch: done in 0 s\n"
