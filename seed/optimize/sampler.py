"""Which candidate to try next: a study in memory is asked, whose sampler is Seed's or one of Optuna's, kept inside the space.

A candidate is spelled by flags ``keep_00 ... keep_NN``, 1 where the part stays. Spaces that are scored whole need no sampler.
"""

import random
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from seed.optimize.space import contains, draw_candidate, drop_parts, enumerate_candidates, lacks, list_parts
from seed.optimize.subset_sampler import FLAG, SubsetSampler
from seed.records import Candidate, SearchSpace, hash_text

HOPELESS_RATIO = 1e6  # a PPL ratio by the prior counts as no more than this
PROPOSALS = 24  # of one of Optuna's samplers, before a random candidate is taken instead
DRAWS = 1000  # of random candidates, before all that are left are listed


def list_flags(space: SearchSpace) -> dict[str, str]:
    """The parts that may go, by the names of their flags."""
    return {f"keep_{'' if part[1:2].isdigit() else '0'}{part}": part for part in list_parts(space)}


def flag_distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """One flag for each part that may go."""
    return dict.fromkeys(list_flags(space), FLAG)


def flags_of(space: SearchSpace, candidate: Candidate) -> dict[str, int]:
    """The flags that stand for a candidate."""
    return {flag: int(not lacks(candidate, part)) for flag, part in list_flags(space).items()}


def candidate_of(space: SearchSpace, flags: Mapping[str, Any]) -> Candidate:
    """The candidate that flags stand for; parts without a flag stay, but layers that are gone."""
    return drop_parts(space, [part for flag, part in list_flags(space).items() if not flags.get(flag, 1)])


class SampledStudy:
    """An Optuna study in memory that is asked for candidates, none twice, and told what they came to.

    What is asked depends on what was told and on the random seed alone.

    Args:
        space: of the candidates.
        sampler: one of ``space.SAMPLERS``.
        rng_seed: of all random numbers.
        prior: a PPL ratio by a cheaper score, for the subset sampler.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        sampler: str,
        rng_seed: int,
        prior: Callable[[Candidate], float] | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.sampler, self.rng_seed = space, sampler, rng_seed
        self.subset = make_subset_sampler(space, rng_seed=rng_seed, prior=prior)
        self.study = optuna.create_study(directions=["minimize", "minimize"])
        self.asked: dict[Candidate, optuna.Trial] = {}  # and not told yet

    def ask(self) -> Candidate:
        """The candidate to score next; one that was asked for before, where no other is left."""
        number = len(self.study.get_trials(deepcopy=False))
        random_state = int(hash_text(f"{self.rng_seed}/{number}")[:8], 16)
        self.study.sampler = (
            self.subset
            if self.sampler == "subset"
            else make_sampler(self.sampler, self.space, random_state=random_state)
        )
        trial = self.study.ask(flag_distributions(self.space))
        candidate = candidate_of(self.space, trial.params)
        self.asked[candidate] = trial
        return candidate

    def read_notes(self, candidate: Candidate) -> dict[str, Any]:
        """What the sampler noted with a candidate that was asked for, and wants to find there later."""
        return self.study.get_trials(deepcopy=False)[self.asked[candidate].number].system_attrs

    def tell(
        self, candidate: Candidate, values: Sequence[float] | None, *, constraints: Mapping[str, float] | None = None
    ) -> None:
        """Say what a candidate that was asked for came to; None: to nothing, and it is not to be asked for again."""
        trial = self.asked.pop(candidate)
        for name, excess in (constraints or {}).items():
            trial.set_constraint(name, excess)
        self.study.tell(trial, values, state=TrialState.COMPLETE if values else TrialState.PRUNED)

    def add(self, trial: FrozenTrial) -> None:
        """Take over what was asked and told in another study."""
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if trial.values else TrialState.PRUNED,
                values=trial.values,
                params=trial.params,
                distributions=trial.distributions,
                system_attrs=trial.system_attrs,
            )
        )


def make_subset_sampler(
    space: SearchSpace, *, rng_seed: int, prior: Callable[[Candidate], float] | None = None
) -> SubsetSampler:
    """Return Seed's sampler for a space; ``prior`` is a cheaper value for the first objective."""
    flags = list_flags(space)

    def look_up(dropped: Collection[str]) -> float:
        assert prior is not None
        value = prior(drop_parts(space, [flags[flag] for flag in dropped]))
        return value if value < HOPELESS_RATIO else HOPELESS_RATIO  # not a number is hopeless too

    return SubsetSampler(
        tuple(flags),
        min_dropped=space.more_dropped[0],
        max_dropped=space.more_dropped[-1],
        prior=look_up if prior is not None else None,
        seed=rng_seed,
    )


def make_sampler(name: str, space: SearchSpace, *, random_state: int) -> "FeasibleSampler":
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
    return FeasibleSampler(space, inner, random_state=random_state)


class FeasibleSampler(optuna.samplers.BaseSampler):
    """Asks one of Optuna's samplers again when it leaves the space or repeats a candidate, and falls back to a random one."""

    def __init__(self, space: SearchSpace, inner: optuna.samplers.BaseSampler, *, random_state: int) -> None:
        self.space, self.inner, self.rng = space, inner, random.Random(random_state)

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
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        taken = {candidate_of(self.space, other.params) for other in others}
        for _ in range(PROPOSALS):
            flags = self.inner.sample_relative(study, trial, search_space)
            if not flags:
                break  # the inner sampler still starts up, and wants random sets
            flags = {  # NSGA-II leaves out the flags that it mutates
                name: flags[name] if name in flags else self.inner.sample_independent(study, trial, name, distribution)
                for name, distribution in search_space.items()
            }
            candidate = candidate_of(self.space, flags)
            if contains(self.space, candidate) and candidate not in taken:
                return flags
        return flags_of(self.space, self._draw_new(taken))

    def _draw_new(self, taken: Collection[Candidate]) -> Candidate:
        """A random candidate that is not taken, or any where none is left."""
        for _ in range(DRAWS):
            candidate = draw_candidate(self.space, self.rng)
            if candidate not in taken:
                return candidate
        left = [candidate for candidate in enumerate_candidates(self.space) if candidate not in taken]
        return self.rng.choice(left) if left else draw_candidate(self.space, self.rng)
