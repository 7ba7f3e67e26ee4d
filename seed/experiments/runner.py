"""What experiments share: a finished search is opened, a record that was begun is read, models are trained and judged."""

import contextlib
import functools
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from seed import plans, sessions, study_dir
from seed.cli import quiet_libraries
from seed.console import Advance, Terminal
from seed.evaluation.perplexity import DocumentLosses, logits_of, measure_losses
from seed.plans import Protocol, SearchPlan
from seed.proxy.sweep import Sweep
from seed.records import Record
from seed.recovery import Recovery
from seed.scores import ScoreStore
from seed.sessions import Session
from seed.stages import budgets, students
from seed.stages.students import Member, Trained
from seed.study_dir import StudyFolder

Settings = dict[str, str | int | float]


class Begun(typing.Protocol):
    """The record of an experiment."""

    @property
    def settings(self) -> Settings:
        """What decides its numbers."""


R = typing.TypeVar("R", bound=Record)
B = typing.TypeVar("B", bound=Begun)


@dataclass(frozen=True, kw_only=True)
class FinishedSearch:
    """What an experiment works on. Model and text are opened when they are first asked for."""

    terminal: Terminal
    folder: StudyFolder
    plan: SearchPlan
    protocol: Protocol
    store: ScoreStore
    device: str | None

    @functools.cached_property
    def session(self) -> Session:
        """Model and text."""
        self.terminal.say(f"opening {self.protocol.model}")
        return sessions.reopen(self.folder, self.protocol, device_name=self.device)

    @functools.cached_property
    def sweep(self) -> Sweep:
        """Scores."""
        return Sweep(sessions.prepare_instruments(self.session), self.store)


@contextlib.contextmanager
def open_search(
    path: Path, *, terminal: Terminal, device: str | None = None, trust_remote_code: bool = False
) -> Iterator[FinishedSearch]:
    """Hold a finished search while an experiment runs.

    Raises:
        SeedError: there is none, it is in use, or its model cannot be opened.
    """
    study, plan = plans.open_planned(path, trust_remote_code=trust_remote_code)
    quiet_libraries()
    with study_dir.lock(study), ScoreStore(study.scores) as store:
        yield FinishedSearch(
            terminal=terminal, folder=study, plan=plan, protocol=plan.protocol, store=store, device=device
        )


def keep(path: Path, record: R) -> R:
    """Write the record as it is so far, and return it."""
    study_dir.write_record(path, record)
    return record


def read_begun(path: Path, kind: type[B], settings: Settings) -> B | None:
    """The record of an experiment that was begun with these settings, if there is one.

    Raises:
        StudyError: it was begun with other settings.
    """
    if not path.exists():
        return None
    record = study_dir.read_record(path, kind)
    plans.require_same_settings(record.settings, settings, place=path)
    return record


def describe_training(search: FinishedSearch, *, distill_tokens: int, rng_seeds: Sequence[int]) -> Settings:
    """What decides the numbers of every experiment, for people and for going on."""
    protocol = search.protocol
    return {
        "distill_tokens": distill_tokens,
        "batch_tokens": protocol.step_tokens,
        "rng_seeds": ", ".join(map(str, rng_seeds)),
        "calibration_tokens": protocol.calibration_tokens,
        "validation_tokens": protocol.streams["validation"].tokens,
        "test_tokens": protocol.streams["test"].tokens,
    }


def judge_dense(search: FinishedSearch) -> DocumentLosses:
    """The dense model's losses on test text."""
    session = search.session
    return measure_losses(
        logits_of(session.teacher.model),
        session.streams["test"],
        micro_batch=session.micro_batch,
        device=session.device,
    )


def store_states(search: FinishedSearch, *, steps: int, rng_seeds: Sequence[int]) -> None:
    """Compute the dense model's states that trainings of so many steps learn from, or find them computed."""
    session, sweep, seeds = search.session, search.sweep, sorted(set(rng_seeds))
    if not budgets.uses_stored_states(session):
        return
    total = len(budgets.list_windows(session, steps=steps, rng_seeds=seeds))
    with search.terminal.stage("dense states", total=total) as advance:  # windows of text
        sweep.instruments = budgets.store_teacher_states(
            session, sweep.instruments, steps=steps, rng_seeds=seeds, on_window=lambda count: advance(count, "")
        )
    if sweep.instruments.teacher_states is None:
        search.terminal.say("  they would take too much disk: the dense model runs in every step instead")


def train(
    search: FinishedSearch,
    member: Member,
    *,
    tokens: int,
    learning_rate: float,
    rng_seed: int,
    advance: Advance,
    looks: int = 4,
    recovery: Recovery | None = None,
    sweep: Sweep | None = None,
) -> Trained:
    """Train a model in full, and judge its best weights on test text as they would be exported.

    Without a recovery it is the search's own, without a sweep its own model that layers go from.
    """
    settings = budgets.distill_settings(
        search.session,
        member.candidate,
        steps=search.protocol.count_steps(tokens),
        learning_rate=learning_rate,
        looks=looks,
        rng_seed=rng_seed,
        recovery=recovery,
    )
    return students.distill_once(
        search.session, sweep or search.sweep, member, settings, on_step=lambda: advance(1 / settings.steps, member.key)
    )
