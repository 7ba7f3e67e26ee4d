"""Full distillation as an evaluator does it: settings, start, learning rate, training, judging.

A member is a set of layers or a width of the same size. Which are distilled, and what becomes of them, ``finals`` decides.
"""

import functools
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from seed import study_dir
from seed.distillation.loop import Distilled, DistillSettings
from seed.evaluation.perplexity import DocumentLosses
from seed.executor import ProgressCallback
from seed.models.checkpoint import measure_size
from seed.models.surgery import cast_weights, restore_parts
from seed.models.width import make_narrow, plan_width
from seed.proxy.instruments import (
    Instruments,
    exported_losses,
    make_job,
    size_of,
    start_student,
    train_student,
    train_students,
)
from seed.proxy.proxy import choose_start
from seed.proxy.sweep import Sweep
from seed.records import Candidate, Latency, ScoreRow, WidthCut
from seed.recovery import Recovery
from seed.sessions import Session
from seed.stages import judging
from seed.stages.budgets import distill_settings
from seed.stages.latency_table import time_beside_dense
from seed.study_dir import StudyFolder

TUNING_SHARE = 10  # a rate is tried on one tenth of the budget
Asked = list[tuple[Candidate, DistillSettings]]  # what several processes train side by side


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How members are trained: tokens for each replica, at which peak rate, under which random seeds."""

    distill_tokens: int
    learning_rate: float
    rng_seeds: tuple[int, ...]  # the first one's student is exported
    at_most: int | None = None  # students side by side; None: as many as there is room for


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


@dataclass(frozen=True, kw_only=True, eq=False)
class DistilledStudent:
    """A member that was trained under one random seed, and judged; without a look that gave a number nothing else is known."""

    member: Member
    settings: DistillSettings
    start: str
    outcome: Distilled
    seconds: float  # of training and judging
    rows: tuple[ScoreRow, ...]  # scores of its starts
    test: DocumentLosses | None = None
    judged: judging.Judged | None = None  # this and the next: of the first replica, which is exported
    checkpoint: Path | Mapping[str, bytes] | None = None  # where it lies, or its files by name


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A student with its best weights, how it got there, and its losses on test text as it would be exported."""

    student: nn.Module
    start: str
    outcome: Distilled
    test: DocumentLosses
    seconds: float  # of training, looks at validation text included
    whole_seconds: float  # with starts and judging


def count_work(session: Session, budget: Budget) -> float:
    """Work of distilling a member under one random seed: its steps, and judging it."""
    return session.protocol.count_steps(budget.distill_tokens) + 1


def name_checkpoint(session: Session, member: Member, rng_seed: int) -> Path:
    """Where the progress of a training is saved."""
    return session.folder.work / f"distill-{member.key}-{rng_seed}.pt"


def train_settings(session: Session, member: Member, budget: Budget, rng_seed: int) -> DistillSettings:
    """How a member is trained under a random seed."""
    return distill_settings(
        session,
        member.candidate,
        steps=session.protocol.count_steps(budget.distill_tokens),
        learning_rate=budget.learning_rate,
        rng_seed=rng_seed,
    )


def make_start(sweep: Sweep, member: Member, settings: DistillSettings) -> tuple[str, nn.Module]:
    """The student that a member's distillation begins with, raw or in closed form, and which of them measures better."""
    if member.width is not None:
        return "none", start_narrow(sweep.instruments, member.width)
    candidate = member.candidate
    [raw] = sweep.measure_unrecovered([candidate])
    qualities = {"none": raw}
    if sweep.instruments.gains is not None:
        qualities["closed-form"] = sweep.measure(candidate)
    start = choose_start(qualities)
    refit = sweep.recover(candidate) if start == "closed-form" else None
    sweep.release_states()
    return start, start_student(sweep.instruments, candidate, refit, settings=settings)


def make_raw(instruments: Instruments, member: Member) -> nn.Module:
    """The same cut of the original as it stands, without any recovery, in float32."""
    if member.width is not None:
        return start_narrow(instruments, member.width)
    return start_student(replace(instruments, grafted=None), member.candidate, None)


def try_rate(
    session: Session,
    sweep: Sweep,
    member: Member,
    *,
    rate: float,
    distill_tokens: int,
    on_step: Callable[[int], None],
    recovery: Recovery | None = None,
) -> float:
    """Validation loss after a tenth of the budget at this peak rate; the largest number where training breaks down."""
    steps = session.protocol.count_steps(distill_tokens // TUNING_SHARE)
    settings = distill_settings(session, member.candidate, steps=steps, learning_rate=rate, looks=1, recovery=recovery)
    _, student = make_start(sweep, member, settings)
    outcome = train_student(sweep.instruments, student, settings, candidate=member.candidate, on_step=on_step)
    is_good = outcome.diverged_at is None and bool(outcome.curve)
    return outcome.curve[-1].validation_loss if is_good else sys.float_info.max  # JSON knows no infinity


def choose_learning_rate(
    study: StudyFolder,
    member: Member,
    *,
    rates: tuple[float, ...],
    distill_tokens: int,
    try_it: Callable[[float], float],
    recovery: Recovery | None = None,
) -> float:
    """Try each rate on a tenth of the budget, as ``try_rate`` does, and return the best; remembered in the study.

    Without a recovery it is the study's own rate, tuned once, whichever member was the hardest then; with one it is this
    member's.
    """
    path = study.root / "learning_rate.json"
    key = f"{member.key}, {distill_tokens} tokens" + ("" if recovery is None else f", {recovery.name}")
    among = "rates " + ", ".join(f"{rate:g}" for rate in rates)
    chosen = f"{distill_tokens} tokens, {among}" if recovery is None else f"{key}, {among}"
    known: dict[str, dict[str, float]] = (
        study_dir.read_record(path, dict[str, dict[str, float]]) if path.exists() else {}
    )
    if chosen in known:
        return known[chosen]["best"]
    losses, tried = known.setdefault(key, {}), dict[float, float]()
    for rate in sorted(rates):  # upwards until one is worse than the one before: losses over rates have one valley
        if str(rate) not in losses:
            losses[str(rate)] = try_it(rate)
            study_dir.write_record(path, known)
        tried[rate] = losses[str(rate)]
        if tried[rate] > min(tried.values()) * (1 + 1e-4):
            break
    best = min(tried, key=lambda rate: tried[rate])
    known[chosen] = {"best": best}
    study_dir.write_record(path, known)
    return best


def distill_once(
    session: Session,
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
    outcome = train_student(
        sweep.instruments, student, settings, candidate=member.candidate, on_step=lambda step: on_step()
    )
    seconds = time.perf_counter() - started
    test = exported_losses(sweep.instruments, student, session.streams["test"])
    return Trained(
        student=student,
        start=start,
        outcome=outcome,
        test=test,
        seconds=seconds,
        whole_seconds=time.perf_counter() - began,
    )


def distill_group(
    session: Session,
    sweep: Sweep,
    members: Sequence[Member],
    budget: Budget,
    *,
    rng_seed: int,
    on_progress: ProgressCallback,
    on_warning: Callable[[str], None],
) -> list[DistilledStudent]:
    """Train members side by side, then judge one after another; the first replica as a checkpoint in the scratch folder."""
    began, instruments = time.monotonic(), sweep.instruments
    keys = ", ".join(member.key for member in members)
    starts, jobs = [], []
    for member in members:
        on_progress(0, f"preparing {member.key}")
        settings = train_settings(session, member, budget, rng_seed)
        start, student = make_start(sweep, member, settings)
        starts.append(start)
        jobs.append(
            make_job(
                instruments,
                student,
                settings,
                candidate=member.candidate,
                checkpoint=name_checkpoint(session, member, rng_seed),
                on_warning=functools.partial(lambda key, said: on_warning(f"{key}: {said}"), member.key),
            )
        )
    on_progress(0, f"training {keys}")
    finished = 0

    def report_step(step: int) -> None:
        nonlocal finished
        on_progress((step - finished) * len(members), f"training {keys}")
        finished = step

    asked = [(member.candidate, job.settings) for member, job in zip(members, jobs, strict=True)]
    instruments.processes.share(asked, Asked)
    distilled = train_students(instruments, jobs, on_step=report_step)
    seconds = (time.monotonic() - began) / len(members)
    found = []
    for member, start, job, outcome in zip(members, starts, jobs, distilled, strict=True):
        on_progress(0, f"judging {member.key}")
        made = DistilledStudent(
            member=member,
            settings=job.settings,
            start=start,
            outcome=outcome,
            seconds=seconds,
            rows=tuple(sweep.list_rows([member.candidate])),
        )
        if outcome.curve and rng_seed == budget.rng_seeds[0]:
            made = export_student(session, instruments, made, job.student)
        elif outcome.curve:
            made = replace(made, test=exported_losses(instruments, job.student, session.streams["test"]))
        found.append(made)
        on_progress(1, f"judged {member.key}")
    return found


def export_student(
    session: Session, instruments: Instruments, made: DistilledStudent, student: nn.Module
) -> DistilledStudent:
    """Write the checkpoint into the scratch folder, and judge it as it lies there."""
    began, path = time.monotonic(), session.folder.work / f"export-{made.member.key}"
    size = measure_size(student, dtype=session.teacher.stored_dtype)
    restore_parts(student, session.anatomy, made.member.candidate)
    session.write_checkpoint(student, path)
    raw = cast_weights(make_raw(instruments, made.member), session.dtype)
    judged = judging.judge_exported(session, instruments, path, raw, size=size)
    took = time.monotonic() - began
    return replace(made, test=judged.test_losses, judged=judged, checkpoint=path, seconds=made.seconds + took)


def read_checkpoint(made: DistilledStudent) -> DistilledStudent:
    """The same with the checkpoint's files by their names in it, which are gone from the scratch folder then."""
    path = made.checkpoint
    if not isinstance(path, Path):
        return made
    files = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    shutil.rmtree(path, ignore_errors=True)
    return replace(made, checkpoint=files)


def follow(instruments: Instruments) -> None:
    """Train what the first of several processes trains, until it says that all is done."""
    nothing: Asked = []
    while asked := instruments.processes.share(nothing, Asked):
        jobs = [
            make_job(instruments, start_student(instruments, candidate, None), settings, candidate=candidate)
            for candidate, settings in asked
        ]
        train_students(instruments, jobs)


def describe_settings(session: Session, settings: DistillSettings) -> dict[str, str | int | float]:
    """What decides a distillation, for people and for knowing a finished one again."""
    batch_tokens = settings.batch_windows * session.protocol.window_tokens
    earlier = {"earlier_tokens": session.protocol.start_tokens} if session.protocol.start else {}
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


def finite(loss: float) -> float | None:
    """The loss, or None where it is not a number, which JSON does not know."""
    return loss if math.isfinite(loss) else None


def list_sums(losses: DocumentLosses) -> list[float | None]:
    """Summed losses of each document, as records keep them."""
    return [finite(loss) for loss in losses.sums.tolist()]


def start_narrow(instruments: Instruments, width: WidthCut) -> nn.Module:
    """The dense model cut to a width, with float32 weights of its own, not trained."""
    return cast_weights(make_narrow(instruments.anatomy, width, instruments.width_importance), torch.float32)


def plan_widths(instruments: Instruments, candidates: Sequence[Candidate]) -> list[WidthCut]:
    """The width that has each size of these candidates, in parameters; candidates of one size share one.

    Raises:
        ModelError: this family's widths cannot be cut.
    """
    sizes = {size_of(instruments, candidate).num_params for candidate in candidates}
    return [plan_width(instruments.anatomy, num_params=num_params) for num_params in sorted(sizes, reverse=True)]


def measure_width_latency(session: Session, instruments: Instruments, width: WidthCut) -> Latency:
    """Time a width beside the dense model, as structures are timed."""
    narrow = cast_weights(start_narrow(instruments, width), session.dtype)
    return time_beside_dense(session, narrow, structure=width.key)
