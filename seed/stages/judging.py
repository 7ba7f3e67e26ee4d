"""Judging models on test text, by the study's protocol and by the user's own command: the original, and what was exported.

Nothing is trained here, and which models are judged is decided elsewhere.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec
from torch import nn

from seed import study_dir
from seed.evaluation.latency import run_command
from seed.evaluation.perplexity import DocumentLosses, compare_models, judge, logits_of, measure_losses
from seed.models.checkpoint import load_checkpoint
from seed.optimize.space import drop_layers
from seed.proxy.instruments import Instruments, size_of
from seed.records import DenseResult, DistillResult, Latency, Quality
from seed.session import Session


def judge_dense(bench: Session, instruments: Instruments, latency: Latency) -> DenseResult:
    """Judge the original on validation and test. ``latency``: its own."""
    whole = drop_layers(bench.anatomy.num_layers, [])
    test = measure_losses(
        logits_of(bench.teacher.model), bench.streams["test"], micro_batch=bench.micro_batch, device=bench.device
    )
    return DenseResult(
        validation=judge(instruments.dense_validation, instruments.dense_validation),
        test=judge(test, test),
        latency=latency,
        size=size_of(instruments, whole),
        test_sums=test.sums.tolist(),
        test_counts=test.counts.tolist(),
    )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An exported model on validation and test text, and the same cut without recovery on test text."""

    validation: Quality
    test: Quality
    test_losses: DocumentLosses
    unrecovered: Quality


def judge_exported(bench: Session, instruments: Instruments, path: Path, raw: nn.Module) -> Judged:
    """Judge a checkpoint as it lies on disk, beside ``raw``, the same cut without recovery."""
    exported = load_checkpoint(path, device=bench.device, dtype=bench.dtype)
    losses = measure_losses(
        logits_of(exported), instruments.validation, micro_batch=bench.micro_batch, device=bench.device
    )
    validation = judge(losses, instruments.dense_validation)
    dense, [(test, closeness), (unrecovered, raw_closeness)] = compare_models(
        logits_of(bench.teacher.model),
        [logits_of(exported), logits_of(raw)],
        bench.streams["test"],
        micro_batch=bench.micro_batch,
        device=bench.device,
    )
    return Judged(
        validation=validation,
        test=judge(test, dense, closeness=closeness),
        test_losses=test,
        unrecovered=judge(unrecovered, dense, closeness=raw_closeness),
    )


def score_dense_for_user(bench: Session, dense: DenseResult, eval_command: str | None) -> DenseResult:
    """Let the user's own command judge the original, in the directory that it was opened from."""
    if eval_command is None or dense.user_command == eval_command:
        return dense
    score = run_command(eval_command, bench.teacher.directory)
    scored = msgspec.structs.replace(dense, user_score=score, user_command=eval_command)
    study_dir.write_record(bench.folder.dense, scored)
    return scored


def score_for_user(bench: Session, result: DistillResult, eval_command: str | None) -> DistillResult:
    """Let the user's own command judge an exported model, unless it has."""
    if eval_command is None or result.user_command == eval_command:
        return result
    score = run_command(eval_command, bench.folder.model(result.key))
    scored = msgspec.structs.replace(result, user_score=score, user_command=eval_command)
    study_dir.write_record(bench.folder.result(result.key), scored)
    return scored
