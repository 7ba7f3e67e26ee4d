"""The screen: its interval by hand and by known quantiles, and over simulated studies what it loses and what it saves."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from seed.optimize.screening import NEEDED_PAIRS, Screen, predict_lowest
from seed.records import Evaluation
from seed.stats import student_t

from ..reporting import factory

STRUCTURE = factory.make_latency(10).structure
CANDIDATE = factory.make_candidate(3, 7)


def make_evaluation(cheap: float, wanted: float, *, structure: str = STRUCTURE) -> Evaluation:
    """An evaluation with these log PPL ratios by closed form and after short distillation."""
    evaluation = factory.make_evaluation((3, 7), math.exp(wanted))
    return msgspec.structs.replace(
        evaluation,
        qualities=evaluation.qualities | {"closed-form": factory.make_quality(math.exp(cheap))},
        latency=msgspec.structs.replace(evaluation.latency, structure=structure),
    )


def make_screen(cheap: Sequence[float], wanted: Sequence[float], *, keep: int = 1) -> Screen:
    screen = Screen(keep=keep)
    for pair in zip(cheap, wanted, strict=True):
        screen.learn(make_evaluation(*pair))
    return screen


def judge(screen: Screen, cheap: float, *, structure: str = STRUCTURE) -> str | None:
    return screen.judge(CANDIDATE, factory.make_quality(math.exp(cheap)), structure=structure)


# ---- the interval


def test_the_interval_of_a_regression_worked_by_hand() -> None:
    # slope 3 / 5, line 2 + 0.6 (x - 1.5); residuals -.1, .3, -.3, .1: variance 0.2 / 2; at 5: 1 + 1/4 + 3.5^2 / 5 = 3.7
    found = predict_lowest(np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 2.0, 3.0]), 5.0)
    assert found == pytest.approx(4.1 - student_t(2, confidence=0.998) * math.sqrt(0.37))
    at_mean = predict_lowest(np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 2.0, 3.0]), 1.5)
    assert at_mean == pytest.approx(2.0 - student_t(2, confidence=0.998) * math.sqrt(0.125))


def test_equal_scores_predict_nothing() -> None:
    assert predict_lowest(np.full(10, 0.2), np.linspace(0, 1, 10), 5.0) == -math.inf
    assert judge(make_screen([0.25] * 10, np.linspace(0, 1, 10)), 5.0) is None


def test_one_prediction_in_a_thousand_is_too_high() -> None:
    rng = np.random.default_rng(1)
    misses, draws = 0, 4000
    for _ in range(draws):
        cheap = rng.normal(0, 1, 13)
        wanted = 0.5 * cheap + rng.normal(0, 0.1, 13)
        misses += wanted[-1] < predict_lowest(cheap[:-1], wanted[:-1], cheap[-1])
    assert misses <= 14  # 4 expected; more than 14 once in 30,000 times


# ---- what is skipped


def test_nothing_is_skipped_with_few_pairs() -> None:
    cheap = np.linspace(0, 1, NEEDED_PAIRS)
    wanted = 0.5 * cheap + 0.01 * (-1) ** np.arange(NEEDED_PAIRS)
    for count in range(NEEDED_PAIRS):
        assert judge(make_screen(cheap[:count], wanted[:count]), 50.0) is None
    assert judge(make_screen(cheap, wanted), 50.0) is not None


def test_nothing_is_skipped_before_as_many_are_found_as_are_wanted() -> None:
    cheap = np.linspace(0, 1, 12)
    wanted = 0.5 * cheap + 0.01 * (-1) ** np.arange(12)
    assert judge(make_screen(cheap, wanted, keep=12), 50.0) is not None
    assert judge(make_screen(cheap, wanted, keep=13), 50.0) is None


def test_the_reason_names_the_numbers() -> None:
    cheap = np.linspace(0, 1, 12)
    screen = make_screen(cheap, 0.5 * cheap + 0.1, keep=3)
    reason = judge(screen, 2.0)
    assert reason is not None
    assert f"PPL ratio {math.exp(2.0):.3f} by closed form" in reason
    assert f"at least {math.exp(1.1):.3f}" in reason
    assert "12 others" in reason
    assert f"{math.exp(0.1 + 0.5 * 2 / 11):.3f} is reached" in reason  # by the third best


# ---- what is learned


def test_only_trials_with_both_proxies_and_finite_numbers_are_pairs() -> None:
    whole = make_evaluation(0.2, 0.1)
    qualities = whole.qualities
    broken = [msgspec.structs.replace(qualities[factory.PROXY], ppl_ratio=ratio) for ratio in (math.nan, math.inf)]
    screen = Screen(keep=1)
    for found in (
        qualities,
        {"closed-form": qualities["closed-form"]},
        {factory.PROXY: qualities[factory.PROXY]},
        *(qualities | {factory.PROXY: quality} for quality in broken),
    ):
        screen.learn(msgspec.structs.replace(whole, qualities=found))
    assert screen.pairs == {STRUCTURE: [pytest.approx((0.2, 0.1))]}


# ---- a space that was scored whole by both proxies


def read_landscape() -> dict[int, list[tuple[tuple[int, ...], float, float]]]:
    """Log PPL ratios of all sets of one or two of the embedded model's layers, by closed form and after 30 steps."""
    rows = json.loads((Path(__file__).parent / "demo_proxies.json").read_text())["rows"]
    by_depth: dict[int, list[tuple[tuple[int, ...], float, float]]] = {}
    for row in rows:
        pair = math.log(row["closed-form"]), math.log(row["short-distillation"])
        by_depth.setdefault(len(row["dropped"]), []).append((tuple(row["dropped"]), *pair))
    return by_depth


@pytest.mark.parametrize("keep", [1, 2, 3, 6])
def test_no_member_is_lost_on_the_embedded_models_whole_landscape(keep: int) -> None:
    landscape = read_landscape()
    assert {depth: len(rows) for depth, rows in landscape.items()} == {1: 12, 2: 66}
    skipped = 0
    for depth, rows in landscape.items():
        screen = Screen(keep=keep)
        best = {layers for layers, _, wanted in sorted(rows, key=lambda row: row[2])[:keep]}
        for layers, cheap, wanted in sorted(rows, key=lambda row: row[1]):  # as a sweep ranks them
            if judge(screen, cheap, structure=str(depth)) is None:
                screen.learn(make_evaluation(cheap, wanted, structure=str(depth)))
            else:
                skipped += 1
                assert layers not in best
    assert skipped > 20
