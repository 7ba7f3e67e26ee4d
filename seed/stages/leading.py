"""The pass of whoever leads a search, top to bottom: proofs, latency, dense model, study, frontier, rivals, distillation, report.

Everything finished is in the study's folder, so that another pass goes on from there. What each step does is its own
module's business.
"""

import dataclasses
import functools

import msgspec
from optuna import Study

from seed import folder
from seed.console import Terminal, format_seconds
from seed.errors import ModelError
from seed.findings import StudyRecord
from seed.folder import StudyFolder
from seed.optimize.frontier import select_frontier
from seed.optimize.space import Preset, contains
from seed.optimize.study import read_trials
from seed.plans import SearchPlan
from seed.records import DenseResult, Frontier, SearchSpace, TrialRecord
from seed.reporting.summary import show_result
from seed.reporting.wording import count_things
from seed.scoring.latency import pool_dense
from seed.scoring.sweep import Sweep
from seed.stages import (
    finals,
    finished,
    gains,
    hosts,
    judging,
    latencies,
    orders,
    planning,
    publishing,
    schooling,
    searching,
    workbench,
)
from seed.stages.gathering import read_losses
from seed.stages.hosts import Circle
from seed.stages.posts import Post
from seed.stages.settings import SearchSettings
from seed.stages.workbench import Workbench

STEPS = ("proofs", "latency", "dense", "search", "rivals", "distill")  # of a pass, for people who watch


def lead_search(
    terminal: Terminal,
    bench: Workbench,
    preset: Preset,
    opened: Study,
    plan: SearchPlan,
    settings: SearchSettings,
    *,
    post: Post,
    circle: Circle | None,
) -> StudyRecord:
    """Prove, measure, search, select and distill, in a folder and a study that are ours to write.

    ``circle``: the other hosts of the study, where it may have some.
    """
    study, space = bench.folder, bench.protocol.space
    steps = STEPS if settings.distill else STEPS[:-1]
    if study.plan.exists():
        terminal.say(f"continuing the study in {study.root}")
    if circle is not None:
        plan = hosts.take_over(circle, plan, study=study)
    folder.write_record(study.plan, plan)
    publishing.announce_search(study, opened, plan, complain=terminal.say)
    folder.write_record(study.environment, workbench.describe_environment(bench))
    terminal.begin_step("proofs", of=steps)
    with terminal.stage("proofs", total=2) as advance:
        workbench.prove(bench)
        advance(1, "cut, saved, reloaded")
        instruments = workbench.prepare_instruments(bench)
        fault = workbench.prove_closed_form(bench, instruments) if bench.gains is not None else None
        if fault and bench.protocol.rung == "closed_form":
            raise ModelError(f"{fault}. Use --rung 2 with this model.")
        advance(1, "closed form equals its student")
    if fault:
        terminal.say(f"{fault}: this study does without closed form")
        bench = workbench.without_closed_form(bench)
        instruments = dataclasses.replace(instruments, gains=None)
        plan = msgspec.structs.replace(plan, covers_space=False)
    plan = msgspec.structs.replace(plan, trusts_closed_form=not fault)
    folder.write_record(study.plan, plan)
    terminal.begin_step("latency", of=steps)
    depths = space.max_dropped - space.min_dropped + 1
    with terminal.stage("latency", total=depths) as advance:
        measured = latencies.measure_latencies(bench, space, on_structure=lambda structure: advance(1, structure))
    table = latencies.smooth_latencies(bench, measured)
    bounded = latencies.bound_space(
        bench, instruments, table, max_latency_ratio=settings.max_latency_ratio, max_memory=settings.max_memory
    )
    terminal.begin_step("dense", of=steps)
    reference = pool_dense(table.values())
    with terminal.stage("dense", total=1) as advance:
        dense = judging.judge_dense(bench, instruments, reference)
        dense = judging.score_dense_for_user(bench, dense, settings.eval_command)
        advance(1, "")
    terminal.begin_step("search", of=steps)
    sweep = Sweep(instruments, study.sweep)
    live = publishing.LiveReport(
        study,
        opened,
        select=lambda: select_members(bench, settings, bounded, read_trials(opened)),
        complain=terminal.say,
    )
    folder.write_record(study.search_order, orders.SearchOrder(lead=post.presence.name, plan=plan, space=bounded))
    if circle is not None:
        circle.give_order(plan, bounded, measured, dense)
    with post.share_cores():
        records = searching.score_space(
            terminal, bench, sweep, opened, plan, settings, bounded, table, post=post, on_trial=live.hear
        )
    if circle is not None:
        circle.leadership.require()
    frontier = select_members(bench, settings, bounded, records)
    folder.write_record(study.frontier, frontier)
    solver = searching.name_solver(plan, settings, bounded, frontier)
    num_members = len(frontier.members)
    terminal.say(
        f"scored {frontier.num_scored:,} of {count_things(bounded.size, 'candidate')} ({solver}); {num_members} "
        f"{'goes' if num_members == 1 else 'go'} on"
    )
    terminal.begin_step("rivals", of=steps)
    with terminal.stage("rivals", total=len(gains.RIVALS)) as advance:
        if planning.allows_singles(plan, bounded):
            searching.score_singles(sweep, bounded)
        gains.measure_gain(
            bench, sweep, bounded, records, plan=plan, solver=solver, on_rival=functools.partial(advance, 1)
        )
    if settings.distill:
        if circle is not None:
            circle.leadership.require()
        terminal.begin_step("distill", of=steps)
        if not all(study.result(member.evaluation.candidate.key).exists() for member in frontier.members):
            publishing.refresh_report(
                study, complain=terminal.say, is_running=True
            )  # to look at while models are distilled
        factor = settings.chosen_recovery.rate_factor
        rates = tuple(factor * rate for rate in preset.recovery.learning_rates)
        distill_frontier(
            terminal,
            bench,
            sweep,
            plan,
            dense,
            frontier,
            post=post,
            rates=(settings.learning_rate,) if settings.learning_rate else rates,
            eval_command=settings.eval_command,
        )
    record = finish(terminal, study)
    if circle is None and len(record.distilled) >= len(frontier.members) * settings.distill:
        finished.remember(study, settings, model=bench.teacher.directory)
    return record


def select_members(
    bench: Workbench,
    settings: SearchSettings,
    space: SearchSpace,
    records: tuple[TrialRecord, ...],
) -> Frontier:
    """Choose what is worth distilling of what is scored."""
    found = select_frontier(
        [record for record in records if contains(space, record.evaluation.candidate)],
        rung=bench.protocol.rung,
        size=settings.frontier_size or planning.FRONTIER_SIZE,
        space_size=space.size,
        load_losses=read_losses(bench.folder),
        max_ppl_ratio=settings.max_ppl_ratio,
        max_latency_ratio=settings.max_latency_ratio,
    )
    return msgspec.structs.replace(found, space=space)


def distill_frontier(
    terminal: Terminal,
    bench: Workbench,
    sweep: Sweep,
    plan: SearchPlan,
    dense: DenseResult,
    frontier: Frontier,
    *,
    post: Post,
    rates: tuple[float, ...],
    eval_command: str | None,
) -> None:
    """Distill and export every member; the learning rate is tuned on the hardest first."""
    members = finals.list_members(frontier.members)
    hardest = min(frontier.members, key=lambda member: (member.evaluation.size.num_params, member.rank))
    steps, rng_seeds = schooling.count_steps(bench, plan.distill_tokens), finals.list_rng_seeds(bench, plan.replicas)
    searching.store_states(terminal, bench, sweep, steps=steps, rng_seeds=rng_seeds)
    rate = rates[0]
    if len(rates) > 1:
        tuned_steps = schooling.count_steps(bench, plan.distill_tokens // schooling.TUNING_SHARE)
        with terminal.stage("tuning", total=len(rates) * tuned_steps, is_share=True) as advance:
            rate = schooling.choose_learning_rate(
                bench,
                sweep,
                members[frontier.members.index(hardest)],
                rates=rates,
                distill_tokens=plan.distill_tokens,
                on_step=lambda step: advance(1, f"which learning rate suits {hardest.evaluation.candidate.key}"),
            )
        terminal.say(f"learning rate {rate:g}")
    if plan.width_baseline:
        members += finals.list_baselines(bench, sweep.instruments, members)
    budget = finals.Budget(distill_tokens=plan.distill_tokens, learning_rate=rate, rng_seeds=rng_seeds)
    folder.write_record(
        bench.folder.distill_order,
        orders.DistillOrder(lead=post.presence.name, members=tuple(members), budget=budget),
    )
    finals.say_damaged(bench.folder, members, say=terminal.say)
    with (
        post.share_cores(),
        terminal.stage("distill", total=finals.count_all_work(bench, members, budget), is_share=True) as advance,
    ):
        results = finals.distill_members(
            bench,
            sweep,
            plan,
            dense,
            members,
            budget,
            post=post,
            eval_command=eval_command,
            on_work=advance,
            complain=terminal.say,
        )
    for result in results:
        terminal.say(
            f"  {result.key}: test PPL ratio {result.test.ppl_ratio:.4f} "
            f"(without recovery {result.test_unrecovered.ppl_ratio:.4f}"
            f"{', so recovery did not help' * (result.test.ppl_ratio >= result.test_unrecovered.ppl_ratio)}), "
            f"{format_seconds(result.seconds)}"
        )


def finish(terminal: Terminal, study: StudyFolder) -> StudyRecord:
    """Write the report and print what matters."""
    record = publishing.refresh_report(study, complain=terminal.say)
    show_result(terminal, record, study=study, storage=publishing.spell_storage(record.plan, study))
    return record
