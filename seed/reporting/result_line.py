"""The result of a command as one line of JSON, for scripts: what ``--json`` prints.

Fields are added, never renamed. A number that is not finite is written as ``null``.
"""

from collections.abc import Sequence
from pathlib import Path

from seed import __version__
from seed.evidence import Replication, StagedSearch, StageRecord, StudyRecord
from seed.records import (
    DENSE,
    DenseResult,
    DistillResult,
    DraftTiming,
    Estimate,
    Latency,
    Quality,
    Record,
    Size,
    TaskScore,
)
from seed.results import Model, compute_result, expect_drafting, read_interval, read_latency_ratio, take_distilled
from seed.study_dir import StudyFolder


class Line(Record, frozen=True, kw_only=True):
    """What every line begins with."""

    seed_version: str = __version__


class StudyLine(Line, frozen=True, kw_only=True):
    """What a line on a study begins with."""

    study: str  # the study's folder
    report: str


class DenseLine(Record, frozen=True, kw_only=True):
    """The original model, which all ratios are to."""

    test_ppl: float | None  # None, here and below: not finite
    latency_ms: float  # median, of ``workload``
    workload: str
    device: str
    num_params: int
    weight_bytes: int
    tasks: tuple[TaskScore, ...] = ()


class ModelLine(Record, frozen=True, kw_only=True):
    """A model that a study found. Intervals are of 95 %."""

    key: str
    parts: tuple[str, ...]  # that are gone: 4 is a layer of the original, 4.attn its attention, 4.mlp its MLP
    dropped_layers: tuple[int, ...]  # by their index in the original model
    path: str | None  # of the exported checkpoint; None: not distilled, so not exported
    num_params: int
    weight_bytes: int
    text: str  # which text the PPL ratios are of: "test", or "validation" of a model that is not distilled
    ppl_ratio: Estimate
    unrecovered_ppl_ratio: float | None  # of the same layers without recovery, on the same text; None: not known
    latency_ratio: Estimate
    tasks: tuple[TaskScore, ...] = ()
    keeps_tasks: bool = True  # as much of the dense model's scores as --min-task asks for


class RecommendedLine(Record, frozen=True, kw_only=True):
    """The fastest model whose PPL is at most so many per cent above the dense model's."""

    within_percent: int
    key: str | None  # None: no model
    is_sure: bool  # the whole interval of its PPL ratio stays within


class StoredLine(Record, frozen=True, kw_only=True):
    """A distilled model or the dense one as it is stored, on test text, where fewer bits were asked for."""

    key: str
    bits: int | None  # of a weight; None: as the checkpoint has it
    weight_bytes: int
    ppl_ratio: Estimate
    is_best: bool  # no other is as small and as good


class SearchLine(StudyLine, frozen=True, kw_only=True):
    """What a search came to."""

    model: str  # as the user named it
    proxy: str  # what candidates were scored by
    num_scored: int
    space_size: int
    dense: DenseLine
    models: tuple[ModelLine, ...]  # distilled ones, or the frontier by the proxy where nothing is distilled
    width_baselines: tuple[ModelLine, ...]  # all layers, cut in width
    recommended: tuple[RecommendedLine, ...]
    stored: tuple[StoredLine, ...] = ()


class StageLine(Record, frozen=True, kw_only=True):
    """The best model of one stage."""

    stage: str  # "stage-1", "one-shot"
    tokens: int  # recovery tokens in all, earlier stages included
    best: ModelLine


class StagedLine(StudyLine, frozen=True, kw_only=True):
    """What a search in stages came to."""

    model: str
    dense: DenseLine
    stages: tuple[StageLine, ...]  # the last one's model is the result
    one_shot: StageLine | None  # the same number of layers at once, for the same tokens
    excess: Estimate  # PPL in stages over at once, less 1
    verdict: str  # "equivalent", "lower", "higher" or "cannot tell"
    stopped_because: str | None  # where a target ended it


class DistillLine(StudyLine, frozen=True, kw_only=True):
    """What one more distillation came to."""

    distilled: ModelLine


class ExportLine(Line, frozen=True, kw_only=True):
    """A checkpoint that lies ready."""

    path: str  # its directory
    base_model: str  # the original: "demo", a hub id, a directory or a GGUF file
    base_revision: str | None
    num_layers: int  # of the original
    kept_layers: tuple[int, ...]  # by their index in the original
    dropped_layers: tuple[int, ...]
    parts: tuple[str, ...]  # that are gone, attention (4.attn) and MLP (4.mlp) of kept layers among them
    is_recovered: bool
    num_params: int
    weight_bytes: int
    recipe: str | None  # for mergekit; None: what was recovered has none
    left_out: tuple[str, ...]  # tensors of no layer that transformers does not read
    ppl_ratio: float | None  # recovered, on test text; None: not recovered
    unrecovered_ppl_ratio: float | None  # None: not known
    text: str | None  # which text that is of: "test" or "validation"


class JudgedLine(Line, frozen=True, kw_only=True):
    """How one checkpoint was judged. Ratios are None where no dense model stood beside it."""

    model: str
    protocol: str  # text, windows and type of numbers
    tokens: int
    ppl: float | None
    ppl_ratio: Estimate | None
    latency_ms: float
    workload: str
    device: str
    latency_ratio: Estimate | None
    num_params: int
    weight_bytes: int
    kv_bytes_per_token: int
    tasks: tuple[TaskScore, ...] = ()
    acceptance: float | None = None  # share of its tokens that the dense model accepts from it as a draft
    draft_speedup: float | None = None  # expected of it, over the dense model alone
    draft: DraftTiming | None = None  # measured


class JudgedLines(Line, frozen=True, kw_only=True):
    """How several checkpoints were judged, in the order that they were given."""

    models: tuple[JudgedLine, ...]


def describe_search(record: StudyRecord, study: StudyFolder) -> SearchLine:
    """Return the line of a searched study."""
    result = compute_result(record)
    return SearchLine(
        study=str(study.root),
        report=str(study.report),
        model=record.plan.protocol.model,
        proxy=record.frontier.proxy,
        num_scored=record.frontier.num_scored,
        space_size=record.frontier.space.size,
        dense=describe_dense(record.dense, record.tasks.get(DENSE, ())),
        models=tuple(describe_model(one, study) for one in result.distilled or result.frontier),
        width_baselines=tuple(describe_model(one, study) for one in result.width_baselines),
        recommended=tuple(
            RecommendedLine(
                within_percent=one.margin, key=None if one.chosen is None else one.chosen.key, is_sure=one.is_sure
            )
            for one in result.recommended
        ),
        stored=tuple(
            StoredLine(
                key=DENSE if one.model is None else one.model.key,
                bits=one.bits,
                weight_bytes=one.weight_bytes,
                ppl_ratio=one.ppl_ratio,
                is_best=one.is_best,
            )
            for one in result.stored
        ),
    )


def describe_staged(staged: StagedSearch, root: Path) -> StagedLine:
    """Return the line of a search in stages; ``root`` holds a study for each."""
    return StagedLine(
        study=str(root),
        report=str(StudyFolder(root).report),
        model=staged.model,
        dense=describe_dense(staged.dense),
        stages=tuple(_describe_stage(stage, root) for stage in staged.stages),
        one_shot=None if staged.one_shot is None else _describe_stage(staged.one_shot, root),
        excess=staged.excess,
        verdict=staged.verdict,
        stopped_because=staged.stopped_because,
    )


def _describe_stage(stage: StageRecord, root: Path) -> StageLine:
    best = describe_model(take_distilled(stage.result, stage.replication), StudyFolder(root / stage.name))
    return StageLine(stage=stage.name, tokens=stage.tokens, best=best)


def describe_one_more(result: DistillResult, study: StudyFolder, replication: Replication | None) -> DistillLine:
    """Return the line of one more distilled model of a study."""
    return DistillLine(
        study=str(study.root),
        report=str(study.report),
        distilled=describe_model(take_distilled(result, replication), study),
    )


def describe_judged(
    model: str,
    protocol: str,
    test: Quality,
    latency: Latency,
    size: Size,
    tasks: Sequence[TaskScore] = (),
    draft: DraftTiming | None = None,
    *,
    beside_dense: bool,
) -> JudgedLine:
    """Return the line of a checkpoint that was judged, alone or beside its dense model."""
    expected = expect_drafting(test.acceptance, latency)
    return JudgedLine(
        model=model,
        protocol=protocol,
        tokens=test.tokens,
        ppl=test.perplexity,
        ppl_ratio=read_interval(test) if beside_dense else None,
        latency_ms=latency.median_ms,
        workload=latency.workload,
        device=latency.device,
        latency_ratio=read_latency_ratio(latency) if beside_dense else None,
        num_params=size.num_params,
        weight_bytes=size.weight_bytes,
        kv_bytes_per_token=size.kv_bytes_per_token,
        tasks=tuple(tasks),
        acceptance=test.acceptance,
        draft_speedup=None if expected is None else expected.speedup,
        draft=draft,
    )


def describe_dense(dense: DenseResult, tasks: Sequence[TaskScore] = ()) -> DenseLine:
    """Return what a line says of the original model."""
    return DenseLine(
        test_ppl=dense.judged.perplexity,
        latency_ms=dense.latency.median_ms,
        workload=dense.latency.workload,
        device=dense.latency.device,
        num_params=dense.size.num_params,
        weight_bytes=dense.size.weight_bytes,
        tasks=tuple(tasks),
    )


def describe_model(model: Model, study: StudyFolder) -> ModelLine:
    """Return what a line says of a model that a study found."""
    return ModelLine(
        key=model.key,
        parts=model.candidate.parts,
        dropped_layers=model.candidate.dropped_layers,
        path=str(study.model(model.key)) if model.is_distilled else None,
        num_params=model.size.num_params,
        weight_bytes=model.size.weight_bytes,
        text="test" if model.is_distilled else "validation",
        ppl_ratio=model.ppl_ratio,
        unrecovered_ppl_ratio=model.unrecovered,
        latency_ratio=read_latency_ratio(model.latency),
        tasks=model.tasks,
        keeps_tasks=model.keeps_tasks,
    )
