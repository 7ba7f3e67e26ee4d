"""Where evaluators run: in this process, or as Ray actors. One interface; what is done with a study, ``evaluator`` knows.

Where there is one evaluator its work comes back candidate by candidate. Of several, each is handed a chunk of neighbours
at a time, since neighbours share prefixes.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

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
from seed.stages.finals import Budget, DistilledStudent, DistillExecutor, ProgressCallback
from seed.stages.searching import Scorers
from seed.stages.students import Member

Rows = Sequence[ScoreRow]
CHUNKS = 64  # a list is cut into at most: many more than evaluators, so that they end together
SHORTEST = 4  # candidates in a chunk, since its first shares little with what its evaluator did before


class Executor(Scorers, DistillExecutor, Protocol):
    """Evaluators of one study. The first is the reference: what is measured once is measured there, while nothing else runs."""

    most_on_one_node: int  # of them, which share its memory
    reference: Reference

    def start(self, session: Session, *, say: Callable[[str], None]) -> None:
        """Let evaluators have the opened study."""

    def call(self, method: str, /, *args: Any, on_progress: ProgressCallback | None = None, **kwargs: Any) -> Any:
        """Have one of ``Evaluator``'s methods done by the reference; ``on_progress`` hears of it as it goes."""

    def distrust_closed_form(self) -> None:
        """From now on, every evaluator does without closed form."""

    def store_states(self, *, steps: int, rng_seeds: Sequence[int], on_progress: ProgressCallback) -> None:
        """Compute the dense model's last hidden states once, and let every evaluator have them."""


class InProcess:
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

    def distrust_closed_form(self) -> None:
        self.evaluator.distrust_closed_form()

    def store_states(self, *, steps: int, rng_seeds: Sequence[int], on_progress: ProgressCallback) -> None:
        self.call("store_states", steps=steps, rng_seeds=rng_seeds, on_progress=on_progress)

    def score(
        self, candidates: Sequence[Candidate], *, rows: Rows, table: Mapping[str, Latency], screen: Screen | None = None
    ) -> Iterator[Scored]:
        yield from self.evaluator.score(candidates, rows=rows, table=table, screen=screen)

    def sweep_space(self, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Quality, list[ScoreRow]]]:
        yield from self.evaluator.sweep_space(candidates)

    def measure_unrecovered(self, candidates: Sequence[Candidate]) -> tuple[list[Quality], list[ScoreRow]]:
        return self.evaluator.measure_unrecovered(candidates)

    def distill(
        self,
        works: Sequence[tuple[Sequence[Member], int]],
        budget: Budget,
        *,
        rows: Rows,
        on_progress: ProgressCallback,
        on_warning: Callable[[str], None],
    ) -> Iterator[list[DistilledStudent]]:
        with self._told(on_progress, on_warning):
            for members, rng_seed in works:
                yield self.evaluator.distill(members, budget, rng_seed=rng_seed, rows=rows)

    def count_parallel_students(self) -> int:
        return self.evaluator.count_parallel_students()

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
