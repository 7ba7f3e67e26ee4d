"""Which candidate to try next, as Optuna samplers over flags ``keep_00 ... keep_NN`` (1 = the layer stays).

``subset`` is Seed's own. ``FeasibleSampler`` lets one of Optuna's propose, asks again when it leaves the space or
repeats a set, and falls back to a random set. Spaces that are scored whole need no sampler.
"""

import random
import warnings
from collections.abc import Callable, Collection
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from seed.optimize.space import contains, draw_candidate, drop_more, enumerate_candidates
from seed.optimize.subset_sampler import (
    FLAG,
    MOST_FAILURES,
    PREFIX,
    TAKEN_STATES,
    SubsetSampler,
    settles,
    weigh_failure,
)
from seed.records import Candidate, SearchSpace

HOPELESS_RATIO = 1e6  # a PPL ratio by the prior counts as no more than this
PROPOSALS = 24  # of the inner sampler, before a random set is taken instead
UNSKIPPED_STATES = (TrialState.COMPLETE, TrialState.RUNNING)  # when what was skipped is to be tried after all


def flag_name(layer: int) -> str:
    """The name of a layer's flag."""
    return f"{PREFIX}{layer:02d}"


def flag_distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """One flag for each layer that may go."""
    return {flag_name(layer): FLAG for layer in space.droppable_layers}


def flags_of(space: SearchSpace, candidate: Candidate) -> dict[str, int]:
    """The flags that stand for a candidate."""
    kept = set(candidate.kept_layers)
    return {flag_name(layer): int(layer in kept) for layer in space.droppable_layers}


def candidate_of(space: SearchSpace, flags: dict[str, Any]) -> Candidate:
    """The candidate that flags stand for; layers without a flag stay, but those that are gone."""
    return drop_more(space, [layer for layer in space.droppable_layers if not flags.get(flag_name(layer), 1)])


def taken_keys(
    study: optuna.Study, space: SearchSpace, *, but: int | None = None, states: tuple[TrialState, ...] = TAKEN_STATES
) -> set[str]:
    """Keys of candidates that are scored, skipped, being scored or hopeless; ``but`` is the asking trial itself."""
    taken: set[str] = set()
    failures: dict[str, int] = {}
    for trial in study.get_trials(deepcopy=False):
        if not trial.params or trial.number == but:
            continue
        candidate = candidate_of(space, trial.params)
        if not contains(space, candidate):
            continue
        if trial.state == TrialState.FAIL:
            failures[candidate.key] = failures.get(candidate.key, 0) + weigh_failure(trial)
        elif settles(trial, states):
            taken.add(candidate.key)
    return taken | {key for key, count in failures.items() if count >= MOST_FAILURES}


class FeasibleSampler(optuna.samplers.BaseSampler):
    """An Optuna sampler kept inside the space and away from sets that were tried."""

    def __init__(
        self,
        space: SearchSpace,
        inner: optuna.samplers.BaseSampler,
        *,
        random_state: int,
        taken_states: tuple[TrialState, ...] = TAKEN_STATES,
    ) -> None:
        self.space = space
        self.inner = inner
        self.rng = random.Random(random_state)
        self.taken_states = taken_states

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return flag_distributions(self.space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise AssertionError(f"{param_name} is not a flag of this space")

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.inner.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self.inner.after_trial(study, trial, state, values)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        taken = taken_keys(study, self.space, but=trial.number, states=self.taken_states)
        for _ in range(PROPOSALS):
            flags = self.inner.sample_relative(study, trial, search_space)
            if not flags:
                break  # the inner sampler still starts up, and wants random sets
            flags = {  # NSGA-II leaves out the flags that it mutates
                name: flags[name] if name in flags else self.inner.sample_independent(study, trial, name, distribution)
                for name, distribution in search_space.items()
            }
            candidate = candidate_of(self.space, flags)
            if contains(self.space, candidate) and candidate.key not in taken:
                return flags
        return flags_of(self.space, self._draw_new(taken))

    def _draw_new(self, taken: set[str]) -> Candidate:
        """A random untried candidate, or any where none is left."""
        for _ in range(1000):
            candidate = draw_candidate(self.space, self.rng)
            if candidate.key not in taken:
                return candidate
        left = [candidate for candidate in enumerate_candidates(self.space) if candidate.key not in taken]
        return self.rng.choice(left) if left else draw_candidate(self.space, self.rng)


def make_subset_sampler(
    space: SearchSpace,
    *,
    rng_seed: int,
    taken_states: tuple[TrialState, ...] = TAKEN_STATES,
    prior: Callable[[Candidate], float] | None = None,
) -> SubsetSampler:
    """Return Seed's sampler for a space; ``prior`` is a cheaper value for the first objective."""
    layers = {flag_name(layer): layer for layer in space.droppable_layers}

    def look_up(dropped: Collection[str]) -> float:
        assert prior is not None
        value = prior(drop_more(space, [layers[name] for name in dropped]))
        return value if value < HOPELESS_RATIO else HOPELESS_RATIO  # not a number is hopeless too

    return SubsetSampler(
        tuple(layers),
        min_dropped=space.more_dropped[0],
        max_dropped=space.more_dropped[-1],
        prior=look_up if prior is not None else None,
        seed=rng_seed,
        taken_states=taken_states,
    )


def make_sampler(
    name: str, space: SearchSpace, *, random_state: int, taken_states: tuple[TrialState, ...] = TAKEN_STATES
) -> optuna.samplers.BaseSampler:
    """Return the named sampler of Optuna's, kept inside the space."""
    inner: optuna.samplers.BaseSampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":
            # multivariate, since flags matter together; experimental in Optuna, and the better choice by far
            inner = optuna.samplers.TPESampler(multivariate=True, seed=random_state)
        elif name == "nsgaii":
            inner = optuna.samplers.NSGAIISampler(seed=random_state)
        else:
            assert name == "random"
            inner = optuna.samplers.RandomSampler(seed=random_state)  # proposes nothing relative: random sets
    return FeasibleSampler(space, inner, random_state=random_state, taken_states=taken_states)
