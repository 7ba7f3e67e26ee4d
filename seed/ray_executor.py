"""Evaluators as Ray actors: one for each GPU, or as many as asked for on CPUs; of this machine or of a cluster.

What all need lies in Ray's object store: the opened study, and the dense model's states. Ray starts actors that died again;
what they were at is handed to whoever is free, since a node that is gone may never come back. Nothing counts twice: an
evaluator's answer is kept by the coordinator, or it is lost.
"""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from transformers.dynamic_module_utils import init_hf_modules

from seed import interrupts
from seed.config import StudyConfig
from seed.errors import ModelError, ResourceError, first_line
from seed.evaluator import Evaluator
from seed.executor import Rows, cut_stretches
from seed.folder import StudyFolder
from seed.models.companions import read_companions
from seed.optimize.screening import Screen
from seed.records import Candidate, Latency, Quality, Scored, SweepRow, hash_text
from seed.scoring.targets import StoredStates
from seed.stages import finals, workbench
from seed.stages.finals import Budget, Made, Tell
from seed.stages.planning import quiet_libraries
from seed.stages.protocols import Reference, describe_reference
from seed.stages.schooling import Member
from seed.stages.workbench import Workbench

MOST_RESTARTS = 4  # of each actor
MOST_DEATHS = 3  # of evaluators at one piece of work
START_SECONDS = 600.0  # for an actor to get its resources
CONNECT_SECONDS = 10.0  # for a cluster to answer
HEAR_SECONDS = 0.2  # between looks at what evaluators say
WAIT_SECONDS = 60.0  # for the reference to be started again, before another takes its place
ASK_SECONDS = 1.0  # between questions to an actor that is being started again
LATE_SECONDS = 10.0  # for news, which are not worth waiting for
STRETCH_SECONDS = 5.0  # of scoring before what is found is handed over: no more than this is lost with an evaluator
AT_ONCE = 2  # pieces of work handed to an evaluator: the next one waits there while it does the first
FULL = (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)  # what evaluators must have has no room


def make_actor(*, num_cpus: float, num_gpus: float) -> Any:
    """The actor class with its resources and what Ray does when one dies."""
    return ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=MOST_RESTARTS, max_task_retries=0)(Actor)


class News:
    """Holds what evaluators say until the coordinator, on the same node, listens."""

    def __init__(self) -> None:
        self.said: list[tuple[int, float | None, str]] = []

    def put(self, turn: int, amount: float | None, note: str) -> None:
        """``amount``: of the work of this turn of the coordinator's; None: the note is a line for people."""
        self.said.append((turn, amount, note))

    def take(self) -> list[tuple[int, float | None, str]]:
        """All that was said since."""
        said, self.said = self.said, []
        return said


class Actor:
    """One evaluator in a process of Ray's.

    Args:
        num_threads: of the CPU, its share while others work too; None: as torch chooses.
        device: of this process.
        most_threads: while it works alone; None: as many.
    """

    def __init__(self, num_threads: int | None, device: str, most_threads: int | None = None) -> None:
        self.num_threads = num_threads or torch.get_num_threads()
        self.most_threads = most_threads or self.num_threads
        quiet_libraries()
        init_hf_modules()  # where models that bring their own code look for it
        self.device = torch.device(device)
        self.evaluator: Evaluator | None = None
        self.scratch: Path | None = None  # where the study's own is not to be seen
        self.states: Any = None  # the object that was taken
        self.said: Any = None  # the last of our news

    def describe(self) -> tuple[Reference, str]:
        """The device, and the node."""
        return describe_reference(self.device), ray.get_runtime_context().get_node_id()

    def run(
        self, session: list[Any], method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, alone: bool = False
    ) -> Any:
        """Do one piece of work; what comes one by one is returned as a list.

        Args:
            session: see ``_open``.
            method: of ``Evaluator``.
            args: its arguments.
            kwargs: and these.
            alone: the others have nothing to do, so that all cores are free.
        """
        with self._working(session, num_threads=self.most_threads if alone else self.num_threads) as evaluator:
            found = getattr(evaluator, method)(*args, **kwargs)
            return list(found) if isinstance(found, Iterator) else found

    def run_some(
        self, session: list[Any], method: str, candidates: Sequence[Candidate], kwargs: dict[str, Any]
    ) -> list[Any]:
        """Do what yields something for each candidate, with as many of the first as there is time for."""
        with self._working(session, num_threads=self.num_threads) as evaluator:
            found, until = [], time.monotonic() + STRETCH_SECONDS
            for one in getattr(evaluator, method)(candidates, **kwargs):
                found.append(one)
                if time.monotonic() >= until:
                    break
            return found

    def distill(
        self, session: list[Any], members: Sequence[Member], budget: Budget, rng_seed: int, rows: Rows
    ) -> list[Made]:
        """Distill a group; checkpoints that lie where the coordinator cannot see them are returned file by file."""
        made: list[Made] = self.run(session, "distill", (members, budget), {"rng_seed": rng_seed, "rows": rows})
        if self.scratch is None:
            return made
        found = [
            replace(one, checkpoint=finals.read_files(one.checkpoint)) if isinstance(one.checkpoint, Path) else one
            for one in made
        ]
        for one in made:
            if isinstance(one.checkpoint, Path):
                shutil.rmtree(one.checkpoint, ignore_errors=True)
        return found

    def share_states(self, session: list[Any], steps: int, rng_seeds: Sequence[int]) -> np.ndarray | None:
        """Compute the dense model's states, and return the bytes of them; None: they are not stored."""
        self.run(session, "store_states", (), {"steps": steps, "rng_seeds": rng_seeds}, alone=True)
        assert self.evaluator is not None
        recall = self.evaluator.instruments.recall
        return recall.stored.view(torch.uint8).numpy() if isinstance(recall, StoredStates) else None

    def clean(self) -> None:
        """Remove what no study's folder holds."""
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _open(
        self, opened: Any, home: str, root: Path, scratch: str, news: Any, turn: int, trusts: bool, states: list[Any]
    ) -> Evaluator:
        """The evaluator, made anew where this process has none yet.

        Args:
            opened: the opened study, in the object store.
            home: the coordinator's node; on it, its scratch folder is ours too.
            root: the study's folder there.
            scratch: the name of a folder for the same on every other node.
            news: where to say what is done.
            turn: the coordinator's, to which it belongs.
            trusts: is closed form to be trusted?
            states: the dense model's states in the object store with how they were made, once there are some.
        """
        if self.evaluator is None:
            bench, beside = _get_opened(opened)
            if ray.get_runtime_context().get_node_id() != home:
                self.scratch = make_scratch(scratch)
                root = self.scratch / root.name
                original = self.scratch / f".original-{os.getpid()}"  # others of this node have theirs
                finals.write_files(beside, original)
                bench = replace(bench, teacher=replace(bench.teacher, directory=original))
            bench = workbench.move(bench, self.device, study=StudyFolder(root))
            self.evaluator = Evaluator(bench)

        def put(amount: float | None, note: str) -> None:
            self.said = news.put.remote(turn, amount, note)  # nobody waits, so that no work is lost with news

        self.evaluator.tell, self.evaluator.say = put, lambda line: put(None, line)
        if not trusts and self.evaluator.bench.gains is not None:
            self.evaluator.distrust_closed_form()
        self._take_states(states)
        return self.evaluator

    def _take_states(self, states: list[Any]) -> None:
        """Take the states that count now, or forget those of earlier distillations where none are stored."""
        assert self.evaluator is not None
        stored = states[0] if states else None
        if stored == self.states:
            return
        if stored is None:
            self.evaluator.forget_states()
        else:
            self.evaluator.take_states(ray.get(stored), steps=states[1], rng_seeds=states[2])
        self.states = stored

    @contextlib.contextmanager
    def _working(self, session: list[Any], *, num_threads: int) -> Iterator[Evaluator]:
        """Yield the evaluator, on so many threads; its news arrive before the answer does. ``session``: see ``_open``."""
        torch.set_num_threads(num_threads)
        evaluator = self._open(*session)
        try:
            yield evaluator
        finally:
            if self.said is not None:
                ray.wait([self.said], timeout=LATE_SECONDS)
                self.said = None


def make_scratch(name: str) -> Path:
    """A folder of ours alone, which an evaluator that is started again finds again.

    Raises:
        ResourceError: it is another user's.
    """
    path = Path(tempfile.gettempdir()) / name
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise ResourceError(
            f"{path} on node {socket.gethostname()}: is another user's. Remove it, or set TMPDIR there to a folder of your own."
        )
    return path


def _get_opened(opened: Any) -> tuple[Workbench, dict[str, bytes]]:
    """The opened study and what stands beside the original's weights, out of the object store.

    Raises:
        ModelError: what it needs is not on this node.
    """
    try:
        found: tuple[Workbench, dict[str, bytes]] = ray.get(opened)
    except (ray.exceptions.RaySystemError, ImportError, AttributeError) as error:
        raise ModelError(
            f"the opened model cannot be read on node {socket.gethostname()} ({first_line(error)}). Install the same versions of "
            "Seed and its dependencies on every node; a model that brings its own code needs one HF_HOME that all nodes share."
        ) from error
    return found


@dataclass(eq=False)
class Worker:
    """An actor as the coordinator sees it."""

    actor: Any
    is_there: bool = True  # it answers, as far as is known
    gone_since: float = 0.0  # where it does not
    question: Any = None  # asked of one that did not
    ask_at: float = 0.0  # when to ask next


class RayExecutor:
    """Hands work to actors, and hears what they say meanwhile."""

    def __init__(self, actors: Sequence[Any], reference: Reference, *, most_on_one_node: int = 1) -> None:
        self.workers, self.reference = [Worker(actor) for actor in actors], reference
        self.num_evaluators, self.most_on_one_node = len(self.workers), most_on_one_node
        self.home = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(self.home, soft=False)
        self.news: Any = ray.remote(num_cpus=0, max_restarts=-1)(News).options(scheduling_strategy=here).remote()
        self.turn = 0  # of handing work out
        self.trusts, self.states = True, list[Any]()
        self.say: Callable[[str], None] = lambda line: None

    def start(self, bench: Workbench, *, say: Callable[[str], None] = lambda line: None) -> None:
        beside = read_companions(bench.teacher.directory)  # an export needs them, wherever it is written
        self.opened, self.root, self.say = ray.put((bench, beside)), bench.folder.root.absolute(), say
        self.scratch = f"seed-{hash_text(f'{socket.gethostname()}:{self.root}')[:16]}"

    def clean(self) -> None:
        """Have evaluators remove what lies on their nodes; not done after a failure, so that training goes on from there."""
        if cleaned := [worker.actor.clean.remote() for worker in self.workers if worker.is_there]:
            ray.wait(cleaned, num_returns=len(cleaned), timeout=LATE_SECONDS)

    def stop(self) -> None:
        """Let go of all actors."""
        kill_actors([*(worker.actor for worker in self.workers), self.news])

    @property
    def session(self) -> list[Any]:
        """What an actor needs to open the study; a list, so that Ray hands on references instead of what they refer to."""
        return [self.opened, self.home, self.root, self.scratch, self.news, self.turn, self.trusts, self.states]

    def call(self, method: str, /, *args: Any, on_work: Tell | None = None, **kwargs: Any) -> Any:
        def submit(actor: Any, work: None) -> Any:
            return actor.run.remote(self.session, method, args, kwargs, alone=True)

        [found] = self._spread([None], submit, is_alone=True, on_work=on_work)
        return found

    def distrust_closed_form(self) -> None:
        self.trusts = False  # which an actor that is started again is told too

    def store_states(self, *, steps: int, rng_seeds: Sequence[int], on_work: Tell) -> None:
        def submit(actor: Any, work: None) -> Any:
            return actor.share_states.remote(self.session, steps, rng_seeds)

        [found] = self._spread([None], submit, is_alone=True, on_work=on_work)
        # put here, since what another node put is lost with it
        self.states = [] if found is None else [ray.put(found), steps, tuple(rng_seeds)]

    def score(
        self, candidates: Sequence[Candidate], *, rows: Rows, table: Mapping[str, Latency], screen: Screen | None = None
    ) -> Iterator[Scored]:
        known: dict[str, list[SweepRow]] = {}
        for row in rows:
            known.setdefault(row.key, []).append(row)

        def know(stretch: Sequence[Candidate]) -> dict[str, Any]:
            theirs = [row for candidate in stretch for row in known.get(candidate.key, ())]
            return {"rows": theirs, "table": dict(table), "screen": screen}

        yield from self._spread_stretches("score", candidates, know)

    def sweep_space(self, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Quality, list[SweepRow]]]:
        yield from self._spread_stretches("sweep_space", candidates, lambda stretch: {})

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
        count = int(self.call("count_together"))
        return max(1, count // self.most_on_one_node) if self.reference.type == "cpu" else count

    def _spread_stretches(
        self, method: str, candidates: Sequence[Candidate], know: Callable[[Sequence[Candidate]], dict[str, Any]]
    ) -> Iterator[Any]:
        """Hand out stretches, and what evaluators leave of them. ``know``: what else the method is told of a stretch."""

        def submit(actor: Any, stretch: Sequence[Candidate]) -> Any:
            return actor.run_some.remote(self.session, method, list(stretch), know(stretch))

        def leave(stretch: Sequence[Candidate], found: list[Any]) -> Sequence[Candidate]:
            return stretch[len(found) :]

        stretches = cut_stretches(candidates, num_evaluators=self.num_evaluators)
        for found in self._spread(stretches, submit, leave=leave):
            yield from found

    def _spread(
        self,
        works: Sequence[Any],
        submit: Callable[[Any, Any], Any],
        *,
        at_once: int = AT_ONCE,
        is_alone: bool = False,
        leave: Callable[[Any, Any], Any] | None = None,
        on_work: Tell | None = None,
        complain: Callable[[str], None] | None = None,
    ) -> Iterator[Any]:
        """Hand work out in order, the next to whoever is free, and yield what comes of it as it is finished.

        What is under way when the caller goes away is done for nobody. ``is_alone``: the reference does it. ``leave``: says
        what is left of a piece of work; whoever did the rest goes on with it, if nothing else waits there.

        Raises:
            SeedError: an evaluator's; or the same work killed several, or none is left.
        """
        works = list(works)
        left, deaths = deque(range(len(works))), [0] * len(works)
        running: dict[Any, tuple[Worker, int]] = {}  # answers that are owed, in the order of the work
        num_left, idle_since = len(works), time.monotonic()
        self.turn += 1
        while num_left:
            if is_alone:
                self._name_reference()
            self._hand_out(works, left, running, submit, at_once=at_once, is_alone=is_alone)
            idle_since = time.monotonic() if running else idle_since
            if time.monotonic() - idle_since > START_SECONDS:
                raise die(f"none was started again within {START_SECONDS:.0f} s")
            ready = self._wait(running)
            self._hear(on_work, complain or self.say)
            for done in ready:
                if done not in running:
                    continue  # its evaluator died meanwhile
                worker, number = running[done]
                try:
                    found = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, Exception) else error) from error
                except FULL:
                    raise
                except ray.exceptions.RayError as error:
                    lost = self._take_back(worker, running)
                    left.extendleft(reversed(lost))
                    deaths[lost[0]] += 1  # it does one after the other
                    if deaths[lost[0]] >= MOST_DEATHS:
                        raise die(first_line(error)) from error
                    continue
                del running[done]
                if leave is not None and (rest := leave(works[number], found)):
                    works[number], deaths[number], at_once = rest, 0, 1  # long work need not wait at an evaluator
                    if worker.is_there and not count_owed(worker, running):
                        running[submit(worker.actor, rest)] = worker, number
                    else:
                        left.appendleft(number)
                else:
                    num_left -= 1
                self._hand_out(works, left, running, submit, at_once=at_once, is_alone=is_alone)
                yield found

    def _hand_out(
        self,
        works: Sequence[Any],
        left: deque[int],
        running: dict[Any, tuple[Worker, int]],
        submit: Callable[[Any, Any], Any],
        *,
        at_once: int,
        is_alone: bool,
    ) -> None:
        """Hand out what is left; nobody gets a second piece while another has none."""
        for load in range(at_once):
            for worker in self.workers[: 1 if is_alone else None]:
                if left and worker.is_there and count_owed(worker, running) == load:
                    number = left.popleft()
                    running[submit(worker.actor, works[number])] = worker, number

    def _name_reference(self) -> None:
        """Let another take the reference's place when it has not come back for long: where its node is gone, none may be free."""
        first = self.workers[0]
        is_late = not first.is_there and time.monotonic() - first.gone_since > WAIT_SECONDS
        if is_late and any(worker.is_there for worker in self.workers):
            self.workers.sort(key=lambda worker: not worker.is_there)
            self.say("the first evaluator does not come back: what it alone did, the next does")

    def _wait(self, running: Mapping[Any, Any]) -> list[Any]:
        """Wait for an answer or for a moment, while actors that did not answer are asked whether they are there again."""
        for worker in self.workers:
            if not worker.is_there and worker.question is None and time.monotonic() >= worker.ask_at:
                worker.question = worker.actor.describe.remote()
        asked = {worker.question: worker for worker in self.workers if worker.question is not None}
        if not (running or asked):
            time.sleep(HEAR_SECONDS)
            return []
        ready, _ = ray.wait([*running, *asked], num_returns=1, timeout=HEAR_SECONDS, fetch_local=False)
        for question in ready:
            if question in asked:
                self._check(asked[question])
        return [done for done in ready if done in running]

    def _check(self, worker: Worker) -> None:
        """Learn whether an actor is there again, and on a device like the others'.

        Raises:
            ResourceError: it is gone for good, and it was the last.
        """
        question, worker.question = worker.question, None
        try:
            found, _ = ray.get(question)
        except ray.exceptions.ActorDiedError as error:
            self._let_go(worker, first_line(error))
        except ray.exceptions.RayError:
            worker.ask_at = time.monotonic() + ASK_SECONDS
        else:
            worker.is_there = found == self.reference
            if not worker.is_there:
                kill_actors([worker.actor])
                self._let_go(worker, f"it was started again on {found.name}, unlike the others")

    def _let_go(self, worker: Worker, why: str) -> None:
        """Do without an actor.

        Raises:
            ResourceError: it was the last.
        """
        self.workers.remove(worker)
        self.say(f"an evaluator is gone for good ({why}); {len(self.workers)} go on")
        if not self.workers:
            raise die(why)

    def _take_back(self, worker: Worker, running: dict[Any, tuple[Worker, int]]) -> list[int]:
        """Return the work of an actor that does not answer, in order.

        Those that have nothing to do are asked whether they are there before they get any: a node takes all of its actors along.
        """
        self.say(
            "an evaluator does not answer: what it was at is handed out again, and Ray starts another in its place"
        )
        for one in self.workers:
            if one is worker or not count_owed(one, running):
                one.gone_since = time.monotonic() if one.is_there else one.gone_since
                one.is_there, one.ask_at = False, 0.0
        lost = [owed for owed, (one, _) in running.items() if one is worker]
        return [running.pop(owed)[1] for owed in lost]

    def _hear(self, on_work: Tell | None, say: Callable[[str], None]) -> None:
        """Pass on what evaluators said; of earlier turns, lines only."""
        try:
            heard = ray.get(self.news.take.remote(), timeout=LATE_SECONDS)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return  # only news were lost
        for turn, amount, note in heard:
            if amount is None:
                say(note)
            elif on_work is not None and turn == self.turn:
                on_work(amount, note)


def count_owed(worker: Worker, running: Mapping[Any, tuple[Worker, int]]) -> int:
    """Pieces of work that an actor has."""
    return sum(one is worker for one, _ in running.values())


def die(why: str) -> ResourceError:
    """Evaluators cannot be had any more."""
    return ResourceError(
        f"evaluators die ({why}). What was finished is kept; run the same command again to go on, with a smaller model or fewer "
        "--workers if memory is short."
    )


def kill_actors(actors: Sequence[Any]) -> None:
    """End actors at once."""
    for actor in actors:
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(actor)


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
        if not ray.is_initialized():
            opened.callback(ray.shutdown)
            with keep_handlers():
                join(settings)
        executor = place_actors(settings, device=device)
        opened.callback(executor.stop)
        try:
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
    """Start Ray here, with as many CPUs as evaluators where there are no GPUs; or join the cluster that is named.

    Raises:
        ResourceError: it does not answer.
    """
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
    """Raise where nothing listens, for which Ray waits for minutes.

    Raises:
        ResourceError: so it is, or this is no address.
    """
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
    return RayExecutor(list(alike), reference, most_on_one_node=max(Counter(alike.values()).values()))


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
