"""What figures and page read out of a study's record: which numbers belong together, which models come first.

Nothing is drawn or worded here.
"""

import math
from collections.abc import Sequence

import numpy as np

from seed.evidence import TrainedRun
from seed.findings import StudyRecord
from seed.records import Candidate, DistillResult, Estimate, Evaluation, Latency, Quality, Replica
from seed.stats import reach_over_documents


def read_scored(record: StudyRecord) -> dict[str, Quality]:
    """Return, by candidate key, the quality by the frontier's rung of complete trials and frontier members."""
    evaluations = [trial.evaluation for trial in record.trials if trial.state == "COMPLETE"]
    evaluations += [member.evaluation for member in record.frontier.members]
    rung = record.frontier.rung
    return {
        evaluation.candidate.key: evaluation.qualities[rung]
        for evaluation in evaluations
        if rung in evaluation.qualities
    }


def find_links(record: StudyRecord, scored: dict[str, Quality]) -> list[tuple[Evaluation, Quality, DistillResult]]:
    """Return each distilled model beside the trial and the proxy quality of the same candidate, where there is one."""
    evaluations = {
        trial.evaluation.candidate.key: trial.evaluation for trial in record.trials if trial.state == "COMPLETE"
    }
    evaluations |= {member.evaluation.candidate.key: member.evaluation for member in record.frontier.members}
    keys = [(result.candidate.key, result) for result in record.distilled]
    return [(evaluations[key], scored[key], result) for key, result in keys if key in scored]


def count_drops(record: StudyRecord) -> list[tuple[int, int, int, list[float]]]:
    """Return a row for each depth: which layers its best candidates drop.

    A row is (dropped layers, how many candidates count as best, how many were scored, share of the best that drops
    each layer: a list of num_layers numbers).
    """
    scored = read_scored(record)
    candidates = {trial.evaluation.candidate.key: trial.evaluation.candidate for trial in record.trials}
    by_depth: dict[int, list[str]] = {}
    for key in sorted(scored.keys() & candidates.keys(), key=lambda key: (scored[key].loss, key)):
        by_depth.setdefault(count_dropped(candidates[key]), []).append(key)
    drops = []
    for depth, keys in sorted(by_depth.items()):
        best = keys[: max(1, min(20, len(keys) // 4))]
        shares = np.mean([mark_dropped(candidates[key]) for key in best], axis=0)
        drops.append((depth, len(best), len(keys), shares.tolist()))
    return drops


def list_ratios(
    runs: Sequence[Replica | TrainedRun], *, dense_sums: Sequence[float], test_counts: Sequence[int]
) -> list[float]:
    """Return the test PPL ratio of each distillation whose losses are numbers."""
    dense, tokens = sum(dense_sums), sum(test_counts)
    ratios = []
    for run in runs:
        sums = [loss for loss in run.test_sums if loss is not None and math.isfinite(loss)]
        if len(sums) == len(run.test_sums):
            ratios.append(math.exp(min((sum(sums) - dense) / tokens, 700.0)))  # a broken student's may be any number
    return ratios


def count_dropped(candidate: Candidate) -> int:
    """Return how many layers are gone."""
    return len(candidate.dropped_layers)


def mark_dropped(candidate: Candidate) -> list[float]:
    """Return 1 for each dropped layer and 0 for each kept one, of shape (num_layers,)."""
    return [float(layer in set(candidate.dropped_layers)) for layer in range(candidate.num_layers)]


def choose_best_distilled(record: StudyRecord) -> list[DistillResult]:
    """Return the best distilled model of each structure, least dropped first; of one kind of layers, of each depth.

    Best on validation text: choosing on test text would make the test numbers too good.
    """
    best: dict[str, DistillResult] = {}
    for result in sorted(record.distilled, key=lambda result: (result.validation.loss, result.candidate.key)):
        best.setdefault(result.latency.structure, result)
    return sorted(best.values(), key=lambda result: (count_dropped(result.candidate), result.latency.ratio))


def read_id(candidate: Candidate) -> str:
    """Return the id that links a candidate's marks on a page: ``1-7``."""
    return "-".join(map(str, candidate.dropped_layers))


def read_result_id(result: DistillResult) -> str:
    """Return the id that links a distilled model's marks on a page: that of its candidate, or of its width its key."""
    return read_id(result.candidate) if result.width is None else result.key


def read_interval(quality: Quality) -> Estimate:
    """Return a quality's PPL ratio with its 95 % interval over documents; without, where they are too few for one."""
    reach = read_reach(quality)
    if reach is None:
        return Estimate(value=quality.ppl_ratio, low=None, high=None)
    half = reach * quality.ppl_ratio_standard_error
    return Estimate(value=quality.ppl_ratio, low=quality.ppl_ratio - half, high=quality.ppl_ratio + half)


def read_reach(quality: Quality) -> float | None:
    """Return how many standard errors a 95 % interval over a quality's documents reaches to each side; None: they are too few."""
    known = quality.effective_documents
    return reach_over_documents(quality.documents if known is None else known)


def read_latency_ratio(latency: Latency) -> Estimate:
    """Return a latency ratio with its 95 % interval."""
    return Estimate(value=latency.ratio, low=latency.ratio_low, high=latency.ratio_high)
