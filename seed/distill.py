"""Distill models out of a searched study: python -m seed.distill studies/gpt2-small --trial 17

The same loop, data and judge as the search's own finals; the report is written again. Without --trial every member of
the frontier is distilled that is not yet, as after a search with --no-distill.

Over several GPUs or hosts, weights sharded over all of them, students and dense model alike:

    torchrun --nproc-per-node 4 -m seed.distill studies/gpt2-small --trial 17
    accelerate launch --multi_gpu --num_processes 4 -m seed.distill studies/gpt2-small --trial 17

All of them open the study, so every host must see its folder, model and text. The first process does what one alone
would do; the others only train.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seed import plans, study_dir
from seed.cli import (
    WHOLE,
    device_option,
    json_option,
    option,
    quiet_libraries,
    read_command,
    storage_option,
    study_argument,
    trust_option,
)
from seed.console import Terminal, answer_in_json, run_command
from seed.errors import ResourceError
from seed.evidence import StudyRecord
from seed.plans import Protocol, SearchPlan
from seed.records import DenseResult, DistillResult, TrialRecord
from seed.study_dir import StudyFolder

if TYPE_CHECKING:
    from seed.distillation.fsdp import ProcessGroup
    from seed.proxy.instruments import Instruments
    from seed.reporting.result_line import DistillLine, SearchLine
    from seed.sessions import Session
    from seed.stages.finals import Budget
    from seed.stages.students import Member


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be distilled, with what, and for how long."""

    session: "Session"
    instruments: "Instruments"
    members: "list[Member]"
    budget: "Budget"


def distill_trials(
    path: Path,
    *,
    terminal: Terminal,
    trial: int | None = None,
    distill_tokens: int | None = None,
    learning_rate: float | None = None,
    replicas: int | None = None,
    eval_command: str | None = None,
    device: str | None = None,
    storage: str | None = None,
    trust_remote_code: bool = False,
    several: "ProcessGroup | None" = None,
) -> tuple[list[DistillResult], StudyRecord]:
    """Distill, export and judge the candidate of a trial, or the frontier's that are not yet; return what came of it.

    ``several``: the processes that train together. All but the first only train, and have no results. ``storage``: the
    database that shows the study.

    Raises:
        SeedError: no such study or trial, or model or text changed since.
    """
    with contextlib.nullcontext() if several is None else several.fail_together():
        study, plan = plans.open_planned(path, trust_remote_code=trust_remote_code)
    quiet_libraries()
    from seed.distillation.processes import SINGLE_PROCESS
    from seed.stages import budgets, finals
    from seed.stages.publishing import open_shown, refresh_report
    from seed.stages.study_record import find_learning_rate, gather_record

    processes = several or SINGLE_PROCESS
    with contextlib.ExitStack() as held:
        with processes.fail_together():
            if processes.leads:
                held.enter_context(study_dir.lock(study))
            record = gather_record(study)
            chosen = choose_trials(study, record, trial=trial, replicas=replicas or plan.replicas)
        processes.require_alike(repr([one.evaluation.candidate.key for one in chosen]))
        if not chosen:
            terminal.say(f"{study.root}: every member of the frontier is distilled")
            return [], record
        with processes.fail_together():
            work = prepare(
                study,
                plan.protocol,
                chosen,
                terminal=terminal,
                distill_tokens=distill_tokens or plan.distill_tokens,
                learning_rate=learning_rate or find_learning_rate(record.distilled),
                replicas=replicas or plan.replicas,
                device=device,
                several=several,
            )
        at_most = None
        if several is not None:
            at_most = several.find_least(budgets.count_parallel_students(work.session))
            left = finals.list_left(work.session, work.members, work.budget)
            groups = finals.group_members(left, at_most=at_most)
            several.require_alike(repr([(seed, [one.key for one in group]) for group, seed in groups] + [work.budget]))
            if not several.leads:
                finals.train_as_follower(work.session, work.instruments, groups, work.budget)
                return [], record
        opened = open_shown(study, plan, storage=storage, on_warning=terminal.say)
        results = lead(study, plan, work, at_most=at_most, eval_command=eval_command, terminal=terminal)
        record = refresh_report(study, opened=opened, on_warning=terminal.say).record
    for result in results:
        terminal.say(
            f"{result.candidate.key}: test PPL ratio {result.test.ppl_ratio:.4f} ± {result.test.ppl_ratio_standard_error:.4f} "
            f"(without recovery {result.test_unrecovered.ppl_ratio:.4f}), latency ratio {result.latency.ratio:.3f}"
        )
        terminal.say(f"model:  {study.model(result.candidate.key)}", wrap=False)
    terminal.say(f"report: {study.report}", wrap=False)
    return results, record


def prepare(
    study: StudyFolder,
    protocol: Protocol,
    chosen: list[TrialRecord],
    *,
    terminal: Terminal,
    distill_tokens: int,
    learning_rate: float | None,
    replicas: int,
    device: str | None,
    several: "ProcessGroup | None",
) -> Work:
    """Open model and text, and say what will be done; nothing is written.

    Raises:
        SeedError: they changed since the study was planned, or several processes, or this machine, cannot do it.
    """
    from seed import sessions
    from seed.stages import budgets, finals, students

    if several is not None and device not in (None, "cpu", "cuda"):
        raise ResourceError(f"--device {device}: each of several processes takes a GPU of its own. Give cuda or cpu.")
    terminal.say(f"opening {protocol.model}" + (f", to train in {several.size} processes" if several else ""))
    session = sessions.reopen(study, protocol, device_name=device)
    budget = finals.Budget(
        distill_tokens=distill_tokens,
        learning_rate=learning_rate or protocol.short_learning_rate,
        rng_seeds=finals.list_rng_seeds(session, replicas),
    )
    terminal.say(f"training for {protocol.describe_training(distill_tokens)}")
    for line in protocol.warn_of_few_steps(distill_tokens):
        terminal.say(line)
    instruments = sessions.prepare_instruments(session)
    if several is not None:
        from seed.distillation import fsdp

        several.take_device(session.device.type)
        fsdp.require_shardable(budgets.short_settings(session, chosen[0].evaluation.candidate), session.teacher.model)
        session, instruments = spread(session, instruments, several)
    sizes = [one.evaluation.size for one in chosen]
    num_together = min(len(chosen), budgets.count_parallel_students(session))
    study_dir.require_room(
        study.root,
        needed_bytes=sum(size.weight_bytes for size in sizes) + 32 * num_together * sizes[0].num_params,
        purpose="this distillation",
    )
    members = [
        students.Member(candidate=one.evaluation.candidate, latency=one.evaluation.latency, trial_number=one.number)
        for one in chosen
    ]
    return Work(session=session, instruments=instruments, members=members, budget=budget)


def spread(session: "Session", instruments: "Instruments", several: "ProcessGroup") -> "tuple[Session, Instruments]":
    """The same for several processes: only the first keeps the models' weights, and gives the others their shards of them."""
    from seed.distillation.fsdp import empty
    from seed.models.anatomy import Anatomy

    if several.leads:
        return session, dataclasses.replace(instruments, processes=several)
    anatomy = Anatomy(empty(session.anatomy.model))
    grafted = None if session.grafted is None else Anatomy(empty(session.grafted.model))
    teacher = dataclasses.replace(session.teacher, model=anatomy.model)
    return (
        dataclasses.replace(session, teacher=teacher, anatomy=anatomy, grafted=grafted),
        dataclasses.replace(instruments, anatomy=anatomy, grafted=grafted, processes=several),
    )


def lead(
    study: StudyFolder,
    plan: SearchPlan,
    work: Work,
    *,
    at_most: int | None,
    eval_command: str | None,
    terminal: Terminal,
) -> list[DistillResult]:
    """Distill, export and judge what is to be distilled."""
    from seed.executor import InProcess
    from seed.proxy.sweep import Sweep
    from seed.scores import ScoreStore
    from seed.stages import finals

    finals.say_damaged(study, work.members, say=terminal.say)
    total = finals.count_all_work(work.session, work.members, work.budget)
    executor = InProcess(work.session.device)
    executor.start(work.session)
    executor.evaluator.sweep = Sweep(work.instruments)
    with ScoreStore(study.scores) as store, terminal.stage("distill", total=total, is_share=True) as advance:
        return finals.distill_members(
            executor,
            work.session,
            plan,
            study_dir.read_record(study.dense, DenseResult),
            work.members,
            work.budget,
            store=store,
            at_most=at_most,
            eval_command=eval_command,
            on_progress=advance,
            on_warning=terminal.say,
        )


def choose_trials(study: StudyFolder, record: StudyRecord, *, trial: int | None, replicas: int) -> list[TrialRecord]:
    """The trial of that number; without one, those on the frontier that have fewer replicas, or no model.

    Raises:
        StudyError: there is no such finished trial.
    """
    from seed.stages.finals import describe_damage
    from seed.stages.study_record import find_trial

    if trial is None:
        finished = {
            result.candidate
            for result in record.distilled
            if len(result.replicas) >= replicas and describe_damage(study, result.key) is None
        }
        return [
            find_trial(record, member.trial_number, place=study.root)
            for member in record.frontier.members
            if member.evaluation.candidate not in finished
        ]
    return [find_trial(record, trial, place=study.root)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillCommand:
    """Distill and export one more candidate of a study, or all of its frontier that are not distilled yet.

    Over several GPUs or hosts: torchrun --nproc-per-node 4 -m seed.distill ..., or accelerate launch --multi_gpu
    --num_processes 4 -m seed.distill ... (models are sharded over them; same results within rounding).
    """

    study: Path = study_argument()
    trial: int | None = option("number of a trial (default: all of the frontier that is not distilled yet)", kind=WHOLE)
    distill_tokens: int | None = option("recovery tokens (default: the study's)")
    learning_rate: float | None = option("peak rate (default: the study's)")
    replicas: int | None = option("under N random seeds (default: the study's)")
    eval_command: str | None = option("your own judge: gets the model's directory, prints a number", metavar="CMD")
    device: str | None = device_option()
    storage: str | None = storage_option()
    trust_remote_code: bool = trust_option()
    json: bool = json_option()


def main() -> None:
    """Read the command line and distill."""
    is_first = os.environ.get("RANK", "0") == "0"
    with contextlib.nullcontext() if is_first else silence():  # all read the same words, and one complains
        words = dataclasses.asdict(read_command(DistillCommand))
    path, is_json = words.pop("study"), words.pop("json")
    if not is_launched():
        distill(path, words, is_json=is_json)
        return
    from seed.distillation.fsdp import join_processes

    try:
        with join_processes() as several:
            if several.leads:
                distill(path, {**words, "several": several}, is_json=is_json)
            else:
                distill_trials(path, terminal=Terminal(quiet=True), **words, several=several)
    except KeyboardInterrupt:
        if is_first:
            raise
        raise SystemExit(130) from None  # the first says it


def is_launched() -> bool:
    """Is this process one of several that a launcher started?"""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Let nothing be said until the block ends."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def distill(path: Path, words: dict[str, Any], *, is_json: bool) -> None:
    """Distill as the words of the command line say."""
    if is_json:
        answer_in_json(functools.partial(distill_for_script, path, **words))
    else:
        distill_trials(path, terminal=Terminal(), **words)


def distill_for_script(path: Path, terminal: Terminal, **words: Any) -> "DistillLine | SearchLine":
    """Distill, and return what ``--json`` prints: one model, or without a trial the study. ``words``: as for ``distill_trials``."""
    from seed.reporting.result_line import describe_one_more, describe_search

    results, record = distill_trials(path, terminal=terminal, **words)
    if words["trial"] is None:
        return describe_search(record, StudyFolder(path))
    [result] = results
    return describe_one_more(result, StudyFolder(path), record.replications.get(result.key))


@contextlib.contextmanager
def end_at_once() -> Iterator[None]:
    """End the process with the block: threads of connections, lost or not, abort about one ordinary exit in 25."""
    code: int | str | None = 0
    try:
        yield
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    with end_at_once() if is_launched() else contextlib.nullcontext():
        run_command(main)
