"""How far a stage is, how long the rest may take, and how both look on a live terminal.

When something is shown, and where, ``console`` decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

FOUND_SECONDS = (
    0.2  # work told of before was not done now, but found in the study's folder: it says nothing of the pace
)
SILENT_SECONDS = 2.0  # before, no remaining time is worth saying
WIDEST_BAR, NARROWEST_BAR = 40, 4


@dataclass(kw_only=True)
class Pace:
    """How much of a stage's work is done, and since when. Times are of a clock that never goes back, in seconds."""

    total: float
    began: float
    done: float = field(default=0.0, init=False)
    _found: float = field(default=0.0, init=False)
    _num_advances: int = field(default=0, init=False)
    _heard: float = field(default=0.0, init=False)

    def advance(self, amount: float, *, now: float) -> None:
        """Take note of work that was done."""
        self.done += amount
        if now - self.began < FOUND_SECONDS:
            self._found += amount
        elif amount > 0:
            self._num_advances += 1
            self._heard = now

    def estimate_left(self, *, now: float) -> float | None:
        """Return the seconds that the rest will take at the mean pace; None while that cannot be told.

        The mean, since work comes in bursts: sets that share a prefix follow one another quickly. Between two advances the
        estimate counts down, but never below what it would be if a usual advance came just now; so a stage that hangs
        does not promise to be done.
        """
        made = self.done - self._found
        if made <= 0 or not self._num_advances or now - self.began < SILENT_SECONDS:
            return None
        ahead = max(0.0, self.total - self.done)
        counted_down = ahead * (self._heard - self.began) / made - (now - self._heard)
        usual = made / self._num_advances
        at_least = (ahead - usual) * (now - self.began) / (made + usual)
        return max(counted_down, at_least, 0.0)


@dataclass(frozen=True, kw_only=True)
class Glimpse:
    """What a stage looks like at one moment; ``cells`` are short facts that stand side by side under the bar."""

    title: str
    amount: str  # "34 of 78"
    done: float
    total: float
    elapsed: float  # seconds
    left: float | None  # seconds
    note: str
    cells: Sequence[str]


def draw_glimpse(glimpse: Glimpse, *, width: int) -> RenderableType:
    """Return a line with the bar, and under it the note and the cells, none wider than ``width`` characters."""
    left = "" if glimpse.left is None else f", {format_clock(glimpse.left)} left"
    numbers = f"{glimpse.amount}, {format_clock(glimpse.elapsed)}{left}"
    room = width - len(glimpse.title) - len(numbers) - 2
    # the room that "0:14 left" takes is kept free from the start, so that the bar does not jump
    bar_width = min(WIDEST_BAR, room if left else room - len(", 00:00 left"))
    line = Table.grid(padding=(0, 1))
    cells: list[RenderableType] = [Text(glimpse.title, no_wrap=True, overflow="ellipsis")]
    if bar_width >= NARROWEST_BAR:
        cells.append(ProgressBar(total=max(glimpse.total, 1e-9), completed=glimpse.done, width=bar_width))
    line.add_row(*cells, Text(numbers, no_wrap=True, overflow="ellipsis"))
    under: list[RenderableType] = []
    if glimpse.note:
        under.append(Text(glimpse.note + (":" if glimpse.cells else "")))
    if glimpse.cells:
        under.append(Columns([Text(cell) for cell in glimpse.cells], padding=(0, 3)))
    return Group(line, *(Padding(row, (0, 0, 0, 2)) for row in under))


def format_clock(seconds: float) -> str:
    """``0:08``, ``3:20``, ``2:05:00``."""
    whole = round(seconds)
    hours, minutes, seconds = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
