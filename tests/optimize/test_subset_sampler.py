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
from optuna.trial import FrozenTrial, TrialState, create_trial

from seed.optimize.subset_sampler import FLAG, SubsetSampler
from seed.optimize.surrogate import expect_growth, expect_improvement, rank_by_turns

Dropped = tuple[str, ...]
Loss = Callable[[Collection[str]], float]
LANDSCAPES = Path(__file__).parent / "landscapes"
SIX = tuple(f"keep_{part:02d}" for part in range(6))


# ---- Optuna's contract


class ContractTestCase(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    pass


class TestContractWithoutFlags(ContractTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        return lambda: SubsetSampler(seed=0)


class TestContractWithFlags(ContractTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        return lambda: SubsetSampler(SIX, min_dropped=1, max_dropped=3, sizes=[1, 2, 3, 4, 5, 6], seed=0)


# ---- helpers


def cost(dropped: Collection[str]) -> float:
    """Parts cost more the later they come; neighbours cost extra."""
    parts = sorted(int(name[5:7]) for name in dropped)
    neighbours = sum(after == before + 1 for before, after in itertools.pairwise(parts))
    return 2.0 + sum(0.05 * (part + 1) for part in parts) + 0.1 * neighbours


def all_sets(names: Sequence[str], least: int, most: int) -> list[Dropped]:
    return [dropped for count in range(least, most + 1) for dropped in itertools.combinations(names, count)]


def in_memory(sampler: SubsetSampler, direction: str = "minimize") -> optuna.Study:
    return optuna.create_study(sampler=sampler, direction=direction)


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


def fail(study: optuna.Study, *, names: Sequence[str] = SIX) -> Dropped:
    trial, dropped = ask(study, names)
    study.tell(trial, state=TrialState.FAIL)
    return dropped


def stored(dropped: Collection[str], value: float | None, *, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    params = {name: int(name not in dropped) for name in SIX}
    return create_trial(state=state, value=value, params=params, distributions=dict.fromkeys(SIX, FLAG))


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
        {"flags": None, "min_dropped": 3, "max_dropped": 2},
        {"flags": SIX, "max_dropped": 7},
        {"flags": SIX, "min_dropped": 7},
        {"flags": None, "sizes": [1.0]},
        {"flags": SIX, "sizes": [1.0] * 5},
        {"flags": SIX, "sizes": [1.0] * 5 + [0.0]},
    ],
)
def test_contradictions_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"flags|sizes|min_dropped"):
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


def test_seeds_decide_what_is_drawn() -> None:
    samplers = [SubsetSampler(SIX, max_dropped=3, seed=seed) for seed in (0, 0, 1)]
    one, same, other = (search(sampler, 15, loss=lambda dropped: math.inf) for sampler in samplers)
    assert one == same
    assert one != other
    assert len({SubsetSampler(SIX).seed for _ in range(3)}) == 3


# ---- other trials


def test_what_is_running_is_not_asked_for() -> None:
    study = in_memory(SubsetSampler(SIX, max_dropped=3, seed=0))
    every = all_sets(SIX, 1, 3)
    asked = [ask(study)[1] for _ in every]  # none is told
    assert sorted(asked) == sorted(every)


def test_failed_sets_are_asked_for_again_up_to_a_limit() -> None:
    study = in_memory(SubsetSampler(SIX, max_dropped=2, seed=0, most_failures=2))
    every = all_sets(SIX, 1, 2)
    broken = [dropped for dropped in every if SIX[1] in dropped]
    asked: Counter[Dropped] = Counter()
    for _ in range(len(every) + len(broken)):
        trial, dropped = ask(study)
        asked[dropped] += 1
        study.tell(
            trial, None if dropped in broken else cost(dropped), state=TrialState.FAIL if dropped in broken else None
        )
    assert asked == {dropped: 2 if dropped in broken else 1 for dropped in every}


def test_a_set_is_asked_for_again_at_once_after_a_failure() -> None:
    study = in_memory(SubsetSampler(SIX, max_dropped=3, seed=0))
    for _ in range(12):
        dropped = fail(study)
        trial, again = ask(study)
        assert again == dropped
        study.tell(trial, cost(again))
    study = in_memory(SubsetSampler(SIX, max_dropped=2, seed=0, most_failures=None))
    assert len({fail(study) for _ in range(5)}) == 1


def test_trials_outside_the_space_are_not_learned_from() -> None:
    history = [stored(dropped, cost(dropped)) for dropped in all_sets(SIX, 1, 1)]
    outside = [stored((), 1e-9), stored(SIX[:4], 1e9), stored(SIX, 1e9)]
    asked = [
        run(resume(trials, SubsetSampler(SIX, max_dropped=3, seed=0)), 10) for trials in (history, [*outside, *history])
    ]
    assert asked[0] == asked[1]


# ---- going on


@pytest.mark.parametrize("prior", [None, lambda dropped: cost(dropped) ** 2])
def test_a_resumed_study_goes_on_as_an_unbroken_one(prior: Loss | None) -> None:
    def make() -> SubsetSampler:
        return SubsetSampler(SIX, max_dropped=3, prior=prior, seed=5)

    unbroken = in_memory(make())
    asked = run(unbroken, 20)
    trials = unbroken.trials
    for done in (0, 1, 3, 6, 8, 13, 19):
        broken = stored(asked[-1], None, state=TrialState.FAIL)
        empty = create_trial(state=TrialState.FAIL)
        for history in (trials[:done], [*trials[: done // 2], broken, empty, *trials[done // 2 : done]]):
            assert run(resume(history, make()), 1) == [asked[done]]
            assert run(resume(history, make()), 20 - done) == asked[done:]


@pytest.mark.parametrize("name", [None, "same"])
def test_a_sampler_serves_several_studies_though_they_have_one_name(name: str | None) -> None:
    def begin(sampler: SubsetSampler, history: Sequence[Dropped]) -> optuna.Study:
        study = optuna.create_study(study_name=name, sampler=sampler)
        study.add_trials([stored(dropped, cost(dropped)) for dropped in history])
        return study

    history = all_sets(SIX, 1, 2)
    used = SubsetSampler(SIX, max_dropped=3, seed=0)
    run(begin(used, history), 3)
    fresh = run(begin(SubsetSampler(SIX, max_dropped=3, seed=0), history[::-1]), 20)
    assert len(set(fresh)) == 20
    assert run(begin(used, history[::-1]), 20) == fresh


def test_a_set_is_seen_by_others_before_its_flags_are_written() -> None:
    study = in_memory(SubsetSampler(SIX, max_dropped=2, seed=0))
    started = [study.ask() for _ in range(3)]  # flags of the sampler's own space are decided here, and written later
    chosen = []
    for trial in started:
        for name in SIX:
            trial.suggest_categorical(name, FLAG.choices)
        chosen.append(dropped_of(trial, SIX))
    assert len(set(chosen)) == 3


def test_a_resumed_study_does_not_draw_other_parameters_again() -> None:
    study, drawn = in_memory(SubsetSampler(seed=0)), []
    for _ in range(3):
        study.sampler = SubsetSampler(seed=0)  # a new process
        trial = study.ask()
        drawn.append(trial.suggest_float("rate", 0, 1))
        study.tell(trial, 1.0)
    assert len(set(drawn)) == 3


# ---- objectives


@pytest.mark.parametrize(
    ("minimized", "maximized"),
    [
        (cost, lambda dropped: 1 / cost(dropped)),  # logarithms
        (lambda dropped: cost(dropped) - 9, lambda dropped: 9 - cost(dropped) - 100),  # as they are
    ],
)
def test_maximizing_is_minimizing_turned_round(minimized: Loss, maximized: Loss) -> None:
    down, up = (
        in_memory(SubsetSampler(SIX, max_dropped=3, seed=0), direction) for direction in ("minimize", "maximize")
    )
    asked = run(down, 20, loss=minimized)
    assert run(up, 20, loss=maximized) == asked
    for count in (2, 3):
        best = min(cost(dropped) for dropped in all_sets(SIX, count, 3))
        assert min(cost(dropped) for dropped in asked if len(dropped) >= count) == best


def test_the_unit_of_the_losses_does_not_matter() -> None:
    one, other = (SubsetSampler(SIX, max_dropped=3, seed=0) for _ in range(2))
    assert search(one, 20) == search(other, 20, loss=lambda dropped: 100 * cost(dropped))


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize(("value", "broken"), [(math.inf, SIX[:1]), (-math.inf, SIX[:1]), (math.inf, SIX)])
def test_infinite_values_are_the_worst(direction: str, value: float, broken: Dropped) -> None:
    study = in_memory(SubsetSampler(SIX, max_dropped=3, seed=0), direction)
    sign = 1 if direction == "minimize" else -1
    asked = run(study, 41, loss=lambda dropped: value if set(broken) & set(dropped) else sign * cost(dropped))
    assert sorted(asked) == sorted(all_sets(SIX, 1, 3))
    if len(broken) == 1:
        assert not any(SIX[0] in dropped for dropped in asked[6:12])


# ---- define by run


def test_flags_and_other_parameters_are_found_in_the_objective() -> None:
    names = [f"keep_{layer:02d}_{part}" for layer in range(3) for part in ("attention", "mlp")]

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        dropped = [name for name in names if not trial.suggest_categorical(name, [0, 1])]
        rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        trial.suggest_categorical("keep_norms", ["all", "none"])
        return cost(dropped) + rate, 6.0 - len(dropped)

    study = optuna.create_study(sampler=SubsetSampler(seed=0), directions=["minimize", "minimize"])
    study.optimize(objective, n_trials=31)
    asked = [dropped_of(trial, names) for trial in study.trials]
    assert asked[0] == ()
    assert sorted(asked[1:7]) == [(name,) for name in names]
    assert {len(dropped) for dropped in asked[1:]} <= {1, 2, 3, 4, 5}
    assert len(set(asked)) == 31
    assert len({trial.params["rate"] for trial in study.trials}) == 31
    assert {trial.params["keep_norms"] for trial in study.trials} == {"all", "none"}


# ---- sizes and priors


def test_sizes_say_which_sets_are_worth_it() -> None:
    def asked_after_start(sizes: Sequence[float] | None) -> list[Dropped]:
        sampler = SubsetSampler(SIX, max_dropped=3, sizes=sizes, seed=0)
        return search(sampler, 16, loss=lambda dropped: 1.0 + 0.1 * len(dropped))[6:]

    def share(asked: list[Dropped]) -> float:
        return sum(SIX[4] in dropped for dropped in asked) / len(asked)

    assert asked_after_start([7.5] * 6) == asked_after_start(None)
    assert share(asked_after_start([1, 1, 1, 1, 9, 1])) > 0.9 > share(asked_after_start(None))


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
    up = in_memory(
        SubsetSampler(SIX, max_dropped=4, prior=lambda dropped: 1 / random_loss(dropped), seed=0), "maximize"
    )
    assert run(up, 4, loss=lambda dropped: 1 / random_loss(dropped)) == asked[:4]
    best = [min((d for d in every if len(d) == count), key=random_loss) for count in range(1, 5)]
    assert asked[:4] == best


def test_a_prior_is_followed_where_the_losses_say_so() -> None:
    """The loss shows no structure but through the prior, whose favourites at the start are wrong."""
    every = all_sets(SIX, 1, 4)
    decoys = [min((d for d in every if len(d) == count), key=random_loss) for count in range(1, 5)]

    def loss(dropped: Collection[str]) -> float:
        return random_loss(dropped) * (1.5 if tuple(dropped) in decoys else 1.0)

    asked = search(SubsetSampler(SIX, max_dropped=4, prior=random_loss, seed=0), 16, loss=loss)
    assert asked[:4] == decoys
    ranks = [sorted(map(random_loss, every)).index(random_loss(dropped)) for dropped in asked[4:]]
    assert np.mean(ranks) < 0.3 * len(every)


def test_a_prior_that_is_no_number_is_refused() -> None:
    sampler = SubsetSampler(SIX, max_dropped=3, prior=lambda dropped: math.nan if SIX[0] in dropped else cost(dropped))
    with pytest.raises(ValueError, match="prior"):
        search(sampler, 12)


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


@pytest.fixture(scope="module", params=["closed-form", "no_recovery"])
def landscape(request: pytest.FixtureRequest) -> dict[Dropped, float]:
    content = json.loads((LANDSCAPES / f"llama12_{request.param}.json").read_text())
    losses = {tuple(f"keep_{int(n):02d}" for n in key.split(",") if n): loss for key, loss in content["losses"].items()}
    assert max(map(len, losses)) == content["max_dropped"]
    return losses


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
