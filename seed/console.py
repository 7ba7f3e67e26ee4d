"""What the terminal shows: sentences, tables, and progress with remaining time.

A live bar where somebody watches; elsewhere (logs, pipes, CI, a dumb terminal) a plain line now and then. No numbers are
made here.
"""

import contextlib
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from seed.errors import SeedError
from seed.folder import explain_resource_errors

PLAIN_SECONDS = 10.0
BEFORE_SECONDS = 0.5  # what a stage has done by then was done before, and says nothing of its pace
UNWATCHED_WIDTH = 160  # where nobody watches there is no width to keep to, and wrapped cells are hard to read in a log


class Advance(Protocol):
    """Tells a stage that some of its work is done."""

    def __call__(self, amount: float, note: str) -> None: ...


class Terminal:
    """Where a command writes. ``quiet`` writes nothing but errors; ``is_aside`` leaves standard output to a result line."""

    def __init__(self, *, quiet: bool = False, is_aside: bool = False) -> None:
        stream = sys.stderr if is_aside else sys.stdout
        self.is_watched = stream.isatty()
        width = None if self.is_watched else UNWATCHED_WIDTH
        self.console = Console(
            stderr=is_aside,
            highlight=False,
            emoji=False,
            markup=False,
            quiet=quiet,
            width=width,
            force_terminal=self.is_watched,
        )

    def say(self, text: str = "", *, is_whole: bool = False) -> None:
        """Print a line; on a terminal it is wrapped between words, unless it ``is_whole``, as what people copy is."""
        if self.is_watched and not is_whole:
            margin = " " * (len(text) - len(text.lstrip()) + 2)
            text = textwrap.fill(
                text, self.width, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
            )
        self.console.print(text, markup=False, soft_wrap=True)

    def give(self, line: str) -> None:
        """Print a command's result for scripts: the one line that goes to standard output."""
        print(line, flush=True)

    @property
    def width(self) -> int:
        """Characters in a line."""
        return self.console.width

    def show_table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", num_words: int = 1
    ) -> None:
        """Print a table with a rule under its head; the first ``num_words`` columns are left-aligned."""
        table = Table(
            title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
        )
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index < num_words else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    @contextlib.contextmanager
    def stage(self, name: str, *, total: float, unit: str = "") -> Iterator[Advance]:
        """Yield ``advance(amount, note)``; ends with one line that says how long the stage took.

        Work is counted in ``unit``, such as candidates, or in per cent where it has no name.
        """
        pace = Pace(total)
        if self.is_watched and not self.console.is_dumb_terminal and not self.console.quiet:
            with NotedProgress(
                TextColumn("{task.description:<12}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[done]}"),
                TimeElapsedColumn(),
                RemainingColumn(),
                console=self.console,
                transient=True,
            ) as progress:
                task = progress.add_task(name, total=total, done=pace.say_done(unit), pace=pace)

                def advance_bar(amount: float, note: str) -> None:
                    pace.add(amount)
                    progress.note = note
                    progress.update(task, advance=amount, done=pace.say_done(unit))

                yield advance_bar
        else:
            printed = time.monotonic()

            def advance(amount: float, note: str) -> None:
                nonlocal printed
                pace.add(amount)
                if time.monotonic() - printed >= PLAIN_SECONDS and 0 < pace.done < total:
                    left = pace.estimate_left()
                    told = "" if left is None else f", {format_seconds(left)} left"
                    self.say(f"{name}: {pace.say_done(unit)}{told}. {note}".rstrip())
                    printed = time.monotonic()

            yield advance
        self.say(f"{name}: done in {format_seconds(pace.elapsed())}")


class Pace:
    """How much of a stage is done, and how long the rest will take at the mean pace so far.

    The mean, since work comes in bursts: candidates that share a prefix follow one another at once. What was finished
    before, by an earlier run, is counted at the very beginning and makes no pace.
    """

    def __init__(self, total: float) -> None:
        self.total = total
        self.done = 0.0
        self.before = 0.0
        self.began = time.monotonic()
        self.changed = self.began

    def add(self, amount: float) -> None:
        """Some more is done."""
        self.done += amount
        self.changed = time.monotonic()
        if self.elapsed() < BEFORE_SECONDS:
            self.before = self.done

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def estimate_left(self) -> float | None:
        """Seconds that the rest will take, as seen at the last change; None before there is a pace."""
        if self.done <= self.before:
            return None
        left = (self.changed - self.began) / (self.done - self.before) * (self.total - self.done)
        return max(0.0, left - (time.monotonic() - self.changed))

    def say_done(self, unit: str) -> str:
        """Return ``61 of 298 candidates``, or ``20 %``."""
        if unit:
            return f"{self.done:,.0f} of {self.total:,.0f} {unit}"
        return f"{100 * self.done / self.total if self.total else 100:.0f} %"


class NotedProgress(Progress):
    """A bar with a note in a line of its own, which a narrow terminal wraps instead of cutting it off."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(f"  {self.note}", style="dim")


class RemainingColumn(ProgressColumn):
    """The time that is left at the stage's mean pace."""

    def render(self, task: Task) -> Text:
        left = task.fields["pace"].estimate_left()
        return Text("" if left is None else f"{format_seconds(left)} left", style="progress.remaining")


def format_seconds(seconds: float) -> str:
    """``8 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def run_command(main: Callable[[], None]) -> None:
    """Run a command: a ``SeedError`` ends it with its message and exit code 2, Ctrl-C with 130."""
    try:
        with explain_resource_errors(Path.cwd()):
            main()
    except SeedError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nstopped. What was finished is kept; run the same command again to go on.", file=sys.stderr)
        raise SystemExit(130) from None
