"""Sharing out an ordered list of work among processes of one host: each walks neighbours, and who is done helps the others.

Neighbours share what was computed for the one before, so the list is walked in stretches, one process in each while there
are enough of them. What is being done is a byte that its process holds in a lock file, and the kernel lets go of when the
process ends, however it ends. What the work is, is not known here.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

STRETCHES = 64  # a list is cut into: many more than processes, so that they end together
SHORTEST = 4  # pieces of work in a stretch, since its first shares little with what its process did before
STRETCH_BYTES = 1 << 40  # where the bytes of stretches begin in the lock file; those of pieces begin at 0
WAIT_SECONDS = 0.2


def cut_stretches(count: int) -> list[range]:
    """Cut a list of so many pieces into stretches of nearly equal length."""
    length = max(SHORTEST, -(-count // STRETCHES))
    return [range(begin, min(count, begin + length)) for begin in range(0, count, length)]


def choose_next(
    stretches: Sequence[range],
    current: range | None,
    *,
    is_taken: Callable[[int], bool],
    is_running: Callable[[int], bool],
) -> tuple[int | None, range | None]:
    """Choose a piece where claims are made elsewhere: the next of our stretch, of one where nobody is, or from a far end.

    Returns the piece, None where all are taken, and the stretch that is ours now.
    """
    for stretch in (current, *(one for one in stretches if not any(map(is_running, one)))):
        found = next((piece for piece in stretch or () if not is_taken(piece)), None)
        if found is not None:
            return found, stretch
    left = {stretch: [piece for piece in stretch if not is_taken(piece)] for stretch in stretches}
    longest = max(left.values(), key=len, default=[])
    return (longest[-1] if longest else None), None


class Shares:
    """A list of work of which this process takes its share.

    Args:
        path: the lock file, which belongs to this list and no other; None: nobody else works on it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def walk(
        self,
        count: int,
        *,
        is_done: Callable[[int], bool],
        refresh: Callable[[], None] = lambda: None,
    ) -> Iterator[int]:
        """Yield pieces of work, each held until the next is asked for, until all are done by whomever.

        Args:
            count: pieces there are.
            is_done: is a piece done, as far as is known?
            refresh: learn what others have done; now and then while they do what is left, too. When one of them dies, its
                piece is yielded here.
        """
        if self.path is None:
            for piece in range(count):
                if not is_done(piece):
                    yield piece
                    refresh()
            return
        with self._open() as desk:
            stretches = cut_stretches(count)
            while True:
                refresh()
                left = [index for index, stretch in enumerate(stretches) if not all(map(is_done, stretch))]
                if not left:
                    return
                free = next((index for index in left if desk.take(STRETCH_BYTES + index)), None)
                if free is not None:
                    yield from desk.yield_held(stretches[free], is_done=is_done, refresh=refresh)
                    desk.drop(STRETCH_BYTES + free)
                    continue
                # each has somebody: help from the far end where most is left
                longest = max(left, key=lambda index: sum(not is_done(piece) for piece in stretches[index]))
                others = [piece for index in left if index != longest for piece in reversed(stretches[index])]
                helped = False
                for piece in desk.yield_held(
                    [*reversed(stretches[longest]), *others], is_done=is_done, refresh=refresh
                ):
                    helped = True
                    yield piece
                    break
                if not helped:
                    time.sleep(WAIT_SECONDS)

    @contextlib.contextmanager
    def hold_first(self, pieces: Sequence[int], *, at_most: int) -> Iterator[list[int]]:
        """Hold the first pieces that nobody else holds, at most so many, until the block ends; none, where all are held."""
        if self.path is None:
            yield list(pieces[:at_most])
            return
        with self._open() as desk:
            held: list[int] = []
            for piece in pieces:
                if len(held) < at_most and desk.take(piece):
                    held.append(piece)
            yield held

    @contextlib.contextmanager
    def _open(self) -> Iterator["_Desk"]:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            yield _Desk(file)
        finally:
            os.close(file)  # lets go of every byte


class _Desk:
    """What this process holds. Bytes belong to a process: it must open the file once at a time."""

    def __init__(self, file: int) -> None:
        self.file = file

    def take(self, byte: int) -> bool:
        """Hold a byte, unless somebody else does."""
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):  # systems differ in what they say
            return False
        return True

    def drop(self, byte: int) -> None:
        """Let a byte go."""
        fcntl.lockf(self.file, fcntl.LOCK_UN, 1, byte)

    def yield_held(
        self, pieces: Sequence[int], *, is_done: Callable[[int], bool], refresh: Callable[[], None]
    ) -> Iterator[int]:
        """Yield pieces that are not done, one after another, each held meanwhile."""
        for piece in pieces:
            if is_done(piece) or not self.take(piece):
                continue
            try:
                refresh()  # it may have been done just before we held it
                if not is_done(piece):
                    yield piece
            finally:
                self.drop(piece)
