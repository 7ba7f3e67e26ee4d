"""Prices in layer-tokens are those of a model whose multiply-adds can be counted by hand."""

import itertools

import pytest

from seed.models.anatomy import Anatomy
from seed.proxy.pricing import Prices, set_prices
from seed.proxy.subset_walker import count_work
from tests.models.families import make_model
from tests.proxy.opened import DENSE, keep

# llama: four heads of 8 with two keys and values; three matrices of the gated MLP
LLAMA_LAYER = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32
# gpt2: queries, keys, values, their output, and two matrices four times as wide
GPT2_LAYER = 4 * 32 * 32 + 2 * 32 * 128
PRICES = Prices(num_layers=4, calibration_tokens=100, validation_tokens=40, head=0.5, fit=7.0, solve=11.0)


@pytest.mark.parametrize(("family", "layer", "reads"), [("llama", LLAMA_LAYER, 64), ("gpt2", GPT2_LAYER, 128)])
def test_prices_of_a_model_counted_by_hand(family: str, layer: int, reads: int) -> None:
    prices = set_prices(Anatomy(make_model(family)), calibration_tokens=1000, validation_tokens=300)
    assert (prices.num_layers, prices.calibration_tokens, prices.validation_tokens) == (4, 1000, 300)
    assert prices.head == pytest.approx(257 * 32 / layer)
    # five ridges are tried, and the best is solved again
    assert prices.fit == pytest.approx((1000 * reads**2 + 6 * reads**3 / 3) / layer)
    # gaps multiplied on calibration text, maps applied to both texts; two triangular solves and a residual for each
    assert prices.solve == pytest.approx((2300 * reads * 32 + 11 * reads**2 * 32) / layer)


def test_what_closed_form_does_not_know_costs_no_fit() -> None:
    prices = set_prices(Anatomy(make_model("ctrl")), calibration_tokens=1000, validation_tokens=300)
    assert (prices.fit, prices.solve) == (0, 0)
    assert prices.head > 0


def test_without_recovery_a_trie_costs_its_nodes_and_heads() -> None:
    # 0; 0 1; 0 1 3; 0 2; 0 2 3
    work = count_work([keep(0, 1, 3), keep(0, 2, 3)], closed_form=False)
    assert PRICES.price(work) == 40 * (5 + 0.5 * 2)
    assert PRICES.price(count_work([DENSE], closed_form=False)) == 40 * (4 + 0.5)
    assert PRICES.price(count_work([], closed_form=False)) == 0


def test_closed_form_pays_for_both_texts_fits_and_maps() -> None:
    # 0 before 1 is as it was; 1 before 3, 3; then 0 before 2, 2 before 3, 3: all run anew behind a cut
    work = count_work([keep(0, 1, 3), keep(0, 2, 3)], closed_form=True)
    assert PRICES.price(work) == 40 * (1 + 0.5 * 2) + 5 * (100 + 40 + 7.0) + 5 * 11.0
    # 1 behind the cut is run once, and solved for once before 2 and once before 3
    work = count_work([keep(1, 2), keep(1, 3)], closed_form=True)
    assert PRICES.price(work) == 40 * 0.5 * 2 + 3 * (100 + 40 + 7.0) + 4 * 11.0
    assert PRICES.price(count_work([DENSE], closed_form=True)) == 40 * (4 + 0.5)


def test_less_validation_text_costs_less_of_it_only() -> None:
    pair = [keep(0, 1, 3), keep(0, 2, 3)]
    raw, closed = (count_work(pair, closed_form=closed_form) for closed_form in (False, True))
    assert PRICES.price(raw, validation_tokens=10) == PRICES.price(raw) / 4
    assert PRICES.price(closed, validation_tokens=10) == 10 * (1 + 0.5 * 2) + 5 * (100 + 10 + 7.0) + 5 * 11.0


def test_a_trace_and_a_gradient_of_the_dense_model() -> None:
    assert PRICES.trace == 100 * 4
    assert PRICES.gradient == 3 * 100 * (4 + 0.5)  # forward, and twice as much back


def test_a_distillation_pays_for_student_teacher_and_two_looks() -> None:
    # three passes of two layers and a head, one of the dense model's four and a head, for each token
    assert PRICES.distill(2, tokens=1000) == 1000 * (3 * 2.5 + 4.5) + 2 * 40 * 2.5


def test_sharing_never_costs_more_than_scoring_alone() -> None:
    every = [keep(*kept) for count in (2, 3) for kept in itertools.combinations(range(4), count)]
    for closed_form in (False, True):
        alone = sum(PRICES.price(count_work([one], closed_form=closed_form)) for one in every)
        ordered = sorted(every, key=lambda one: one.kept_layers)
        assert PRICES.price(count_work(ordered, closed_form=closed_form)) < 0.8 * alone
