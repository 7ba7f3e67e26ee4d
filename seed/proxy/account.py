"""What a strategy measures with, and its account: layer-tokens, as if it had measured alone.

The account is that of an engine that shares prefixes within a batch and, with closed form, with the candidate before.
What the study remembers, or another strategy has measured, is not measured again, but paid for all the same.
"""

import math
from collections.abc import Callable, Sequence

from seed.data.corpus import TokenStream
from seed.optimize.strategies import BudgetSpent
from seed.proxy.importance import measure_angular_distances, measure_block_influence, measure_magnitude, measure_taylor
from seed.proxy.pricing import Prices, set_prices
from seed.proxy.subset_walker import count_work, measure_unrecovered
from seed.proxy.sweep import Sweep
from seed.records import Candidate

IMPORTANCE = {"block_influence": measure_block_influence, "taylor": measure_taylor}  # on calibration text


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
        self._parts: dict[float, TokenStream] = {}
        self._shares: dict[tuple[str, float], float] = {}
        self._layers: dict[str, list[float]] = {}
        self._distances: dict[int, list[float]] = {}

    def score(self, candidates: Sequence[Candidate], *, proxy: str, share: float) -> list[float]:
        """Losses, from memory where they are known."""
        if proxy == "closed-form":
            return [self.sweep.measure(candidate).loss for candidate in candidates]
        if share == 1.0:
            return [quality.loss for quality in self.sweep.measure_unrecovered(candidates)]
        instruments = self.sweep.instruments
        new = [candidate for candidate in candidates if (candidate.key, share) not in self._shares]
        if new:
            found = measure_unrecovered(
                instruments.source, new, self.train_as_follower(share), micro_batch=instruments.micro_batch
            )
            self._shares |= {(c.key, share): losses.loss for c, losses in zip(new, found, strict=True)}
        return [self._shares[candidate.key, share] for candidate in candidates]

    def train_as_follower(self, share: float) -> TokenStream:
        """Windows spread over the validation text, as near to a share of it as whole ones come."""
        if share not in self._parts:
            validation = self.sweep.instruments.validation
            self._parts[share] = validation.take_evenly(round(share * validation.num_tokens))
        return self._parts[share]

    def check(self, candidates: Sequence[Candidate], *, proxy: str) -> None:
        """Called before anything is paid; here everything can be measured."""

    def weigh_layers(self, measure: str) -> list[float]:
        """A number for each layer."""
        if measure not in self._layers:
            found = self.sweep.instruments
            self._layers[measure] = (
                measure_magnitude(found.source)
                if measure == "magnitude"
                else IMPORTANCE[measure](found.source, found.calibration, micro_batch=found.micro_batch)
            )
        return self._layers[measure]

    def measure_distances(self, num_layers: int) -> list[float]:
        """Angular distance over so many layers, from each layer that has as many behind it."""
        if num_layers not in self._distances:
            found = self.sweep.instruments
            self._distances[num_layers] = measure_angular_distances(
                found.source, found.calibration, num_layers=num_layers, micro_batch=found.micro_batch
            )
        return self._distances[num_layers]


class Account:
    """A ``Meter`` of one strategy: measures through ``Measured``, pays from a budget in layer-tokens.

    ``on_paid`` gets what was paid once it is measured.
    """

    def __init__(
        self, measured: Measured, *, budget: float = math.inf, on_paid: Callable[[float], None] = lambda cost: None
    ) -> None:
        self.measured = measured
        self.budget = budget
        self.on_paid = on_paid
        self.spent = 0.0
        self.num_scores = 0  # of candidates on all validation text
        self._paid: set[str] = set()
        self._last: Candidate | None = None  # that closed form walked

    def score(self, candidates: Sequence[Candidate], *, proxy: str, share: float = 1.0) -> list[float]:
        """Losses on a share of the validation text, nats per token.

        Raises:
            BudgetSpent: they cost more than is left.
        """
        names = {candidate: f"{proxy}/{share}/{candidate.key}" for candidate in candidates}
        new = sorted((c for c, name in names.items() if name not in self._paid), key=lambda c: c.kept_layers)
        before = self.spent
        if new:
            self.measured.check(new, proxy=proxy)
            self._pay(self.price(new, proxy=proxy, share=share))
            self._paid.update(names[candidate] for candidate in new)
            self.num_scores += len(new) * (share == 1.0)
            self._last = new[-1] if proxy == "closed-form" else self._last
        losses = self.measured.score(candidates, proxy=proxy, share=share)
        self.on_paid(self.spent - before)
        return losses

    def weigh_layers(self, measure: str) -> list[float]:
        """How important each layer is, higher is more."""
        prices = self.measured.prices
        cost = {"magnitude": 0.0, "block_influence": prices.trace, "taylor": prices.gradient}
        self._pay_once(measure, cost[measure])
        return self.measured.weigh_layers(measure)

    def measure_distances(self, num_layers: int) -> list[float]:
        """Angular distance between the inputs of layer i and of layer i + ``num_layers``, for every i."""
        self._pay_once("angular_distance", self.measured.prices.trace)  # one pass serves every length
        return self.measured.measure_distances(num_layers)

    def price(self, new: Sequence[Candidate], *, proxy: str, share: float = 1.0) -> float:
        """What scores would cost now; candidates in the order in which closed form walks."""
        prices = self.measured.prices
        if proxy != "closed-form":
            tokens = self.measured.train_as_follower(share).num_tokens if share < 1 else None
            return prices.price(count_work(new, closed_form=False), validation_tokens=tokens)
        gone = self.measured.sweep.instruments.source.gone_layers
        if self._last is None:
            return prices.trace + prices.price(count_work(new, closed_form=True, gone_layers=gone))
        walked = [self._last, *new]
        before = prices.price(count_work([self._last], closed_form=True, gone_layers=gone))
        return prices.price(count_work(walked, closed_form=True, gone_layers=gone)) - before

    def _pay_once(self, name: str, cost: float) -> None:
        if name not in self._paid:
            self._pay(cost)
            self._paid.add(name)

    def _pay(self, cost: float) -> None:
        if self.spent + cost > self.budget * (1 + 1e-9):
            raise BudgetSpent
        self.spent += cost
