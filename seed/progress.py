"""How far a stage is, how long the rest may take, and how both look on a live terminal and as a line."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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
        return f"{self.title}: {self.amount}{ahead}. {self.news}".rstrip()

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
