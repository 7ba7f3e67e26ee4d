"""Spaces of which every set is scored already: strategies are played on them within a second and judged exactly.

A file in ``landscapes/`` holds the losses of all sets of one model by one proxy, in nats per token.
"""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from seed.optimize.strategies import BudgetSpent
from seed.records import KINDS, Candidate, SearchSpace, split_part

DIRECTORY = Path(__file__).parent.parent / "tests" / "optimize" / "landscapes"


@dataclass(frozen=True)
class Landscape:
    """A space and the loss of every set in it."""

    name: str
    about: str
    space: SearchSpace
    losses: dict[Candidate, float]

    def count_gone(self, candidate: Candidate) -> int:
        """How many of the parts that may go are gone: layers, or attentions and MLPs."""
        return int(2 * candidate.num_dropped) if self.space.kinds else int(candidate.num_dropped)

    @functools.cached_property
    def best(self) -> list[float]:
        """The lowest loss of sets with at least 1, 2, ... dropped parts."""
        counts = range(1, self.space.more_dropped[-1] + 1)
        return [min(loss for c, loss in self.losses.items() if self.count_gone(c) >= count) for count in counts]

    @functools.cached_property
    def worst(self) -> list[float]:
        """The highest loss of sets with exactly 1, 2, ... dropped parts."""
        counts = range(1, self.space.more_dropped[-1] + 1)
        return [max(loss for c, loss in self.losses.items() if self.count_gone(c) == count) for count in counts]

    def regret(self, found: Sequence[Candidate]) -> float:
        """How much worse than the best existing perplexity the best found one is: a mean over least numbers of dropped parts.

        Where nothing with so many dropped is found yet, the worst set of just so many stands in.
        """
        losses = [(self.count_gone(candidate), self.losses[candidate]) for candidate in found]
        total = 0.0
        for count, best, worst in zip(range(1, len(self.best) + 1), self.best, self.worst, strict=True):
            total += math.exp(min((loss for dropped, loss in losses if dropped >= count), default=worst) - best) - 1
        return total / len(self.best)


class Asked(NamedTuple):
    """A set that was scored, on which share of the text, and what all scores up to it cost, in evaluations."""

    candidate: Candidate
    share: float
    spent: float


class LandscapeScorer:
    """A ``Scorer`` that looks losses up, with a budget in evaluations.

    A set costs its share of one evaluation, once for each share. What a share of the text says is not in the file, so the
    loss on all of it is returned: the first selection of EvoPress makes no mistakes here, which flatters it. A landscape
    has one proxy, so proxy names are ignored: on one with recovery, greedy removal and EvoPress get it too.
    """

    def __init__(self, landscape: Landscape, *, budget: float = math.inf) -> None:
        self.landscape = landscape
        self.budget = budget
        self.spent = 0.0
        self.asked: list[Asked] = []
        self._known: set[tuple[Candidate, float]] = set()

    def score(self, candidates: Sequence[Candidate], *, proxy: str, share: float = 1.0) -> list[float]:
        """Look losses up, of as many as the budget reaches.

        Raises:
            BudgetSpent: it did not reach all of them.
        """
        for candidate in candidates:
            if (candidate, share) in self._known:
                continue
            if self.spent + share > self.budget + 1e-9:
                raise BudgetSpent
            self.spent += share
            self._known.add((candidate, share))
            self.asked.append(Asked(candidate, share, self.spent))
        return [self.landscape.losses[candidate] for candidate in candidates]

    def weigh_layers(self, measure: str) -> list[float]:
        raise NotImplementedError("a landscape has no model to weigh")

    def measure_distances(self, num_layers: int) -> list[float]:
        raise NotImplementedError("a landscape has no model to measure")

    def list_found(self, *, within: float = math.inf) -> list[Candidate]:
        """What was scored on all text within so many evaluations: what a larger budget finds by then, a smaller finds too."""
        return [one.candidate for one in self.asked if one.share == 1.0 and one.spent <= within + 1e-9]


def list_landscapes(directory: Path = DIRECTORY) -> list[str]:
    """Names of the landscapes that are there."""
    return sorted(path.stem for path in directory.glob("*.json"))


def load_landscape(name: str, directory: Path = DIRECTORY) -> Landscape:
    """Read a landscape; what is dropped in no set cannot go."""
    content = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
    num_layers = content["num_layers"]
    losses = {
        Candidate.drop(num_layers, key.split(",")): float(loss)
        for key, loss in content["losses"].items()
        if key  # the dense model is no candidate
    }
    parts = {split_part(part) for candidate in losses for part in candidate.parts}
    space = SearchSpace(
        num_layers=num_layers,
        droppable_layers=tuple(sorted({layer for layer, _ in parts})),
        min_dropped=1,
        max_dropped=content["max_dropped"],
        kinds=tuple(kind for kind in KINDS if kind in {kind for _, kind in parts}),
    )
    if len(losses) != space.size or not all(map(math.isfinite, losses.values())):
        raise ValueError(f"{name}: {len(losses)} sets, some perhaps not finite; wanted all {space.size}.")
    return Landscape(name=name, about=content["about"], space=space, losses=losses)
