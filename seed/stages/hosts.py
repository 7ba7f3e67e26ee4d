"""What the hosts of one study tell each other through its storage, and what they must have alike.

One host leads: it measures latency, decides what is searched, selects and distills. The first to lead is the study's
reference, and only hosts of its hardware may lead after it, since latency is an objective only as measured there. How
others help is decided in ``joining``.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from optuna import Study
from optuna.storages import BaseStorage

from seed import __version__, folder
from seed.errors import ResourceError, StudyError
from seed.folder import StudyFolder
from seed.optimize.leadership import LEADER, Leader, Leadership, read_shared, write_shared
from seed.optimize.space import drop_deepest
from seed.optimize.storage import open_storage
from seed.optimize.study import find_study, read_identity
from seed.optimize.urls import hide_secrets
from seed.plans import Environment, Protocol, SearchPlan, list_portable
from seed.presence import Presence
from seed.records import DenseResult, Latency, Record, SearchSpace
from seed.reporting.wording import count_things
from seed.scoring.latency import name_structure
from seed.stages import latencies, orders, planning, workbench
from seed.stages.posts import Post
from seed.stages.settings import SearchSettings
from seed.stages.workbench import Workbench

ORDER = "seed:order"
# What a search is asked for beside the protocol, where it is planned and where it is not.
PLANNED = ("trials", "frontier_size", "distill_tokens", "replicas", "width_baseline", "max_ppl_ratio")
ASKED = ("sampler", "screen", "sweep_budget", "distill", "learning_rate", "max_latency_ratio", "max_memory")


class Hardware(Record, frozen=True, kw_only=True):
    """What latency depends on: the GPU's product name, or the processor and its threads where that computes."""

    device: str
    processor: str | None = None
    num_threads: int | None = None

    def describe(self) -> str:
        """For people."""
        return (
            self.device
            if self.processor is None
            else f"{self.device} ({self.processor}, {count_things(self.num_threads or 1, 'thread')})"
        )


class HostOrder(Record, frozen=True, kw_only=True):
    """Candidates can be scored: what the host that leads has settled and measured."""

    leader: str  # the process's name
    settings: dict[str, Any]
    plan: SearchPlan
    space: SearchSpace  # as limits bound it
    latencies: dict[str, Latency]  # by structure, as measured on the reference
    reference: Hardware
    dense_loss: float  # of the validation text, nats per token


@dataclass(frozen=True, kw_only=True)
class Circle:
    """The hosts of a study, and ours among them."""

    opened: Study
    leadership: Leadership
    hardware: Hardware
    settings: dict[str, Any]  # what we were asked for

    def find_order(self) -> HostOrder | None:
        """The last order that was given, be its leader at work or not."""
        return read_shared(self.opened, ORDER, HostOrder)

    def give_order(self, plan: SearchPlan, space: SearchSpace, table: dict[str, Latency], dense: DenseResult) -> None:
        """Tell other hosts what to score. The reference stays the one that measured first."""
        before = self.find_order()
        order = HostOrder(
            leader=self.leadership.ours.name,
            settings=self.settings,
            plan=plan,
            space=space,
            latencies=table,
            reference=self.hardware if before is None else before.reference,
            dense_loss=dense.validation.loss,
        )
        write_shared(self.opened, ORDER, order)


def open_circle(opened: Study, bench: Workbench, plan: SearchPlan, settings: SearchSettings, *, post: Post) -> Circle:
    """Our host among those of a study."""
    ours = Leader(
        place=post.presence.word,
        name=post.presence.name,
        host=socket.gethostname(),
        pid=os.getpid(),
        folder=str(post.study.root.resolve()),
    )
    return Circle(
        opened=opened,
        leadership=Leadership(opened, ours),
        hardware=describe_hardware(workbench.describe_environment(bench)),
        settings=describe_settings(settings, plan),
    )


def describe_hardware(environment: Environment) -> Hardware:
    """What of an environment decides latency."""
    if environment.device != "cpu":
        return Hardware(device=environment.device)
    return Hardware(device="cpu", processor=environment.processor, num_threads=environment.num_threads)


def describe_settings(settings: SearchSettings, plan: SearchPlan) -> dict[str, Any]:
    """What all hosts of a search must have alike, beside the protocol."""
    return {name: getattr(plan, name) for name in PLANNED} | {name: getattr(settings, name) for name in ASKED}


def find_identity(storage: BaseStorage, *, name: str) -> dict[str, Any] | None:
    """What the study's protocol is, where another host has begun it."""
    study = find_study(storage, name=name)
    return None if study is None else read_identity(study)


def describe_identity(protocol: Protocol) -> dict[str, Any]:
    """What of a protocol all hosts have alike, as JSON knows it."""
    known: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(list_portable(msgspec.to_builtins(protocol))))
    return known


def require_same_study(identity: Mapping[str, Any], protocol: Protocol, *, name: str) -> None:
    """Raise when what we would measure is not what a study measures, paths and devices apart.

    Raises:
        StudyError: with every difference.
    """
    if shown := planning.spell_differences(identity, describe_identity(protocol)):
        raise StudyError(
            f"study {name}: its storage holds a study of another plan ({shown}). Numbers of the two cannot be mixed: use the "
            "same settings, model and text on all hosts, or another name with --study NAME."
        )


def require_same_search(order: HostOrder, circle: Circle, bench: Workbench, leader: Leader) -> None:
    """Raise when the search that another host leads was asked for otherwise than we are, or cannot be meant for us.

    Raises:
        StudyError: with every difference.
    """
    changed = orders.list_changed(order.settings, circle.settings)
    if order.plan.seed_version != __version__:
        changed.insert(0, f"seed {order.plan.seed_version} there, {__version__} here")
    if changed:
        raise StudyError(
            f"study {circle.opened.study_name}: is searched by {leader.host} (pid {leader.pid}), otherwise than asked for here "
            f"({', '.join(changed)}). Give the same options to help it, or wait for its end."
        )
    space = bench.protocol.space
    depths = range(space.min_dropped, space.max_dropped + 1)
    structures = {name_structure(bench.anatomy, drop_deepest(space, count)) for count in depths}
    is_bounded = space.min_dropped <= order.space.min_dropped <= space.max_dropped
    if not (
        is_bounded
        and msgspec.structs.replace(order.space, min_dropped=space.min_dropped) == space
        and structures <= order.latencies.keys()
    ):
        raise StudyError(
            f"study {circle.opened.study_name}: what {leader.host} (pid {leader.pid}) wrote into the storage is of another model. "
            "Start a study of another name with --study NAME."
        )


def require_reference(order: HostOrder, hardware: Hardware, *, name: str) -> None:
    """Raise when hardware is not that of the reference.

    Raises:
        ResourceError: it is not.
    """
    if hardware != order.reference:
        raise ResourceError(
            f"study {name}: its latency was measured on {order.reference.describe()}, and this is {hardware.describe()}. "
            "Start the search on such a host first; this one can help it while it runs."
        )


def take_over(circle: Circle, plan: SearchPlan, *, study: StudyFolder) -> SearchPlan:
    """Go on with what was settled and measured when the search began, on whatever host; return the plan.

    Raises:
        ResourceError: we would measure the rest, and are of other hardware.
    """
    order = circle.find_order()
    if order is None:
        return plan
    require_reference(order, circle.hardware, name=study.name)
    latencies.write_latencies(study, latencies.read_latencies(study) | order.latencies)
    return planning.settle_plan(order.plan, plan)


def find_other_leader(settings: SearchSettings, study: StudyFolder) -> Leader | None:
    """The host that leads or has led the search, where it is not ours; None too where the storage does not answer."""
    if settings.storage is None:
        return None
    try:
        opened = find_study(open_storage(settings.storage, journal=study.journal), name=study.name)
        found = None if opened is None else read_shared(opened, LEADER, Leader)
    except StudyError:
        return None
    return found if found is not None and found.place != Presence(study.present).word else None


def require_moved(settings: SearchSettings, storage: BaseStorage | None, *, study: StudyFolder) -> None:
    """Raise when a study's trials are in another storage than the one that is named now, which has none of them.

    Args:
        settings: of the search.
        storage: that they name; None: the journal in the folder.
        study: the folder.

    Raises:
        StudyError: that is so.
    """
    if not study.plan.exists():
        return
    found = folder.read_record(study.plan, SearchPlan).storage
    if found == settings.storage:
        return
    there = None if storage is None else find_study(storage, name=study.name)
    if study.journal.is_file() if storage is None else there is not None and there.get_trials(deepcopy=False):
        return
    where, cure = (
        ("its folder", "leave --storage out")
        if found is None
        else (hide_secrets(found), f"add --storage {hide_secrets(found)}")
    )
    raise StudyError(
        f"{study.root}: its trials are in {where}, and {hide_secrets(settings.storage or 'its folder')} has none of them. To go "
        f"on, {cure}; or start a study of another name with --study NAME."
    )
