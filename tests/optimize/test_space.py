"""Search spaces: bounds are checked, and a space holds what its size says."""

import random

import pytest

from seed.errors import SpaceError
from seed.optimize import space as spaces
from seed.records import Candidate, SearchSpace


def test_one_layer_has_to_stay() -> None:
    with pytest.raises(SpaceError, match="Use 11 or fewer"):
        spaces.make_space(max_dropped=12, num_layers=12, place="here")
    assert spaces.make_space(max_dropped=11, num_layers=12, place="here").size == 2**12 - 2


def test_droppable_layers_are_sorted_and_default_to_all() -> None:
    some = spaces.make_space(max_dropped=2, droppable_layers=(5, 1, 3), num_layers=8, place="here")
    assert some.droppable_layers == (1, 3, 5)
    every = spaces.make_space(max_dropped=2, num_layers=8, place="here")
    assert every.droppable_layers == tuple(range(8))


def test_no_impossible_cure_is_given() -> None:
    for num_layers, droppable in ((1, None), (12, ())):
        with pytest.raises(SpaceError, match="nothing can be dropped"):
            spaces.make_space(num_layers=num_layers, max_dropped=1, droppable_layers=droppable, place="here")


# ---- candidates

SPACES = [
    SearchSpace(num_layers=2, droppable_layers=(0, 1), min_dropped=1, max_dropped=1),
    SearchSpace(num_layers=6, droppable_layers=tuple(range(6)), min_dropped=1, max_dropped=5),
    SearchSpace(num_layers=12, droppable_layers=tuple(range(12)), min_dropped=1, max_dropped=3),
    SearchSpace(num_layers=12, droppable_layers=(1, 4, 5, 10), min_dropped=2, max_dropped=4),
    SearchSpace(num_layers=80, droppable_layers=(7, 70), min_dropped=1, max_dropped=2),
    SearchSpace(num_layers=12, droppable_layers=(0, 4, 5, 10), min_dropped=3, max_dropped=5, gone_layers=(1, 7)),
    SearchSpace(num_layers=6, droppable_layers=(1, 2, 4), min_dropped=1, max_dropped=2, kinds=("attn", "mlp")),
    SearchSpace(num_layers=12, droppable_layers=(0, 4, 5, 10), min_dropped=1, max_dropped=1, kinds=("attn",)),
]


@pytest.mark.parametrize("space", SPACES)
def test_enumeration_is_complete_unique_and_lexicographic(space: SearchSpace) -> None:
    found = list(spaces.enumerate_candidates(space))
    kept = [spaces.order_walk(candidate) for candidate in found]
    assert len(found) == space.size
    assert len(set(kept)) == space.size
    assert kept == sorted(kept)
    assert all(spaces.contains(space, candidate) for candidate in found)


def test_sizes_counted_by_hand() -> None:
    assert SPACES[0].size == 2
    assert SPACES[2].size == 12 + 66 + 220
    assert SPACES[3].size == 6 + 4 + 1
    assert SPACES[5].size == 4 + 6 + 4
    assert SPACES[6].size == 6 + 15 + 20 + 15  # halves of a layer: 1 to 4 of 6
    assert SPACES[7].size == 4 + 6


def test_a_layer_without_attention_and_mlp_is_gone() -> None:
    space = SPACES[6]
    assert spaces.list_parts(space) == ("1.attn", "1.mlp", "2.attn", "2.mlp", "4.attn", "4.mlp")
    assert spaces.drop_parts(space, ["4.mlp", "1.attn", "4.attn"]).parts == ("1.attn", "4")
    assert spaces.contains(space, spaces.drop_layers(6, [1, 4]))
    assert not spaces.contains(SPACES[7], spaces.drop_layers(12, [4]))
    assert not spaces.contains(SPACES[7], Candidate.drop(12, ["4.mlp"]))


@pytest.mark.parametrize("space", [SPACES[3], SPACES[5], SPACES[7]])
def test_random_candidates_lie_in_the_space_and_reach_all_of_it(space: SearchSpace) -> None:
    rng = random.Random(0)
    drawn = [spaces.draw_candidate(space, rng) for _ in range(400)]
    assert all(spaces.contains(space, candidate) for candidate in drawn)
    assert {candidate.key for candidate in drawn} == {c.key for c in spaces.enumerate_candidates(space)}


@pytest.mark.parametrize("dropped", [(), (1,), (1, 4, 5, 10, 11), (0, 1), (1, 2)])
def test_candidates_outside_are_told_from_those_inside(dropped: tuple[int, ...]) -> None:
    space = SPACES[3]
    candidate = spaces.drop_layers(12, dropped)
    assert candidate.dropped_layers == dropped
    assert not spaces.contains(space, candidate)
    assert spaces.contains(space, spaces.drop_layers(12, {10, 4}))


def test_dropping_nothing_keeps_everything() -> None:
    assert spaces.drop_layers(3, []) == Candidate(num_layers=3, parts=())


# ---- layers that are gone


@pytest.mark.parametrize("dropped", [(1, 7), (0, 4, 5), (1, 4, 5), (1, 2, 7), (0, 1, 4, 5, 7, 10)])
def test_candidates_that_keep_what_is_gone_are_outside(dropped: tuple[int, ...]) -> None:
    assert not spaces.contains(SPACES[5], spaces.drop_layers(12, dropped))
    assert spaces.contains(SPACES[5], spaces.drop_layers(12, {1, 4, 7}))


def test_the_deepest_candidate_lacks_the_last_layers_that_may_go() -> None:
    assert [spaces.drop_deepest(SPACES[2], count).dropped_layers for count in (1, 3)] == [(11,), (9, 10, 11)]
    assert [spaces.drop_deepest(SPACES[5], count).dropped_layers for count in (2, 3, 5)] == [
        (1, 7),
        (1, 7, 10),
        (1, 4, 5, 7, 10),
    ]


def test_a_narrowed_space_is_what_is_left_without_the_layers() -> None:
    first = spaces.narrow_space(SPACES[2], gone_layers=[7, 1], min_dropped=3, max_dropped=4, place="here")
    assert first.gone_layers == (1, 7)
    assert first.droppable_layers == (0, 2, 3, 4, 5, 6, 8, 9, 10, 11)
    assert first.size == 10 + 45


@pytest.mark.parametrize(
    ("gone", "least", "most", "found"),
    [
        ([2], 2, 2, r"layers \[2\] are to be gone, but only \[1, 4, 5, 10\] may go"),
        ([1, 1], 3, 3, "each once"),
        ([1, 4], 2, 3, r"with layers \[1, 4\] gone; wanted 3 <= min_dropped <= max_dropped <= 4"),
        ([1, 4], 4, 3, "wanted 3 <= min_dropped"),
        ([1, 4], 3, 5, "max_dropped <= 4"),
    ],
)
def test_a_space_that_cannot_be_narrowed_so_is_refused(gone: list[int], least: int, most: int, found: str) -> None:
    with pytest.raises(SpaceError, match=f"here: .*{found}"):
        spaces.narrow_space(SPACES[3], gone_layers=gone, min_dropped=least, max_dropped=most, place="here")
