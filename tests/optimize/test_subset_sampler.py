"""``SubsetSampler``: Optuna's contract, the space, what it asks for and when, and how soon it finds the frontier."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase
from optuna.trial import FrozenTrial, create_trial

from seed.optimize.subset_sampler import FLAG, SubsetSampler
from seed.optimize.surrogate import expect_growth, expect_improvement, rank_by_turns

Dropped = tuple[str, ...]
Loss = Callable[[Collection[str]], float]
LANDSCAPES = Path(__file__).parent / "landscapes"
SIX = tuple(f"keep_{part:02d}" for part in range(6))


# ---- Optuna's contract


class TestContract(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        return lambda: SubsetSampler(SIX, min_dropped=1, max_dropped=3, seed=0)


# ---- helpers


def cost(dropped: Collection[str]) -> float:
    """Parts cost more the later they come; neighbours cost extra."""
    parts = sorted(int(name[5:7]) for name in dropped)
    neighbours = sum(after == before + 1 for before, after in itertools.pairwise(parts))
    return 2.0 + sum(0.05 * (part + 1) for part in parts) + 0.1 * neighbours


def all_sets(names: Sequence[str], least: int, most: int) -> list[Dropped]:
    return [dropped for count in range(least, most + 1) for dropped in itertools.combinations(names, count)]


def in_memory(sampler: SubsetSampler) -> optuna.Study:
    return optuna.create_study(sampler=sampler)


def dropped_of(trial: optuna.Trial | FrozenTrial, names: Sequence[str]) -> Dropped:
    return tuple(name for name in names if not trial.params[name])


def ask(study: optuna.Study, names: Sequence[str] = SIX) -> tuple[optuna.Trial, Dropped]:
    trial = study.ask(dict.fromkeys(names, FLAG))
    return trial, dropped_of(trial, names)


def run(study: optuna.Study, trials: int, *, names: Sequence[str] = SIX, loss: Loss = cost) -> list[Dropped]:
    """Run trials; return what was asked for, in order."""
    asked = []
    for _ in range(trials):
        trial, dropped = ask(study, names)
        study.tell(trial, loss(dropped))
        asked.append(dropped)
    return asked


def stored(dropped: Collection[str], value: float) -> FrozenTrial:
    params = {name: int(name not in dropped) for name in SIX}
    return create_trial(value=value, params=params, distributions=dict.fromkeys(SIX, FLAG))


def resume(trials: Sequence[FrozenTrial], sampler: SubsetSampler) -> optuna.Study:
    study = in_memory(sampler)
    study.add_trials(trials)
    return study


def search(sampler: SubsetSampler, trials: int, *, names: Sequence[str] = SIX, loss: Loss = cost) -> list[Dropped]:
    return run(in_memory(sampler), trials, names=names, loss=loss)


# ---- the space


@pytest.mark.parametrize(
    ("parts", "least", "most"), [(1, 1, 1), (2, 1, None), (6, 1, 3), (6, 2, 4), (6, 0, 2), (5, 1, None), (4, 4, 4)]
)
def test_a_space_is_asked_for_whole_without_repetition_and_then_again(parts: int, least: int, most: int | None) -> None:
    names = SIX[:parts]
    sampler = SubsetSampler(names, min_dropped=least, max_dropped=most, seed=0)
    every = all_sets(names, least, max(1, parts - 1) if most is None else most)
    asked = search(sampler, len(every) + 3, names=names)
    assert sorted(asked[: len(every)]) == sorted(every)
    assert set(asked[len(every) :]) <= set(every)


@pytest.mark.parametrize(
    "options",
    [
        {"flags": ["keep_0", "keep_0"]},
        {"flags": SIX, "min_dropped": -1},
        {"flags": SIX, "max_dropped": 0},
        {"flags": SIX, "min_dropped": 3, "max_dropped": 2},
        {"flags": SIX, "max_dropped": 7},
        {"flags": SIX, "min_dropped": 7},
    ],
)
def test_contradictions_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="wanted each flag once"):
        SubsetSampler(**options)  # type: ignore[arg-type]


def test_all_parts_go_where_so_many_have_to() -> None:
    assert search(SubsetSampler(SIX, min_dropped=6, seed=0), 1) == [tuple(SIX)]
    assert max(map(len, search(SubsetSampler(SIX, min_dropped=5, seed=0), 6))) == 5  # else one stays


def test_spaces_too_large_to_list() -> None:
    names = [f"keep_{part:02d}" for part in range(48)]
    sampler = SubsetSampler(names, min_dropped=1, max_dropped=16, seed=0)
    asked = search(sampler, 66, names=names)
    assert {len(dropped) for dropped in asked[:48]} == {1}
    assert len(set(asked)) == 66
    assert max(map(len, asked)) <= 16
    few = SubsetSampler(names[:20], min_dropped=5, max_dropped=8, seed=0)
    assert {len(dropped) for dropped in search(few, 14, names=names[:20])} <= {5, 6, 7, 8}
    proposed = asked[48:]
    best = [min(cost(d) for d in proposed if len(d) >= count) for count in (4, 8, 16)]
    rng = np.random.default_rng(0)
    for count, found in zip((4, 8, 16), best, strict=True):
        assert found < min(cost(rng.choice(names, count, replace=False)) for _ in range(300))


# ---- the start


def test_single_removals_come_first_in_the_order_of_the_flags() -> None:
    asked = search(SubsetSampler(SIX[::-1], max_dropped=3, seed=0), 8)
    assert asked[:6] == [(name,) for name in SIX[::-1]]
    assert min(map(len, asked[6:])) > 1


@pytest.mark.parametrize(("parts", "least"), [(3, 2), (5, 2), (6, 4), (7, 3), (8, 3), (8, 7)])
def test_where_singles_are_too_few_the_start_covers_every_part(parts: int, least: int) -> None:
    names = [f"keep_{part:02d}" for part in range(parts)]
    count = math.ceil(parts / least)
    asked = search(SubsetSampler(names, min_dropped=least, seed=0), count, names=names)
    assert {len(dropped) for dropped in asked} == {least}
    assert len(set(asked)) == count
    assert set().union(*asked) == set(names)


# ---- other trials


def test_what_is_running_is_not_asked_for() -> None:
    study = in_memory(SubsetSampler(SIX, max_dropped=3, seed=0))
    every = all_sets(SIX, 1, 3)
    asked = [ask(study)[1] for _ in every]  # none is told
    assert sorted(asked) == sorted(every)


def test_trials_outside_the_space_are_not_learned_from() -> None:
    history = [stored(dropped, cost(dropped)) for dropped in all_sets(SIX, 1, 1)]
    outside = [stored((), 1e-9), stored(SIX[:4], 1e9), stored(SIX, 1e9)]
    asked = [
        run(resume(trials, SubsetSampler(SIX, max_dropped=3, seed=0)), 10) for trials in (history, [*outside, *history])
    ]
    assert asked[0] == asked[1]


@pytest.mark.parametrize("prior", [None, lambda dropped: cost(dropped) ** 2])
def test_a_resumed_study_goes_on_as_an_unbroken_one(prior: Loss | None) -> None:
    def make() -> SubsetSampler:
        return SubsetSampler(SIX, max_dropped=3, prior=prior, seed=5)

    unbroken = in_memory(make())
    asked = run(unbroken, 20)
    trials = unbroken.trials
    for done in (0, 1, 3, 6, 8, 13, 19):
        assert run(resume(trials[:done], make()), 20 - done) == asked[done:]


def test_the_unit_of_the_losses_does_not_matter() -> None:
    one, other = (SubsetSampler(SIX, max_dropped=3, seed=0) for _ in range(2))
    assert search(one, 20) == search(other, 20, loss=lambda dropped: 100 * cost(dropped))


# ---- priors


def random_loss(dropped: Collection[str]) -> float:
    """A loss without any structure."""
    key = sum(2 ** int(name[5:7]) for name in dropped)
    return float(np.random.default_rng(key).uniform(1, 3))


def test_a_prior_that_is_the_truth_finds_the_best_of_each_depth_at_once() -> None:
    every = all_sets(SIX, 1, 4)
    seen: Counter[Dropped] = Counter()

    def prior(dropped: Collection[str]) -> float:
        seen[tuple(dropped)] += 1
        return random_loss(dropped)

    asked = search(SubsetSampler(SIX, max_dropped=4, prior=prior, seed=0), 10, loss=random_loss)
    assert seen == dict.fromkeys(every, 1)
    best = [min((d for d in every if len(d) == count), key=random_loss) for count in range(1, 5)]
    assert asked[:4] == best


# ---- formulas


def test_expected_improvement_is_the_integral() -> None:
    gains, spreads = (a.ravel() for a in np.meshgrid([-3.0, -0.5, 0.0, 0.2, 4.0], [0.05, 0.7, 2.0]))
    z = np.linspace(-12, 12, 200_001)
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    wanted = [
        np.trapezoid(np.maximum(0, gain + spread * z) * density, z) for gain, spread in zip(gains, spreads, strict=True)
    ]
    np.testing.assert_allclose(expect_improvement(gains, spreads), wanted, rtol=1e-6, atol=1e-9)
    assert (expect_improvement(np.array([-50.0, -1e9]), np.array([1.0, 1e-9])) >= 0).all()


def test_growth_is_what_a_set_improves_on_at_each_size_it_reaches() -> None:
    growth = expect_growth(
        np.array([2.0, 2.5, 3.5, 6.0]),
        np.full(4, 1e-9),
        np.array([1.0, 2.0, 3.0, 3.0]),
        known_losses=np.array([3.0, 5.0, 4.0]),
        known_sizes=np.array([1.0, 2.0, 2.0]),
        thresholds=np.array([1.0, 2.0, 3.0]),
    )
    # best known: 3 of size 1 or more, 4 of 2 or more, and at 3 the worst, 5
    np.testing.assert_allclose(growth, [1.0, 0.5 + 1.5, 0.0 + 0.5 + 1.5, 0.0], atol=1e-8)


def test_groups_take_turns() -> None:
    groups, losses = np.array([1.0, 1, 2, 2, 2, 3]), np.array([5.0, 4, 9, 7, 8, 1])
    assert rank_by_turns(groups, losses).tolist() == [1, 3, 5, 0, 4, 2]
    assert rank_by_turns(np.zeros(0), np.zeros(0)).tolist() == []


# ---- real losses


@pytest.fixture(
    scope="module",
    params=["llama12_closed_form", "llama12_no_recovery", "demo12_parts_closed_form", "demo12_parts_no_recovery"],
)
def landscape(request: pytest.FixtureRequest) -> dict[Dropped, float]:
    content = json.loads((LANDSCAPES / f"{request.param}.json").read_text())
    by_parts = "_parts_" in request.param
    losses = {
        tuple(f"keep_{flag}" for part in key.split(",") if part for flag in spell_flags(part, by_parts=by_parts)): loss
        for key, loss in content["losses"].items()
    }
    assert max(map(len, losses)) == content["max_dropped"] * (2 if by_parts else 1)
    return losses


def spell_flags(part: str, *, by_parts: bool) -> list[str]:
    """``3`` is ``03``, or its attention and MLP where those go alone."""
    layer, _, kind = part.partition(".")
    kinds = [kind] if kind else ["attn", "mlp"] if by_parts else []
    return [f"{int(layer):02d}.{kind}" for kind in kinds] or [f"{int(layer):02d}"]


def regret(asked: Sequence[Dropped], losses: dict[Dropped, float]) -> float:
    """How much worse than the best existing perplexity the best found one is, over least numbers of dropped parts."""
    depths = range(1, max(map(len, losses)) + 1)
    found = [min((losses[d] for d in asked if len(d) >= depth), default=math.inf) for depth in depths]
    best = [min(loss for d, loss in losses.items() if len(d) >= depth) for depth in depths]
    return float(np.exp(np.subtract(found, best)).mean() - 1)


@pytest.mark.parametrize("rng_seed", [0, 1])
def test_the_frontier_of_a_real_model_is_found(landscape: dict[Dropped, float], rng_seed: int) -> None:
    names = sorted(set().union(*landscape))
    sampler = SubsetSampler(names, max_dropped=max(map(len, landscape)), seed=rng_seed)
    asked = search(sampler, 100, names=names, loss=lambda dropped: landscape[tuple(dropped)])
    assert regret(asked[: len(names)], landscape) > 0.05  # the start alone does not do it
    assert regret(asked[:57], landscape) <= 1e-3
    assert regret(asked, landscape) < 1e-9
