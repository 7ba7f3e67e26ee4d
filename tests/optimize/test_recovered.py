"""Recoveries beside the reference: at equal tokens and at equal time, paired by document and random seed, best first."""

import msgspec
import pytest

from seed.evidence import RecoveredRow, RecoveryComparison
from seed.optimize.recovered import AT, find_runs, summarize_recoveries
from seed.records import Estimate
from tests.reporting import trainings

NOTHING = Estimate(value=None, low=None, high=None)
LEVEL = Estimate(value=0.0, low=0.0, high=0.0)


def pick(rows: tuple[RecoveredRow, ...], key: str, at: str) -> list[RecoveredRow]:
    return [row for row in rows if (row.key, row.at) == (key, at)]


def test_each_model_and_budget_is_told_best_first() -> None:
    rows = summarize_recoveries(trainings.make_recoveries())
    assert [(row.key, row.at) for row in rows] == [
        (key, at) for key in ("drop-5", "drop-3-5-7") for at in AT for _ in range(3)
    ]
    for key, base in (("drop-5", 1.021), ("drop-3-5-7", 1.104)):
        at_tokens, at_time = pick(rows, key, "equal tokens"), pick(rows, key, "equal time")
        assert [row.recovery for row in at_tokens] == ["hidden-states", "distillation", "lora"]
        assert [row.verdict for row in at_tokens] == ["lower", "equivalent", "higher"]
        assert [row.tokens for row in at_tokens] == [1_000_000] * 3
        assert [row.seconds for row in at_tokens] == [75.0, 60.0, 43.0]
        assert [row.excess.value for row in at_tokens] == pytest.approx([-0.015, 0.0, 0.02], abs=1e-9)
        assert [row.ppl_ratio.value for row in at_tokens] == pytest.approx([0.985 * base, base, 1.02 * base])
        assert [row.recovery for row in at_time] == ["hidden-states", "distillation", "lora"]
        assert [row.verdict for row in at_time] == ["lower", "equivalent", "equivalent"]
        assert [row.tokens for row in at_time] == [800_000, 1_000_000, 1_400_000]
        for row in (*at_tokens, *at_time):
            assert row.num_dropped == len(key.split("-")) - 1
            assert row.ppl_ratio.low is not None
            assert row.ppl_ratio.high is not None
            assert row.ppl_ratio.low < row.ppl_ratio.value < row.ppl_ratio.high  # type: ignore[operator]


def test_the_reference_is_level_with_itself_at_both_budgets() -> None:
    rows = [row for row in summarize_recoveries(trainings.make_recoveries()) if row.recovery == "distillation"]
    assert [(row.excess, row.tokens) for row in rows] == [(LEVEL, 1_000_000)] * 4


def test_a_recovery_without_a_run_at_a_budget_has_no_row_there() -> None:
    runs = [trainings.make_run(rng_seed=seed, recovery=name) for seed in (0, 1) for name in ("distillation", "lora")]
    rows = summarize_recoveries(trainings.make_recoveries(runs))
    assert [(row.at, row.recovery) for row in rows if row.recovery == "lora"] == [("equal tokens", "lora")]
    assert len(rows) == 3


@pytest.mark.parametrize("reference_seeds", [(), (0,), (0, 2)])
def test_other_random_seeds_are_not_compared(reference_seeds: tuple[int, ...]) -> None:
    runs = [trainings.make_run(rng_seed=seed, recovery="lora", ratio=1.2) for seed in (0, 1)]
    runs += [trainings.make_run(rng_seed=seed) for seed in reference_seeds]
    [row] = [row for row in summarize_recoveries(trainings.make_recoveries(runs)) if row.recovery == "lora"]
    assert (row.excess, row.verdict) == (NOTHING, "cannot tell")
    assert row.ppl_ratio.value == pytest.approx(1.2)


def test_the_order_of_runs_does_not_matter() -> None:
    comparison = trainings.make_recoveries()
    ledger = msgspec.structs.replace(comparison.ledger, runs=comparison.ledger.runs[::-1])
    turned = summarize_recoveries(msgspec.structs.replace(comparison, ledger=ledger))
    assert set(map(msgspec.json.encode, turned)) == set(map(msgspec.json.encode, summarize_recoveries(comparison)))


def test_losses_that_are_no_numbers_come_last_and_tell_nothing() -> None:
    broken = [None] * len(trainings.COUNTS)
    runs = [
        *(trainings.make_run(rng_seed=seed, recovery="lora", test_sums=broken) for seed in (0, 1)),
        *(trainings.make_run(rng_seed=seed) for seed in (0, 1)),
    ]
    ours, lora = pick(summarize_recoveries(trainings.make_recoveries(runs)), "drop-5-7", "equal tokens")
    assert (ours.recovery, lora.recovery) == ("distillation", "lora")
    assert (lora.ppl_ratio, lora.excess, lora.verdict) == (NOTHING, NOTHING, "cannot tell")


def test_nothing_trained_has_no_rows() -> None:
    assert summarize_recoveries(trainings.make_recoveries([])) == ()


def test_runs_are_found_by_budget_and_in_the_order_of_their_random_seeds() -> None:
    comparison: RecoveryComparison = trainings.make_recoveries()
    found = find_runs(comparison, "drop-5", "lora", at="equal time")
    assert [(run.rng_seed, run.tokens) for run in found] == [(seed, 1_400_000) for seed in (0, 1, 2)]
    assert find_runs(comparison, "drop-9", "lora", at="equal time") == []
