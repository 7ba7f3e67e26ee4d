"""Recoveries beside the reference, at equal tokens and equal time: by hand, as published, and run, stopped and added to."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from seed import study_dir
from seed.errors import StudyError
from seed.evidence import Ledger, RecoveredRow, RecoveryComparison, TrainedRun
from seed.experiments import recoveries
from seed.experiments.recoveries import AT, fit_times, summarize_recoveries
from seed.records import Estimate
from seed.reporting.document import render_findings
from seed.reporting.experiment_page import tell_recoveries
from seed.stats import NOTHING
from tests.experiments.conftest import Bench

RECORD = Path(__file__).parents[2] / "studies" / "recoveries.record" / "recoveries.json"
SMALL: dict[str, Any] = {"rng_seeds": (0,), "distill_tokens": 500}
TOKENS = 1_000_000
COUNTS = [1000 + 40 * place for place in range(24)]
DENSE_SUMS = [2.683 * count for count in COUNTS]


def make_run(
    key: str = "drop-5-7",
    *,
    recovery: str = "distillation",
    ratio: float = 1.058,
    rng_seed: int = 0,
    tokens: int = TOKENS,
    seconds: float = 60.0,
    is_broken: bool = False,
) -> TrainedRun:
    """A training that ends at this PPL ratio to the dense model; documents vary a little."""
    offs = np.random.default_rng([rng_seed, round(1e4 * ratio)]).normal(0, 0.0005, len(COUNTS))
    offs -= np.dot(offs, COUNTS) / sum(COUNTS)
    losses = [2.683 + math.log(ratio) + float(off) for off in offs]
    sums = [None if is_broken else count * loss for count, loss in zip(COUNTS, losses, strict=True)]
    return TrainedRun(
        key=key,
        num_dropped=key.count("-"),
        num_params=1_000_000,
        recovery=recovery,
        tokens=tokens,
        learning_rate=0.001,
        rng_seed=rng_seed,
        start="closed-form",
        curve=(),
        validation_loss=2.7,
        test_sums=sums,
        seconds=seconds,
    )


def make_comparison(runs: Sequence[TrainedRun], **changes: Any) -> RecoveryComparison:
    """LoRA and states get other tokens at equal time, on two models."""
    ledger = Ledger(
        study="demo",
        model="demo",
        settings={},
        dense_num_params=2_000_000,
        dense_test_sums=DENSE_SUMS,
        test_counts=COUNTS,
        runs=tuple(runs),
    )
    times = {key: {"lora": 1_400_000, "hidden-states": 800_000} for key in ("drop-5", "drop-3-5-7")}
    known: dict[str, Any] = {"reference": "distillation", "equal_tokens": TOKENS, "equal_time": times}
    return RecoveryComparison(ledger=ledger, **{**known, **changes})


BASES = (("drop-5", 1.021), ("drop-3-5-7", 1.104))
REACHED = (  # LoRA is worse at equal tokens and level at equal time; states are better
    ("distillation", 1.0, TOKENS, 60.0),
    ("lora", 1.02, TOKENS, 43.0),
    ("hidden-states", 0.985, TOKENS, 75.0),
    ("lora", 1.0005, 1_400_000, 60.2),
    ("hidden-states", 0.992, 800_000, 60.1),
)
RUNS = [
    make_run(key, ratio=base * factor, rng_seed=seed, recovery=name, tokens=tokens, seconds=seconds)
    for key, base in BASES
    for seed in (0, 1, 2)
    for name, factor, tokens, seconds in REACHED
]


def pick(rows: tuple[RecoveredRow, ...], key: str, at: str) -> list[RecoveredRow]:
    return [row for row in rows if (row.key, row.at) == (key, at)]


def test_each_model_and_budget_is_told_best_first() -> None:
    rows = summarize_recoveries(make_comparison(RUNS))
    assert [(row.key, row.at) for row in rows] == [
        (key, at) for key in ("drop-5", "drop-3-5-7") for at in AT for _ in range(3)
    ]
    for key, base in BASES:
        at_tokens, at_time = pick(rows, key, "equal tokens"), pick(rows, key, "equal time")
        assert [row.recovery for row in at_tokens] == ["hidden-states", "distillation", "lora"]
        assert [row.verdict for row in at_tokens] == ["lower", "equivalent", "higher"]
        assert [row.seconds for row in at_tokens] == [75.0, 60.0, 43.0]
        assert [row.excess.value for row in at_tokens] == pytest.approx([-0.015, 0.0, 0.02], abs=1e-9)
        assert at_tokens[1].excess == Estimate(value=0.0, low=0.0, high=0.0)
        assert [row.ppl_ratio.value for row in at_tokens] == pytest.approx([0.985 * base, base, 1.02 * base])
        assert [row.verdict for row in at_time] == ["lower", "equivalent", "equivalent"]
        assert [row.tokens for row in at_time] == [800_000, 1_000_000, 1_400_000]


@pytest.mark.parametrize("reference_seeds", [(), (0,), (0, 2)])
def test_other_random_seeds_are_not_compared(reference_seeds: tuple[int, ...]) -> None:
    runs = [make_run(rng_seed=seed, recovery="lora", ratio=1.2) for seed in (0, 1)]
    runs += [make_run(rng_seed=seed) for seed in reference_seeds]
    [row] = [row for row in summarize_recoveries(make_comparison(runs)) if row.recovery == "lora"]
    assert (row.at, row.excess, row.verdict) == ("equal tokens", NOTHING, "cannot tell")
    assert row.ppl_ratio.value == pytest.approx(1.2)


def test_losses_that_are_no_numbers_come_last_and_tell_nothing() -> None:
    runs = [make_run(rng_seed=seed, recovery="lora", is_broken=True) for seed in (0, 1)]
    runs += [make_run(rng_seed=seed) for seed in (0, 1)]
    ours, lora = pick(summarize_recoveries(make_comparison(runs)), "drop-5-7", "equal tokens")
    assert (ours.recovery, lora.recovery) == ("distillation", "lora")
    assert (lora.ppl_ratio, lora.excess, lora.verdict) == (NOTHING, NOTHING, "cannot tell")
    assert summarize_recoveries(make_comparison([])) == ()


def test_times_are_settled_once_and_small_differences_do_not_count() -> None:
    seconds = {"distillation": 10.0, "pretraining": 5.0, "lora": 10.1}
    runs = [make_run("drop-5", recovery=name, seconds=took) for name, took in seconds.items()]
    comparison = make_comparison(runs, equal_time={})
    settled = fit_times(comparison)
    assert settled == {"drop-5": {"distillation": 1_000_000, "pretraining": 2_000_000, "lora": 1_000_000}}
    slower = [msgspec.structs.replace(run, seconds=7.0) for run in runs]
    assert fit_times(make_comparison(slower, equal_time=settled)) == settled


def test_the_published_record_gives_the_published_summary_and_a_page() -> None:
    comparison = study_dir.read_record(RECORD, RecoveryComparison)
    found = tell_recoveries(comparison, summarize_recoveries(comparison), names=recoveries.NAMES, repeat={})
    at_tokens, at_time = ({row[0]: row[4:] for row in table.rows} for table in found.tables)
    assert at_tokens["LoRA distillation"] == ["-0.04 [-0.43, +0.36]\u00a0%", "equivalent"]
    assert at_tokens["distillation"][1] == "reference"
    assert at_time["distillation, and states"] == ["+0.35 [-0.02, +0.73]\u00a0%", "cannot tell"]
    assert "at equal tokens: distillation, and states ends lowest, PPL ratio 1.166 [1.143, 1.189]." in found.answers[0]
    page = render_findings(found, command="python -m seed.experiment recoveries studies/demo")
    assert page.index("The answer") < page.index("What each recovery reached") < page.index("The numbers")
    assert "arXiv 2411.06839" in page
    empty = make_comparison([])
    found = tell_recoveries(empty, (), names=recoveries.NAMES, repeat={})
    assert "there is no answer" in render_findings(found, command="x")


def test_a_comparison_that_was_stopped_goes_on_and_is_added_to(session: Bench) -> None:
    asked: dict[str, Any] = {**SMALL, "recoveries": ("pretraining",)}
    unbroken, stopped = session.copy("unbroken"), session.copy("stopped")
    first = session.run("recoveries", unbroken, **asked)  # learning rates are tuned
    runs = [(run["recovery"], run["tokens"], run["rng_seed"]) for run in first["ledger"]["runs"]]
    both = ("distillation", "pretraining")
    assert runs == [*((name, 500, 0) for name in both), ("pretraining", 1000, 0)]
    assert first["equal_time"] == {first["ledger"]["runs"][0]["key"]: {"distillation": 500, "pretraining": 1000}}
    assert "at equal time: " in session.said
    assert (unbroken.root / "recoveries.html").stat().st_size > 1_000_000
    for more, done in ((1, 1), (1, 2)):  # at equal tokens, and at equal time
        session.interrupt("recoveries", stopped, after=more, **asked)
        assert len(study_dir.read_record(stopped.recoveries, RecoveryComparison).ledger.runs) == done
    assert session.run("recoveries", stopped, **asked) == first
    assert session.trained == 1
    later = session.run("recoveries", stopped, **{**SMALL, "recoveries": ("last-layers",)})
    assert later["ledger"]["runs"][: len(runs)] == first["ledger"]["runs"]
    assert {run["recovery"] for run in later["ledger"]["runs"]} == {*both, "last-layers"}
    assert "--recoveries distillation pretraining last-layers" in (stopped.root / "recoveries.html").read_text()
    content = stopped.recoveries.read_bytes()
    with pytest.raises(StudyError, match="distill_tokens: 500 there, 2000 now"):
        session.run("recoveries", stopped, **{**asked, "distill_tokens": 2000})
    with pytest.raises(StudyError, match=r"--trial 999: .* has no such finished trial"):
        session.run("recoveries", stopped, trials=(999,))
    assert stopped.recoveries.read_bytes() == content
