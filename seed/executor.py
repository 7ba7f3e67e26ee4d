"""What runs evaluators: one interface, of this process (``evaluator.InProcess``) and of Ray (``cluster``); what is done, ``evaluator`` knows.

Where there is one evaluator its work comes back candidate by candidate. Of several, each is handed a chunk of neighbours
at a time, since neighbours share prefixes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from seed.optimize.screening import Screen
from seed.protocols import Reference
from seed.records import Candidate, Latency, Scored, ScoreRow
from seed.sessions import Session

ProgressCallback = Callable[[float, str], None]  # an amount of work that is done, and at what it is
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
        self,
        candidates: Sequence[Candidate],
        *,
        rows: Sequence[ScoreRow],
        table: Mapping[str, Latency],
        screen: Screen | None = None,
    ) -> Iterator[Scored]:
        """Score candidates at the study's proxy."""
        known: dict[str, list[ScoreRow]] = {}
        for row in rows:
            known.setdefault(row.key, []).append(row)

        def told(some: Sequence[Candidate]) -> dict[str, Any]:
            theirs = [row for candidate in some for row in known.get(candidate.key, ())]
            return {"rows": theirs, "table": dict(table), "screen": screen}

        return self.call_each("score", candidates, told)

    def count_parallel_students(self) -> int:
        """How many students one evaluator trains side by side."""
        count = int(self.call("count_parallel_students"))
        return max(1, count // self.most_on_one_node) if self.reference.type == "cpu" else count


def cut_chunks(candidates: Sequence[Candidate], *, num_evaluators: int) -> list[Sequence[Candidate]]:
    """Cut an ordered list into chunks of nearly equal length; a short list into as many as there are evaluators."""
    length = max(1, -(-len(candidates) // CHUNKS), min(SHORTEST, -(-len(candidates) // num_evaluators)))
    return [candidates[begin : begin + length] for begin in range(0, len(candidates), length)]
