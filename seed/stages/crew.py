"""The workers of one machine: started on one search, looked after, stopped together.

The first of them leads and draws what people watch; the others help it. One that dies is started again, some times; what it
was doing, others notice by themselves. What workers do is not known here, and no model is opened.
"""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Any

from seed.console import Terminal
from seed.errors import SeedError
from seed.interrupts import Stopped
from seed.stages.settings import SearchSettings

MOST_RESTARTS = 3  # of each worker
POLL_SECONDS = 0.1
LEAVE_SECONDS = 20.0  # for the others to go, once the search is over or is to be stopped
TAIL_BYTES = 4000  # of what a worker said last


def count_workers(settings: SearchSettings) -> int:
    """How many processes search: as many as asked for, or one for each GPU."""
    if settings.workers is not None:
        return settings.workers
    if settings.device is not None:
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def choose_devices(settings: SearchSettings, num_workers: int) -> list[str | None]:
    """The device of each worker: GPUs in turn; None: as chosen without a word."""
    if settings.device is not None:
        return [settings.device] * num_workers
    import torch

    count = torch.cuda.device_count()
    return [f"cuda:{number % count}" if count else None for number in range(num_workers)]


@dataclass(kw_only=True)
class Hand:
    """A worker, and how often it was started again."""

    number: int
    device: str | None
    words: IO[bytes] = field(default_factory=tempfile.TemporaryFile)  # why it could not go on; all that a helper says
    process: subprocess.Popen[bytes] | None = None
    restarts: int = field(default=0, init=False)

    def tell(self, line: str) -> None:
        """Give it a line, if it still listens."""
        with contextlib.suppress(OSError, ValueError):
            assert self.process is not None
            assert self.process.stdin is not None
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def send(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def read_last_words(self) -> str:
        """The last that it said of why it ended."""
        self.words.seek(0)
        lines = self.words.read()[-TAIL_BYTES:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it left no word"


def run_crew(settings: SearchSettings, terminal: Terminal, *, num_workers: int) -> None:
    """Search with so many processes, until the one that leads has ended.

    Raises:
        SeedError: the search cannot go on.
    """
    devices = choose_devices(settings, num_workers)
    hands = [Hand(number=number, device=device) for number, device in enumerate(devices)]
    with _look_after(hands):
        for hand in hands:
            _start(hand, settings, terminal, num_workers=num_workers)
        lead, others = hands[0], hands[1:]
        while True:
            code = _poll(lead)
            if code == 0:
                return
            if code == 2:
                raise SeedError(lead.read_last_words())
            if code is not None:
                _restart(lead, settings, terminal, num_workers=num_workers, code=code, say=terminal.say)
            for hand in others:
                code = _poll(hand)
                if code in (None, 0):
                    continue
                if code == 2:
                    lead.tell(f"worker {hand.number + 1} leaves: {hand.read_last_words()}")
                    hand.process = None
                else:
                    _restart(hand, settings, terminal, num_workers=num_workers, code=code, say=lead.tell)
            time.sleep(POLL_SECONDS)


def _poll(hand: Hand) -> int | None:
    return None if hand.process is None else hand.process.poll()


def _start(hand: Hand, settings: SearchSettings, terminal: Terminal, *, num_workers: int) -> None:
    order = {
        "number": hand.number,
        "num_workers": num_workers,
        "words": hand.words.fileno(),
        "is_quiet": terminal.console.quiet,
        "settings": replace(settings, device=hand.device, workers=1).describe(),
    }
    hand.words.truncate(0)
    is_lead = hand.number == 0  # it writes where we do
    hand.process = subprocess.Popen(
        [sys.executable, "-m", "seed.worker"],
        stdin=subprocess.PIPE,
        stdout=_find_file(sys.stdout) if is_lead else hand.words,
        stderr=_find_file(sys.stderr) if is_lead else hand.words,
        pass_fds=(hand.words.fileno(),),
        start_new_session=True,  # Ctrl-C reaches us alone, and we tell them
    )
    hand.tell(json.dumps(order))


def _find_file(stream: Any) -> int:
    try:
        stream.flush()
        return int(stream.fileno())
    except (OSError, AttributeError, ValueError):  # a notebook's
        return subprocess.DEVNULL


def _restart(
    hand: Hand, settings: SearchSettings, terminal: Terminal, *, num_workers: int, code: int, say: Any
) -> None:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    words = "" if hand.number == 0 or code < 0 else f": {hand.read_last_words()}"
    if hand.restarts >= MOST_RESTARTS:
        message = f"worker {hand.number + 1} {how}, for the {hand.restarts + 1}th time{words}"
        hand.process = None
        if hand.number == 0:
            raise SeedError(f"{message}. What was finished is kept; run the same command again to go on.")
        say(f"{message}; the others go on without it")
        return
    hand.restarts += 1
    say(f"worker {hand.number + 1} {how}; it is started again ({hand.restarts} of {MOST_RESTARTS})")
    _start(hand, settings, terminal, num_workers=num_workers)


@contextlib.contextmanager
def _look_after(hands: list[Hand]) -> Iterator[None]:
    """Leave no worker behind: when the block ends, all are asked to stop, and are killed where they do not."""
    asked = signal.SIGTERM
    try:
        yield
    except Stopped as stop:
        asked = signal.Signals(stop.number)
        raise
    finally:
        for hand in hands:
            hand.send(asked)
        until = time.monotonic() + LEAVE_SECONDS
        for hand in hands:
            if hand.process is None:
                continue
            with contextlib.suppress(subprocess.TimeoutExpired):
                hand.process.wait(max(0.0, until - time.monotonic()))
            hand.send(signal.SIGKILL)
            hand.process.wait()
            if hand.process.stdin is not None:
                with contextlib.suppress(OSError):
                    hand.process.stdin.close()
