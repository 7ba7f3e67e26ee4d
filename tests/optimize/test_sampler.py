"""Samplers: whatever proposes, the study stays in the space and asks for nothing twice."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import pytest

from seed.optimize import sampler as samplers
from seed.optimize.sampler import SAMPLERS, FeasibleSampler
from seed.optimize.space import contains, drop_layers, enumerate_candidates
from seed.optimize.study import Limits, open_study
from seed.optimize.trials import Sampled, Trials, run_search
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
    return open_study(optuna.storages.InMemoryStorage(), name="here", rung=factory.RUNG, fingerprint="one")


def ask_trials(space: SearchSpace, *, sampler: str, trials: int, rng_seed: int = 0, batch: int = 1) -> list[Candidate]:
    """Search with a fake proxy and return what was asked for, in order."""
    with tempfile.TemporaryDirectory() as place, ScoreStore(Path(place) / "scores.sqlite") as store:
        ours = Trials(open_in_memory(), space, store, rung=factory.RUNG, limits=Limits())
        sampled = Sampled(ours, sampler=sampler, rng_seed=rng_seed, batch=batch, retry_skipped=False)
        run_search(ours, sampled, score, target=trials)
        return [record.evaluation.candidate for record in store.read_trials()]


STAGED = SearchSpace(  # 15 candidates
    num_layers=12, droppable_layers=(2, 3, 6, 9, 11), min_dropped=3, max_dropped=4, gone_layers=(1, 7)
)


# ---- flags


@pytest.mark.parametrize("space", [SMALL, WIDE, STAGED])
def test_flags_stand_for_one_candidate_each(space: SearchSpace) -> None:
    seen = set()
    for candidate in enumerate_candidates(space):
        flags = samplers.flags_of(space, candidate)
        assert samplers.candidate_of(space, flags) == candidate
        seen.add(tuple(sorted(flags.items())))
    assert len(seen) == space.size


def test_a_flag_says_whether_its_layer_stays() -> None:
    flags = samplers.flags_of(SMALL, drop_layers(12, [3, 11]))
    assert flags == {"keep_01": 1, "keep_03": 0, "keep_06": 1, "keep_09": 1, "keep_11": 0}
    assert list(samplers.flag_distributions(SMALL)) == list(flags)


def test_layers_without_a_flag_stay() -> None:
    assert samplers.candidate_of(SMALL, {}) == drop_layers(12, [])
    assert samplers.candidate_of(SMALL, {"keep_03": 0}).dropped_layers == (3,)


def test_layers_that_are_gone_have_no_flag_and_never_come_back() -> None:
    assert list(samplers.flag_distributions(STAGED)) == ["keep_02", "keep_03", "keep_06", "keep_09", "keep_11"]
    assert samplers.candidate_of(STAGED, {}).dropped_layers == (1, 7)
    assert samplers.candidate_of(STAGED, {"keep_03": 0}).dropped_layers == (1, 3, 7)


# ---- which sampler


@pytest.mark.parametrize("name", OPTUNAS)
def test_every_sampler_of_optuna_is_kept_inside(name: str) -> None:
    made = samplers.make_sampler(name, SMALL, random_state=0)
    assert isinstance(made, FeasibleSampler)
    assert name in type(made.inner).__name__.lower()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("batch", [1, 4])
def test_a_space_asked_for_whole_is_exhausted_without_repetition(name: str, batch: int) -> None:
    asked = ask_trials(SMALL, sampler=name, trials=1000, batch=batch)
    assert sorted(candidate.key for candidate in asked) == sorted(c.key for c in enumerate_candidates(SMALL))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_lets_go_what_is_gone(name: str) -> None:
    asked = ask_trials(STAGED, sampler=name, trials=1000)
    assert sorted(candidate.key for candidate in asked) == sorted(c.key for c in enumerate_candidates(STAGED))
    assert all({1, 7} < set(candidate.dropped_layers) for candidate in asked)


def test_a_prior_is_asked_for_whole_candidates() -> None:
    seen = set()

    def look_up(candidate: Candidate) -> float:
        seen.add(candidate)
        return 1.0

    study = open_in_memory()
    study.sampler = samplers.make_subset_sampler(STAGED, rng_seed=0, prior=look_up)
    study.ask(fixed_distributions=samplers.flag_distributions(STAGED))
    assert seen == set(enumerate_candidates(STAGED))


# ---- Optuna's own, kept inside


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("left", [1, 4])
def test_a_nearly_exhausted_space_is_never_left_nor_repeated(name: str, left: int) -> None:
    asked = ask_trials(SMALL, sampler=name, trials=SMALL.size - left)
    assert len(asked) == SMALL.size - left
    assert all(contains(SMALL, candidate) for candidate in asked)
    assert len({candidate.key for candidate in asked}) == len(asked)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_search_past_the_first_generation_is_never_left_nor_repeated(name: str) -> None:
    asked = ask_trials(WIDE, sampler=name, trials=WIDE.size - 1)  # NSGA-II breeds from its 51st trial on
    assert len({candidate.key for candidate in asked}) == len(asked) == WIDE.size - 1
    assert all(contains(WIDE, candidate) for candidate in asked)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_decides_what_is_asked(name: str) -> None:
    one, same, other = (ask_trials(SMALL, sampler=name, trials=15, rng_seed=seed) for seed in (3, 3, 4))
    assert one == same
    if name != "subset":  # which starts with the single removals, and then goes where they point
        assert one != other


def test_tpe_learns_which_layers_are_dear() -> None:
    space = SearchSpace(num_layers=12, droppable_layers=tuple(range(12)), min_dropped=1, max_dropped=4)

    def share_of_dear(name: str) -> float:
        late = [c for seed in range(2) for c in ask_trials(space, sampler=name, trials=45, rng_seed=seed)[20:]]
        return sum(not {0, 11}.isdisjoint(candidate.dropped_layers) for candidate in late) / len(late)

    # measured over six seeds at 50 trials: random 0.33 to 0.40, TPE 0.17 to 0.27
    assert share_of_dear("tpe") < 0.75 * share_of_dear("random")


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
