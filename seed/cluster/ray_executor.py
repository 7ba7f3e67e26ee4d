"""Work handed to Ray actors, and what they say meanwhile.

The opened study lies in Ray's object store. Ray starts actors that died again;
what they were at is handed to whoever is free, since a node that is gone may never come back. Nothing counts twice: an
evaluator's answer is kept by the coordinator, or it is lost.
"""

import contextlib
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from seed.cluster.actor import LATE_SECONDS, ProgressQueue
from seed.errors import ResourceError, first_line
from seed.executor import Executor, ProgressCallback, cut_chunks
from seed.models.files import read_companions
from seed.protocols import Reference
from seed.records import Candidate, hash_text
from seed.sessions import Session

MAX_TASK_FAILURES = 3  # of evaluators at one piece of work
START_SECONDS = 600.0  # for an actor to get its resources
HEAR_SECONDS = 0.2  # between looks at what evaluators say
WAIT_SECONDS = 60.0  # for the reference to be started again, before another takes its place
FULL = (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)  # what evaluators must have has no room


@dataclass(eq=False)
class Worker:
    """An actor as the coordinator sees it."""

    actor: Any
    node: str = ""  # where it is
    question: Any = None  # asked of one that did not answer, which does once Ray has started it again
    gone_since: float = 0.0  # when it was asked

    @property
    def is_there(self) -> bool:
        """Does it answer, as far as is known?"""
        return self.question is None

    def ask(self) -> None:
        """Ask whether it is there."""
        self.gone_since = time.monotonic() if self.is_there else self.gone_since
        self.question = self.actor.describe.remote()


class RayExecutor(Executor):
    """Hands work to actors, and hears what they say meanwhile."""

    def __init__(self, actors: Sequence[Any], reference: Reference, *, nodes: Sequence[str] = ()) -> None:
        self.workers, self.reference = list(map(Worker, actors, nodes or [""] * len(actors))), reference
        self.num_evaluators = len(self.workers)
        self.most_on_one_node = max(Counter(nodes).values(), default=1)
        self.home = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(self.home, soft=False)
        self.news: Any = (
            ray.remote(num_cpus=0, max_restarts=-1)(ProgressQueue).options(scheduling_strategy=here).remote()
        )
        self.turn = 0  # of handing work out
        self.trusts = True
        self.states: tuple[int, tuple[int, ...]] = (0, ())  # see ``Actor._open``
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

    def store_states(self, *, steps: int, rng_seeds: Sequence[int], on_progress: ProgressCallback) -> bool:
        is_stored = super().store_states(steps=steps, rng_seeds=rng_seeds, on_progress=on_progress)
        self.states = (steps, tuple(rng_seeds))  # each other evaluator finds them with its next work, or stores them
        others = {
            worker.node: worker for worker in self.workers if worker.is_there and worker.node != self.workers[0].node
        }
        asked = [one.actor.run.remote(self.handle, "count_parallel_students", (), {}) for one in others.values()]
        if asked:  # one of each node stores them for its neighbours
            ray.wait(asked, num_returns=len(asked))
        return is_stored

    def call_all(
        self,
        method: str,
        works: Sequence[tuple[Any, ...]],
        *,
        on_progress: ProgressCallback,
        on_warning: Callable[[str], None],
    ) -> Iterator[Any]:
        def submit(actor: Any, args: tuple[Any, ...]) -> Any:
            return actor.run.remote(self.handle, method, args, {})

        yield from self._dispatch(works, submit, on_progress=on_progress, on_warning=on_warning)

    def call_each(
        self, method: str, candidates: Sequence[Candidate], told: Callable[[Sequence[Candidate]], dict[str, Any]]
    ) -> Iterator[Any]:
        def submit(actor: Any, chunk: Sequence[Candidate]) -> Any:
            return actor.run_some.remote(self.handle, method, list(chunk), told(chunk))

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
        is_alone: bool = False,
        leave: Callable[[Any, Any], Any] | None = None,
        on_progress: ProgressCallback | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> Iterator[Any]:
        """Hand work out in order, the next to whoever is free, and yield what comes of it as it is finished.

        What is under way when the caller goes away is done for nobody. ``is_alone``: the reference does it. ``leave``: says
        what is left of a piece of work; whoever did the rest goes on with it.

        Raises:
            SeedError: an evaluator's; or the same work killed several, or none is left.
        """
        works = list(works)
        left, deaths = deque(range(len(works))), [0] * len(works)
        running: dict[Any, tuple[Worker, int]] = {}  # by the answer that is owed

        def hand_out() -> None:
            busy = [worker for worker, _ in running.values()]
            for worker in self.workers[: 1 if is_alone else None]:
                if left and worker.is_there and worker not in busy:
                    number = left.popleft()
                    running[submit(worker.actor, works[number])] = worker, number

        idle_since = time.monotonic()
        self.turn += 1
        while left or running:
            if is_alone:
                self._name_reference()
            hand_out()
            idle_since = time.monotonic() if running else idle_since
            if time.monotonic() - idle_since > START_SECONDS:
                raise die(f"none was started again within {START_SECONDS:.0f} s")
            ready = self._wait(running)
            self._hear(on_progress, on_warning or self.say)
            for done in ready:
                worker, number = running.pop(done)
                try:
                    found = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, Exception) else error) from error
                except FULL:
                    raise
                except ray.exceptions.RayError as error:
                    left.appendleft(number)
                    deaths[number] += 1
                    self._ask(busy=[one for one, _ in running.values()])
                    if deaths[number] >= MAX_TASK_FAILURES:
                        raise die(first_line(error)) from error
                    continue
                if leave is not None and (rest := leave(works[number], found)):
                    works[number], deaths[number] = rest, 0
                    running[submit(worker.actor, rest)] = worker, number
                hand_out()
                yield found

    def _name_reference(self) -> None:
        """Let another take the reference's place when it has not come back for long: where its node is gone, none may be free."""
        first = self.workers[0]
        is_late = not first.is_there and time.monotonic() - first.gone_since > WAIT_SECONDS
        if is_late and any(worker.is_there for worker in self.workers):
            self.workers.sort(key=lambda worker: not worker.is_there)
            self.say("the first evaluator does not come back: what it alone did, the next does")

    def _wait(self, running: Mapping[Any, Any]) -> list[Any]:
        """Wait for an answer to work or to a question, or for a moment."""
        asked = {worker.question: worker for worker in self.workers if not worker.is_there}
        ready, _ = ray.wait([*running, *asked], num_returns=1, timeout=HEAR_SECONDS, fetch_local=False)
        for question in ready:
            if question in asked:
                self._check(asked[question])
        return [done for done in ready if done in running]

    def _check(self, worker: Worker) -> None:
        """Learn whether an actor is there again, and on a device like the others'."""
        try:
            found, worker.node = ray.get(worker.question)
        except (ray.exceptions.ActorDiedError, ray.exceptions.RayTaskError) as error:  # gone, or of no use any more
            self._let_go(worker, first_line(error))
        except ray.exceptions.RayError:
            worker.ask()
        else:
            worker.question = None
            if found != self.reference:
                kill_actors([worker.actor])
                self._let_go(worker, f"it was started again on {found.name}, unlike the others")

    def _let_go(self, worker: Worker, why: str) -> None:
        """Do without an actor."""
        self.workers.remove(worker)
        self.say(f"an evaluator is gone for good ({why}); {len(self.workers)} go on")
        if not self.workers:
            raise die(why)

    def _ask(self, *, busy: Sequence[Worker]) -> None:
        """Ask actors that have nothing to do whether they are there, once one did not answer: a node takes all of its actors along."""
        self.say(
            "an evaluator does not answer: what it was at is handed out again, and Ray starts another in its place"
        )
        for one in self.workers:
            if one not in busy:
                one.ask()

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
