"""``SubsetSampler``: which set of parts to drop next, for any Optuna study over ``keep_...`` flags.

    sampler = SubsetSampler([f"keep_{layer:02d}" for layer in range(22)], max_dropped=4, seed=0)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])

where the objective calls ``trial.suggest_categorical("keep_07", [0, 1])`` for each flag, choices in this order, and returns
the loss first.

It measures single removals, fits a surrogate to what all sets cost (``surrogate``), and asks for the set by which the
frontier of the first objective over the size of what is dropped is expected to grow most (``acquisition``): expected
improvement (Jones et al. 1998), summed over sizes. That is the expected growth of the dominated area (Emmerich et al. 2006)
when size is known beforehand. Further objectives need no model as long as they follow from what is dropped, as latency and
memory do. Sets that are being tried are believed to do as expected; who asks while another asks may get the same.
"""

import datetime
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from seed.optimize.surrogate import Array, Surrogate, expect_growth, rank_by_turns

PREFIX = "keep_"
FLAG = CategoricalDistribution((0, 1))  # 1: the part stays
TAKEN_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)

MOST_LISTED = 16_384  # spaces up to this size are looked at whole
BEAM_WIDTH = 24  # larger ones: the best sets of each number of parts that single steps lead to,
BEAM_SETS = 192  # fewer of each where many parts may go, but at least 4
DRAWN_SETS = 128  # and random ones
WEIGHED_SETS = 512  # whose uncertainty is computed, of those that are expected to be best
MOST_FAILURES = 3  # of a set, before it is not asked for again
VERDICT = "verdict"  # a user attribute of a failed or pruned trial:
INTERRUPTED, FINAL = "interrupted", "final"  # it says nothing of its set; it says enough not to ask for the set again


def weigh_failure(trial: FrozenTrial) -> int:
    """How many failures of its set a failed trial counts for."""
    return {INTERRUPTED: 0, FINAL: MOST_FAILURES}.get(trial.user_attrs.get(VERDICT, ""), 1)


def settles(trial: FrozenTrial, states: tuple[TrialState, ...]) -> bool:
    """Is a trial's set not asked for again, by its state, or since it was pruned for good?"""
    is_final = trial.state == TrialState.PRUNED and trial.user_attrs.get(VERDICT) == FINAL
    return trial.state in states or is_final


class SubsetSampler(optuna.samplers.BaseSampler):
    """Asks for sets of dropped parts where the frontier is expected to grow.

    Parameters other than the flags are drawn at random. A set that is complete, pruned or being tried is not asked for
    again while others are left. What is asked depends on the stored trials, ``seed`` and the trial's number among those
    that did not fail, and on nothing that is held in memory, so that a resumed study goes on as an unbroken one.
    """

    def __init__(
        self,
        flags: Sequence[str] | None = None,
        *,
        min_dropped: int = 1,
        max_dropped: int | None = None,
        sizes: Sequence[float] | None = None,
        prior: Callable[[Collection[str]], float] | None = None,
        seed: int | None = None,
        taken_states: tuple[TrialState, ...] = TAKEN_STATES,
        most_failures: int | None = MOST_FAILURES,
    ) -> None:
        """Describe the space.

        Args:
            flags: names of the flags of parts that may go, in the model's order. None: the flags of the last finished trial
                that begin with ``keep_``; the first trial then keeps everything.
            min_dropped: fewest parts dropped.
            max_dropped: most parts dropped. None: all but one.
            sizes: what each part is worth, above 0, in any unit such as parameters; None: all the same.
            prior: a cheaper value for the first objective, in its unit and finite, of the flags of the dropped parts; it
                takes the place of single removals.
            seed: of random numbers; None: another one each time.
            taken_states: states of trials whose sets are not asked for again.
            most_failures: a set that failed so often is not asked for again; None: it is, however often.

        Raises:
            ValueError: the bounds contradict each other or the flags, or the seed is negative.
        """
        if seed is not None and seed < 0:
            raise ValueError(f"seed={seed}: wanted 0 or more.")
        if flags is not None and len(set(flags)) != len(flags):
            raise ValueError("flags: a name is given twice.")
        if min_dropped < 0 or (max_dropped is not None and max_dropped < max(1, min_dropped)):
            raise ValueError(
                f"min_dropped={min_dropped}, max_dropped={max_dropped}: wanted 0 <= min <= max, and max > 0."
            )
        if flags is not None and max(min_dropped, max_dropped or 0) > len(flags):
            raise ValueError(f"min_dropped={min_dropped}, max_dropped={max_dropped}: there are {len(flags)} flags.")
        if sizes is not None and (flags is None or len(sizes) != len(flags) or min(sizes, default=1) <= 0):
            raise ValueError("sizes: wanted one number above 0 for each of the flags.")
        self.flags = None if flags is None else tuple(flags)
        self.min_dropped, self.max_dropped = min_dropped, max_dropped
        self.sizes = sizes
        self.prior = prior
        self.seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self.taken_states, self.most_failures = taken_states, most_failures
        self._priors: dict[tuple[str, ...], float] = {}
        self._spaces: dict[tuple[str, ...], _Sets] = {}  # by study and flags

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if self.flags is not None:
            return dict.fromkeys(self.flags, FLAG)
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        known = finished[-1].distributions if finished else {}
        return {name: known[name] for name in sorted(known) if is_flag(name, known[name])}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if is_flag(param_name, param_distribution):
            return 1  # what else the trial drops is not known, so nothing goes
        state = np.random.SeedSequence([self.seed, trial.number, *param_name.encode()]).generate_state(1)[0]
        others = optuna.samplers.RandomSampler(seed=int(state))
        return others.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        names = self.flags or tuple(name for name in search_space if is_flag(name, search_space[name]))
        if not names:
            return {}
        key = (study.study_name, *names)
        if key not in self._spaces:
            self._spaces[key] = self._describe(names)
        sets = self._spaces[key]
        history = self._read_history(sets, study, but=trial.number)
        rng = np.random.default_rng([self.seed, trial.number - history.num_failed])
        dropped = self._choose(sets, history, rng)
        return {name: int(not gone) for name, gone in zip(names, dropped, strict=True)}

    def _describe(self, names: tuple[str, ...]) -> "_Sets":
        most = max(1, self.min_dropped, len(names) - 1) if self.max_dropped is None else self.max_dropped
        sizes = np.ones(len(names)) if self.sizes is None or names != self.flags else np.array(self.sizes, dtype=float)
        least, most = min(self.min_dropped, len(names)), min(most, len(names))
        return _Sets(names, least=least, most=most, sizes=sizes)

    def _read_history(self, sets: "_Sets", study: optuna.Study, *, but: int) -> "_History":
        history = _History(sets)
        history.sign = 1.0 if study.directions[0] == StudyDirection.MINIMIZE else -1.0
        rows, values, running, taken = [], [], [], []
        failures: dict[int, int] = {}
        for trial in study.get_trials(deepcopy=False):
            if trial.number == but or trial.state == TrialState.WAITING:
                continue
            row = _row_of(sets, trial)
            if trial.state == TrialState.FAIL:
                history.num_failed += trial.number < but
                if row is not None:
                    key = int(sets.hash(row[None])[0])
                    failures[key] = failures.get(key, 0) + weigh_failure(trial)
                continue
            if row is None:
                continue
            if settles(trial, self.taken_states):
                taken.append(row)
            if trial.state == TrialState.RUNNING:
                running.append(row)
            elif trial.state == TrialState.COMPLETE:
                rows.append(row)
                values.append(trial.values[0])
        if taken:
            history.taken = sets.hash(np.stack(taken))
        if self.most_failures is not None:
            hopeless = [key for key, count in failures.items() if count >= self.most_failures]
            history.taken = np.concatenate([history.taken, np.array(hopeless, dtype=np.uint64)])
        if running:
            history.running = np.stack(running)
        if rows:
            found = np.array(values, dtype=float)
            finite = np.isfinite(found)
            history.is_logarithmic = bool((found[finite] > 0).all())
            losses = history.transform(np.where(finite, found, 1.0))
            if finite.any():
                losses[~finite] = losses[finite].max()
                history.dropped, history.losses = np.stack(rows), losses
        return history

    def _choose(self, sets: "_Sets", history: "_History", rng: np.random.Generator) -> Array:
        """Return the next set (P,)."""
        start = self._start(sets, history)
        new: list[Array] = list(start[~np.isin(sets.hash(start), history.taken)])
        if new:
            return new[0]
        if len(history.losses) < 2:
            return _draw_new(sets, history, rng)
        order = rank_by_turns(sets.measure(history.dropped), history.losses)
        observed, losses = history.dropped[order], history.losses[order]
        surrogate = Surrogate(observed, losses, prior_N=self._expect_cheaply(sets, observed, history))
        if len(history.running):  # believe what is expected of them (Ginsbourger et al. 2010), and grow less sure
            believed = surrogate.expect(history.running, prior_M=self._expect_cheaply(sets, history.running, history))
            observed = np.concatenate([history.running, observed])
            losses = np.concatenate([believed, losses])
            surrogate = Surrogate(observed, losses, prior_N=self._expect_cheaply(sets, observed, history))

        def expect(dropped_MP: Array) -> Array:
            is_inside = bool(sets.holds(dropped_MP).all())  # only there the prior need know anything
            prior = self._expect_cheaply(sets, dropped_MP, history) if is_inside else None
            return surrogate.expect(dropped_MP, prior_M=prior)

        pool = sets.list_all() if sets.size <= MOST_LISTED else _grow_pool(sets, expect, rng)
        pool = pool[~np.isin(sets.hash(pool), history.taken)]
        if not len(pool):
            return _draw_new(sets, history, rng)
        expected = expect(pool)
        best = rank_by_turns(sets.measure(pool), expected)[:WEIGHED_SETS]
        pool, expected = pool[best], expected[best]
        growth = expect_growth(
            expected,
            surrogate.spread(pool),
            sets.measure(pool),
            known_losses=losses,
            known_sizes=sets.measure(observed),
            thresholds=sets.thresholds,
        )
        chosen: Array = pool[int(np.argmax(growth + 1e-12 * growth.max() * rng.random(len(growth))))]
        return chosen

    def _start(self, sets: "_Sets", history: "_History") -> Array:
        """Sets that are asked for first (M, P): each part once, or the best of each number of parts by the prior."""
        if self.prior is None or sets.size > MOST_LISTED:
            total, least = len(sets.names), max(1, sets.least)
            order = np.arange(total)  # neighbours in turn: they share what models compute before them
            chunks = np.concatenate([order, order[: -total % least]]).reshape(-1, least)
            start: Array = np.zeros((len(chunks), total))
            np.put_along_axis(start, chunks, 1.0, axis=1)
            return start
        everything = sets.list_all()
        values = self._expect_cheaply(sets, everything, history)
        assert values is not None
        counts = everything.sum(axis=1)
        groups_of = [counts == count for count in np.unique(counts)]
        return np.stack([everything[group][np.argmin(values[group])] for group in groups_of])

    def _expect_cheaply(self, sets: "_Sets", dropped_MP: Array, history: "_History") -> Array | None:
        return None if self.prior is None else history.transform(self._look_up(sets, dropped_MP))

    def _look_up(self, sets: "_Sets", dropped_MP: Array) -> Array:
        assert self.prior is not None
        values = []
        for row in dropped_MP:
            names = tuple(itertools.compress(sets.names, row))
            if names not in self._priors:
                value = float(self.prior(names))
                if not math.isfinite(value):
                    raise ValueError(f"prior: {value} for the set without {', '.join(names)}; wanted a finite number.")
                self._priors[names] = value
            values.append(self._priors[names])
        return np.array(values)


class _Sets:
    """The space: which parts there are, how many may go, and what a set weighs. Sets are rows, 1 where a part is gone."""

    def __init__(self, names: tuple[str, ...], *, least: int, most: int, sizes: Array) -> None:
        self.names, self.least, self.most, self.sizes = names, least, most, sizes
        self.size = sum(math.comb(len(names), count) for count in range(least, most + 1))
        ordered = np.sort(sizes)
        low, high = ordered[:least].sum(), ordered[len(ordered) - most :].sum()
        self.thresholds = np.linspace(low, high, most - least + 1)
        self._words = np.random.default_rng(0).integers(1, 2**63, len(names), dtype=np.uint64)
        self._all: Array | None = None
        # Sets of finished trials, by number, with when they began; None where flags are missing.
        self.rows: dict[int, tuple[datetime.datetime | None, Array | None]] = {}

    def measure(self, dropped_MP: Array) -> Array:
        """Sizes of what is dropped (M,)."""
        return dropped_MP @ self.sizes

    def hash(self, dropped_MP: Array) -> np.ndarray:
        """One number for each set (M,) (Zobrist 1970)."""
        hashes: np.ndarray = (dropped_MP.astype(np.uint64) * self._words).sum(axis=1, dtype=np.uint64)
        return hashes

    def list_all(self) -> Array:
        """Every set."""
        if self._all is None:
            rows = [
                dropped
                for count in range(self.least, self.most + 1)
                for dropped in itertools.combinations(range(len(self.names)), count)
            ]
            self._all = np.zeros((len(rows), len(self.names)))
            for row, dropped in zip(self._all, rows, strict=True):
                row[list(dropped)] = 1.0
        return self._all

    def draw(self, count: int, rng: np.random.Generator) -> Array:
        """Random sets (count, P): first how many parts go, evenly, then which."""
        order = rng.random((count, len(self.names))).argsort(axis=1).argsort(axis=1)
        result: Array = (order < rng.integers(self.least, self.most + 1, (count, 1))).astype(float)
        return result

    def holds(self, dropped_MP: Array) -> np.ndarray:
        """Which sets are in the space (M,)."""
        counts = dropped_MP.sum(axis=1)
        inside: np.ndarray = (counts >= self.least) & (counts <= self.most)
        return inside


class _History:
    """What is known of the space when a trial asks."""

    def __init__(self, sets: _Sets) -> None:
        empty = np.zeros((0, len(sets.names)))
        self.dropped, self.running = empty, empty
        self.losses: Array = np.zeros(0)
        self.taken: np.ndarray = np.zeros(0, dtype=np.uint64)  # hashes
        self.num_failed = 0
        self.sign, self.is_logarithmic = 1.0, False

    def transform(self, values: Array) -> Array:
        """Values of the first objective as the surrogate sees them: lower is better, positive ones as logarithms."""
        return self.sign * (np.log(np.maximum(values, 1e-300)) if self.is_logarithmic else values)


def _row_of(sets: _Sets, trial: FrozenTrial) -> Array | None:
    """The set of a trial, or None where a flag is missing or it lies outside the space."""
    known = sets.rows.get(trial.number)
    if known is not None and known[0] == trial.datetime_start:  # not of another study
        return known[1]
    row: Array | None = None
    if all(name in trial.params for name in sets.names):
        row = np.array([1.0 - bool(trial.params[name]) for name in sets.names])
    row = row if row is not None and sets.holds(row[None])[0] else None
    if trial.state.is_finished():
        sets.rows[trial.number] = (trial.datetime_start, row)
    return row


def is_flag(name: str, distribution: BaseDistribution) -> bool:
    """Is this parameter a flag that keeps or drops a part?"""
    return (
        name.startswith(PREFIX)
        and isinstance(distribution, CategoricalDistribution)
        and set(distribution.choices) == {0, 1}
    )


def _grow_pool(sets: _Sets, expect: Callable[[Array], Array], rng: np.random.Generator) -> Array:
    """Sets that are expected to be good, found by adding one part at a time, and random ones (M, P)."""
    beam = np.zeros((1, len(sets.names)))
    pool = [sets.draw(DRAWN_SETS, rng)]
    single = np.eye(len(sets.names))
    width = min(BEAM_WIDTH, max(4, BEAM_SETS // sets.most))
    for count in range(1, sets.most + 1):
        grown = (beam[:, None, :] + single[None]).reshape(-1, len(sets.names))
        grown = _unique(sets, grown[grown.max(axis=1) <= 1])
        best_first = np.argsort(expect(grown))
        beam = grown[best_first[:width]]
        if count >= sets.least:
            pool.append(grown[best_first[: max(width, WEIGHED_SETS // sets.most)]])
    return _unique(sets, np.concatenate(pool))


def _unique(sets: _Sets, dropped_MP: Array) -> Array:
    _, first = np.unique(sets.hash(dropped_MP), return_index=True)
    result: Array = dropped_MP[first]
    return result


def _draw_new(sets: _Sets, history: _History, rng: np.random.Generator) -> Array:
    """A random set that is not taken; any set when all are."""
    for candidates in _offer(sets, rng):
        new: list[Array] = list(candidates[~np.isin(sets.hash(candidates), history.taken)])
        if new:
            return new[0]
    anything: list[Array] = list(sets.draw(1, rng))
    return anything[0]


def _offer(sets: _Sets, rng: np.random.Generator) -> Iterable[Array]:
    yield sets.draw(DRAWN_SETS, rng)
    if sets.size <= MOST_LISTED:
        yield rng.permutation(sets.list_all())
    else:
        for _ in range(100):
            yield sets.draw(DRAWN_SETS, rng)
