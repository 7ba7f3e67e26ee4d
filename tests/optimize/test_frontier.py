"""The frontier: what is worth distilling, by hand-made cases and against brute force; ties; does the proxy rank."""

import itertools
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from seed.errors import StudyError
from seed.evidence import Agreement
from seed.optimize import frontier as frontiers
from seed.records import DistillResult, Frontier, Quality, TrialRecord

from ..reporting import factory

PROXY = factory.PROXY
COUNTS = np.full(4, 100.0)


def make_trial(
    number: int,
    dropped: tuple[int, ...],
    ratio: float,
    *,
    latency_ratio: float | None = None,
    structure: str | None = None,
    state: str = "COMPLETE",
) -> TrialRecord:
    """A scored trial; structure and latency follow from how many layers are kept, unless given."""
    evaluation = factory.make_evaluation(dropped, ratio)
    latency = evaluation.latency
    latency = msgspec.structs.replace(
        latency,
        ratio=latency.ratio if latency_ratio is None else latency_ratio,
        structure=structure or latency.structure,
    )
    return TrialRecord(number=number, state=state, evaluation=msgspec.structs.replace(evaluation, latency=latency))


def make_trials(ratios: dict[tuple[int, ...], float]) -> list[TrialRecord]:
    return [make_trial(number, dropped, ratio) for number, (dropped, ratio) in enumerate(ratios.items())]


def evenly(quality: Quality) -> tuple[np.ndarray, np.ndarray]:
    """Losses that are the same in every document."""
    return quality.loss * COUNTS, COUNTS


def select(
    trials: list[TrialRecord],
    *,
    size: int = 6,
    max_ppl_ratio: float | None = None,
    max_latency_ratio: float | None = None,
    load_losses: frontiers.LoadLosses = evenly,
) -> Frontier:
    return frontiers.select_frontier(
        trials,
        proxy=PROXY,
        size=size,
        space=factory.SPACE,
        load_losses=load_losses,
        limits=frontiers.Limits(max_ppl_ratio=max_ppl_ratio, max_latency_ratio=max_latency_ratio),
    )


def keys_of(frontier: Frontier) -> list[str]:
    return [member.evaluation.candidate.key for member in frontier.members]


# ---- who is chosen


def brute_force(trials: list[TrialRecord]) -> set[int]:
    """Numbers of trials that no other trial at all beats: three loops over plain numbers."""
    points = [
        (t.evaluation.qualities[PROXY].ppl_ratio, t.evaluation.latency.ratio, t.evaluation.size.num_params)
        for t in trials
    ]
    return {
        trials[i].number
        for i, mine in enumerate(points)
        if not any(
            all(other[axis] <= mine[axis] for axis in range(3)) and any(other[axis] < mine[axis] for axis in range(3))
            for j, other in enumerate(points)
            if j != i
        )
    }


@pytest.mark.parametrize("rng_seed", range(5))
def test_leaders_are_the_nondominated_of_all(rng_seed: int) -> None:
    rng = np.random.default_rng(rng_seed)
    latency = {depth: float(rng.choice([0.7, 0.75, 0.8, 0.9])) for depth in range(1, 8)}  # noise: not in order
    trials = []
    for number in range(40):
        depth = int(rng.integers(1, 8))
        dropped = tuple(sorted(rng.choice(12, depth, replace=False).tolist()))
        ratio = float(1 + depth * 0.01 + rng.exponential(0.05))
        trials.append(make_trial(number, dropped, ratio, latency_ratio=latency[depth]))
    frontier = select(trials, size=40)
    leaders = {member.trial_number for member in frontier.members if member.rank == 0}
    assert leaders == brute_force(trials)
    one_leader = [m.evaluation.latency.structure for m in frontier.members if m.rank == 0]
    assert len(one_leader) == len(set(one_leader))


def test_runners_up_fill_the_room_by_rounds() -> None:
    ratios = {(layer,): 1.01 + 0.01 * layer for layer in range(3)}  # three of one dropped
    ratios |= {(0, 1): 1.10}  # one of two
    ratios |= {(0, 1, layer): 1.20 + 0.01 * layer for layer in range(2, 7)}  # five of three
    trials = make_trials(ratios)

    def ranks(size: int) -> list[list[int]]:
        members = select(trials, size=size).members
        return [[m.rank for m in members if len(m.evaluation.candidate.dropped_layers) == depth] for depth in (1, 2, 3)]

    assert ranks(3) == [[0], [0], [0]]
    assert ranks(4) == [[0, 1], [0], [0]]
    assert ranks(5) == [[0, 1], [0], [0, 1]]
    assert ranks(7) == [[0, 1, 2], [0], [0, 1, 2]]
    assert ranks(8) == [[0, 1, 2], [0], [0, 1, 2, 3]]
    assert ranks(100) == [[0, 1, 2], [0], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_thinning_keeps_both_ends(size: int) -> None:
    ratios = {tuple(range(depth)): 1 + 0.02 * depth for depth in range(1, 8)}
    depths = [len(m.evaluation.candidate.dropped_layers) for m in select(make_trials(ratios), size=size).members]
    assert len(depths) == len(set(depths)) == size
    assert depths == sorted(depths)
    assert (depths[0], depths[-1]) == (1, 7)
    assert len(select(make_trials(ratios), size=1).members) == 1
    gaps = [b - a for a, b in itertools.pairwise(depths)]
    assert max(gaps) - min(gaps) <= 1  # even


# ---- limits


def test_limits_are_kept_by_leaders_and_runners_up() -> None:
    ratios = {(1,): 1.02, (2,): 1.08, (1, 2): 1.05, (1, 3): 1.06, (1, 2, 3): 1.20}
    trials = make_trials(ratios)
    assert keys_of(select(trials, max_ppl_ratio=1.05)) == ["drop-1", "drop-1-2"]
    latency = trials[2].evaluation.latency.ratio
    assert keys_of(select(trials, max_latency_ratio=latency)) == ["drop-1-2", "drop-1-3", "drop-1-2-3"]
    assert keys_of(select(trials, max_latency_ratio=latency, max_ppl_ratio=1.05)) == ["drop-1-2"]


def test_limits_that_nothing_keeps_are_refused_with_the_best_there_is() -> None:
    trials = make_trials({(1,): 1.0234, (1, 2): 1.05})
    with pytest.raises(StudyError, match=r"none of the 2 scored .* lowest PPL ratio is 1\.023.*--max-ppl-ratio"):
        select(trials, max_ppl_ratio=1.02)
    with pytest.raises(StudyError, match="--max-latency-ratio"):
        select(trials, max_latency_ratio=0.1)
    with pytest.raises(StudyError) as caught:
        select([make_trial(0, (1,), 1.1, state="PRUNED")])
    assert "nan" not in str(caught.value)
    assert "--max-ppl-ratio" not in str(caught.value)  # none was set


# ---- certainty


def noisy_losses(trials: list[TrialRecord], *, documents: int = 60, rng_seed: int = 0) -> frontiers.LoadLosses:
    """Documents differ a lot, candidates within a document little: losses as they are in life."""
    rng = np.random.default_rng(rng_seed)
    counts = rng.integers(50, 400, documents).astype(float)
    difficulty = rng.normal(0, 0.5, documents)
    table = {}
    for trial in trials:
        quality = trial.evaluation.qualities[PROXY]
        means = quality.loss + difficulty + rng.normal(0, 0.02, documents)
        table[quality.loss] = (means * counts, counts)
    return lambda quality: table[quality.loss]


def test_equal_losses_are_tied_and_far_worse_ones_are_not() -> None:
    trials = make_trials({(1,): 1.02, (2,): 1.02, (3,): 1.30})
    members = select(trials, load_losses=noisy_losses(trials)).members
    assert {m.evaluation.candidate.key: set(m.tied_with) for m in members} == {
        "drop-1": {"drop-2"},
        "drop-2": {"drop-1"},
        "drop-3": set(),
    }
    assert members[2].probability_best == 0.0
    trials = make_trials({(1,): 1.02, (1, 2): 1.02, (1, 2, 3): 1.02})
    # made equal on purpose; faster and smaller, so that the deepest beats the others
    assert keys_of(select(trials)) == ["drop-1-2-3"]
    assert select(trials).members[0].tied_with == ()  # ties stay within a structure


def test_tokens_decide_and_not_documents() -> None:
    # the second is worse in a hundred long documents and far better in a hundred short ones
    counts = np.repeat([1000.0, 10.0], 100)
    trials = make_trials({(1,): 1.02, (2,): 1.03})
    first, second = (trial.evaluation.qualities[PROXY].loss for trial in trials)
    table = {first: (2.0 * counts, counts), second: (np.repeat([2.02, 1.5], 100) * counts, counts)}
    members = select(trials, load_losses=lambda quality: table[quality.loss]).members
    assert [member.probability_best for member in members] == [1.0, 0.0]
    assert all(member.tied_with == () for member in members)


# ---- agreement


def finish(frontier: Frontier, finals: dict[str, float]) -> list[DistillResult]:
    """Distilled models whose validation losses are given by key."""
    results = []
    for order, member in enumerate(frontier.members):
        result = factory.make_distilled(member, order=order)
        loss = finals[result.candidate.key]
        results.append(
            msgspec.structs.replace(result, validation=msgspec.structs.replace(result.validation, loss=loss))
        )
    return results


def agreement_of(frontier: Frontier, distilled: Sequence[DistillResult]) -> Agreement:
    """Agreement where the frontier's members are all that was scored."""
    trials = [
        TrialRecord(number=member.trial_number, state="COMPLETE", evaluation=member.evaluation)
        for member in frontier.members
    ]
    return frontiers.measure_agreement(trials, distilled, proxy=frontier.proxy)


def test_agreement_counted_by_hand() -> None:
    ratios = {(1,): 1.01, (2,): 1.02, (3,): 1.03, (1, 2): 1.05, (1, 3): 1.06}
    frontier = select(make_trials(ratios))
    # one dropped: 1 < 3 < 2, so (1,2) and (1,3) agree and (2,3) does not; two dropped: turned round
    finals = {"drop-1": 2.1, "drop-2": 2.3, "drop-3": 2.2, "drop-1-2": 2.5, "drop-1-3": 2.4}
    agreement = agreement_of(frontier, finish(frontier, finals))
    assert (agreement.concordant, agreement.discordant) == (2, 2)
    assert agreement.kendall_tau == 0
    assert agreement.proxy == PROXY
    assert agreement.verdict.startswith("Cannot tell: ")
    assert "2 of 4 pairs" in agreement.verdict


def test_depths_are_never_pooled_and_neither_equal_finals_nor_strangers_count() -> None:
    # across depths the order is plain; within them there is nothing to compare
    deep = select(make_trials({(1,): 1.01, (1, 2): 1.05, (1, 2, 3): 1.09}))
    pair = select(make_trials({(1,): 1.01, (2,): 1.02}))
    for frontier, finals in (
        (deep, {"drop-1": 2.1, "drop-1-2": 2.2, "drop-1-2-3": 2.3}),
        (pair, {"drop-1": 2.0, "drop-2": 2.0}),
    ):
        agreement = agreement_of(frontier, finish(frontier, finals))
        assert (agreement.concordant, agreement.discordant) == (0, 0)
        assert agreement.verdict.startswith("Cannot tell: ")
        assert frontier is deep or "no two distilled models have the same structure" not in agreement.verdict
    assert agreement_of(deep, finish(deep, {"drop-1": 2.1, "drop-1-2": 2.2, "drop-1-2-3": 2.3})).kendall_tau is None
    results = finish(pair, {"drop-1": 2.0, "drop-2": 2.1})
    stranger = msgspec.structs.replace(results[1], candidate=factory.make_candidate(7))
    agreement = agreement_of(pair, [*results, stranger])
    assert (agreement.concordant, agreement.discordant) == (1, 0)


@pytest.mark.parametrize(("turned", "told"), [(False, "+1.00"), (True, "-1.00")])
def test_ten_pairs_are_enough_to_say_something_and_nine_are_not(turned: bool, told: str) -> None:
    ratios = {(layer,): 1.01 + 0.01 * layer for layer in range(5)}
    frontier = select(make_trials(ratios))
    finals = {f"drop-{layer}": 2 + (-0.1 if turned else 0.1) * layer for layer in range(5)}
    agreement = agreement_of(frontier, finish(frontier, finals))
    assert agreement.concordant + agreement.discordant == 10
    assert f"{0 if turned else 10} of 10 pairs" in agreement.verdict
    assert f"Kendall tau {told}" in agreement.verdict
    ratios = {(layer,): 1.01 + 0.01 * layer for layer in range(4)}  # six pairs
    ratios |= {(0, layer): 1.1 + 0.01 * layer for layer in range(1, 4)}  # three
    frontier = select(make_trials(ratios), size=7)
    finals = {member.evaluation.candidate.key: 2 + 0.1 * i for i, member in enumerate(frontier.members)}
    agreement = agreement_of(frontier, finish(frontier, finals))
    assert (agreement.concordant, agreement.discordant) == (9, 0)
    assert agreement.verdict.startswith("Cannot tell: ")
