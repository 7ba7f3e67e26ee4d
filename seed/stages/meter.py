"""What a strategy measures with, and its account: layer-tokens, as if it had measured alone.

The account is that of an engine that shares prefixes within a batch and, with closed form, with the candidate before.
What the study remembers, or another strategy has measured, is not measured again, but paid for all the same.
"""

import math
from collections.abc import Sequence
from typing import Any

from seed.optimize.strategies import BudgetSpent
from seed.records import Candidate
from seed.scoring.importance import (
    measure_angular_distances,
    measure_block_influence,
    measure_magnitude,
    measure_taylor,
)
from seed.scoring.pricing import Prices, set_prices
from seed.scoring.subsets import count_work, measure_unrecovered
from seed.scoring.sweep import Sweep


class Measured:
    """What all strategies of one study have measured, so that nothing is measured twice."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        instruments = sweep.instruments
        self.prices: Prices = set_prices(
            instruments.anatomy,
            calibration_tokens=instruments.calibration.num_tokens,
            validation_tokens=instruments.validation.num_tokens,
        )
        self._shares: dict[tuple[str, float], float] = {}
        self._layers: dict[str, list[float]] = {}

    def score(self, candidates: Sequence[Candidate], *, rung: str, share: float) -> list[float]:
        """Losses, from memory where they are known."""
        if rung == "closed_form":
            return [self.sweep.measure(candidate).loss for candidate in candidates]
        if share == 1.0:
            return [quality.loss for quality in self.sweep.measure_unrecovered(candidates)]
        instruments = self.sweep.instruments
        new = [candidate for candidate in candidates if (candidate.key, share) not in self._shares]
        if new:
            part = instruments.validation.take_evenly(round(share * instruments.validation.num_tokens))
            found = measure_unrecovered(instruments.anatomy, new, part, micro_batch=instruments.micro_batch)
            self._shares |= {(c.key, share): losses.loss for c, losses in zip(new, found, strict=True)}
        return [self._shares[candidate.key, share] for candidate in candidates]

    def weigh_layers(self, measure: str) -> list[float]:
        """A number for each layer, or place of a block."""
        if measure not in self._layers:
            self._layers[measure] = self._weigh(measure)
        return self._layers[measure]

    def _weigh(self, measure: str) -> list[float]:
        anatomy, stream = self.sweep.instruments.anatomy, self.sweep.instruments.calibration
        data: dict[str, Any] = {"micro_batch": self.sweep.instruments.micro_batch}
        if measure == "magnitude":
            return measure_magnitude(anatomy)
        if measure == "block_influence":
            return measure_block_influence(anatomy, stream, **data)
        if measure == "taylor":
            return measure_taylor(anatomy, stream, **data)
        return measure_angular_distances(anatomy, stream, num_layers=int(measure), **data)


class Account:
    """A ``Meter`` of one strategy: measures through ``Measured``, pays from a budget in layer-tokens."""

    def __init__(self, measured: Measured, *, budget: float = math.inf) -> None:
        self.measured = measured
        self.budget = budget
        self.spent = 0.0
        self.num_scores = 0  # of candidates on all validation text
        self._paid: set[str] = set()
        self._last: Candidate | None = None  # that closed form walked

    def score(self, candidates: Sequence[Candidate], *, rung: str, share: float = 1.0) -> list[float]:
        """Losses on a share of the validation text, nats per token.

        Raises:
            BudgetSpent: they cost more than is left.
        """
        names = {candidate: f"{rung}/{share}/{candidate.key}" for candidate in candidates}
        new = sorted((c for c, name in names.items() if name not in self._paid), key=lambda c: c.kept_layers)
        if new:
            self._pay(self._price(new, rung=rung, share=share))
            self._paid.update(names[candidate] for candidate in new)
            self.num_scores += len(new) * (share == 1.0)
            self._last = new[-1] if rung == "closed_form" else self._last
        return self.measured.score(candidates, rung=rung, share=share)

    def weigh_layers(self, measure: str) -> list[float]:
        """How important each layer is, higher is more."""
        prices = self.measured.prices
        cost = {"magnitude": 0.0, "block_influence": prices.trace, "taylor": prices.gradient}
        self._pay_once(measure, cost[measure])
        return self.measured.weigh_layers(measure)

    def measure_distances(self, num_layers: int) -> list[float]:
        """Angular distance between the inputs of layer i and of layer i + ``num_layers``, for every i."""
        self._pay_once("angular_distance", self.measured.prices.trace)  # one pass serves every length
        return self.measured.weigh_layers(str(num_layers))

    def _price(self, new: Sequence[Candidate], *, rung: str, share: float) -> float:
        prices = self.measured.prices
        if rung != "closed_form":
            return prices.price(count_work(new, closed_form=False), share=share)
        if self._last is None:
            return prices.trace + prices.price(count_work(new, closed_form=True))
        walked = [self._last, *new]
        before = prices.price(count_work([self._last], closed_form=True))
        return prices.price(count_work(walked, closed_form=True)) - before

    def _pay_once(self, name: str, cost: float) -> None:
        if name not in self._paid:
            self._pay(cost)
            self._paid.add(name)

    def _pay(self, cost: float) -> None:
        if self.spent + cost > self.budget * (1 + 1e-9):
            raise BudgetSpent
        self.spent += cost
