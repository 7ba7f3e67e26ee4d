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

import msgspec
import pytest

from seed import console, errors
from seed.console import Terminal, format_seconds, format_span
from seed.errors import SeedError, StudyError
from seed.records import Estimate
from tests.running import ROOT, environment

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, whatever the tests run in, and signals stay the tests' own."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("seed.interrupts.listen", lambda: None)
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)


def test_seconds_are_said_as_people_do() -> None:
    said = {0.4: "0 s", 59.4: "59 s", 59.6: "1 min 00 s", 3599.4: "59 min 59 s", 3599.6: "1 h 00 min"}
    said |= {172_799: "47 h 59 min", 172_800: "2 days", 14 * 86_400: "2 weeks", 100 * 86_400: "3 months"}
    assert {seconds: format_seconds(seconds) for seconds in said} == said


def test_estimates_are_said_with_their_spread() -> None:
    said = {0: "less than 10 s", 5: "less than 10 s", 20: "14 to 34 s", 100: "1 to 3 min", 3600: "42 to 102 min"}
    said |= {6000: "1 to 3 h", 187 * 3600: "5 to 13 days", 22_320 * 3600: "2 to 4 years"}
    assert {seconds: format_span(seconds) for seconds in said} == said


def test_sentences_and_cells_are_printed_as_they_are(capsys: Captured) -> None:
    texts = ["[bold]not markup[/bold] and [/closed]", ":key: is a layer's name", "long " * 100 + "end"]
    for text in texts:
        Terminal().say(text)
    assert capsys.readouterr().out.splitlines() == texts
    Terminal().show_table(["model", "ratio"], [["a[b]c", "0.845 [0.840, 0.851]"]], title="of [x]")
    lines = capsys.readouterr().out.split("\n")
    assert [" ".join(line.split()) for line in lines if "─" not in line and line.strip()] == [
        "of [x]",
        "model ratio",
        "a[b]c 0.845 [0.840, 0.851]",
    ]


def test_stages_print_plain_lines(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    with Terminal().stage("search", total=3) as advance:
        for done in range(1, 4):  # the last step needs no line of its own
            advance(1, f"best [{done}]")
    with Terminal().stage("distill", total=3, is_share=True) as advance:
        advance(0.5, "a")
        advance(1.0, "b")
    terminal = Terminal()
    terminal.begin_step("search", of=("latency", "search", "distill"))
    with terminal.stage("sweep", total=2) as advance:
        advance(1, "best", ["-1: 1.028 (7)", "-2: 1.107 (1, 7)"])
    with pytest.raises(StudyError), Terminal().stage("failed", total=2):
        raise StudyError("no")
    monkeypatch.setattr(console, "PLAIN_SECONDS", 10.0)
    with Terminal().stage("short", total=2) as advance:
        advance(1, "cut")
    assert capsys.readouterr().out.splitlines() == [
        "search: 1 of 3",
        "search: 2 of 3",
        "search: done in 0 s",
        "distill: 17%",
        "distill: 50%",
        "distill: done in 0 s",
        "[2/3] sweep: 1 of 2",
        "[2/3] sweep: done in 0 s; best: -1: 1.028 (7), -2: 1.107 (1, 7)",
        "short: done in 0 s",
    ]


def test_a_quiet_terminal_and_a_command_that_works_say_nothing(capsys: Captured) -> None:
    terminal = Terminal(quiet=True)
    terminal.say("hello")
    terminal.show_table(["a"], [["b"]])
    with terminal.stage("search", total=2) as advance:
        advance(1, "note")
    console.run_command(lambda: None)
    assert capsys.readouterr() == ("", "")


def test_what_would_steer_the_terminal_is_spelt_out_wherever_it_is_shown(capsys: Captured) -> None:
    evil = "drop\x1b[2J\u202e"
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
        assert not {"\x1b", "\u202e"} & set(shown)
        assert r"drop\x1b[2J\u202e" in shown


# ---- a real terminal

SEARCH_LIKE = """
import sys, time
from seed.console import Terminal, run_command
def main():
    terminal = Terminal()
    terminal.say("words " * 30 + "end")
    terminal.begin_step("search", of=("latency", "search"))
    with terminal.stage("search", total=40) as advance:
        for number in range(40):
            time.sleep(float(sys.argv[1]))
            advance(1, "best PPL ratio at each depth", [f"-{d}: 1.{d}28 ({', '.join(map(str, range(d)))})" for d in range(1, 9)])
    terminal.show_table(["a"], [["b"]], title="bold")
run_command(main)
"""
ESCAPE = re.compile(rb"\x1b\[([0-9;?]*)([A-Za-z])")
SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"


def watch(seconds: float, *, columns: int = 80, interrupt_at: bytes | None = None, **extra: str) -> tuple[bytes, int]:
    """Run what looks like a search in a terminal of so many columns; return all that it was sent, and the exit code."""
    around = {key: value for key, value in environment().items() if key not in ("CI", "NO_COLOR", "LINES", "COLUMNS")}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", SEARCH_LIKE, str(seconds)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env=around | {"TERM": "xterm-256color"} | extra,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        sent = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how Linux says that the other side is closed
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


@pytest.mark.parametrize("columns", [40, 120])
def test_a_terminal_shows_the_best_of_each_depth_within_its_width(columns: int) -> None:
    sent, code = watch(0.08, columns=columns)
    assert code == 0, sent
    lines = read_lines(sent)
    assert max(map(len, lines)) <= columns
    shown = " ".join(lines)
    assert all(f"-{depth}: 1.{depth}28" in shown for depth in range(1, 9))
    assert re.search(r"\[2/2\] search.* 3\d of 40, \d s, \d s left", shown)
    assert re.match(r"(words ?)+(end)?$", lines[0])  # wrapped between words
    assert find_colours(sent) or columns == 40  # where no bar has room
    assert sent.rindex(SHOW_CURSOR) > sent.rindex(HIDE_CURSOR)
    last = read_lines(sent[sent.rindex(SHOW_CURSOR) :])
    assert re.match(r"\[2/2\] search: done in \d+ s", last[0])


def find_colours(sent: bytes) -> list[bytes]:
    """Every escape code that sets a colour: 30 to 49, 90 to 107."""
    codes = [code for found, kind in ESCAPE.findall(sent) if kind == b"m" for code in found.split(b";") if code]
    return [code for code in codes if 30 <= int(code) <= 49 or 90 <= int(code) <= 107]


def test_no_color_leaves_the_bar_and_ctrl_c_the_terminal_in_order() -> None:
    sent, code = watch(0.1, interrupt_at=b"-8: ", NO_COLOR="1")
    assert code == 130
    assert any("of 40" in line for line in read_lines(sent))
    assert not find_colours(sent)
    assert sent.rindex(SHOW_CURSOR) > sent.rindex(HIDE_CURSOR)
    assert read_lines(sent[sent.rindex(SHOW_CURSOR) :]) == [
        "stopped. What was finished is kept; run the same command again to go on."
    ]


@pytest.mark.parametrize("extra", [{"TERM": "dumb"}, {"CI": "true"}], ids=["dumb", "ci"])
def test_where_nothing_can_be_drawn_over_lines_are_plain(extra: dict[str, str]) -> None:
    sent, code = watch(0, **extra)
    assert code == 0
    assert HIDE_CURSOR not in sent
    assert {kind for _, kind in ESCAPE.findall(sent)} <= {b"m"}
    assert sum("search" in line for line in read_lines(sent)) == 1


def test_no_setting_puts_escape_codes_into_a_file() -> None:
    forced = environment(FORCE_COLOR="1", CLICOLOR_FORCE="1", TTY_COMPATIBLE="1")
    done = subprocess.run([sys.executable, "-c", SEARCH_LIKE, "0"], env=forced, cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"search: done in" in done.stdout
    assert b"\x1b" not in done.stdout + done.stderr


# ---- how a command ends


def run(work: object, capsys: Captured) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command that does this for a script."""
    with pytest.raises(SystemExit) as caught:
        console.run_command(lambda: console.answer(work, as_json=True))  # type: ignore[arg-type]
    return (int(caught.value.code or 0), *capsys.readouterr())


def test_a_script_gets_one_line_and_nothing_else(capsys: Captured) -> None:
    def work(terminal: Terminal) -> msgspec.Struct:
        print("what a library says")
        terminal.say("a sentence")
        return Estimate(value=float("nan"), low=float("-inf"), high=1.5)

    console.run_command(lambda: console.answer(work, as_json=True))
    assert capsys.readouterr() == ('{"value":null,"low":null,"high":1.5}\n', "what a library says\na sentence\n")


def test_an_error_ends_a_command_with_its_message_and_ctrl_c_in_order(capsys: Captured) -> None:
    def fail(terminal: Terminal) -> msgspec.Struct:
        raise StudyError("studies/demo: in use. Wait for it.")

    def stop(terminal: Terminal) -> msgspec.Struct:
        raise KeyboardInterrupt

    assert run(fail, capsys) == (2, "", "error: studies/demo: in use. Wait for it.\n")
    code, out, err = run(stop, capsys)
    assert (code, out) == (130, "")
    assert "run the same command again" in err


def test_a_bug_of_ours_is_not_hidden_and_every_error_of_ours_is_a_seed_error() -> None:
    def fail() -> None:
        raise AssertionError("ours")

    with pytest.raises(AssertionError, match="ours"):
        console.run_command(fail)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) == 8
    assert all(issubclass(kind, SeedError) for kind in kinds)
