"""Accounts in layer-tokens: what a strategy pays depends on what it asked, and on nothing that others did."""

from pathlib import Path

import pytest

from seed.models.anatomy import Anatomy
from seed.optimize.space import enumerate_candidates
from seed.optimize.strategies import BudgetSpent
from seed.proxy.account import Account, Measured
from seed.proxy.importance import measure_angular_distances, measure_block_influence, measure_magnitude, measure_taylor
from seed.proxy.pricing import Prices
from seed.proxy.subset_walker import count_work, measure_unrecovered
from seed.proxy.sweep import Sweep
from seed.records import Candidate
from tests.proxy.opened import drop, open_grafted
from tests.stages.opened import SPACE, open_session, open_sweep

EVERYTHING = sorted(enumerate_candidates(SPACE), key=lambda candidate: candidate.kept_layers)
SINGLES = [drop(layer) for layer in range(4)]
PROXIES = ("none", "closed-form")


@pytest.fixture
def measured(tmp_path: Path) -> Measured:
    return open_measured(tmp_path / "one")


def open_measured(directory: Path) -> Measured:
    return Measured(open_sweep(open_session(directory)))


def price_alone(prices: Prices, *candidates: Candidate, proxy: str) -> float:
    """Without the dense model's states, which closed form needs once."""
    return prices.price(count_work(candidates, closed_form=proxy == "closed-form"))


@pytest.mark.parametrize("proxy", PROXIES)
def test_losses_are_the_sweeps(proxy: str, measured: Measured) -> None:
    sweep = measured.sweep
    found = Account(measured).score(SINGLES, proxy=proxy)
    assert [sweep.known(candidate)[proxy].loss for candidate in SINGLES] == found
    raw = measure_unrecovered(sweep.instruments.anatomy, SINGLES, sweep.instruments.validation, micro_batch=4)
    assert ([losses.loss for losses in raw] == found) is (proxy == "none")


@pytest.mark.parametrize("proxy", PROXIES)
def test_what_was_scored_before_costs_nothing(proxy: str, measured: Measured) -> None:
    account = Account(measured)
    first = account.score(SINGLES, proxy=proxy)
    spent = account.spent
    assert spent > 0
    assert account.score(SINGLES[::-1], proxy=proxy) == first[::-1]
    assert account.score([SINGLES[2], SINGLES[2]], proxy=proxy) == [first[2], first[2]]
    assert account.score([], proxy=proxy) == []
    assert (account.spent, account.num_scores) == (spent, 4)
    account.score([*SINGLES, drop(0, 1)], proxy=proxy)
    assert account.spent > spent
    assert account.num_scores == 5


@pytest.mark.parametrize("proxy", PROXIES)
def test_what_others_measured_is_paid_for_all_the_same(proxy: str, measured: Measured, tmp_path: Path) -> None:
    alone = Account(open_measured(tmp_path / "other"))
    expected = alone.score(SINGLES, proxy=proxy)
    assert Account(measured).score(EVERYTHING, proxy=proxy)  # now the study knows them all
    rows = measured.sweep.store.read_rows()
    account = Account(measured)
    assert account.score(SINGLES, proxy=proxy) == expected
    assert account.spent == alone.spent > 0
    assert account.num_scores == alone.num_scores == 4
    reopened = Account(Measured(open_sweep(open_session(tmp_path / "one"))))
    assert reopened.score(SINGLES, proxy=proxy) == expected
    assert reopened.spent == alone.spent
    assert measured.sweep.store.read_rows() == rows  # and nothing was measured again


def test_a_batch_shares_its_beginnings(measured: Measured) -> None:
    prices = measured.prices
    together, one_by_one = Account(measured), Account(measured)
    together.score(SINGLES, proxy="none")
    for candidate in SINGLES:
        one_by_one.score([candidate], proxy="none")
    # 0, 0 1, 0 1 2, 0 1 3, 0 2, 0 2 3, 1, 1 2, 1 2 3 against three layers each
    assert together.spent == pytest.approx(384 * (9 + 4 * prices.head))
    assert one_by_one.spent == pytest.approx(384 * (12 + 4 * prices.head))


def test_closed_form_pays_for_the_dense_states_once(measured: Measured) -> None:
    prices, account = measured.prices, Account(measured)
    first, second = drop(3), drop(2)  # 0 1 2, then 0 1 3: beside 0, nothing is as it was
    account.score([first], proxy="closed-form")
    assert account.spent == pytest.approx(prices.trace + price_alone(prices, first, proxy="closed-form"))
    before = account.spent
    account.score([second], proxy="closed-form")
    pair = price_alone(prices, first, second, proxy="closed-form")
    assert account.spent - before == pytest.approx(pair - price_alone(prices, first, proxy="closed-form"))
    assert account.spent - before < price_alone(prices, second, proxy="closed-form")


@pytest.mark.parametrize("proxy", PROXIES)
def test_what_is_too_dear_is_not_measured(proxy: str, measured: Measured) -> None:
    free = Account(measured)
    free.score(SINGLES[:1], proxy=proxy)
    account = Account(measured, budget=free.spent)
    found = account.score(SINGLES[:1], proxy=proxy)  # all of the budget may be spent
    rows = measured.sweep.store.read_rows()
    for _ in range(2):  # what was refused is not taken for paid
        with pytest.raises(BudgetSpent):
            account.score(SINGLES, proxy=proxy)
    assert (account.spent, account.num_scores) == (free.spent, 1)
    assert measured.sweep.store.read_rows() == rows
    assert not measured.sweep.is_known(SINGLES[1], proxy)
    assert account.score(SINGLES[:1], proxy=proxy) == found  # what was paid for stays known


def test_a_share_is_measured_on_part_of_the_text(measured: Measured) -> None:
    instruments, account = measured.sweep.instruments, Account(measured)
    part = instruments.validation.take_evenly(96)  # three of twelve windows
    assert part.num_tokens == 96
    expected = [losses.loss for losses in measure_unrecovered(instruments.anatomy, SINGLES, part, micro_batch=4)]
    assert account.score(SINGLES, proxy="none", share=0.25) == expected
    assert account.spent == pytest.approx(96 * (9 + 4 * measured.prices.head))
    assert account.num_scores == 0  # all of the text was not read
    assert not any(measured.sweep.is_known(candidate, "none") for candidate in SINGLES)
    spent = account.spent
    assert account.score(SINGLES, proxy="none", share=0.25) == expected
    assert account.spent == spent
    assert account.score(SINGLES, proxy="none") != expected  # the whole text is another score, and paid for
    assert account.spent == pytest.approx(5 * spent)
    assert account.num_scores == 4


def test_a_grafted_model_is_measured_without_its_gaps(tmp_path: Path) -> None:
    instruments, recovered = open_grafted()
    alone, text = Anatomy(recovered), instruments.calibration
    account = Account(Measured(Sweep(instruments)))
    kept = (0, 2, 3)
    for name, theirs in [
        ("magnitude", measure_magnitude(alone)),
        ("block_influence", measure_block_influence(alone, text, micro_batch=4)),
        ("taylor", measure_taylor(alone, text, micro_batch=4)),
    ]:
        found = account.weigh_layers(name)
        assert [found[layer] for layer in kept] == theirs
        assert found[1] == pytest.approx(0, abs=1e-9)
    for count in (1, 2):
        theirs = measure_angular_distances(alone, text, num_layers=count, micro_batch=4)
        assert account.measure_distances(count) == theirs
    part = instruments.validation.take_evenly(96)
    wanted = measure_unrecovered(instruments.source, [drop(1, 2)], part, micro_batch=4)[0].loss
    assert account.score([drop(1, 2)], proxy="none", share=0.25) == [wanted]
    prices = account.measured.prices
    before = account.spent
    account.score([drop(1)], proxy="closed-form")  # nothing is cut anew, so nothing is fitted
    assert account.spent - before == pytest.approx(prices.trace + 384 * (3 + prices.head))
