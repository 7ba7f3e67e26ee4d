"""What a study found: which model is best and which to ship, and what is counted."""

import math
import re

import msgspec
import pytest

from seed.evidence import StudyRecord
from seed.records import DistillResult, Packed
from seed.reporting.result_text import describe_bits
from seed.results import (
    Recommendation,
    compute_result,
    recommend,
    recommend_faster,
)
from tests.reporting import factory

replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    """A finished study of 12 layers with six distilled models."""
    return factory.make_record()


def place(result: DistillResult, ratio: float, *, error: float = 0.001, kept: int | None = None) -> DistillResult:
    """The same model with another PPL ratio on test text, and perhaps another latency."""
    latency = result.latency if kept is None else factory.make_latency(kept)
    return replace(result, test=factory.make_quality(ratio, error=error), latency=latency)


@pytest.fixture
def three(record: StudyRecord) -> StudyRecord:
    """One model a depth, 1.012, 1.045 and 1.3."""
    ratios = (1.012, 1.045, 1.3)
    models = [place(record.distilled[2 * i], ratio, kept=11 - i) for i, ratio in enumerate(ratios)]
    return replace(record, distilled=tuple(models), equivalences=())


def advise(record: StudyRecord, *results: DistillResult, margin: int = 2) -> Recommendation:
    """What to ship of these models."""
    return recommend(compute_result(replace(record, distilled=results, equivalences=())).best, margin=margin)


def test_the_fastest_that_keeps_the_margin_is_recommended(three: StudyRecord) -> None:
    two, five, ten = compute_result(three).recommended
    assert [one.margin for one in (two, five, ten)] == [2, 5, 10]
    assert [one.chosen and one.chosen.key for one in (two, five, ten)] == [
        three.distilled[0].key,
        *[three.distilled[1].key] * 2,
    ]
    assert two.is_sure
    assert five.is_sure
    assert not advise(three, place(three.distilled[0], 1.019, error=0.002)).is_sure
    assert advise(three, *three.distilled[2:]) == Recommendation(margin=2, chosen=None, is_sure=False)


def test_of_models_whose_speed_cannot_be_told_apart_the_better_is_recommended(three: StudyRecord) -> None:
    slow, fast, _ = three.distilled
    close = replace(
        place(fast, 1.018), latency=replace(slow.latency, structure="other", ratio=slow.latency.ratio - 0.001)
    )
    found = advise(three, slow, close)
    assert found.chosen is not None
    assert found.chosen.key == slow.key


def test_what_may_be_no_faster_gives_way_to_what_surely_is(three: StudyRecord) -> None:
    noisy, sure, _ = three.distilled
    unsure = replace(noisy, latency=replace(noisy.latency, ratio_low=0.8, ratio_high=1.03))
    found = advise(three, unsure, sure, margin=5)
    assert found.chosen is not None
    assert found.chosen.key == sure.key
    alone = advise(three, unsure, margin=5)
    assert alone.chosen is not None  # nothing better is there, and its line says how sure its speed is


def test_what_is_slower_than_the_dense_model_is_not_recommended(three: StudyRecord) -> None:
    slower = place(three.distilled[0], 1.001, kept=13)
    found = advise(three, slower)
    assert found.chosen is None
    assert found.slower is not None
    assert found.slower.key == slower.key


def test_few_documents_leave_a_ratio_without_an_interval(three: StudyRecord) -> None:
    few = replace(three.distilled[0], test=replace(three.distilled[0].test, effective_documents=2.0))
    found = advise(three, few)
    assert found.chosen is not None
    assert (found.chosen.ppl_ratio.low, found.is_sure) == (None, False)


def test_the_best_are_chosen_on_validation_text(record: StudyRecord) -> None:
    first, second = record.distilled[:2]
    better = replace(second, validation=factory.make_quality(0.99))
    [found] = compute_result(replace(record, distilled=(first, better), equivalences=())).best
    assert found.key == second.key
    assert first.test.ppl_ratio < second.test.ppl_ratio


def test_two_structures_of_one_depth_both_contend(three: StudyRecord) -> None:
    one, other, _ = three.distilled
    twin = replace(other, candidate=factory.make_candidate(7), latency=replace(other.latency, structure="sliding"))
    found = compute_result(replace(three, distilled=(one, twin))).best
    assert [model.key for model in found] == [twin.key, one.key]


def test_without_distillation_the_proxy_answers(record: StudyRecord) -> None:
    result = compute_result(factory.without_distilled(record))
    assert [model.depth for model in result.best] == [1, 2, 3]
    assert not any(model.is_distilled for model in result.best)
    assert (result.links, result.distilled) == ((), ())


def test_replicas_answer_with_their_mean_and_interval() -> None:
    record = factory.make_full()
    first, _, third, *_ = compute_result(record).distilled
    assert first.ppl_ratio == record.replications[first.key].ppl_ratio
    assert (first.num_distilled, third.num_distilled) == (3, 1)
    assert first.ppl_ratio.value == pytest.approx(math.exp(sum(map(math.log, (1.05, 1.06, 1.055))) / 3), rel=1e-4)


def test_drops_are_counted_over_the_best_quarter_of_each_depth(record: StudyRecord) -> None:
    drops = compute_result(record).drops
    assert [(row.depth, row.num_best, row.num_scored) for row in drops] == [(1, 3, 12), (2, 16, 66), (3, 20, 100)]
    for row in drops:
        assert sum(row.shares) == pytest.approx(row.depth)
        assert row.shares[0] == 0  # by far the dearest of the factory's layers


def test_each_candidate_is_shown_once_and_failures_nowhere(record: StudyRecord) -> None:
    result = compute_result(record)
    keys = [model.key for model in (*result.scored, *result.frontier)]
    assert len(keys) == len(set(keys)) == 178
    assert 1.001 not in [model.quality.ppl_ratio for model in result.scored]  # of the trial that failed
    assert [link.model.key for link in result.links] == [one.key for one in record.distilled]
    stranger = replace(record.distilled[0], candidate=factory.make_candidate(0, 11), trial_number=None)
    assert compute_result(replace(record, distilled=(stranger,), trials=())).links == ()


def test_the_speed_that_is_wanted_is_had_at_the_least_loss() -> None:
    best = compute_result(factory.make_record()).best
    for speedup in (1.0, 1.1, 1.2, 2.0):
        fast = [model for model in best if model.latency.ratio < 1 and 1 / model.latency.ratio >= speedup]
        expected = min(fast, key=lambda model: model.quality.ppl_ratio, default=None)
        assert recommend_faster(best, speedup=speedup) == expected
    assert recommend_faster(best, speedup=2.0) is None


def test_sizes_that_no_other_beats_are_found_among_layers_and_bits(three: StudyRecord) -> None:
    first, second, _ = three.distilled

    def pack(bits: int, weight_bytes: int, ratio: float) -> Packed:
        quality = factory.make_quality(ratio)
        return Packed(bits=bits, weight_bytes=weight_bytes, quality=quality, provenance_sha256=None)

    sizes = [one.size.weight_bytes for one in (three.dense, *three.distilled)]
    assert compute_result(three).stored == ()
    packed = {
        "dense": (pack(8, sizes[0] // 2, 1.001), pack(4, sizes[0] // 4, 1.2)),
        first.key: (pack(8, sizes[1] // 2, 1.015),),
        second.key: (pack(4, sizes[2] // 4, 1.25),),
    }
    stored = compute_result(replace(three, packed=packed)).stored
    assert [one.weight_bytes for one in stored] == sorted((one.weight_bytes for one in stored), reverse=True)
    best = [(one.model and one.model.key, one.bits) for one in stored if one.is_best]
    assert best == [(None, None), (None, 8), (first.key, 8), (None, 4), (second.key, 4)]
    told = describe_bits(compute_result(replace(three, packed=packed)))
    assert re.search(r"2 by fewer bits alone, down to .* at \+20\.0.% PPL; none by fewer layers alone; 2 by both", told)
