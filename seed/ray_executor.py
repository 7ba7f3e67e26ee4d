"""Evaluators as Ray actors: one for each GPU, or as many as asked for on CPUs; of this machine or of a cluster.

What all need lies in Ray's object store: the opened study, and the dense model's states. Ray starts actors that died again;
what they were at is handed to whoever is free, since a node that is gone may never come back. Nothing counts twice: an
evaluator's answer is kept by the coordinator, or it is lost.
"""

import contextlib
import os
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from transformers.dynamic_module_utils import init_hf_modules

from seed.errors import ResourceError, SeedError
from seed.evaluator import Evaluator
from seed.executor import Rows, cut_stretches
from seed.folder import StudyFolder
from seed.optimize.screening import Screen
from seed.records import Candidate, Latency, Quality, Scored, SweepRow
from seed.scoring.targets import StoredStates
from seed.stages import finals, workbench
from seed.stages.finals import Budget, Made, Tell
from seed.stages.planning import quiet_libraries
from seed.stages.protocols import Reference, describe_reference
from seed.stages.schooling import Member
from seed.stages.settings import SearchSettings
from seed.stages.workbench import Workbench

MOST_RESTARTS = 4  # of each actor
MOST_DEATHS = 3  # of evaluators at one piece of work
START_SECONDS = 600.0  # for an actor to get its resources
HEAR_SECONDS = 0.2  # between looks at what evaluators say
AT_ONCE = 2  # pieces of work handed to an evaluator: the next one waits there while it does the first


def make_actor(*, num_cpus: float, num_gpus: float) -> Any:
    """The actor class with its resources and what Ray does when one dies."""
    return ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=MOST_RESTARTS, max_task_retries=0)(Actor)


class Actor:
    """One evaluator in a process of Ray's.

    Args:
        num_threads: of the CPU; None: as torch chooses.
        device: of this process.
    """

    def __init__(self, num_threads: int | None, device: str) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        quiet_libraries()
        init_hf_modules()  # where models that bring their own code look for it
        self.device = torch.device(device)
        self.evaluator: Evaluator | None = None
        self.scratch: tempfile.TemporaryDirectory[str] | None = None
        self.states: Any = None

    def describe(self) -> tuple[Reference, str]:
        """The device, and the node."""
        return describe_reference(self.device), ray.get_runtime_context().get_node_id()

    def run(self, session: list[Any], method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do one piece of work; what comes one by one is returned as a list. ``session``: see ``_open``."""
        evaluator = self._open(*session)
        found = getattr(evaluator, method)(*args, **kwargs)
        if isinstance(found, Iterator):
            return list(found)
        return found

    def distill(
        self, session: list[Any], members: Sequence[Member], budget: Budget, rng_seed: int, rows: Rows
    ) -> list[Made]:
        """Distill a group; checkpoints that lie where the coordinator cannot see them are returned file by file."""
        made = self._open(*session).distill(members, budget, rng_seed=rng_seed, rows=rows)
        if self.scratch is None:
            return made
        return [
            replace(one, checkpoint=finals.read_files(one.checkpoint)) if isinstance(one.checkpoint, Path) else one
            for one in made
        ]

    def share_states(self, session: list[Any], steps: int, rng_seeds: Sequence[int]) -> np.ndarray | None:
        """Compute the dense model's states, and return the bytes of them; None: they are not stored."""
        evaluator = self._open(*session)
        evaluator.store_states(steps=steps, rng_seeds=rng_seeds)
        recall = evaluator.instruments.recall
        return recall.stored.view(torch.uint8).numpy() if isinstance(recall, StoredStates) else None

    def _open(self, opened: Any, home: str, root: Path, news: Queue, trusts: bool, states: list[Any]) -> Evaluator:
        """The evaluator, made anew where this process has none yet.

        Args:
            opened: the opened study, in the object store.
            home: the coordinator's node; on it, its scratch folder is ours too.
            root: the study's folder there.
            news: where to say what is done.
            trusts: is closed form to be trusted?
            states: the dense model's states in the object store with how they were made, once there are some.
        """
        if self.evaluator is None:
            if ray.get_runtime_context().get_node_id() != home:
                self.scratch = tempfile.TemporaryDirectory(prefix="seed-")
                root = Path(self.scratch.name) / root.name
            bench = workbench.move(ray.get(opened), self.device, study=StudyFolder(root))
            self.evaluator = Evaluator(bench)
            self.evaluator.tell = lambda amount, note: news.put((amount, note))
            self.evaluator.say = lambda line: news.put((None, line))
        if not trusts and self.evaluator.bench.gains is not None:
            self.evaluator.distrust_closed_form()
        if states and self.states != states[0]:
            self.states, stored = states[0], ray.get(states[0])
            self.evaluator.take_states(stored, steps=states[1], rng_seeds=states[2])
        return self.evaluator


class RayExecutor:
    """Hands work to actors, and hears what they say meanwhile."""

    def __init__(self, actors: Sequence[Any], reference: Reference) -> None:
        self.actors, self.reference = list(actors), reference
        self.num_evaluators = len(self.actors)
        self.home = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(self.home, soft=False)
        self.news = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self.trusts, self.states = True, list[Any]()
        self.say: Callable[[str], None] = lambda line: None

    def start(self, bench: Workbench, *, say: Callable[[str], None] = lambda line: None) -> None:
        self.opened, self.root, self.say = ray.put(bench), bench.folder.root.absolute(), say

    @property
    def session(self) -> list[Any]:
        """What an actor needs to open the study; a list, so that Ray hands on references instead of what they refer to."""
        return [self.opened, self.home, self.root, self.news, self.trusts, self.states]

    def call(self, method: str, /, *args: Any, on_work: Tell | None = None, **kwargs: Any) -> Any:
        def submit(actor: Any, work: None) -> Any:
            return actor.run.remote(self.session, method, args, kwargs)

        [found] = self._spread([None], submit, on_work=on_work)
        return found

    def tell_all(self, method: str, /, **kwargs: Any) -> None:
        assert method == "distrust_closed_form", "all else an actor that is started again would not know"
        self.trusts = False

    def store_states(self, *, steps: int, rng_seeds: Sequence[int], on_work: Tell) -> None:
        def submit(actor: Any, work: None) -> Any:
            return actor.share_states.remote(self.session, steps, rng_seeds)

        [found] = self._spread([None], submit, on_work=on_work)
        # put here, since what another node put is lost with it
        self.states = [] if found is None else [ray.put(found), steps, tuple(rng_seeds)]

    def score(
        self, candidates: Sequence[Candidate], *, rows: Rows, table: Mapping[str, Latency], screen: Screen | None = None
    ) -> Iterator[Scored]:
        known: dict[str, list[SweepRow]] = {}
        for row in rows:
            known.setdefault(row.key, []).append(row)

        def submit(actor: Any, stretch: Sequence[Candidate]) -> Any:
            theirs = [row for candidate in stretch for row in known.get(candidate.key, ())]
            kwargs = {"rows": theirs, "table": dict(table), "screen": screen}
            return actor.run.remote(self.session, "score", (list(stretch),), kwargs)

        for found in self._spread(cut_stretches(candidates, num_evaluators=self.num_evaluators), submit):
            yield from found

    def sweep_space(self, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Quality, list[SweepRow]]]:
        def submit(actor: Any, stretch: Sequence[Candidate]) -> Any:
            return actor.run.remote(self.session, "sweep_space", (list(stretch),), {})

        for found in self._spread(cut_stretches(candidates, num_evaluators=self.num_evaluators), submit):
            yield from found

    def measure_unrecovered(self, candidates: Sequence[Candidate]) -> tuple[list[Quality], list[SweepRow]]:
        found: tuple[list[Quality], list[SweepRow]] = self.call("measure_unrecovered", list(candidates))
        return found

    def distill(
        self,
        works: Sequence[tuple[Sequence[Member], int]],
        budget: Budget,
        *,
        rows: Rows,
        on_work: Tell,
        complain: Callable[[str], None],
    ) -> Iterator[list[Made]]:
        def submit(actor: Any, work: tuple[Sequence[Member], int]) -> Any:
            members, rng_seed = work
            return actor.distill.remote(self.session, members, budget, rng_seed, rows)

        yield from self._spread(works, submit, at_once=1, on_work=on_work, complain=complain)

    def count_together(self) -> int:
        return int(self.call("count_together"))

    def _spread(
        self,
        works: Sequence[Any],
        submit: Callable[[Any, Any], Any],
        *,
        at_once: int = AT_ONCE,
        on_work: Tell | None = None,
        complain: Callable[[str], None] | None = None,
    ) -> Iterator[Any]:
        """Hand work out in order, the next to whoever is free, and yield what comes of it as it is finished."""
        left, deaths = deque(enumerate(works)), [0] * len(works)
        running: dict[Any, tuple[Any, int | None]] = {}  # who is at which work; None: is being started again
        num_left = len(works)

        def hand_out(actor: Any) -> None:
            if left:
                number, work = left.popleft()
                running[submit(actor, work)] = actor, number

        for _ in range(at_once):
            for actor in self.actors:
                hand_out(actor)
        while num_left:
            ready, _ = ray.wait(list(running), num_returns=1, timeout=HEAR_SECONDS, fetch_local=False)
            self._hear(on_work, complain or self.say)
            for done in ready:
                actor, number = running.pop(done)
                try:
                    found = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, SeedError) else error) from None
                except ray.exceptions.RayError as error:
                    if number is not None:
                        deaths[number] += 1
                        left.appendleft((number, works[number]))
                    self._mourn(actor, running, error, is_hopeless=number is not None and deaths[number] >= MOST_DEATHS)
                    continue
                if number is not None:
                    num_left -= 1
                hand_out(actor)
                if number is not None:
                    yield found

    def _mourn(self, actor: Any, running: dict[Any, Any], error: Exception, *, is_hopeless: bool) -> None:
        """Wait for an actor that died to be started again by Ray, while the others go on; or let it go for good.

        Raises:
            ResourceError: the same work killed several, or none is left.
        """
        why = str(error).splitlines()[0]
        is_gone = isinstance(error, ray.exceptions.ActorDiedError)
        if is_gone and actor in self.actors:
            self.actors.remove(actor)
            self.say(f"an evaluator is gone for good ({why}); {len(self.actors)} go on")
        elif not any(number is None and one is actor for one, number in running.values()):
            running[actor.describe.remote()] = actor, None
        if is_hopeless or not self.actors:
            raise ResourceError(
                f"evaluators die ({why}). What was finished is kept; run the same command again to go on, with a smaller model or fewer "
                "--workers if memory is short."
            ) from error

    def _hear(self, on_work: Tell | None, say: Callable[[str], None]) -> None:
        with contextlib.suppress(Empty):
            while True:
                amount, note = self.news.get_nowait()
                if amount is None:
                    say(note)
                elif on_work is not None:
                    on_work(amount, note)


@contextlib.contextmanager
def open_ray(settings: SearchSettings) -> Iterator[RayExecutor]:
    """Start Ray on this machine, or join a cluster, and yield its evaluators.

    Raises:
        ResourceError: no cluster answers, or it has no room.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    is_ours = not ray.is_initialized()
    if is_ours:
        join(settings)
    try:
        yield place_actors(settings)
    finally:
        if is_ours:
            ray.shutdown()


def join(settings: SearchSettings) -> None:
    """Start Ray here, with as many CPUs as evaluators where there are no GPUs; or join the cluster that is named.

    Raises:
        ResourceError: it does not answer.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if settings.ray is not None:
                ray.init(address=settings.ray, **quiet)
            else:
                count = max(settings.workers or 1, os.cpu_count() or 1)
                ray.init(address="local", num_cpus=count, include_dashboard=False, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ResourceError(
                f"--ray {settings.ray}: no cluster answers there ({str(error).splitlines()[0]}). Start one with ray start --head, set "
                "RAY_AUTH_MODE=token if it asks for one (docs/cluster.md), or leave --ray out."
            ) from error


def place_actors(settings: SearchSettings) -> RayExecutor:
    """One actor for each GPU, or so many on CPUs; those whose device is not the first one's are let go.

    Raises:
        ResourceError: there is no room for so many.
    """
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_gpus = int(resources.get("GPU", 0)) if settings.device != "cpu" else 0
    if num_gpus:
        count, threads, device = min(settings.workers or num_gpus, num_gpus), None, "cuda"
        actor = make_actor(num_cpus=0, num_gpus=1)
    else:
        num_cpus, num_nodes = int(resources.get("CPU", 1)), count_nodes()
        count = settings.workers or num_nodes
        threads, device = max(1, num_cpus // count), "cpu"
        actor = make_actor(num_cpus=max(1, num_cpus // max(count, num_nodes)) if settings.ray else 1, num_gpus=0)
    actors = [actor.remote(threads, device) for _ in range(count)]
    asked = [one.describe.remote() for one in actors]
    ready, late = ray.wait(asked, num_returns=count, timeout=START_SECONDS)
    if late:
        raise ResourceError(
            f"{len(late)} of {count} evaluators found no place in {START_SECONDS:.0f} s. Give fewer --workers, or add nodes to the cluster."
        )
    references = [found[0] for found in ray.get(ready)]
    places = dict(zip(asked, actors, strict=True))
    alike = [places[one] for one, reference in zip(ready, references, strict=True) if reference == references[0]]
    return RayExecutor(alike, references[0])


def count_nodes() -> int:
    """Machines of the cluster that are there."""
    return sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
