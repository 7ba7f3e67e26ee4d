"""Full distillation: frontier members in, exported and judged checkpoints out.

Members that see the same batches are trained side by side, as many as memory takes, and share the dense model's part of
each. With replicas each is distilled again under other random seeds; the first is exported. Every step is resumable, and
a finished member is never done twice. Which members, the frontier decides; how one is trained, ``schooling``.
"""

import contextlib
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from torch import nn

from seed import folder
from seed.errors import SeedError, StudyError
from seed.folder import StudyFolder
from seed.models.checkpoint import measure_size, write_checkpoint
from seed.models.classes import find_auto_class, reads_images
from seed.models.integrity import CARD, PROVENANCE, add_hashes, find_damage
from seed.models.surgery import cast_weights
from seed.models.teacher import find_licence
from seed.optimize.space import drop_layers
from seed.plans import SearchPlan
from seed.records import DenseResult, DistillResult, FrontierMember, Replica
from seed.reporting.card import OpenedBy, write_card
from seed.reporting.wording import count_things
from seed.scoring.distillation import Distilled, DistillSettings
from seed.scoring.instruments import (
    Instruments,
    enrol,
    exported_losses,
    start_student,
    train_together,
)
from seed.scoring.quality import DocumentLosses
from seed.scoring.sweep import Sweep
from seed.sharing import Shares
from seed.stages import judging, narrowing
from seed.stages.posts import Post
from seed.stages.provenance import describe_recovered
from seed.stages.recovering import count_together
from seed.stages.schooling import (
    Member,
    count_steps,
    describe_settings,
    finite,
    full_settings,
    list_sums,
    make_raw,
    make_start,
)
from seed.stages.workbench import Workbench

WAIT_SECONDS = 0.5  # between looks at what others are doing


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


def count_work(bench: Workbench, steps: int) -> float:
    """Work of one final in steps of its distillation: measuring the starts and judging the end count too."""
    before, after = count_work_around(bench)
    return before + steps + after


def count_work_around(bench: Workbench) -> tuple[float, float]:
    """Work of measuring the starts of a final, and of judging its end, in steps of its distillation."""
    validation, test = bench.streams["validation"].num_tokens, bench.streams["test"].num_tokens
    step_forwards = 3.3 * bench.batch_windows * bench.protocol.window_tokens
    return (4 * validation + 2 * bench.protocol.calibration_tokens) / step_forwards, 3 * test / step_forwards


def count_all_work(bench: Workbench, members: Sequence[Member], budget: Budget) -> float:
    """Work of distilling all members under every random seed."""
    return len(members) * len(budget.rng_seeds) * count_work(bench, count_steps(bench, budget.distill_tokens))


def distill_members(
    bench: Workbench,
    sweep: Sweep,
    plan: SearchPlan,
    dense: DenseResult,
    members: Sequence[Member],
    budget: Budget,
    *,
    at_most: int | None = None,
    post: Post | None = None,
    eval_command: str | None = None,
    on_work: Callable[[float, str], None] = lambda amount, key: None,
    complain: Callable[[str], None] = lambda said: None,
) -> list[DistillResult]:
    """Distill, export and judge members under every random seed; finished ones are read back.

    ``at_most``: so many are trained side by side; None: as many as memory takes.
    With a post, others of this host may do the same, and each member is one process's at a time; all return when all are
    done. ``on_work`` hears of ``count_work`` for each member and random seed in all, with what is done to whom;
    ``complain`` of what went wrong and was got over.
    """
    each = count_work(bench, count_steps(bench, budget.distill_tokens))
    total = len(members) * len(budget.rng_seeds)
    done: set[tuple[int, int]] = set()  # random seed, member
    told: set[tuple[int, int]] = set()  # whose work was told of as it was done

    def say_work(amount: float, what: str) -> None:
        on_work(amount, f"{what}; {len(done)} of {count_things(total, 'model')} done")

    def look() -> None:
        for rng_seed in budget.rng_seeds:
            for place, member in enumerate(members):
                if (rng_seed, place) not in done and is_done(bench, member, budget, rng_seed):
                    done.add((rng_seed, place))
        if elsewhere := done - told:
            told.update(elsewhere)
            say_work(len(elsewhere) * each, "going on")

    look()
    while len(done) < total:
        with _hold_group(bench, members, budget, done, look, at_most, post) as (rng_seed, places):
            if places:
                told.update((rng_seed, place) for place in places)
                _distill_group(
                    bench,
                    sweep,
                    plan,
                    dense,
                    [members[place] for place in places],
                    budget,
                    rng_seed=rng_seed,
                    on_work=say_work,
                    on_finished=look,
                    complain=complain,
                )
            else:  # others are at what is left; should one of them die, it is ours
                time.sleep(WAIT_SECONDS)
        look()
    results = [folder.read_record(bench.folder.result(member.key), DistillResult) for member in members]
    if post is not None and not post.leads:
        return results
    return [judging.score_for_user(bench, result, eval_command) for result in results]


@contextlib.contextmanager
def _hold_group(
    bench: Workbench,
    members: Sequence[Member],
    budget: Budget,
    done: set[tuple[int, int]],
    look: Callable[[], None],
    most_together: int | None,
    post: Post | None,
) -> Iterator[tuple[int, list[int]]]:
    """Hold members that are to be trained side by side under one random seed, as many as memory takes; none, where others have all."""
    num_workers = 1 if post is None else 1 + post.presence.count_others()
    left = len(members) * len(budget.rng_seeds) - len(done)
    at_most = max(1, min((most_together or count_together(bench)) // num_workers, -(-left // num_workers)))
    first = budget.rng_seeds[0]
    shares = Shares(None) if post is None else post.share("distill")
    for rng_seed in budget.rng_seeds:
        # the first replica is exported, and further ones are added to its record
        ready = [
            place
            for place in range(len(members))
            if (rng_seed, place) not in done and (rng_seed == first or (first, place) in done)
        ]
        with shares.hold_first(ready, at_most=at_most) as held:
            look()  # one may have been done just before we held it
            places = [place for place in held if (rng_seed, place) not in done]
            if places:
                yield rng_seed, places
                return
    yield first, []


def plan_groups(
    bench: Workbench, members: Sequence[Member], budget: Budget, *, at_most: int
) -> list[tuple[int, list[Member]]]:
    """Which members are trained side by side under which random seed, in turn: those that are not done."""
    groups = []
    for rng_seed in budget.rng_seeds:
        left = [member for member in members if not is_done(bench, member, budget, rng_seed)]
        groups += [(rng_seed, left[first : first + at_most]) for first in range(0, len(left), at_most)]
    return groups


def take_part(
    bench: Workbench, instruments: Instruments, groups: Sequence[tuple[int, Sequence[Member]]], budget: Budget
) -> None:
    """Train what the first of several processes distils; all it starts with comes from there, and what comes of it goes there."""
    for rng_seed, group in groups:
        pupils = [
            enrol(
                instruments,
                start_student(instruments, member.candidate, None),
                _settings(bench, member, budget, rng_seed),
                candidate=member.candidate,
                checkpoint=_checkpoint(bench, member, budget, rng_seed),
            )
            for member in group
        ]
        train_together(instruments, pupils)


def is_done(bench: Workbench, member: Member, budget: Budget, rng_seed: int) -> bool:
    """Was the member distilled under this seed by these settings, or for longer, and is its model as it was written?"""
    path = bench.folder.result(member.key)
    if not path.exists() or describe_damage(bench.folder, member.key) is not None:
        return False
    known = folder.read_record(path, DistillResult)
    settings = _settings(bench, member, budget, budget.rng_seeds[0])
    if int(known.settings["steps"]) > settings.steps:  # never undo a longer one
        return True
    is_same = known.settings == describe_settings(bench, settings)
    return is_same and any(replica.rng_seed == rng_seed for replica in known.replicas)


def describe_damage(study: StudyFolder, key: str) -> str | None:
    """Say what of a finished model is not as it was written; None: nothing, or it is not finished."""
    path = study.result(key)
    if not path.exists():
        return None
    known = folder.read_record(path, DistillResult)
    return find_damage(study.model(key), provenance_sha256=known.provenance_sha256)


def say_damaged(study: StudyFolder, members: Sequence[Member], *, say: Callable[[str], None]) -> None:
    """Say which finished models are damaged, and so are made again."""
    for member in members:
        if damage := describe_damage(study, member.key):
            say(f"{study.model(member.key)}: damaged: {damage}; it is made again")


def _settings(bench: Workbench, member: Member, budget: Budget, rng_seed: int) -> DistillSettings:
    return full_settings(
        bench,
        member.candidate,
        distill_tokens=budget.distill_tokens,
        learning_rate=budget.learning_rate,
        rng_seed=rng_seed,
    )


def _checkpoint(bench: Workbench, member: Member, budget: Budget, rng_seed: int) -> Path:
    """Where the progress of a training lies."""
    suffix = "" if rng_seed == budget.rng_seeds[0] else f"-{rng_seed}"
    return bench.folder.work / f"distill-{member.key}{suffix}.pt"


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
    on_finished: Callable[[], None],
    complain: Callable[[str], None],
) -> None:
    """Train members side by side, then judge and keep one after another."""
    began = time.monotonic()
    instruments, is_first = sweep.instruments, rng_seed == budget.rng_seeds[0]
    before, after = count_work_around(bench)
    keys = ", ".join(member.key for member in group)
    starts, pupils, checkpoints = [], [], []
    for member in group:
        on_work(0, f"preparing {member.key}")
        settings = _settings(bench, member, budget, rng_seed)
        start, student = make_start(sweep, member, settings)
        checkpoints.append(_checkpoint(bench, member, budget, rng_seed))
        pupils.append(
            enrol(
                instruments,
                student,
                settings,
                candidate=member.candidate,
                checkpoint=checkpoints[-1],
                complain=lambda said, key=member.key: complain(f"{key}: {said}"),  # type: ignore[misc]
            )
        )
        starts.append(start)
        on_work(before, f"preparing {member.key}")
    on_work(0, f"training {keys}")
    finished = 0

    def report_step(step: int) -> None:
        nonlocal finished
        on_work((step - finished) * len(group), f"training {keys}")
        finished = step

    distilled = train_together(instruments, pupils, on_step=report_step)
    seconds = (time.monotonic() - began) / len(group)
    for member, start, pupil, went in zip(group, starts, pupils, distilled, strict=True):
        if not went.curve:
            continue
        keep = functools.partial(_keep_first, plan=plan, dense=dense, start=start) if is_first else _keep_replica
        on_work(0, f"judging {member.key}")
        try:
            keep(bench, instruments, member, pupil.student, went, settings=pupil.settings, seconds=seconds)
        except SeedError:
            if is_first:  # a model without its record is nothing
                shutil.rmtree(bench.folder.model(member.key), ignore_errors=True)
            raise
        on_finished()
        on_work(after, f"judged {member.key}")
    broken = [member.key for member, went in zip(group, distilled, strict=True) if not went.curve]
    if broken:  # the others are kept
        raise StudyError(
            f"{', '.join(broken)}: no loss of the training is a finite number, neither at its start nor at any look. Lower "
            f"--learning-rate ({budget.learning_rate:g}), or compute in float32 (--dtype float32)."
        )
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)


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
    size = measure_size(student, dtype=bench.teacher.stored_dtype)
    write_checkpoint(
        student,
        path,
        tokenizer=bench.teacher.tokenizer,
        original=bench.teacher.directory,
        dtype=bench.teacher.stored_dtype,
        card="",  # both say how it is judged, and are written then
        provenance={},
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
    original = replace(bench.teacher.source, revision=bench.protocol.commit or bench.protocol.revision)
    licence = find_licence(original, named=bench.protocol.license)
    said = describe_recovered(bench.protocol, result, study=plan.name, licence=licence)
    config = bench.teacher.model.config
    opened_by = OpenedBy(auto_class=find_auto_class(config).__name__, sees=reads_images(config))
    card = write_card(plan, bench.protocol, dense, result, opened_by=opened_by, licence=licence)
    folder.write_bytes(path / CARD, card.encode())
    folder.write_bytes(path / PROVENANCE, json.dumps(said).encode())
    finished = msgspec.structs.replace(result, provenance_sha256=add_hashes(path))
    folder.write_record(bench.folder.result(member.key), finished)


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
        validation_loss=finite(went.best_loss),
        test_sums=list_sums(test),
        best_step=went.best_step,
        seconds=seconds,
    )
