"""Prices are those of a model counted by hand; a strategy pays for what it asked, whatever others have measured."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from seed.models.anatomy import Anatomy
from seed.optimize.space import enumerate_candidates
from seed.optimize.strategies import BudgetSpent
from seed.proxy.importance import (
    measure_angular_distances,
    measure_attention_influence,
    measure_block_influence,
    measure_magnitude,
    measure_taylor,
)
from seed.proxy.layer_tokens import BudgetedScorer, Prices, set_prices
from seed.proxy.subset_walker import count_work, measure_unrecovered
from seed.proxy.sweep import Sweep
from seed.records import Candidate
from tests.models.families import make_model
from tests.proxy.opened import DENSE, drop, keep, open_grafted, open_instruments
from tests.stages.opened import SPACE, open_session, open_sweep

# llama: four heads of 8 with two keys and values; three matrices of the gated MLP
LLAMA_LAYER = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32
# gpt2: queries, keys, values, their output, and two matrices four times as wide
GPT2_LAYER = 4 * 32 * 32 + 2 * 32 * 128
PRICES = Prices(num_layers=4, calibration_tokens=100, validation_tokens=40, head=0.5, fit=7.0, solve=11.0)
EVERYTHING = sorted(enumerate_candidates(SPACE), key=lambda candidate: candidate.kept_layers)
SINGLES = [drop(layer) for layer in range(4)]
PROXIES = ("none", "closed-form")


@pytest.mark.parametrize(("family", "layer", "reads"), [("llama", LLAMA_LAYER, 64), ("gpt2", GPT2_LAYER, 128)])
def test_prices_of_a_model_counted_by_hand(family: str, layer: int, reads: int) -> None:
    prices = set_prices(Anatomy(make_model(family)), calibration_tokens=1000, validation_tokens=300)
    assert (prices.num_layers, prices.calibration_tokens, prices.validation_tokens) == (4, 1000, 300)
    assert prices.head == pytest.approx(257 * 32 / layer)
    # five ridges are tried, and the best is solved again
    assert prices.fit == pytest.approx((1000 * reads**2 + 6 * reads**3 / 3) / layer)
    # gaps multiplied on calibration text, maps applied to both texts; two triangular solves and a residual for each
    assert prices.solve == pytest.approx((2300 * reads * 32 + 11 * reads**2 * 32) / layer)
    unknown = set_prices(Anatomy(make_model("ctrl")), calibration_tokens=1000, validation_tokens=300)
    assert (unknown.fit, unknown.solve) == (0, 0)  # no closed form, nothing to fit


def test_work_priced_by_hand() -> None:
    # 0; 0 1; 0 1 3; 0 2; 0 2 3
    raw, closed = (count_work([keep(0, 1, 3), keep(0, 2, 3)], closed_form=closed_form) for closed_form in (False, True))
    assert PRICES.price(raw) == 40 * (5 + 0.5 * 2)
    assert PRICES.price(raw, validation_tokens=10) == PRICES.price(raw) / 4
    # 0 before 1 is as it was; 1 before 3, 3; then 0 before 2, 2 before 3, 3: all run anew behind a cut
    assert PRICES.price(closed) == 40 * (1 + 0.5 * 2) + 5 * (100 + 40 + 7.0) + 5 * 11.0
    assert PRICES.price(closed, validation_tokens=10) == 10 * (1 + 0.5 * 2) + 5 * (100 + 10 + 7.0) + 5 * 11.0
    # 1 behind the cut is run once, and solved for once before 2 and once before 3
    siblings = count_work([keep(1, 2), keep(1, 3)], closed_form=True)
    assert PRICES.price(siblings) == 40 * 0.5 * 2 + 3 * (100 + 40 + 7.0) + 4 * 11.0
    assert PRICES.price(count_work([DENSE], closed_form=True)) == 40 * (4 + 0.5)
    assert (PRICES.trace, PRICES.gradient) == (
        100 * 4,
        3 * 100 * (4 + 0.5),
    )  # a gradient: forward, and twice as much back
    # three passes of two layers and a head, one of the dense model's four and a head, for each token; and two looks
    assert PRICES.distill(2, tokens=1000) == 1000 * (3 * 2.5 + 4.5) + 2 * 40 * 2.5


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return open_sweep(open_session(tmp_path / "one"))


@pytest.mark.parametrize("proxy", PROXIES)
def test_what_was_asked_is_paid_once_whatever_others_measured(proxy: str, sweep: Sweep, tmp_path: Path) -> None:
    alone = BudgetedScorer(open_sweep(open_session(tmp_path / "other")))
    expected = alone.score(SINGLES, proxy=proxy)
    spent = alone.spent
    assert alone.score([SINGLES[2], *SINGLES[::-1]], proxy=proxy) == [expected[2], *expected[::-1]]
    assert alone.score([], proxy=proxy) == []
    assert (alone.spent, alone.num_scores) == (spent, 4)
    assert BudgetedScorer(sweep).score(EVERYTHING, proxy=proxy)  # now the study knows them all
    assert [sweep.known(candidate)[proxy].loss for candidate in SINGLES] == expected
    rows = sweep.store.read_rows()
    for known in (sweep, open_sweep(open_session(tmp_path / "one"))):
        scorer = BudgetedScorer(known)
        assert scorer.score(SINGLES, proxy=proxy) == expected
        assert (scorer.spent, scorer.num_scores) == (spent, 4)
    assert sweep.store.read_rows() == rows  # and nothing was measured again
    alone.score([*SINGLES, drop(0, 1)], proxy=proxy)
    assert alone.spent > spent > 0
    assert alone.num_scores == 5


def test_a_batch_shares_its_beginnings_and_closed_form_the_dense_states(sweep: Sweep) -> None:
    together, one_by_one, closed = (BudgetedScorer(sweep) for _ in range(3))
    prices = together.prices
    together.score(SINGLES, proxy="none")
    for candidate in SINGLES:
        one_by_one.score([candidate], proxy="none")
    # 0, 0 1, 0 1 2, 0 1 3, 0 2, 0 2 3, 1, 1 2, 1 2 3 against three layers each
    assert together.spent == pytest.approx(384 * (9 + 4 * prices.head))
    assert one_by_one.spent == pytest.approx(384 * (12 + 4 * prices.head))

    def price(*candidates: Candidate) -> float:
        return prices.price(count_work(candidates, closed_form=True))

    first, second = drop(3), drop(2)  # 0 1 2, then 0 1 3: beside 0, nothing is as it was
    closed.score([first], proxy="closed-form")
    assert closed.spent == pytest.approx(prices.trace + price(first))
    closed.score([second], proxy="closed-form")
    assert closed.spent == pytest.approx(prices.trace + price(first, second))
    assert price(first, second) < price(first) + price(second)


def test_where_maps_are_shared_states_of_earlier_candidates_stay_whatever_comes_between(sweep: Sweep) -> None:
    scorer = BudgetedScorer(sweep)
    scorer._shares_maps = True
    prices, spent = scorer.prices, [0.0]
    a_map = prices.calibration_tokens + prices.fit + prices.solve
    for candidate in (drop(3), drop(0), drop(2), drop(2, 3)):
        scorer.score([candidate], proxy="closed-form")
        spent.append(scorer.spent)
    first, other, again, last = (after - before for before, after in itertools.pairwise(spent))
    assert first == pytest.approx(384 * (3 + prices.head) + prices.trace + 3 * a_map)  # from 2 to the end
    assert other == pytest.approx(384 * (3 + prices.head) + 3 * a_map)  # before 1
    assert again == pytest.approx(384 * (2 + prices.head) + 3 * a_map)  # 0 before 1 is known; from 1 to 3
    assert last == pytest.approx(384 * (1 + prices.head) + 3 * a_map)  # from 1 to the end


@pytest.mark.parametrize("proxy", PROXIES)
def test_what_is_too_dear_is_not_measured(proxy: str, sweep: Sweep) -> None:
    free = BudgetedScorer(sweep)
    free.score(SINGLES[:1], proxy=proxy)
    scorer = BudgetedScorer(sweep, budget=free.spent)
    found = scorer.score(SINGLES[:1], proxy=proxy)  # all of the budget may be spent
    rows = sweep.store.read_rows()
    for _ in range(2):  # what was refused is not taken for paid
        with pytest.raises(BudgetSpent):
            scorer.score(SINGLES, proxy=proxy)
    assert (scorer.spent, scorer.num_scores) == (free.spent, 1)
    assert sweep.store.read_rows() == rows
    assert scorer.score(SINGLES[:1], proxy=proxy) == found  # what was paid for stays known


def test_a_share_is_measured_on_part_of_the_text(sweep: Sweep) -> None:
    instruments, scorer = sweep.instruments, BudgetedScorer(sweep)
    part = instruments.validation.take_evenly(96)  # three of twelve windows
    expected = [losses.loss for losses in measure_unrecovered(instruments.anatomy, SINGLES, part, micro_batch=4)]
    for _ in range(2):  # it is paid for once
        assert scorer.score(SINGLES, proxy="none", share=0.25) == expected
        assert scorer.spent == pytest.approx(96 * (9 + 4 * scorer.prices.head))
    assert scorer.num_scores == 0  # all of the text was not read
    assert not any(sweep.is_known(candidate, "none") for candidate in SINGLES)
    spent = scorer.spent
    assert scorer.score(SINGLES, proxy="none") != expected  # the whole text is another score, and paid for
    assert scorer.spent == pytest.approx(5 * spent)


def test_where_parts_go_alone_looking_at_attentions_costs_one_pass() -> None:
    instruments = replace(open_instruments(), by_sublayers=True)
    scorer = BudgetedScorer(Sweep(instruments))
    text = instruments.calibration
    theirs = measure_attention_influence(instruments.anatomy, text, micro_batch=4)
    assert scorer.weigh_layers("attention_influence") == theirs
    assert scorer.spent == pytest.approx(text.num_tokens * 4)


def test_a_grafted_model_is_measured_without_its_gaps() -> None:
    instruments, recovered = open_grafted()
    alone, text = Anatomy(recovered), instruments.calibration
    scorer = BudgetedScorer(Sweep(instruments))
    for name, theirs in [
        ("magnitude", measure_magnitude(alone)),
        ("block_influence", measure_block_influence(alone, text, micro_batch=4)),
        ("taylor", measure_taylor(alone, text, micro_batch=4)),
    ]:
        found = scorer.weigh_layers(name)
        assert [found[layer] for layer in (0, 2, 3)] == theirs
        assert found[1] == pytest.approx(0, abs=1e-9)
    for count in (1, 2):  # one pass is paid for
        theirs = measure_angular_distances(alone, text, num_layers=count, micro_batch=4)
        assert scorer.measure_distances(count) == theirs
    prices = scorer.prices
    assert scorer.spent == pytest.approx(prices.trace + prices.gradient + prices.trace)
    before = scorer.spent
    scorer.score([drop(1)], proxy="closed-form")  # nothing is cut anew, so nothing is fitted
    assert scorer.spent - before == pytest.approx(prices.trace + 384 * (3 + prices.head))
