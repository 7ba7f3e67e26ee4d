"""Work handed to Ray actors, and what they say meanwhile.

What all need lies in Ray's object store: the opened study, and the dense model's states. Ray starts actors that died again;
what they were at is handed to whoever is free, since a node that is gone may never come back. Nothing counts twice: an
evaluator's answer is kept by the coordinator, or it is lost.
"""

import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from seed.cluster.actor import LATE_SECONDS, ProgressQueue
from seed.errors import ResourceError, first_line
from seed.executor import Rows, cut_chunks
from seed.models.files import read_companions
from seed.optimize.screening import Screen
from seed.protocols import Reference
from seed.records import Candidate, Latency, Quality, Scored, ScoreRow, hash_text
from seed.sessions import Session
from seed.stages.finals import Budget, DistilledStudent, ProgressCallback
from seed.stages.students import Member

MAX_TASK_FAILURES = 3  # of evaluators at one piece of work
START_SECONDS = 600.0  # for an actor to get its resources
HEAR_SECONDS = 0.2  # between looks at what evaluators say
WAIT_SECONDS = 60.0  # for the reference to be started again, before another takes its place
ASK_SECONDS = 1.0  # between questions to an actor that is being started again
AT_ONCE = 2  # pieces of work handed to an evaluator: the next one waits there while it does the first
FULL = (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)  # what evaluators must have has no room


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
        self.news: Any = (
            ray.remote(num_cpus=0, max_restarts=-1)(ProgressQueue).options(scheduling_strategy=here).remote()
        )
        self.turn = 0  # of handing work out
        self.trusts, self.states = True, list[Any]()
        self.say: Callable[[str], None] = lambda line: None

    def start(self, session: Session, *, say: Callable[[str], None] = lambda line: None) -> None:
        beside = read_companions(session.teacher.directory)  # an export needs them, wherever it is written
        self.opened, self.root, self.say = ray.put((session, beside)), session.folder.root.absolute(), say
        self.scratch = f"seed-{hash_text(f'{socket.gethostname()}:{self.root}')[:16]}"

    def clean(self) -> None:
        """Have evaluators remove what lies on their nodes; not done after a failure, so that training goes on from there."""
        if cleaned := [worker.actor.clean.remote() for worker in self.workers if worker.is_there]:
            ray.wait(cleaned, num_returns=len(cleaned), timeout=LATE_SECONDS)

    def stop(self) -> None:
        """Let go of all actors."""
        kill_actors([*(worker.actor for worker in self.workers), self.news])

    @property
    def handle(self) -> list[Any]:
        """What an actor needs to open the study; a list, so that Ray hands on references instead of what they refer to."""
        return [self.opened, self.home, self.root, self.scratch, self.news, self.turn, self.trusts, self.states]

    def call(self, method: str, /, *args: Any, on_progress: ProgressCallback | None = None, **kwargs: Any) -> Any:
        def submit(actor: Any, work: None) -> Any:
            return actor.run.remote(self.handle, method, args, kwargs, alone=True)

        [found] = self._dispatch([None], submit, is_alone=True, on_progress=on_progress)
        return found

    def distrust_closed_form(self) -> None:
        self.trusts = False  # which an actor that is started again is told too

    def store_states(self, *, steps: int, rng_seeds: Sequence[int], on_progress: ProgressCallback) -> None:
        def submit(actor: Any, work: None) -> Any:
            return actor.share_states.remote(self.handle, steps, rng_seeds)

        [found] = self._dispatch([None], submit, is_alone=True, on_progress=on_progress)
        # put here, since what another node put is lost with it
        self.states = [] if found is None else [ray.put(found), steps, tuple(rng_seeds)]

    def score(
        self, candidates: Sequence[Candidate], *, rows: Rows, table: Mapping[str, Latency], screen: Screen | None = None
    ) -> Iterator[Scored]:
        known: dict[str, list[ScoreRow]] = {}
        for row in rows:
            known.setdefault(row.key, []).append(row)

        def know(chunk: Sequence[Candidate]) -> dict[str, Any]:
            theirs = [row for candidate in chunk for row in known.get(candidate.key, ())]
            return {"rows": theirs, "table": dict(table), "screen": screen}

        yield from self._dispatch_chunks("score", candidates, know)

    def sweep_space(self, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Quality, list[ScoreRow]]]:
        yield from self._dispatch_chunks("sweep_space", candidates, lambda chunk: {})

    def measure_unrecovered(self, candidates: Sequence[Candidate]) -> tuple[list[Quality], list[ScoreRow]]:
        found: tuple[list[Quality], list[ScoreRow]] = self.call("measure_unrecovered", list(candidates))
        return found

    def distill(
        self,
        works: Sequence[tuple[Sequence[Member], int]],
        budget: Budget,
        *,
        rows: Rows,
        on_progress: ProgressCallback,
        on_warning: Callable[[str], None],
    ) -> Iterator[list[DistilledStudent]]:
        def submit(actor: Any, work: tuple[Sequence[Member], int]) -> Any:
            members, rng_seed = work
            return actor.distill.remote(self.handle, members, budget, rng_seed, rows)

        yield from self._dispatch(works, submit, at_once=1, on_progress=on_progress, on_warning=on_warning)

    def count_parallel_students(self) -> int:
        count = int(self.call("count_parallel_students"))
        return max(1, count // self.most_on_one_node) if self.reference.type == "cpu" else count

    def _dispatch_chunks(
        self, method: str, candidates: Sequence[Candidate], know: Callable[[Sequence[Candidate]], dict[str, Any]]
    ) -> Iterator[Any]:
        """Hand out chunks, and what evaluators leave of them. ``know``: what else the method is told of a chunk."""

        def submit(actor: Any, chunk: Sequence[Candidate]) -> Any:
            return actor.run_some.remote(self.handle, method, list(chunk), know(chunk))

        def leave(chunk: Sequence[Candidate], found: list[Any]) -> Sequence[Candidate]:
            return chunk[len(found) :]

        chunks = cut_chunks(candidates, num_evaluators=self.num_evaluators)
        for found in self._dispatch(chunks, submit, leave=leave):
            yield from found

    def _dispatch(
        self,
        works: Sequence[Any],
        submit: Callable[[Any, Any], Any],
        *,
        at_once: int = AT_ONCE,
        is_alone: bool = False,
        leave: Callable[[Any, Any], Any] | None = None,
        on_progress: ProgressCallback | None = None,
        on_warning: Callable[[str], None] | None = None,
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
            self._submit_tasks(works, left, running, submit, at_once=at_once, is_alone=is_alone)
            idle_since = time.monotonic() if running else idle_since
            if time.monotonic() - idle_since > START_SECONDS:
                raise die(f"none was started again within {START_SECONDS:.0f} s")
            ready = self._wait(running)
            self._hear(on_progress, on_warning or self.say)
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
                    if deaths[lost[0]] >= MAX_TASK_FAILURES:
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
                self._submit_tasks(works, left, running, submit, at_once=at_once, is_alone=is_alone)
                yield found

    def _submit_tasks(
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

    def _hear(self, on_progress: ProgressCallback | None, say: Callable[[str], None]) -> None:
        """Pass on what evaluators said; of earlier turns, lines only."""
        try:
            heard = ray.get(self.news.take.remote(), timeout=LATE_SECONDS)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return  # only news were lost
        for turn, amount, note in heard:
            if amount is None:
                say(note)
            elif on_progress is not None and turn == self.turn:
                on_progress(amount, note)


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
