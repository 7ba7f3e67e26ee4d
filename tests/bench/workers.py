"""Two workers against one on the same cores: the demo's search, as a command.

Workers compute with their part of the cores, so one worker uses all of them by threads: what two save is what threads
within one model lose, less what a second process costs. The search step is from the end of the step before it until its
own; only its work is shared out. The command also starts, proves, and measures latencies.

Other work on these cores makes the ratio meaningless: threads that wait for one another spin, so a busy neighbour slows one
worker's two threads far more than two workers with a thread each.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from seed import folder
from seed.console import Terminal
from seed.folder import StudyFolder
from seed.records import Frontier
from tests.bench import turns

WORKERS = (1, 2)
MAX_DROPPED, MAX_DROPPED_FULL = 2, 3  # the demo's own is 3
ROUNDS, ROUNDS_FULL = 3, 5
BEFORE, LAST = "dense: done", "search: done"  # what the search says at the ends of these steps


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """What one search took, and found."""

    command_seconds: float
    search_seconds: float
    num_scored: int
    keys: tuple[str, ...]


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Search with one worker and with two, in turns."""
    max_dropped, rounds = (MAX_DROPPED_FULL, ROUNDS_FULL) if full else (MAX_DROPPED, ROUNDS)
    passes: dict[int, list[Pass]] = {count: [] for count in WORKERS}
    with terminal.stage("workers", total=rounds * len(WORKERS)) as advance:
        for number in range(rounds):
            for count in WORKERS if number % 2 == 0 else WORKERS[::-1]:
                passes[count].append(run_search(count, max_dropped=max_dropped))
                advance(1, f"{count}: search {passes[count][-1].search_seconds:.1f} s")
    return summarize(passes)


def run_search(num_workers: int, *, max_dropped: int) -> Pass:
    """Run the command in a folder of its own."""
    words = ["--model", "demo", "--no-distill", "--workers", str(num_workers), "--max-dropped", str(max_dropped)]
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "seed.search", *words, "--studies-dir", directory]
        began = time.monotonic()
        with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                lines = [(time.monotonic(), line) for line in process.stdout]
                process.wait()
            finally:
                process.terminate()  # it takes its workers along
        ended = time.monotonic()
        assert process.returncode == 0, "".join(line for _, line in lines)
        frontier = folder.read_record(StudyFolder(Path(directory) / "demo").frontier, Frontier)
    return Pass(
        command_seconds=ended - began,
        search_seconds=find_moment(lines, LAST) - find_moment(lines, BEFORE),
        num_scored=frontier.num_scored,
        keys=tuple(sorted(member.evaluation.candidate.key for member in frontier.members)),
    )


def find_moment(lines: Iterable[tuple[float, str]], words: str) -> float:
    """When the line with these words was said."""
    [moment] = [moment for moment, line in lines if words in line]
    return moment


def summarize(passes: dict[int, Sequence[Pass]]) -> dict[str, Any]:
    """Seconds of each number of workers, and of one over those of two, round by round."""
    one, two = (passes[count] for count in WORKERS)
    every = [*one, *two]
    fields: dict[str, Any] = {}
    details: dict[str, Any] = {
        "rounds": len(one),
        "candidates": one[0].num_scored,
        "threads_of_one": torch.get_num_threads(),
        "found_alike": len({(each.num_scored, each.keys) for each in every}) == 1,
    }
    for part in ("search", "command"):
        seconds = [[getattr(each, f"{part}_seconds") for each in row] for row in (one, two)]
        fields[f"workers_{part}_speedup"] = turns.range_of([a / b for a, b in zip(*seconds, strict=True)])
        details[f"{part}_seconds"] = {
            str(count): turns.range_of(row) for count, row in zip(WORKERS, seconds, strict=True)
        }
    return fields | {"workers_details": details}


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print seconds of both, and their ratios."""
    details = fields["workers_details"]
    rows = [
        [
            name,
            *(turns.show_range(details[f"{part}_seconds"][str(count)], digits=1) for count in WORKERS),
            turns.show_range(fields[f"workers_{part}_speedup"]),
        ]
        for name, part in (("search step", "search"), ("whole command", "command"))
    ]
    title = f"Workers that part {details['threads_of_one']} threads, {details['candidates']} sets, {details['rounds']} rounds"
    columns = ["demo's search", "s, one worker", "s, two workers", "one / two (min to max)"]
    terminal.show_table(columns, rows, title=title)
    if not details["found_alike"]:
        terminal.say("the searches did not all choose the same sets")
