"""An opened study in small: a four-layer model, text that it wrote itself, and a protocol that fits them."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import optuna
import torch

from seed import protocols, study_dir
from seed.config import StudyConfig
from seed.console import Terminal
from seed.evaluator import InProcess
from seed.models.loader import ModelSource, Teacher
from seed.optimize.frontier import Limits
from seed.optimize.study import open_study
from seed.optimize.trials import Trials
from seed.plans import Protocol, SearchPlan, StreamRecord
from seed.proxy.instruments import Instruments
from seed.proxy.sweep import ScoreCache, Sweep
from seed.records import Latency, SearchSpace, TrialRecord
from seed.scores import ScoreStore
from seed.sessions import Session
from seed.stages.latency_table import LatencyTable
from seed.stages.searching import Scoring, score_space
from seed.study_dir import StudyFolder
from tests.conftest import make_tokenizer
from tests.proxy.opened import CPU, drop, open_instruments, time_candidate
from tests.reporting import factory

QUIET, DEFAULT = Terminal(quiet=True), StudyConfig()
SPACE = SearchSpace(num_layers=4, droppable_layers=(0, 1, 2, 3), min_dropped=1, max_dropped=2)  # 10 candidates

PROTOCOL = msgspec.structs.replace(
    factory.make_protocol(SPACE),
    model="tiny",
    location="/models/tiny",
    revision=None,
    license=None,
    recovery_text="notes.txt",
    window_tokens=64,
    calibration_tokens=768,
    validation_tokens=384,
    test_tokens=None,
    streams={
        name: StreamRecord(source="notes.txt", tokens=768, documents=6, sha256=letter * 64)
        for name, letter in (("recovery", "a"), ("validation", "b"), ("test", "c"))
    },
    proxy="closed-form",
    short_steps=2,
    batch_tokens=256,
    short_learning_rate=3e-3,
    prompt_tokens=8,
    new_tokens=4,
    latency_repeats=3,
)


def open_session(directory: Path, *, family: str = "llama", **changes: Any) -> Session:
    """A session whose protocol differs as told."""
    instruments = open_instruments(family)
    directory.mkdir(parents=True, exist_ok=True)
    return Session(
        folder=StudyFolder(directory),
        protocol=msgspec.structs.replace(PROTOCOL, **changes),
        teacher=Teacher(
            source=ModelSource(location="/models/tiny", revision=None, trust_remote_code=False),
            model=instruments.teacher,
            tokenizer=make_tokenizer(),
            directory=Path("/models/tiny"),
            commit=None,
            stored_dtype=torch.float32,
            dtype=torch.float32,
        ),
        anatomy=instruments.anatomy,
        streams={
            "recovery": instruments.recovery,
            "validation": instruments.validation,
            "test": instruments.validation,
        },
        device=CPU,
        micro_batch=4,
        gains=instruments.gains,
    )


def open_sweep(session: Session) -> Sweep:
    """The sweep in the session's folder."""
    instruments: Instruments = open_instruments(session.anatomy.config.model_type)
    return Sweep(instruments, ScoreStore(session.folder.scores))


def open_trials(session: Session) -> optuna.Study:
    """The session's study, kept in memory."""
    return open_study(optuna.storages.InMemoryStorage(), name="tiny", proxy=session.protocol.proxy, fingerprint="one")


def make_plan(
    protocol: Protocol = PROTOCOL, settings: StudyConfig = DEFAULT, *, trials: int = 10, covers_space: bool = True
) -> SearchPlan:
    """A plan of so many trials."""
    return protocols.make_plan(
        settings, protocol, name="tiny", trials=trials, distill_tokens=1024, covers_space=covers_space
    )


def make_table() -> dict[str, Latency]:
    """Latencies of every structure of the space."""
    latencies = [time_candidate(drop(*range(count))) for count in range(3)]
    return {latency.structure: latency for latency in latencies}


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a search holds while it runs."""

    executor: InProcess
    store: ScoreStore
    cache: ScoreCache
    trials: Trials
    table: LatencyTable

    @property
    def sweep(self) -> Sweep:
        """The evaluator's scores."""
        return self.executor.evaluator.sweep


class TinyStudy:
    """A study in a folder, whose evaluator runs in this process; opened again and again as separate commands would."""

    def __init__(self, directory: Path, *, table: Mapping[str, Latency] | None = None, **changes: Any) -> None:
        self.session = open_session(directory, **changes)
        self.optuna = open_trials(self.session)
        study_dir.write_record(self.session.folder.latency, dict(make_table() if table is None else table))

    @contextlib.contextmanager
    def open(self, space: SearchSpace = SPACE) -> Iterator[Opened]:
        """Open it as the pipeline does."""
        executor = InProcess(CPU)
        executor.start(self.session)
        with ScoreStore(self.session.folder.scores) as store:
            cache = ScoreCache(executor.evaluator.instruments.dense_validation, store.read_rows(), place=store.path)
            store.keep([cache.describe_dense()])
            yield Opened(
                executor=executor,
                store=store,
                cache=cache,
                trials=Trials(self.optuna, space, store, proxy=self.session.protocol.proxy, limits=Limits()),
                table=LatencyTable(self.session, measure=functools.partial(executor.call, "measure_latency")),
            )

    def score(
        self,
        opened: Opened,
        *,
        trials: int = 10,
        covers_space: bool = True,
        terminal: Terminal = QUIET,
        **settings: Any,
    ) -> tuple[TrialRecord, ...]:
        """Score candidates of the opened study, and return all trials that it has."""
        wanted = StudyConfig(**settings)
        plan = make_plan(self.session.protocol, wanted, trials=trials, covers_space=covers_space)
        scoring = Scoring(opened.executor, opened.store, opened.cache)
        score_space(terminal, scoring, opened.table, opened.trials, plan, wanted)
        return opened.store.read_trials()

    def run(self, *, space: SearchSpace = SPACE, **wanted: Any) -> tuple[TrialRecord, ...]:
        """Open it, score, and let go of it."""
        with self.open(space) as opened:
            return self.score(opened, **wanted)
