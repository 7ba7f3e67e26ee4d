"""What the hosts of one study tell each other through its storage, and what they must have alike.

One host leads: it measures latency, decides what is searched, selects and distills. The first to lead is the study's
reference, and only hosts of its hardware may lead after it, since latency is an objective only as measured there. How
others help is decided in ``joining``.
"""

import os
from dataclasses import dataclass
from typing import Any

from optuna import Study
from optuna.storages import BaseStorage

from seed import __version__, folder
from seed.errors import ResourceError, StudyError
from seed.folder import StudyFolder
from seed.optimize.leadership import LEADER, Leader, Leadership, read_shared, write_shared
from seed.optimize.storage import open_storage
from seed.optimize.study import find_study
from seed.optimize.urls import hide_secrets
from seed.presence import name_host
from seed.records import DenseResult, Environment, Latency, Protocol, Record, SearchPlan, SearchSpace
from seed.stages import latencies, orders, planning, workbench
from seed.stages.posts import Post, open_post
from seed.stages.settings import SearchSettings
from seed.stages.workbench import Workbench

ORDER = "seed:order"
OF_A_HOST = (
    "model",
    "space",
    "start",
    "recovery_text",
    "validation_text",
    "test_text",
    "dtype",
)  # the protocol has them


class Hardware(Record, frozen=True, kw_only=True):
    """What latency depends on: the GPU's product name, or the processor's where that computes."""

    device: str
    processor: str | None

    def describe(self) -> str:
        """For people."""
        return self.device if self.processor is None else f"{self.device} ({self.processor})"


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
    settings: SearchSettings
    hardware: Hardware

    def find_order(self) -> HostOrder | None:
        """The last order that was given, be its leader at work or not."""
        return read_shared(self.opened, ORDER, HostOrder)

    def list_changed(self, order: HostOrder) -> list[str]:
        """Say, setting by setting, how an order was asked for otherwise than we are."""
        return orders.list_changed(order.settings, describe_settings(self.settings))

    def give_order(self, plan: SearchPlan, space: SearchSpace, table: dict[str, Latency], dense: DenseResult) -> None:
        """Tell other hosts what to score. The reference stays the one that measured first."""
        before = self.find_order()
        order = HostOrder(
            leader=self.leadership.ours.name,
            settings=describe_settings(self.settings),
            plan=plan,
            space=space,
            latencies=table,
            reference=self.hardware if before is None else before.reference,
            dense_loss=dense.validation.loss,
        )
        write_shared(self.opened, ORDER, order)


def open_circle(opened: Study, bench: Workbench, settings: SearchSettings, *, post: Post) -> Circle:
    """Our host among those of a study."""
    presence = post.presence
    ours = Leader(
        place=presence.place,
        name=presence.name,
        host=name_host(presence.place),
        pid=os.getpid(),
        folder=str(post.study.root.resolve()),
    )
    return Circle(
        opened=opened,
        leadership=Leadership(opened, ours),
        settings=settings,
        hardware=describe_hardware(workbench.describe_environment(bench)),
    )


def describe_hardware(environment: Environment) -> Hardware:
    """What of an environment decides latency."""
    is_processor = environment.device == "cpu"
    return Hardware(device=environment.device, processor=environment.processor if is_processor else None)


def describe_settings(settings: SearchSettings) -> dict[str, Any]:
    """What all hosts of a search must have asked for alike, beside the protocol."""
    return {name: value for name, value in orders.describe_settings(settings).items() if name not in OF_A_HOST}


def find_published(storage: BaseStorage, *, name: str) -> HostOrder | None:
    """The last order in a storage, before model and text are opened.

    Raises:
        StudyError: it cannot be read.
    """
    study = find_study(storage, name=name)
    return None if study is None else read_shared(study, ORDER, HostOrder)


def adopt_latencies(circle: Circle, study: StudyFolder) -> None:
    """Take over what the reference measured.

    Raises:
        ResourceError: we would measure the rest, and are of other hardware.
    """
    order = circle.find_order()
    if order is not None:
        require_reference(order, circle.hardware, study=study)
        latencies.write_latencies(study, latencies.read_latencies(study) | order.latencies)


def require_reference(order: HostOrder, hardware: Hardware, *, study: StudyFolder) -> None:
    """Raise when hardware is not that of the reference.

    Raises:
        ResourceError: it is not.
    """
    if hardware != order.reference:
        raise ResourceError(
            f"study {study.name}: its latency was measured on {order.reference.describe()}, and this is "
            f"{hardware.describe()}. Start the search on such a host first; this one can help it while it runs."
        )


def require_same_study(order: HostOrder, protocol: Protocol, *, study: StudyFolder) -> None:
    """Raise when what we would measure is not what a study measures, paths and devices apart.

    Raises:
        StudyError: with every difference.
    """
    known = planning.read_protocol(order.plan, place=study.root)
    if shown := planning.spell_differences(known, protocol, is_portable=True):
        raise StudyError(
            f"study {study.name}: its storage holds a study of another plan ({shown}). Numbers of the two cannot be mixed: use "
            "the same settings, model and text on all hosts, or another name with --study NAME."
        )


def require_same_search(order: HostOrder, circle: Circle, leader: Leader) -> None:
    """Raise when the search that another host leads was asked for otherwise than we are.

    Raises:
        StudyError: with every difference.
    """
    changed = circle.list_changed(order)
    if order.plan.seed_version != __version__:
        changed.insert(0, f"seed {order.plan.seed_version} there, {__version__} here")
    if changed:
        raise StudyError(
            f"study {circle.opened.study_name}: is searched by {leader.host} (pid {leader.pid}), otherwise than asked for here "
            f"({', '.join(changed)}). Give the same options to help it, or wait for its end."
        )


def find_other_leader(settings: SearchSettings, study: StudyFolder) -> Leader | None:
    """The host that leads or has led the search, where it is not ours."""
    if settings.storage is None:
        return None
    opened = find_study(open_storage(settings.storage, journal=study.journal), name=study.name)
    found = None if opened is None else read_shared(opened, LEADER, Leader)
    return found if found is not None and found.place != open_post(study, leads=False).presence.place else None


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
