"""Strategies at equal cost: sums worked out by hand, the published records, and a comparison made, stopped and added to."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seed import study_dir
from seed.errors import StudyError
from seed.evidence import WIDTH, ComparedFinal, Comparison, ComparisonSummary, Reached, StrategyRun
from seed.experiments import compare
from seed.experiments.compare import REFERENCE, summarize_comparison
from seed.plans import read_plan
from seed.records import KINDS, Estimate, Frontier
from seed.reporting.document import Findings, render_findings
from seed.reporting.experiment_page import tell_comparison
from seed.stats import NOTHING
from tests.experiments.conftest import Bench
from tests.reporting import factory

Dropped = tuple[int, ...]
Sums = Sequence[float | None]
COUNTS = (10, 30)
DENSE = (20.0, 60.0)  # 2 nats per token in both documents
T_1 = 12.7062047  # Student's t at 0.975 with one degree of freedom
RECORDS = Path(__file__).parents[2] / "studies"
SMALL: dict[str, Any] = {"rng_seeds": (0, 1), "distill_tokens": 500, "learning_rate": 1e-3}


def make_run(strategy: str, *picks: Dropped, cost: float = 100.0, rng_seed: int | None = None) -> StrategyRun:
    candidates = tuple(factory.make_candidate(*dropped) for dropped in picks)
    return StrategyRun(strategy=strategy, rng_seed=rng_seed, cost=cost, num_scores=1, picks=candidates)


def make_comparison(runs: Sequence[StrategyRun], sums: dict[Dropped, dict[int, Sums]]) -> Comparison:
    """Finals with these summed losses, of each random seed."""
    finals = tuple(
        ComparedFinal(
            candidate=factory.make_candidate(*dropped),
            rng_seed=rng_seed,
            validation_loss=2.7,
            test_sums=list(of_documents),
            seconds=9.0,
        )
        for dropped, given in sums.items()
        for rng_seed, of_documents in given.items()
    )
    return Comparison(
        study="demo",
        model="demo",
        proxy="closed-form",
        budget=1000.0,
        num_candidates=298,
        dense_test_sums=list(DENSE),
        test_counts=list(COUNTS),
        settings={},
        runs=tuple(runs),
        finals=finals,
    )


def summarize(runs: Sequence[StrategyRun], sums: dict[Dropped, Sums | dict[int, Sums]]) -> ComparisonSummary:
    found = {dropped: given if isinstance(given, dict) else {0: given} for dropped, given in sums.items()}
    return summarize_comparison(make_comparison(runs, found))


def at(per_token: float) -> list[float]:
    """Sums that lie above the dense model's by so much per token, in every document."""
    return [base + per_token * count for base, count in zip(DENSE, COUNTS, strict=True)]


def is_about(estimate: Estimate, value: float, low: float, high: float) -> bool:
    return (estimate.value, estimate.low, estimate.high) == pytest.approx((value, low, high), rel=1e-7, abs=1e-12)


def only(summary: ComparisonSummary, strategy: str) -> Reached:
    (row,) = [row for row in summary.rows if row.strategy == strategy]
    return row


# ---- what the numbers say


def test_the_ratio_is_that_of_the_mean_loss_per_token_over_seeds_and_runs() -> None:
    row = only(summarize([make_run("greedy", (3,))], {(3,): [23.0, 61.0]}), "greedy")
    assert row.ppl_ratio.value == pytest.approx(math.exp((3 + 1) / (10 + 30)))
    seeds = only(summarize([make_run("greedy", (3,))], {(3,): {7: at(0.1), 2: at(0.2), 9: at(0.6)}}), "greedy")
    assert seeds.ppl_ratio.value == pytest.approx(math.exp(0.3))
    runs = [make_run("random", (pick,), rng_seed=seed, cost=10.0 * seed) for seed, pick in enumerate((1, 2, 1))]
    row = only(summarize(runs, {(1,): at(0.1), (2,): at(0.4)}), "random")
    assert row.ppl_ratio.value == pytest.approx(math.exp(0.2))
    assert ([pick.dropped_layers for pick in row.picks], row.num_runs, row.cost) == ([(1,), (2,), (1,)], 3, 10.0)


def test_what_varies_widens_intervals_documents_seeds_and_runs() -> None:
    summary = summarize([make_run(REFERENCE, (1,)), make_run("greedy", (2,))], {(1,): at(0.1), (2,): at(0.3)})
    assert is_about(only(summary, "greedy").excess, *[math.expm1(0.2)] * 3)
    assert only(summary, REFERENCE).excess == Estimate(value=0.0, low=0.0, high=0.0)
    runs = [make_run("random", (pick,), rng_seed=pick) for pick in (1, 2)]
    summary = summarize([make_run(REFERENCE, (3,)), *runs], {(1,): at(0.1), (2,): at(0.5), (3,): at(0.2)})
    row = only(summary, "random")
    assert is_about(row.ppl_ratio, math.exp(0.3), math.exp(0.3 - 0.2 * T_1), math.exp(0.3 + 0.2 * T_1))
    assert is_about(row.excess, math.expm1(0.1), math.expm1(0.1 - 0.2 * T_1), math.expm1(0.1 + 0.2 * T_1))
    seeds = only(summarize([make_run("greedy", (3,))], {(3,): {0: at(0.2), 1: at(0.4)}}), "greedy")
    assert is_about(seeds.ppl_ratio, math.exp(0.3), math.exp(0.3 - 0.1 * T_1), math.exp(0.3 + 0.1 * T_1))


def test_differences_are_paired_by_document_and_seed() -> None:
    theirs: dict[int, Sums] = {4: [21.0, 75.0], 2: [26.0, 61.0]}
    ours: dict[int, Sums] = {2: [28.0, 67.0], 4: [23.0, 81.0]}  # 0.2 a token above, and not in the order given
    runs = [make_run(REFERENCE, (1,)), make_run("greedy", (2,)), make_run("taylor", (3,))]
    summary = summarize(runs, {(1,): theirs, (2,): ours, (3,): theirs})
    assert is_about(only(summary, "greedy").excess, *[math.expm1(0.2)] * 3)
    assert only(summary, "taylor").excess == Estimate(value=0.0, low=0.0, high=0.0)
    comparison = make_comparison(runs, {(1,): theirs, (2,): ours, (3,): theirs})
    turned = msgspec.structs.replace(comparison, finals=comparison.finals[::-1])
    assert summarize_comparison(turned) == summary


@pytest.mark.parametrize(
    ("broken", "order"),
    [
        ((1,), ["best", "magnitude", "taylor", "greedy", REFERENCE]),
        ((2,), ["best", REFERENCE, "magnitude", "taylor", "greedy"]),
    ],
)
def test_within_a_depth_the_best_comes_first_and_what_is_no_model_any_more_last(
    broken: Dropped, order: list[str]
) -> None:
    chose = {"taylor": (3,), "greedy": (2,), "magnitude": (3,), REFERENCE: (1,), "best": (4,)}
    sums: dict[Dropped, Any] = {(1,): at(0.1), (2,): at(0.3), (3,): at(0.2), (4,): at(0.0)} | {broken: [None, 20.0]}
    summary = summarize([make_run(name, pick) for name, pick in chose.items()], sums)
    assert [row.strategy for row in summary.rows] == order
    assert summary.rows[-1].ppl_ratio == NOTHING == only(summary, "greedy").excess


def test_what_is_not_chosen_or_not_distilled_under_every_seed_has_no_row() -> None:
    runs = [
        make_run(REFERENCE, (1,), (1, 2)),
        make_run("greedy", (3,), (1, 2)),
        make_run("magnitude"),
        make_run("random", (1,), rng_seed=0),
        make_run("random", (4,), rng_seed=1),
        make_run("tpe", (1,), (1, 2), rng_seed=0),
        make_run("tpe", (1,), rng_seed=1),
    ]
    both: Any = {0: at(0.1), 1: at(0.1)}
    summary = summarize(runs, {(1,): both, (3,): {0: at(0.0)}, (1, 2): both})
    assert {(row.num_dropped, row.strategy) for row in summary.rows} == {
        *((1, name) for name in (REFERENCE, "tpe")),
        *((2, name) for name in (REFERENCE, "greedy", "tpe")),
    }
    assert [(row.num_runs, row.num_without) for row in summary.rows if row.strategy == "tpe"] == [(2, 0), (2, 1)]
    alone = summarize([make_run(REFERENCE, (1,)), make_run("greedy", (1, 2))], {(1,): at(0.1), (1, 2): at(0.4)})
    assert only(alone, "greedy").excess == NOTHING
    assert summarize([make_run(REFERENCE, (1,))], {}).rows == ()


# ---- what is told


def read_published(name: str) -> Findings:
    comparison = study_dir.read_record(RECORDS / "compare.record" / f"{name}.json", Comparison)
    return tell_comparison(comparison, summarize_comparison(comparison), names=compare.NAMES, repeat={})


def test_published_records_give_the_published_summaries_and_a_page() -> None:
    found = read_published("compare")
    assert [table.rows[0][:3] for table in found.tables] == [
        ["Seed's sampler", "1", "1.018 [1.013, 1.022]"],
        ["Seed's sampler", "1, 7", "1.061 [1.050, 1.071]"],
        ["Seed's sampler", "1, 6, 7", "1.139 [1.119, 1.159]"],
    ]
    rows = {row[0]: row[3] for row in found.tables[2].rows}
    assert rows["one-shot PPL"] == "+7.61 [+6.08, +9.16]\u00a0%"
    assert rows["magnitude"] == "+603.85 [+420.39, +851.99]\u00a0%"
    assert "higher: one-shot PPL (+7.61 [+6.08, +9.16]\u00a0%), greedy (" in found.answers[2]
    assert "the same set: greedy with recovery" in found.answers[2]
    assert "(+0.59 [-0.86, +2.07]\u00a0%)" in read_published("compare-4").answers[3].partition("cannot tell: ")[2]
    page = render_findings(found, command="python -m seed.experiment compare studies/demo")
    assert page.index("The answer") < page.index("What each reached") < page.index("The numbers") < page.index("Repeat")
    assert page == render_findings(read_published("compare"), command="python -m seed.experiment compare studies/demo")
    assert page.count("<script src") == 0
    assert "arXiv 2402.09025" in page
    assert [len(trace.x) for trace in found.figures[0][0].data] == [len(table.rows) for table in found.tables]


# ---- one run of it


def test_a_comparison_that_was_stopped_goes_on_and_is_added_to(session: Bench) -> None:
    chosen = ("last_layers", "random")
    unbroken, stopped = session.copy("unbroken"), session.copy("stopped")
    first = session.run("compare", unbroken, strategies=chosen, **SMALL)
    assert [run["strategy"] for run in first["runs"]] == [REFERENCE, REFERENCE, "last_layers", "random", "random"]
    assert all(run["cost"] <= first["budget"] * (1 + 1e-9) for run in first["runs"])
    picks = {str(pick) for run in first["runs"] for pick in run["picks"]}
    assert {(str(one["candidate"]), one["rng_seed"]) for one in first["finals"]} == {
        (p, s) for p in picks for s in (0, 1)
    }
    assert "2 layers dropped: Seed's sampler reaches a PPL ratio of" in session.said
    page = (unbroken.root / "compare.html").read_text()
    assert "seed.experiment compare" in page
    assert "--strategies subset last_layers random" in page

    session.interrupt("compare", stopped, after=2, strategies=chosen, **SMALL)
    assert len(study_dir.read_record(stopped.comparison, Comparison).finals) == 2
    assert session.run("compare", stopped, strategies=chosen, **SMALL) == first
    assert session.trained == len(first["finals"]) - 2

    more = session.run("compare", stopped, strategies=(WIDTH,), **SMALL)
    assert more["runs"][:-1] == first["runs"]
    assert more["finals"][: len(first["finals"])] == first["finals"]
    widths = [one for one in more["finals"] if one["width"]]
    assert [(one["like_dropped"], one["rng_seed"]) for one in widths] == [(1, 0), (2, 0), (1, 1), (2, 1)]
    assert "uniform width" in (stopped.root / "compare.html").read_text()
    content = stopped.comparison.read_bytes()
    with pytest.raises(StudyError, match=r"learning_rate: 0\.001 there, 0\.1 now"):
        session.run("compare", stopped, **{**SMALL, "learning_rate": 0.1})
    assert stopped.comparison.read_bytes() == content


def test_a_cost_that_pays_for_no_score_leaves_the_search_without_a_choice(session: Bench) -> None:
    record = session.run("compare", session.copy("poor"), strategies=("last_layers",), cost=1.0, **SMALL)
    assert record["runs"][0]["picks"] == []
    assert (record["budget"], record["settings"]["cost"]) == (1.0, 1.0)
    assert "Seed's sampler chose nothing of this depth" in session.said


def test_strategies_keep_to_what_the_search_was_bound_to(session: Bench) -> None:
    study = session.copy("bound")
    plan = read_plan(study)
    frontier = study_dir.read_record(study.frontier, Frontier)
    space = msgspec.structs.replace(plan.protocol.space, min_dropped=2)
    study_dir.write_record(study.plan, msgspec.structs.replace(plan, trusts_closed_form=False))
    study_dir.write_record(study.frontier, msgspec.structs.replace(frontier, space=space))
    record = session.run("compare", study, strategies=("last_layers", "perplexity"), **SMALL | {"rng_seeds": (0,)})
    assert (record["proxy"], record["num_candidates"]) == ("none", space.size)
    assert {len(pick["parts"]) for run in record["runs"] for pick in run["picks"]} == {2}


def test_strategies_play_only_where_the_search_let_go_what_they_choose_among(session: Bench) -> None:
    whole = factory.SPACE
    by_parts = msgspec.structs.replace(whole, kinds=KINDS)
    played = [compare.list_strategies(space, covers_space=False) for space in (whole, by_parts)]
    assert set(played[1]) - set(played[0]) == {"greedy_parts", "evopress_parts", "llm_drop"}
    assert REFERENCE in played[0]
    assert WIDTH in played[0]
    assert "sweep" not in played[1]
    wanted = "--strategies llm_drop: chooses other parts than the search, which was for --parts layer. Leave it out"
    with pytest.raises(StudyError, match=wanted):
        session.run("compare", session.copy("whole"), strategies=("greedy", "llm_drop"), **SMALL)


def test_only_the_depths_that_are_asked_for_are_distilled(session: Bench) -> None:
    study = session.copy("depths")
    space = study_dir.read_record(study.frontier, Frontier).space
    asked = SMALL | {"rng_seeds": (0,), "strategies": ("last_layers", "greedy")}
    record = session.run("compare", study, depths=(2,), **asked)
    assert space.max_dropped >= 2
    assert (record["settings"]["depths"], record["settings"]["max_dropped"]) == ("2", 2)
    assert {len(pick["parts"]) for run in record["runs"] for pick in run["picks"]} == {2}
    assert "--depths 2" in (study.root / "compare.html").read_text()
    with pytest.raises(StudyError, match=rf"--depths 9: the search was for 1 to {space.max_dropped} dropped layers"):
        session.run("compare", study, depths=(1, 9), **asked)
