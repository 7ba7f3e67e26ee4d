"""Strategies against rankings worked out by hand, on a meter that only looks up; and the landscapes they are judged on."""

import contextlib
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from seed.optimize.space import SAMPLERS, contains, drop_layers, enumerate_candidates
from seed.optimize.strategies import STRATEGIES, BudgetSpent, Meter, Strategy, mutate, run_strategy
from seed.records import Candidate, SearchSpace

from .landscape import DIRECTORY, Landscape, LandscapeMeter, list_landscapes, load_landscape

Dropped = tuple[int, ...]
PROXY = "closed-form"
FOUR = SearchSpace(num_layers=4, droppable_layers=(0, 1, 2, 3), min_dropped=1, max_dropped=3)  # 14 candidates
FIVE = SearchSpace(num_layers=5, droppable_layers=(0, 1, 2, 3, 4), min_dropped=1, max_dropped=3)
SIX = SearchSpace(num_layers=6, droppable_layers=(0, 1, 2, 3, 4, 5), min_dropped=1, max_dropped=3)

# One-shot, greedy and best differ: 1 and 2 cost little alone and much together.
SINGLES: dict[Dropped, float] = {(0,): 3.0, (1,): 2.1, (2,): 2.2, (3,): 2.3}
PAIRS: dict[Dropped, float] = {(0, 1): 4.0, (0, 2): 4.1, (0, 3): 4.2, (1, 2): 3.5, (1, 3): 2.6, (2, 3): 2.5}
TRIPLES: dict[Dropped, float] = {(0, 1, 2): 5.0, (0, 1, 3): 3.8, (0, 2, 3): 4.7, (1, 2, 3): 3.9}
LOSSES = SINGLES | PAIRS | TRIPLES
BEST = {1: (1,), 2: (2, 3), 3: (0, 1, 3)}


class Call(NamedTuple):
    dropped: tuple[Dropped, ...]
    proxy: str
    share: float


class FakeMeter:
    """Looks up what is written in the test, and remembers what was asked. ``budget`` is in scores."""

    def __init__(
        self,
        losses: dict[Dropped, float] | Callable[[Dropped, float], float] | None = None,
        *,
        layers: dict[str, list[float]] | None = None,
        distances: dict[int, list[float]] | None = None,
        budget: float = math.inf,
    ) -> None:
        self.losses, self.layers, self.distances, self.budget = losses, layers or {}, distances or {}, budget
        self.calls: list[Call] = []

    def score(self, candidates: Sequence[Candidate], *, proxy: str, share: float = 1.0) -> list[float]:
        if len(self.asked) + len(candidates) > self.budget:
            raise BudgetSpent
        dropped = tuple(candidate.dropped_layers for candidate in candidates)
        self.calls.append(Call(dropped, proxy, share))
        assert self.losses is not None
        if callable(self.losses):
            return [self.losses(one, share) for one in dropped]
        return [self.losses[one] for one in dropped]

    def weigh_layers(self, measure: str) -> list[float]:
        return self.layers[measure]

    def measure_distances(self, num_layers: int) -> list[float]:
        return self.distances[num_layers]

    @property
    def asked(self) -> list[Dropped]:
        return [dropped for call in self.calls for dropped in call.dropped]


def play(name: str, meter: Meter, space: SearchSpace, *, rng_seed: int = 0) -> dict[int, Dropped]:
    picks = run_strategy(STRATEGIES[name], meter, space, proxy=PROXY, rng_seed=rng_seed)
    return {count: candidate.dropped_layers for count, candidate in picks.items()}


def yields(name: str, meter: Meter, space: SearchSpace, *, rng_seed: int = 0) -> list[Dropped]:
    return [candidate.dropped_layers for candidate in STRATEGIES[name].search(meter, space, PROXY, rng_seed)]


def narrow(space: SearchSpace, *droppable: int, **bounds: int) -> SearchSpace:
    fields = {"min_dropped": space.min_dropped, "max_dropped": space.max_dropped} | bounds
    return SearchSpace(num_layers=space.num_layers, droppable_layers=droppable, **fields)


# ---- one shot

WEIGHTS = [0.9, 0.2, 0.1, 0.3, 0.2]


@pytest.mark.parametrize("name", ["block_influence", "magnitude"])
def test_the_least_important_layers_go_first_and_of_equals_the_earlier(name: str) -> None:
    meter = FakeMeter(layers={name: WEIGHTS})
    assert play(name, meter, FIVE) == {1: (2,), 2: (1, 2), 3: (1, 2, 4)}
    assert play(name, meter, narrow(FIVE, 0, 3, 4)) == {1: (4,), 2: (3, 4), 3: (0, 3, 4)}
    assert meter.calls == []


def test_perplexity_ranks_by_single_removals_without_recovery() -> None:
    meter = FakeMeter(LOSSES)
    assert play("perplexity", meter, FOUR) == {1: (1,), 2: (1, 2), 3: (1, 2, 3)}
    assert meter.calls == [Call(((0,), (1,), (2,), (3,)), "none", 1.0)]


def test_perplexity_leaves_alone_what_may_not_go() -> None:
    meter = FakeMeter(LOSSES)
    assert play("perplexity", meter, narrow(FOUR, 0, 2, 3)) == {1: (2,), 2: (2, 3), 3: (0, 2, 3)}
    assert meter.asked == [(0,), (2,), (3,)]


def test_taylor_protects_both_ends() -> None:
    space = SearchSpace(num_layers=16, droppable_layers=tuple(range(16)), min_dropped=1, max_dropped=4)
    weights = [0.0, 0.0, 5.0, 4.0, 9.0, 9.0, 9.0, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 3.0, 0.0]
    picks = play("taylor", FakeMeter(layers={"taylor": weights}), space)
    assert picks == {1: (7,), 2: (7, 14), 3: (3, 7, 14), 4: (2, 3, 7, 14)}


@pytest.mark.parametrize(
    ("num_layers", "protected"), [(4, []), (12, [0, 1, 11]), (16, [0, 1, 15]), (32, [0, 1, 2, 3, 30, 31])]
)
def test_taylor_protects_the_shares_of_the_paper(num_layers: int, protected: list[int]) -> None:
    most = num_layers - 1
    space = SearchSpace(
        num_layers=num_layers, droppable_layers=tuple(range(num_layers)), min_dropped=1, max_dropped=most
    )
    picks = play("taylor", FakeMeter(layers={"taylor": [1.0] * num_layers}), space)
    left = num_layers - len(protected)
    assert list(picks) == list(range(1, min(most, left) + 1))  # then nothing is left to rank
    free = [layer for layer in range(num_layers) if layer not in protected]
    assert picks[len(picks)] == tuple(free[: len(picks)])


def test_the_last_layers_go_first_and_nothing_is_measured() -> None:
    meter = FakeMeter()
    assert play("last_layers", meter, FIVE) == {1: (4,), 2: (3, 4), 3: (2, 3, 4)}
    assert play("last_layers", meter, narrow(FIVE, 0, 1, 3)) == {1: (3,), 2: (1, 3), 3: (0, 1, 3)}
    assert meter.calls == []


DISTANCES = {1: [0.1, 0.3, 0.2, 0.2, 0.4], 2: [0.1, 0.5, 0.3, 0.2], 3: [0.1, 0.4, 0.4]}


def test_the_nearest_block_goes() -> None:
    assert play("angular_distance", FakeMeter(distances=DISTANCES), FIVE) == {1: (0,), 2: (0, 1), 3: (0, 1, 2)}


def test_a_block_lies_inside_of_what_may_go() -> None:
    meter = FakeMeter(distances=DISTANCES)
    assert play("angular_distance", meter, narrow(FIVE, 1, 2, 3)) == {1: (2,), 2: (2, 3), 3: (1, 2, 3)}
    assert play("angular_distance", meter, narrow(FIVE, 1, 2, 4)) == {1: (2,), 2: (1, 2)}  # no three in a row


# ---- searches without chance


def test_greedy_removal_measures_again_after_each_layer() -> None:
    meter = FakeMeter(LOSSES)
    assert play("greedy", meter, FOUR) == {1: (1,), 2: (1, 3), 3: (0, 1, 3)}
    assert [call.dropped for call in meter.calls] == [
        ((0,), (1,), (2,), (3,)),
        ((0, 1), (1, 2), (1, 3)),
        ((0, 1, 3), (1, 2, 3)),
    ]


def test_greedy_removal_takes_the_earlier_of_equals_and_only_what_may_go() -> None:
    picks = play("greedy", FakeMeter(lambda dropped, share: float(len(dropped))), narrow(FIVE, 1, 3, 4))
    assert picks == {1: (1,), 2: (1, 3), 3: (1, 3, 4)}


@pytest.mark.parametrize(("name", "proxy"), [("greedy", "none"), ("greedy_recovered", PROXY)])
def test_recovery_is_all_that_the_two_greedy_removals_differ_in(name: str, proxy: str) -> None:
    meter = FakeMeter(LOSSES)
    play(name, meter, FOUR)
    assert {(call.proxy, call.share) for call in meter.calls} == {(proxy, 1.0)}
    assert play(name, FakeMeter(LOSSES), FOUR) == {1: (1,), 2: (1, 3), 3: (0, 1, 3)}


def test_a_sweep_finds_the_best() -> None:
    meter = FakeMeter(LOSSES)
    assert play("sweep", meter, FOUR) == BEST
    [call] = meter.calls
    assert sorted(call.dropped) == sorted(LOSSES)
    assert (call.proxy, call.share) == (PROXY, 1.0)


# ---- EvoPress


def rough(dropped: Dropped, share: float) -> float:
    """A hash, and another one on a share of the text."""
    return random.Random(f"{dropped}/{share}").random()


def split_by_generation(calls: Sequence[Call]) -> Iterator[tuple[Call, Call]]:
    """First and second selection of each generation."""
    for first, second in itertools.pairwise(calls):
        if second.share == 1.0:
            yield first, second


def test_generations_grow_with_what_there_is_to_choose_and_depths_take_turns() -> None:
    found = yields("evopress", FakeMeter(rough), SIX)
    # 1 * 5 / 1.5, 2 * 4 / 1.5, 3 * 3 / 1.5: 3, 5 and 6 generations; whoever is least far along is next
    assert [len(dropped) for dropped in found] == [1, 2, 3, 3, 2, 1, 3, 2, 3, 2, 1, 3, 2, 3]


def test_selection_reads_a_share_first_and_everything_of_two_survivors() -> None:
    space = SearchSpace(num_layers=12, droppable_layers=tuple(range(12)), min_dropped=3, max_dropped=3)
    meter = FakeMeter(rough)
    found = yields("evopress", meter, space)
    assert len(found) == 18
    assert {call.proxy for call in meter.calls} == {"none"}
    drawn = meter.calls[0]
    assert drawn.share == 1 / 16
    assert 50 < len(drawn.dropped) == len(set(drawn.dropped)) <= 64  # of 220, some twice
    parent = min(drawn.dropped, key=lambda dropped: rough(dropped, 1 / 16))
    generations = list(split_by_generation(meter.calls))
    assert len(generations) == len(found)
    for (first, second), chosen in zip(generations, found, strict=True):
        assert first.share == 1 / 16
        assert len(first.dropped) <= 32
        assert parent not in first.dropped
        assert all(len(set(dropped) - set(parent)) <= 3 for dropped in first.dropped)
        survivors = sorted(first.dropped, key=lambda dropped: rough(dropped, 1 / 16))[:2]
        assert second.dropped == (parent, *survivors)
        parent = min(second.dropped, key=lambda dropped: rough(dropped, 1.0))
        assert chosen == parent


def test_a_parent_stays_where_no_offspring_is_better() -> None:
    found = yields("evopress", FakeMeter(lambda dropped, share: 1.0), SIX)
    assert len(set(found)) == 3


def test_evolution_starts_at_the_fewest_layers_that_must_go() -> None:
    found = yields("evopress", FakeMeter(rough), narrow(SIX, *range(6), min_dropped=2))
    assert Counter(map(len, found)) == {2: 5, 3: 6}


def test_evolution_bears_a_space_without_choice() -> None:
    space = narrow(FOUR, 1, 2, min_dropped=2, max_dropped=2)
    assert yields("evopress", FakeMeter(rough), space) == [(1, 2)]


def test_mutations_swap_one_to_three_layers() -> None:
    layers = tuple(range(4, 100))
    space = SearchSpace(num_layers=104, droppable_layers=layers, min_dropped=1, max_dropped=40)
    parent = drop_layers(104, layers[:40])
    rng = random.Random(0)
    swapped: Counter[int] = Counter()
    for _ in range(3000):
        child = mutate(space, parent, rng)
        assert len(child.dropped_layers) == 40
        assert set(child.dropped_layers) <= set(layers)
        swapped[len(set(child.dropped_layers) - set(parent.dropped_layers))] += 1
    shares = [swapped[number] / 3000 for number in (1, 2, 3)]
    assert shares == pytest.approx([5 / 9, 3 / 9, 1 / 9], abs=0.04)  # min of two draws from 1, 2, 3


@pytest.mark.parametrize("count", [0, 4])
def test_a_mutation_without_a_swap_is_the_parent(count: int) -> None:
    parent = drop_layers(4, range(count))
    assert mutate(FOUR, parent, random.Random(0)) == parent


# ---- samplers


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("min_dropped", [1, 2])
def test_a_search_ends_with_the_space_and_picks_the_best(name: str, min_dropped: int) -> None:
    space = narrow(FOUR, *range(4), min_dropped=min_dropped)
    meter = FakeMeter(LOSSES)
    assert play(name, meter, space) == {count: BEST[count] for count in range(min_dropped, 4)}
    assert sorted(meter.asked) == sorted(c.dropped_layers for c in enumerate_candidates(space))
    assert {(len(call.dropped), call.proxy, call.share) for call in meter.calls} == {(1, PROXY, 1.0)}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_search_never_repeats_nor_leaves_the_space_and_yields_what_is_better(name: str) -> None:
    space = SearchSpace(num_layers=12, droppable_layers=(1, 2, 3, 5, 7, 8, 10), min_dropped=1, max_dropped=3)
    meter = FakeMeter(rough, budget=60)  # of 63; NSGA-II breeds from its 51st on
    found = []
    with contextlib.suppress(BudgetSpent):
        for candidate in STRATEGIES[name].search(meter, space, PROXY, 0):
            assert candidate.dropped_layers == meter.asked[-1]
            found.append(candidate.dropped_layers)
    assert len(set(meter.asked)) == len(meter.asked) == 60
    assert all(contains(space, drop_layers(12, dropped)) for dropped in meter.asked)
    for count in (1, 2, 3):
        scored = [rough(dropped, 1.0) for dropped in meter.asked if len(dropped) == count]
        wanted = [loss for i, loss in enumerate(scored) if loss < min(scored[:i], default=math.inf)]
        assert [rough(dropped, 1.0) for dropped in found if len(dropped) == count] == wanted


@pytest.mark.parametrize("name", ["evopress", *SAMPLERS])
def test_a_seed_decides_what_a_search_asks(name: str) -> None:
    budget = 200 if name == "evopress" else 16
    one, same, other = (FakeMeter(rough, budget=budget) for _ in range(3))
    space = narrow(SIX, *range(6), max_dropped=4)
    for meter, rng_seed in ((one, 3), (same, 3), (other, 4)):
        play(name, meter, space, rng_seed=rng_seed)
    assert one.asked == same.asked
    if name != "subset":  # which starts with the single removals, and then goes where they point
        assert one.asked != other.asked


def test_what_is_said_of_strategies_is_so() -> None:
    assert {name for name, strategy in STRATEGIES.items() if strategy.is_random} == {"evopress", *SAMPLERS}
    assert all(name == strategy.name for name, strategy in STRATEGIES.items())


# ---- accounts and picks


@pytest.mark.parametrize(
    ("name", "budget", "picks"),
    [
        ("greedy", 3, {}),
        ("greedy", 4, {1: (1,)}),
        ("greedy", 8, {1: (1,), 2: (1, 3)}),
        ("greedy", 9, {1: (1,), 2: (1, 3), 3: (0, 1, 3)}),
        ("perplexity", 3, {}),
        ("subset", 4, {1: (1,)}),
        ("sweep", 13, {}),
    ],
)
def test_what_was_settled_on_stands_when_the_budget_is_spent(name: str, budget: int, picks: dict[int, Dropped]) -> None:
    assert play(name, FakeMeter(LOSSES, budget=budget), FOUR) == picks


def test_picks_outside_of_the_space_are_dropped() -> None:
    space = narrow(FIVE, *range(5), min_dropped=2)
    assert play("block_influence", FakeMeter(layers={"block_influence": WEIGHTS}), space) == {2: (1, 2), 3: (1, 2, 4)}
    assert play("angular_distance", FakeMeter(distances=DISTANCES), space) == {2: (0, 1), 3: (0, 1, 2)}
    assert play("greedy", FakeMeter(LOSSES), narrow(FOUR, *range(4), min_dropped=2)) == {2: (1, 3), 3: (0, 1, 3)}


def test_the_last_pick_of_a_depth_counts_and_depths_are_in_order() -> None:
    def search(meter: Meter, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
        for dropped in [(0, 1, 2), (1,), (2,), (0, 4), (0, 1, 2, 3), ()]:
            yield drop_layers(5, dropped)
        raise BudgetSpent

    strategy = Strategy(name="odd", title="odd", source="here", search=search)
    picks = run_strategy(strategy, FakeMeter(), narrow(FIVE, 0, 1, 2, 3), proxy=PROXY, rng_seed=0)
    assert [candidate.dropped_layers for candidate in picks.values()] == [(2,), (0, 1, 2)]
    assert list(picks) == [1, 3]


# ---- what is not finite

SCORING = ["perplexity", "greedy", "greedy_recovered", "sweep", "evopress", *SAMPLERS]
BAD = [math.nan, math.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", SCORING)
def test_what_breaks_the_model_is_not_picked(name: str, bad: float) -> None:
    losses = {dropped: bad if 0 in dropped else loss for dropped, loss in LOSSES.items()}
    picks = play(name, FakeMeter(losses), FOUR)
    assert list(picks) == [1, 2, 3]
    assert all(0 not in dropped for dropped in picks.values())


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", SCORING)
def test_a_model_that_always_breaks_ends_the_search_all_the_same(name: str, bad: float) -> None:
    meter = FakeMeter(dict.fromkeys(LOSSES, bad))
    picks = play(name, meter, FOUR)
    assert all(len(dropped) == count for count, dropped in picks.items())
    if name in SAMPLERS:
        assert picks == {}
        assert sorted(meter.asked) == sorted(LOSSES)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["block_influence", "taylor", "magnitude"])
def test_a_layer_of_unknown_importance_goes_last(name: str, bad: float) -> None:
    picks = play(name, FakeMeter(layers={name: [bad, 0.3, 0.1, 0.2]}), FOUR)
    assert picks == {1: (2,), 2: (2, 3), 3: (1, 2, 3)}


@pytest.mark.parametrize("bad", BAD)
def test_a_block_of_unknown_distance_stays(bad: float) -> None:
    meter = FakeMeter(distances={1: [bad, 0.3, 0.1, 0.2], 2: [bad, 0.2, 0.1], 3: [bad, 0.5]})
    assert play("angular_distance", meter, FOUR) == {1: (2,), 2: (2, 3), 3: (1, 2, 3)}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_loss_beyond_what_a_perplexity_can_hold_is_only_very_bad(name: str) -> None:
    losses = {dropped: 2000.0 if 0 in dropped else loss for dropped, loss in LOSSES.items()}
    assert play(name, FakeMeter(losses), FOUR) == {1: (1,), 2: (2, 3), 3: (1, 2, 3)}


# ---- landscapes


def make_landscape() -> Landscape:
    losses = {drop_layers(4, dropped): loss for dropped, loss in LOSSES.items()}
    return Landscape(name="four", about="by hand", space=FOUR, losses=losses)


def candidates_of(*sets: Dropped) -> list[Candidate]:
    return [drop_layers(4, dropped) for dropped in sets]


@pytest.mark.parametrize(
    ("found", "excess"),
    [
        # best existing: 2.1 of 1 or more, 2.5 of 2 or more, 3.8 of 3; worst: 3.0 of 1, 4.2 of 2, 5.0 of 3
        ([], (3.0 - 2.1, 4.2 - 2.5, 5.0 - 3.8)),
        ([(1,)], (0.0, 4.2 - 2.5, 5.0 - 3.8)),
        ([(0,)], (3.0 - 2.1, 4.2 - 2.5, 5.0 - 3.8)),
        ([(2, 3)], (2.5 - 2.1, 0.0, 5.0 - 3.8)),
        ([(1, 2, 3)], (3.9 - 2.1, 3.9 - 2.5, 3.9 - 3.8)),  # the deeper stands for the shallower
        ([(1,), (1, 3), (1, 2, 3)], (0.0, 2.6 - 2.5, 3.9 - 3.8)),
        ([(1,), (2, 3), (0, 1, 3), (0, 1)], (0.0, 0.0, 0.0)),
    ],
)
def test_regret_is_that_of_the_frontier(found: list[Dropped], excess: tuple[float, ...]) -> None:
    wanted = sum(math.exp(one) - 1 for one in excess) / 3
    assert make_landscape().regret(candidates_of(*found)) == pytest.approx(wanted)


def test_a_landscape_pays_for_each_set_once() -> None:
    meter = LandscapeMeter(make_landscape(), budget=3)
    one, two, three = candidates_of((1,), (2,), (1, 2))
    assert meter.score([one, one, two], proxy="none") == [2.1, 2.1, 2.2]
    assert meter.score([one], proxy="closed-form") == [2.1]
    assert meter.spent == 2
    assert meter.score([one, three], proxy="none", share=1 / 16) == [2.1, 3.5]
    assert meter.spent == 2 + 2 / 16
    assert [(asked.candidate, asked.share) for asked in meter.asked] == [
        (one, 1.0),
        (two, 1.0),
        (one, 1 / 16),
        (three, 1 / 16),
    ]
    assert meter.list_found() == [one, two]  # a share finds nothing
    assert meter.list_found(within=1) == [one]


def test_a_landscape_scores_as_far_as_the_budget_reaches() -> None:
    meter = LandscapeMeter(make_landscape(), budget=2)
    batch = candidates_of((1,), (2,), (3,))
    with pytest.raises(BudgetSpent):
        meter.score(batch, proxy="none")
    assert meter.list_found() == batch[:2]
    assert meter.score(batch[:2], proxy="none") == [2.1, 2.2]
    with pytest.raises(BudgetSpent):
        meter.score(batch[2:], proxy="none", share=1 / 16)


def test_what_needs_the_model_is_not_played_on_landscapes() -> None:
    for name in ("block_influence", "taylor", "magnitude", "angular_distance"):
        with pytest.raises(NotImplementedError):
            play(name, LandscapeMeter(make_landscape()), FOUR)


@pytest.mark.parametrize("name", ["greedy", "evopress", "random"])
def test_a_smaller_budget_finds_what_a_larger_one_found_by_then(name: str) -> None:
    larger = LandscapeMeter(make_landscape())
    play(name, larger, FOUR)
    for budget in range(1, 14):
        meter = LandscapeMeter(make_landscape(), budget=budget)
        play(name, meter, FOUR)
        assert meter.list_found() == larger.list_found(within=budget)


def test_a_landscape_is_read(tmp_path: Path) -> None:
    losses = {"": 2.0, "1": 2.1, "3": 2.3, "1,3": 2.6}
    content = {"about": "three", "num_layers": 4, "max_dropped": 2, "losses": losses}
    (tmp_path / "three.json").write_text(json.dumps(content))
    assert list_landscapes(tmp_path) == ["three"]
    landscape = load_landscape("three", tmp_path)
    assert landscape.space == SearchSpace(num_layers=4, droppable_layers=(1, 3), min_dropped=1, max_dropped=2)
    assert landscape.losses == dict(zip(candidates_of((1,), (3,), (1, 3)), [2.1, 2.3, 2.6], strict=True))
    del losses["1,3"]
    (tmp_path / "holes.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="2 sets"):
        load_landscape("holes", tmp_path)


@pytest.mark.parametrize("name", list_landscapes())
def test_landscapes_hold_every_set(name: str) -> None:
    landscape = load_landscape(name)
    assert set(landscape.losses) == set(enumerate_candidates(landscape.space))
    assert landscape.regret(list(landscape.losses)) == 0
    assert landscape.regret([]) > 0
    assert (DIRECTORY / f"{name}.json").stat().st_size < 500_000


# ---- layers that are gone

STAGED = SearchSpace(  # 10 candidates
    num_layers=6, droppable_layers=(0, 2, 3, 5), min_dropped=3, max_dropped=4, gone_layers=(1, 4)
)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_goes_on_from_what_is_gone(name: str) -> None:
    weights = {measure: [0.5, 9.0, 0.2, 0.3, 9.0, 0.4] for measure in ("block_influence", "taylor", "magnitude")}
    meter = FakeMeter(rough, layers=weights, distances={1: [0.4, 0.1, 0.3, 0.2], 2: [0.3, 0.2, 0.1]})
    picks = play(name, meter, STAGED)
    assert sorted(picks) == [3, 4]
    for count, dropped in picks.items():
        assert len(dropped) == count
        assert {1, 4} < set(dropped)
    assert all({1, 4} < set(dropped) and len(dropped) <= 4 for dropped in meter.asked)
    expected = {
        "last_layers": {3: (1, 4, 5), 4: (1, 3, 4, 5)},
        "magnitude": {3: (1, 2, 4), 4: (1, 2, 3, 4)},
        "angular_distance": {3: (1, 2, 4), 4: (1, 3, 4, 5)},  # 3 and 5 are neighbours when 4 is gone
    }
    assert picks == expected.get(name, picks)


def test_greedy_removal_measures_what_is_left_only() -> None:
    meter = FakeMeter(rough)
    play("greedy_recovered", meter, STAGED)
    assert [len(call.dropped) for call in meter.calls] == [4, 3]


def test_mutations_leave_gone_layers_gone() -> None:
    rng, parent = random.Random(0), drop_layers(6, (1, 2, 4))
    offspring = {mutate(STAGED, parent, rng).dropped_layers for _ in range(100)}
    assert offspring == {(0, 1, 4), (1, 2, 4), (1, 3, 4), (1, 4, 5)}
