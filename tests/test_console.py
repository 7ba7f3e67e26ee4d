"""The terminal: sentences as they are, plain progress where nobody watches, and errors without tracebacks."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import seed
from seed import console
from seed.console import Terminal, format_seconds, format_span
from seed.errors import SeedError, StudyError
from seed.reporting.tables import list_models
from seed.results import compute_result

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
        (172_799, "47 h 59 min"),
        (172_800, "2 days"),
        (360_000, "4 days"),
        (14 * 86_400, "2 weeks"),
        (100 * 86_400, "3 months"),
        (22_320 * 3600, "3 years"),
    ],
)
def test_seconds_are_said_as_people_do(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "less than 10 s"),
        (5, "less than 10 s"),
        (20, "14 to 34 s"),
        (100, "1 to 3 min"),
        (300, "4 to 8 min"),
        (3600, "42 to 102 min"),
        (6000, "1 to 3 h"),
        (187 * 3600, "5 to 13 days"),
        (862 * 3600, "4 to 9 weeks"),
        (22_320 * 3600, "2 to 4 years"),
    ],
)
def test_estimates_are_said_with_their_spread(seconds: float, text: str) -> None:
    assert format_span(seconds) == text


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
    columns, rows = list_models(compute_result(factory.make_record()))
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
    with Terminal().stage("search", total=4) as advance:
        for done in range(1, 5):
            advance(1, f"best [{done}]")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"search: {done} of 4. best [{done}]" for done in (1, 2, 3)]
    assert lines[3:] == ["search: done in 0 s"]  # the last step needs no line of its own


def test_a_short_stage_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().stage("proofs", total=2) as advance:
        advance(1, "cut")
        advance(1, "fold")
    assert capsys.readouterr().out == "proofs: done in 0 s\n"


def test_fractions_of_work_add_up(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    with Terminal().stage("distill", total=3, is_share=True) as advance:
        advance(0.5, "a")
        advance(1.0, "b")
    assert capsys.readouterr().out.splitlines() == [
        "distill: 17%. a",
        "distill: 50%. b",
        "distill: done in 0 s",
    ]


def test_facts_under_a_note_stand_behind_it_in_plain_lines_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    terminal = Terminal()
    terminal.begin_step("search", of=("latency", "search", "distill"))
    with terminal.stage("sweep", total=2) as advance:
        advance(1, "best", ["-1: 1.028 (7)", "-2: 1.107 (1, 7)"])
    assert capsys.readouterr().out.splitlines() == [
        "[2/3] sweep: 1 of 2. best: -1: 1.028 (7), -2: 1.107 (1, 7)",
        "[2/3] sweep: done in 0 s; best: -1: 1.028 (7), -2: 1.107 (1, 7)",
    ]


@pytest.mark.parametrize("name", ["FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"])
def test_no_setting_puts_escape_codes_into_a_file(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SEARCH_LIKE], env=ENVIRONMENT | {name: "1"}, cwd=REPOSITORY, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert b"search: done in" in done.stdout
    assert b"\x1b" not in done.stdout + done.stderr


# ---- a terminal: the commands see a real one

SEARCH_LIKE = """
import sys, time
from seed.console import Terminal, run_command
def main():
    terminal = Terminal()
    terminal.say("words " * 30 + "end")
    terminal.begin_step("search", of=("latency", "search"))
    with terminal.stage("search", total=40) as advance:
        for number in range(40):
            time.sleep(float(sys.argv[1]) if len(sys.argv) > 1 else 0)
            advance(1, "best PPL ratio at each depth", [f"-{d}: 1.{d}28 ({', '.join(map(str, range(d)))})" for d in range(1, 9)])
    terminal.show_table(["a"], [["b"]], title="bold")
run_command(main)
"""
ESCAPE = re.compile(rb"\x1b\[([0-9;?]*)([A-Za-z])")
SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"


def watch(*words: str, columns: int = 80, interrupt_at: bytes | None = None, **extra: str) -> tuple[bytes, int]:
    """Run Python in a real terminal of so many columns; return all that it was sent, and the exit code."""
    environment = {
        key: value for key, value in ENVIRONMENT.items() if key not in ("CI", "NO_COLOR", "LINES", "COLUMNS")
    }
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=REPOSITORY,
        env=environment | {"TERM": "xterm-256color"} | extra,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        sent = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how Linux says that the other side is closed
                break
            if not part:
                break
            sent += part
            if interrupt_at is not None and interrupt_at in sent:
                process.send_signal(signal.SIGINT)
                interrupt_at = None
    os.close(ours)
    return sent, process.returncode


def read_lines(sent: bytes) -> list[str]:
    """Every line that was drawn, without what moves the cursor or colours."""
    return [line for line in re.split(r"[\r\n]+", ESCAPE.sub(b"", sent).decode()) if line.strip()]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_terminal_shows_the_best_of_each_depth_within_its_width(columns: int) -> None:
    sent, code = watch("-c", SEARCH_LIKE, "0.08", columns=columns)
    assert code == 0, sent
    lines = read_lines(sent)
    assert max(map(len, lines)) <= columns
    shown = " ".join(lines)
    assert all(f"-{depth}: 1.{depth}28" in shown for depth in range(1, 9))
    assert re.search(r"\[2/2\] search.* 3\d of 40, 0:0\d, 0:0\d left", shown)
    assert re.match(r"(words ?)+(end)?$", lines[0])  # wrapped between words
    assert sent.rindex(SHOW_CURSOR) > sent.rindex(HIDE_CURSOR)
    last = read_lines(sent[sent.rindex(SHOW_CURSOR) :])
    assert re.match(r"\[2/2\] search: done in \d+ s", last[0])


def test_no_color_leaves_the_bar_and_takes_the_colours() -> None:
    coloured, _ = watch("-c", SEARCH_LIKE, "0.02")
    plain, code = watch("-c", SEARCH_LIKE, "0.02", NO_COLOR="1")
    assert code == 0
    assert find_colours(coloured)
    assert not find_colours(plain)
    assert any("of 40" in line for line in read_lines(plain))


def find_colours(sent: bytes) -> list[bytes]:
    """Every escape code that sets a colour: 30 to 49, 90 to 107."""
    codes = [code for found, kind in ESCAPE.findall(sent) if kind == b"m" for code in found.split(b";") if code]
    return [code for code in codes if 30 <= int(code) <= 49 or 90 <= int(code) <= 107]


@pytest.mark.parametrize("extra", [{"TERM": "dumb"}, {"CI": "true"}], ids=["dumb", "ci"])
def test_where_nothing_can_be_drawn_over_lines_are_plain(extra: dict[str, str]) -> None:
    sent, code = watch("-c", SEARCH_LIKE, **extra)
    assert code == 0
    assert HIDE_CURSOR not in sent
    assert {kind for _, kind in ESCAPE.findall(sent)} <= {b"m"}
    assert sum("search" in line for line in read_lines(sent)) == 1


def test_ctrl_c_leaves_the_terminal_in_order() -> None:
    sent, code = watch("-c", SEARCH_LIKE, "0.1", interrupt_at=b"-8: ")
    assert code == 130
    assert sent.rindex(SHOW_CURSOR) > sent.rindex(HIDE_CURSOR)
    assert read_lines(sent[sent.rindex(SHOW_CURSOR) :]) == [
        "stopped. What was finished is kept; run the same command again to go on."
    ]


# ---- a line for scripts

FOR_SCRIPTS = """
import msgspec
from seed.console import answer_in_json, run_command
from seed.errors import StudyError
from seed.records import Estimate
def work(terminal):
    print("what a library says")
    terminal.say("a sentence")
    if {fails}:
        raise StudyError("studies/demo: in use. Wait for it.")
    return Estimate(value=float("nan"), low=float("-inf"), high=1.5)
run_command(lambda: answer_in_json(work))
"""


def test_a_script_gets_one_line_and_nothing_else() -> None:
    done = run_python("-c", FOR_SCRIPTS.format(fails=False))
    assert done.stdout == '{"value":null,"low":null,"high":1.5}\n'
    assert done.stderr == "what a library says\na sentence\n"


def test_a_script_gets_no_line_of_what_failed() -> None:
    done = run_python("-c", FOR_SCRIPTS.format(fails=True))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == "error: studies/demo: in use. Wait for it."


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
    assert len(kinds) == 8
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
    done = run_python("-m", "seed.search", "--max-ppl-ratio", "1")
    assert done.returncode == 2
    assert done.stderr == "error: --max-ppl-ratio 1.0: a ratio to the dense model, above 1. Try 1.1.\n"
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


def test_what_would_steer_the_terminal_is_spelt_out_wherever_it_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "drop\x1b[2J\u202e"
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    terminal = Terminal()
    terminal.say(evil)
    terminal.show_table(["layers"], [[evil]], title=evil)
    with terminal.stage("search", total=2) as advance:
        advance(1, evil, [evil])

    def fail() -> None:
        raise StudyError(evil)

    with pytest.raises(SystemExit):
        console.run_command(fail)
    captured = capsys.readouterr()
    for shown in (captured.out, captured.err):
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert r"drop\x1b[2J\u202e" in shown
