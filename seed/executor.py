"""Where evaluators run: in this process, or as Ray actors. One interface; what is done with a study, ``evaluator`` knows.

Where there is one evaluator its work comes back candidate by candidate. Of several, each is handed a chunk of neighbours
at a time, since neighbours share prefixes.
"""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from seed.config import StudyConfig
from seed.errors import ResourceError
from seed.evaluator import Evaluator
from seed.models.loader import choose_device
from seed.optimize.screening import Screen
from seed.protocols import Reference, describe_reference
from seed.records import Candidate, Latency, Quality, Scored, ScoreRow
from seed.reporting.wording import count_things
from seed.sessions import Session
from seed.stages.students import ProgressCallback

Rows = Sequence[ScoreRow]
CHUNKS = 64  # a list is cut into at most: many more than evaluators, so that they end together
SHORTEST = 4  # candidates in a chunk, since its first shares little with what its evaluator did before


class Executor(ABC):
    """Evaluators of one study. The first is the reference: what is measured once is measured there, while nothing else runs."""

    num_evaluators: int
    most_on_one_node: int  # of them, which share its memory
    reference: Reference

    @abstractmethod
    def start(self, session: Session, *, say: Callable[[str], None]) -> None:
        """Let evaluators have the opened study."""

    @abstractmethod
    def call(self, method: str, /, *args: Any, on_progress: ProgressCallback | None = None, **kwargs: Any) -> Any:
        """Have one of ``Evaluator``'s methods done by the reference; ``on_progress`` hears of it as it goes."""

    @abstractmethod
    def call_each(
        self, method: str, candidates: Sequence[Candidate], told: Callable[[Sequence[Candidate]], dict[str, Any]]
    ) -> Iterator[Any]:
        """Have a method that yields something for each candidate done by all. ``told``: what else it is told of some."""

    @abstractmethod
    def call_all(
        self,
        method: str,
        works: Sequence[tuple[Any, ...]],
        *,
        on_progress: ProgressCallback,
        on_warning: Callable[[str], None],
    ) -> Iterator[Any]:
        """Have a method done with each of these arguments by all, and yield what comes of each as it is finished."""

    @abstractmethod
    def distrust_closed_form(self) -> None:
        """From now on, every evaluator does without closed form."""

    def store_states(self, *, steps: int, rng_seeds: Sequence[int], on_progress: ProgressCallback) -> bool:
        """Have the dense model's last hidden states stored for distillations of so many steps; False: they take too much."""
        return bool(self.call("store_states", steps=steps, rng_seeds=rng_seeds, on_progress=on_progress))

    def score(
        self, candidates: Sequence[Candidate], *, rows: Rows, table: Mapping[str, Latency], screen: Screen | None = None
    ) -> Iterator[Scored]:
        """Score candidates at the study's proxy."""
        known: dict[str, list[ScoreRow]] = {}
        for row in rows:
            known.setdefault(row.key, []).append(row)

        def told(some: Sequence[Candidate]) -> dict[str, Any]:
            theirs = [row for candidate in some for row in known.get(candidate.key, ())]
            return {"rows": theirs, "table": dict(table), "screen": screen}

        return self.call_each("score", candidates, told)

    def sweep_space(self, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Quality, list[ScoreRow]]]:
        """Score candidates by closed form."""
        return self.call_each("sweep_space", candidates, lambda some: {})

    def measure_unrecovered(self, candidates: Sequence[Candidate]) -> tuple[list[Quality], list[ScoreRow]]:
        """Score candidates as they stand."""
        found: tuple[list[Quality], list[ScoreRow]] = self.call("measure_unrecovered", list(candidates))
        return found

    def count_parallel_students(self) -> int:
        """How many students one evaluator trains side by side."""
        count = int(self.call("count_parallel_students"))
        return max(1, count // self.most_on_one_node) if self.reference.type == "cpu" else count


class InProcess(Executor):
    """One evaluator, in this process."""

    num_evaluators = most_on_one_node = 1
    evaluator: Evaluator

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reference = describe_reference(device)

    def start(self, session: Session, *, say: Callable[[str], None] = lambda line: None) -> None:
        self.evaluator = Evaluator(session)
        self.evaluator.say = say

    def call(self, method: str, /, *args: Any, on_progress: ProgressCallback | None = None, **kwargs: Any) -> Any:
        with self._told(on_progress):
            return getattr(self.evaluator, method)(*args, **kwargs)

    def call_each(
        self, method: str, candidates: Sequence[Candidate], told: Callable[[Sequence[Candidate]], dict[str, Any]]
    ) -> Iterator[Any]:
        yield from getattr(self.evaluator, method)(candidates, **told(candidates))

    def call_all(
        self,
        method: str,
        works: Sequence[tuple[Any, ...]],
        *,
        on_progress: ProgressCallback,
        on_warning: Callable[[str], None],
    ) -> Iterator[Any]:
        with self._told(on_progress, on_warning):
            for args in works:
                yield getattr(self.evaluator, method)(*args)

    def distrust_closed_form(self) -> None:
        self.evaluator.distrust_closed_form()

    @contextlib.contextmanager
    def _told(
        self, on_progress: ProgressCallback | None, on_warning: Callable[[str], None] | None = None
    ) -> Iterator[None]:
        before = self.evaluator.tell, self.evaluator.say
        self.evaluator.tell, self.evaluator.say = on_progress or before[0], on_warning or before[1]
        try:
            yield
        finally:
            self.evaluator.tell, self.evaluator.say = before


def cut_chunks(candidates: Sequence[Candidate], *, num_evaluators: int) -> list[Sequence[Candidate]]:
    """Cut an ordered list into chunks of nearly equal length; a short list into as many as there are evaluators."""
    length = max(1, -(-len(candidates) // CHUNKS), min(SHORTEST, -(-len(candidates) // num_evaluators)))
    return [candidates[begin : begin + length] for begin in range(0, len(candidates), length)]


@contextlib.contextmanager
def open_executor(
    settings: StudyConfig, *, say: Callable[[str], None], device: str | None = None
) -> Iterator[Executor]:
    """Yield what runs evaluators, as the settings say: Ray with ``--workers`` or ``--ray``, or where there are several GPUs.

    ``device``: the name of that on which the study was begun, which is preferred among several kinds.

    Raises:
        ResourceError: Ray is not installed, or has no room for so many evaluators; the device is not there, or Ray's to choose.
    """
    num_gpus = torch.cuda.device_count() if settings.device is None else 0
    wants_ray = settings.ray is not None or (settings.workers or 1) > 1
    if not wants_ray and num_gpus > 1 and settings.workers is None:
        wants_ray = has_ray()
        if not wants_ray:
            say(f"one of {num_gpus} GPUs is used: pip install 'seed-search[ray]' to use them all")
    if not wants_ray:
        yield InProcess(choose_device(settings.device))
        return
    if not has_ray():
        raise ResourceError(
            "--workers, --ray: need Ray, which is not installed. Install it: pip install 'seed-search[ray]'."
        )
    if settings.device not in (None, "cpu", "cuda"):
        raise ResourceError(
            f"--device {settings.device}: with --workers or --ray, Ray says which GPU an evaluator gets. Give --device cuda (or cpu), "
            "or leave --workers and --ray out."
        )
    say("starting Ray" if settings.ray is None else f"joining the Ray cluster at {settings.ray}")
    if settings.ray is not None:  # else Ray looks for a cluster that is gone for a quarter of an hour
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
        os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "10")
    from seed.cluster.connection import open_ray  # seconds

    with open_ray(settings, device=device) as executor:
        say(f"{count_things(executor.num_evaluators, 'evaluator')}, on {executor.reference.name}")
        yield executor


def has_ray() -> bool:
    """Is Ray installed?"""
    import importlib.util

    return importlib.util.find_spec("ray") is not None
