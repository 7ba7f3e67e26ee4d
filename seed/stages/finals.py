"""Full distillation: frontier members in, exported and judged checkpoints out.

Members that see the same batches are trained side by side, as many as memory takes, and share the dense model's part of
each. With replicas each is distilled again under other random seeds; the first is exported. Every step is resumable, and
a finished member is never done twice. Which members, the frontier decides; how one is trained, ``students``; where, whom
the groups are handed to.
"""

import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import msgspec
from torch import nn

from seed import study_dir
from seed.distillation.loop import Distilled, DistillSettings
from seed.errors import SeedError, StudyError
from seed.evaluation.perplexity import DocumentLosses
from seed.models.checkpoint import measure_size, write_checkpoint
from seed.models.files import CARD
from seed.models.loader import find_auto_class, find_licence, reads_images
from seed.models.provenance import describe_recovered, find_damage, write_provenance
from seed.models.surgery import cast_weights
from seed.plans import SearchPlan
from seed.proxy.instruments import Instruments, exported_losses, make_job, start_student, train_students
from seed.proxy.sweep import Sweep
from seed.records import DenseResult, DistillResult, FrontierMember, Replica, ScoreRow, Size
from seed.reporting.card import OpenedBy, write_card
from seed.reporting.wording import count_things
from seed.scores import ScoreStore
from seed.sessions import Session
from seed.stages import judging
from seed.stages.students import (
    Member,
    count_steps,
    describe_settings,
    finite,
    full_settings,
    list_sums,
    make_raw,
    make_start,
)
from seed.study_dir import StudyFolder

ProgressCallback = Callable[[float, str], None]  # an amount of work that is done, and at what it is


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


def list_rng_seeds(session: Session, replicas: int) -> tuple[int, ...]:
    """The random seeds of so many replicas: the study's own, and those that follow it."""
    return tuple(range(session.protocol.rng_seed, session.protocol.rng_seed + replicas))


def count_work(session: Session, steps: int) -> float:
    """Work of one final in steps of its distillation: measuring the starts and judging the end count too."""
    before, after = count_work_around(session)
    return before + steps + after


def count_work_around(session: Session) -> tuple[float, float]:
    """Work of measuring the starts of a final, and of judging its end, in steps of its distillation."""
    validation, test = session.streams["validation"].num_tokens, session.streams["test"].num_tokens
    step_forwards = 3.3 * session.batch_windows * session.protocol.window_tokens
    return (4 * validation + 2 * session.protocol.calibration_tokens) / step_forwards, 3 * test / step_forwards


def count_all_work(session: Session, members: Sequence[Member], budget: Budget) -> float:
    """Work of distilling all members under every random seed."""
    return len(members) * len(budget.rng_seeds) * count_work(session, count_steps(session, budget.distill_tokens))


@dataclass(frozen=True, kw_only=True, eq=False)
class DistilledStudent:
    """A member that was trained under one random seed, and judged; without a look that gave a number it is broken, and nothing else is known."""

    member: Member
    settings: DistillSettings
    start: str
    went: Distilled
    seconds: float  # of training and judging
    rows: tuple[ScoreRow, ...] = ()  # scores of its starts
    test: DocumentLosses | None = None
    judged: judging.Judged | None = None  # these three: of the first replica, which is exported
    size: Size | None = None
    checkpoint: Path | Mapping[str, bytes] | None = None  # where it lies, or its files by name


class DistillExecutor(Protocol):
    """Has groups of members distilled by whom there is, and yields what comes of each group as it is finished."""

    num_evaluators: int

    def distill(
        self,
        works: Sequence[tuple[Sequence[Member], int]],
        budget: Budget,
        *,
        rows: Sequence[ScoreRow],
        on_progress: ProgressCallback,
        on_warning: Callable[[str], None],
    ) -> Iterator[list[DistilledStudent]]:
        """``works``: members that are trained side by side, and the random seed; ``rows``: their scores that are known."""

    def count_parallel_students(self) -> int:
        """How many students one evaluator trains side by side."""


def distill_members(
    spread: DistillExecutor,
    session: Session,
    plan: SearchPlan,
    dense: DenseResult,
    members: Sequence[Member],
    budget: Budget,
    *,
    store: ScoreStore,
    at_most: int | None = None,
    eval_command: str | None = None,
    on_progress: ProgressCallback = lambda amount, key: None,
    on_warning: Callable[[str], None] = lambda said: None,
) -> list[DistillResult]:
    """Have members distilled under every random seed, and write models and results; finished ones are read back.

    ``at_most``: so many are trained side by side; None: as many as memory takes, and evaluators leave.
    ``on_progress`` hears of ``count_work`` for each member and random seed in all, with what is done to whom; ``on_warning`` of
    what went wrong and was got over.

    Raises:
        StudyError: a training gave no number; the others are kept.
    """
    each = count_work(session, count_steps(session, budget.distill_tokens))
    left = list_left(session, members, budget)
    num_wanted = len(members) * len(budget.rng_seeds)
    num_done = num_wanted - len(left)

    def say_work(amount: float, what: str) -> None:
        on_progress(amount, f"{what}; {num_done} of {count_things(num_wanted, 'model')} done")

    if num_done:
        say_work(num_done * each, "going on")
    for path in session.folder.work.glob("export-*"):  # of a killed process
        shutil.rmtree(path, ignore_errors=True)
    waiting: list[DistilledStudent] = []  # replicas whose first is not there yet
    broken: list[str] = []
    if left:
        at_most = max(1, min(at_most or spread.count_parallel_students(), -(-len(left) // spread.num_evaluators)))
    works = group_members(left, at_most=at_most or 1)
    exported = {member.key for member in members} - {one.key for seed, one in left if seed == budget.rng_seeds[0]}
    keys = {member.key for member in members}
    rows = [row for row in store.read_rows() if row.key in keys]
    for group in spread.distill(works, budget, rows=rows, on_progress=say_work, on_warning=on_warning):
        store.keep([row for made in group for row in made.rows])
        todo, waiting = sorted([*group, *waiting], key=lambda one: one.settings.rng_seed), []
        for made in todo:
            is_first = made.settings.rng_seed == budget.rng_seeds[0]
            if not made.went.curve:
                broken.append(made.member.key)
            elif is_first:
                keep_first(session, plan, dense, made)
                exported.add(made.member.key)
                num_done += 1
            elif made.member.key in exported:
                keep_replica(session, made)
                num_done += 1
            else:
                waiting.append(made)
                continue
            name_checkpoint(session, made.member, made.settings, budget).unlink(missing_ok=True)
    if broken:
        raise StudyError(
            f"{', '.join(broken)}: no loss of the training is a finite number, neither at its start nor at any look. Lower "
            f"--learning-rate ({budget.learning_rate:g}), or compute in float32 (--dtype float32)."
        )
    results = [study_dir.read_record(session.folder.result(member.key), DistillResult) for member in members]
    return [judging.score_for_user(session, result, eval_command) for result in results]


def list_left(session: Session, members: Sequence[Member], budget: Budget) -> list[tuple[int, Member]]:
    """Random seeds and members that are not done, in turn: all under the first seed first."""
    done = [list_done(session, member, budget) for member in members]
    return [
        (rng_seed, member)
        for rng_seed in budget.rng_seeds
        for member, seeds in zip(members, done, strict=True)
        if rng_seed not in seeds
    ]


def group_members(left: Sequence[tuple[int, Member]], *, at_most: int) -> list[tuple[list[Member], int]]:
    """Members that are trained side by side, so many at most, and their random seed."""
    return [
        ([member for _, member in batch], rng_seed)
        for rng_seed, pairs in itertools.groupby(left, key=lambda pair: pair[0])
        for batch in batched(list(pairs), at_most)
    ]


def batched(pairs: Sequence[tuple[int, Member]], size: int) -> Iterator[Sequence[tuple[int, Member]]]:
    """Cut a list into pieces of one size."""
    for begin in range(0, len(pairs), size):
        yield pairs[begin : begin + size]


def list_done(session: Session, member: Member, budget: Budget) -> set[int]:
    """Under which seeds a member was distilled by these settings, or for longer; none where its model is not as it was written."""
    path = session.folder.result(member.key)
    if not path.exists() or describe_damage(session.folder, member.key) is not None:
        return set()
    known = study_dir.read_record(path, DistillResult)
    settings = _settings(session, member, budget, budget.rng_seeds[0])
    if int(known.settings["steps"]) > settings.steps:  # never undo a longer one
        return set(budget.rng_seeds)
    is_same = known.settings == describe_settings(session, settings)
    return {replica.rng_seed for replica in known.replicas} if is_same else set()


def describe_damage(study: StudyFolder, key: str) -> str | None:
    """Say what of a finished model is not as it was written; None: nothing, or it is not finished."""
    path = study.result(key)
    if not path.exists():
        return None
    known = study_dir.read_record(path, DistillResult)
    return find_damage(study.model(key), provenance_sha256=known.provenance_sha256)


def say_damaged(study: StudyFolder, members: Sequence[Member], *, say: Callable[[str], None]) -> None:
    """Say which finished models are damaged, and so are made again."""
    for member in members:
        if damage := describe_damage(study, member.key):
            say(f"{study.model(member.key)}: damaged: {damage}; it is made again")


def _settings(session: Session, member: Member, budget: Budget, rng_seed: int) -> DistillSettings:
    return full_settings(
        session,
        member.candidate,
        distill_tokens=budget.distill_tokens,
        learning_rate=budget.learning_rate,
        rng_seed=rng_seed,
    )


def name_checkpoint(session: Session, member: Member, settings: DistillSettings, budget: Budget) -> Path:
    """Where the progress of a training is saved."""
    suffix = "" if settings.rng_seed == budget.rng_seeds[0] else f"-{settings.rng_seed}"
    return session.folder.work / f"distill-{member.key}{suffix}.pt"


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
    began = time.monotonic()
    before, after = count_work_around(session)
    keys = ", ".join(member.key for member in members)
    starts, jobs = [], []
    for member in members:
        on_progress(0, f"preparing {member.key}")
        settings = _settings(session, member, budget, rng_seed)
        start, student = make_start(sweep, member, settings)
        jobs.append(
            make_job(
                sweep.instruments,
                student,
                settings,
                candidate=member.candidate,
                checkpoint=name_checkpoint(session, member, settings, budget),
                on_warning=lambda said, key=member.key: on_warning(f"{key}: {said}"),  # type: ignore[misc]
            )
        )
        starts.append((start, tuple(sweep.list_rows([member.candidate]))))
        on_progress(before, f"preparing {member.key}")
    on_progress(0, f"training {keys}")
    finished = 0

    def report_step(step: int) -> None:
        nonlocal finished
        on_progress((step - finished) * len(members), f"training {keys}")
        finished = step

    distilled = train_students(sweep.instruments, jobs, on_step=report_step)
    seconds = (time.monotonic() - began) / len(members)
    found = []
    for member, (start, rows), job, went in zip(members, starts, jobs, distilled, strict=True):
        on_progress(0, f"judging {member.key}")
        made = DistilledStudent(
            member=member, settings=job.settings, start=start, went=went, seconds=seconds, rows=rows
        )
        if went.curve and rng_seed == budget.rng_seeds[0]:
            made = _export_and_evaluate(session, sweep.instruments, made, job.student)
        elif went.curve:
            made = replace(made, test=exported_losses(sweep.instruments, job.student, session.streams["test"]))
        found.append(made)
        on_progress(after, f"judged {member.key}")
    return found


def train_as_follower(
    session: Session, instruments: Instruments, groups: Sequence[tuple[Sequence[Member], int]], budget: Budget
) -> None:
    """Train what the first of several processes distils; all it starts with comes from there, and what comes of it goes there."""
    for members, rng_seed in groups:
        jobs = []
        for member in members:
            settings = _settings(session, member, budget, rng_seed)
            jobs.append(
                make_job(
                    instruments,
                    start_student(instruments, member.candidate, None),
                    settings,
                    candidate=member.candidate,
                    checkpoint=name_checkpoint(session, member, settings, budget),
                )
            )
        train_students(instruments, jobs)


def _export_and_evaluate(
    session: Session, instruments: Instruments, made: DistilledStudent, student: nn.Module
) -> DistilledStudent:
    """Write the checkpoint into the scratch folder, and judge it as it lies there."""
    began, path = time.monotonic(), session.folder.work / f"export-{made.member.key}"
    size = measure_size(student, dtype=session.teacher.stored_dtype)
    write_checkpoint(
        student,
        path,
        tokenizer=session.teacher.tokenizer,
        original=session.teacher.directory,
        dtype=session.teacher.stored_dtype,
    )
    raw = cast_weights(make_raw(instruments, made.member), session.dtype)
    judged = judging.judge_exported(session, instruments, path, raw)
    took = time.monotonic() - began
    return replace(
        made, test=judged.test_losses, judged=judged, size=size, checkpoint=path, seconds=made.seconds + took
    )


def keep_first(session: Session, plan: SearchPlan, dense: DenseResult, made: DistilledStudent) -> None:
    """Move the first replica's checkpoint into the study, and write its card and its result."""
    member, judged = made.member, made.judged
    assert member.latency is not None, "what is exported was timed"
    assert judged is not None
    assert made.size is not None
    path = session.folder.model(member.key)
    result = DistillResult(
        candidate=member.candidate,
        width=member.width,
        trial_number=member.trial_number,
        settings=describe_settings(session, made.settings),
        curve=made.went.curve,
        start=made.start,
        best_step=made.went.best_step,
        validation=judged.validation,
        test=judged.test,
        test_unrecovered=judged.unrecovered,
        latency=member.latency,
        size=made.size,
        seconds=made.seconds,
        replicas=(describe_replica(made),),
    )
    licence = find_licence(session.teacher.directory, named=session.protocol.license)
    said = describe_recovered(session.protocol, result, study=plan.name, licence=licence)
    config = session.teacher.model.config
    opened_by = OpenedBy(auto_class=find_auto_class(config).__name__, sees=reads_images(config))
    card = write_card(plan, session.protocol, dense, result, opened_by=opened_by, licence=licence)
    with study_dir.replace_directory(path) as aside:
        if isinstance(made.checkpoint, Path):
            for file in made.checkpoint.iterdir():
                shutil.move(file, aside / file.name)
        else:
            write_files(made.checkpoint or {}, aside)
        (aside / CARD).write_text(card, encoding="utf-8")
        provenance_sha256 = write_provenance(aside, said)
    finished = msgspec.structs.replace(result, provenance_sha256=provenance_sha256)
    try:
        study_dir.write_record(session.folder.result(member.key), finished)
    except SeedError:
        shutil.rmtree(path, ignore_errors=True)  # no record tells of it
        raise
    if isinstance(made.checkpoint, Path):
        shutil.rmtree(made.checkpoint, ignore_errors=True)


def keep_replica(session: Session, made: DistilledStudent) -> None:
    """Add a further replica to the member's result."""
    path = session.folder.result(made.member.key)
    known = study_dir.read_record(path, DistillResult)
    study_dir.write_record(path, msgspec.structs.replace(known, replicas=(*known.replicas, describe_replica(made))))


def read_files(directory: Path) -> dict[str, bytes]:
    """The files of a directory by their name in it."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def write_files(files: Mapping[str, bytes], directory: Path) -> None:
    """Write such files into a directory."""
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


def describe_replica(made: DistilledStudent) -> Replica:
    """The record of one distillation: how it went, and the test losses of its best weights."""
    assert made.test is not None
    return Replica(
        rng_seed=made.settings.rng_seed,
        validation_loss=finite(made.went.best_loss),
        test_sums=list_sums(made.test),
        best_step=made.went.best_step,
        seconds=made.seconds,
    )
