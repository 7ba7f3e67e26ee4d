"""Strategies at equal cost on one study: played once, distilled once, and gone on with where they were stopped."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seed import folder
from seed.errors import StudyError
from seed.evidence import Comparison, StrategyRun
from seed.optimize.comparison import WIDTH, summarize_comparison
from seed.optimize.strategies import STRATEGIES
from seed.records import Candidate
from seed.stages import comparing, schooling
from seed.stages.comparing import ComparisonSettings
from seed.stages.meter import Account, Measured
from seed.stages.schooling import Member
from seed.stages.workbench import Workbench
from tests.scoring.opened import drop, keep
from tests.stages.opened import SPACE, open_bench, open_sweep

NAMES = ("subset", "perplexity", "last_layers", "random")
PLAYED = [("subset", 0), ("subset", 1), ("perplexity", None), ("last_layers", None), ("random", 0), ("random", 1)]


def choose(*strategies: str, **changes: object) -> ComparisonSettings:
    values: dict[str, object] = {"budget": None, "rng_seeds": (0, 1), "distill_tokens": 512, "learning_rate": 3e-3}
    values["space"] = SPACE
    return ComparisonSettings(strategies=strategies or NAMES, **(values | changes))  # type: ignore[arg-type]


class Opened:
    """One study in a folder, compared again and again as separate commands would."""

    def __init__(self, directory: Path) -> None:
        self.bench: Workbench = open_bench(directory)
        self.sweep = open_sweep(self.bench)
        self.measured = Measured(self.sweep)

    def start(self, settings: ComparisonSettings) -> Comparison:
        return comparing.start_comparison(self.bench, self.measured, settings)

    def play(
        self, settings: ComparisonSettings, on_run: Callable[[StrategyRun], None] = lambda run: None
    ) -> Comparison:
        return comparing.play_all(self.bench, self.measured, self.start(settings), settings, on_run=on_run)

    def distill(self, settings: ComparisonSettings, on_step: Callable[[str], None] = lambda key: None) -> Comparison:
        return comparing.distill_all(self.bench, self.sweep, self.start(settings), settings, on_step=on_step)

    def read(self) -> Comparison:
        return folder.read_record(self.bench.folder.comparison, Comparison)


class BrokenError(Exception):
    pass


def break_at(count: int, seen: list[object]) -> Callable[[object], None]:
    def note(what: object) -> None:
        seen.append(what)
        if len(seen) == count:
            raise BrokenError

    return note


def names_of(comparison: Comparison) -> list[tuple[str, int | None]]:
    return [(run.strategy, run.rng_seed) for run in comparison.runs]


# ---- runs


def test_the_budget_is_what_two_rounds_of_greedy_removal_cost(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    account = Account(opened.measured)
    singles = [drop(layer) for layer in range(4)]
    losses = account.score(singles, rung="closed_form")
    best = losses.index(min(losses))
    account.score([drop(best, layer) for layer in range(4) if layer != best], rung="closed_form")
    assert comparing.find_budget(opened.bench, opened.measured, SPACE) == account.spent > 0
    assert opened.start(choose()).budget == account.spent
    assert opened.start(choose(budget=1234.0)).budget == 1234.0


def test_progress_adds_up_to_a_budget_for_each_run(tmp_path: Path) -> None:
    opened, settings = Opened(tmp_path), choose("subset", "last_layers", "sweep")
    rounds: list[int] = []
    comparison = comparing.start_comparison(
        opened.bench, opened.measured, settings, on_round=lambda: rounds.append(len(rounds))
    )
    assert len(rounds) == SPACE.max_dropped
    shares: dict[str, list[float]] = {}
    comparing.play_all(
        opened.bench,
        opened.measured,
        comparison,
        settings,
        on_run=lambda run: None,
        on_paid=lambda strategy, share: shares.setdefault(strategy.name, []).append(share),
    )
    assert {name: sum(of_runs) for name, of_runs in shares.items()} == pytest.approx(
        {"subset": 2, "last_layers": 1, "sweep": 1}  # two random seeds; pays nothing; pays more than a budget
    )
    assert len(shares["subset"]) > 6
    assert all(share >= 0 for of_runs in shares.values() for share in of_runs)


def test_random_strategies_run_once_a_seed_and_others_once(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    told: list[StrategyRun] = []
    comparison = opened.play(choose(), told.append)
    assert names_of(comparison) == PLAYED
    assert list(comparison.runs) == told
    assert opened.read() == comparison
    for run in comparison.runs:
        assert 0 <= run.cost <= comparison.budget * (1 + 1e-9)
        depths = [len(pick.dropped_layers) for pick in run.picks]
        assert depths == sorted(set(depths))
    [last] = [run for run in comparison.runs if run.strategy == "last_layers"]
    assert (last.cost, last.num_scores, last.picks) == (0, 0, (drop(3), drop(2, 3)))
    assert {len(run.picks) for run in comparison.runs if run.strategy == "perplexity"} == {2}


def test_a_sweep_pays_whatever_it_costs(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    comparison = opened.play(choose("sweep", "greedy", budget=1.0))
    swept, greedy = comparison.runs
    assert swept.num_scores == 10
    assert swept.cost > 1
    assert (greedy.cost, greedy.picks) == (0, ())


def test_a_stopped_comparison_goes_on_and_plays_nothing_twice(tmp_path: Path) -> None:
    whole = Opened(tmp_path / "whole").play(choose())
    seen: list[object] = []
    with pytest.raises(BrokenError):
        Opened(tmp_path / "broken").play(choose(), break_at(3, seen))
    opened = Opened(tmp_path / "broken")
    assert names_of(opened.read()) == PLAYED[:3]
    told: list[StrategyRun] = []
    comparison = opened.play(choose(), told.append)
    assert [(run.strategy, run.rng_seed) for run in told] == PLAYED[3:]
    # costs too, though the study knew many scores by then
    assert msgspec.structs.replace(comparison, study="whole") == whole
    content = opened.bench.folder.comparison.read_bytes()
    assert opened.play(choose(), told.append) == comparison
    assert len(told) == 3
    assert opened.bench.folder.comparison.read_bytes() == content


def test_strategies_can_be_added_later(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    first = opened.play(choose("last_layers"))
    more = opened.play(choose("last_layers", "random"))
    assert more.runs[:1] == first.runs
    assert names_of(more) == [("last_layers", None), ("random", 0), ("random", 1)]
    assert opened.play(choose("perplexity")).runs[:3] == more.runs  # nor is anything lost that is not asked for again


@pytest.mark.parametrize(
    "changes", [{"rng_seeds": (0,)}, {"distill_tokens": 1024}, {"learning_rate": 1e-3}, {"budget": 99.0}]
)
def test_other_settings_are_refused(changes: dict[str, object], tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    opened.play(choose("last_layers"))
    content = opened.bench.folder.comparison.read_bytes()
    name = {"budget": "cost"}.get(next(iter(changes)), next(iter(changes)))
    with pytest.raises(StudyError, match=f"begun with other settings .{name}: "):
        opened.start(choose("last_layers", **changes))
    assert opened.bench.folder.comparison.read_bytes() == content


# ---- finals


def make_run(strategy: str, *picks: Candidate, rng_seed: int | None = None) -> StrategyRun:
    return StrategyRun(strategy=strategy, rng_seed=rng_seed, cost=1.0, num_scores=1, picks=picks)


def test_a_shared_pick_is_distilled_once_a_seed(tmp_path: Path) -> None:
    comparison = msgspec.structs.replace(
        Opened(tmp_path).start(choose()),
        runs=(make_run("greedy", drop(3), keep(0, 1)), make_run("random", drop(2), keep(0, 1), rng_seed=5)),
    )
    picks = [drop(3), keep(0, 1), drop(2)]
    settings = choose(rng_seeds=(5, 7))
    expected = [(Member(candidate=pick), seed, None) for seed in (5, 7) for pick in picks]
    assert comparing.list_finals(comparison, settings) == expected


def test_finals_are_kept_one_by_one(tmp_path: Path) -> None:
    settings = choose("last_layers")  # two picks under two seeds, two steps each
    opened = Opened(tmp_path)
    opened.play(settings)
    expected = [(pick, seed) for seed in (0, 1) for pick in (drop(3), drop(2, 3))]
    seen: list[object] = []
    with pytest.raises(BrokenError):
        opened.distill(settings, break_at(4, seen))  # in the second's last step
    assert seen == ["drop-3", "drop-3", "drop-2-3", "drop-2-3"]
    opened = Opened(tmp_path)
    kept = opened.read()
    assert [(final.candidate, final.rng_seed) for final in kept.finals] == expected[:1]
    seen.clear()
    comparison = opened.distill(settings, seen.append)
    assert [(final.candidate, final.rng_seed) for final in comparison.finals] == expected
    assert comparison.finals[0] == kept.finals[0]  # its seconds too: it was not done again
    assert len(seen) == 6
    assert opened.read() == comparison
    assert comparing.list_finals(comparison, settings) == []
    for final in comparison.finals:
        assert len(final.test_sums) == len(comparison.test_counts)
        assert final.seconds > 0
    more = choose("last_layers", "magnitude")
    played = opened.play(more)
    assert played.finals == comparison.finals
    assert STRATEGIES["magnitude"].name in {run.strategy for run in played.runs}


def test_a_final_is_trained_under_its_own_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = choose("last_layers", rng_seeds=(4, 9), learning_rate=2e-3)
    opened = Opened(tmp_path)
    opened.play(settings)
    distill_once, trained = schooling.distill_once, []

    def spy(*args: Any, **more: Any) -> schooling.Trained:
        _, _, member, full = args
        trained.append((member.candidate, full.rng_seed, full.steps, full.learning_rate))
        return distill_once(*args, **more)

    monkeypatch.setattr(schooling, "distill_once", spy)
    opened.distill(settings)
    assert trained == [(pick, seed, 2, 2e-3) for seed in (4, 9) for pick in (drop(3), drop(2, 3))]


def test_a_width_of_every_depth_is_distilled_beside_the_picks(tmp_path: Path) -> None:
    settings = choose("last_layers", WIDTH)
    opened = Opened(tmp_path)
    comparison = comparing.add_width(opened.bench, opened.measured, opened.play(settings))
    assert comparing.add_width(opened.bench, opened.measured, comparison) == comparison
    baselines = comparing.plan_baselines(opened.bench, opened.sweep, comparison)
    assert list(baselines) == [1, 2]
    comparison = comparing.distill_all(
        opened.bench, opened.sweep, comparison, settings, on_step=lambda key: None, baselines=baselines
    )
    widths = [final for final in comparison.finals if final.width is not None]
    assert [(final.like_dropped, final.rng_seed) for final in widths] == [(1, 0), (2, 0), (1, 1), (2, 1)]
    assert opened.read() == comparison
    assert comparing.list_finals(comparison, settings, baselines) == []
    rows = {row.num_dropped: row for row in summarize_comparison(comparison).rows if row.strategy == WIDTH}
    assert set(rows) == {1, 2}
    dense, tokens = sum(comparison.dense_test_sums), sum(comparison.test_counts)
    for depth, row in rows.items():
        losses = [sum(final.test_sums) for final in widths if final.like_dropped == depth]
        assert row.ppl_ratio.value == pytest.approx(math.exp((sum(losses) / 2 - dense) / tokens))
        assert row.picks == ()
    half = msgspec.structs.replace(comparison, finals=comparison.finals[:-1])
    assert {row.num_dropped for row in summarize_comparison(half).rows if row.strategy == WIDTH} == {1}


def test_without_the_baseline_there_is_none(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    comparison = opened.play(choose("last_layers"))
    assert comparing.plan_baselines(opened.bench, opened.sweep, comparison) == {}
