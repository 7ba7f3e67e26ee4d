"""What the terminal shows: sentences, tables, and progress with remaining time; and the one line of ``--json``.

Bars live on a terminal; elsewhere (logs, pipes, CI) there is a plain line now and then, without escape codes.
"""

import contextlib
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from seed import interrupts
from seed.errors import SeedError
from seed.study_dir import explain_resource_errors
from seed.untrusted import is_utf8, spell_controls

FOUND_SECONDS = 0.2  # work told of before was found in the study's folder: it says nothing of the pace
SILENT_SECONDS = 2.0  # before, no remaining time is worth saying
WIDEST_BAR, NARROWEST_BAR = 40, 4
LONG_UNITS = (("year", 365 * 86400), ("month", 30 * 86400), ("week", 7 * 86400), ("day", 86400))


@dataclass(kw_only=True)
class Stage:
    """A stage's work: how much there is, how much of it is done, and what was said of it last.

    ``is_share``: the amount is no number of things, and shown in per cent.
    """

    title: str
    total: float
    is_share: bool = False
    began: float = field(default_factory=time.monotonic)
    done: float = field(default=0.0, init=False)
    note: str = field(default="", init=False)
    cells: Sequence[str] = field(default=(), init=False)  # short facts that the note introduces
    _found: float = field(default=0.0, init=False)
    _heard: float = field(default=0.0, init=False)

    def advance(self, amount: float, *, now: float) -> None:
        """Take note of work that was done."""
        self.done += amount
        if now - self.began < FOUND_SECONDS:
            self._found = self.done
        elif amount > 0:
            self._heard = now

    def estimate_left(self, *, now: float) -> float | None:
        """Return the seconds that the rest will take; None while that cannot be told.

        At the mean pace, since work comes in bursts: sets that share a prefix follow one another quickly.
        """
        made = self.done - self._found
        if made <= 0 or now - self.began < SILENT_SECONDS:
            return None
        return max(0.0, self.total - self.done) * (self._heard - self.began) / made

    @property
    def amount(self) -> str:
        """``34 of 1,793``, or ``19%``."""
        return f"{self.done / max(self.total, 1e-9):.0%}" if self.is_share else f"{self.done:,.0f} of {self.total:,.0f}"

    @property
    def news(self) -> str:
        """The note and the facts that it introduces."""
        return f"{self.note}: {', '.join(self.cells)}" if self.cells else self.note

    def describe(self, *, now: float) -> str:
        """Return how far it is as one line of plain text."""
        left = self.estimate_left(now=now)
        ahead = "" if left is None else f", {format_seconds(left)} left"
        return f"{self.title}: {self.amount}{ahead}"

    def draw(self, *, width: int, now: float) -> RenderableType:
        """Return a line with the bar, and under it the note and the facts, none wider than ``width`` characters."""
        left = self.estimate_left(now=now)
        ahead = "" if left is None else f", {format_seconds(left)} left"
        numbers = f"{self.amount}, {format_seconds(now - self.began)}{ahead}"
        # the room that the remaining time takes is kept free from the start, so that the bar does not jump
        room = width - len(self.title) - len(numbers) - 2 - (0 if ahead else len(", 2 min 05 s left"))
        line = Table.grid(padding=(0, 1))
        parts: list[RenderableType] = [Text(self.title, no_wrap=True, overflow="ellipsis")]
        if room >= NARROWEST_BAR:
            parts.append(ProgressBar(total=max(self.total, 1e-9), completed=self.done, width=min(WIDEST_BAR, room)))
        line.add_row(*parts, Text(numbers, no_wrap=True, overflow="ellipsis"))
        under: list[RenderableType] = []
        if self.note:
            under.append(Text(self.note + (":" if self.cells else "")))
        if self.cells:
            under.append(Columns([Text(cell) for cell in self.cells], padding=(0, 3)))
        return Group(line, *(Padding(row, (0, 0, 0, 2)) for row in under))


def format_seconds(seconds: float) -> str:
    """``8 s``, ``3 min 20 s``, ``2 h 05 min``; from two days on ``3 days``, ``2 weeks``, ``5 months``, ``3 years``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    for name, unit in LONG_UNITS:
        if whole >= 2 * unit:
            return f"{round(whole / unit)} {name}s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


PLAIN_SECONDS = 10.0
PLAIN_WIDTH = 160  # where nobody watches there is no width to keep to, and wrapped cells are hard to read in a log
MOST_LINES_OF_AN_END = 2  # what is known when a stage ends may take so many lines, else only its time is said
REDRAWS_PER_SECOND = 4  # rarely: a redraw takes time from the work


class Advance(Protocol):
    """Tells a stage that some of its work is done.

    ``note`` says at what it is; ``cells`` are short facts that the note introduces.
    """

    def __call__(self, amount: float, note: str, cells: Sequence[str] = ()) -> None: ...


class Terminal:
    """Where a command writes: standard output, as it is when something is written. ``quiet`` writes nothing but errors."""

    def __init__(self, *, quiet: bool = False) -> None:
        is_watched = sys.stdout.isatty()
        self.console = Console(
            highlight=False,
            emoji=False,
            markup=False,
            quiet=quiet,
            width=None if is_watched else PLAIN_WIDTH,
            force_terminal=None if is_watched else False,  # FORCE_COLOR does not put escape codes into files
            force_jupyter=False,  # in a notebook plain lines need no widgets, and stand as close as elsewhere
        )
        self._step = ""
        # some CI gives a terminal, but keeps all that is ever drawn on it
        self._is_live = is_watched and not quiet and self.console.is_interactive and not os.environ.get("CI")

    def say(self, text: str = "", *, wrap: bool = True) -> None:
        """Print a line; on a terminal it is wrapped at words, unless it holds something that people copy."""
        text = spell_controls(text)
        if wrap and self.console.is_terminal:
            indent = " " * (len(text) - len(text.lstrip()) + 2)
            text = textwrap.fill(
                text, self.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            )
        self.console.print(text, markup=False, soft_wrap=True)

    @property
    def width(self) -> int:
        """Characters in a line."""
        return self.console.width

    def show_table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", num_words: int = 1
    ) -> None:
        """Print a table with a rule under its head; the first ``num_words`` columns are left-aligned."""
        table = Table(
            title=spell_controls(title) or None,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index < num_words else "right")
        for row in rows:
            table.add_row(*map(spell_controls, row))
        self.console.print(table)

    def begin_step(self, name: str, *, of: Sequence[str]) -> None:
        """From now on, stages are shown as parts of this step of a pass."""
        self._step = f"[{of.index(name) + 1}/{len(of)}] "

    @contextlib.contextmanager
    def stage(self, name: str, *, total: float, is_share: bool = False) -> Iterator[Advance]:
        """Yield ``advance(amount, note, cells)``; ends with one line that says how long the stage took.

        With ``is_share`` the amount is shown in per cent: work that is no number of things.
        """
        stage = Stage(title=self._step + name, total=total, is_share=is_share)
        printed = stage.began

        def advance(amount: float, note: str, cells: Sequence[str] = ()) -> None:
            nonlocal printed
            now = time.monotonic()
            stage.advance(amount, now=now)
            stage.note, stage.cells = spell_controls(note), [spell_controls(cell) for cell in cells]
            pause = PLAIN_SECONDS * max(1.0, (now - stage.began) / 100)  # the longer it takes, the more rarely
            if not self._is_live and now - printed >= pause and 0 < stage.done < total:
                self.say(stage.describe(now=now))
                printed = now

        def draw() -> RenderableType:
            return stage.draw(width=self.width, now=time.monotonic())

        with (
            Live(get_renderable=draw, console=self.console, transient=True, refresh_per_second=REDRAWS_PER_SECOND)
            if self._is_live
            else contextlib.nullcontext()
        ):
            yield advance
        end = f"{stage.title}: done in {format_seconds(time.monotonic() - stage.began)}"
        found = f"{end}; {stage.news}"
        self.say(found if stage.cells and len(found) <= MOST_LINES_OF_AN_END * self.width else end)


SPAN_UNITS = (*((f"{name}s", seconds) for name, seconds in LONG_UNITS), ("h", 3600), ("min", 60), ("s", 1))
UNSURE = 0.7, 1.7  # of what an estimate says, the truth is mostly between


def format_span(seconds: float) -> str:
    """An estimate with its spread: ``3 to 7 min``, ``2 to 5 days``."""
    low, high = (share * seconds for share in UNSURE)
    if high < 10:
        return "less than 10 s"
    name, unit = next((name, unit) for name, unit in SPAN_UNITS if low >= unit or unit == 1)
    return f"{low / unit:,.0f} to {high / unit:,.0f} {name}"


def answer(work: Callable[[Terminal], msgspec.Struct], *, as_json: bool) -> None:
    """Do the work of a command: for people, or for a script, to which its record is printed as one line of JSON.

    That is the only line on standard output then: whatever else is said, by Seed or by a library, goes to standard error. A number that is
    not finite becomes ``null``.
    """
    if not as_json:
        work(Terminal())
        return
    with contextlib.redirect_stdout(sys.stderr):
        line = msgspec.json.encode(work(Terminal())).decode()
    print(line, flush=True)


def find_here() -> Path:
    """The current directory, which paths that are typed are seen from.

    Raises:
        SeedError: it is gone, or its name cannot be written down.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError as error:
        raise SeedError("the current directory was removed. Change to one that is there: cd DIRECTORY.") from error
    if not is_utf8(str(here)):
        raise SeedError(
            f"{here}: the name of the current directory is not UTF-8, as all that Seed writes down is. Work in another."
        )
    return here


def run_command(main: Callable[[], None]) -> None:
    """Run a command: a ``SeedError`` ends it with its message and exit code 2, Ctrl-C with 130, SIGTERM with 143."""
    interrupts.listen()
    try:
        with explain_resource_errors(find_here()):
            main()
    except SeedError as error:
        print(f"error: {spell_controls(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        print("\nstopped. What was finished is kept; run the same command again to go on.", file=sys.stderr)
        raise SystemExit(stop.exit_code if isinstance(stop, interrupts.Stopped) else 130) from None
