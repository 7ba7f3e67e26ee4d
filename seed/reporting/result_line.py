"""The result of a command as one line of JSON, for whoever calls it from a script.

Ratios are to the dense model. Intervals are of 95 %. Numbers that are not finite are null.
"""

import math
from pathlib import Path

import msgspec

from seed import __version__
from seed.evidence import StagedSearch
from seed.findings import Replication, StudyRecord
from seed.folder import StudyFolder
from seed.records import DenseResult, DistillResult, Estimate, Latency, Quality, Record, Size
from seed.reporting.answers import read_interval, recommend


class ModelLine(Record, frozen=True, kw_only=True):
    """One exported model, judged on test text."""

    key: str
    path: str  # a directory that plain from_pretrained loads
    dropped_layers: tuple[int, ...]
    num_params: int
    ppl_ratio: Estimate
    unrecovered_ppl_ratio: float | None
    latency_ratio: Estimate
    median_ms: float
    user_score: float | None


class DenseLine(Record, frozen=True, kw_only=True):
    """The original model."""

    num_params: int
    test_perplexity: float
    median_ms: float
    workload: str
    device: str


class ResultLine(Record, frozen=True, kw_only=True):
    """What a search or a distillation came to."""

    study: str  # its folder
    report: str
    seed: str  # version
    dense: DenseLine
    models: tuple[ModelLine, ...]
    fastest_within: dict[str, str | None]  # per cent of PPL above the dense model -> key of the model to ship
    num_scored: int | None  # of all stages together: unknown
    space_size: int | None


class EvaluationLine(Record, frozen=True, kw_only=True):
    """What judging one checkpoint came to; ratios are those of exported models, beside their original."""

    model: str
    test_perplexity: float
    loss: float
    loss_standard_error: float
    tokens: int
    ppl_ratio: Estimate | None
    latency_ratio: Estimate | None
    median_ms: float
    workload: str
    device: str
    num_params: int
    weight_bytes: int
    kv_bytes_per_token: int


def describe_study(record: StudyRecord, *, root: Path) -> ResultLine:
    """Return what a searched study came to; without distilled models those to ship are keys of candidates."""
    study = StudyFolder(root)
    models = [
        _take_model(one, study, record.replications.get(one.key)) for one in (*record.distilled, *record.baselines)
    ]
    return ResultLine(
        study=str(root),
        report=str(study.report),
        seed=__version__,
        dense=_take_dense(record.dense),
        models=tuple(models),
        fastest_within={
            str(found.margin): None if found.contender is None else found.contender.key for found in recommend(record)
        },
        num_scored=record.frontier.num_scored,
        space_size=record.frontier.space_size,
    )


def describe_stages(staged: StagedSearch, *, root: Path) -> ResultLine:
    """Return what a staged search came to: the model of each stage, the last one last, then what one shot reached."""
    found = [*staged.stages, *([staged.one_shot] if staged.one_shot else [])]
    return ResultLine(
        study=str(root),
        report=str(StudyFolder(root).report),
        seed=__version__,
        dense=_take_dense(staged.dense),
        models=tuple(_take_model(one.result, StudyFolder(root / one.name), one.replication) for one in found),
        fastest_within={},
        num_scored=None,
        space_size=None,
    )


def describe_evaluation(model: str, *, test: Quality, latency: Latency, size: Size, is_beside: bool) -> EvaluationLine:
    """Return what judging one checkpoint came to; ``is_beside``: its original was judged beside it."""
    return EvaluationLine(
        model=model,
        test_perplexity=test.perplexity,
        loss=test.loss,
        loss_standard_error=test.standard_error,
        tokens=test.tokens,
        ppl_ratio=read_interval(test) if is_beside else None,
        latency_ratio=_take_latency(latency) if is_beside else None,
        median_ms=latency.median_ms,
        workload=latency.workload,
        device=latency.device,
        num_params=size.num_params,
        weight_bytes=size.weight_bytes,
        kv_bytes_per_token=size.kv_bytes_per_token,
    )


def spell_line(line: Record) -> str:
    """Return a record as JSON in one line."""
    return msgspec.json.encode(_drop_infinities(msgspec.to_builtins(line))).decode()


def _take_model(result: DistillResult, study: StudyFolder, replication: Replication | None) -> ModelLine:
    return ModelLine(
        key=result.key,
        path=str(study.model(result.key)),
        dropped_layers=result.candidate.dropped_layers,
        num_params=result.size.num_params,
        ppl_ratio=replication.ppl_ratio if replication else read_interval(result.test),
        unrecovered_ppl_ratio=result.test_unrecovered.ppl_ratio,
        latency_ratio=_take_latency(result.latency),
        median_ms=result.latency.median_ms,
        user_score=result.user_score,
    )


def _take_dense(dense: DenseResult) -> DenseLine:
    return DenseLine(
        num_params=dense.size.num_params,
        test_perplexity=dense.test.perplexity,
        median_ms=dense.latency.median_ms,
        workload=dense.latency.workload,
        device=dense.latency.device,
    )


def _take_latency(latency: Latency) -> Estimate:
    return Estimate(value=latency.ratio, low=latency.ratio_low, high=latency.ratio_high)


def _drop_infinities(value: object) -> object:
    match value:
        case dict():
            return {key: _drop_infinities(item) for key, item in value.items()}
        case list() | tuple():
            return [_drop_infinities(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
