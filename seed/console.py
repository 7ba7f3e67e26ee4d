"""What the terminal shows: sentences, tables, and progress with remaining time; and the one line of ``--json``.

Bars live on a terminal; elsewhere (logs, pipes, CI) there is a plain line now and then, without escape codes.
"""

import contextlib
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from seed import interrupts
from seed.errors import SeedError
from seed.plain import is_utf8, spell_controls
from seed.progress import LONG_UNITS, Stage, format_seconds
from seed.study_dir import explain_resource_errors

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
            if not self._is_live and now - printed >= PLAIN_SECONDS and 0 < stage.done < total:
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


def answer_in_json(work: Callable[[Terminal], msgspec.Struct]) -> None:
    """Do the work, and print its record as one line of JSON: the only one on standard output.

    Whatever else is said, by Seed or by a library, goes to standard error. A number that is not finite becomes ``null``.
    """
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
