"""What a search will cost, estimated before any work from a few timed parts of the model, and refused early."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from seed import folder
from seed.errors import ResourceError
from seed.models.checkpoint import measure_size
from seed.optimize.space import enumerate_candidates
from seed.records import SearchPlan, SearchSpace
from seed.reporting.wording import format_bytes
from seed.scoring.refit import ProjectionFit
from seed.scoring.subsets import SIBLING_BYTES, count_work, estimate_memory
from seed.scoring.sweep import RELEASED_BYTES
from seed.scoring.targets import STORED_BYTES, count_bytes
from seed.stages.recovering import list_windows
from seed.stages.workbench import Workbench

# Work of one trained token, in forward passes of the dense model: a student's forward and backward are three,
# the dense model's head is rebuilt from stored states.
TRAINING_FORWARDS = 3.3
COUNTED_SETS = 50_000  # past this many the trie is not walked to count it: no sweep is short then


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds of the parts that scores are made of."""

    layer: float  # one layer, one token
    head: float  # final norm, head and loss, one token
    fit: float  # the sums and factors of one closed-form fit, all calibration tokens
    solve: float  # one correction out of a fit
    num_layers: int

    @property
    def forward(self) -> float:
        """The dense model, one token."""
        return self.num_layers * self.layer + self.head


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds, bytes and counts of a search to come."""

    search_seconds: float
    distill_seconds: float
    memory_bytes: int
    memory_formula: str
    disk_bytes: int
    num_finals: int


def time_parts(bench: Workbench) -> Speed:
    """Time a layer, the head and one fit, each the better of two."""
    anatomy = bench.anatomy
    tokens = bench.streams["validation"].tokens_NT[: bench.micro_batch].to(bench.device)
    states = anatomy.trace(tokens)
    middle = anatomy.num_layers // 2
    count = tokens.numel()
    head = _time(lambda: anatomy.compute_logits(states[-1], tokens).float().logsumexp(-1).sum(), bench.device) / count
    layer = _time(lambda: anatomy.run_layer(middle, states[middle]), bench.device) / count
    fit = solve = 0.0
    if bench.gains is not None:
        gaps = [torch.randn_like(states[middle], dtype=torch.float32)]
        reads = [torch.randn(*gaps[0].shape[:-1], measure_mlp_width(bench), device=bench.device)]
        share = max(1, bench.protocol.calibration_tokens / count)  # sums grow with the text, factors do not
        sums = _time(lambda: ProjectionFit(reads, has_bias=False).everything.gram, bench.device)
        fitted = ProjectionFit(reads, has_bias=False)
        fitted.solve(gaps)
        solve = _time(lambda: fitted.solve(gaps).weight, bench.device)
        whole = _time(lambda: ProjectionFit(reads, has_bias=False).solve(gaps).weight, bench.device)
        fit = share * sums + max(0.0, whole - sums - solve)
        solve += share * sums * gaps[0].shape[-1] / reads[0].shape[-1]
    return Speed(layer=layer, head=head, fit=fit, solve=solve, num_layers=anatomy.num_layers)


def measure_mlp_width(bench: Workbench) -> int:
    """How many numbers the widest MLP output projection reads for one token; 0 without closed form."""
    if bench.gains is None:
        return 0
    widest = 0
    for layer in range(bench.anatomy.num_layers):
        weight = getattr(bench.anatomy.mlp_output(layer), "weight", None)
        assert isinstance(weight, torch.Tensor), "measure_gains proved that there is one"
        widest = max(widest, weight.numel() // bench.anatomy.config.hidden_size)
    return widest


def estimate_sweep(bench: Workbench, space: SearchSpace, speed: Speed) -> float:
    """Seconds of scoring a whole space by closed form, its prefixes shared; infinite for spaces beyond counting."""
    if bench.gains is None or space.size > COUNTED_SETS:
        return float("inf")
    work = count_work(enumerate_candidates(space), closed_form=True, gone_layers=space.gone_layers)
    calibration, validation = bench.protocol.calibration_tokens, bench.streams["validation"].num_tokens
    return (
        work.plain_layers * validation * speed.layer
        + work.run_layers * ((calibration + validation) * speed.layer + speed.fit)
        + work.solved_layers * speed.solve
        + work.heads * validation * speed.head
    )


def estimate_cost(bench: Workbench, plan: SearchPlan, speed: Speed, *, distill: bool) -> Cost:
    """Estimate from timed parts; the truth is mostly within a factor of two."""
    protocol = bench.protocol
    validation, test = bench.streams["validation"].num_tokens, bench.streams["test"].num_tokens
    one_walk = (protocol.calibration_tokens + validation) * speed.forward + bench.anatomy.num_layers * (
        speed.fit + speed.solve
    )
    climbs = protocol.rung == "short_distillation"
    search = estimate_sweep(bench, protocol.space, speed) if plan.covers_space else 0.0
    if bench.gains is not None and (climbs or not plan.covers_space):
        search += plan.trials * one_walk
    if climbs:
        short = TRAINING_FORWARDS * protocol.short_steps * protocol.batch_tokens + 4 * validation
        search += plan.trials * short * speed.forward
    num_finals = min(plan.frontier_size, plan.trials) if distill else 0
    final = (TRAINING_FORWARDS * plan.distill_tokens + 11 * validation + 3 * test) * speed.forward + 2 * one_walk
    tuning = (0.3 * TRAINING_FORWARDS + 1) * plan.distill_tokens * speed.forward if distill else 0.0
    memory, formula = _estimate_memory(bench, distills=distill, climbs=climbs)
    return Cost(
        search_seconds=search,
        distill_seconds=num_finals * final + tuning,
        memory_bytes=memory,
        memory_formula=formula,
        disk_bytes=_estimate_disk(bench, plan, num_finals=num_finals, climbs=climbs),
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
            f"{format_bytes(free)}. Lower --calibration-tokens and --validation-tokens, train low-rank updates only with "
            "--lora-rank 16, or choose a smaller model."
        )


def _estimate_memory(bench: Workbench, *, distills: bool, climbs: bool) -> tuple[int, str]:
    """Bytes at most, without activations, and how they come about."""
    protocol, layers, width = bench.protocol, bench.anatomy.num_layers, bench.anatomy.config.hidden_size
    calibration, validation = protocol.calibration_tokens, bench.streams["validation"].num_tokens
    number_bytes = torch.finfo(bench.dtype).bits // 8
    params = measure_size(bench.teacher.model, dtype=bench.teacher.stored_dtype).num_params
    dense, states, training = params * number_bytes, 0, 0
    parts = [f"dense model {format_bytes(dense)}"]
    if bench.gains is not None:
        mlp_width = measure_mlp_width(bench)
        states = estimate_memory(
            num_layers=layers,
            width=width,
            mlp_width=mlp_width,
            calibration_tokens=calibration,
            validation_tokens=validation,
            number_bytes=number_bytes,
        )
        parts.append(
            f"a sweep {format_bytes(states)}: (L + 1) (2 C + V) D numbers of states, and L times (C + V) (D + F) numbers and "
            f"72 F F bytes that siblings share, of these {format_bytes(SIBLING_BYTES)} at most (L = {layers}, "
            f"C = {calibration:,}, V = {validation:,}, D = {width:,}, F = {mlp_width:,})"
        )
    if distills or climbs:
        # float32 weights, gradient, two moments and the best weights; with LoRA a copy of the weights, and one to judge
        training = params * (2 * number_bytes if protocol.lora_rank else 5 * 4)
        parts.append(f"a student in training {format_bytes(training)}")
    if states > RELEASED_BYTES and not climbs:
        return dense + max(states, training), "; ".join(parts) + " (after the sweep's states are let go)" * bool(
            training
        )
    return dense + states + training, "; ".join(parts)


def _estimate_disk(bench: Workbench, plan: SearchPlan, *, num_finals: int, climbs: bool) -> int:
    """Exported models, a training checkpoint (weights, two moments, best weights) old and new, the dense model's states."""
    size = measure_size(bench.teacher.model, dtype=bench.teacher.stored_dtype)
    steps = max(
        bench.protocol.short_steps if climbs else 0,
        plan.distill_tokens // (bench.batch_windows * bench.protocol.window_tokens) if num_finals else 0,
    )
    states = count_bytes(
        num_windows=len(list_windows(bench, steps=steps, rng_seeds=[bench.protocol.rng_seed])),
        window_tokens=bench.protocol.window_tokens,
        width=bench.anatomy.config.hidden_size,
        dtype=bench.dtype,
    )
    training = 2 * 4 * 4 * size.num_params if num_finals else 0
    return num_finals * size.weight_bytes + training + (states if states <= STORED_BYTES else 0) + 20_000_000


@torch.no_grad()
def _time(run: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Seconds of a call, the better of two after a first."""
    best = float("inf")
    for attempt in range(3):
        began = time.perf_counter()
        run().flatten()[0].item()  # waits for the device
        if attempt:
            best = min(best, time.perf_counter() - began)
    return best
