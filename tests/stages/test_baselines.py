"""What a search added: baselines read its scores, pay as if alone, and are compared document by document."""

import math
from pathlib import Path
from typing import Any

import pytest

from seed.evidence import Baseline, SearchGain
from seed.optimize.strategies import STRATEGIES, run_strategy
from seed.proxy.layer_tokens import BudgetedScorer
from seed.proxy.sweep import Sweep
from seed.records import TrialRecord
from seed.sessions import Session
from seed.stages import baselines

from .opened import SPACE, TinyStudy, make_plan, open_session


def search(study: TinyStudy, **wanted: Any) -> tuple[Sweep, tuple[TrialRecord, ...]]:
    with study.open() as opened:
        trials = study.score(opened, **wanted)
        return opened.sweep, trials


def measure(
    session: Session, sweep: Sweep, trials: tuple[TrialRecord, ...], *, most: int = 10, covers_space: bool = False
) -> SearchGain:
    plan = make_plan(session.protocol, trials=most, covers_space=covers_space)
    return baselines.compare_baselines(
        session, sweep, SPACE, trials, plan=plan, solver="somehow", on_baseline=lambda title: None
    )


def by_name(gain: SearchGain) -> dict[str, Baseline]:
    return {baseline.strategy: baseline for baseline in gain.baselines}


def test_a_swept_space_knows_all_that_baselines_need(tmp_path: Path) -> None:
    study = TinyStudy(tmp_path)
    sweep, trials = search(study, trials=10, covers_space=True)
    gain = measure(study.session, sweep, trials)
    assert (gain.solver, gain.proxy, gain.num_scores) == ("somehow", "closed-form", 10)
    assert set(baselines.BASELINES) <= set(STRATEGIES)
    known = {trial.evaluation.candidate: trial.evaluation.qualities["closed-form"] for trial in trials}
    assert list(by_name(gain)) == ["perplexity", "greedy_recovered"]
    for baseline in gain.baselines:
        assert baseline.is_whole
        assert 0 < baseline.cost < gain.cost
        assert [len(pick.candidate.dropped_layers) for pick in baseline.picks] == [1, 2]
        for pick in baseline.picks:
            same_depth = [c for c in known if len(c.dropped_layers) == len(pick.candidate.dropped_layers)]
            assert pick.best == min(same_depth, key=lambda candidate: known[candidate].loss)
            assert pick.ppl_ratio == pytest.approx(math.exp(known[pick.candidate].loss - known[pick.best].loss))
            assert pick.ppl_ratio >= 1
            assert (pick.standard_error == 0) == (pick.candidate == pick.best)
    # what each would have paid alone
    alone = BudgetedScorer(sweep)
    run_strategy(STRATEGIES["greedy_recovered"], alone, SPACE, proxy=study.session.recovered_proxy, rng_seed=0)
    greedy = by_name(gain)["greedy_recovered"]
    assert (greedy.cost, greedy.num_scores) == (pytest.approx(alone.spent), 4 + 3)
    scorer = BudgetedScorer(sweep)
    scorer.score(list(known), proxy="closed-form")
    assert gain.cost == pytest.approx(scorer.spent)


def test_greedy_removal_goes_no_further_than_the_search(tmp_path: Path) -> None:
    study = TinyStudy(tmp_path)
    sweep, trials = search(study, trials=5, covers_space=False)  # four single removals, and one pair
    before = {key for key, proxies in sweep.rows.items() if "closed-form" in proxies}
    gain = measure(study.session, sweep, trials)
    greedy, one_shot = by_name(gain)["greedy_recovered"], by_name(gain)["perplexity"]
    assert not greedy.is_whole
    assert [pick.candidate for pick in greedy.picks] == [greedy.picks[0].best]
    assert one_shot.is_whole  # its picks are scored
    assert all(pick.ppl_ratio is not None for pick in one_shot.picks)
    after = {key for key, proxies in sweep.rows.items() if "closed-form" in proxies}
    assert after - before <= {pick.candidate.key for pick in one_shot.picks}
    assert gain.num_scores == 5


def test_trials_cost_more_than_the_same_sets_in_a_sweep(tmp_path: Path) -> None:
    study = TinyStudy(tmp_path)
    sweep, trials = search(study, trials=9, covers_space=False)
    one_by_one = measure(study.session, sweep, trials)
    assert one_by_one.num_scores == 9
    scorer = BudgetedScorer(sweep)
    scorer.score([trial.evaluation.candidate for trial in trials], proxy="closed-form")
    assert one_by_one.cost > scorer.spent


def test_short_distillations_are_paid_for(tmp_path: Path) -> None:
    study = TinyStudy(tmp_path, proxy="short-distillation")
    sweep, trials = search(study, trials=3, covers_space=True)
    gain = measure(study.session, sweep, trials)
    prices = BudgetedScorer(sweep).prices
    tokens = study.session.protocol.short_steps * study.session.batch_windows * study.session.protocol.window_tokens
    distilled = [trial for trial in trials if "short-distillation" in trial.evaluation.qualities]
    training = sum(prices.distill(len(t.evaluation.candidate.kept_layers), tokens=tokens) for t in distilled)
    swept = measure(open_session(tmp_path), sweep, trials).cost  # the same scores at the cheaper proxy
    looks = sum(BudgetedScorer(sweep).price([t.evaluation.candidate], proxy="none") for t in distilled)  # as they stand
    assert gain.cost == pytest.approx(swept + training + looks)
    known = {trial.evaluation.candidate for trial in distilled}
    for baseline in gain.baselines:
        for pick in baseline.picks:
            assert (pick.ppl_ratio is not None) == (pick.candidate in known)


def test_a_family_without_closed_form_has_greedy_removal_without_recovery(tmp_path: Path) -> None:
    study = TinyStudy(tmp_path, family="opt_post_norm", proxy="short-distillation")
    sweep, trials = search(study, trials=2, covers_space=False)
    assert [baseline.strategy for baseline in measure(study.session, sweep, trials).baselines] == [
        "perplexity",
        "greedy",
    ]


def test_baselines_take_no_more_scores_than_the_search(tmp_path: Path) -> None:
    study = TinyStudy(tmp_path)
    sweep, trials = search(study, trials=3, covers_space=False)
    known = {key: set(rows) for key, rows in sweep.rows.items()}
    gain = measure(study.session, sweep, trials, most=3)  # of four layers
    assert {key: set(rows) for key, rows in sweep.rows.items()} == known
    assert [(baseline.picks, baseline.is_whole) for baseline in gain.baselines] == [((), False), ((), False)]
