"""What the terminal shows: sentences, tables, and progress with remaining time.

Rich bars on a terminal; elsewhere (logs, CI, NO_COLOR pipes) a plain line now and then. No numbers are
made here.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from seed.errors import SeedError
from seed.folder import explain_resource_errors

PLAIN_SECONDS = 10.0


class Advance(Protocol):
    """Tells a stage that some of its work is done."""

    def __call__(self, amount: float, note: str) -> None: ...


class Terminal:
    """Where a command writes. ``quiet`` writes nothing but errors."""

    def __init__(self, *, quiet: bool = False) -> None:
        # where nobody watches there is no width to keep to, and wrapped cells are hard to read in a log
        width = None if sys.stdout.isatty() else 160
        self.console = Console(highlight=False, emoji=False, markup=False, quiet=quiet, width=width)

    def say(self, text: str = "") -> None:
        """Print one line as it is."""
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
            title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
        )
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index < num_words else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    @contextlib.contextmanager
    def stage(self, name: str, *, total: float) -> Iterator[Advance]:
        """Yield ``advance(amount, note)``; ends with one line that says how long the stage took."""
        began = time.monotonic()
        if self.console.is_terminal and not self.console.quiet:
            columns = (
                TextColumn("{task.description:<12}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(name, total=total, note="")

                def advance_bar(amount: float, note: str) -> None:
                    progress.update(task, advance=amount, note=note)

                yield advance_bar
        else:
            state = {"done": 0.0, "printed": began}

            def advance(amount: float, note: str) -> None:
                state["done"] += amount
                now = time.monotonic()
                if now - state["printed"] >= PLAIN_SECONDS and 0 < state["done"] < total:
                    left = (now - began) / state["done"] * (total - state["done"])
                    form = "g" if total < 100 else ",.0f"
                    self.say(f"{name}: {state['done']:{form}} of {total:{form}}, {format_seconds(left)} left. {note}")
                    state["printed"] = now

            yield advance
        self.say(f"{name}: done in {format_seconds(time.monotonic() - began)}")


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
