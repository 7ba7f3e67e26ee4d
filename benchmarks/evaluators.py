"""Evaluations a second through Ray with 1, 2 and 4 actors against in-process, and what Ray takes to start.

The null evaluator answers at once, so that nothing but handing out and handing back is timed: of a whole space, which goes
out in stretches, and of single candidates, as where a sampler waits for each. On the demo, closed form scores its sets of
up to two layers. However many evaluators there are, they part this machine's threads. What evaluators prepare once (the
dense model's losses and states) is made before the clock starts.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import torch

from benchmarks import shapes, turns
from seed.cluster import connection
from seed.cluster.actor import Actor
from seed.cluster.ray_executor import RayExecutor
from seed.config import StudyConfig
from seed.console import Terminal
from seed.evaluation.latency import name_structure
from seed.evaluator import Evaluator, InProcess
from seed.executor import Executor
from seed.optimize.space import enumerate_candidates
from seed.protocols import describe_reference
from seed.records import Candidate, Evaluation, Latency, Quality, Scored, ScoreRow, Size
from seed.sessions import Session
from seed.study_dir import StudyFolder

ACTORS = (1, 2, 4)
SINGLE_PROCESS = "in-process"
MAX_DROPPED = 2  # on the demo: 78 sets
NULL_LAYERS, NULL_DROPPED = 12, 4  # 793 sets, handed out in stretches of 13
DEMO_STRIDE = 3  # every third set of the demo
SINGLES = 48  # candidates that are handed out one for each evaluator at a time
NUM_DOCUMENTS = 64  # of a null score's row
ROUNDS, ROUNDS_FULL = 3, 9
STARTS, STARTS_FULL = 3, 6
CPU = torch.device("cpu")


class NullEvaluator:
    """Has the score of every candidate at once."""

    def score(self, candidates: Sequence[Candidate], **known: object) -> Iterator[Scored]:
        return map(make_score, candidates)


class NullActor(Actor):
    """The same in a process of Ray's."""

    def _open(self, *session: Any) -> Any:
        return NullEvaluator()


class RenewedActor(Actor):
    """An evaluator that can be made to forget what it scored."""

    def renew(self, num_threads: int) -> None:
        """Score anew, with so many threads."""
        self.num_threads = num_threads
        self.evaluator = None


def make_score(candidate: Candidate) -> Scored:
    """A score with everything that a real one has, a row by document among it."""
    quality = Quality(
        loss=2.5,
        perplexity=12.2,
        standard_error=0.1,
        tokens=16_384,
        documents=NUM_DOCUMENTS,
        effective_documents=float(NUM_DOCUMENTS),
        ppl_ratio=1.1,
        ppl_ratio_standard_error=0.01,
    )
    evaluation = Evaluation(
        candidate=candidate,
        qualities={"closed-form": quality},
        latency=make_latency("null"),
        size=Size(num_params=1, weight_bytes=4, kv_bytes_per_token=0),
        seconds=0.0,
    )
    row = ScoreRow(key=candidate.key, proxy="closed-form", sums=[1.5] * NUM_DOCUMENTS)
    return Scored(candidate=candidate, evaluation=evaluation, rows=(row,))


def make_latency(structure: str) -> Latency:
    """A latency that nobody measured."""
    return Latency(
        structure=structure,
        workload="none",
        device="cpu",
        repeats=1,
        median_ms=1.0,
        p10_ms=1.0,
        p90_ms=1.0,
        dense_median_ms=1.0,
        ratio=1.0,
        ratio_low=None,
        ratio_high=None,
    )


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Time starts, null evaluators, and the demo."""
    rounds = ROUNDS_FULL if full else ROUNDS
    fields = {"evaluators_start_seconds": time_starts(terminal, times=STARTS_FULL if full else STARTS)}
    connection.join(StudyConfig(workers=max(ACTORS)))
    try:
        fields["evaluators_null"] = time_null(terminal, rounds=rounds)
        fields["evaluators_demo"] = time_demo(terminal, rounds=rounds)
    finally:
        ray.shutdown()
    return fields | {"evaluators_details": {"rounds": rounds, "threads": torch.get_num_threads()}}


# ---- start


def time_starts(terminal: Terminal, *, times: int) -> dict[str, Any]:
    """Seconds from nothing to evaluators that answer, and to end them, by how many there are."""
    began: dict[str, list[float]] = {str(count): [] for count in ACTORS}
    ended: list[float] = []
    with terminal.stage("starts", total=times * len(ACTORS)) as advance:
        for number in range(times):
            for count in ACTORS if number % 2 == 0 else ACTORS[::-1]:
                with contextlib.ExitStack() as stack:
                    running = connection.open_ray(StudyConfig(workers=count, device="cpu"))
                    start = functools.partial(start_ray, stack, running)
                    began[str(count)].append(turns.time_call(start))
                    ended.append(turns.time_call(stack.close))
                advance(1, f"{count}: {began[str(count)][-1]:.1f} s")
    return {
        "by_actors": {name: turns.range_of(seconds) for name, seconds in began.items()},
        "end": turns.range_of(ended),
    }


def start_ray(stack: contextlib.ExitStack, running: contextlib.AbstractContextManager[RayExecutor]) -> None:
    """Until evaluators answer, and what they say can be heard."""
    ray.get(stack.enter_context(running).news.take.remote())


# ---- null


def time_null(terminal: Terminal, *, rounds: int) -> dict[str, Any]:
    """Evaluations a second that cost nothing, in stretches and one by one."""
    candidates = shapes.list_candidates(NULL_LAYERS, max_dropped=NULL_DROPPED)
    with placed(NullActor) as actors:
        executors: dict[str, Executor] = {SINGLE_PROCESS: InProcess(CPU)}
        executors |= {name_way(count): RayExecutor(actors[:count], describe_reference(CPU)) for count in ACTORS}
        for executor in executors.values():
            start_null(executor)
        works = {
            "in stretches": functools.partial(score_all, candidates=candidates),
            "one by one": functools.partial(score_singly, candidates=candidates[:SINGLES]),
        }
        found = {}
        for kind, work in works.items():
            rows = []
            for executor in executors.values():
                work(executor)  # warms up
            with terminal.stage(f"null {kind}", total=rounds) as advance:
                for number in range(rounds):
                    ways = {name: functools.partial(work, executor) for name, executor in executors.items()}
                    rows.append(turns.time_turn(ways, number=number))
                    advance(1, "")
            found[kind] = summarize(rows, num_scored=len(candidates) if kind == "in stretches" else SINGLES)
    return found


def start_null(executor: Executor) -> None:
    """Let the evaluators have a study of nothing."""
    if isinstance(executor, InProcess):
        executor.evaluator = NullEvaluator()  # type: ignore[assignment]
    else:
        nothing = SimpleNamespace(folder=StudyFolder(Path("null")), teacher=SimpleNamespace(directory=Path("null")))
        executor.start(nothing, say=lambda line: None)  # type: ignore[arg-type]


def score_all(executor: Executor, *, candidates: Sequence[Candidate], table: dict[str, Latency] | None = None) -> None:
    """Score a list at once."""
    found = list(executor.score(candidates, rows=[], table=table or {}))
    assert {scored.candidate for scored in found} == set(candidates)


def score_singly(executor: Executor, *, candidates: Sequence[Candidate]) -> None:
    """Score as many at a time as there are evaluators."""
    count = executor.num_evaluators
    for begin in range(0, len(candidates), count):
        score_all(executor, candidates=candidates[begin : begin + count])


# ---- demo


@dataclass(kw_only=True)
class Demo:
    """The demo opened, and its candidates."""

    session: Session
    candidates: list[Candidate]
    table: dict[str, Latency]


def time_demo(terminal: Terminal, *, rounds: int) -> dict[str, Any]:
    """Evaluations a second of the demo's sets by closed form."""
    with tempfile.TemporaryDirectory() as directory, placed(RenewedActor) as actors:
        session = shapes.open_session(Path(directory), max_dropped=MAX_DROPPED)
        candidates = list(enumerate_candidates(session.protocol.space))[::DEMO_STRIDE]
        names = {name_structure(session.anatomy, candidate) for candidate in candidates}
        demo = Demo(session=session, candidates=candidates, table={name: make_latency(name) for name in names})
        executors = {count: RayExecutor(actors[:count], describe_reference(CPU)) for count in ACTORS}
        for executor in executors.values():
            executor.start(session)
        rows = []
        names_of_ways = [0, *ACTORS]
        with terminal.stage("demo", total=rounds * len(names_of_ways)) as advance:
            for number in range(rounds):
                row = {}
                for count in names_of_ways if number % 2 == 0 else reversed(names_of_ways):
                    row[name_way(count)] = time_fresh(demo, executors[count] if count else None)
                    advance(1, f"{name_way(count)}: {row[name_way(count)]:.1f} s")
                rows.append(row)
    return summarize(rows, num_scored=len(candidates))


def time_fresh(demo: Demo, executor: RayExecutor | None) -> float:
    """Seconds of scoring all of the demo's sets by evaluators that know none of them."""
    first = demo.candidates[-1:]  # shares the least with the others
    if executor is None:
        alone = InProcess(CPU)
        alone.start(demo.session)
        prepare(alone.evaluator, first, demo.table)
        return turns.time_call(lambda: score_all(alone, candidates=demo.candidates, table=demo.table))
    threads = max(1, torch.get_num_threads() // executor.num_evaluators)
    actors = [worker.actor for worker in executor.workers]
    ray.get([actor.renew.remote(threads) for actor in actors])
    told = {"rows": [], "table": demo.table}
    ray.get([actor.run_some.remote(executor.handle, "score", first, told) for actor in actors])
    return turns.time_call(lambda: score_all(executor, candidates=demo.candidates, table=demo.table))


def prepare(evaluator: Evaluator, first: Sequence[Candidate], table: dict[str, Latency]) -> None:
    """Let an evaluator make what it makes once."""
    list(evaluator.score(first, rows=[], table=table))


# ---- both


@contextlib.contextmanager
def placed(kind: type[Actor]) -> Iterator[list[Any]]:
    """As many actors as are ever asked, each with a CPU of Ray's."""
    actor = ray.remote(num_cpus=1)(kind)
    actors = [actor.remote(1, "cpu") for _ in range(max(ACTORS))]
    ray.get([one.describe.remote() for one in actors])
    try:
        yield actors
    finally:
        for one in actors:
            ray.kill(one)
        while ray.available_resources().get("CPU", 0) < len(actors):  # type: ignore[no-untyped-call]
            time.sleep(0.1)


def name_way(count: int) -> str:
    """``in-process``, ``1 actor``, ``2 actors``."""
    return SINGLE_PROCESS if not count else f"{count} actor{'s' * (count > 1)}"


def summarize(rows: Sequence[dict[str, float]], *, num_scored: int) -> dict[str, Any]:
    """Rates, rates over the one in-process, and milliseconds a candidate beyond it, round by round."""
    return {
        name: {
            "per_second": turns.range_of([num_scored / row[name] for row in rows]),
            "over_in_process": turns.range_of([row[SINGLE_PROCESS] / row[name] for row in rows]),
            "ms_more": turns.range_of([1000 * (row[name] - row[SINGLE_PROCESS]) / num_scored for row in rows]),
        }
        for name in rows[0]
    } | {"candidates": num_scored}


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print rates, ratios, and what starting takes."""
    details = fields["evaluators_details"]
    kinds = {f"null, {kind}": found for kind, found in fields["evaluators_null"].items()}
    kinds |= {"demo, closed form": fields["evaluators_demo"]}
    rows = []
    for kind, found in kinds.items():
        for way, rates in found.items():
            if way == "candidates":
                continue
            rows.append(
                [
                    f"{kind}: {way}",
                    turns.show_range(rates["per_second"], digits=1),
                    turns.show_range(rates["over_in_process"]),
                    turns.show_range(rates["ms_more"]),
                ]
            )
    terminal.show_table(
        ["evaluator", "evaluations / s (min to max)", "over in-process", "ms each beyond it"],
        rows,
        title=f"Evaluators that part {details['threads']} threads, {details['rounds']} rounds",
    )
    starts = fields["evaluators_start_seconds"]
    told = ", ".join(
        f"{turns.show_range(seconds, digits=1)} s with {name}" for name, seconds in starts["by_actors"].items()
    )
    terminal.say(f"Ray starts in {told} evaluators, and ends in {turns.show_range(starts['end'], digits=1)} s")
