"""What a search will cost, estimated before any work from one timed forward pass, and refused early."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from seed import folder
from seed.errors import ResourceError
from seed.models.checkpoint import measure_size
from seed.records import SearchPlan
from seed.reporting.wording import format_bytes
from seed.scoring.subsets import estimate_memory
from seed.stages.workbench import Workbench

# Work of one token, in forward passes of the dense model. Counted, not measured: a student's forward and
# backward are three, the teacher's forward one; a walk shares about half of its layers with its neighbours.
TRAINING_FORWARDS = 4.0
WALK_FORWARDS = 0.6


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds, bytes and counts of a search to come."""

    search_seconds: float
    distill_seconds: float
    memory_bytes: int
    disk_bytes: int
    num_finals: int


def estimate_cost(bench: Workbench, plan: SearchPlan, *, distill: bool) -> Cost:
    """Estimate from the time of one forward pass; the truth is mostly within a factor of two."""
    protocol = bench.protocol
    second_per_token = _time_forward(bench)
    validation = bench.streams["validation"].num_tokens
    tokens = WALK_FORWARDS * (protocol.calibration_tokens + validation)
    if protocol.rung == "short_distillation":
        tokens += TRAINING_FORWARDS * protocol.short_steps * protocol.batch_tokens + 3 * validation
    num_finals = min(plan.frontier_size, plan.trials) if distill else 0
    final_tokens = TRAINING_FORWARDS * plan.distill_tokens + 12 * validation + 3 * bench.streams["test"].num_tokens
    tuning = 0.3 * TRAINING_FORWARDS * plan.distill_tokens if distill else 0
    size = measure_size(bench.teacher.model, dtype=bench.teacher.stored_dtype)
    number_bytes = torch.finfo(bench.dtype).bits // 8
    states = estimate_memory(
        num_layers=bench.anatomy.num_layers,
        width=bench.anatomy.config.hidden_size,
        calibration_tokens=protocol.calibration_tokens,
        validation_tokens=validation,
        number_bytes=number_bytes,
    )
    # float32 weights, gradient, two moments and the best weights of a student, beside the dense model
    training = size.num_params * (number_bytes + (5 * 4 if distill or protocol.rung == "short_distillation" else 0))
    # an exported model each, and a training checkpoint (weights, two moments, best weights), old and new for a moment
    disk = num_finals * size.weight_bytes + (2 * 4 * 4 * size.num_params if distill else 0) + 20_000_000
    return Cost(
        search_seconds=plan.trials * tokens * second_per_token,
        distill_seconds=(num_finals * final_tokens + tuning) * second_per_token,
        memory_bytes=states + training,
        disk_bytes=disk,
        num_finals=num_finals,
    )


def require_resources(bench: Workbench, cost: Cost) -> None:
    """Refuse before any work when disk or memory cannot suffice.

    Raises:
        ResourceError: with what is needed, what is there, and what makes it smaller.
    """
    existing: Path = bench.folder.root.resolve()
    while not existing.exists():
        existing = existing.parent
    folder.require_room(existing, needed_bytes=cost.disk_bytes, purpose="this search")
    if bench.device.type == "cuda":
        free = torch.cuda.mem_get_info(bench.device)[0] + torch.cuda.memory_reserved(bench.device)  # ours already
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if cost.memory_bytes > free:
        raise ResourceError(
            f"this search needs about {format_bytes(cost.memory_bytes)} of memory, but {bench.device} has "
            f"{format_bytes(free)}. Lower --calibration-tokens and --validation-tokens, or choose a smaller model."
        )


@torch.no_grad()
def _time_forward(bench: Workbench) -> float:
    """Seconds a token takes in the dense model's forward pass, the better of two."""
    tokens = bench.streams["validation"].tokens_NT[: bench.micro_batch].to(bench.device)
    best = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        bench.teacher.model(input_ids=tokens, use_cache=False).logits.sum().item()
        best = min(best, time.perf_counter() - began)
    return best / tokens.numel()
