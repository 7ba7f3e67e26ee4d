"""What strategies reached: by sums worked out by hand, paired by document and random seed, and gaps that are told."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from seed.evidence import ComparedFinal, Comparison, ComparisonSummary, Reached, StrategyRun
from seed.optimize.comparison import REFERENCE, summarize_comparison
from seed.records import Estimate
from tests.reporting import factory

Dropped = tuple[int, ...]
Sums = Sequence[float]
COUNTS = (10, 30)
DENSE = (20.0, 60.0)  # 2 nats per token in both documents
T_1, T_2 = 12.7062047, 4.3026527  # Student's t at 0.975 with one and two degrees of freedom
NOTHING = Estimate(value=None, low=None, high=None)


def make_run(strategy: str, *picks: Dropped, cost: float = 100.0, rng_seed: int | None = None) -> StrategyRun:
    return StrategyRun(
        strategy=strategy,
        rng_seed=rng_seed,
        cost=cost,
        num_scores=1,
        picks=tuple(factory.make_candidate(*dropped) for dropped in picks),
    )


def make_finals(sums: dict[Dropped, Sums | dict[int, Sums]]) -> tuple[ComparedFinal, ...]:
    """Finals with these summed losses: of random seed 0, or of each."""
    return tuple(
        ComparedFinal(
            candidate=factory.make_candidate(*dropped),
            rng_seed=rng_seed,
            validation_loss=2.7,
            test_sums=list(of_documents),
            seconds=9.0,
        )
        for dropped, given in sums.items()
        for rng_seed, of_documents in (given if isinstance(given, dict) else {0: given}).items()
    )


def compare(
    runs: Sequence[StrategyRun],
    sums: dict[Dropped, Sums | dict[int, Sums]],
    *,
    counts: Sequence[int] = COUNTS,
    dense: Sums = DENSE,
) -> Comparison:
    return Comparison(
        study="demo",
        model="demo",
        rung="closed_form",
        budget=1000.0,
        num_candidates=298,
        dense_test_sums=list(dense),
        test_counts=list(counts),
        settings={},
        runs=tuple(runs),
        finals=make_finals(sums),
    )


def summarize(*args: Any, **options: Any) -> ComparisonSummary:
    return summarize_comparison(compare(*args, **options))


def at(per_token: float, *, above: Sums = DENSE, counts: Sequence[int] = COUNTS) -> list[float]:
    """Sums that lie above others by so much per token, in every document."""
    return [base + per_token * count for base, count in zip(above, counts, strict=True)]


def is_about(estimate: Estimate, value: float, low: float, high: float) -> bool:
    return (estimate.value, estimate.low, estimate.high) == pytest.approx((value, low, high), rel=1e-7, abs=1e-12)


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def only(summary: ComparisonSummary, strategy: str) -> Reached:
    (row,) = [row for row in summary.rows if row.strategy == strategy]
    return row


# ---- values


def test_the_ratio_is_that_of_the_mean_loss_per_token() -> None:
    row = only(summarize([make_run("greedy", (3,))], {(3,): [23.0, 61.0]}), "greedy")
    assert row.ppl_ratio.value == pytest.approx(math.exp((3 + 1) / (10 + 30)))
    assert (row.num_dropped, row.picks) == (1, (factory.make_candidate(3),))


def test_losses_are_averaged_over_the_seeds_of_distillation() -> None:
    row = only(summarize([make_run("greedy", (3,))], {(3,): {7: at(0.1), 2: at(0.2), 9: at(0.6)}}), "greedy")
    assert row.ppl_ratio.value == pytest.approx(math.exp(0.3))


def test_losses_are_averaged_over_runs_each_with_its_own_pick() -> None:
    runs = [make_run("random", *picks, rng_seed=seed) for seed, picks in enumerate([[(1,)], [(2,)], [(1,)]])]
    row = only(summarize(runs, {(1,): at(0.1), (2,): at(0.4)}), "random")
    assert row.ppl_ratio.value == pytest.approx(math.exp(0.2))
    assert [pick.dropped_layers for pick in row.picks] == [(1,), (2,), (1,)]
    assert (row.num_runs, row.num_without) == (3, 0)


def test_excess_is_the_perplexity_over_that_of_the_reference_less_one() -> None:
    summary = summarize(
        [make_run(REFERENCE, (1,)), make_run("greedy", (2,)), make_run("random", (3,))],
        {(1,): [21.0, 64.0], (2,): [22.0, 67.0], (3,): [20.0, 63.0]},
    )
    assert only(summary, "greedy").excess.value == pytest.approx(math.expm1(4 / 40))
    assert only(summary, "random").excess.value == pytest.approx(math.expm1(-2 / 40))
    assert only(summary, REFERENCE).excess == Estimate(value=0.0, low=0.0, high=0.0)


def test_another_reference_can_be_named() -> None:
    comparison = compare([make_run(REFERENCE, (1,)), make_run("greedy", (2,))], {(1,): at(0.1), (2,): at(0.4)})
    summary = summarize_comparison(comparison, reference="greedy")
    assert summary.reference == "greedy"
    assert only(summary, REFERENCE).excess.value == pytest.approx(math.expm1(-0.3))


def test_costs_are_means_over_all_runs() -> None:
    runs = [make_run("random", (1,), cost=100.0), make_run("random", cost=400.0)]
    assert only(summarize(runs, {(1,): at(0.1)}), "random").cost == 250.0


# ---- intervals


def test_what_does_not_vary_has_an_interval_without_width() -> None:
    summary = summarize([make_run(REFERENCE, (1,)), make_run("greedy", (2,))], {(1,): at(0.1), (2,): at(0.3)})
    row = only(summary, "greedy")
    assert is_about(row.ppl_ratio, *[math.exp(0.3)] * 3)
    assert is_about(row.excess, *[math.expm1(0.2)] * 3)


def test_documents_that_disagree_widen_the_interval() -> None:
    row = only(summarize([make_run("greedy", (3,))], {(3,): [21.0, 69.0]}), "greedy")
    half = T_1 * 0.075  # 1.5 off what their lengths would have it, times two documents over 40 tokens
    assert is_about(row.ppl_ratio, math.exp(0.25), math.exp(0.25 - half), math.exp(0.25 + half))


def test_seeds_that_disagree_widen_the_interval() -> None:
    row = only(summarize([make_run("greedy", (3,))], {(3,): {0: at(0.1), 1: at(0.5)}}), "greedy")
    assert is_about(row.ppl_ratio, math.exp(0.3), math.exp(0.3 - 0.2 * T_1), math.exp(0.3 + 0.2 * T_1))


def test_runs_that_disagree_widen_the_interval() -> None:
    runs = [make_run("random", (pick,), rng_seed=pick) for pick in (1, 2)]
    summary = summarize([make_run(REFERENCE, (3,)), *runs], {(1,): at(0.1), (2,): at(0.5), (3,): at(0.2)})
    row = only(summary, "random")
    assert is_about(row.ppl_ratio, math.exp(0.3), math.exp(0.3 - 0.2 * T_1), math.exp(0.3 + 0.2 * T_1))
    assert is_about(row.excess, math.expm1(0.1), math.expm1(0.1 - 0.2 * T_1), math.expm1(0.1 + 0.2 * T_1))


def test_runs_of_the_reference_that_disagree_make_it_harder_to_beat() -> None:
    runs = [make_run(REFERENCE, (pick,), rng_seed=pick) for pick in (1, 2)]
    summary = summarize([*runs, make_run("greedy", (3,))], {(1,): at(0.1), (2,): at(0.5), (3,): at(0.2)})
    excess = only(summary, "greedy").excess
    assert is_about(excess, math.expm1(-0.1), math.expm1(-0.1 - 0.2 * T_1), math.expm1(-0.1 + 0.2 * T_1))
    assert only(summary, REFERENCE).excess == Estimate(value=0.0, low=0.0, high=0.0)


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.1])
def test_intervals_grow_as_seeds_disagree(gap: float) -> None:
    found = [
        only(summarize([make_run("greedy", (3,))], {(3,): {0: at(0.3 - g), 1: at(0.3 + g)}}), "greedy").ppl_ratio
        for g in (gap, gap + 0.05)
    ]
    assert width(found[0]) < width(found[1])
    assert found[0].value == pytest.approx(found[1].value)


def test_the_interval_is_that_of_a_ratio_of_sums_over_documents() -> None:
    rng = np.random.default_rng(4)
    counts = rng.integers(50, 400, 300)
    above = 0.1 + 0.05 * rng.standard_normal(300)
    row = only(
        summarize(
            [make_run("greedy", (3,))], {(3,): (above * counts).tolist()}, counts=counts.tolist(), dense=[0.0] * 300
        ),
        "greedy",
    )
    mean = (above * counts).sum() / counts.sum()
    error = math.sqrt((((above - mean) * counts) ** 2).sum()) / counts.sum()
    wanted = [mean - 1.96 * error, mean, mean + 1.96 * error]
    found = [row.ppl_ratio.low, row.ppl_ratio.value, row.ppl_ratio.high]
    np.testing.assert_allclose(np.log(np.array(found, dtype=float)), wanted, atol=0.02 * error)


def test_the_same_losses_have_no_excess_though_documents_and_seeds_differ() -> None:
    sums: dict[int, Sums] = {0: [21.0, 75.0], 1: [26.0, 61.0]}
    summary = summarize([make_run(REFERENCE, (1,)), make_run("greedy", (2,))], {(1,): sums, (2,): sums})
    row = only(summary, "greedy")
    assert row.excess == Estimate(value=0.0, low=0.0, high=0.0)
    assert width(row.ppl_ratio) > 0.1


def test_differences_are_paired_by_document_and_seed() -> None:
    theirs: dict[int, Sums] = {4: [21.0, 75.0], 2: [26.0, 61.0]}
    ours: dict[int, Sums] = {seed: at(0.2, above=theirs[seed]) for seed in (2, 4)}  # and not in the order given
    row = only(summarize([make_run(REFERENCE, (1,)), make_run("greedy", (2,))], {(1,): theirs, (2,): ours}), "greedy")
    assert is_about(row.excess, *[math.expm1(0.2)] * 3)


def test_long_documents_count_for_more() -> None:
    row = only(summarize([make_run("greedy", (3,))], {(3,): [21.0, 75.0]}, counts=(10, 30)), "greedy")
    assert row.ppl_ratio.value == pytest.approx(math.exp(16 / 40))


@pytest.mark.parametrize("broken", [(1,), (2,)])
def test_a_student_that_is_no_model_any_more_comes_last_without_a_value(broken: Dropped) -> None:
    sums: dict[Dropped, Any] = {(1,): at(0.1), (2,): at(0.3)} | {broken: [None, 20.0]}
    summary = summarize([make_run(REFERENCE, (1,)), make_run("greedy", (2,))], sums)
    last = summary.rows[-1]
    assert [pick.dropped_layers for pick in last.picks] == [broken]
    assert last.ppl_ratio == NOTHING
    assert only(summary, "greedy").excess == NOTHING
    assert summary.rows[0].ppl_ratio.value is not None


# ---- gaps


def test_a_pick_that_is_not_distilled_under_every_seed_is_left_out() -> None:
    summary = summarize(
        [make_run(REFERENCE, (1,), (1, 2)), make_run("greedy", (3,), (1, 2))],
        {(1,): {0: at(0.1), 1: at(0.1)}, (3,): {0: at(0.0)}, (1, 2): {0: at(0.4), 1: at(0.4)}},
    )
    assert [(row.num_dropped, row.strategy) for row in summary.rows] == [(1, REFERENCE), (2, "greedy"), (2, REFERENCE)]


def test_a_strategy_with_one_pick_not_distilled_is_left_out_at_that_depth() -> None:
    runs = [make_run("random", (1,), rng_seed=0), make_run("random", (2,), rng_seed=1), make_run("greedy", (1,))]
    summary = summarize(runs, {(1,): at(0.1)})
    assert [row.strategy for row in summary.rows] == ["greedy"]


def test_a_strategy_that_chose_nothing_of_a_depth_has_no_row_there() -> None:
    runs = [make_run(REFERENCE, (1,), (1, 2)), make_run("greedy", (1,)), make_run("magnitude")]
    summary = summarize(runs, {(1,): at(0.1), (1, 2): at(0.4)})
    assert {(row.num_dropped, row.strategy) for row in summary.rows} == {
        (1, REFERENCE),
        (1, "greedy"),
        (2, REFERENCE),
    }


def test_runs_that_chose_nothing_of_a_depth_are_counted_and_not_averaged() -> None:
    runs = [
        make_run("random", (1,), (1, 2), rng_seed=0),
        make_run("random", (3,), rng_seed=1),
        make_run("random", rng_seed=2),
    ]
    shallow, deep = summarize(runs, {(1,): at(0.1), (3,): at(0.3), (1, 2): at(0.5)}).rows
    assert (shallow.num_runs, shallow.num_without) == (3, 1)
    assert shallow.ppl_ratio.value == pytest.approx(math.exp(0.2))
    assert (deep.num_runs, deep.num_without) == (3, 2)
    assert deep.ppl_ratio.value == pytest.approx(math.exp(0.5))


@pytest.mark.parametrize("picks", [((1,),), ((1,), (2, 3))], ids=["not chosen", "not distilled"])
def test_without_picks_of_the_reference_there_is_no_excess(picks: tuple[Dropped, ...]) -> None:
    summary = summarize([make_run(REFERENCE, *picks), make_run("greedy", (1, 2))], {(1,): at(0.1), (1, 2): at(0.4)})
    row = only(summary, "greedy")
    assert row.excess == NOTHING
    assert row.ppl_ratio.value == pytest.approx(math.exp(0.4))


def test_without_the_reference_there_is_no_excess() -> None:
    assert only(summarize([make_run("greedy", (1,))], {(1,): at(0.1)}), "greedy").excess == NOTHING


@pytest.mark.parametrize("runs", [[], [make_run(REFERENCE)], [make_run(REFERENCE, (1,))]])
def test_before_anything_is_distilled_there_are_no_rows(runs: list[StrategyRun]) -> None:
    assert summarize(runs, {}).rows == ()


# ---- order


def test_within_a_depth_the_best_comes_first_then_the_cheaper_then_by_name() -> None:
    runs = [
        make_run("taylor", (1,), (1, 2), cost=9.0),
        make_run("worst", (2,), (1, 3), cost=1.0),
        make_run("greedy", (1,), cost=9.0),
        make_run(REFERENCE, (1,), cost=5.0),
        make_run("best", (3,), (2, 3), cost=99.0),
    ]
    losses = {(1,): 0.2, (2,): 0.3, (3,): 0.1, (1, 2): 0.5, (1, 3): 0.4, (2, 3): 0.6}
    summary = summarize(runs, {dropped: at(loss) for dropped, loss in losses.items()})
    assert [(row.num_dropped, row.strategy) for row in summary.rows] == [
        *((1, name) for name in ("best", REFERENCE, "greedy", "taylor", "worst")),
        *((2, name) for name in ("worst", "taylor", "best")),
    ]


def test_the_same_records_give_the_same_numbers_in_whatever_order_finals_came() -> None:
    rng = np.random.default_rng(0)
    counts, dense = [10] * 20, [20.0] * 20
    sums: dict[Dropped, Sums | dict[int, Sums]] = {
        dropped: {seed: rng.normal(22, 1, 20).tolist() for seed in range(3)} for dropped in [(1,), (2,), (3,)]
    }
    runs = [make_run(REFERENCE, (1,)), make_run("greedy", (2,)), make_run("random", (3,))]
    comparison = compare(runs, sums, counts=counts, dense=dense)
    turned = msgspec.structs.replace(comparison, finals=comparison.finals[::-1])
    summary = summarize_comparison(comparison)
    assert summarize_comparison(comparison) == summary
    assert summarize_comparison(turned) == summary
    assert len({row.ppl_ratio.low for row in summary.rows}) == 3
