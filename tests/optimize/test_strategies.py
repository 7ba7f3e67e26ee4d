"""Strategies against rankings worked out by hand, on a scorer that only looks up; and the landscapes they are judged on."""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import pytest

from seed.optimize.space import SAMPLERS, drop_layers, enumerate_candidates
from seed.optimize.strategies import STRATEGIES, BudgetSpent, Scorer, Strategy, run_strategy
from seed.records import KINDS, Candidate, SearchSpace

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


class FakeScorer:
    """Looks up what is written in the test, and remembers what was asked. ``budget`` is in scores.

    ``by_halves``: sets are named by attentions and MLPs, 2 and 3 those of layer 1.
    """

    def __init__(
        self,
        losses: dict[Dropped, float] | Callable[[Dropped, float], float] | None = None,
        *,
        layers: dict[str, list[float]] | None = None,
        distances: dict[int, list[float]] | None = None,
        budget: float = math.inf,
        by_halves: bool = False,
    ) -> None:
        self.losses, self.layers, self.distances, self.budget = losses, layers or {}, distances or {}, budget
        self.by_halves = by_halves
        self.calls: list[Call] = []

    def score(self, candidates: Sequence[Candidate], *, proxy: str, share: float = 1.0) -> list[float]:
        if len(self.asked) + len(candidates) > self.budget:
            raise BudgetSpent
        dropped = tuple((one.sublayers if self.by_halves else one).dropped_layers for one in candidates)
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


def play(name: str, scorer: Scorer, space: SearchSpace, *, rng_seed: int = 0) -> dict[int, Dropped]:
    picks = run_strategy(STRATEGIES[name], scorer, space, proxy=PROXY, rng_seed=rng_seed)
    return {count: candidate.dropped_layers for count, candidate in picks.items()}


def yields(name: str, scorer: Scorer, space: SearchSpace, *, rng_seed: int = 0) -> list[Dropped]:
    return [candidate.dropped_layers for candidate in STRATEGIES[name].search(scorer, space, PROXY, rng_seed)]


def narrow(space: SearchSpace, *droppable: int, **bounds: int) -> SearchSpace:
    fields = {"min_dropped": space.min_dropped, "max_dropped": space.max_dropped} | bounds
    return SearchSpace(num_layers=space.num_layers, droppable_layers=droppable, **fields)


# ---- one shot

WEIGHTS = [0.9, 0.2, 0.1, 0.3, 0.2]


@pytest.mark.parametrize("name", ["block_influence", "magnitude"])
def test_the_least_important_layers_go_first_and_of_equals_the_earlier(name: str) -> None:
    scorer = FakeScorer(layers={name: WEIGHTS})
    assert play(name, scorer, FIVE) == {1: (2,), 2: (1, 2), 3: (1, 2, 4)}
    assert play(name, scorer, narrow(FIVE, 0, 3, 4)) == {1: (4,), 2: (3, 4), 3: (0, 3, 4)}
    assert play(name, scorer, narrow(FIVE, *range(5), min_dropped=2)) == {2: (1, 2), 3: (1, 2, 4)}
    assert scorer.calls == []


def test_perplexity_ranks_by_single_removals_without_recovery() -> None:
    scorer = FakeScorer(LOSSES)
    assert play("perplexity", scorer, FOUR) == {1: (1,), 2: (1, 2), 3: (1, 2, 3)}
    assert scorer.calls == [Call(((0,), (1,), (2,), (3,)), "none", 1.0)]


@pytest.mark.parametrize(
    ("num_layers", "protected"), [(4, []), (12, [0, 1, 11]), (16, [0, 1, 15]), (32, [0, 1, 2, 3, 30, 31])]
)
def test_taylor_protects_the_shares_of_the_paper(num_layers: int, protected: list[int]) -> None:
    most = num_layers - 1
    space = SearchSpace(
        num_layers=num_layers, droppable_layers=tuple(range(num_layers)), min_dropped=1, max_dropped=most
    )
    picks = play("taylor", FakeScorer(layers={"taylor": [1.0] * num_layers}), space)
    left = num_layers - len(protected)
    assert list(picks) == list(range(1, min(most, left) + 1))  # then nothing is left to rank
    free = [layer for layer in range(num_layers) if layer not in protected]
    assert picks[len(picks)] == tuple(free[: len(picks)])


def test_the_last_layers_go_first_and_nothing_is_measured() -> None:
    scorer = FakeScorer()
    assert play("last_layers", scorer, FIVE) == {1: (4,), 2: (3, 4), 3: (2, 3, 4)}
    assert play("last_layers", scorer, narrow(FIVE, 0, 1, 3)) == {1: (3,), 2: (1, 3), 3: (0, 1, 3)}
    assert scorer.calls == []


DISTANCES = {1: [0.1, 0.3, 0.2, 0.2, 0.4], 2: [0.1, 0.5, 0.3, 0.2], 3: [0.1, 0.4, 0.4]}


def test_the_nearest_block_goes() -> None:
    scorer = FakeScorer(distances=DISTANCES)
    assert play("angular_distance", scorer, FIVE) == {1: (0,), 2: (0, 1), 3: (0, 1, 2)}
    assert play("angular_distance", scorer, narrow(FIVE, 1, 2, 4)) == {1: (2,), 2: (1, 2)}  # no three in a row


# ---- searches without chance


def test_greedy_removal_measures_again_after_each_layer() -> None:
    scorer = FakeScorer(LOSSES)
    assert play("greedy", scorer, FOUR) == {1: (1,), 2: (1, 3), 3: (0, 1, 3)}
    assert [call.dropped for call in scorer.calls] == [
        ((0,), (1,), (2,), (3,)),
        ((0, 1), (1, 2), (1, 3)),
        ((0, 1, 3), (1, 2, 3)),
    ]


@pytest.mark.parametrize(("name", "proxy"), [("greedy", "none"), ("greedy_recovered", PROXY)])
def test_recovery_is_all_that_the_two_greedy_removals_differ_in(name: str, proxy: str) -> None:
    scorer = FakeScorer(LOSSES)
    play(name, scorer, FOUR)
    assert {(call.proxy, call.share) for call in scorer.calls} == {(proxy, 1.0)}
    assert play(name, FakeScorer(LOSSES), FOUR) == {1: (1,), 2: (1, 3), 3: (0, 1, 3)}


def test_a_sweep_finds_the_best() -> None:
    scorer = FakeScorer(LOSSES)
    assert play("sweep", scorer, FOUR) == BEST
    [call] = scorer.calls
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
    found = yields("evopress", FakeScorer(rough), SIX)
    # 1 * 5 / 1.5, 2 * 4 / 1.5, 3 * 3 / 1.5: 3, 5 and 6 generations; whoever is least far along is next
    assert [len(dropped) for dropped in found] == [1, 2, 3, 3, 2, 1, 3, 2, 3, 2, 1, 3, 2, 3]


def test_selection_reads_a_share_first_and_everything_of_two_survivors() -> None:
    space = SearchSpace(num_layers=12, droppable_layers=tuple(range(12)), min_dropped=3, max_dropped=3)
    scorer = FakeScorer(rough)
    found = yields("evopress", scorer, space)
    assert len(found) == 18
    assert {call.proxy for call in scorer.calls} == {"none"}
    drawn = scorer.calls[0]
    assert drawn.share == 1 / 16
    assert 50 < len(drawn.dropped) == len(set(drawn.dropped)) <= 64  # of 220, some twice
    parent = min(drawn.dropped, key=lambda dropped: rough(dropped, 1 / 16))
    generations = list(split_by_generation(scorer.calls))
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


# ---- samplers


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("min_dropped", [1, 2])
def test_a_search_ends_with_the_space_and_picks_the_best(name: str, min_dropped: int) -> None:
    space = narrow(FOUR, *range(4), min_dropped=min_dropped)
    scorer = FakeScorer(LOSSES)
    assert play(name, scorer, space) == {count: BEST[count] for count in range(min_dropped, 4)}
    assert sorted(scorer.asked) == sorted(c.dropped_layers for c in enumerate_candidates(space))
    assert {(len(call.dropped), call.proxy, call.share) for call in scorer.calls} == {(1, PROXY, 1.0)}


# ---- attention and MLP apart

PARTS = SearchSpace(
    num_layers=3, droppable_layers=(0, 1, 2), min_dropped=1, max_dropped=2, kinds=KINDS
)  # 56 candidates


def add_up(halves: Dropped, share: float) -> float:
    """Attention and MLP of layer 1 cost more together."""
    return sum((5.0, 9.0, 1.0, 2.0, 1.5, 4.5)[half] for half in halves) + 2.0 * ({2, 3} <= set(halves))


def play_parts(name: str, scorer: Scorer, space: SearchSpace = PARTS) -> dict[int, tuple[str, ...]]:
    picks = run_strategy(STRATEGIES[name], scorer, space, proxy=PROXY, rng_seed=0)
    return {count: candidate.parts for count, candidate in picks.items()}


@pytest.mark.parametrize(("name", "proxy"), [("greedy_parts", "none"), ("greedy_recovered", PROXY)])
def test_greedy_removal_takes_the_cheapest_of_attentions_and_mlps(name: str, proxy: str) -> None:
    scorer = FakeScorer(add_up, by_halves=True)
    found = list(STRATEGIES[name].search(scorer, PARTS, PROXY, 0))
    # 1.attn for 1; beside it 2.attn for 1.5, where 1.mlp takes 4; then 1.mlp, and 2.mlp for 4.5
    assert [one.parts for one in found] == [("1.attn",), ("1.attn", "2.attn"), ("1", "2.attn"), ("1", "2")]
    assert [len(call.dropped) for call in scorer.calls] == [6, 5, 4, 3]
    assert {(call.proxy, call.share) for call in scorer.calls} == {(proxy, 1.0)}
    assert play_parts(name, FakeScorer(add_up, by_halves=True)) == {1: ("1.attn", "2.attn"), 2: ("1", "2")}


def test_whole_layers_are_chosen_in_the_same_space() -> None:
    scorer = FakeScorer(add_up, by_halves=True)
    assert play_parts("greedy", scorer) == {1: ("1",), 2: ("1", "2")}
    assert scorer.asked == [(0, 1), (2, 3), (4, 5), (0, 1, 2, 3), (2, 3, 4, 5)]


def test_attentions_that_change_their_input_least_go_first() -> None:
    scorer = FakeScorer(layers={"attention_influence": [0.3, 0.1, 0.2]})
    found = list(STRATEGIES["llm_drop"].search(scorer, PARTS, PROXY, 0))
    assert [one.parts for one in found] == [("1.attn",), ("1.attn", "2.attn"), ("0.attn", "1.attn", "2.attn")]
    assert play_parts("llm_drop", scorer) == {1: ("1.attn", "2.attn")}  # there are no four
    assert play_parts("llm_drop", scorer, msgspec.structs.replace(PARTS, kinds=("mlp",))) == {}


def test_evolution_drops_as_many_attentions_as_mlps_and_swaps_within_a_kind() -> None:
    space, scorer = msgspec.structs.replace(SIX, kinds=KINDS), FakeScorer(rough, by_halves=True)
    found = list(STRATEGIES["evopress_parts"].search(scorer, space, PROXY, 0))
    assert [one.num_dropped for one in found] == [1, 2, 3, 3, 2, 1, 3, 2, 3, 2, 1, 3, 2, 3]  # as of whole layers
    assert any(one.lacking for one in found)
    assert all(2 * sum(half % 2 for half in halves) == len(halves) for halves in scorer.asked)
    for first, second in split_by_generation(scorer.calls):
        parent, *survivors = second.dropped
        assert survivors == sorted(first.dropped, key=lambda halves: rough(halves, 1 / 16))[:2]
        assert all(1 <= len(set(halves) - set(parent)) <= 3 for halves in first.dropped)
    alone = msgspec.structs.replace(SIX, kinds=("attn",))
    picks = play_parts("evopress_parts", FakeScorer(rough, by_halves=True), alone)
    assert [len(parts) for parts in picks.values()] == [2, 4, 6]  # two attentions are a layer


@pytest.mark.parametrize("name", ["sweep", *SAMPLERS])
def test_searches_pick_among_sets_that_lack_two_parts_a_layer(name: str) -> None:
    scorer = FakeScorer(add_up, by_halves=True)
    assert play_parts(name, scorer) == {1: ("1.attn", "2.attn"), 2: ("1", "2")}
    assert len(set(scorer.asked)) == PARTS.size


def test_strategies_play_where_they_can_choose() -> None:
    alone = msgspec.structs.replace(PARTS, kinds=("attn",))
    able = [{name for name, one in STRATEGIES.items() if one.plays_in(space)} for space in (FOUR, PARTS, alone)]
    by_parts = {"greedy_parts", "evopress_parts", "llm_drop"}
    assert able[0] == set(STRATEGIES) - by_parts
    assert able[1] == set(STRATEGIES)
    assert able[2] == {"sweep", "greedy_recovered", *SAMPLERS} | by_parts


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
    assert play(name, FakeScorer(LOSSES, budget=budget), FOUR) == picks


def test_the_last_pick_of_a_depth_counts_and_depths_are_in_order() -> None:
    def search(scorer: Scorer, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
        for dropped in [(0, 1, 2), (1,), (2,), (0, 4), (0, 1, 2, 3), ()]:
            yield drop_layers(5, dropped)
        raise BudgetSpent

    strategy = Strategy(name="odd", title="odd", source="here", search=search)
    picks = run_strategy(strategy, FakeScorer(), narrow(FIVE, 0, 1, 2, 3), proxy=PROXY, rng_seed=0)
    assert [candidate.dropped_layers for candidate in picks.values()] == [(2,), (0, 1, 2)]
    assert list(picks) == [1, 3]


# ---- what is not finite

SCORING = ["perplexity", "greedy", "greedy_recovered", "sweep", "evopress", *SAMPLERS]
BAD = [math.nan, math.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", SCORING)
def test_what_breaks_the_model_is_not_picked_and_where_all_does_the_search_ends(name: str, bad: float) -> None:
    losses = {dropped: bad if 0 in dropped else loss for dropped, loss in LOSSES.items()}
    picks = play(name, FakeScorer(losses), FOUR)
    assert list(picks) == [1, 2, 3]
    assert all(0 not in dropped for dropped in picks.values())
    scorer = FakeScorer(dict.fromkeys(LOSSES, bad))
    picks = play(name, scorer, FOUR)
    if name in SAMPLERS:
        assert picks == {}
        assert sorted(scorer.asked) == sorted(LOSSES)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["block_influence", "taylor", "magnitude"])
def test_a_layer_of_unknown_importance_goes_last(name: str, bad: float) -> None:
    picks = play(name, FakeScorer(layers={name: [bad, 0.3, 0.1, 0.2]}), FOUR)
    assert picks == {1: (2,), 2: (2, 3), 3: (1, 2, 3)}


# ---- layers that are gone

STAGED = SearchSpace(  # 10 candidates
    num_layers=6, droppable_layers=(0, 2, 3, 5), min_dropped=3, max_dropped=4, gone_layers=(1, 4)
)


@pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if not strategy.needs_parts])
def test_every_strategy_goes_on_from_what_is_gone(name: str) -> None:
    weights = {measure: [0.5, 9.0, 0.2, 0.3, 9.0, 0.4] for measure in ("block_influence", "taylor", "magnitude")}
    scorer = FakeScorer(rough, layers=weights, distances={1: [0.4, 0.1, 0.3, 0.2], 2: [0.3, 0.2, 0.1]})
    picks = play(name, scorer, STAGED)
    assert sorted(picks) == [3, 4]
    for count, dropped in picks.items():
        assert len(dropped) == count
        assert {1, 4} < set(dropped)
    assert all({1, 4} < set(dropped) and len(dropped) <= 4 for dropped in scorer.asked)
    expected = {
        "last_layers": {3: (1, 4, 5), 4: (1, 3, 4, 5)},
        "magnitude": {3: (1, 2, 4), 4: (1, 2, 3, 4)},
        "angular_distance": {3: (1, 2, 4), 4: (1, 3, 4, 5)},  # 3 and 5 are neighbours when 4 is gone
    }
    assert picks == expected.get(name, picks)
