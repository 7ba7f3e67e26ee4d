"""The answer: which model to ship within each margin, how sure that is, and who is as good."""

import msgspec
import pytest

from seed.findings import StudyRecord
from seed.records import DistillResult
from seed.reporting.answers import (
    list_contenders,
    recommend,
    say_baselines,
    say_certainty,
    say_contender,
    say_disturbance,
    say_introduction,
    say_neighbour,
    say_recommendation,
    say_unhelped,
)

from . import factory


def place(result: DistillResult, *, ratio: float, error: float = 0.001, kept: int | None = None) -> DistillResult:
    """The same model with another PPL ratio on test text, and perhaps another latency."""
    quality = factory.make_quality(ratio, error=error)
    latency = result.latency if kept is None else factory.make_latency(kept)
    return msgspec.structs.replace(result, test=quality, latency=latency)


@pytest.fixture
def three(record: StudyRecord) -> StudyRecord:
    """One model a depth, 1.012, 1.045 and 1.3."""
    ratios = (1.012, 1.045, 1.3)
    models = [place(record.distilled[2 * i], ratio=ratio, kept=11 - i) for i, ratio in enumerate(ratios)]
    return msgspec.structs.replace(record, distilled=tuple(models), equivalences=())


def test_the_fastest_that_keeps_the_margin_is_recommended(three: StudyRecord) -> None:
    two, five, ten = recommend(three)
    assert [one.margin for one in (two, five, ten)] == [2, 5, 10]
    assert two.contender is not None
    assert two.contender.key == three.distilled[0].key
    assert five.contender == ten.contender
    assert five.contender is not None
    assert five.contender.key == three.distilled[1].key
    assert two.is_sure
    assert five.is_sure


def test_an_interval_that_reaches_beyond_the_margin_is_not_sure(three: StudyRecord) -> None:
    vague = place(three.distilled[0], ratio=1.019, error=0.002)
    [found] = recommend(msgspec.structs.replace(three, distilled=(vague,)), margins=[2])
    assert not found.is_sure
    assert say_certainty(found) == "95\u00a0% interval 1.015 to 1.023, some of it beyond"
    assert say_certainty(found, names_margin=True).endswith(", some of it beyond 2\u00a0%")
    assert "1.023" in say_recommendation(found, three)


def test_where_none_keeps_the_margin_the_nearest_is_named(three: StudyRecord) -> None:
    far = msgspec.structs.replace(three, distilled=three.distilled[2:])
    found = recommend(far)
    assert [one.contender for one in found] == [None, None, None]
    said = say_recommendation(found[0], far)
    assert said.startswith("Within 2\u00a0% PPL: none; the nearest is 9 of 12 layers")
    assert "1.300 ± 0.001" in said


def test_a_model_within_the_margin_that_is_not_faster_is_named_and_perplexity_is_not_blamed(three: StudyRecord) -> None:
    slow = msgspec.structs.replace(
        three.distilled[0], latency=factory.make_latency(11, shift=0.1), test=factory.make_quality(1.009, error=0.001)
    )
    record = msgspec.structs.replace(three, distilled=(slow,))
    said = say_recommendation(recommend(record)[0], record)
    assert said.startswith("Within 2\u00a0% PPL: none; the best that stays within, 11 of 12 layers")
    assert "1.009" in said
    assert "was not measured faster than the dense model: 1.03 times slower" in said


def test_few_documents_leave_a_ratio_without_an_interval(three: StudyRecord) -> None:
    few = [msgspec.structs.replace(one, test=msgspec.structs.replace(one.test, documents=2)) for one in three.distilled]
    record = msgspec.structs.replace(three, distilled=tuple(few))
    [found] = recommend(record, margins=[2])
    assert found.contender is not None
    assert found.contender.ppl_ratio.low is None
    assert not found.is_sure
    assert "too few documents for an interval" in say_recommendation(found, record)


def test_speed_of_a_few_pairs_is_said_to_be_unsure(three: StudyRecord) -> None:
    latency = msgspec.structs.replace(factory.make_latency(11), repeats=2, ratio_low=None, ratio_high=None)
    quick = msgspec.structs.replace(three.distilled[0], latency=latency)
    record = msgspec.structs.replace(three, distilled=(quick,))
    said = say_recommendation(recommend(record)[0], record)
    assert "times faster to decode in 2 timed pairs, too few to be sure" in said
    assert say_disturbance(record) == ""


def test_a_busy_machine_is_named_beside_the_answer(three: StudyRecord) -> None:
    latency = msgspec.structs.replace(factory.make_latency(11), disturbance="other processes took 0.9 of 2 cores")
    busy = msgspec.structs.replace(three.distilled[0], latency=latency)
    record = msgspec.structs.replace(three, distilled=(busy,))
    assert "(11 layers: other processes took 0.9 of 2 cores)" in say_disturbance(record)


def test_contenders_are_chosen_on_validation_text(record: StudyRecord) -> None:
    first, second = record.distilled[:2]
    better = msgspec.structs.replace(second, validation=factory.make_quality(0.99))
    found = list_contenders(msgspec.structs.replace(record, distilled=(first, better), equivalences=()))
    assert [one.key for one in found] == [second.key]
    assert first.test.ppl_ratio < second.test.ppl_ratio


def test_neighbours_are_said_with_their_intervals(record: StudyRecord) -> None:
    names = [", ".join(map(str, result.candidate.dropped_layers)) for result in record.distilled[1::2]]
    assert [say_neighbour(found, record) for found in record.equivalences] == [
        f"better than the one without {names[0]} (its PPL: +1.2 [+0.7, +1.7]\u00a0%)",
        f"tied with the one without {names[1]} (its PPL: +0.1 [-0.4, +0.6]\u00a0%)",
        f"worse than the one without {names[2]} (its PPL: -2.0 [-2.5, -1.5]\u00a0%)",
    ]
    sentences = [say_contender(one, record) for one in list_contenders(record)]
    for sentence, found in zip(sentences, record.equivalences, strict=True):
        assert sentence.endswith(f", {say_neighbour(found, record)}.")


def test_without_distillation_the_proxy_answers(undistilled: StudyRecord) -> None:
    assert "Nothing was distilled" in say_introduction(undistilled)
    contenders = list_contenders(undistilled)
    assert [len(one.candidate.dropped_layers) for one in contenders] == [1, 2, 3]
    assert not any(one.is_distilled for one in contenders)
    for one, member in zip(contenders, undistilled.frontier.members[::2], strict=True):
        said = say_contender(one, undistilled)
        assert "validation PPL ratio" in said
        assert said.endswith(f", by the proxy tied with {len(member.tied_with)} other.")


def test_replicas_answer_with_their_mean_and_interval() -> None:
    from .test_replication import make_replicated

    record = make_replicated()
    contender = list_contenders(record)[0]
    assert contender.ppl_ratio == record.replications[contender.key].ppl_ratio
    assert "mean of 3" in say_contender(contender, record)


def test_uniform_width_is_set_beside(record: StudyRecord) -> None:
    assert say_baselines(record) == ""
    said = say_baselines(msgspec.structs.replace(record, baselines=record.distilled[:2]))
    assert said.startswith("For comparison, all layers kept and cut evenly in width: ")
    for result in record.distilled[:2]:
        assert f"test PPL ratio {result.test.ppl_ratio:.3f}" in said


def test_of_models_whose_speed_cannot_be_told_apart_the_better_is_recommended(three: StudyRecord) -> None:
    slow, fast, _ = three.distilled
    close = msgspec.structs.replace(
        fast,
        latency=msgspec.structs.replace(slow.latency, structure="other", ratio=slow.latency.ratio - 0.001),
        test=factory.make_quality(1.018, error=0.001),
    )
    [found] = recommend(msgspec.structs.replace(three, distilled=(slow, close)), margins=[2])
    assert found.contender is not None
    assert found.contender.key == slow.key


def test_what_is_slower_than_the_dense_model_is_not_recommended(three: StudyRecord) -> None:
    slower = place(three.distilled[0], ratio=1.001, kept=13)
    assert slower.latency.ratio > 1
    [found] = recommend(msgspec.structs.replace(three, distilled=(slower,)), margins=[2])
    assert found.contender is None


def test_two_structures_of_one_depth_both_contend(three: StudyRecord) -> None:
    one, other, _ = three.distilled
    twin = msgspec.structs.replace(
        other, candidate=factory.make_candidate(7), latency=msgspec.structs.replace(other.latency, structure="sliding")
    )
    found = list_contenders(msgspec.structs.replace(three, distilled=(one, twin)))
    assert [contender.key for contender in found] == [twin.key, one.key]


def test_ties_that_were_not_distilled_are_told(three: StudyRecord) -> None:
    first, *rest = three.frontier.members
    tied = msgspec.structs.replace(first, tied_with=("drop-9", "drop-8", three.distilled[1].key))
    frontier = msgspec.structs.replace(three.frontier, members=(tied, *rest))
    record = msgspec.structs.replace(three, frontier=frontier)
    said = say_contender(list_contenders(record)[0], record)
    assert said.endswith("by the proxy tied with 2 others that were not distilled.")


def test_where_recovery_did_not_help_is_said(record: StudyRecord) -> None:
    helped = [msgspec.structs.replace(one, test_unrecovered=factory.make_quality(2.0)) for one in record.distilled]
    assert say_unhelped(helped) is None
    worse = msgspec.structs.replace(helped[0], test=helped[0].test_unrecovered)
    layers = ", ".join(worse.candidate.dropped_parts)
    said = say_unhelped([worse, *helped[1:]])
    assert said is not None
    assert said.startswith(f"Recovery did not help on test text without {layers}. Give more --distill-tokens")
