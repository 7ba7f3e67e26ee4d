"""What the scores of a study say: what layers cost, what repeated distillations agree on."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from msgspec.structs import replace

from seed.evidence import Equivalence, Replication, Sensitivity, TrainedRun
from seed.records import (
    DENSE,
    DenseResult,
    DistillResult,
    MetricScore,
    Replica,
    ScoreRow,
    SearchSpace,
    TaskRecord,
    TaskRun,
    TaskScore,
    read_dropped,
)
from seed.stats import estimate_ratio, judge_difference


def stack_losses(replicas: Sequence[Replica | TrainedRun]) -> np.ndarray:
    """Summed test losses of S distillations over D documents, as estimates take them: (1, S, D); not a number where a student was broken."""
    return np.array([[replica.test_sums for replica in replicas]], dtype=float)


def is_paired(ours: Sequence[Replica | TrainedRun], theirs: Sequence[Replica | TrainedRun]) -> bool:
    """Were two models distilled under the same random seeds, in the same order? Only then are they compared."""
    return bool(ours) and [one.rng_seed for one in ours] == [one.rng_seed for one in theirs]


def list_ratios(losses_RSD: np.ndarray, dense_D: Sequence[float], counts_D: np.ndarray) -> np.ndarray:
    """The PPL ratio of each of S distillations to the dense model (S)."""
    ratios_S: np.ndarray = np.exp((losses_RSD[0] - np.array(dense_D)).sum(axis=-1) / counts_D.sum())
    return ratios_S


def summarize_replicas(replicas: Sequence[Replica], dense: DenseResult) -> Replication:
    """Return the mean PPL ratio of replicas to the dense model with its interval, and their spread."""
    losses_RSD, counts_D = stack_losses(replicas), np.array(dense.test_counts)
    ratios_S = list_ratios(losses_RSD, dense.test_sums, counts_D)
    is_known = len(replicas) > 1 and bool(np.isfinite(ratios_S).all())
    return Replication(
        rng_seeds=tuple(replica.rng_seed for replica in replicas),
        ppl_ratio=estimate_ratio(losses_RSD, dense.test_sums, counts_D),
        spread=float(ratios_S.std(ddof=1)) if is_known else None,
    )


def compare_replicated(results: Sequence[DistillResult], dense: DenseResult) -> tuple[Equivalence, ...]:
    """Compare, within each depth, every replicated model with the one that validated best; fewest dropped first."""
    by_depth: dict[float, list[DistillResult]] = {}
    for result in results:
        by_depth.setdefault(result.candidate.num_dropped, []).append(result)
    found = []
    for _, group in sorted(by_depth.items()):
        best = min(group, key=lambda result: result.validation.loss)
        for other in group:
            is_alike = other.settings.get("distill_tokens") == best.settings.get("distill_tokens")
            if other is best or not (is_alike and is_paired(other.replicas, best.replicas)):
                continue
            excess, verdict = judge_difference(
                stack_losses(other.replicas), stack_losses(best.replicas), np.array(dense.test_counts)
            )
            found.append(Equivalence(one=other.key, other=best.key, excess=excess, verdict=verdict))
    return tuple(found)


def compare_scores(model: Sequence[MetricScore], dense: Sequence[MetricScore] | None) -> list[TaskScore]:
    """The scores of a model, beside those of the dense model where it ran the same tasks.

    The standard error of a difference is that of the paired differences by document, which is much smaller than what the
    two standard errors would give; None where a metric is no mean over documents.
    """
    if dense is None:
        return [one.score for one in model]
    beside = {(one.score.task, one.score.metric): one for one in dense}
    pairs = [(one, beside.get((one.score.task, one.score.metric))) for one in model]
    return [ours.score if theirs is None else _compare(ours, theirs) for ours, theirs in pairs]


def _compare(model: MetricScore, dense: MetricScore) -> TaskScore:
    spread = None
    if model.by_document is not None and dense.by_document is not None and len(model.by_document) > 1:
        gaps = np.subtract(model.by_document, dense.by_document)
        spread = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    return replace(
        model.score,
        dense_value=dense.score.value,
        dense_standard_error=dense.score.standard_error,
        difference=model.score.value - dense.score.value,
        difference_standard_error=spread,
    )


def list_task_scores(found: TaskRecord, checkpoints: Mapping[str, str | None]) -> dict[str, tuple[TaskScore, ...]]:
    """The scores of models as they are now, beside the dense model's, by key. ``checkpoints``: hashes of their provenance.

    Only what was run alike on both: a task that the dense model ran later with another limit is that of the later run.
    """
    dense = {run.name: run for run in found.runs.get(DENSE, ())}
    scores: dict[str, tuple[TaskScore, ...]] = {}
    for key, sha256 in checkpoints.items():
        runs = [run for run in found.runs.get(key, ()) if run.provenance_sha256 == sha256]
        alike = [run for run in runs if run.name in dense and is_run_alike(run, dense[run.name])]
        scores[key] = tuple(
            score
            for run in alike
            for score in compare_scores(run.scores, None if key == DENSE else dense[run.name].scores)
        )
    return {key: told for key, told in scores.items() if told}


def is_run_alike(one: TaskRun, other: TaskRun) -> bool:
    """Were the same documents of the same tasks asked?"""
    return (one.name, one.limit, one.files_sha256) == (other.name, other.limit, other.files_sha256)


MAX_LOG_RATIO = 20.0  # a broken model's PPL ratio may be any number


def read_sensitivities(rows: Iterable[ScoreRow], space: SearchSpace) -> tuple[Sensitivity, ...]:
    """Return a sensitivity for each proxy by which single layers were scored, those without recovery first.

    Args:
        rows: lines of the sweep, the dense model's among them.
        space: layers that were gone before count as gone everywhere.
    """
    known = list(rows)
    dense = next((row for row in known if row.counts), None)
    if dense is None or dense.counts is None or (dense_sum := _add(dense.sums)) is None:
        return ()
    ratios: dict[str, dict[tuple[int, ...], float]] = {}
    for row in known:
        dropped, total = read_dropped(row.key), _add(row.sums)
        if dropped is not None and all(map(str.isdigit, dropped)) and total is not None:
            excess = (total - dense_sum) / sum(dense.counts)
            ratios.setdefault(row.proxy, {})[tuple(map(int, dropped))] = math.exp(min(excess, MAX_LOG_RATIO))
    order = sorted(ratios, key=lambda proxy: ({"none": 0, "closed-form": 1}.get(proxy, 2), proxy))
    found = [_take_proxy(proxy, ratios[proxy], space) for proxy in order]
    return tuple(one for one in found if any(ratio is not None for ratio in one.singles))


def _take_proxy(proxy: str, ratios: dict[tuple[int, ...], float], space: SearchSpace) -> Sensitivity:
    gone = set(space.gone_layers)
    singles: list[float | None] = [None] * space.num_layers
    for dropped, ratio in sorted(ratios.items()):
        more = [layer for layer in dropped if layer not in gone]
        if len(dropped) - len(more) != len(gone) or max(dropped) >= space.num_layers:
            continue
        if len(more) == 1:
            singles[more[0]] = ratio
    return Sensitivity(proxy=proxy, singles=tuple(singles))


def _add(sums: list[float | None]) -> float | None:
    numbers = [number for number in sums if number is not None and math.isfinite(number)]
    return sum(numbers) if len(numbers) == len(sums) else None
