"""Fidelity: who is asked, and whether a score ranks; by hand-worked cases and against brute force over pairs."""

import itertools
import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from seed.errors import StudyError
from seed.evidence import (
    DepthFidelity,
    FidelityRow,
    FidelityStudy,
    FidelitySummary,
    FinalScore,
)
from seed.optimize import fidelity
from seed.records import Candidate

from ..reporting import factory

DENSE = 2.0
DENSE_TEST = 2.1


def make_row(
    dropped: tuple[int, ...], *, losses: dict[str, float], tests: Sequence[float], near: bool = True
) -> FidelityRow:
    """A row whose finals have these test losses, and validation losses 0.05 below."""
    return FidelityRow(
        candidate=factory.make_candidate(*dropped),
        near_best=near,
        losses=losses,
        seconds={rung: float(place + 1) for place, rung in enumerate(losses)},
        finals=tuple(
            FinalScore(rng_seed=s, validation_loss=test - 0.05, test_loss=test, best_step=40, seconds=60.0 + s)
            for s, test in enumerate(tests)
        ),
    )


def make_study(rows: Sequence[FidelityRow]) -> FidelityStudy:
    return FidelityStudy(
        study="demo",
        model="demo",
        dense_validation_loss=DENSE,
        dense_test_loss=DENSE_TEST,
        near_margin=0.03,
        settings={"steps": 400},
        rows=tuple(rows),
    )


def make_noisy_rows(depth: int, *, num: int, noises: dict[str, float], rng_seed: int = 3) -> list[FidelityRow]:
    """Rows of one depth: every rung sees the candidate's true loss with its own noise, finals with 0.02."""
    rng = np.random.default_rng(rng_seed)
    rows = []
    for place, dropped in enumerate(itertools.islice(itertools.combinations(range(12), depth), num)):
        true = 0.3 + 0.02 * place
        losses = {rung: DENSE + true + rng.normal(0, noise) for rung, noise in noises.items()}
        tests = [DENSE_TEST + true / 2 + rng.normal(0, 0.02) for _ in range(2)]
        rows.append(make_row(dropped, losses=losses, tests=tests, near=place < num // 2))
    return rows


def summarize(rows: Sequence[FidelityRow]) -> DepthFidelity:
    """The summary of the one depth there is."""
    (depth,) = fidelity.summarize_study(make_study(rows)).depths
    return depth


# --- who is asked


def make_scored(depth: int, losses: Sequence[float]) -> list[tuple[Candidate, float]]:
    subsets = itertools.islice(itertools.combinations(range(12), depth), len(losses))
    return [(factory.make_candidate(*dropped), loss) for dropped, loss in zip(subsets, losses, strict=True)]


def choose(losses: Sequence[float], *, per_depth: int, near_margin: float = 0.03) -> list[tuple[float, bool]]:
    """Losses chosen among these of one depth, handed in backwards."""
    scored = make_scored(1, losses)
    known = {candidate.key: loss for candidate, loss in scored}
    chosen = fidelity.choose_candidates(scored[::-1], depths=[1], per_depth=per_depth, near_margin=near_margin)
    return [(known[candidate.key], near) for candidate, near in chosen]


NEAR = [3.0, 3.005, 3.01, 3.015, 3.02]  # PPL within 1.03 of the best
REST = [3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7]


def test_half_are_near_the_best_and_both_halves_are_spread_from_end_to_end() -> None:
    assert choose(NEAR + REST, per_depth=6) == [
        (3.0, True),
        (3.01, True),
        (3.02, True),
        (3.1, False),
        (3.4, False),
        (3.7, False),
    ]


def test_an_odd_one_is_near_and_a_lone_one_of_the_rest_is_the_worst() -> None:
    assert choose(NEAR + REST, per_depth=1) == [(3.0, True)]
    assert choose(NEAR + REST, per_depth=2) == [(3.0, True), (3.7, False)]
    assert choose(NEAR + REST, per_depth=3) == [(3.0, True), (3.02, True), (3.7, False)]


def test_a_short_half_is_filled_from_the_other() -> None:
    assert choose([3.0, *REST], per_depth=6) == [(3.0, True), *((loss, False) for loss in (3.1, 3.2, 3.4, 3.5, 3.7))]
    assert choose([*NEAR, 3.5], per_depth=5) == [*((loss, True) for loss in (3.0, 3.005, 3.01, 3.02)), (3.5, False)]


def test_all_are_taken_where_there_are_fewer() -> None:
    losses = NEAR + REST[:2]
    assert choose(losses, per_depth=20) == [(loss, loss < 3.05) for loss in losses]


def test_the_margin_is_of_perplexity_and_holds_its_end() -> None:
    inside, outside = 3.0 + math.log(1.1) - 1e-9, 3.0 + math.log(1.1) + 1e-9
    assert choose([3.0, inside, outside], per_depth=3, near_margin=0.1) == [
        (3.0, True),
        (inside, True),
        (outside, False),
    ]


def test_depths_are_judged_by_their_own_best_and_come_in_order() -> None:
    scored = make_scored(2, [4.0, 4.5]) + make_scored(1, [3.0, 3.5])
    chosen = fidelity.choose_candidates(scored, depths=(2, 1), per_depth=2)
    assert [(len(c.dropped_layers), near) for c, near in chosen] == [(1, True), (1, False), (2, True), (2, False)]


@pytest.mark.parametrize("count", range(2, 30))
def test_spread_ranks_are_different_and_reach_both_ends(count: int) -> None:
    for total in range(count, 60):
        ranks = fidelity.spread_ranks(total, count=count)
        assert len(set(ranks)) == count
        assert (ranks[0], ranks[-1]) == (0, total - 1)
        gaps = np.diff(ranks)
        assert gaps.max() - gaps.min() <= 1


def test_a_depth_that_was_not_scored_is_an_error() -> None:
    with pytest.raises(StudyError, match="no candidate with 3 layers dropped was scored; there are: 1, 2"):
        fidelity.choose_candidates(make_scored(1, [3.0]) + make_scored(2, [3.0]), depths=[1, 3], per_depth=4)
    with pytest.raises(StudyError, match="per_depth = 0"):
        fidelity.choose_candidates(make_scored(1, [3.0]), depths=[1], per_depth=0)


def test_draws_keep_each_half_as_large_as_it_is_and_are_the_same_every_time() -> None:
    near = np.array([True, False, True, True, False, False, False])
    counts = fidelity.draw_counts(near)
    assert counts.shape == (fidelity.BOOTSTRAP_DRAWS, 7)
    assert set(counts[:, near].sum(axis=1)) == {3}
    assert set(counts[:, ~near].sum(axis=1)) == {4}
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.1)
    assert (counts == fidelity.draw_counts(near)).all()
    assert fidelity.draw_counts(np.array([True])).tolist() == [[1.0]] * fidelity.BOOTSTRAP_DRAWS


# --- the study


def test_a_perfect_score_and_a_reversed_one() -> None:
    rows = [
        make_row((i,), losses={"none": 3.0 + 0.1 * i, "upside_down": 3.0 - 0.1 * i}, tests=[2.2 + 0.01 * i] * 2)
        for i in range(6)
    ]
    depth = summarize(rows)
    perfect, reversed_ = depth.rungs
    assert (perfect.tau.value, perfect.tau.low, perfect.tau.high) == (1, 1, 1)
    assert (reversed_.tau.value, reversed_.tau.low, reversed_.tau.high) == (-1, -1, -1)
    assert perfect.top1_regret == 0
    assert reversed_.top1_regret == pytest.approx(math.exp(0.05) - 1)
    assert depth.ceiling.tau.value == 1  # identical seeds
    assert depth.ceiling.top1_regret == 0
    (difference,) = depth.differences
    assert (difference.tau.value, difference.favours) == (2, "none")


def test_tau_is_the_mean_over_seeds_and_not_tau_with_their_mean() -> None:
    scores = [3.0, 3.1, 3.2]
    tests = [(2.2, 2.5), (2.3, 2.32), (2.4, 2.31)]  # seed 0 agrees; seed 1 has all three pairs against it
    depth = summarize(
        [
            make_row((i,), losses={"none": score}, tests=test)
            for i, (score, test) in enumerate(zip(scores, tests, strict=True))
        ]
    )
    (rung,) = depth.rungs
    assert rung.tau.value == pytest.approx((1 - 1) / 2)
    assert depth.ceiling.tau.value == -1
    assert rung.tau.low is None  # three candidates have no interval
    # means 2.35, 2.31, 2.355: the rung picks the first, the best is the second
    assert rung.top1_regret == pytest.approx(math.exp(0.04) - 1)
    # seed 0 picks the first, judged by seed 1: 2.5 against 2.31; seed 1 picks the third: 2.4 against 2.2
    assert depth.ceiling.top1_regret == pytest.approx((math.exp(0.19) + math.exp(0.2)) / 2 - 1)


def test_recovery_and_seconds_are_medians_and_undamaged_candidates_have_nothing_to_recover() -> None:
    rows = [
        make_row((0,), losses={"none": 3.0, "closed_form": 2.5}, tests=[2.15]),  # half; final to 2.1: nine tenths
        make_row((1,), losses={"none": 2.4, "closed_form": 2.3}, tests=[2.25]),  # a quarter; final to 2.2: half
        make_row((2,), losses={"none": 4.0, "closed_form": 2.2}, tests=[2.45]),  # nine tenths; final to 2.4: eight
        make_row((3,), losses={"none": 1.9, "closed_form": 1.95}, tests=[2.0]),
    ]
    rows[0] = msgspec.structs.replace(rows[0], seconds={"none": 1.0, "closed_form": 90.0})
    depth = summarize(rows)
    none, closed_form = depth.rungs
    assert (none.recovery, closed_form.recovery) == (0, pytest.approx(0.5))
    assert depth.ceiling.recovery == pytest.approx(0.8)
    assert (none.seconds, closed_form.seconds, depth.ceiling.seconds) == (1, 2, 60)


def test_without_the_raw_loss_there_is_no_recovery_and_without_a_second_seed_no_ceiling() -> None:
    depth = summarize([make_row((i,), losses={"closed_form": 3.0 + i}, tests=[2.2 + i]) for i in range(3)])
    assert depth.rungs[0].recovery is None
    assert depth.ceiling.recovery is None
    assert depth.ceiling.tau.value is None
    assert depth.ceiling.top1_regret is None
    assert depth.num_rng_seeds == 1


def test_near_tau_looks_at_the_near_only() -> None:
    scores = [3.0, 3.1, 3.2, 3.5, 3.6, 3.7]
    finals = [2.3, 2.2, 2.1, 2.5, 2.6, 2.7]  # near ones in reverse, the rest in order
    rows = [
        make_row((i,), losses={"none": score}, tests=[final], near=i < 3)
        for i, (score, final) in enumerate(zip(scores, finals, strict=True))
    ]
    (rung,) = summarize(rows).rungs
    assert rung.near_tau.value == -1
    assert rung.tau.value == pytest.approx((12 - 3) / 15)


def test_depths_are_never_pooled() -> None:
    rows = []
    for depth, base in ((1, 3.0), (2, 5.0)):  # in reverse within each depth, in order across them
        for i, dropped in enumerate(itertools.islice(itertools.combinations(range(12), depth), 6)):
            rows.append(make_row(dropped, losses={"none": base + 0.1 * i}, tests=[base - 0.1 * i] * 2))
    summary = fidelity.summarize_study(make_study(rows))
    assert [depth.num_dropped for depth in summary.depths] == [1, 2]
    assert [depth.rungs[0].tau.value for depth in summary.depths] == [-1, -1]


def test_rows_in_the_making_are_left_out_and_counted() -> None:
    rows = make_noisy_rows(2, num=8, noises={"none": 0.1, "closed_form": 0.05})
    unfinished = msgspec.structs.replace(rows[0], finals=rows[0].finals[:1])
    unscored = msgspec.structs.replace(rows[1], losses={"none": 1.0})
    depth = summarize([unfinished, unscored, *rows[2:]])
    assert (depth.num_candidates, depth.num_left_out) == (6, 2)
    assert depth.rungs == summarize(rows[2:]).rungs
    assert fidelity.summarize_study(make_study([msgspec.structs.replace(rows[0], finals=())])).depths == ()


def test_order_of_rows_changes_nothing() -> None:
    rows = make_noisy_rows(2, num=12, noises={"none": 0.1, "closed_form": 0.05})
    assert fidelity.summarize_study(make_study(rows)) == fidelity.summarize_study(make_study(rows[::-1]))


def test_intervals_hold_their_point_and_shrink_with_candidates() -> None:
    widths = []
    for num in (8, 60):
        tau = summarize(make_noisy_rows(2, num=num, noises={"none": 0.02 * num / 4})).rungs[0].tau
        assert tau.value is not None
        assert tau.low is not None
        assert tau.high is not None
        assert tau.low < tau.value < tau.high
        widths.append(tau.high - tau.low)
    assert widths[1] < 0.7 * widths[0]


def test_summary_survives_json() -> None:
    rows = make_noisy_rows(2, num=8, noises={"none": 0.1, "closed_form": 0.05})
    flat = [msgspec.structs.replace(row, losses={**row.losses, "closed_form": 3.0}) for row in rows]  # tau undefined
    summary = fidelity.summarize_study(make_study(flat))
    assert summary.depths[0].rungs[1].tau.value is None
    assert summary.depths[0].differences[0].favours is None
    assert msgspec.json.decode(msgspec.json.encode(summary), type=FidelitySummary) == summary


# --- rung against rung


def test_rungs_that_say_the_same_differ_by_exactly_nothing() -> None:
    rows = make_noisy_rows(2, num=15, noises={"none": 0.1}) + make_noisy_rows(3, num=15, noises={"none": 0.1})
    rows = [msgspec.structs.replace(row, losses={**row.losses, "closed_form": row.losses["none"]}) for row in rows]
    depths = fidelity.summarize_study(make_study(rows)).depths
    assert [depth.num_dropped for depth in depths] == [2, 3]
    for (pair,) in (depth.differences for depth in depths):
        assert (pair.tau.value, pair.tau.low, pair.tau.high) == (0, 0, 0)
        assert pair.favours is None


def test_differences_are_paired() -> None:
    """Two rungs with the same noise agree draw by draw, so their difference is far surer than either tau."""
    rows = make_noisy_rows(2, num=30, noises={"none": 0.15})
    rows = [
        msgspec.structs.replace(row, losses={**row.losses, "closed_form": row.losses["none"] + 0.004 * (i % 3)})
        for i, row in enumerate(rows)
    ]
    depth = summarize(rows)
    (pair,) = depth.differences
    tau = depth.rungs[0].tau
    assert tau.low is not None
    assert tau.high is not None
    assert pair.tau.low is not None
    assert pair.tau.high is not None
    assert pair.tau.high - pair.tau.low < 0.25 * (tau.high - tau.low)


def test_a_better_rung_is_favoured_whichever_comes_first_and_equal_ones_are_not() -> None:
    rows = make_noisy_rows(2, num=40, noises={"none": 0.8, "closed_form": 0.02, "short_distillation_30": 0.02})
    turned = [msgspec.structs.replace(row, losses=dict(reversed(row.losses.items()))) for row in rows]
    worse, _, equal = summarize(rows).differences
    better = summarize(turned).differences[-1]
    assert (worse.one, worse.other) == (better.other, better.one) == ("none", "closed_form")
    assert worse.tau.value is not None
    assert worse.tau.value < 0
    assert better.tau.value == -worse.tau.value
    assert worse.favours == better.favours == "closed_form"
    assert equal.favours is None
