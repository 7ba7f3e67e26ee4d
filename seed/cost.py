"""What a search will take of time, memory and disk, estimated from a few timed parts of the model, and refused early."""

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from seed import protocols, study_dir
from seed.config import StudyConfig, known
from seed.console import format_span
from seed.distillation.lora import count_update_params
from seed.distillation.memory import (
    GPU_BYTES_PER_WEIGHT,
    TRAINED_TOKENS,
    count_kept_bytes,
    count_logits_bytes,
    count_usable_bytes,
    fit_way_back,
)
from seed.distillation.teacher_states import STORED_BYTES
from seed.errors import ResourceError
from seed.evaluation.latency import FIRST_PAIRS, MOST_SECONDS, cut_stretches
from seed.models.anatomy import Anatomy, count_params
from seed.models.checkpoint import measure_size
from seed.optimize.space import draw_candidate, drop_more, enumerate_candidates, list_parts
from seed.plans import Protocol, SearchPlan
from seed.proxy.shared_maps import REACH, shares_maps
from seed.proxy.subset_walker import TrieWork, count_work, estimate_memory
from seed.proxy.sweep import RELEASED_BYTES
from seed.records import Candidate
from seed.reporting.wording import count_things, format_bytes, name_proxy
from seed.speed import Speed, draw_tokens, time_parts
from seed.stages.budgets import HOST_BYTES_PER_WEIGHT, count_group, measure_free_bytes
from seed.stages.students import TUNING_SHARE
from seed.stats import FEWEST_PAIRS

COUNTED_SETS = 50_000  # past this many the trie is not walked to count it: no sweep is short then
DRAWN_SETS = 16  # candidates whose work is counted, to know that of one
MOST_GAPS = 4  # behind a layer that have maps, about
TUNED_RATES = 3  # that are tried at most
USUAL_PAIRS = 2 * FIRST_PAIRS  # timed pairs of a structure, where times vary by 2 %


@dataclass(frozen=True, kw_only=True)
class Shape:
    """All that estimates know of a model. Bytes, and numbers of parameters."""

    num_layers: int
    width: int
    mlp_width: int  # what the widest MLP output projection reads; 0 where closed form is not available
    vocabulary: int
    num_params: int
    layer_params: int  # of one layer, the mean
    update_params: int  # of a low-rank update of rank 1 of all linear maps; 0 where none fits
    cache_bytes: int  # of the KV cache, one token
    number_bytes: int  # of a number that is computed with
    stored_bytes: int  # of a number in an exported model
    shares_maps: bool = False  # of closed form
    kept_bytes: int = 0  # what training a layer on a GPU keeps of one token for the way back
    kept_copies: int = 0  # and what it keeps whatever the tokens: weights rounded to bfloat16
    gpu_bytes: int = 0  # that tensors can have; 0 on the CPU


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the things that lie in memory."""

    what: str
    num_bytes: int
    cure: str = "choose a smaller model"  # what makes it smaller


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What lies in memory where it is most."""

    parts: tuple[Part, ...]

    @property
    def num_bytes(self) -> int:
        """All parts together."""
        return sum(part.num_bytes for part in self.parts)

    def __str__(self) -> str:
        return "; ".join(f"{part.what} {format_bytes(part.num_bytes)}" for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds, bytes and counts of a search to come."""

    latency_seconds: float
    search_seconds: float
    baselines_seconds: float  # what is scored beside the trials
    distill_seconds: float
    memory: Memory
    disk_bytes: int
    num_finals: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.latency_seconds + self.search_seconds + self.baselines_seconds + self.distill_seconds


def measure_parts(
    timed: Anatomy,
    *,
    whole: nn.Module,
    window_tokens: int,
    gains: Mapping[int, float] | None,
    dtype: torch.dtype,
    stored_dtype: torch.dtype,
    for_gpu: bool,
    trains: bool,
) -> tuple[Shape, Speed]:
    """Measure a model's shape, and time its parts on the device that it lies on.

    Args:
        timed: the model, or one of a few of its layers.
        whole: the model, which may be without weights.
        window_tokens: that run through it at once.
        gains: what closed form needs; None: it is not available for this family.
        dtype: that is computed with.
        stored_dtype: of the weights of exported models.
        for_gpu: count what training on a GPU keeps, too.
        trains: are students trained in all their weights?
    """
    tokens_BT = draw_tokens(timed, window_tokens)
    shape = measure_shape(
        timed,
        tokens_BT,
        whole=whole,
        closed_form=gains is not None,
        dtype=dtype,
        stored_dtype=stored_dtype,
        for_gpu=for_gpu,
        gpu_bytes=count_usable_bytes(timed.device) if timed.device.type == "cuda" else 0,
    )
    speed = time_parts(
        timed,
        tokens_BT,
        num_layers=shape.num_layers,
        gains=gains,
        trains=trains,
    )
    return shape, speed


def measure_shape(
    timed: Anatomy,
    tokens_BT: torch.Tensor,
    *,
    whole: nn.Module,
    closed_form: bool,
    dtype: torch.dtype,
    stored_dtype: torch.dtype,
    for_gpu: bool,
    gpu_bytes: int,
) -> Shape:
    """Measure a model's shape, on a few tokens. ``gpu_bytes``: that tensors can have there; 0: on the CPU. Else as ``measure_parts``."""
    dense = Anatomy(whole)
    kept = count_kept_bytes(timed, tokens_BT, mixed_precision=True) if for_gpu else (0, 0)
    projections = [timed.find_output_projection(layer) for layer in range(timed.num_layers)] if closed_form else []
    cache_bytes = measure_size(timed.model, dtype=dtype).kv_bytes_per_token
    return Shape(
        num_layers=dense.num_layers,
        width=timed.config.hidden_size,
        mlp_width=max((one.num_inputs for one in projections if one is not None), default=0),
        vocabulary=dense.config.vocab_size,
        shares_maps=closed_form and shares_maps(timed),
        num_params=count_params(whole),
        layer_params=count_params(dense.layers) // dense.num_layers,
        update_params=count_update_params(whole),
        cache_bytes=cache_bytes * dense.num_layers // timed.num_layers,
        number_bytes=dtype.itemsize,
        stored_bytes=stored_dtype.itemsize,
        kept_bytes=kept[0],
        kept_copies=kept[1],
        gpu_bytes=gpu_bytes,
    )


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """Prices the work of a study in seconds of one evaluator, on a model of this shape whose parts run so fast."""

    protocol: Protocol
    shape: Shape
    speed: Speed

    def with_protocol(self, **changes: Any) -> "Estimator":
        """The same with changes to the protocol."""
        return replace(self, protocol=msgspec.structs.replace(self.protocol, **changes))

    @property
    def validation_tokens(self) -> int:
        """What the validation stream holds."""
        return self.protocol.streams["validation"].tokens

    def price_fit(self) -> float:
        """Recovery of one layer in closed form, beside running it."""
        return self.speed.recovery[0] + self.protocol.calibration_tokens * self.speed.recovery[1]

    def price_work(self, work: TrieWork) -> float:
        """Scores that share prefixes."""
        calibration, validation, speed = self.protocol.calibration_tokens, self.validation_tokens, self.speed
        # half of it are sums and factors, once for each layer that is run, half solutions, of which siblings have one each
        layers = (
            work.plain_layers * validation * speed.layer
            + work.run_layers * (calibration + validation) * speed.layer
            + (work.run_layers + work.solved_layers) / 2 * self.price_fit()
        )
        return layers / self.per_layer + work.heads * validation * speed.head

    @property
    def per_layer(self) -> int:
        """Steps in which closed form walks a layer."""
        return 2 if self.protocol.by_sublayers else 1

    def price_maps(self, *, trials: int | None = None) -> float:
        """What candidates share: the dense model's states, and maps of each gap. ``trials``: of so many; None: of all."""
        if not self.shape.shares_maps:
            return 0.0
        tokens, space, speed = self.protocol.calibration_tokens, self.protocol.space, self.speed
        gaps = min(MOST_GAPS, space.more_dropped[-1]) * len(list_parts(space))
        gaps = min(gaps, space.more_dropped[-1] * (trials or gaps))
        maps = (1 + REACH * self.per_layer) * gaps
        return tokens * speed.forward + maps * (tokens * speed.layer + self.price_fit()) / self.per_layer

    def price_closed_form(self) -> float:
        """One score by closed form that shares nothing, in the mean of some candidates."""
        if not self.shape.mlp_width:
            return 0.0
        rng = random.Random(0)
        works = [self.count_closed_form([draw_candidate(self.protocol.space, rng)]) for _ in range(DRAWN_SETS)]
        return sum(map(self.price_work, works)) / DRAWN_SETS

    def count_closed_form(self, candidates: Iterable[Candidate]) -> TrieWork:
        """What scores by closed form take, once the maps are there that all share."""
        gone_layers = self.protocol.space.gone_layers
        if self.protocol.by_sublayers:
            candidates = (candidate.sublayers for candidate in candidates)
        return count_work(candidates, closed_form=not self.shape.shares_maps, gone_layers=gone_layers)

    def price_score(self) -> float:
        """One score by the study's proxy."""
        seconds, protocol = self.price_closed_form(), self.protocol
        if protocol.proxy == "short-distillation":
            tokens = protocol.short_steps * protocol.step_tokens
            seconds += self.price_token() * tokens + 4 * self.validation_tokens * self.speed.forward
            seconds += 0 if self.keeps_states(tokens) else tokens * self.speed.forward
        return seconds

    def price_token(self) -> float:
        """Training one student on one token."""
        space = self.protocol.space
        return self.speed.training * self.speed.run(space.num_layers - (space.min_dropped + space.max_dropped) / 2)

    def price_sweep(self) -> float:
        """Scoring the whole space by closed form, its prefixes shared; infinite for spaces beyond counting."""
        space = self.protocol.space
        if not self.shape.mlp_width or space.size > COUNTED_SETS:
            return math.inf
        return self.price_maps() + self.price_work(self.count_closed_form(enumerate_candidates(space)))

    def price_search(self, plan: SearchPlan) -> float:
        """All scores of the trials, and the sweep where there is one."""
        seconds = self.price_sweep() if plan.covers_space else self.price_maps(trials=plan.trials)
        if self.protocol.proxy == "short-distillation" or not plan.covers_space:
            seconds += plan.trials * self.price_score()
        return seconds

    def price_baselines(self, plan: SearchPlan) -> float:
        """What is scored beside the trials: what each layer costs alone, and what simpler ways would have chosen."""
        space = self.protocol.space
        if not plan.allows_singles(space):
            return 0.0
        singles = sorted((drop_more(space, [one]) for one in space.droppable_layers), key=lambda one: one.kept_layers)
        seconds = self.price_work(count_work(singles, closed_form=False)) * self.per_layer  # whole layers, all of them
        if not self.shape.mlp_width:  # greedy removal goes on from there
            return seconds * max(1, plan.trials / len(singles))
        if plan.covers_space:
            return seconds
        seconds += self.price_work(self.count_closed_form(singles))
        return seconds + len(space.more_dropped) * self.price_closed_form()

    def price_latency(self) -> float:
        """Timing each depth beside the dense model; by a command of the user's, nobody knows."""
        protocol = self.protocol
        if protocol.latency_command:
            return 0.0
        depths, run = len(protocol.space.more_dropped), self.price_run()
        a_pair = 2 * run / len(cut_stretches(protocol.new_tokens, token_ms=1000 * self.price_step()))
        pairs = protocol.latency_repeats or max(FEWEST_PAIRS, min(USUAL_PAIRS, MOST_SECONDS / a_pair))
        return depths * (pairs * a_pair + 2 * run)

    def price_step(self) -> float:
        """Decoding one token of all timed sequences, on the dense model."""
        return max(self.speed.step, self.protocol.latency_batch * self.speed.forward)

    def price_run(self) -> float:
        """The timed workload once, on the dense model."""
        protocol = self.protocol
        prompts = protocol.latency_batch * protocol.prompt_tokens * self.speed.forward
        return prompts + protocol.new_tokens * self.price_step()

    def price_dense(self) -> float:
        """The dense model's passes over calibration, validation and test text."""
        test = self.protocol.streams["test"].tokens
        return self.speed.forward * (self.protocol.calibration_tokens + self.validation_tokens + test)

    def price_distillation(self, *, tokens: int, num_students: int, is_tuned: bool) -> float:
        """Distilling and judging students for so many tokens each, one after another."""
        streams, forward = self.protocol.streams, self.speed.forward
        looks = 3 + max(1.0, min(8.0, tokens / self.protocol.step_tokens / 8))
        final = self.price_token() * tokens + (looks * self.validation_tokens + 3 * streams["test"].tokens) * forward
        final += self.price_closed_form()
        if self.keeps_states(tokens):
            states = min(tokens, streams["recovery"].tokens) * forward
        else:
            final, states = final + tokens * forward, 0.0
        return num_students * final + states + is_tuned * TUNED_RATES / TUNING_SHARE * final

    def count_state_bytes(self, tokens: int) -> int:
        """Bytes of the dense model's last states of each window that training on so many tokens sees."""
        seen = min(tokens, self.protocol.streams["recovery"].tokens)
        return seen * self.shape.width * self.shape.number_bytes

    def keeps_states(self, tokens: int) -> bool:
        """Are the dense model's states on so many tokens stored? Those that are too large are computed in every step."""
        return self.count_state_bytes(tokens) <= STORED_BYTES

    def draft_plan(self, settings: StudyConfig, *, name: str) -> SearchPlan:
        """Plan the study: how many candidates are scored, and whether closed form sweeps the whole space."""
        plan = protocols.make_plan(
            settings,
            self.protocol,
            name=name,
            trials=min(known(settings.trials), self.protocol.space.size),
            distill_tokens=known(settings.distill_tokens),
            covers_space=self.price_sweep() <= settings.sweep_budget,
        )
        return protocols.settle_trials(plan, settings)

    def estimate_cost(self, plan: SearchPlan, *, distill: bool, is_tuned: bool = True, num_workers: int = 1) -> Cost:
        """Estimate all; the truth is mostly within a factor of two. ``num_workers``: evaluators that share the work."""
        protocol, shape = self.protocol, self.shape
        is_short = protocol.proxy == "short-distillation"
        num_finals = min(plan.frontier_size, plan.trials) if distill else 0
        if num_finals and plan.width_baseline:  # one more for each depth
            num_finals += min(num_finals, len(protocol.space.more_dropped))
        final_tokens = protocol.count_steps(plan.distill_tokens) * protocol.step_tokens
        short_tokens = protocol.short_steps * protocol.step_tokens * is_short
        # the dense model's states of each window are stored once, if they are not too many
        states = self.count_state_bytes(plan.replicas * max(short_tokens, final_tokens * (num_finals > 0)))
        rounds = math.ceil(num_finals * plan.replicas / num_workers)
        distillation = self.price_distillation(tokens=final_tokens, num_students=rounds, is_tuned=is_tuned)
        free = shape.gpu_bytes or measure_free_bytes(torch.device("cpu"))
        together = min(num_finals, count_group(shape.num_params, free_bytes=free, on_gpu=shape.gpu_bytes > 0))
        # exported models, training checkpoints (weights, two moments, best weights) and one aside
        checkpoints = (together + 1) * 4 * 4 * shape.num_params if num_finals else 0
        disk = num_finals * shape.num_params * shape.stored_bytes + checkpoints + states * (states <= STORED_BYTES)
        return Cost(
            latency_seconds=self.price_latency(),
            search_seconds=self.price_search(plan) / num_workers,
            baselines_seconds=self.price_baselines(plan),
            distill_seconds=distillation if num_finals else 0.0,
            memory=self.estimate_peak(trains=distill or is_short, together=max(1, together)),
            disk_bytes=disk + 20_000_000,
            num_finals=num_finals,
        )

    def estimate_peak(self, *, trains: bool, together: int = 1) -> Memory:
        """Memory where it is most: while timing, sweeping, or training so many students side by side.

        On a GPU the best weights lie on the host, and what training keeps for the way back counts.
        """
        shape, protocol = self.shape, self.protocol
        dense = Part(what="dense model", num_bytes=shape.num_params * shape.number_bytes)
        logits = Part(
            what="logits, some positions at a time",
            num_bytes=count_logits_bytes(shape.vocabulary) if shape.gpu_bytes else 0,
        )
        swept = estimate_memory(
            num_layers=shape.num_layers * self.per_layer,
            width=shape.width,
            mlp_width=shape.mlp_width,
            calibration_tokens=protocol.calibration_tokens,
            validation_tokens=self.validation_tokens,
            number_bytes=shape.number_bytes,
            shares_maps=shape.shares_maps,
        )
        sweep = Part(
            what="states of a sweep",
            num_bytes=swept if shape.mlp_width else 0,
            cure="lower --calibration-tokens and --validation-tokens",
        )
        phases = [[self._count_timed()], [sweep, logits]]
        if trains:
            lets_go = sweep.num_bytes > RELEASED_BYTES and protocol.proxy == "closed-form"
            kept = replace(sweep, num_bytes=RELEASED_BYTES) if lets_go else sweep
            phases.append([*self._count_training(dense_bytes=dense.num_bytes, together=together), logits, kept])
        largest = max(phases, key=lambda parts: sum(part.num_bytes for part in parts))
        return Memory(parts=(dense, *(part for part in largest if part.num_bytes)))

    def _count_timed(self) -> Part:
        """What decoding holds while it is timed: the KV cache of all sequences, and what reading the prompts passes on."""
        shape, protocol, batch = self.shape, self.protocol, self.protocol.latency_batch
        cache = protocol.cached_tokens * shape.cache_bytes * (1 + protocol.compiled)
        passing = shape.vocabulary + 4 * shape.width + 2 * max(shape.mlp_width, 4 * shape.width)
        prompts = batch * protocol.prompt_tokens * (passing * shape.number_bytes + 8)
        return Part(
            what=f"KV cache and logits of {batch:,} sequences that are timed",
            num_bytes=0 if protocol.latency_command else cache + prompts,
            cure="lower --latency-batch and --prompt-tokens",
        )

    def _count_training(self, *, dense_bytes: int, together: int) -> list[Part]:
        """The largest students in training, and what they keep for the way back: all, or little where that would be too much.

        A student is its weights, gradients and moments; of low-rank updates, and a copy to judge.
        """
        shape, protocol = self.shape, self.protocol
        weights = shape.num_params - protocol.space.min_dropped * shape.layer_params
        trained_bytes = GPU_BYTES_PER_WEIGHT if shape.gpu_bytes else HOST_BYTES_PER_WEIGHT
        if rank := protocol.lora_rank:
            each = 2 * shape.number_bytes * weights + trained_bytes * rank * shape.update_params
        else:
            each = trained_bytes * weights
        students = Part(
            what="a student in training" if together == 1 else f"{together} students in training side by side",
            num_bytes=together * each,
            cure="lower --lora-rank" if rank else "train low-rank updates only with --lora-rank 16",
        )
        if not shape.gpu_bytes:
            return [students]
        tokens = max(1, TRAINED_TOKENS // protocol.window_tokens) * protocol.window_tokens
        free_bytes = shape.gpu_bytes - dense_bytes - students.num_bytes - count_logits_bytes(shape.vocabulary)
        kept, recomputes = fit_way_back(
            num_layers=shape.num_layers - protocol.space.min_dropped,
            tokens=tokens,
            width=shape.width,
            kept_bytes=shape.kept_bytes,
            kept_copies=shape.kept_copies,
            free_bytes=math.inf if rank else free_bytes,  # low-rank updates never do
        )
        what = f"what {tokens:,} tokens leave in its layers for the way back{', each run again then' * recomputes}"
        return [students, Part(what=what, num_bytes=kept)]


def describe_work(plan: SearchPlan, cost: Cost, *, num_workers: int = 1) -> list[str]:
    """Say in lines what a search will do and take; times are of one worker."""
    protocol, space = plan.protocol, plan.protocol.space
    what = "all " if plan.trials == space.size else f"{plan.trials:,} of "
    what += f"{count_things(space.size, 'candidate')} scored by {name_proxy(protocol.proxy)}"
    if plan.covers_space and protocol.proxy != "closed-form":
        what += ", led by a sweep of all of them by closed-form recovery"
    finals = (
        f"; then {count_things(cost.num_finals, 'model')} distilled {f'{plan.replicas} times ' * (plan.replicas > 1)}for "
        f"{protocol.describe_training(plan.distill_tokens)} each, {format_span(cost.distill_seconds)}"
    )
    workers = f"; {num_workers} evaluators share the work, each with as much memory" if num_workers > 1 else ""
    return [
        f"plan: {what}, {format_span(cost.search_seconds + cost.baselines_seconds)}{finals if cost.num_finals else ''}; "
        f"{format_span(cost.seconds)} in all, latencies included; at most {format_bytes(cost.memory.num_bytes)} of memory and "
        f"{format_bytes(cost.disk_bytes)} of disk, on {protocol.device}{workers}",
        *(protocol.warn_of_few_steps(plan.distill_tokens) if cost.num_finals else []),
    ]


def describe_plan(plan: SearchPlan, cost: Cost) -> list[str]:
    """Say in lines what a search will do and take, what memory is needed for, and what is read of each text."""
    lines = [*describe_work(plan, cost), f"  memory: {cost.memory}"]
    for name, stream in plan.protocol.streams.items():
        documents = f" in {count_things(stream.documents, 'document')}" if stream.documents else ""  # a guess has none
        lines.append(f"  {name}: {stream.tokens:,} tokens{documents} of {'; '.join((stream.source, *stream.notes))}")
    return lines


def require_resources(
    cost: Cost, *, root: Path | None, free_bytes: float, device: str = "this machine", num_workers: int = 1
) -> None:
    """Refuse before any work when disk or memory cannot suffice.

    Args:
        cost: what is needed.
        root: where the study is to lie; None: on a disk that is not known.
        free_bytes: of memory.
        device: that has them.
        num_workers: evaluators that share the memory.
    """
    if root is not None:
        existing = root.resolve()
        while not existing.exists():
            existing = existing.parent
        study_dir.require_room(existing, needed_bytes=cost.disk_bytes, purpose="this search")
    needed = cost.memory.num_bytes * num_workers
    if needed > free_bytes:
        largest = max(cost.memory.parts, key=lambda part: part.num_bytes)
        cure = ("give fewer --workers, " if num_workers > 1 else "") + largest.cure
        raise ResourceError(
            f"this search needs about {format_bytes(needed)} of memory, but {device} has "
            f"{format_bytes(free_bytes)}. {cure[0].upper()}{cure[1:]}{', or choose a smaller model' * ('smaller' not in cure)}."
        )
