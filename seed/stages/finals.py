"""Full distillation: frontier members in, exported and judged checkpoints out.

Members that see the same batches are trained side by side, as many as memory takes, and share the dense model's part of
each. With replicas each is distilled again under other random seeds; the first is exported. The learning rate is
tuned once for a study on a small share of the budget. Every step is resumable, and a finished member is never done
twice. Which members, the frontier decides.
"""

import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
from torch import nn

from seed import folder
from seed.models.checkpoint import is_whole, measure_size, write_checkpoint
from seed.models.surgery import cast_weights
from seed.optimize.space import drop_layers
from seed.records import (
    Candidate,
    DenseResult,
    DistillResult,
    FrontierMember,
    Latency,
    Replica,
    SearchPlan,
    WidthCut,
)
from seed.reporting.card import write_card
from seed.scoring.distillation import Distilled, DistillSettings, tune_learning_rate
from seed.scoring.instruments import (
    Instruments,
    enrol,
    exported_losses,
    start_student,
    train_student,
    train_together,
)
from seed.scoring.proxy import choose_start
from seed.scoring.quality import DocumentLosses
from seed.scoring.refit import Refit
from seed.scoring.sweep import Sweep
from seed.stages import judging, narrowing
from seed.stages.recoveries import Recovery
from seed.stages.recovering import count_together, distill_settings
from seed.stages.workbench import Workbench

TUNING_SHARE = 10  # a rate is tried on one tenth of the budget


@dataclass(frozen=True, kw_only=True)
class Member:
    """What is to be distilled: a set of layers, or with ``width`` all layers cut to that width."""

    candidate: Candidate
    latency: Latency | None = None  # needed where it is exported
    trial_number: int | None = None
    width: WidthCut | None = None

    @property
    def key(self) -> str:
        """The result's name."""
        return self.candidate.key if self.width is None else self.width.key


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How members are trained: tokens for each replica, at which peak rate, under which random seeds."""

    distill_tokens: int
    learning_rate: float
    rng_seeds: tuple[int, ...]  # the first one's student is exported


def list_members(members: Sequence[FrontierMember]) -> list[Member]:
    """The members of a frontier as what is to be distilled."""
    return [
        Member(candidate=one.evaluation.candidate, latency=one.evaluation.latency, trial_number=one.trial_number)
        for one in members
    ]


def list_baselines(bench: Workbench, instruments: Instruments, members: Sequence[Member]) -> list[Member]:
    """For each size among the members, all layers cut to that size in width, timed.

    Raises:
        ModelError: this family's widths cannot be cut.
    """
    whole = drop_layers(bench.anatomy.num_layers, [])
    found = []
    for width in narrowing.plan_widths(instruments, [member.candidate for member in members]):
        known = bench.folder.result(width.key)
        latency = (
            folder.read_record(known, DistillResult).latency
            if known.exists()
            else narrowing.measure_width_latency(bench, instruments, width)
        )
        found.append(Member(candidate=whole, latency=latency, width=width))
    return found


def list_rng_seeds(bench: Workbench, replicas: int) -> tuple[int, ...]:
    """The random seeds of so many replicas: the study's own, and those that follow it."""
    return tuple(range(bench.protocol.rng_seed, bench.protocol.rng_seed + replicas))


def count_steps(bench: Workbench, distill_tokens: int) -> int:
    """Whole steps of the protocol's batch that come closest to so many tokens."""
    return max(1, round(distill_tokens / (bench.batch_windows * bench.protocol.window_tokens)))


def full_settings(
    bench: Workbench,
    candidate: Candidate,
    *,
    distill_tokens: int,
    learning_rate: float,
    looks: int | None = None,
    rng_seed: int | None = None,
    recovery: Recovery | None = None,
) -> DistillSettings:
    """Budget of a full distillation; looks at validation text are eight steps apart or more."""
    steps = count_steps(bench, distill_tokens)
    return distill_settings(
        bench,
        candidate,
        steps=steps,
        learning_rate=learning_rate,
        looks=looks or max(1, min(8, steps // 8)),
        rng_seed=rng_seed,
        recovery=recovery,
    )


def count_work(bench: Workbench, steps: int) -> float:
    """Work of one final in steps of its distillation: measuring the starts and judging the end count too."""
    validation, test = bench.streams["validation"].num_tokens, bench.streams["test"].num_tokens
    step_forwards = 3.3 * bench.batch_windows * bench.protocol.window_tokens
    return steps + (4 * validation + 2 * bench.protocol.calibration_tokens + 3 * test) / step_forwards


def prepare_start(sweep: Sweep, candidate: Candidate) -> tuple[str, Refit | None]:
    """Measure both starts, raw and closed form, and return the better with its maps."""
    [raw] = sweep.measure_unrecovered([candidate])
    qualities = {"none": raw}
    if sweep.instruments.gains is not None:
        qualities["closed_form"] = sweep.measure(candidate)
    start = choose_start(qualities)
    refit = sweep.recover(candidate) if start == "closed_form" else None
    sweep.release_states()
    return start, refit


def choose_learning_rate(
    bench: Workbench,
    sweep: Sweep,
    member: Member,
    *,
    rates: tuple[float, ...],
    distill_tokens: int,
    on_step: Callable[[int], None],
    recovery: Recovery | None = None,
) -> float:
    """Try each rate on a tenth of the budget and return the best; remembered in the study.

    Without a recovery it is the study's own rate, tuned once, whichever member was the hardest then; with one it is this
    member's.
    """
    path = bench.folder.root / "learning_rate.json"
    key = f"{member.key}, {distill_tokens} tokens" + ("" if recovery is None else f", {recovery.name}")
    chosen = f"{distill_tokens} tokens, {len(rates)} rates" if recovery is None else f"{key}, {len(rates)} rates"
    known: dict[str, dict[str, float]] = folder.read_record(path, dict[str, dict[str, float]]) if path.exists() else {}
    if chosen in known:
        return known[chosen]["best"]
    losses = known.setdefault(key, {})

    def run(rate: float) -> float:
        if str(rate) in losses:
            return losses[str(rate)]
        tokens = max(1, distill_tokens // TUNING_SHARE)
        settings = full_settings(
            bench, member.candidate, distill_tokens=tokens, learning_rate=rate, looks=1, recovery=recovery
        )
        _, student = make_start(sweep, member, settings)
        went = train_student(sweep.instruments, student, settings, candidate=member.candidate, on_step=on_step)
        loss = went.curve[-1].validation_loss
        losses[str(rate)] = loss if math.isfinite(loss) else sys.float_info.max  # JSON knows no infinity
        folder.write_bytes(path, json.dumps(known, indent=1).encode())
        return losses[str(rate)]

    best, _ = tune_learning_rate(rates, run)
    known[chosen] = {"best": best}
    folder.write_bytes(path, json.dumps(known, indent=1).encode())
    return best


def distill_members(
    bench: Workbench,
    sweep: Sweep,
    plan: SearchPlan,
    dense: DenseResult,
    members: Sequence[Member],
    budget: Budget,
    *,
    eval_command: str | None = None,
    on_work: Callable[[float, str], None] = lambda amount, key: None,
) -> list[DistillResult]:
    """Distill, export and judge members under every random seed; finished ones are read back.

    ``on_work`` hears of ``count_work`` for each member and random seed in all, with whose work it was.
    """
    steps = count_steps(bench, budget.distill_tokens)
    for rng_seed in budget.rng_seeds:
        todo = [member for member in members if not is_done(bench, member, budget, rng_seed)]
        for member in members:
            if member not in todo:
                on_work(count_work(bench, steps), member.key)
        for group in group_members(bench, todo):
            _distill_group(bench, sweep, plan, dense, group, budget, rng_seed=rng_seed, on_work=on_work)
    results = [folder.read_record(bench.folder.result(member.key), DistillResult) for member in members]
    return [judging.score_for_user(bench, result, eval_command) for result in results]


def is_done(bench: Workbench, member: Member, budget: Budget, rng_seed: int) -> bool:
    """Was the member distilled under this seed by these settings, or for longer?"""
    path = bench.folder.result(member.key)
    if not (path.exists() and is_whole(bench.folder.model(member.key))):
        return False
    known = folder.read_record(path, DistillResult)
    settings = _settings(bench, member, budget, budget.rng_seeds[0])
    if int(known.settings["steps"]) > settings.steps:  # never undo a longer one
        return True
    is_same = known.settings == describe_settings(bench, settings)
    return is_same and any(replica.rng_seed == rng_seed for replica in known.replicas)


def group_members(bench: Workbench, members: Sequence[Member]) -> Iterator[Sequence[Member]]:
    """Split members into groups that memory takes side by side."""
    size = count_together(bench)
    for start in range(0, len(members), size):
        yield members[start : start + size]


def _settings(bench: Workbench, member: Member, budget: Budget, rng_seed: int) -> DistillSettings:
    return full_settings(
        bench,
        member.candidate,
        distill_tokens=budget.distill_tokens,
        learning_rate=budget.learning_rate,
        rng_seed=rng_seed,
    )


def _distill_group(
    bench: Workbench,
    sweep: Sweep,
    plan: SearchPlan,
    dense: DenseResult,
    group: Sequence[Member],
    budget: Budget,
    *,
    rng_seed: int,
    on_work: Callable[[float, str], None],
) -> None:
    """Train members side by side, then judge and keep one after another."""
    began = time.monotonic()
    instruments, is_first = sweep.instruments, rng_seed == budget.rng_seeds[0]
    steps = count_steps(bench, budget.distill_tokens)
    around = (count_work(bench, steps) - steps) / 2
    starts, pupils, checkpoints = [], [], []
    for member in group:
        settings = _settings(bench, member, budget, rng_seed)
        start, student = make_start(sweep, member, settings)
        suffix = "" if is_first else f"-{rng_seed}"
        checkpoints.append(bench.folder.work / f"distill-{member.key}{suffix}.pt")
        pupils.append(enrol(instruments, student, settings, candidate=member.candidate, checkpoint=checkpoints[-1]))
        starts.append(start)
        on_work(around, member.key)
    finished = 0

    def report_step(step: int) -> None:
        nonlocal finished
        for member in group:
            on_work(step - finished, member.key)
        finished = step

    distilled = train_together(instruments, pupils, on_step=report_step)
    seconds = (time.monotonic() - began) / len(group)
    for member, start, pupil, went in zip(group, starts, pupils, distilled, strict=True):
        keep = functools.partial(_keep_first, plan=plan, dense=dense, start=start) if is_first else _keep_replica
        keep(bench, instruments, member, pupil.student, went, settings=pupil.settings, seconds=seconds)
        on_work(around, member.key)
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)


def make_start(sweep: Sweep, member: Member, settings: DistillSettings) -> tuple[str, nn.Module]:
    """The student that a member's distillation begins with, and which start that is."""
    if member.width is not None:
        return "none", narrowing.start_narrow(sweep.instruments, member.width)
    start, refit = prepare_start(sweep, member.candidate)
    return start, start_student(sweep.instruments, member.candidate, refit, settings=settings)


def _keep_first(
    bench: Workbench,
    instruments: Instruments,
    member: Member,
    student: nn.Module,
    went: Distilled,
    *,
    plan: SearchPlan,
    dense: DenseResult,
    start: str,
    settings: DistillSettings,
    seconds: float,
) -> None:
    """Export and judge the first replica, and write its result and its card."""
    assert member.latency is not None, "what is exported was timed"
    began, path = time.monotonic(), bench.folder.model(member.key)
    described = describe_settings(bench, settings)
    provenance = {
        "seed": plan.seed_version,
        "base_model": bench.protocol.location,
        "base_revision": bench.protocol.commit or bench.protocol.revision,
        "num_layers": member.candidate.num_layers,
        "kept_layers": member.candidate.kept_layers,
        "dropped_layers": member.candidate.dropped_layers,
        "width": None if member.width is None else msgspec.to_builtins(member.width),
        "study": plan.name,
        "settings": described,
        "streams": msgspec.to_builtins(bench.protocol.streams),
    }
    size = measure_size(student, dtype=bench.teacher.stored_dtype)
    write_checkpoint(
        student,
        path,
        tokenizer=bench.teacher.tokenizer,
        dtype=bench.teacher.stored_dtype,
        card="",
        provenance=provenance,
    )
    raw = cast_weights(make_raw(instruments, member), bench.dtype)
    judged = judging.judge_exported(bench, instruments, path, raw)
    replica = describe_replica(went, judged.test_losses, rng_seed=settings.rng_seed, seconds=seconds)
    result = DistillResult(
        candidate=member.candidate,
        width=member.width,
        trial_number=member.trial_number,
        settings=described,
        curve=went.curve,
        start=start,
        best_step=went.best_step,
        validation=judged.validation,
        test=judged.test,
        test_unrecovered=judged.unrecovered,
        latency=member.latency,
        size=size,
        seconds=seconds + time.monotonic() - began,
        replicas=(replica,),
    )
    folder.write_bytes(path / "README.md", write_card(plan, bench.protocol, dense, result).encode())
    folder.write_record(bench.folder.result(member.key), result)


def make_raw(instruments: Instruments, member: Member) -> nn.Module:
    """The same cut as it stands, without recovery, in float32."""
    if member.width is not None:
        return narrowing.start_narrow(instruments, member.width)
    return start_student(instruments, member.candidate, None)


def _keep_replica(
    bench: Workbench,
    instruments: Instruments,
    member: Member,
    student: nn.Module,
    went: Distilled,
    *,
    settings: DistillSettings,
    seconds: float,
) -> None:
    """Judge a further replica, and add it to the member's result."""
    path = bench.folder.result(member.key)
    known = folder.read_record(path, DistillResult)
    test = exported_losses(instruments, student, bench.streams["test"])
    replica = describe_replica(went, test, rng_seed=settings.rng_seed, seconds=seconds)
    folder.write_record(path, msgspec.structs.replace(known, replicas=(*known.replicas, replica)))


def describe_replica(went: Distilled, test: DocumentLosses, *, rng_seed: int, seconds: float) -> Replica:
    """The record of one distillation: how it went, and the test losses of its best weights."""
    return Replica(
        rng_seed=rng_seed,
        validation_loss=finite(min(point.validation_loss for point in went.curve)),
        test_sums=[finite(loss) for loss in test.sums.tolist()],
        best_step=went.best_step,
        seconds=seconds,
    )


def finite(loss: float) -> float | None:
    """The loss, or None where it is not a number, which JSON does not know."""
    return loss if math.isfinite(loss) else None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A student with its best weights, how it got there, and its losses on test text as it would be exported."""

    student: nn.Module
    start: str
    went: Distilled
    test: DocumentLosses
    seconds: float  # of training, looks at validation text included
    whole_seconds: float  # with starts and judging


def distill_once(
    bench: Workbench,
    sweep: Sweep,
    member: Member,
    settings: DistillSettings,
    *,
    on_step: Callable[[], None],
) -> Trained:
    """Distill from the better start and judge the best weights on test text; nothing is kept."""
    began = time.perf_counter()
    start, student = make_start(sweep, member, settings)
    started = time.perf_counter()
    went = train_student(
        sweep.instruments, student, settings, candidate=member.candidate, on_step=lambda step: on_step()
    )
    seconds = time.perf_counter() - started
    test = exported_losses(sweep.instruments, student, bench.streams["test"])
    return Trained(
        student=student, start=start, went=went, test=test, seconds=seconds, whole_seconds=time.perf_counter() - began
    )


def describe_settings(bench: Workbench, settings: DistillSettings) -> dict[str, str | int | float]:
    """What decides a distillation, for people and for knowing a finished one again."""
    batch_tokens = settings.batch_windows * bench.protocol.window_tokens
    earlier = {"earlier_tokens": bench.protocol.start_tokens} if bench.protocol.start else {}
    return {
        "distill_tokens": settings.steps * batch_tokens,
        **earlier,
        "steps": settings.steps,
        "batch_tokens": batch_tokens,
        "learning_rate": settings.learning_rate,
        "rng_seed": settings.rng_seed,
        "trained": describe_trained(settings),
        "loss": settings.objective.describe(),
    }


def describe_trained(settings: DistillSettings) -> str:
    """Which weights a distillation trains, in words."""
    what = "all weights" if settings.lora_rank is None else f"LoRA of rank {settings.lora_rank}"
    behind = f" behind the first {settings.frozen_layers} layers" if settings.frozen_layers else ""
    return f"{what}{behind}, {'bfloat16 around float32' if settings.mixed_precision else 'float32'}"
