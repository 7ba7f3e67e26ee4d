"""Samplers: whatever proposes, the study stays in the space and asks for nothing twice."""

import math

import pytest

from seed.optimize import sampler as samplers
from seed.optimize.space import SAMPLERS, contains, drop_layers, enumerate_candidates
from seed.records import Candidate, SearchSpace

from ..reporting import factory

OPTUNAS = [name for name in SAMPLERS if name != "subset"]
SMALL = SearchSpace(num_layers=12, droppable_layers=(1, 3, 6, 9, 11), min_dropped=1, max_dropped=3)  # 25 candidates
WIDE = SearchSpace(num_layers=12, droppable_layers=tuple(range(12)), min_dropped=1, max_dropped=2)  # 78 candidates


def ask_trials(space: SearchSpace, *, sampler: str, trials: int, rng_seed: int = 0, batch: int = 1) -> list[Candidate]:
    """Ask for so many at a time and say what their layers cost; return what was asked for, in order."""
    study = samplers.SampledStudy(space, sampler=sampler, rng_seed=rng_seed)
    asked: list[Candidate] = []
    while len(asked) < trials:
        found = [study.ask() for _ in range(min(batch, trials - len(asked)))]
        for candidate in found:
            ratio = math.exp(sum(factory.LAYER_COSTS[layer // 2] for layer in candidate.sublayers.dropped_layers))
            study.tell(candidate, [ratio, float(len(candidate.sublayers.kept_layers))])
        asked += found
    return asked


STAGED = SearchSpace(  # 15 candidates
    num_layers=12, droppable_layers=(2, 3, 6, 9, 11), min_dropped=3, max_dropped=4, gone_layers=(1, 7)
)


PARTS = SearchSpace(  # 21 candidates
    num_layers=12, droppable_layers=(3, 6, 11), min_dropped=1, max_dropped=1, kinds=("attn", "mlp")
)


def test_flags_stand_for_one_candidate_each() -> None:
    for space in (SMALL, WIDE, STAGED, PARTS):
        seen = set()
        for candidate in enumerate_candidates(space):
            flags = samplers.flags_of(space, candidate)
            assert samplers.candidate_of(space, flags) == candidate
            assert list(samplers.flag_distributions(space)) == list(flags)
            seen.add(tuple(sorted(flags.items())))
        assert len(seen) == space.size
    flags = samplers.flags_of(SMALL, drop_layers(12, [3, 11]))
    assert flags == {"keep_01": 1, "keep_03": 0, "keep_06": 1, "keep_09": 1, "keep_11": 0}
    flags = samplers.flags_of(PARTS, Candidate.drop(12, ["3.attn", "11"]))
    assert flags == {"keep_03.attn": 0, "keep_03.mlp": 1, "keep_06.attn": 1, "keep_06.mlp": 1} | {
        "keep_11.attn": 0,
        "keep_11.mlp": 0,
    }


def test_parts_without_a_flag_stay_and_layers_that_are_gone_never_come_back() -> None:
    for space, gone in ((SMALL, ()), (STAGED, (1, 7))):
        assert samplers.candidate_of(space, {}).dropped_layers == gone
        assert samplers.candidate_of(space, {"keep_03": 0}).dropped_layers == tuple(sorted((*gone, 3)))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_space_asked_for_whole_is_exhausted_without_repetition(name: str) -> None:
    for space, batch in ((SMALL, 1), (SMALL, 4), (STAGED, 1), (PARTS, 1)):
        asked = ask_trials(space, sampler=name, trials=space.size, batch=batch)
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

    samplers.SampledStudy(STAGED, sampler="subset", rng_seed=0, prior=look_up).ask()
    assert seen == set(enumerate_candidates(STAGED))
