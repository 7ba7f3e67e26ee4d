"""Full distillation as the coordinator sees it: frontier members in, exported and judged checkpoints out.

Members that see the same batches are trained side by side, as many as memory takes, and share the dense model's part of
each. With replicas each is distilled again under other random seeds; the first is exported. A finished member is never
done twice.
"""

import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from seed import study_dir
from seed.clock import Clock
from seed.console import Terminal
from seed.errors import SeedError, StudyError
from seed.executor import Executor, ProgressCallback
from seed.models.files import CARD
from seed.models.loader import find_auto_class, find_licence, reads_images
from seed.models.provenance import describe_recovered, find_damage, write_provenance
from seed.plans import SearchPlan
from seed.records import DenseResult, DistillResult, Evaluation, Replica
from seed.reporting.card import OpenedBy, write_card
from seed.reporting.wording import count_things
from seed.scores import ScoreStore
from seed.sessions import Session
from seed.stages import judging
from seed.stages.students import (
    Budget,
    DistilledStudent,
    Member,
    count_work,
    describe_settings,
    finite,
    list_sums,
    name_checkpoint,
    train_settings,
)
from seed.study_dir import StudyFolder


def make_member(evaluation: Evaluation, trial_number: int) -> Member:
    """A scored candidate as what is to be distilled."""
    return Member(candidate=evaluation.candidate, latency=evaluation.latency, trial_number=trial_number)


def list_rng_seeds(session: Session, replicas: int) -> tuple[int, ...]:
    """The random seeds of so many replicas: the study's own, and those that follow it."""
    return tuple(range(session.protocol.rng_seed, session.protocol.rng_seed + replicas))


def distill_members(
    executor: Executor,
    session: Session,
    members: Sequence[Member],
    budget: Budget,
    *,
    terminal: Terminal,
    store: ScoreStore,
    eval_command: str | None = None,
    clock: Clock | None = None,
) -> list[DistillResult]:
    """Have members distilled under every random seed, and write models and results; finished ones are read back.

    With a ``clock`` that has a bound, one after another while there is time; at least one.

    Raises:
        StudyError: a training gave no number; the others are kept.
    """
    study = session.folder
    for member in members:
        if damage := describe_damage(study, member.key):
            terminal.say(f"{study.model(member.key)}: damaged: {damage}; it is made again")
    for path in study.work.glob("export-*"):  # of a killed process
        shutil.rmtree(path, ignore_errors=True)
    left = list_left(session, members, budget)
    each, num_wanted = count_work(session, budget), len(members) * len(budget.rng_seeds)
    with terminal.stage("distill", total=num_wanted * each, is_share=True) as advance:
        num_done = num_wanted - len(left)

        def show(amount: float, what: str) -> None:
            if clock is not None:
                clock.save(at_once=False)
            advance(amount, f"{what}; {num_done} of {count_things(num_wanted, 'model')} done")

        if num_done:
            show(num_done * each, "going on")
        waiting: list[DistilledStudent] = []  # replicas whose first is not there yet
        broken: list[str] = []
        exported = {member.key for member in members} - {one.key for seed, one in left if seed == budget.rng_seeds[0]}
        groups = distill_groups(
            executor,
            left,
            budget,
            store=store,
            on_progress=show,
            on_warning=terminal.say,
            clock=clock,
            is_any_done=num_done > 0,
        )
        for group in groups:
            todo, waiting = sorted([*group, *waiting], key=lambda one: one.settings.rng_seed), []
            for made in todo:
                is_first = made.settings.rng_seed == budget.rng_seeds[0]
                if not made.outcome.curve:
                    broken.append(made.member.key)
                elif is_first:
                    keep_first(session, made)
                    exported.add(made.member.key)
                    num_done += 1
                elif made.member.key in exported:
                    keep_replica(session, made)
                    num_done += 1
                else:
                    waiting.append(made)
                    continue
                name_checkpoint(session, made.member, made.settings.rng_seed).unlink(missing_ok=True)
    if broken:
        raise StudyError(
            f"{', '.join(broken)}: no loss of the training is a finite number, neither at its start nor at any look. Lower "
            f"--learning-rate ({budget.learning_rate:g}), or compute in float32 (--dtype float32)."
        )
    results = [
        study_dir.read_record(study.result(member.key), DistillResult)
        for member in members
        if study.result(member.key).exists()
    ]
    return [
        judging.score_for_user(result, eval_command, directory=study.model(result.key), path=study.result(result.key))
        for result in results
    ]


def distill_groups(
    executor: Executor,
    left: Sequence[tuple[int, Member]],
    budget: Budget,
    *,
    store: ScoreStore,
    on_progress: ProgressCallback,
    on_warning: Callable[[str], None],
    clock: Clock | None = None,
    is_any_done: bool = False,
) -> Iterator[list[DistilledStudent]]:
    """Have what is left distilled, and keep the scores of its starts; yields what comes of each group.

    With a bound on the time, as long as there is any: by how long the longest took so far.
    """
    if not left:
        return
    is_bound = clock is not None and clock.seconds is not None
    at_most = (
        1
        if is_bound
        else max(1, min(budget.at_most or executor.count_parallel_students(), -(-len(left) // executor.num_evaluators)))
    )
    keys = {member.key for _, member in left}
    rows = [row for row in store.read_rows() if row.key in keys]
    works = [
        ([member for _, member in pairs[begin : begin + at_most]], budget, rng_seed, rows)
        for rng_seed, found in itertools.groupby(left, key=lambda pair: pair[0])
        for pairs in [list(found)]
        for begin in range(0, len(pairs), at_most)
    ]
    longest = 0.0
    each = executor.num_evaluators if is_bound else len(works)
    for begin in range(0, len(works), each):
        began = time.monotonic()
        if clock is not None and (begin or is_any_done) and not clock.has_room(longest):
            return
        round_ = works[begin : begin + each]
        for group in executor.call_all("distill", round_, on_progress=on_progress, on_warning=on_warning):
            store.keep([row for made in group for row in made.rows])
            yield group
        longest = max(longest, time.monotonic() - began)


def list_left(session: Session, members: Sequence[Member], budget: Budget) -> list[tuple[int, Member]]:
    """Random seeds and members that are not done, in turn: all under the first seed first."""
    done = [list_done(session, member, budget) for member in members]
    return [
        (rng_seed, member)
        for rng_seed in budget.rng_seeds
        for member, seeds in zip(members, done, strict=True)
        if rng_seed not in seeds
    ]


def list_done(session: Session, member: Member, budget: Budget) -> set[int]:
    """Under which seeds a member was distilled by these settings, or for longer; none where its model is not as it was written."""
    path = session.folder.result(member.key)
    if not path.exists() or describe_damage(session.folder, member.key) is not None:
        return set()
    known = study_dir.read_record(path, DistillResult)
    settings = train_settings(session, member, budget, budget.rng_seeds[0])
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


def keep_first(session: Session, made: DistilledStudent) -> None:
    """Move the first replica's checkpoint into the study, and write its card and its result."""
    study, member, judged = session.folder, made.member, made.judged
    assert member.latency is not None, "what is exported was timed"
    assert judged is not None
    plan = study_dir.read_record(study.plan, SearchPlan)
    path = study.model(member.key)
    result = DistillResult(
        candidate=member.candidate,
        width=member.width,
        trial_number=member.trial_number,
        settings=describe_settings(session, made.settings),
        curve=made.outcome.curve,
        start=made.start,
        best_step=made.outcome.best_step,
        validation=judged.validation,
        test=judged.test,
        test_unrecovered=judged.unrecovered,
        latency=member.latency,
        size=judged.size,
        seconds=made.seconds,
        replicas=(describe_replica(made),),
        continuations=judged.continuations,
    )
    licence = find_licence(session.teacher.directory, named=session.protocol.license)
    said = describe_recovered(session.protocol, result, study=plan.name, licence=licence)
    config = session.teacher.model.config
    opened_by = OpenedBy(auto_class=find_auto_class(config).__name__, sees=reads_images(config))
    dense = study_dir.read_record(study.dense, DenseResult)
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
        study_dir.write_record(study.result(member.key), finished)
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
        validation_loss=finite(made.outcome.best_loss),
        test_sums=list_sums(made.test),
        best_step=made.outcome.best_step,
        seconds=made.seconds,
    )
