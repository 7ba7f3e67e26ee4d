"""Helping a search that another process of this host leads: scoring candidates and distilling models, as it orders.

What is measured, decided, judged over all and shown is the lead's business.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from seed import folder
from seed.console import Terminal
from seed.errors import StudyError
from seed.folder import StudyFolder
from seed.optimize.space import Preset
from seed.optimize.storage import open_storage
from seed.optimize.study import open_study
from seed.optimize.urls import hide_secrets
from seed.plans import SearchPlan
from seed.records import DenseResult
from seed.scoring.streams import load_streams
from seed.scoring.sweep import Sweep
from seed.stages import finals, latencies, orders, planning, schooling, searching, workbench
from seed.stages.orders import DistillOrder, SearchOrder
from seed.stages.posts import Post
from seed.stages.settings import SearchSettings
from seed.stages.workbench import Workbench

ALONE_SECONDS = 20.0  # without a lead, before a helper that nobody looks after goes home


@dataclass(frozen=True, kw_only=True)
class _Helped:
    bench: Workbench
    sweep: Sweep
    plan: SearchPlan


def help_search(
    settings: SearchSettings,
    preset: Preset | None,
    post: Post,
    terminal: Terminal,
    *,
    is_over: Callable[[], bool],
) -> None:
    """Do our share of a search until it is over.

    Args:
        settings: of the lead's search; what decides its numbers must be alike.
        preset: of the model.
        post: ours.
        terminal: where progress is written.
        is_over: is there nobody to work for any more?

    Raises:
        SeedError: model or text are not those of the study, or the settings not those of its search.
    """
    study = post.study
    # the folder is the lead's to make, once it knows that there is something to search
    order = orders.wait_for(study.search_order, SearchOrder, post.presence, is_over=is_over)
    if order is None:
        return
    with post.presence.be_there(), post.share_cores():
        helped = _open(settings, preset, study, order.plan)
        _score(helped, settings, order, post, terminal)
        todo = orders.wait_for(study.distill_order, DistillOrder, post.presence, is_over=is_over)
        if todo is not None:
            _distill(helped, todo, post, terminal)


def join_search(settings: SearchSettings, preset: Preset | None, post: Post, terminal: Terminal) -> bool:
    """Help a search that runs in this folder, to its end; False where none does.

    Raises:
        SeedError: it was asked for otherwise, or cannot be helped.
    """
    found = orders.find_lead(post.study, post.presence)
    if found is None:
        return False
    orders.require_same_settings(found, settings, place=post.study.root)
    terminal.say(f"{post.study.root}: a search runs there (pid {found.pid}); this process helps it")
    help_search(settings, preset, post, terminal, is_over=watch_lead(post))
    while orders.find_lead(post.study, post.presence) is not None:
        time.sleep(orders.POLL_SECONDS)
    return True


def watch_lead(post: Post) -> Callable[[], bool]:
    """Return what says that the lead has ended its search, or that nobody has led for a while."""
    seen = time.monotonic()

    def is_over() -> bool:
        nonlocal seen
        if orders.find_lead(post.study, post.presence) is not None:
            seen = time.monotonic()
        is_ended = not post.study.lead.is_file()  # who is killed leaves it behind
        return is_ended or time.monotonic() - seen > ALONE_SECONDS

    return is_over


def _open(settings: SearchSettings, preset: Preset | None, study: StudyFolder, plan: SearchPlan) -> _Helped:
    if plan.storage != settings.storage:
        raise StudyError(
            f"{study.root}: the search there keeps its trials in {hide_secrets(plan.storage or 'its folder')}. "
            "To help it, add the same --storage."
        )
    protocol = planning.read_protocol(plan, place=study.root)
    streams = load_streams(study.streams, protocol.streams)
    settings = planning.adopt_dtype(settings, plan.identity)
    bench, _ = workbench.open_for_search(settings, preset, study=study, identity=plan.identity, streams=streams)
    planning.require_same_protocol(protocol, bench.protocol, place=study.root)
    if not plan.trusts_closed_form:
        bench = workbench.without_closed_form(bench)
    instruments = workbench.prepare_instruments(bench)
    return _Helped(bench=bench, sweep=Sweep(instruments, study.sweep), plan=plan)


def _score(helped: _Helped, settings: SearchSettings, order: SearchOrder, post: Post, terminal: Terminal) -> None:
    bench, plan = helped.bench, helped.plan
    storage = open_storage(plan.storage, journal=post.study.journal)
    opened = open_study(storage, name=plan.name, rung=bench.protocol.rung, fingerprint=plan.study_fingerprint)
    table = latencies.smooth_latencies(bench, latencies.read_latencies(post.study))
    searching.score_space(terminal, bench, helped.sweep, opened, plan, settings, order.space, table, post=post)


def _distill(helped: _Helped, order: DistillOrder, post: Post, terminal: Terminal) -> None:
    bench, sweep = helped.bench, helped.sweep
    steps = schooling.count_steps(bench, order.budget.distill_tokens)
    searching.store_states(terminal, bench, sweep, steps=steps, rng_seeds=order.budget.rng_seeds)
    with terminal.stage(
        "distill", total=finals.count_all_work(bench, order.members, order.budget), is_share=True
    ) as advance:
        finals.distill_members(
            bench,
            sweep,
            helped.plan,
            folder.read_record(post.study.dense, DenseResult),
            order.members,
            order.budget,
            post=post,
            on_work=advance,
            complain=terminal.say,
        )
