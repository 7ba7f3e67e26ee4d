"""What a search will cost, estimated before any work from a few timed parts of the model, and refused early."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from seed import folder
from seed.config import StudyConfig, known
from seed.console import format_span
from seed.errors import ResourceError
from seed.models.anatomy import Anatomy
from seed.optimize.space import drop_more, enumerate_candidates
from seed.plans import Protocol, SearchPlan
from seed.records import SearchSpace
from seed.reporting.wording import count_things, format_bytes
from seed.scoring.latency import FIRST_PAIRS, MOST_SECONDS
from seed.scoring.refit import RIDGES, ProjectionFit
from seed.scoring.subsets import TrieWork, count_work
from seed.scoring.targets import STORED_BYTES
from seed.stages import planning
from seed.stages.peaks import estimate_peak
from seed.stages.recovering import count_group
from seed.stages.shapes import Shape
from seed.stats import FEWEST_PAIRS

# Work of one trained token, in forward passes of the dense model: a student's forward and backward are three,
# the dense model's head is rebuilt from stored states. States too large to store are one more.
TRAINING_FORWARDS = 3.3
COUNTED_SETS = 50_000  # past this many the trie is not walked to count it: no sweep is short then
FIT_TOKENS = 1024  # what a fit is timed on where it is timed in small
TIMING_TURNS, TIMING_SECONDS = 8, 2.0  # each part is timed so often at most, all together for little longer than this
BUSY_SHARE = 0.7  # of the cores, taken by others
USUAL_PAIRS = 2 * FIRST_PAIRS  # timed pairs of a structure, where times vary by 2 %


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds, or multiply-adds, of the parts that scores are made of."""

    layer: float  # one layer, one token
    head: float  # final norm, head and loss, one token
    fit: float  # the sums and factors of one closed-form fit, all calibration tokens
    solve: float  # one correction out of a fit
    step: float  # the dense model reading one token
    num_layers: int

    @property
    def forward(self) -> float:
        """The dense model, one token."""
        return self.num_layers * self.layer + self.head


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds, bytes and counts of a search to come."""

    latency_seconds: float
    search_seconds: float
    distill_seconds: float
    memory_bytes: int
    memory_formula: str
    memory_cure: str
    disk_bytes: int
    num_finals: int


def time_parts(anatomy: Anatomy, shape: Shape, tokens_BT: torch.Tensor, *, fit_width: int | None = None) -> Speed:
    """Time a layer, the head, one token and one fit: the best of several, taken in turns, so that a busy machine tells the same.

    ``anatomy`` may have fewer layers than ``shape``: its middle one is timed. With ``fit_width``, fits of wider layers
    are timed at this width, and their parts scaled by the powers of the width that they grow with.
    """
    states = anatomy.trace(tokens_BT)
    middle, device, count = anatomy.num_layers // 2, anatomy.device, tokens_BT.numel()
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "head": lambda: anatomy.compute_logits(states[-1], tokens_BT).float().logsumexp(-1).sum(),
        "layer": lambda: anatomy.run_layer(middle, states[middle]),
        "step": lambda: anatomy.model(input_ids=tokens_BT[:1, :1], use_cache=False).logits,
    }
    wider = more = share = 1.0
    if shape.mlp_width:
        most = fit_width or max(shape.mlp_width, shape.width)
        reads_width, gaps_width = min(shape.mlp_width, most), min(shape.width, most)
        places = tuple(tokens_BT.shape) if fit_width is None else (1, FIT_TOKENS)
        gaps = [torch.randn(*places, gaps_width, device=device)]
        reads = [torch.randn(*places, reads_width, device=device)]
        share = max(1, shape.calibration_tokens / gaps[0][..., 0].numel())  # sums grow with the text, factors do not
        wider, more = shape.mlp_width / reads_width, shape.width / gaps_width
        fitted = ProjectionFit(reads, has_bias=False)
        runs |= {
            "sums": lambda: ProjectionFit(reads, has_bias=False).everything.gram,
            "solve": lambda: fitted.solve(gaps).weight,
            "whole": lambda: ProjectionFit(reads, has_bias=False).solve(gaps).weight,
        }
    best = _time_in_turns(runs, device)
    fit = solve = 0.0
    if shape.mlp_width:
        factors = max(0.0, best["whole"] - best["sums"] - best["solve"]) * wider**3
        sums = best["sums"] * wider**2
        fit = share * sums + factors
        solve = best["solve"] * wider**2 * more + share * sums * shape.width / shape.mlp_width
    return Speed(
        layer=best["layer"] / count,
        head=best["head"] / count,
        fit=fit,
        solve=solve,
        step=best["step"] * shape.num_layers / anatomy.num_layers,
        num_layers=shape.num_layers,
    )


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
        step=0,
        num_layers=shape.num_layers,
    )
    precise = Speed(
        layer=0,
        head=0,
        fit=systems * reads**3 / 3,
        solve=(systems + len(RIDGES)) * reads**2 * width,
        step=0,
        num_layers=shape.num_layers,
    )
    return plain, precise


def estimate_sweep(shape: Shape, space: SearchSpace, speed: Speed) -> float:
    """Seconds of scoring a whole space by closed form, its prefixes shared; infinite for spaces beyond counting."""
    if not shape.mlp_width or space.size > COUNTED_SETS:
        return float("inf")
    work = count_work(enumerate_candidates(space), closed_form=True, gone_layers=space.gone_layers)
    return price_work(work, shape, speed)


def price_work(work: TrieWork, shape: Shape, speed: Speed) -> float:
    """Seconds of scores that share prefixes."""
    calibration, validation = shape.calibration_tokens, shape.validation_tokens
    return (
        work.plain_layers * validation * speed.layer
        + work.run_layers * ((calibration + validation) * speed.layer + speed.fit)
        + work.solved_layers * speed.solve
        + work.heads * validation * speed.head
    )


def estimate_rivals(shape: Shape, protocol: Protocol, plan: SearchPlan, speed: Speed) -> float:
    """Seconds of what is scored beside the trials: what each layer costs alone, and what simpler ways would have chosen."""
    space, gone = protocol.space, protocol.space.gone_layers
    if not planning.allows_singles(plan, space):
        return 0.0
    singles = sorted((drop_more(space, [layer]) for layer in space.droppable_layers), key=lambda one: one.kept_layers)
    seconds = price_work(count_work(singles, closed_form=False), shape, speed)
    if not shape.mlp_width:  # greedy removal goes on from there
        return seconds * max(1, plan.trials / len(singles))
    if not (plan.covers_space and space.more_dropped[0] == 1):
        seconds += price_work(count_work(singles, closed_form=True, gone_layers=gone), shape, speed)
    if not plan.covers_space:
        seconds += len(space.more_dropped) * price_walk(shape, speed) * (protocol.rung == "closed_form")
    return seconds


def estimate_latency(protocol: Protocol, speed: Speed) -> float:
    """Seconds of timing each depth beside the dense model; by a command of the user's, nobody knows."""
    depths, batch = len(protocol.space.more_dropped), protocol.latency_batch
    run = batch * protocol.prompt_tokens * speed.forward + protocol.new_tokens * max(speed.step, batch * speed.forward)
    if protocol.latency_command or not run:  # nothing of it is counted in float64
        return 0.0
    pairs = protocol.latency_repeats or max(FEWEST_PAIRS, min(USUAL_PAIRS, MOST_SECONDS / (2 * run)))
    return depths * 2 * (pairs + 1) * run


def price_walk(shape: Shape, speed: Speed) -> float:
    """Seconds of one score by closed form that shares nothing, at most."""
    tokens = shape.calibration_tokens + shape.validation_tokens
    return tokens * speed.forward + shape.num_layers * (speed.fit + speed.solve)


def draft_plan(settings: StudyConfig, protocol: Protocol, *, name: str, shape: Shape, speed: Speed) -> SearchPlan:
    """Plan the study: how many candidates are scored, and whether closed form sweeps the whole space.

    Without a number of ``--trials`` a space that closed form sweeps within its budget is scored whole.
    """
    plan = planning.make_plan(
        settings,
        protocol,
        name=name,
        trials=min(known(settings.trials), protocol.space.size),
        distill_tokens=known(settings.distill_tokens),
        covers_space=estimate_sweep(shape, protocol.space, speed) <= settings.sweep_budget,
    )
    return settle_trials(plan, settings, protocol)


def settle_trials(plan: SearchPlan, settings: StudyConfig, protocol: Protocol) -> SearchPlan:
    """The plan with as many candidates as are scored, where it says whether a sweep fits its budget, and swept if that is of use."""
    size = protocol.space.size
    trials = min(known(settings.trials), size)
    if protocol.rung != "closed_form":
        is_swept = plan.covers_space and (settings.sampler == "subset" or trials == size)
    elif not settings.is_given("trials"):
        is_swept, trials = plan.covers_space, size if plan.covers_space else trials
    else:
        is_swept = plan.covers_space and trials == size
    return msgspec.structs.replace(plan, trials=trials, covers_space=is_swept)


def estimate_cost(shape: Shape, protocol: Protocol, plan: SearchPlan, speed: Speed, *, distill: bool) -> Cost:
    """Estimate from timed parts; the truth is mostly within a factor of two."""
    validation, test = shape.validation_tokens, shape.test_tokens
    one_walk = price_walk(shape, speed)
    climbs = protocol.rung == "short_distillation"
    search = estimate_sweep(shape, protocol.space, speed) if plan.covers_space else 0.0
    if shape.mlp_width and (climbs or not plan.covers_space):
        search += plan.trials * one_walk
    search += estimate_rivals(shape, protocol, plan, speed)
    num_finals = min(plan.frontier_size, plan.trials) if distill else 0
    if num_finals and plan.width_baseline:  # one more for each depth
        space = protocol.space
        num_finals += min(num_finals, space.max_dropped - space.min_dropped + 1)
    batch_tokens, final_steps = protocol.step_tokens, protocol.count_steps(plan.distill_tokens)
    trained = final_steps * batch_tokens
    steps = max(protocol.short_steps if climbs else 0, final_steps if num_finals else 0)
    seen = min(
        plan.replicas * steps * batch_tokens, shape.recovery_windows * protocol.window_tokens
    )  # each window is stored once
    states = seen * shape.width * shape.number_bytes
    training = TRAINING_FORWARDS + (states > STORED_BYTES)
    if climbs:
        short = training * protocol.short_steps * protocol.batch_tokens + 4 * validation
        search += plan.trials * short * speed.forward
    final = (training * trained + 11 * validation + 3 * test) * speed.forward + 2 * one_walk
    tuning = (0.3 * training + 1) * trained * speed.forward if distill else 0.0
    free = shape.gpu_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    together = min(num_finals, count_group(shape.num_params, free_bytes=free, on_gpu=shape.on_gpu))
    peak = estimate_peak(shape, protocol, trains=distill or climbs, climbs=climbs, together=max(1, together))
    # exported models, training checkpoints (weights, two moments, best weights) and one aside, the dense model's states
    checkpoints = (together + 1) * 4 * 4 * shape.num_params if num_finals else 0
    disk = num_finals * shape.num_params * shape.stored_bytes + checkpoints + states * (states <= STORED_BYTES)
    return Cost(
        latency_seconds=estimate_latency(protocol, speed),
        search_seconds=search,
        distill_seconds=num_finals * plan.replicas * final + tuning,
        memory_bytes=peak.num_bytes,
        memory_formula=peak.describe(in_detail=True),
        memory_cure=peak.cure,
        disk_bytes=disk + 20_000_000,
        num_finals=num_finals,
    )


def describe_plan(protocol: Protocol, plan: SearchPlan, cost: Cost, *, num_workers: int = 1) -> list[str]:
    """Say in lines what a search will do, take and read; times are of one worker."""
    space, rung = protocol.space, protocol.rung.replace("_", " ")
    what = "all " if plan.trials == space.size else f"{plan.trials:,} of "
    what += f"{count_things(space.size, 'candidate')} at rung {rung}"
    if plan.covers_space and protocol.rung != "closed_form":
        what += ", led by a sweep of all of them at rung closed form"
    finals = (
        f"; then {count_things(cost.num_finals, 'model')} distilled {f'{plan.replicas} times ' * (plan.replicas > 1)}for "
        f"{planning.say_tokens(protocol, plan.distill_tokens)} each, {format_span(cost.distill_seconds)}"
    )
    whole = cost.latency_seconds + cost.search_seconds + cost.distill_seconds
    return [
        f"plan: {what}, {format_span(cost.search_seconds)}{finals if cost.num_finals else ''}; "
        f"{format_span(whole)} in all, latencies included; at most {format_bytes(cost.memory_bytes)} of memory and {format_bytes(cost.disk_bytes)} of "
        f"disk, on {protocol.device}"
        f"{f'; {num_workers} evaluators share the work, each with as much memory' if num_workers > 1 else ''}",
        *(planning.warn_of_few_steps(protocol, plan.distill_tokens) if cost.num_finals else []),
        f"  memory: {cost.memory_formula}",
        *(
            f"  {name}: {stream.tokens:,} tokens{_spell_documents(stream.documents)} of "
            f"{'; '.join((stream.source, *stream.notes))}"
            for name, stream in protocol.streams.items()
        ),
    ]


def _spell_documents(count: int) -> str:
    return f" in {count_things(count, 'document')}" if count else ""  # an estimate knows of none


def measure_free_bytes(device: torch.device) -> int:
    """Bytes of memory that a search can have on a device: a GPU's that nobody else holds, or all of this machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)  # ours already
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_resources(
    cost: Cost, *, root: Path, free_bytes: int, device: str = "this machine", num_workers: int = 1
) -> None:
    """Refuse before any work when disk or memory cannot suffice. ``num_workers``: evaluators that share the memory.

    Raises:
        ResourceError: with what is needed, what is there, and what makes it smaller.
    """
    existing = root.resolve()
    while not existing.exists():
        existing = existing.parent
    folder.require_room(existing, needed_bytes=cost.disk_bytes, purpose="this search")
    needed = cost.memory_bytes * num_workers
    if needed > free_bytes:
        cure = ("give fewer --workers, " if num_workers > 1 else "") + cost.memory_cure
        raise ResourceError(
            f"this search needs about {format_bytes(needed)} of memory, but {device} has "
            f"{format_bytes(free_bytes)}. {cure[0].upper()}{cure[1:]}{', or choose a smaller model' * ('smaller' not in cure)}."
        )


def describe_load() -> str | None:
    """Say that others keep this machine busy, or None; to be asked before there is work of our own."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < BUSY_SHARE * cores:
        return None
    return (
        f"this machine is busy (load {load:.1f} on {count_things(cores, 'core')}): the search may take longer than planned, and "
        "latencies are less certain"
    )


@torch.no_grad()
def _time_in_turns(runs: Mapping[str, Callable[[], torch.Tensor]], device: torch.device) -> dict[str, float]:
    """Seconds of each call, the best of at least two after a first."""
    best = dict.fromkeys(runs, float("inf"))
    began = time.perf_counter()
    for turn in range(TIMING_TURNS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run().flatten()[0].item()  # waits for the device
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
        if turn >= 2 and time.perf_counter() - began > TIMING_SECONDS:
            break
    return best
