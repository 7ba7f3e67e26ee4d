"""Work that is ended in its midst, in this process."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest


class StoppedError(Exception):
    """Stands for whatever ends a run."""


@contextlib.contextmanager
def interrupting(target: object, name: str, *, after: int) -> Iterator[None]:
    """End what runs here by an error in the place of every call of ``target.name`` behind so many, which must come."""
    calls, work = itertools.count(), getattr(target, name)

    def stop(*args: Any, **more: Any) -> Any:
        if next(calls) >= after:
            raise StoppedError
        return work(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, stop)
        with pytest.raises(StoppedError):
            yield
