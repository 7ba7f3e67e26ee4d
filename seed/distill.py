"""Distill models out of a searched study: python -m seed.distill studies/gpt2-small --trial 17

The same loop, data and judge as the search's own finals; the report is written again. Without --trial every member of
the frontier is distilled that is not yet, as after a search with --no-distill.

Over several GPUs or hosts, weights sharded over all of them, students and dense model alike:

    torchrun --nproc-per-node 4 -m seed.distill studies/gpt2-small --trial 17
    accelerate launch --multi_gpu --num_processes 4 -m seed.distill studies/gpt2-small --trial 17

All of them open model and text, so every host must see them and the study's folder. The first process does what one alone
would do; the others train what it trains.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from seed import study_dir
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
from seed.console import Terminal, answer, run_command
from seed.errors import ResourceError
from seed.evidence import StudyRecord
from seed.plans import Protocol, SearchPlan, open_planned
from seed.records import DistillResult, TrialRecord
from seed.study_dir import StudyFolder

if TYPE_CHECKING:
    from seed.distillation.fsdp import ProcessGroup
    from seed.distillation.processes import SingleProcess
    from seed.proxy.instruments import Instruments
    from seed.reporting.result_line import DistillLine, SearchLine
    from seed.sessions import Session
    from seed.stages.students import Budget


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


def distill_trials(
    args: DistillCommand, terminal: Terminal, *, several: "ProcessGroup | None" = None
) -> tuple[list[DistillResult], StudyRecord]:
    """Distill, export and judge the candidate of a trial, or the frontier's that are not yet; return what came of it.

    ``several``: the processes that train together, of which this is the first.

    Raises:
        SeedError: no such study or trial, or model or text changed since.
    """
    study, plan, processes = open_together(args, several)
    from seed.reporting.result_text import show_result
    from seed.stages.publishing import open_shown, refresh_report
    from seed.stages.study_record import gather_record

    with contextlib.ExitStack() as held:
        with processes.fail_together():
            held.enter_context(study_dir.lock(study))
            record = gather_record(study)
            chosen = choose_trials(study, record, trial=args.trial, replicas=args.replicas or plan.replicas)
        if not processes.share(bool(chosen), bool):
            terminal.say(f"{study.root}: every member of the frontier is distilled")
            return [], record
        with processes.fail_together():
            session, instruments = open_model(args, study, plan.protocol, processes, terminal=terminal)
        at_most = agree_on_room(session, processes)
        with processes.fail_together():
            budget = plan_budget(args, plan, session, record, chosen, at_most=at_most, terminal=terminal)
        opened = open_shown(study, plan, storage=args.storage, on_warning=terminal.say)
        results = distill_chosen(
            chosen, session, instruments, budget, eval_command=args.eval_command, terminal=terminal
        )
        processes.share([], list)  # nothing more is trained
        found = refresh_report(study, opened=opened, on_warning=terminal.say)
    for result in results:
        terminal.say(f"distilled: {study.model(result.candidate.key)}", wrap=False)
    show_result(terminal, found, study=study)
    return results, found.record


def follow(args: DistillCommand, several: "ProcessGroup") -> None:
    """Train what the first process trains, and nothing else."""
    study, plan, _ = open_together(args, several)
    from seed.stages import students

    with several.fail_together():
        pass  # the first looks at what there is
    if not several.share(False, bool):
        return
    with several.fail_together():
        session, instruments = open_model(args, study, plan.protocol, several, terminal=Terminal(quiet=True))
    agree_on_room(session, several)
    with several.fail_together():
        pass  # the first looks at the disk
    students.follow(instruments)


def open_together(
    args: DistillCommand, several: "ProcessGroup | None"
) -> "tuple[StudyFolder, SearchPlan, SingleProcess]":
    """The study as it was planned, and the processes that work on it, which all see the same.

    Raises:
        SeedError: it cannot be read, or they do not.
    """
    with contextlib.nullcontext() if several is None else several.fail_together():
        study, plan = open_planned(args.study, trust_remote_code=args.trust_remote_code)
    quiet_libraries()
    from seed.distillation.processes import SINGLE_PROCESS

    processes = several or SINGLE_PROCESS
    processes.require_alike(plan.fingerprint)
    return study, plan, processes


def open_model(
    args: DistillCommand, study: StudyFolder, protocol: Protocol, processes: "SingleProcess", *, terminal: Terminal
) -> "tuple[Session, Instruments]":
    """Open model and text; of several processes, only the first keeps weights, and gives the others their shards of them.

    Raises:
        SeedError: they changed since the study was planned, or several processes cannot train this.
    """
    from seed import sessions
    from seed.models.anatomy import Anatomy
    from seed.optimize.space import drop_layers
    from seed.stages import budgets

    is_several = processes.size > 1
    if is_several and args.device not in (None, "cpu", "cuda"):
        raise ResourceError(
            f"--device {args.device}: each of several processes takes a GPU of its own. Give cuda or cpu."
        )
    terminal.say(f"opening {protocol.model}" + f", to train in {processes.size} processes" * is_several)
    session = sessions.reopen(study, protocol, device_name=args.device)
    instruments = dataclasses.replace(sessions.prepare_instruments(session), processes=processes)
    if is_several:
        from seed.distillation import fsdp

        assert isinstance(processes, fsdp.ProcessGroup)
        processes.take_device(session.device.type)
        settings = budgets.short_settings(session, drop_layers(session.anatomy.num_layers, []))
        fsdp.require_shardable(settings, session.teacher.model)
        if not processes.leads:
            anatomy, grafted = session.anatomy, session.grafted
            instruments = dataclasses.replace(
                instruments,
                anatomy=Anatomy(fsdp.empty(anatomy.model)),
                grafted=None if grafted is None else Anatomy(fsdp.empty(grafted.model)),
            )
            if session.has_parts:  # an empty model cannot be run to see it
                instruments.anatomy.num_outputs = anatomy.num_outputs
    return session, instruments


def agree_on_room(session: "Session", processes: "SingleProcess") -> int:
    """How many students are trained side by side, and whether layers run again: as the process with the least room says."""
    from seed.stages.budgets import count_parallel_students

    vars(session)["recomputes"] = processes.is_any(session.recomputes)
    return processes.find_least(count_parallel_students(session))


def plan_budget(
    args: DistillCommand,
    plan: SearchPlan,
    session: "Session",
    record: StudyRecord,
    chosen: list[TrialRecord],
    *,
    at_most: int,
    terminal: Terminal,
) -> "Budget":
    """Say what will be done; nothing is written."""
    from seed.stages import finals, students
    from seed.stages.study_record import find_learning_rate

    protocol, distill_tokens = session.protocol, args.distill_tokens or plan.distill_tokens
    terminal.say(f"training for {protocol.describe_training(distill_tokens)}")
    for line in protocol.warn_of_few_steps(distill_tokens):
        terminal.say(line)
    sizes = [one.evaluation.size for one in chosen]
    num_together = min(len(chosen), at_most)
    study_dir.require_room(
        session.folder.root,
        needed_bytes=sum(size.weight_bytes for size in sizes) + 32 * num_together * sizes[0].num_params,
        purpose="this distillation",
    )
    known_rate = args.learning_rate or find_learning_rate(record.distilled)
    return students.Budget(
        distill_tokens=distill_tokens,
        learning_rate=known_rate or protocol.short_learning_rate,
        rng_seeds=finals.list_rng_seeds(session, args.replicas or plan.replicas),
        at_most=at_most,
    )


def distill_chosen(
    chosen: list[TrialRecord],
    session: "Session",
    instruments: "Instruments",
    budget: "Budget",
    *,
    eval_command: str | None,
    terminal: Terminal,
) -> list[DistillResult]:
    """Distill, export and judge the candidates of trials."""
    from seed.evaluator import InProcess
    from seed.proxy.sweep import Sweep
    from seed.scores import ScoreStore
    from seed.stages import finals
    from seed.stages.latency_table import LatencyTable, measure_latency
    from seed.stages.study_record import use_measured

    if session.has_parts:  # where the latency of what was not on the frontier is only predicted
        table = LatencyTable(session, measure=functools.partial(measure_latency, session), say=terminal.say)
        table.time_predicted([one.evaluation for one in chosen])
        chosen = list(use_measured(chosen, table.measured))
    executor = InProcess(session.device)
    executor.start(session)
    executor.evaluator.sweep = Sweep(instruments)
    with ScoreStore(session.folder.scores) as store:
        return finals.distill_members(
            executor,
            session,
            [finals.make_member(one.evaluation, one.number) for one in chosen],
            budget,
            terminal=terminal,
            store=store,
            eval_command=eval_command,
        )


def choose_trials(study: StudyFolder, record: StudyRecord, *, trial: int | None, replicas: int) -> list[TrialRecord]:
    """The trial of that number; without one, those on the frontier that have fewer replicas, or no model."""
    from seed.stages.finals import describe_damage
    from seed.stages.study_record import find_trial

    if trial is not None:
        return [find_trial(record, trial, place=study.root)]
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


def main() -> None:
    """Read the command line and distill."""
    is_first = os.environ.get("RANK", "0") == "0"
    with contextlib.ExitStack() as silenced:
        if not is_first:  # all read the same, and one speaks
            silenced.enter_context(contextlib.redirect_stdout(None))
            silenced.enter_context(contextlib.redirect_stderr(None))
        args = read_command(DistillCommand)
    if not is_launched():
        distill(args)
        return
    from seed.distillation.fsdp import join_processes

    try:
        with join_processes() as several:
            if several.leads:
                distill(args, several)
            else:
                follow(args, several)
    except KeyboardInterrupt:
        if is_first:
            raise
        raise SystemExit(130) from None  # the first says it


def is_launched() -> bool:
    """Is this process one of several that a launcher started?"""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def distill(args: DistillCommand, several: "ProcessGroup | None" = None) -> None:
    """Distill as the command line says."""
    answer(functools.partial(distill_as_told, args, several=several), as_json=args.json)


def distill_as_told(
    args: DistillCommand, terminal: Terminal, *, several: "ProcessGroup | None"
) -> "DistillLine | SearchLine":
    """Distill, and return what ``--json`` prints: one model, or without a trial the study."""
    from seed.reporting.result_line import describe_one_more, describe_search

    results, record = distill_trials(args, terminal, several=several)
    if args.trial is None:
        return describe_search(record, StudyFolder(args.study))
    [result] = results
    return describe_one_more(result, StudyFolder(args.study), record.replications.get(result.key))


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
