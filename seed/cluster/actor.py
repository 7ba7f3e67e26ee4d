"""One evaluator in a process of Ray's: what it opens, what it is handed, what it says meanwhile."""

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from transformers.dynamic_module_utils import init_hf_modules

from seed import sessions
from seed.cli import quiet_libraries
from seed.errors import ModelError, ResourceError, first_line
from seed.evaluator import Evaluator
from seed.protocols import Reference, describe_reference
from seed.records import Candidate
from seed.sessions import Session
from seed.stages import finals
from seed.study_dir import StudyFolder

MOST_RESTARTS = 4  # of each actor
LATE_SECONDS = 10.0  # for news, which are not worth waiting for
CHUNK_SECONDS = 5.0  # of scoring before what is found is handed over: no more than this is lost with an evaluator


def make_actor(*, num_cpus: float, num_gpus: float) -> Any:
    """The actor class with its resources and what Ray does when one dies."""
    return ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=MOST_RESTARTS, max_task_retries=0)(Actor)


class ProgressQueue:
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
        self.said: Any = None  # the last of our news

    @ray.method(max_task_retries=-1)  # of one that is started again, Ray waits for the answer
    def describe(self) -> tuple[Reference, str]:
        """The device, and the node."""
        return describe_reference(self.device), ray.get_runtime_context().get_node_id()

    def run(
        self, handle: list[Any], method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, alone: bool = False
    ) -> Any:
        """Do one piece of work.

        Args:
            handle: see ``_open``.
            method: of ``Evaluator``.
            args: its arguments.
            kwargs: and these.
            alone: the others have nothing to do, so that all cores are free.
        """
        with self._working(handle, num_threads=self.most_threads if alone else self.num_threads) as evaluator:
            return getattr(evaluator, method)(*args, **kwargs)

    def run_some(
        self, handle: list[Any], method: str, candidates: Sequence[Candidate], kwargs: dict[str, Any]
    ) -> list[Any]:
        """Do what yields something for each candidate, with as many of the first as there is time for."""
        with self._working(handle, num_threads=self.num_threads) as evaluator:
            found, until = [], time.monotonic() + CHUNK_SECONDS
            for one in getattr(evaluator, method)(candidates, **kwargs):
                found.append(one)
                if time.monotonic() >= until:
                    break
            return found

    def clean(self) -> None:
        """Remove what no study's folder holds."""
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _open(
        self,
        opened: Any,
        home: str,
        root: Path,
        scratch: str,
        news: Any,
        turn: int,
        trusts: bool,
        states: tuple[int, Sequence[int]],
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
            states: steps and random seeds of the distillations that the dense model's states are stored for; no steps: of none.
        """
        if self.evaluator is None:
            session, beside = _get_opened(opened)
            if ray.get_runtime_context().get_node_id() != home:
                self.scratch = make_scratch(scratch)
                root = self.scratch / root.name
                original = self.scratch / f".original-{os.getpid()}"  # others of this node have theirs
                finals.write_files(beside, original)
                session = replace(session, teacher=replace(session.teacher, directory=original))
            session = sessions.move(session, self.device, study=StudyFolder(root))
            self.evaluator = Evaluator(session, returns_files=self.scratch is not None)
        if not trusts and self.evaluator.session.gains is not None:
            self.evaluator.distrust_closed_form()
        steps, rng_seeds = states
        if steps:
            self.evaluator.tell = lambda amount, note: None
            self.evaluator.store_states(steps=steps, rng_seeds=rng_seeds)

        def put(amount: float | None, note: str) -> None:
            self.said = news.put.remote(turn, amount, note)  # nobody waits, so that no work is lost with news

        self.evaluator.tell, self.evaluator.say = put, lambda line: put(None, line)
        return self.evaluator

    @contextlib.contextmanager
    def _working(self, handle: list[Any], *, num_threads: int) -> Iterator[Evaluator]:
        """Yield the evaluator, on so many threads; its news arrive before the answer does. ``handle``: see ``_open``."""
        torch.set_num_threads(num_threads)
        evaluator = self._open(*handle)
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


def _get_opened(opened: Any) -> tuple[Session, dict[str, bytes]]:
    """The opened study and what stands beside the original's weights, out of the object store.

    Raises:
        ModelError: what it needs is not on this node.
    """
    try:
        found: tuple[Session, dict[str, bytes]] = ray.get(opened)
    except (ray.exceptions.RaySystemError, ImportError, AttributeError) as error:
        raise ModelError(
            f"the opened model cannot be read on node {socket.gethostname()} ({first_line(error)}). Install the same versions of "
            "Seed and its dependencies on every node; a model that brings its own code needs one HF_HOME that all nodes share."
        ) from error
    return found
