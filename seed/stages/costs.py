"""What a search will cost, estimated before any work from a few timed parts of the model, and refused early.

Estimates depend on a ``Shape`` alone, so that a dry run without weights and the search itself use the same formulas.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from seed import folder
from seed.console import format_seconds
from seed.errors import ResourceError
from seed.models.anatomy import Anatomy
from seed.optimize.space import Preset, enumerate_candidates
from seed.records import Protocol, SearchPlan, SearchSpace
from seed.reporting.wording import format_bytes
from seed.scoring.memory import (
    TRAINED_TOKENS,
    count_kept_bytes,
    count_logits_bytes,
    count_usable_bytes,
    count_way_back,
    must_recompute,
)
from seed.scoring.refit import RIDGES, ProjectionFit
from seed.scoring.subsets import SIBLING_BYTES, count_work, estimate_memory
from seed.scoring.sweep import RELEASED_BYTES
from seed.scoring.targets import STORED_BYTES
from seed.stages import planning
from seed.stages.planning import SearchSettings
from seed.stages.recovering import count_group
from seed.stages.workbench import Workbench

# Work of one trained token, in forward passes of the dense model: a student's forward and backward are three,
# the dense model's head is rebuilt from stored states. States too large to store are one more.
TRAINING_FORWARDS = 3.3
COUNTED_SETS = 50_000  # past this many the trie is not walked to count it: no sweep is short then
FIT_TOKENS = 1024  # what a fit is timed on where it is timed in small


@dataclass(frozen=True, kw_only=True)
class Shape:
    """All that estimates know of a model and its texts. Tokens, bytes, and numbers of parameters."""

    num_layers: int
    width: int
    mlp_width: int  # what the widest MLP output projection reads; 0 where closed form is not available
    vocabulary: int
    num_params: int
    layer_params: int  # of one layer, the mean
    number_bytes: int  # of a number that is computed with
    stored_bytes: int  # of a number in an exported model
    kept_bytes: (
        int  # what training one layer keeps of one token for the way back; 0 on the CPU, where it is not counted
    )
    kept_copies: int  # and what it keeps whatever the tokens: weights rounded to bfloat16
    gpu_bytes: int  # that tensors can have; 0 on the CPU
    calibration_tokens: int
    validation_tokens: int
    test_tokens: int
    recovery_windows: int

    @property
    def on_gpu(self) -> bool:
        """Is it on a GPU?"""
        return self.gpu_bytes > 0

    def __post_init__(self) -> None:
        assert self.layer_params * self.num_layers <= self.num_params


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds, or multiply-adds, of the parts that scores are made of."""

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
class Part:
    """One of the things that lie in memory, and how its size comes about."""

    what: str
    num_bytes: int
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Memory at most, and its parts."""

    num_bytes: int
    parts: tuple[Part, ...]
    remark: str

    def describe(self, *, in_detail: bool) -> str:
        """The parts in words."""
        words = (f"{part.what} {format_bytes(part.num_bytes)}{part.detail * in_detail}" for part in self.parts)
        return "; ".join(words) + self.remark


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds, bytes and counts of a search to come."""

    search_seconds: float
    distill_seconds: float
    memory_bytes: int
    memory_formula: str
    disk_bytes: int
    num_finals: int


def describe_shape(bench: Workbench) -> Shape:
    """The shape of an opened model and its text."""
    anatomy, on_gpu = bench.anatomy, bench.device.type == "cuda"
    kept = (0, 0)
    if on_gpu:
        kept = count_kept_bytes(anatomy, take_micro_batch(bench), mixed_precision=bench.protocol.mixed_precision)
    return Shape(
        num_layers=anatomy.num_layers,
        width=anatomy.config.hidden_size,
        mlp_width=0 if bench.gains is None else measure_mlp_width(anatomy),
        vocabulary=anatomy.config.vocab_size,
        num_params=sum(weight.numel() for weight in anatomy.model.parameters()),
        layer_params=sum(weight.numel() for weight in anatomy.layers.parameters()) // anatomy.num_layers,
        number_bytes=bench.dtype.itemsize,
        stored_bytes=bench.teacher.stored_dtype.itemsize,
        kept_bytes=kept[0],
        kept_copies=kept[1],
        gpu_bytes=count_usable_bytes(bench.device) if on_gpu else 0,
        calibration_tokens=bench.protocol.calibration_tokens,
        validation_tokens=bench.streams["validation"].num_tokens,
        test_tokens=bench.streams["test"].num_tokens,
        recovery_windows=len(bench.streams["recovery"].tokens_NT),
    )


def take_micro_batch(bench: Workbench) -> torch.Tensor:
    """A micro-batch of validation text on the device."""
    return bench.streams["validation"].tokens_NT[: bench.micro_batch].to(bench.device)


def time_parts(anatomy: Anatomy, shape: Shape, tokens_BT: torch.Tensor, *, fit_width: int | None = None) -> Speed:
    """Time a layer, the head and one fit, each the better of two.

    ``anatomy`` may have fewer layers than ``shape``: its middle one is timed. With ``fit_width``, fits of wider layers
    are timed at this width, and their parts scaled by the powers of the width that they grow with.
    """
    states = anatomy.trace(tokens_BT)
    middle, device, count = anatomy.num_layers // 2, anatomy.device, tokens_BT.numel()
    head = _time(lambda: anatomy.compute_logits(states[-1], tokens_BT).float().logsumexp(-1).sum(), device) / count
    layer = _time(lambda: anatomy.run_layer(middle, states[middle]), device) / count
    fit = solve = 0.0
    if shape.mlp_width:
        most = fit_width or max(shape.mlp_width, shape.width)
        reads_width, gaps_width = min(shape.mlp_width, most), min(shape.width, most)
        places = tuple(tokens_BT.shape) if fit_width is None else (1, FIT_TOKENS)
        gaps = [torch.randn(*places, gaps_width, device=device)]
        reads = [torch.randn(*places, reads_width, device=device)]
        share = max(1, shape.calibration_tokens / gaps[0][..., 0].numel())  # sums grow with the text, factors do not
        sums = _time(lambda: ProjectionFit(reads, has_bias=False).everything.gram, device)
        fitted = ProjectionFit(reads, has_bias=False)
        fitted.solve(gaps)
        solve = _time(lambda: fitted.solve(gaps).weight, device)
        whole = _time(lambda: ProjectionFit(reads, has_bias=False).solve(gaps).weight, device)
        wider, more = shape.mlp_width / reads_width, shape.width / gaps_width
        factors = max(0.0, whole - sums - solve) * wider**3
        sums *= wider**2
        fit = share * sums + factors
        solve = solve * wider**2 * more + share * sums * shape.width / shape.mlp_width
    return Speed(layer=layer, head=head, fit=fit, solve=solve, num_layers=shape.num_layers)


def count_parts(anatomy: Anatomy, shape: Shape, *, window_tokens: int) -> tuple[Speed, Speed]:
    """Multiply-adds of the parts, those of float64 apart: layers and head, and sums of fits; factors and solutions of fits.

    Attention is taken over half a window, as a causal mask leaves it.
    """
    matrices = sum(weight.numel() for weight in anatomy.layers.parameters() if weight.ndim >= 2) / anatomy.num_layers
    reads, width, systems = shape.mlp_width, shape.width, len(RIDGES) + 1  # and the best one again on all positions
    plain = Speed(
        layer=matrices + window_tokens * width,
        head=shape.vocabulary * width,
        fit=shape.calibration_tokens * reads**2,
        solve=(2 * shape.calibration_tokens + shape.validation_tokens) * reads * width,
        num_layers=shape.num_layers,
    )
    precise = Speed(
        layer=0,
        head=0,
        fit=systems * reads**3 / 3,
        solve=(systems + len(RIDGES)) * reads**2 * width,
        num_layers=shape.num_layers,
    )
    return plain, precise


def measure_mlp_width(anatomy: Anatomy) -> int:
    """How many numbers the widest MLP output projection reads for one token, in a model that has them."""
    widest = 0
    for layer in range(anatomy.num_layers):
        weight = getattr(anatomy.mlp_output(layer), "weight", None)
        assert isinstance(weight, torch.Tensor), "measure_gains proved that there is one"
        widest = max(widest, weight.numel() // anatomy.config.hidden_size)
    return widest


def estimate_sweep(shape: Shape, space: SearchSpace, speed: Speed) -> float:
    """Seconds of scoring a whole space by closed form, its prefixes shared; infinite for spaces beyond counting."""
    if not shape.mlp_width or space.size > COUNTED_SETS:
        return float("inf")
    work = count_work(enumerate_candidates(space), closed_form=True, gone_layers=space.gone_layers)
    calibration, validation = shape.calibration_tokens, shape.validation_tokens
    return (
        work.plain_layers * validation * speed.layer
        + work.run_layers * ((calibration + validation) * speed.layer + speed.fit)
        + work.solved_layers * speed.solve
        + work.heads * validation * speed.head
    )


def draft_plan(
    settings: SearchSettings, preset: Preset, protocol: Protocol, *, name: str, shape: Shape, speed: Speed
) -> SearchPlan:
    """Plan the study: a space that closed form sweeps within the budget is swept."""
    trials = min(settings.trials or preset.search.trials, protocol.space.size)
    return planning.make_plan(
        settings,
        protocol,
        name=name,
        trials=trials,
        distill_tokens=settings.distill_tokens or preset.recovery.distill_tokens,
        covers_space=estimate_sweep(shape, protocol.space, speed) <= settings.sweep_budget
        and (protocol.rung == "closed_form" or settings.sampler == "subset" or protocol.space.size <= trials),
    )


def estimate_cost(shape: Shape, protocol: Protocol, plan: SearchPlan, speed: Speed, *, distill: bool) -> Cost:
    """Estimate from timed parts; the truth is mostly within a factor of two."""
    validation, test = shape.validation_tokens, shape.test_tokens
    one_walk = (shape.calibration_tokens + validation) * speed.forward + shape.num_layers * (speed.fit + speed.solve)
    climbs = protocol.rung == "short_distillation"
    search = estimate_sweep(shape, protocol.space, speed) if plan.covers_space else 0.0
    if shape.mlp_width and (climbs or not plan.covers_space):
        search += plan.trials * one_walk
    num_finals = min(plan.frontier_size, plan.trials) if distill else 0
    if num_finals and plan.width_baseline:  # one more for each depth
        space = protocol.space
        num_finals += min(num_finals, space.max_dropped - space.min_dropped + 1)
    batch_tokens = max(1, protocol.batch_tokens // protocol.window_tokens) * protocol.window_tokens
    steps = max(
        protocol.short_steps if climbs else 0,
        plan.distill_tokens // batch_tokens if num_finals else 0,
    )
    seen = min(
        plan.replicas * steps * batch_tokens, shape.recovery_windows * protocol.window_tokens
    )  # each window is stored once
    states = seen * shape.width * shape.number_bytes
    training = TRAINING_FORWARDS + (states > STORED_BYTES)
    if climbs:
        short = training * protocol.short_steps * protocol.batch_tokens + 4 * validation
        search += plan.trials * short * speed.forward
    final = (training * plan.distill_tokens + 11 * validation + 3 * test) * speed.forward + 2 * one_walk
    tuning = (0.3 * training + 1) * plan.distill_tokens * speed.forward if distill else 0.0
    free = shape.gpu_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    together = min(num_finals, count_group(shape.num_params, free_bytes=free, on_gpu=shape.on_gpu))
    peak = estimate_peak(shape, protocol, trains=distill or climbs, climbs=climbs, together=max(1, together))
    # exported models, training checkpoints (weights, two moments, best weights) and one aside, the dense model's states
    checkpoints = (together + 1) * 4 * 4 * shape.num_params if num_finals else 0
    disk = num_finals * shape.num_params * shape.stored_bytes + checkpoints + states * (states <= STORED_BYTES)
    return Cost(
        search_seconds=search,
        distill_seconds=num_finals * plan.replicas * final + tuning,
        memory_bytes=peak.num_bytes,
        memory_formula=peak.describe(in_detail=True),
        disk_bytes=disk + 20_000_000,
        num_finals=num_finals,
    )


def describe_plan(protocol: Protocol, plan: SearchPlan, cost: Cost) -> list[str]:
    """Say in lines what a search will do, take and read."""
    space, rung = protocol.space, protocol.rung.replace("_", " ")
    if plan.covers_space and protocol.rung == "closed_form":
        what = f"all {space.size:,} candidates at rung {rung}"
        what += f" (--trials {plan.trials} is for spaces that no sweep covers)" if plan.trials < space.size else ""
    else:
        what = f"{plan.trials:,} of {space.size:,} candidates at rung {rung}"
        what += ", led by a sweep of all of them at rung closed form" if plan.covers_space else ""
    finals = (
        f"; then {cost.num_finals} models distilled {f'{plan.replicas} times ' * (plan.replicas > 1)}for "
        f"{plan.distill_tokens:,} tokens each, about "
        f"{format_seconds(cost.distill_seconds)}"
    )
    return [
        f"plan: {what}, about {format_seconds(cost.search_seconds)}{finals if cost.num_finals else ''}; at most "
        f"{format_bytes(cost.memory_bytes)} of memory and {format_bytes(cost.disk_bytes)} of disk, on {protocol.device}",
        f"  memory: {cost.memory_formula}",
        *(
            f"  {name}: {stream.tokens:,} tokens{f' in {stream.documents} documents' * (stream.documents > 0)} of {stream.source}"
            for name, stream in protocol.streams.items()
        ),
    ]


def require_resources(cost: Cost, *, root: Path, device: torch.device) -> None:
    """Refuse before any work when disk or memory cannot suffice.

    Raises:
        ResourceError: with what is needed, what is there, and what makes it smaller.
    """
    existing = root.resolve()
    while not existing.exists():
        existing = existing.parent
    folder.require_room(existing, needed_bytes=cost.disk_bytes, purpose="this search")
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)  # ours already
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if cost.memory_bytes > free:
        raise ResourceError(
            f"this search needs about {format_bytes(cost.memory_bytes)} of memory, but {device} has "
            f"{format_bytes(free)}. Lower --calibration-tokens and --validation-tokens, train low-rank updates only with "
            "--lora-rank 16, or choose a smaller model."
        )


def estimate_peak(
    shape: Shape,
    protocol: Protocol,
    *,
    trains: bool,
    climbs: bool,
    num_dropped: int | None = None,
    together: int = 1,
) -> Peak:
    """Memory at most, with so many students side by side; on a GPU with what training keeps for the way back, and with the best weights on the host.

    On a GPU a student without ``num_dropped`` layers is counted; None: the largest.
    """
    layers, width = shape.num_layers, shape.width
    dense = Part(what="dense model", num_bytes=shape.num_params * shape.number_bytes)
    sweep, training, rest = [], [], []
    if shape.mlp_width:
        states = estimate_memory(
            num_layers=layers,
            width=width,
            mlp_width=shape.mlp_width,
            calibration_tokens=shape.calibration_tokens,
            validation_tokens=shape.validation_tokens,
            number_bytes=shape.number_bytes,
        )
        detail = (
            f": (L + 1) (2 C + V) D numbers of states, and L times (C + V) (D + F) numbers and 72 F F bytes that siblings "
            f"share, of these {format_bytes(SIBLING_BYTES)} at most (L = {layers}, C = {shape.calibration_tokens:,}, "
            f"V = {shape.validation_tokens:,}, D = {width:,}, F = {shape.mlp_width:,})"
        )
        sweep.append(Part(what="a sweep", num_bytes=states, detail=detail))
    if trains and not shape.on_gpu:
        # float32 weights, gradient, two moments and the best weights; with LoRA a copy of the weights, and one to judge
        each = 2 * shape.number_bytes if protocol.lora_rank else 5 * 4
        what = "a student in training" if together == 1 else f"{together} students in training side by side"
        training.append(Part(what=what, num_bytes=together * shape.num_params * each))
    if trains and shape.on_gpu:
        kept = layers - (protocol.space.min_dropped if num_dropped is None else num_dropped)
        weights = shape.num_params - (layers - kept) * shape.layer_params
        tokens = max(1, TRAINED_TOKENS // protocol.window_tokens) * protocol.window_tokens
        if protocol.lora_rank:
            what, each = "a student's weights, and a copy to judge", 2 * shape.number_bytes
        else:  # at a look at validation text the copy to judge stands where the gradient was
            what, each = "a student's float32 weights, gradient and two moments", 4 * 4
        what += f", {together} times" if together > 1 else ""
        training.append(Part(what=what, num_bytes=together * weights * each, detail=f" ({kept} layers)"))
        training.append(
            _describe_way_back(
                shape,
                num_layers=kept,
                tokens=tokens,
                others=dense.num_bytes + together * weights * each,
                is_low_rank=bool(protocol.lora_rank),
            )
        )
    if shape.on_gpu:
        logits = count_logits_bytes(shape.vocabulary)
        rest.append(Part(what="logits, some positions at a time", num_bytes=logits))
    swept, trained = (sum(part.num_bytes for part in parts) for parts in (sweep, training))
    lets_go = swept > RELEASED_BYTES and not climbs
    return Peak(
        num_bytes=dense.num_bytes
        + (max(swept, trained) if lets_go else swept + trained)
        + sum(part.num_bytes for part in rest),
        parts=(dense, *sweep, *training, *rest),
        remark=" (training begins after the sweep's states are let go)" if lets_go and trained else "",
    )


def _describe_way_back(shape: Shape, *, num_layers: int, tokens: int, others: int, is_low_rank: bool) -> Part:
    """What training keeps for the way back: all, or little where that would be too much beside ``others``."""

    def count(recomputes: bool) -> int:
        return count_way_back(
            num_layers=num_layers,
            tokens=tokens,
            width=shape.width,
            kept_bytes=shape.kept_bytes,
            kept_copies=shape.kept_copies,
            recomputes=recomputes,
        )

    recomputes = not is_low_rank and must_recompute(
        gpu_bytes=shape.gpu_bytes,
        dense_bytes=0,
        student_bytes=others,
        way_back=count(False),
        logits_bytes=count_logits_bytes(shape.vocabulary),
    )
    what = f"what {tokens:,} tokens leave in its layers for the way back"
    what += ", each run again then" if recomputes else ""
    return Part(what=what, num_bytes=count(recomputes))


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
