"""Being asked to stop, by Ctrl-C or as a job that has to make room: work ends in order, unless it is asked twice.

The first SIGINT or SIGTERM raises ``Stopped`` where the program is, or where it next says that it may end; the second ends the
process at once. What ends in order is everybody's own business.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The process was asked to stop, by a signal of this number."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code by which shells and schedulers know."""
        return 128 + self.number


class _Signals:
    """What was heard, and whether it may be answered now."""

    depth = 0  # of blocks that are not to be torn
    pending: int | None = None
    heard: int | None = None


def listen() -> None:
    """From now on, signals stop this process as described above. Only the main thread can ask for that."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _hear)


def _hear(number: int, _frame: FrameType | None) -> None:
    _Signals.heard = number
    for other in SIGNALS:
        signal.signal(other, signal.SIG_DFL)  # the next one ends the process
    if not _Signals.depth:
        raise Stopped(number)
    _Signals.pending = number


def restore(stop: KeyboardInterrupt) -> KeyboardInterrupt:
    """``Stopped`` again, where a library put an exception of its own in its place."""
    return stop if isinstance(stop, Stopped) or _Signals.heard is None else Stopped(_Signals.heard)


@contextlib.contextmanager
def hold() -> Iterator[Callable[[], bool]]:
    """Let the first signal wait until the block ends; what is yielded says whether there is one."""
    _Signals.depth += 1
    try:
        yield lambda: _Signals.pending is not None
    finally:
        _Signals.depth -= 1
        number = _Signals.pending
        if number is not None and not _Signals.depth:
            _Signals.pending = None
            raise Stopped(number)
