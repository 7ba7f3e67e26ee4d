"""What scores cost in layer-tokens, one layer applied to one token; and scores within a budget of them.

A unit that does not depend on the machine, so that strategies can be compared at equal cost. Everything else that a score
takes is counted in multiply-adds and divided by those of one layer on one token.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from seed.data.corpus import TokenStream
from seed.models.anatomy import Anatomy
from seed.optimize.space import order_walk
from seed.optimize.strategies import BudgetSpent
from seed.proxy.closed_form import RIDGES
from seed.proxy.importance import (
    measure_angular_distances,
    measure_attention_influence,
    measure_block_influence,
    measure_magnitude,
    measure_taylor,
)
from seed.proxy.shared_maps import find_reach, shares_maps
from seed.proxy.subset_walker import (
    TrieWork,
    count_kept,
    count_known,
    count_work,
    list_gaps,
    list_prefixes,
    list_uncut,
    measure_unrecovered,
)
from seed.proxy.sweep import Sweep
from seed.records import Candidate, Edge

BACKWARD = 2.0  # a gradient takes two more passes


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices in layer-tokens of a study's parts of work."""

    num_layers: int
    calibration_tokens: int
    validation_tokens: int
    head: float  # the head on one token
    fit: float  # a layer's sums and factors for closed form
    solve: float  # a correction, solved for and applied

    def price(self, work: TrieWork, *, validation_tokens: int | None = None) -> float:
        """Price of walking a trie, on so much validation text; None: all."""
        validation = self.validation_tokens if validation_tokens is None else validation_tokens
        return (
            validation * (work.plain_layers + self.head * work.heads)
            + work.run_layers * (self.calibration_tokens + validation + self.fit)
            + work.solved_layers * self.solve
        )

    def distill(self, num_kept: int, *, tokens: int) -> float:
        """Price of a short distillation: a student's passes beside those of the dense model; validation text before and after."""
        training = tokens * ((1 + BACKWARD) * (num_kept + self.head) + self.num_layers + self.head)
        return training + 2 * self.validation_tokens * (num_kept + self.head)

    @property
    def trace(self) -> float:
        """The dense model's layers on the calibration text."""
        return float(self.calibration_tokens * self.num_layers)

    @property
    def gradient(self) -> float:
        """The dense model's gradient on the calibration text."""
        return (1 + BACKWARD) * self.calibration_tokens * (self.num_layers + self.head)


def set_prices(anatomy: Anatomy, *, calibration_tokens: int, validation_tokens: int) -> Prices:
    """Count a model's multiply-adds; layers are taken to be alike."""
    num_layers, width = anatomy.num_layers, int(anatomy.config.hidden_size)
    layer = sum(weight.numel() for weight in anatomy.layers.parameters() if weight.ndim >= 2) / num_layers
    outlets = map(anatomy.find_output_projection, range(num_layers))
    reads = max((outlet.num_inputs for outlet in outlets if outlet is not None), default=0)
    systems = len(RIDGES) + 1  # and the best one again on all positions
    both = calibration_tokens + validation_tokens
    fit = calibration_tokens * reads**2 + systems * reads**3 / 3
    errors = len(RIDGES) * reads**2 * width  # on held-out positions
    solve = (calibration_tokens + both) * reads * width + systems * reads**2 * width + errors
    return Prices(
        num_layers=num_layers,
        calibration_tokens=calibration_tokens,
        validation_tokens=validation_tokens,
        head=int(anatomy.config.vocab_size) * width / layer,
        fit=fit / layer,
        solve=solve / layer,
    )


class BudgetedScorer:
    """What a strategy measures with: it pays from a budget in layer-tokens as if it had measured alone.

    The price is that of an engine that shares prefixes within a batch and, with closed form, with the candidate before; where
    maps are shared with candidates of a few paths before.
    What the study remembers is not measured again, but paid for all the same.

    Args:
        sweep: what scores.
        budget: layer-tokens.
        on_paid: gets what is paid.
        check: is called with candidates and proxy before anything is paid, and may raise ``BudgetSpent``.
    """

    def __init__(
        self,
        sweep: Sweep,
        *,
        budget: float = math.inf,
        on_paid: Callable[[float], None] = lambda cost: None,
        check: Callable[[Sequence[Candidate], str], None] = lambda candidates, proxy: None,
    ) -> None:
        self.sweep = sweep
        self.anatomy = sweep.instruments.walked
        self.unit = sweep.instruments.source.num_layers / self.anatomy.num_layers  # what it walks, in layers
        self.budget = budget
        self.on_paid = on_paid
        self.check = check
        self.spent = 0.0
        self.num_scores = 0  # of candidates on all validation text
        self.prices: Prices = set_prices(
            self.anatomy,
            calibration_tokens=sweep.instruments.calibration.num_tokens,
            validation_tokens=sweep.instruments.validation.num_tokens,
        )
        self._paid: set[str] = set()
        self._on_part: dict[tuple[str, float], float] = {}  # losses on a share of the validation text
        self._last: Candidate | None = None  # that closed form walked
        self._mapped: set[Edge] = set()  # gaps whose maps are paid for
        self._walked: dict[tuple[Edge, ...], None] = {}  # prefixes whose states stay, those last in use last
        self._shares_maps = shares_maps(self.anatomy)
        config, weight = self.anatomy.config, next(self.anatomy.model.parameters())
        states_bytes = self.prices.validation_tokens * int(config.hidden_size) * weight.element_size()
        self._most_walked = count_kept(self.prices.num_layers, states_bytes)

    def score(self, candidates: Sequence[Candidate], *, proxy: str, share: float = 1.0) -> list[float]:
        """Losses on a share of the validation text, nats per token.

        Raises:
            BudgetSpent: they cost more than is left.
        """
        names = {candidate: f"{proxy}/{share}/{candidate.key}" for candidate in candidates}
        new = sorted((c for c, name in names.items() if name not in self._paid), key=order_walk)
        if new:
            self.check(new, proxy)
            self._pay(self.price(new, proxy=proxy, share=share))
            self._paid.update(names[candidate] for candidate in new)
            self.num_scores += len(new) * (share == 1.0)
            if proxy == "closed-form":
                walked = list(map(self.anatomy.spell, new))
                self._last = walked[-1]
                if self._shares_maps:
                    self._mapped.update(gap for candidate in walked for gap in self._list_gaps(candidate))
                    self._walked = self._walk(walked)[1]
        if proxy == "closed-form":
            return [self.sweep.measure(candidate).loss for candidate in candidates]
        if share == 1.0:
            return [quality.loss for quality in self.sweep.measure_unrecovered(candidates)]
        if new:
            found = self.sweep.instruments
            spelled = list(map(self.anatomy.spell, new))
            losses = measure_unrecovered(self.anatomy, spelled, self._take_part(share), micro_batch=found.micro_batch)
            self._on_part |= {(one.key, share): loss.loss for one, loss in zip(new, losses, strict=True)}
        return [self._on_part[candidate.key, share] for candidate in candidates]

    def weigh_layers(self, measure: str) -> list[float]:
        """How important each layer is, higher is more; by ``attention_influence`` each attention."""
        found = self.sweep.instruments
        if measure == "magnitude":
            return measure_magnitude(found.source)
        weigh, cost = {
            "block_influence": (measure_block_influence, self.prices.trace),
            "attention_influence": (measure_attention_influence, self.prices.trace),
            "taylor": (measure_taylor, self.prices.gradient),
        }[measure]
        self._pay(cost)
        return weigh(found.source, found.calibration, micro_batch=found.micro_batch)

    def measure_distances(self, num_layers: int) -> list[float]:
        """Angular distance between the inputs of layer i and of layer i + ``num_layers``, for every i."""
        if "angular_distance" not in self._paid:  # one pass serves every length
            self._pay(self.prices.trace)
            self._paid.add("angular_distance")
        found = self.sweep.instruments
        return measure_angular_distances(
            found.source, found.calibration, num_layers=num_layers, micro_batch=found.micro_batch
        )

    def price(self, new: Sequence[Candidate], *, proxy: str, share: float = 1.0) -> float:
        """What scores would cost now; candidates in the order in which closed form walks."""
        new = list(map(self.anatomy.spell, new))
        if proxy != "closed-form":
            tokens = self._take_part(share).num_tokens if share < 1 else None
            return self.prices.price(count_work(new, closed_form=False), validation_tokens=tokens)
        if self._shares_maps:
            work = TrieWork(plain_layers=self._walk(new)[0], run_layers=0, solved_layers=0, heads=len(new))
            return self.prices.price(work) + self._price_maps(new)
        gone = self.anatomy.gone_layers
        walked = [] if self._last is None else [self._last]
        before, after = (
            self.prices.price(count_work(path, closed_form=True, gone_layers=gone))
            for path in (walked, [*walked, *new])
        )
        return after - before if walked else self.prices.trace + after

    def _walk(self, new: Sequence[Candidate]) -> tuple[int, dict[tuple[Edge, ...], None]]:
        """Count the layers that a ``SubsetWalker`` runs for these, one after another; return the prefixes that stay, too."""
        walked, num_run = dict(self._walked), 0
        for candidate in new:
            path = list_prefixes(candidate.edges)
            num_run += len(path) - count_known(path, walked)
            for prefix in path:
                walked.pop(prefix, None)
            for prefix in list(walked)[: max(0, len(walked) - self._most_walked)]:
                del walked[prefix]
            walked |= dict.fromkeys(reversed(path))
        return num_run, walked

    def _price_maps(self, new: Sequence[Candidate]) -> float:
        """What the maps of gaps cost that no candidate had before; the first pays for the dense model's states, too."""
        gaps = {gap for candidate in new for gap in self._list_gaps(candidate)} - self._mapped
        fits = (
            len(gaps)
            * (1 + find_reach(self.anatomy))
            * (self.prices.calibration_tokens + self.prices.fit + self.prices.solve)
        )
        return fits + (0.0 if self._mapped else self.prices.trace)

    def _list_gaps(self, candidate: Candidate) -> list[Edge]:
        uncut = list_uncut(self.anatomy.num_layers, gone_layers=self.anatomy.gone_layers)
        return list_gaps(candidate.edges, uncut=uncut)

    def _take_part(self, share: float) -> TokenStream:
        """Windows spread over the validation text, as near to a share of it as whole ones come."""
        validation = self.sweep.instruments.validation
        return validation.take_evenly(round(share * validation.num_tokens))

    def _pay(self, cost: float) -> None:
        cost *= self.unit
        if self.spent + cost > self.budget * (1 + 1e-9):
            raise BudgetSpent
        self.spent += cost
        self.on_paid(cost)
