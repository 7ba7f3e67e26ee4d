"""Fidelity: who is asked, whether a score ranks, by hand-worked cases; the published record; a study made and stopped."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from seed import study_dir
from seed.errors import StudyError
from seed.evidence import DepthFidelity, FidelityRow, FidelityStudy, FinalScore
from seed.experiments import fidelity
from seed.experiments.fidelity import summarize_fidelity
from seed.reporting.document import render_findings
from seed.reporting.experiment_page import tell_fidelity
from tests.experiments.conftest import Bench
from tests.reporting import factory

DENSE, DENSE_TEST = 2.0, 2.1
RECORD = Path(__file__).parents[2] / "studies" / "fidelity.record" / "fidelity.json"


def make_row(
    dropped: tuple[int, ...], *, losses: dict[str, float], tests: Sequence[float], near: bool = True
) -> FidelityRow:
    """A row whose finals have these test losses, and validation losses 0.05 below."""
    return FidelityRow(
        candidate=factory.make_candidate(*dropped),
        near_best=near,
        losses=losses,
        seconds={proxy: float(place + 1) for place, proxy in enumerate(losses)},
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


def summarize(rows: Sequence[FidelityRow]) -> DepthFidelity:
    """The summary of the one depth there is."""
    (depth,) = summarize_fidelity(make_study(rows)).depths
    return depth


def make_noisy_rows(depth: int, *, num: int, noises: dict[str, float]) -> list[FidelityRow]:
    """Rows of one depth: every proxy sees the candidate's true loss with its own noise, finals with 0.02."""
    rng = np.random.default_rng(3)
    rows = []
    for place, dropped in enumerate(itertools.islice(itertools.combinations(range(12), depth), num)):
        true = 0.3 + 0.02 * place
        losses = {proxy: DENSE + true + rng.normal(0, noise) for proxy, noise in noises.items()}
        tests = [DENSE_TEST + true / 2 + rng.normal(0, 0.02) for _ in range(2)]
        rows.append(make_row(dropped, losses=losses, tests=tests, near=place < num // 2))
    return rows


# ---- whom to ask

NEAR = [3.0, 3.005, 3.01, 3.015, 3.02]  # PPL within 1.03 of the best
REST = [3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7]
EDGE = 3.0 + math.log(1.03)


@pytest.mark.parametrize(
    ("losses", "per_depth", "near", "rest"),
    [
        (NEAR + REST, 6, (3.0, 3.01, 3.02), (3.1, 3.4, 3.7)),
        (NEAR + REST, 1, (3.0,), ()),
        (NEAR + REST, 3, (3.0, 3.02), (3.7,)),
        ([3.0, *REST], 6, (3.0,), (3.1, 3.2, 3.4, 3.5, 3.7)),
        ([*NEAR, 3.5], 5, (3.0, 3.005, 3.01, 3.02), (3.5,)),
        (NEAR + REST[:2], 20, tuple(NEAR), (3.1, 3.2)),
        ([3.0, EDGE - 1e-9, EDGE + 1e-9], 3, (3.0, EDGE - 1e-9), (EDGE + 1e-9,)),
    ],
)
def test_half_are_near_the_best_and_both_halves_are_spread_from_end_to_end(
    losses: list[float], per_depth: int, near: tuple[float, ...], rest: tuple[float, ...]
) -> None:
    scored = [(factory.make_candidate(layer), loss) for layer, loss in enumerate(losses)]
    known = dict(scored)
    chosen = fidelity.choose_candidates(scored[::-1], depths=[1], per_depth=per_depth, near_margin=0.03)
    wanted = [*((loss, True) for loss in near), *((loss, False) for loss in rest)]
    assert [(known[candidate], is_near) for candidate, is_near in chosen] == wanted


def test_depths_are_judged_by_their_own_best_and_missing_ones_are_named() -> None:
    scored = [(factory.make_candidate(*dropped), loss) for dropped, loss in (((1, 2), 4.0), ((1, 3), 4.5), ((1,), 3.0))]
    chosen = fidelity.choose_candidates(scored, depths=(2, 1), per_depth=2, near_margin=0.03)
    assert [(len(one.dropped_layers), near) for one, near in chosen] == [(1, True), (2, True), (2, False)]
    assert fidelity.choose_depths(scored, per_depth=1) == (1, 2)
    with pytest.raises(StudyError, match="no candidate with 3 layers dropped was scored; there are: 1, 2"):
        fidelity.choose_candidates(scored, depths=[1, 3], per_depth=4, near_margin=0.03)


# ---- what the numbers say


def test_a_perfect_score_and_a_reversed_one() -> None:
    rows = [
        make_row((i,), losses={"none": 3.0 + 0.1 * i, "upside_down": 3.0 - 0.1 * i}, tests=[2.2 + 0.01 * i] * 2)
        for i in range(6)
    ]
    depth = summarize(rows)
    perfect, reversed_ = depth.proxies
    assert (perfect.tau.value, perfect.tau.low, perfect.tau.high) == (1, 1, 1)
    assert (reversed_.tau.value, reversed_.tau.low, reversed_.tau.high) == (-1, -1, -1)
    assert (perfect.top1_regret, reversed_.top1_regret) == (0, pytest.approx(math.exp(0.05) - 1))
    assert (depth.ceiling.tau.value, depth.ceiling.top1_regret) == (1, 0)  # identical seeds
    (difference,) = depth.differences
    assert (difference.tau.value, difference.favours) == (2, "none")


def test_tau_is_the_mean_over_seeds_and_the_ceiling_what_one_says_of_another() -> None:
    tests = [(2.2, 2.5), (2.3, 2.32), (2.4, 2.31)]  # seed 0 agrees; seed 1 has all three pairs against it
    depth = summarize([make_row((i,), losses={"none": 3.0 + 0.1 * i}, tests=test) for i, test in enumerate(tests)])
    (proxy,) = depth.proxies
    assert (proxy.tau.value, proxy.tau.low) == (pytest.approx((1 - 1) / 2), None)  # three candidates have no interval
    assert depth.ceiling.tau.value == -1
    # means 2.35, 2.31, 2.355: the proxy picks the first, the best is the second
    assert proxy.top1_regret == pytest.approx(math.exp(0.04) - 1)
    # seed 0 picks the first, judged by seed 1: 2.5 against 2.31; seed 1 picks the third: 2.4 against 2.2
    assert depth.ceiling.top1_regret == pytest.approx((math.exp(0.19) + math.exp(0.2)) / 2 - 1)


def test_recovery_and_seconds_are_medians_and_undamaged_candidates_have_nothing_to_recover() -> None:
    rows = [
        make_row((0,), losses={"none": 3.0, "closed-form": 2.5}, tests=[2.15]),  # half; final to 2.1: nine tenths
        make_row((1,), losses={"none": 2.4, "closed-form": 2.3}, tests=[2.25]),  # a quarter; final to 2.2: half
        make_row((2,), losses={"none": 4.0, "closed-form": 2.2}, tests=[2.45]),  # nine tenths; final to 2.4: eight
        make_row((3,), losses={"none": 1.9, "closed-form": 1.95}, tests=[2.0]),
    ]
    depth = summarize([msgspec.structs.replace(rows[0], seconds={"none": 1.0, "closed-form": 90.0}), *rows[1:]])
    none, closed_form = depth.proxies
    assert (none.recovery, closed_form.recovery, depth.ceiling.recovery) == (0, pytest.approx(0.5), pytest.approx(0.8))
    assert (none.seconds, closed_form.seconds, depth.ceiling.seconds) == (1, 2, 60)
    assert (depth.ceiling.tau.value, depth.ceiling.top1_regret) == (None, None)  # one seed
    depth = summarize([make_row((i,), losses={"closed-form": 3.0 + i}, tests=[2.2 + i]) for i in range(3)])
    assert depth.proxies[0].recovery is None


def test_near_tau_looks_at_the_near_only_and_depths_are_never_pooled() -> None:
    finals = [2.3, 2.2, 2.1, 2.5, 2.6, 2.7]  # near ones in reverse, the rest in order
    rows = [make_row((i,), losses={"none": 3.0 + i}, tests=[final], near=i < 3) for i, final in enumerate(finals)]
    deep = [make_row((0, i + 1), losses={"none": 9.0 - i}, tests=[final]) for i, final in enumerate(sorted(finals))]
    shallow, deeper = summarize_fidelity(make_study([*deep, *rows])).depths
    assert (shallow.num_dropped, deeper.num_dropped) == (1, 2)
    assert shallow.proxies[0].near_tau.value == -1
    assert shallow.proxies[0].tau.value == pytest.approx((12 - 3) / 15)
    assert deeper.proxies[0].tau.value == -1


def test_rows_in_the_making_are_left_out_and_counted_and_their_order_changes_nothing() -> None:
    rows = make_noisy_rows(2, num=8, noises={"none": 0.1, "closed-form": 0.05})
    unfinished = msgspec.structs.replace(rows[0], finals=rows[0].finals[:1])
    unscored = msgspec.structs.replace(rows[1], losses={"none": 1.0})
    depth = summarize([unfinished, unscored, *rows[2:]])
    assert (depth.num_candidates, depth.num_left_out) == (6, 2)
    assert depth.proxies == summarize(rows[:1:-1]).proxies
    assert summarize_fidelity(make_study([msgspec.structs.replace(rows[0], finals=())])).depths == ()


def test_differences_are_paired_and_favour_the_better_whichever_comes_first() -> None:
    rows = make_noisy_rows(2, num=40, noises={"none": 0.8, "closed-form": 0.02, "short-distillation-30": 0.02})
    depth = summarize(rows)
    worse, _, equal = depth.differences
    assert (worse.one, worse.other, worse.favours, equal.favours) == ("none", "closed-form", "closed-form", None)
    turned = summarize([msgspec.structs.replace(r, losses=dict(reversed(r.losses.items()))) for r in rows])
    assert turned.differences[-1].tau.value == -(worse.tau.value or 0)
    assert turned.differences[-1].favours == "closed-form"
    alike = [msgspec.structs.replace(r, losses=r.losses | {"none": r.losses["closed-form"] + 0.001}) for r in rows]
    same = summarize(alike).differences[0].tau
    assert (same.value, same.low, same.high) == (0, 0, 0)
    tau = depth.proxies[0].tau
    assert tau.low is not None
    assert tau.high is not None
    assert tau.low < (tau.value or 0) < tau.high


# ---- what is told


def test_the_published_record_gives_the_published_summary_and_a_page() -> None:
    study = study_dir.read_record(RECORD, FidelityStudy)
    found = tell_fidelity(study, summarize_fidelity(study))
    pairs, triples, differences = found.tables
    assert [row[1] for row in pairs.rows[:2]] == ["+0.43 [+0.17, +0.66]", "+0.85 [+0.70, +0.97]"]
    assert pairs.rows[3][0] == "full distillation, repeated (noise ceiling)"
    assert triples.rows[0][1:5] == ["+0.47 [+0.20, +0.73]", "+0.02 [-0.56, +0.68]", "6.75\u00a0%", "0\u00a0%"]
    assert differences.rows[2][1:] == ["-0.02 [-0.09, +0.00]", "cannot tell them apart"]
    assert "Closed-form recovery less 30 distillation steps: -0.03 [-0.10, +0.03], cannot tell" in found.answers[1]
    assert "drop-1-7: test PPL ratio 1.0573 to 1.0452" in found.answers[2]
    page = render_findings(found, command="python -m seed.experiment fidelity studies/demo")
    assert page.index("The answer") < page.index("Agreement and its price") < page.index("The numbers")


# ---- one run of it


def test_a_study_that_was_stopped_goes_on(session: Bench) -> None:
    asked: dict[str, Any] = {
        "depths": (2,),
        "per_depth": 2,
        "short_steps": (1,),
        "distill_tokens": 500,
        "learning_rate": 1e-3,
    }
    unbroken, stopped = session.copy("unbroken"), session.copy("stopped")
    first = session.run("fidelity", unbroken, **asked)
    assert len(first["rows"]) == 2
    for row in first["rows"]:
        assert sorted(row["losses"]) == ["closed-form", "none", "short-distillation-1"]
        assert [final["rng_seed"] for final in row["finals"]] == [1, 2]
    assert first["settings"]["doubling_the_budget"].count("test PPL ratio") == 1
    assert "Twice the budget: drop-" in session.said
    assert (unbroken.root / "fidelity.html").stat().st_size > 1_000_000
    for more, done in ((1, 1), (3, 4)):  # in the midst of finals, and before doubling
        session.interrupt("fidelity", stopped, after=more, **asked)
        kept = study_dir.read_record(stopped.fidelity, FidelityStudy)
        assert sum(len(row.finals) for row in kept.rows) == done
    twice = {"depths": (2, 2), "short_steps": (1, 1), "rng_seeds": (1, 1, 2)}  # what is said twice is done once
    assert session.run("fidelity", stopped, **{**asked, **twice}) == first
    content = stopped.fidelity.read_bytes()
    with pytest.raises(StudyError, match="candidates_per_depth: 2 there, 1 now"):
        session.run("fidelity", stopped, **{**asked, "per_depth": 1})
    assert stopped.fidelity.read_bytes() == content
