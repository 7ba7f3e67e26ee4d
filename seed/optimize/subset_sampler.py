"""``SubsetSampler``: which set of parts to drop next, for an Optuna study over flags, 1 where a part stays and 0 where it goes.

    sampler = SubsetSampler([f"keep_{layer:02d}" for layer in range(22)], max_dropped=4, seed=0)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])

where the objective calls ``trial.suggest_categorical("keep_07", [0, 1])`` for each flag, choices in this order, and returns
the loss first: a positive number, to be minimised.

It measures single removals, fits a surrogate to what all sets cost (``surrogate``), and asks for the set by which the
frontier of the loss over the number of dropped parts is expected to grow most: expected improvement (Jones et al. 1998),
summed over numbers. That is the expected growth of the dominated area (Emmerich et al. 2006) when the number is known
beforehand. Further objectives need no model as long as they follow from what is dropped, as latency and memory do. Sets
that are being tried are believed to do as expected.
"""

import functools
import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from seed.optimize.surrogate import Array, Surrogate, expect_growth, rank_by_turns

FLAG = CategoricalDistribution((0, 1))  # 1: the part stays
MOST_LISTED = 16_384  # spaces up to this size are looked at whole
BEAM_WIDTH = 24  # larger ones: the best sets of each number of parts that single steps lead to,
BEAM_SETS = 192  # fewer of each where many parts may go, but at least 4
DRAWN_SETS = 128  # and random ones
MOST_DRAWS = 100  # of so many random sets, before one that was tried is asked for again
WEIGHED_SETS = 512  # whose uncertainty is computed, of those that are expected to be best


@dataclass(frozen=True, kw_only=True)
class History:
    """What is known of the space when a trial asks. Sets are rows, 1 where a part is gone."""

    dropped_NP: Array  # complete, with
    losses_N: Array  # the logarithms of their losses
    running_MP: Array
    taken: np.ndarray  # hashes of all that are not to be asked for


class SubsetSampler(optuna.samplers.BaseSampler):
    """Asks for sets of dropped parts where the frontier is expected to grow.

    Other parameters are drawn at random. A set is not asked for again while others are left, unless its trial failed. What
    is asked depends on the stored trials, ``seed`` and the trial's number alone, so that a resumed study goes on as an unbroken one.

    Args:
        flags: names of the flags of parts that may go, in the model's order.
        min_dropped: fewest parts dropped.
        max_dropped: most parts dropped. None: all but one.
        prior: a cheaper loss, in about the same unit, of the flags of the dropped parts; it takes the place of single removals.
        seed: of random numbers, 0 or more.

    Raises:
        ValueError: the bounds contradict each other or the flags.
    """

    def __init__(
        self,
        flags: Sequence[str],
        *,
        min_dropped: int = 1,
        max_dropped: int | None = None,
        prior: Callable[[Collection[str]], float] | None = None,
        seed: int = 0,
    ) -> None:
        most = max(1, min_dropped, len(flags) - 1) if max_dropped is None else max_dropped
        if len(set(flags)) != len(flags) or not 0 <= min_dropped <= most <= len(flags) or most < 1:
            raise ValueError(
                f"min_dropped={min_dropped}, max_dropped={max_dropped}, flags={list(flags)}: wanted each flag once, and "
                "0 <= min <= max, max from 1 to their number."
            )
        self.flags, self.seed = tuple(flags), seed
        self.sets = Sets(len(flags), least=min_dropped, most=most)
        self.prior = None if prior is None else functools.cache(prior)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict.fromkeys(self.flags, FLAG)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        state = np.random.SeedSequence([self.seed, trial.number, *param_name.encode()]).generate_state(1)[0]
        others = optuna.samplers.RandomSampler(seed=int(state))
        return others.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        history = self._read_history(study, but=trial.number)
        dropped = self._choose(history, np.random.default_rng([self.seed, trial.number]))
        return {name: int(not gone) for name, gone in zip(self.flags, dropped, strict=True)}

    def _read_history(self, study: optuna.Study, *, but: int) -> History:
        rows: dict[TrialState, list[list[int | None]]] = {state: [] for state in TrialState}
        values = []
        for trial in study.get_trials(deepcopy=False):
            kept = list(map(trial.params.get, self.flags))
            num_dropped = kept.count(0)
            if trial.number == but or None in kept or not self.sets.least <= num_dropped <= self.sets.most:
                continue
            rows[trial.state].append(kept)
            if trial.state == TrialState.COMPLETE:
                values.append(trial.values[0])
        dropped, running, pruned = (
            1.0 - np.array(rows[state], dtype=float).reshape(-1, len(self.flags))
            for state in (TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED)
        )
        is_finite = np.isfinite(values)
        return History(
            dropped_NP=dropped[is_finite],
            losses_N=take_logarithms(values)[is_finite],
            running_MP=running,
            taken=self.sets.hash(np.concatenate([dropped, running, pruned])),
        )

    def _choose(self, history: History, rng: np.random.Generator) -> Array:
        """Return the next set (P,)."""
        sets = self.sets
        new: list[Array] = list(sets.leave_out(history.taken, self._start()))
        if new:
            return new[0]
        if len(history.losses_N) < 2:
            return sets.draw_new(history.taken, rng)
        order = rank_by_turns(history.dropped_NP.sum(axis=1), history.losses_N)
        observed, losses = history.dropped_NP[order], history.losses_N[order]
        surrogate = Surrogate(observed, losses, prior_N=self._expect_cheaply(observed))
        if len(history.running_MP):  # believe what is expected of them (Ginsbourger et al. 2010), and grow less sure
            believed = surrogate.expect(history.running_MP, prior_M=self._expect_cheaply(history.running_MP))
            observed = np.concatenate([history.running_MP, observed])
            losses = np.concatenate([believed, losses])
            surrogate = Surrogate(observed, losses, prior_N=self._expect_cheaply(observed))

        def expect(dropped_MP: Array) -> Array:
            return surrogate.expect(dropped_MP, prior_M=self._expect_cheaply(dropped_MP))

        pool = sets.everything if sets.size <= MOST_LISTED else sets.grow_pool(expect, rng)
        pool = sets.leave_out(history.taken, pool)
        if not len(pool):
            return sets.draw_new(history.taken, rng)
        expected = expect(pool)
        best = rank_by_turns(pool.sum(axis=1), expected)[:WEIGHED_SETS]
        pool, expected = pool[best], expected[best]
        growth = expect_growth(
            expected,
            surrogate.spread(pool),
            pool.sum(axis=1),
            known_losses=losses,
            known_sizes=observed.sum(axis=1),
            thresholds=np.arange(sets.least, sets.most + 1, dtype=float),
        )
        chosen: Array = pool[int(np.argmax(growth + 1e-12 * growth.max() * rng.random(len(growth))))]
        return chosen

    def _start(self) -> Array:
        """Sets that are asked for first (M, P): each part once, or the best of each number of parts by the prior."""
        sets = self.sets
        if self.prior is None or sets.size > MOST_LISTED:
            least = max(1, sets.least)
            order = np.arange(sets.num_parts)  # neighbours in turn: they share what models compute before them
            chunks = np.concatenate([order, order[: -sets.num_parts % least]]).reshape(-1, least)
            start: Array = np.zeros((len(chunks), sets.num_parts))
            np.put_along_axis(start, chunks, 1.0, axis=1)
            return start
        values, counts = self._expect_cheaply(sets.everything), sets.everything.sum(axis=1)
        assert values is not None
        groups_of = [counts == count for count in np.unique(counts)]
        return np.stack([sets.everything[group][np.argmin(values[group])] for group in groups_of])

    def _expect_cheaply(self, dropped_MP: Array) -> Array | None:
        """Logarithms of the prior (M,). None: there is none, or it need not know sets that are not in the space."""
        if self.prior is None or not self.sets.holds(dropped_MP).all():
            return None
        return take_logarithms([self.prior(tuple(itertools.compress(self.flags, row))) for row in dropped_MP])


def take_logarithms(losses: Sequence[float]) -> Array:
    """Losses as the surrogate sees them."""
    logarithms: Array = np.log(np.maximum(np.array(losses, dtype=float), 1e-300))
    return logarithms


class Sets:
    """Sets of some of ``num_parts`` parts. They are rows, 1 where a part is gone."""

    def __init__(self, num_parts: int, *, least: int, most: int) -> None:
        self.num_parts, self.least, self.most = num_parts, least, most
        self.size = sum(math.comb(num_parts, count) for count in range(least, most + 1))
        self._words = np.random.default_rng(0).integers(1, 2**63, num_parts, dtype=np.uint64)

    def hash(self, dropped_MP: Array) -> np.ndarray:
        """One number for each set (M,) (Zobrist 1970)."""
        hashes: np.ndarray = (dropped_MP.astype(np.uint64) * self._words).sum(axis=1, dtype=np.uint64)
        return hashes

    def leave_out(self, taken: np.ndarray, dropped_MP: Array) -> Array:
        """Those of the sets that are not taken."""
        return dropped_MP[~np.isin(self.hash(dropped_MP), taken)]

    def holds(self, dropped_MP: Array) -> np.ndarray:
        """Which sets have as many parts as may go (M,)."""
        counts = dropped_MP.sum(axis=1)
        inside: np.ndarray = (counts >= self.least) & (counts <= self.most)
        return inside

    @functools.cached_property
    def everything(self) -> Array:
        """Every set of as many parts as may go."""
        found = [
            dropped
            for count in range(self.least, self.most + 1)
            for dropped in itertools.combinations(range(self.num_parts), count)
        ]
        rows = np.zeros((len(found), self.num_parts))
        for row, dropped in zip(rows, found, strict=True):
            row[list(dropped)] = 1.0
        return rows

    def draw(self, rng: np.random.Generator) -> Array:
        """Random sets: first how many parts go, evenly, then which."""
        order = rng.random((DRAWN_SETS, self.num_parts)).argsort(axis=1).argsort(axis=1)
        drawn: Array = (order < rng.integers(self.least, self.most + 1, (DRAWN_SETS, 1))).astype(float)
        return drawn

    def draw_new(self, taken: np.ndarray, rng: np.random.Generator) -> Array:
        """A random set that is not taken (P,); any set when all are."""
        drawn = self.draw(rng)
        for _ in range(MOST_DRAWS):
            new: list[Array] = list(self.leave_out(taken, drawn))
            if new:
                return new[0]
            drawn = rng.permutation(self.everything) if self.size <= MOST_LISTED else self.draw(rng)
        anything: list[Array] = list(drawn)
        return anything[0]

    def grow_pool(self, expect: Callable[[Array], Array], rng: np.random.Generator) -> Array:
        """Sets that are expected to be good, found by adding one part at a time, and random ones (M, P)."""
        beam, single = np.zeros((1, self.num_parts)), np.eye(self.num_parts)
        pool = [self.draw(rng)]
        width = min(BEAM_WIDTH, max(4, BEAM_SETS // self.most))
        for count in range(1, self.most + 1):
            grown = (beam[:, None, :] + single[None]).reshape(-1, self.num_parts)
            grown = self.unite(grown[grown.max(axis=1) <= 1])
            best_first = np.argsort(expect(grown))
            beam = grown[best_first[:width]]
            if count >= self.least:
                pool.append(grown[best_first[: max(width, WEIGHED_SETS // self.most)]])
        return self.unite(np.concatenate(pool))

    def unite(self, dropped_MP: Array) -> Array:
        """The same sets, each once."""
        _, first = np.unique(self.hash(dropped_MP), return_index=True)
        united: Array = dropped_MP[first]
        return united
