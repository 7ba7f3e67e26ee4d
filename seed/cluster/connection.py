"""Ray started here or joined, and its evaluators placed: one for each GPU, or as many as asked for on CPUs."""

import contextlib
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from seed import interrupts
from seed.cluster.actor import make_actor
from seed.cluster.ray_executor import FULL, START_SECONDS, RayExecutor, kill_actors
from seed.config import StudyConfig
from seed.errors import ResourceError, first_line

CONNECT_SECONDS = 10.0  # for a cluster to answer


@contextlib.contextmanager
def open_ray(settings: StudyConfig, *, device: str | None = None) -> Iterator[RayExecutor]:
    """Start Ray on this machine, or join a cluster, and yield its evaluators. ``device``: see ``place_actors``.

    Raises:
        ResourceError: no cluster answers, or it has no room.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else others slow them down, and what is timed there
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with contextlib.ExitStack() as opened:
        try:
            if not ray.is_initialized():
                opened.callback(ray.shutdown)
                with keep_handlers():
                    join(settings)
            executor = place_actors(settings, device=device)
            opened.callback(executor.stop)
            yield executor
            executor.clean()
        except KeyboardInterrupt as stop:  # while Ray waits, it raises one without a signal's number
            raise interrupts.restore(stop) from None
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.RayTaskError):  # ours, not Ray's
                raise
            raise refuse_error(error) from error


def refuse_error(error: ray.exceptions.RayError) -> ResourceError:
    """Ray cannot go on."""
    cure = (
        "Give nodes more room: ray start --object-store-memory BYTES, and free disk for /tmp/ray; or choose a smaller model"
        if isinstance(error, FULL)
        else "See that the cluster runs (ray status)"
    )
    return ResourceError(
        f"Ray fails ({first_line(error)}). What was finished is kept. {cure}, and run the same command again."
    )


@contextlib.contextmanager
def keep_handlers() -> Iterator[None]:
    """Answer signals as before when the block ends: Ray puts its own answer to SIGTERM, an exit, in place of ours."""
    handlers = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    try:
        yield
    except SystemExit:
        raise interrupts.Stopped(signal.SIGTERM) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if signal.getsignal(number) is not signal.SIG_DFL:  # else one was heard, and the next ends the process
                    signal.signal(number, handler)


def join(settings: StudyConfig) -> None:
    """Start Ray here, with as many CPUs as evaluators where there are no GPUs; or join the cluster that is named."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    if settings.ray is not None:
        require_listener(settings.ray)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if settings.ray is not None:
                ray.init(address=settings.ray, **quiet)
            else:
                count = max(settings.workers or 1, os.cpu_count() or 1)
                ray.init(address="local", num_cpus=count, include_dashboard=False, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            if settings.ray is None:
                raise ResourceError(f"--workers: Ray does not start here ({first_line(error)}).") from error
            raise refuse_cluster(settings.ray, first_line(error)) from error


def require_listener(address: str) -> None:
    """Raise ResourceError where nothing listens, for which Ray waits for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit() or int(port) > 65535:
        raise ResourceError(
            f"--ray {address}: no address of a cluster's head. Give HOST:PORT, such as 10.0.0.1:6379, or auto, on a machine of the cluster."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise refuse_cluster(address, first_line(error)) from error


def refuse_cluster(address: str, why: str) -> ResourceError:
    """No cluster can be joined."""
    return ResourceError(
        f"--ray {address}: no cluster answers there, or this machine is none of its nodes ({why}). Start one with ray start --head, "
        "join it with ray start --address HOST:PORT, set RAY_AUTH_MODE=token if it asks for one (docs/cluster.md), or leave --ray out."
    )


def place_actors(settings: StudyConfig, *, device: str | None = None) -> RayExecutor:
    """One actor for each GPU, or so many on CPUs; those whose device is not the first one's are let go.

    ``device``: the name of the one that counts instead, if it is among them.

    Raises:
        ResourceError: there is no room for so many.
    """
    actors = make_gpu_actors(settings) or make_cpu_actors(settings)
    try:
        asked = [one.describe.remote() for one in actors]
        _, late = ray.wait(asked, num_returns=len(actors), timeout=START_SECONDS)
        if late:
            raise ResourceError(
                f"{len(late)} of {len(actors)} evaluators found no place in {START_SECONDS:.0f} s. Give fewer --workers, or add nodes to "
                "the cluster."
            )
        described = ray.get(asked)
    except ray.exceptions.RayError as error:
        kill_actors(actors)
        raise ResourceError(
            f"evaluators cannot be started ({str(error).strip().splitlines()[-1]}). Install the same version of Seed on every node."
        ) from error
    except BaseException:
        kill_actors(actors)
        raise
    reference = next((found for found, _ in described if found.name == device), described[0][0])
    alike = {actor: node for actor, (found, node) in zip(actors, described, strict=True) if found == reference}
    kill_actors([actor for actor in actors if actor not in alike])
    return RayExecutor(list(alike), reference, nodes=list(alike.values()))


def make_gpu_actors(settings: StudyConfig) -> list[Any]:
    """One actor for each GPU, or for as many as asked for; none where there are none, or they are not wanted.

    Raises:
        ResourceError: there are fewer than asked for.
    """
    num_gpus = int(ray.cluster_resources().get("GPU", 0)) if settings.device != "cpu" else 0  # type: ignore[no-untyped-call]
    if settings.device not in (None, "cpu") and not num_gpus:
        raise ResourceError(f"--device {settings.device}: Ray has no GPU. Leave it out, or add nodes with GPUs.")
    if num_gpus and (settings.workers or 1) > num_gpus:
        raise ResourceError(f"--workers {settings.workers}: Ray has {num_gpus} GPUs. Give as many or fewer.")
    actor = make_actor(num_cpus=0, num_gpus=1)
    return [actor.remote(None, "cuda") for _ in range(min(settings.workers or num_gpus, num_gpus))]


def make_cpu_actors(settings: StudyConfig) -> list[Any]:
    """As many actors as asked for, or one on each node, spread over nodes.

    All of them compute with as many threads, and so alike; one that works alone, with all that its node lends.

    Raises:
        ResourceError: no node has a CPU.
    """
    num_cpus = {
        node["NodeID"]: node["Resources"]["CPU"]
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"] and node["Resources"].get("CPU", 0) > 0
    }
    if not num_cpus:
        raise ResourceError("no node of the cluster has a CPU for evaluators. Add nodes to it.")
    home = ray.get_runtime_context().get_node_id()
    nodes = sorted(num_cpus, key=lambda node: (node != home, node))  # the first is the reference
    counts = dict.fromkeys(nodes, 0)
    for _ in range(settings.workers or len(nodes)):
        roomiest = max(nodes, key=lambda node: num_cpus[node] / (counts[node] + 1))
        counts[roomiest] += 1
    share = min(num_cpus[node] / count for node, count in counts.items() if count)
    most = {node: max(1, int(count)) for node, count in num_cpus.items()}
    most[home] = min(most.get(home, 1), torch.get_num_threads())  # which without Ray would do it all
    threads = max(1, min(most[node] // count for node, count in counts.items() if count))
    actor = make_actor(num_cpus=int(share) if share >= 1 else share, num_gpus=0)
    return [
        actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote(
            threads, "cpu", most[node]
        )
        for node, count in counts.items()
        for _ in range(count)
    ]
