"""What is done with an opened study: prove, time, score, judge, distill. Work in, records and checkpoints out.

An evaluator decides nothing and writes nothing into the study's folder but what ``scratch`` holds, which is safe to delete.
All that it remembers between two pieces of work, it could make again; so any other can do the next piece.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from seed import cost, sessions
from seed.config import StudyConfig
from seed.cost import Shape
from seed.errors import CandidateError, ResourceError
from seed.evaluation.latency import name_structure
from seed.evaluation.perplexity import DocumentLosses
from seed.evidence import SearchGain
from seed.executor import Executor, ProgressCallback
from seed.models.loader import choose_device
from seed.optimize.screening import Screen
from seed.optimize.space import drop_layers
from seed.plans import Environment, SearchPlan
from seed.protocols import describe_reference
from seed.proxy.instruments import Instruments
from seed.proxy.proxy import Proxy
from seed.proxy.sweep import Sweep
from seed.records import (
    Candidate,
    DenseResult,
    Latency,
    Quality,
    Scored,
    ScoreRow,
    SearchSpace,
    TrialRecord,
)
from seed.reporting.wording import count_things
from seed.sessions import Session
from seed.speed import Speed
from seed.stages import baselines, budgets, judging, latency_table, students
from seed.stages.students import Budget, DistilledStudent, Member


@dataclass(frozen=True, kw_only=True)
class Proofs:
    """What was found out about a model before anything is scored."""

    fault: str | None  # why closed form is not to be trusted; None: it may be
    dense_validation: DocumentLosses


class Evaluator:
    """Does what it is handed, with one opened study on one device.

    Args:
        session: the opened study.
        returns_files: checkpoints are returned file by file, since the coordinator does not see where they lie.
    """

    def __init__(self, session: Session, *, returns_files: bool = False) -> None:
        self.session, self.returns_files = session, returns_files
        self.tell: ProgressCallback = lambda amount, note: None
        self.say: Callable[[str], None] = lambda line: None
        self._stored_for: tuple[int, ...] = ()  # steps and random seeds

    @functools.cached_property
    def sweep(self) -> Sweep:
        """Scores of this evaluator, in memory; the dense model's validation losses are measured when first asked for."""
        return Sweep(sessions.prepare_instruments(self.session), None)

    @functools.cached_property
    def proxy(self) -> Proxy:
        """Scores candidates at the study's proxy."""
        return Proxy(
            self.sweep,
            name=self.session.protocol.proxy,
            short=functools.partial(budgets.short_settings, self.session),
            say=lambda line: self.say(line),  # noqa: PLW0108  whoever hears it then
        )

    @property
    def instruments(self) -> Instruments:
        """The dense model and its streams on the device."""
        return self.sweep.instruments

    # ---- before the search

    def describe_environment(self) -> Environment:
        """Where this measures."""
        return sessions.describe_environment(self.session)

    def measure_parts(self, *, trains: bool) -> tuple[Shape, Speed]:
        """The model's shape, and how long its parts take; ``trains``: those of training, too."""
        session = self.session
        return cost.measure_parts(
            session.anatomy,
            whole=session.anatomy.model,
            window_tokens=session.protocol.window_tokens,
            gains=session.gains,
            dtype=session.dtype,
            stored_dtype=session.teacher.stored_dtype,
            for_gpu=session.device.type == "cuda",
            trains=trains,
        )

    def measure_free_bytes(self) -> int:
        """Bytes of memory that a search can have here."""
        return budgets.measure_free_bytes(self.session.device)

    def prove(self) -> Proofs:
        """Prove on this very model that cutting, saving, reloading and scoring are right."""
        self.tell(0, "cutting, saving, reloading")
        sessions.prove(self.session)
        self.tell(1, "cut, saved, reloaded; reading the validation text")
        instruments = self.instruments
        self.tell(1, "closed form beside its student")
        fault = None if self.session.gains is None else sessions.prove_closed_form(self.session, instruments)
        self.tell(1, "closed form equals its student")
        return Proofs(fault=fault, dense_validation=self.instruments.dense_validation)

    def distrust_closed_form(self) -> None:
        """From now on, do without closed form."""
        self.session = dataclasses.replace(self.session, gains=None)
        self.sweep.instruments = dataclasses.replace(self.instruments, gains=None)

    def measure_latency(self, candidate: Candidate) -> Latency:
        """Time a candidate's structure beside the dense model."""
        return latency_table.measure_latency(self.session, candidate)

    def judge_dense(self, latency: Latency) -> DenseResult:
        """Judge the original on validation and test text. ``latency``: its own."""
        return judging.judge_dense(self.session, self.instruments, latency)

    # ---- the search

    def score(
        self,
        candidates: Sequence[Candidate],
        *,
        rows: Sequence[ScoreRow],
        table: Mapping[str, Latency],
        screen: Screen | None = None,
    ) -> Iterator[Scored]:
        """Score candidates by the study's proxy, in this order.

        Args:
            candidates: neighbours beside one another share most of their work.
            rows: what is known of them already.
            table: latencies by structure, theirs among them.
            screen: says which are not worth short distillation; None: all are.
        """
        self.sweep.learn(rows)
        for candidate in candidates:
            latency = table[name_structure(self.session.anatomy, candidate)]
            try:
                evaluation, failure = self.proxy.evaluate(candidate, latency=latency, screen=screen), None
            except CandidateError as error:
                evaluation, failure = None, str(error)
            rows = tuple(self.sweep.list_rows([candidate]))  # all of them: an answer may have been lost
            yield Scored(candidate=candidate, evaluation=evaluation, failure=failure, rows=rows)

    def sweep_space(self, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Quality, list[ScoreRow]]]:
        """Score candidates by closed form alone, in this order."""
        for candidate in candidates:
            quality = self.sweep.measure(candidate)
            yield candidate, quality, self.sweep.list_rows([candidate])

    def score_unrecovered(self, candidates: Sequence[Candidate]) -> list[ScoreRow]:
        """Score candidates as they stand, many at once."""
        self.sweep.measure_unrecovered(candidates)
        return self.sweep.list_rows(candidates)

    def compare_baselines(
        self,
        space: SearchSpace,
        trials: Sequence[TrialRecord],
        *,
        rows: Sequence[ScoreRow],
        plan: SearchPlan,
        solver: str,
    ) -> tuple[SearchGain, list[ScoreRow]]:
        """Play simpler ways to choose on the search's own scores."""
        self.sweep.learn(rows)
        known = {(row.key, row.proxy) for row in rows}
        gain = baselines.compare_baselines(
            self.session,
            self.sweep,
            space,
            trials,
            plan=plan,
            solver=solver,
            on_baseline=functools.partial(self.tell, 1),
        )
        new = [row for ours in self.sweep.rows.values() for row in ours.values() if (row.key, row.proxy) not in known]
        return gain, new

    # ---- distillation

    def count_parallel_students(self) -> int:
        """How many students can be trained side by side here."""
        return budgets.count_parallel_students(self.session)

    def store_states(self, *, steps: int, rng_seeds: Sequence[int]) -> bool:
        """Store the dense model's last hidden states for distillations of so many steps, or find them; False: they take too much."""
        if self._stored_for != (steps, *rng_seeds):
            self.sweep.instruments = budgets.store_teacher_states(
                self.session,
                self.instruments,
                steps=steps,
                rng_seeds=rng_seeds,
                on_window=lambda count: self.tell(count, ""),
            )
            self._stored_for = (steps, *rng_seeds)
        return self.instruments.teacher_states is not None

    def try_learning_rate(self, member: Member, rate: float, *, distill_tokens: int, rows: Sequence[ScoreRow]) -> float:
        """Validation loss after a tenth of the budget at this peak rate; the largest number where training breaks down."""
        self.sweep.learn(rows)
        return students.try_rate(
            self.session,
            self.sweep,
            member,
            rate=rate,
            distill_tokens=distill_tokens,
            on_step=lambda step: self.tell(1, f"which learning rate suits {member.key}"),
        )

    def make_width_baselines(self, candidates: Sequence[Candidate], *, known: Mapping[str, Latency]) -> list[Member]:
        """For each size among the candidates, all layers cut to that size in width, timed. ``known``: latencies by their key."""
        whole = drop_layers(self.session.anatomy.num_layers, [])
        return [
            Member(
                candidate=whole,
                latency=known.get(width.key) or students.measure_width_latency(self.session, self.instruments, width),
                width=width,
            )
            for width in students.plan_widths(self.instruments, candidates)
        ]

    def distill(
        self, members: Sequence[Member], budget: Budget, rng_seed: int, rows: Sequence[ScoreRow]
    ) -> list[DistilledStudent]:
        """Train members side by side under one random seed, write the first replica's checkpoints into scratch, judge them.

        ``rows``: what is known of their scores.
        """
        self.sweep.learn(rows)
        made = students.distill_group(
            self.session,
            self.sweep,
            members,
            budget,
            rng_seed=rng_seed,
            on_progress=self.tell,
            on_warning=self.say,
        )
        return [students.read_checkpoint(one) for one in made] if self.returns_files else made


class InProcess(Executor):
    """One evaluator, in this process."""

    num_evaluators = most_on_one_node = 1
    evaluator: Evaluator

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reference = describe_reference(device)

    def start(self, session: Session, *, say: Callable[[str], None] = lambda line: None) -> None:
        self.evaluator = Evaluator(session)
        self.evaluator.say = say

    def call(self, method: str, /, *args: Any, on_progress: ProgressCallback | None = None, **kwargs: Any) -> Any:
        with self._told(on_progress):
            return getattr(self.evaluator, method)(*args, **kwargs)

    def call_each(
        self, method: str, candidates: Sequence[Candidate], told: Callable[[Sequence[Candidate]], dict[str, Any]]
    ) -> Iterator[Any]:
        yield from getattr(self.evaluator, method)(candidates, **told(candidates))

    def call_all(
        self,
        method: str,
        works: Sequence[tuple[Any, ...]],
        *,
        on_progress: ProgressCallback,
        on_warning: Callable[[str], None],
    ) -> Iterator[Any]:
        with self._told(on_progress, on_warning):
            for args in works:
                yield getattr(self.evaluator, method)(*args)

    def distrust_closed_form(self) -> None:
        self.evaluator.distrust_closed_form()

    @contextlib.contextmanager
    def _told(
        self, on_progress: ProgressCallback | None, on_warning: Callable[[str], None] | None = None
    ) -> Iterator[None]:
        before = self.evaluator.tell, self.evaluator.say
        self.evaluator.tell, self.evaluator.say = on_progress or before[0], on_warning or before[1]
        try:
            yield
        finally:
            self.evaluator.tell, self.evaluator.say = before


@contextlib.contextmanager
def open_executor(
    settings: StudyConfig, *, say: Callable[[str], None], device: str | None = None
) -> Iterator[Executor]:
    """Yield what runs evaluators, as the settings say: Ray with ``--workers`` or ``--ray``, or where there are several GPUs.

    ``device``: the name of that on which the study was begun, which is preferred among several kinds.

    Raises:
        ResourceError: Ray is not installed, or has no room for so many evaluators; the device is not there, or Ray's to choose.
    """
    num_gpus = torch.cuda.device_count() if settings.device is None else 0
    wants_ray = settings.ray is not None or (settings.workers or 1) > 1
    if not wants_ray and num_gpus > 1 and settings.workers is None:
        wants_ray = has_ray()
        if not wants_ray:
            say(f"one of {num_gpus} GPUs is used: pip install 'seed-search[ray]' to use them all")
    if not wants_ray:
        yield InProcess(choose_device(settings.device))
        return
    if not has_ray():
        raise ResourceError(
            "--workers, --ray: need Ray, which is not installed. Install it: pip install 'seed-search[ray]'."
        )
    if settings.device not in (None, "cpu", "cuda"):
        raise ResourceError(
            f"--device {settings.device}: with --workers or --ray, Ray says which GPU an evaluator gets. Give --device cuda (or cpu), "
            "or leave --workers and --ray out."
        )
    say("starting Ray" if settings.ray is None else f"joining the Ray cluster at {settings.ray}")
    if settings.ray is not None:  # else Ray looks for a cluster that is gone for a quarter of an hour
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
        os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "10")
    from seed.cluster.connection import open_ray  # seconds

    with open_ray(settings, device=device) as executor:
        say(f"{count_things(executor.num_evaluators, 'evaluator')}, on {executor.reference.name}")
        yield executor


def has_ray() -> bool:
    """Is Ray installed?"""
    import importlib.util

    return importlib.util.find_spec("ray") is not None
