"""Samplers: whatever proposes, the study stays in the space and asks for nothing twice."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import pytest

from seed.optimize import sampler as samplers
from seed.optimize.sampler import FeasibleSampler
from seed.optimize.space import SAMPLERS, contains, drop_layers, enumerate_candidates
from seed.optimize.study import Limits, open_study
from seed.optimize.trials import SamplerProposer, Trials, run_search
from seed.records import Candidate, Scored, SearchSpace
from seed.scores import ScoreStore

from ..reporting import factory

OPTUNAS = [name for name in SAMPLERS if name != "subset"]
SMALL = SearchSpace(num_layers=12, droppable_layers=(1, 3, 6, 9, 11), min_dropped=1, max_dropped=3)  # 25 candidates
WIDE = SearchSpace(num_layers=12, droppable_layers=tuple(range(12)), min_dropped=1, max_dropped=2)  # 78 candidates


def score(candidates: Sequence[Candidate]) -> Iterator[Scored]:
    """Layers cost what the factory says; 0 and 11 are dear."""
    for candidate in candidates:
        ratio = math.exp(sum(factory.LAYER_COSTS[layer] for layer in candidate.dropped_layers))
        yield Scored(candidate=candidate, evaluation=factory.make_evaluation(candidate.dropped_layers, ratio))


def open_in_memory() -> optuna.Study:
    return open_study(optuna.storages.InMemoryStorage(), name="here", proxy=factory.PROXY, fingerprint="one")


def ask_trials(space: SearchSpace, *, sampler: str, trials: int, rng_seed: int = 0, batch: int = 1) -> list[Candidate]:
    """Search with a fake proxy and return what was asked for, in order."""
    with tempfile.TemporaryDirectory() as place, ScoreStore(Path(place) / "scores.sqlite") as store:
        ours = Trials(open_in_memory(), space, store, proxy=factory.PROXY, limits=Limits())
        sampled = SamplerProposer(ours, sampler=sampler, rng_seed=rng_seed, batch=batch, retry_skipped=False)
        run_search(ours, sampled, score, target=trials)
        return [record.evaluation.candidate for record in store.read_trials()]


STAGED = SearchSpace(  # 15 candidates
    num_layers=12, droppable_layers=(2, 3, 6, 9, 11), min_dropped=3, max_dropped=4, gone_layers=(1, 7)
)


def test_flags_stand_for_one_candidate_each() -> None:
    for space in (SMALL, WIDE, STAGED):
        seen = set()
        for candidate in enumerate_candidates(space):
            flags = samplers.flags_of(space, candidate)
            assert samplers.candidate_of(space, flags) == candidate
            assert list(samplers.flag_distributions(space)) == list(flags)
            seen.add(tuple(sorted(flags.items())))
        assert len(seen) == space.size
    flags = samplers.flags_of(SMALL, drop_layers(12, [3, 11]))
    assert flags == {"keep_01": 1, "keep_03": 0, "keep_06": 1, "keep_09": 1, "keep_11": 0}


def test_layers_without_a_flag_stay_and_those_that_are_gone_never_come_back() -> None:
    for space, gone in ((SMALL, ()), (STAGED, (1, 7))):
        assert samplers.candidate_of(space, {}).dropped_layers == gone
        assert samplers.candidate_of(space, {"keep_03": 0}).dropped_layers == tuple(sorted((*gone, 3)))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "subset"])
def test_every_sampler_of_optuna_is_kept_inside(name: str) -> None:
    made = samplers.make_sampler(name, SMALL, random_state=0)
    assert isinstance(made, FeasibleSampler)
    assert name in type(made.inner).__name__.lower()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_space_asked_for_whole_is_exhausted_without_repetition(name: str) -> None:
    for space, batch in ((SMALL, 1), (SMALL, 4), (STAGED, 1)):
        asked = ask_trials(space, sampler=name, trials=1000, batch=batch)
        assert sorted(candidate.key for candidate in asked) == sorted(c.key for c in enumerate_candidates(space))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_nearly_exhausted_space_is_never_left_nor_repeated(name: str) -> None:
    for space in (SMALL, WIDE) if name == "nsgaii" else (SMALL,):  # which breeds from its 51st trial on
        asked = ask_trials(space, sampler=name, trials=space.size - 1)
        assert len({candidate.key for candidate in asked}) == len(asked) == space.size - 1
        assert all(contains(space, candidate) for candidate in asked)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_decides_what_is_asked(name: str) -> None:
    one, same, other = (ask_trials(SMALL, sampler=name, trials=15, rng_seed=seed) for seed in (3, 3, 4))
    assert one == same
    if name != "subset":  # which starts with the single removals, and then goes where they point
        assert one != other


def test_a_prior_is_asked_for_whole_candidates() -> None:
    seen = set()

    def look_up(candidate: Candidate) -> float:
        seen.add(candidate)
        return 1.0

    study = open_in_memory()
    study.sampler = samplers.make_subset_sampler(STAGED, rng_seed=0, prior=look_up)
    study.ask(fixed_distributions=samplers.flag_distributions(STAGED))
    assert seen == set(enumerate_candidates(STAGED))


def test_sets_that_were_tried_or_are_being_tried_are_taken_and_failed_ones_are_not() -> None:
    study = open_in_memory()
    distributions = samplers.flag_distributions(SMALL)
    states = {
        (1,): optuna.trial.TrialState.COMPLETE,
        (3,): optuna.trial.TrialState.PRUNED,
        (6,): optuna.trial.TrialState.FAIL,
        (9,): None,  # still running
    }
    for dropped, state in states.items():
        study.enqueue_trial(samplers.flags_of(SMALL, drop_layers(12, dropped)))
        trial = study.ask(fixed_distributions=distributions)
        if state is not None:
            study.tell(trial, [1.1, 0.9] if state.name == "COMPLETE" else None, state=state)
    assert samplers.taken_keys(study, SMALL) == {"drop-1", "drop-3", "drop-9"}
    assert samplers.taken_keys(study, SMALL, but=3) == {"drop-1", "drop-3"}
