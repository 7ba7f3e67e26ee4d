"""A finished study's result, computed once from its record: models, the best of each depth, which to ship, what figures show.

Terminal, ``--json``, page and dashboard read it; nothing is drawn or worded here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from seed.evidence import Replication, StudyRecord
from seed.records import (
    DENSE,
    Candidate,
    DistillResult,
    Estimate,
    Evaluation,
    Latency,
    Quality,
    Size,
    TaskScore,
    WidthCut,
)
from seed.stats import reach_over_documents, student_t

MOST_AHEAD = 16  # tokens that a draft is expected to write at a time
MARGINS = (2, 5, 10)  # per cent of the dense model's perplexity
MOST_COUNTED = 20  # candidates of a depth whose dropped layers are counted


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that a study found: distilled and judged on test text, or as the proxy sees it on validation text."""

    key: str
    candidate: Candidate
    width: WidthCut | None = None
    size: Size
    latency: Latency
    quality: Quality
    ppl_ratio: Estimate  # with its 95 % interval; of several distillations their mean
    num_distilled: int  # 0: as the proxy sees it
    unrecovered: float | None  # PPL ratio of the same layers without recovery, on the same text
    user_score: float | None = None
    tasks: tuple[TaskScore, ...] = ()
    keeps_tasks: bool = True  # as much of the dense model's scores as was asked for

    @property
    def depth(self) -> float:
        """How many layers are gone."""
        return self.candidate.num_dropped

    @property
    def is_distilled(self) -> bool:
        """Was it recovered in full, and judged on test text?"""
        return self.num_distilled > 0


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The fastest of the best whose perplexity is at most ``margin`` per cent above the dense model's.

    Of those whose speed cannot be told from the fastest one's, since the intervals overlap, it is the one that loses the
    least perplexity; none that is slower than the dense model.
    """

    margin: int
    chosen: Model | None  # None: none stays within and was measured faster
    is_sure: bool  # the whole 95 % interval stays within
    slower: Model | None = None  # the best that stays within, where none of those was measured faster


@dataclass(frozen=True, kw_only=True)
class Link:
    """A distilled model beside the same candidate as the proxy saw it."""

    proxy: Model
    model: Model
    validation: Quality  # of the distilled one


@dataclass(frozen=True, kw_only=True)
class DepthDrops:
    """Which layers the best candidates of a depth drop, by the proxy."""

    depth: float
    num_best: int
    num_scored: int
    shares: tuple[float, ...]  # of the best, that drop each layer


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A distilled model, or the dense one, as it is stored: in its own type, or in fewer bits. On test text."""

    model: Model | None  # None: the dense model
    bits: int | None  # of a weight; None: as the checkpoint has it
    weight_bytes: int
    ppl_ratio: Estimate
    is_best: bool = False  # no other is as small and as good


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """All that is shown of a study beside its record."""

    record: StudyRecord
    distilled: tuple[Model, ...]
    width_baselines: tuple[Model, ...]  # of uniform width
    frontier: tuple[Model, ...]  # by the proxy, as the record has it
    best: tuple[Model, ...]  # of each depth, least dropped first; distilled ones where there are any
    recommended: tuple[Recommendation, ...]
    scored: tuple[Model, ...]  # by the proxy, those that are not on the frontier
    links: tuple[Link, ...]
    drops: tuple[DepthDrops, ...]
    stored: tuple[Stored, ...]  # where fewer bits were asked for; the largest first
    disturbances: Mapping[str, str]  # by structure: what else the machine did while it was timed

    @property
    def shipped(self) -> Model | None:
        """The model to ship where nobody says what is acceptable: that of the widest margin."""
        return self.recommended[-1].chosen


def compute_result(record: StudyRecord) -> StudyResult:
    """Compute what a study found."""
    distilled = tuple(
        judge_tasks(take_distilled(result, record.replications.get(result.key)), record) for result in record.distilled
    )
    proxy, members = record.frontier.proxy, record.frontier.members
    frontier = tuple(take_scored(one.evaluation, proxy=proxy) for one in members)
    best = choose_best(record, distilled, frontier)
    complete = [trial.evaluation for trial in record.trials if trial.state == "COMPLETE"]
    scored = [take_scored(one, proxy=proxy) for one in complete if proxy in one.qualities]
    known = {model.key: model for model in (*scored, *frontier)}
    on_frontier = {model.key for model in frontier}
    judged = (*record.distilled, *record.width_baselines)
    latencies = [trial.evaluation.latency for trial in record.trials] + [result.latency for result in judged]
    return StudyResult(
        record=record,
        distilled=distilled,
        width_baselines=tuple(take_distilled(one, record.replications.get(one.key)) for one in record.width_baselines),
        frontier=frontier,
        best=best,
        recommended=tuple(recommend(best, margin=margin) for margin in MARGINS),
        scored=tuple(model for key, model in known.items() if key not in on_frontier),
        links=tuple(
            Link(proxy=known[model.key], model=model, validation=result.validation)
            for model, result in zip(distilled, record.distilled, strict=True)
            if model.key in known
        ),
        drops=count_drops(tuple(known.values())),
        stored=list_stored(record, distilled),
        disturbances={one.structure: one.disturbance for one in latencies if one.disturbance},
    )


def list_stored(record: StudyRecord, distilled: Sequence[Model]) -> tuple[Stored, ...]:
    """List the dense model and the distilled ones as they are and in fewer bits, the largest first; none where no bits were asked for."""
    if not record.packed:
        return ()
    whole = Estimate(value=1.0, low=None, high=None)
    found = [Stored(model=None, bits=None, weight_bytes=record.dense.size.weight_bytes, ppl_ratio=whole)]
    found += [
        Stored(model=one, bits=None, weight_bytes=one.size.weight_bytes, ppl_ratio=read_interval(one.quality))
        for one in distilled
    ]
    models: dict[str, Model | None] = {DENSE: None, **{one.key: one for one in distilled}}
    found += [
        Stored(model=models[key], bits=one.bits, weight_bytes=one.weight_bytes, ppl_ratio=read_interval(one.quality))
        for key, packed in record.packed.items()
        for one in packed
    ]
    found.sort(key=lambda one: (one.weight_bytes, one.ppl_ratio.value or math.inf))
    ratios = [one.ppl_ratio.value or math.inf for one in found]
    best = [ratio < min(ratios[:place], default=math.inf) for place, ratio in enumerate(ratios)]
    return tuple(replace(one, is_best=is_best) for one, is_best in zip(found, best, strict=True))[::-1]


def judge_tasks(model: Model, record: StudyRecord) -> Model:
    """Return the model with its scores of tasks, and whether they are as good as was asked for."""
    scores = record.tasks.get(model.key, ())
    known = {score.task: score for score in choose_metrics(scores)}
    keeps = all(keeps_share(known.get(task), share) for task, share in record.floors.items())
    return replace(model, tasks=scores, keeps_tasks=keeps)


def keeps_share(score: TaskScore | None, share: float) -> bool:
    """Does a model keep so much of the dense model's score? Of a score that should be low, it may exceed it by as much.

    One that was not asked does not.
    """
    if score is None or score.dense_value is None:
        return False
    if score.higher_is_better is False:
        return share * score.value <= score.dense_value
    return score.value >= share * score.dense_value


def choose_metrics(scores: Sequence[TaskScore]) -> list[TaskScore]:
    """Return the score that each task is known by: accuracy by length where it has that, else its first."""
    chosen: dict[str, TaskScore] = {}
    for score in scores:
        if score.task not in chosen or score.metric == "acc_norm":
            chosen[score.task] = score
    return list(chosen.values())


def read_difference(score: TaskScore) -> Estimate:
    """Return what a score is above the dense model's, with its 95 % interval over documents."""
    error, value = score.difference_standard_error, score.difference
    if error is None or value is None:
        return Estimate(value=value, low=None, high=None)
    reach = student_t(score.documents - 1) * error
    return Estimate(value=value, low=value - reach, high=value + reach)


def take_distilled(result: DistillResult, replication: Replication | None = None) -> Model:
    """Return a distilled model; its PPL ratio is the mean of its replicas where there are several."""
    is_mean = replication is not None and replication.ppl_ratio.value is not None
    return Model(
        key=result.key,
        candidate=result.candidate,
        width=result.width,
        size=result.size,
        latency=result.latency,
        quality=result.test,
        ppl_ratio=replication.ppl_ratio if replication and is_mean else read_interval(result.test),
        num_distilled=len(replication.rng_seeds) if replication and is_mean else 1,
        unrecovered=result.test_unrecovered.ppl_ratio,
        user_score=result.user_score,
    )


def take_scored(evaluation: Evaluation, *, proxy: str) -> Model:
    """Return a candidate as the proxy sees it."""
    quality, raw = evaluation.qualities[proxy], evaluation.qualities.get("none")
    return Model(
        key=evaluation.candidate.key,
        candidate=evaluation.candidate,
        size=evaluation.size,
        latency=evaluation.latency,
        quality=quality,
        ppl_ratio=read_interval(quality),
        num_distilled=0,
        unrecovered=None if raw is None else raw.ppl_ratio,
    )


def choose_best(record: StudyRecord, distilled: Sequence[Model], frontier: Sequence[Model]) -> tuple[Model, ...]:
    """Return the best model of each structure, least dropped first: of one kind of layers, of each depth.

    Best on validation text: choosing on test text would make the test numbers too good.
    """
    if not distilled:
        ranks = [member.rank for member in record.frontier.members]
        return tuple(model for model, rank in zip(frontier, ranks, strict=True) if rank == 0)
    best: dict[str, Model] = {}
    pairs = zip(record.distilled, distilled, strict=True)
    for _, model in sorted(pairs, key=lambda pair: (pair[0].validation.loss, pair[1].key)):
        best.setdefault(model.latency.structure, model)
    return tuple(sorted(best.values(), key=lambda model: (model.depth, model.latency.ratio)))


def recommend(best: Sequence[Model], *, margin: int) -> Recommendation:
    """Return which model to ship within a margin, in per cent."""
    limit = 1 + margin / 100
    within = [one for one in best if one.keeps_tasks and _read_ratio(one) <= limit]
    surely = [one for one in within if one.latency.ratio_high is not None and one.latency.ratio_high < 1]
    faster = surely or [
        one for one in within if one.latency.ratio < 1
    ]  # where timings are too few or too noisy to be sure of any
    fastest = min(faster, key=lambda one: one.latency.ratio, default=None)
    level = [one for one in faster if fastest and _may_be_as_fast(one.latency, fastest.latency)]
    chosen = min(level, key=_read_ratio, default=None)
    is_sure = chosen is not None and chosen.ppl_ratio.high is not None and chosen.ppl_ratio.high <= limit
    slower = None if faster else min(within, key=_read_ratio, default=None)
    return Recommendation(margin=margin, chosen=chosen, is_sure=is_sure, slower=slower)


def recommend_faster(best: Sequence[Model], *, speedup: float) -> Model | None:
    """Return the model that loses the least perplexity of those that are faster than the dense model, at least so many times."""
    fast = [one for one in best if one.keeps_tasks and one.latency.ratio < 1 and one.latency.ratio * speedup <= 1]
    return min((one for one in fast if one.ppl_ratio.value is not None), key=_read_ratio, default=None)


def _may_be_as_fast(latency: Latency, fastest: Latency) -> bool:
    """Do the intervals of two latency ratios overlap? Timed too few times for intervals, they are told apart by nothing."""
    return latency.ratio_low is None or fastest.ratio_high is None or latency.ratio_low <= fastest.ratio_high


def _read_ratio(model: Model) -> float:
    return math.inf if model.ppl_ratio.value is None else model.ppl_ratio.value


def find_nearest(best: Sequence[Model], found: Recommendation) -> Model:
    """Return what comes nearest to what may be shipped, where nothing may: within the margin if there is one."""
    return found.slower or min(best, key=_read_ratio)


def count_drops(scored: Sequence[Model]) -> tuple[DepthDrops, ...]:
    """Count, for each depth, which layers its best candidates drop: a quarter of those scored, twenty at most."""
    by_depth: dict[float, list[Candidate]] = {}
    for model in sorted(scored, key=lambda model: (model.quality.loss, model.key)):
        by_depth.setdefault(model.depth, []).append(model.candidate)
    found = []
    for depth, candidates in sorted(by_depth.items()):
        best = candidates[: max(1, min(MOST_COUNTED, len(candidates) // 4))]
        shares = np.mean([mark_dropped(candidate) for candidate in best], axis=0).tolist()
        found.append(DepthDrops(depth=depth, num_best=len(best), num_scored=len(candidates), shares=tuple(shares)))
    return tuple(found)


def mark_dropped(candidate: Candidate) -> list[float]:
    """Return 1 for each dropped layer, half for one that lacks a part and 0 for a whole one, of shape (num_layers,)."""
    gone = set(candidate.dropped_layers)
    return [1.0 if layer in gone else 0.5 * (layer in candidate.lacking) for layer in range(candidate.num_layers)]


# ---- as a draft of the dense model


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """What a model gains as a draft in speculative decoding, which changes nothing of what the dense model writes."""

    tokens_ahead: int  # that it drafts at a time; 0: it is no gain
    speedup: float  # expected, over the dense model alone


def expect_drafting(accepted: float | None, latency: Latency) -> Drafting | None:
    """Return the best number of tokens to draft, and the speed-up expected of it (arXiv 2211.17192, theorem 3.8).

    ``accepted``: the share of the draft's tokens that the dense model accepts; None: not known.
    """
    if accepted is None:
        return None
    cost = latency.ratio
    kept = {ahead: sum(accepted**place for place in range(ahead + 1)) for ahead in range(MOST_AHEAD + 1)}
    speedups = {ahead: tokens / (ahead * cost + 1) for ahead, tokens in kept.items()}
    best = max(speedups, key=lambda ahead: speedups[ahead])
    return Drafting(tokens_ahead=best, speedup=speedups[best])


# ---- intervals


def read_interval(quality: Quality) -> Estimate:
    """Return a quality's PPL ratio with its 95 % interval over documents; without, where they are too few for one."""
    reach = reach_over_documents(quality.effective_documents)
    if reach is None:
        return Estimate(value=quality.ppl_ratio, low=None, high=None)
    half = reach * quality.ppl_ratio_standard_error
    return Estimate(value=quality.ppl_ratio, low=quality.ppl_ratio - half, high=quality.ppl_ratio + half)


def read_latency_ratio(latency: Latency) -> Estimate:
    """Return a latency ratio with its 95 % interval."""
    return Estimate(value=latency.ratio, low=latency.ratio_low, high=latency.ratio_high)


def read_speedup(latency: Latency) -> Estimate:
    """Return how many times as fast as the dense model it decodes, with its 95 % interval."""
    low, high = (None if ratio is None else 1 / ratio for ratio in (latency.ratio_high, latency.ratio_low))
    return Estimate(value=1 / latency.ratio, low=low, high=high)


def read_excess(ratio: Estimate) -> Estimate:
    """Return what a ratio is above 1, in per cent."""
    value, low, high = (None if end is None else 100 * (end - 1) for end in (ratio.value, ratio.low, ratio.high))
    return Estimate(value=value, low=low, high=high)
