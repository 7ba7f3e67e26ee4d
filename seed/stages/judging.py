"""Judging models on test text, by the study's protocol and by the user's own command: the original, and what was exported.

Nothing is trained here, and which models are judged is decided elsewhere.
"""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from seed import study_dir
from seed.evaluation.bits import pack_weights
from seed.evaluation.latency import run_user_command
from seed.evaluation.perplexity import DocumentLosses, compare_models, judge, logits_of
from seed.evaluation.tasks import TaskSet, score_tasks
from seed.models.anatomy import cache_of
from seed.models.checkpoint import load_checkpoint, load_export
from seed.optimize.analysis import is_run_alike
from seed.optimize.space import drop_layers
from seed.proxy.instruments import Instruments, size_of
from seed.records import (
    DENSE,
    DenseResult,
    DistillResult,
    Latency,
    Packed,
    PackedByKey,
    Quality,
    Size,
    TaskRecord,
    TaskRun,
)
from seed.sessions import Session

NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 3, 32, 40
R = TypeVar("R", DenseResult, DistillResult)


def describe_dense(validation: DocumentLosses, latency: Latency, *, size: Size) -> DenseResult:
    """The original before test text is read."""
    return DenseResult(validation=judge(validation, validation), test=None, latency=latency, size=size)


def judge_dense(session: Session, instruments: Instruments, latency: Latency) -> DenseResult:
    """Judge the original on validation and test. ``latency``: its own."""
    whole = drop_layers(session.anatomy.num_layers, [])
    test = session.measure_losses(session.teacher.model, session.streams["test"])
    described = describe_dense(instruments.dense_validation, latency, size=size_of(instruments, whole))
    prompts_BT, tokenizer = choose_prompts(session), session.teacher.tokenizer
    return msgspec.structs.replace(
        described,
        test=judge(test, test),
        test_sums=test.sums.tolist(),
        test_counts=test.counts.tolist(),
        prompts=tuple(tokenizer.decode(prompt) for prompt in prompts_BT.tolist()),
        continuations=continue_prompts(session, session.teacher.model, prompts_BT),
    )


def choose_prompts(session: Session) -> Tensor:
    """Return the begins of windows spread over validation text, of shape (prompts, tokens)."""
    windows_NT = session.streams["validation"].tokens_NT
    length = min(PROMPT_TOKENS, windows_NT.shape[1] // 2)
    return windows_NT[:: max(1, len(windows_NT) // NUM_PROMPTS)][:NUM_PROMPTS, :length]


@torch.inference_mode()
def continue_prompts(session: Session, model: nn.Module, prompts_BT: Tensor) -> tuple[str, ...]:
    """Return what a model writes after each prompt, the likeliest token each time."""
    room = session.streams["validation"].tokens_NT.shape[1] - prompts_BT.shape[1]
    tokens_BT, cache, written = prompts_BT.to(session.device), dict[str, Any](), []
    for _ in range(min(NEW_TOKENS, room)):
        output = model(input_ids=tokens_BT, use_cache=True, **cache)
        tokens_BT, cache = output.logits[:, -1:].argmax(-1), cache_of(output)
        written.append(tokens_BT)
    return tuple(session.teacher.tokenizer.decode(new) for new in torch.cat(written, dim=1).tolist())


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An exported model on validation and test text, and the same cut without recovery on test text."""

    validation: Quality
    test: Quality
    test_losses: DocumentLosses
    unrecovered: Quality
    size: Size
    continuations: tuple[str, ...]


def judge_exported(session: Session, instruments: Instruments, path: Path, raw: nn.Module, *, size: Size) -> Judged:
    """Judge a checkpoint as it lies on disk, beside ``raw``, the same cut without recovery."""
    exported = load_checkpoint(path, device=session.device, dtype=session.dtype)
    validation = judge(session.measure_losses(exported, instruments.validation), instruments.dense_validation)
    dense, [(test, closeness), (unrecovered, raw_closeness)] = compare_models(
        logits_of(session.teacher.model),
        [logits_of(exported), logits_of(raw)],
        session.streams["test"],
        micro_batch=session.micro_batch,
        device=session.device,
    )
    return Judged(
        validation=validation,
        test=judge(test, dense, closeness=closeness),
        test_losses=test,
        unrecovered=judge(unrecovered, dense, closeness=raw_closeness),
        size=size,
        continuations=continue_prompts(session, exported, choose_prompts(session)),
    )


def pack_and_judge(
    session: Session,
    dense: DenseResult,
    results: Sequence[DistillResult],
    bits: Sequence[int],
    *,
    on_judged: Callable[[int, str], None],
) -> None:
    """Judge the original and exported models with weights of fewer bits, and write that down, unless it was."""
    study = session.folder
    theirs = DocumentLosses(sums=np.array(dense.test_sums), counts=np.array(dense.test_counts))
    known = study_dir.read_record(study.bits, PackedByKey) if study.bits.exists() else {}
    asked: list[tuple[str, str | None]] = [(DENSE, None), *((one.key, one.provenance_sha256) for one in results)]
    for (key, sha256), num_bits in itertools.product(asked, sorted(bits, reverse=True)):
        found = [one for one in known.get(key, ()) if one.provenance_sha256 == sha256]
        if all(one.bits != num_bits for one in found):
            model = (
                copy.deepcopy(session.teacher.model)
                if key == DENSE
                else load_export(study.model(key), device=session.device, dtype=session.dtype)
            )
            weight_bytes = pack_weights(model, bits=num_bits, stored_dtype=session.teacher.stored_dtype)
            quality = judge(session.measure_losses(model, session.streams["test"]), theirs)
            found.append(Packed(bits=num_bits, weight_bytes=weight_bytes, quality=quality, provenance_sha256=sha256))
            known[key] = tuple(found)
            study_dir.write_record(study.bits, known)
        on_judged(1, f"{key}, {num_bits} bits")


def judge_by_tasks(
    session: Session,
    results: Sequence[DistillResult],
    tasks: Mapping[str, TaskSet],
    *,
    floors: Mapping[str, float],
    say: Callable[[str], None],
) -> None:
    """Judge the original and exported models by tasks, by the names they were asked by, and write that down, unless it was."""
    study = session.folder
    known = study_dir.read_record(study.tasks, TaskRecord) if study.tasks.exists() else TaskRecord(floors={}, runs={})
    known = msgspec.structs.replace(known, floors=dict(floors))
    for key, sha256 in [(DENSE, None), *((one.key, one.provenance_sha256) for one in results)]:
        found = [one for one in known.runs.get(key, ()) if one.provenance_sha256 == sha256]
        asked = [
            TaskRun(name=name, limit=one.limit, files_sha256=one.files_sha256, provenance_sha256=sha256, scores=())
            for name, one in tasks.items()
        ]
        missing = [run for run in asked if not any(is_run_alike(run, one) for one in found)]
        if not missing:
            continue
        say(f"tasks: lm-eval asks {key} {', '.join(run.name for run in missing)}")
        model = (
            session.teacher.model
            if key == DENSE
            else load_export(study.model(key), device=session.device, dtype=session.dtype)
        )
        for run in missing:
            scores = tuple(score_tasks(model, session.teacher.tokenizer, tasks[run.name]))
            found = [one for one in found if one.name != run.name] + [msgspec.structs.replace(run, scores=scores)]
            known.runs[key] = tuple(found)
            study_dir.write_record(study.tasks, known)
    study_dir.write_record(study.tasks, known)


def score_for_user(result: R, eval_command: str | None, *, directory: Path, path: Path) -> R:
    """Let the user's own command judge the model in a directory, unless it has; ``path``: where its record lies."""
    if eval_command is None or result.user_command == eval_command:
        return result
    score = run_user_command(eval_command, directory)
    scored = msgspec.structs.replace(result, user_score=score, user_command=eval_command)
    study_dir.write_record(path, scored)
    return scored
