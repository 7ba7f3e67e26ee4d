"""Budgets and data of the distillations of a study: their settings, the windows they see, the dense model's states on them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from seed.distillation.loop import DistillSettings, draw_windows
from seed.distillation.losses import Objective
from seed.distillation.memory import GPU_BYTES_PER_WEIGHT, TRAINED_TOKENS
from seed.distillation.teacher_states import STORED_BYTES, count_bytes, store_states
from seed.models.anatomy import count_params
from seed.proxy.instruments import Instruments
from seed.records import Candidate, split_part
from seed.recovery import DEFAULT_LORA_RANK, RECOVERIES, Recovery
from seed.sessions import Session

HOST_BYTES_PER_WEIGHT = 20  # the best weights so far lie there too
FREE_SHARE = 0.7  # of memory may go to students; the rest is for activations
MOST_TOGETHER = 8  # past this nothing is left to share


def distill_settings(
    session: Session,
    candidate: Candidate,
    *,
    steps: int,
    learning_rate: float,
    looks: int | None = None,
    rng_seed: int | None = None,
    recovery: Recovery | None = None,
) -> DistillSettings:
    """Settings of a distillation of this study: its batch, its recovery unless another is given, its random seed.

    ``looks``: at validation text; None: up to eight, eight steps apart or more.
    """
    protocol = session.protocol
    recovery = recovery or RECOVERIES[protocol.recovery]
    num_kept = len(candidate.kept_layers)
    frozen = min((split_part(part)[0] for part in candidate.parts), default=0) if protocol.freeze_prefix else 0
    if recovery.last_layers is not None:
        frozen = max(frozen, num_kept - recovery.last_layers)
    return DistillSettings(
        steps=steps,
        batch_windows=session.batch_windows,
        micro_batch=max(1, TRAINED_TOKENS // protocol.window_tokens),
        learning_rate=learning_rate,
        rng_seed=protocol.rng_seed if rng_seed is None else rng_seed,
        looks=looks or max(1, min(8, steps // 8)),
        mixed_precision=protocol.mixed_precision,
        objective=Objective(
            temperature=protocol.temperature,
            ce_share=protocol.ce_share if recovery.ce_share is None else recovery.ce_share,
            hidden_weight=recovery.hidden_weight,
        ),
        frozen_layers=min(frozen, num_kept - 1),
        recomputes=session.recomputes,
        lora_rank=(protocol.lora_rank or DEFAULT_LORA_RANK) if recovery.is_low_rank else None,
    )


def short_settings(session: Session, candidate: Candidate) -> DistillSettings:
    """Budget of the short distillation inside a score."""
    return distill_settings(
        session,
        candidate,
        steps=session.protocol.short_steps,
        learning_rate=session.protocol.short_learning_rate,
        looks=1,
    )


def store_teacher_states(
    session: Session,
    instruments: Instruments,
    *,
    steps: int,
    rng_seeds: Sequence[int],
    on_window: Callable[[int], None] = lambda count: None,
) -> Instruments:
    """Instruments that remember the dense model's last hidden states on the windows of so many steps.

    Past ``STORED_BYTES`` they stay as they are, and every step runs the dense model.
    """
    if not uses_stored_states(session):
        return replace(instruments, teacher_states=None)
    windows = list_windows(session, steps=steps, rng_seeds=rng_seeds)
    size = count_bytes(
        num_windows=len(windows),
        window_tokens=session.protocol.window_tokens,
        width=session.anatomy.config.hidden_size,
        dtype=session.dtype,
    )
    if size > STORED_BYTES:
        return replace(instruments, teacher_states=None)
    teacher_states = store_states(
        session.anatomy,
        instruments.recovery,
        windows,
        directory=session.folder.work,
        source=f"{session.protocol.weights_sha256 or session.protocol.commit}/{session.protocol.streams['recovery'].sha256}",
        micro_batch=session.micro_batch,
        on_window=on_window,
    )
    return replace(instruments, teacher_states=teacher_states)


def uses_stored_states(session: Session) -> bool:
    """Does the study's recovery learn from the dense model's last states, and from nothing more of it?"""
    recovery = RECOVERIES[session.protocol.recovery]
    ce_share = session.protocol.ce_share if recovery.ce_share is None else recovery.ce_share
    return ce_share < 1 and recovery.hidden_weight == 0


def measure_free_bytes(device: torch.device) -> int:
    """Bytes of memory that a search can have on a device: a GPU's that nobody else holds, or all of this machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)  # ours already
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def count_parallel_students(session: Session) -> int:
    """How many students can be trained side by side: what is free now, less a reserve for activations, over one's bytes."""
    params = count_params(session.teacher.model)
    if session.device.type == "cuda":
        ours = torch.cuda.memory_reserved(session.device) - torch.cuda.memory_allocated(
            session.device
        )  # free, but held
        free = torch.cuda.mem_get_info(session.device)[0] + ours
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return count_group(params, free_bytes=free, on_gpu=session.device.type == "cuda")


def count_group(num_params: int, *, free_bytes: int, on_gpu: bool) -> int:
    """How many students of so many parameters go side by side into so much memory; one always does, or is tried."""
    each = (GPU_BYTES_PER_WEIGHT if on_gpu else HOST_BYTES_PER_WEIGHT) * num_params
    return max(1, min(MOST_TOGETHER, int(FREE_SHARE * free_bytes / each)))


def list_windows(session: Session, *, steps: int, rng_seeds: Sequence[int]) -> list[int]:
    """The recovery windows that distillations of so many steps see, each once."""
    pool, count = len(session.streams["recovery"].tokens_NT), steps * session.batch_windows
    found: set[int] = set()
    for rng_seed in rng_seeds:
        found.update(draw_windows(range(count), num_windows=pool, rng_seed=rng_seed).tolist())
    return sorted(found)
