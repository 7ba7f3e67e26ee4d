"""A host that finds a search led by another one: it scores candidates until none is left, or takes the lead where that is gone.

Only trials are shared out over hosts: models are distilled where the search is led.
"""

import math
import time
from dataclasses import replace

from seed import folder
from seed.console import Terminal
from seed.errors import ResourceError, StudyError
from seed.optimize.leadership import Leader
from seed.plans import Protocol, SearchPlan
from seed.scoring.sweep import Sweep
from seed.stages import hosts, latencies, orders, planning, searching, workbench
from seed.stages.hosts import Circle, HostOrder
from seed.stages.orders import SearchOrder
from seed.stages.posts import Post
from seed.stages.settings import SearchSettings
from seed.stages.workbench import Workbench

LOSS_TOLERANCES = {"float32": 1e-3}  # nats per token, of the dense model on two hosts: more is another version's doing
LOSS_TOLERANCE = 2e-2  # of 16-bit types
TURN_SECONDS = 10.0  # in which one of several hosts that may lead takes the lead
STEPS = ("search",)  # of a pass, for people who watch


def lead_or_help(
    circle: Circle, bench: Workbench, plan: SearchPlan, settings: SearchSettings, post: Post, terminal: Terminal
) -> bool:
    """Wait until it is ours to lead the search; False: others did it, with our help.

    Raises:
        SeedError: the search was asked for otherwise, or this host measures otherwise.
    """
    leadership = circle.leadership

    def find_leader() -> Leader | None:
        return leadership.find_at_work(on_silence=lambda silent: terminal.say(_say_silent(silent)))

    while True:
        leader, order = find_leader(), circle.find_order()
        if leader is not None and leader.is_done and order is not None and order.settings == circle.settings:
            terminal.say(f"this search was finished by {_name(leader)}; {_say_where(leader)}")
            terminal.say("  copy that folder to have them here too, or ask for more --trials to go on from this host")
            return False
        if leader is not None and not leader.is_done:
            order = _help(circle, leader, bench, plan, settings, post, terminal)
            if order is None:
                continue
            found = find_leader()
            if found is None and circle.hardware != order.reference:
                time.sleep(TURN_SECONDS)  # for hosts that may lead
                found = find_leader()
            if found is not None:
                terminal.say(f"all candidates are scored; {_say_where(found)}")
                return False
            terminal.say(f"{_name(leader)} is gone")
        if order is not None:
            hosts.require_reference(order, circle.hardware, name=bench.folder.name)
        if leadership.take():
            if leader is not None:
                terminal.say("this host leads from now on")
            return True


def _help(
    circle: Circle,
    leader: Leader,
    bench: Workbench,
    plan: SearchPlan,
    settings: SearchSettings,
    post: Post,
    terminal: Terminal,
) -> HostOrder | None:
    """Score candidates for a leader until there are none left; return its order, or None where it has gone before it gave one."""
    terminal.say(f"{_name(leader)} leads this search; this host scores candidates for it")
    order = _wait_for_order(circle, leader, terminal)
    if order is None:
        return None
    hosts.require_same_search(order, circle, bench, leader)
    _require_latencies(order, circle, bench)
    plan = planning.settle_plan(order.plan, plan)
    if not plan.trusts_closed_form:
        bench = workbench.without_closed_form(bench)
    terminal.begin_step("search", of=STEPS)
    with terminal.stage("dense", total=1) as advance:
        instruments = workbench.prepare_instruments(bench)
        _require_same_loss(order, instruments.dense_validation.loss, bench.protocol, leader)
        advance(1, "")
    latencies.write_latencies(bench.folder, latencies.read_latencies(bench.folder) | order.latencies)
    # processes of this host that help us know nothing of others
    folder.write_record(bench.folder.search_order, SearchOrder(lead=post.presence.name, plan=plan, space=order.space))
    table = latencies.smooth_latencies(bench, dict(order.latencies))
    with post.share_cores():
        searching.score_space(
            terminal,
            bench,
            Sweep(instruments, bench.folder.sweep),
            circle.opened,
            plan,
            settings,
            order.space,
            table,
            post=replace(post, leads=False),
        )
    return order


def _wait_for_order(circle: Circle, leader: Leader, terminal: Terminal) -> HostOrder | None:
    """Wait until a leader says what to score; None: it is gone before that."""
    said = False
    while True:
        order = circle.find_order()
        if order is not None and order.leader == leader.name:
            return order
        if not said:
            terminal.say("  it proves and measures first")
            said = True
        if circle.leadership.find_at_work() != leader:
            return None
        time.sleep(orders.POLL_SECONDS)


def _require_latencies(order: HostOrder, circle: Circle, bench: Workbench) -> None:
    kinds = bench.anatomy.layer_kinds
    if len(kinds) > 1 and circle.hardware != order.reference:
        raise ResourceError(
            f"study {bench.folder.name}: this model has {len(kinds)} kinds of layers, and sets are timed as they are met, which "
            f"only {order.reference.describe()} may do. This is {circle.hardware.describe()}, and cannot help."
        )


def _require_same_loss(order: HostOrder, ours: float, protocol: Protocol, leader: Leader) -> None:
    tolerance = LOSS_TOLERANCES.get(protocol.dtype, LOSS_TOLERANCE)
    if not math.isclose(ours, order.dense_loss, rel_tol=0, abs_tol=tolerance):
        raise StudyError(
            f"the dense model's validation loss is {ours:.5f} here and {order.dense_loss:.5f} on {leader.host}, so scores of the "
            "two hosts cannot be compared. Install the same versions of torch and transformers on both."
        )


def _name(leader: Leader) -> str:
    return f"{leader.host} (pid {leader.pid})"


def _say_where(leader: Leader) -> str:
    verb = "are" if leader.is_done else "will be"
    return f"the report and the models {verb} in {leader.folder} on {leader.host}"


def _say_silent(leader: Leader) -> str:
    return f"{_name(leader)} led this search and gives no sign of life; this host takes the lead if that lasts for a minute"
