"""Searches over a real Ray cluster of two nodes: the same numbers as in one process, whoever is killed meanwhile."""

import functools
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from seed import executor as executors
from seed import interrupts
from seed.cluster import connection
from seed.cluster.actor import Actor, make_scratch
from seed.cluster.connection import open_ray
from seed.cluster.ray_executor import MAX_TASK_FAILURES, WAIT_SECONDS, RayExecutor, Worker
from seed.config import StudyConfig
from seed.errors import ModelError, ResourceError
from seed.evidence import StudyRecord
from seed.protocols import describe_reference
from seed.scores import ScoreStore
from seed.search import search
from seed.study_dir import StudyFolder
from tests import finished
from tests.conftest import MakeCheckpoint
from tests.finished import Heard
from tests.running import environment

# so that no timing decides anything
SMALL: dict[str, Any] = finished.SMALL | {
    "latency_command": """sh -c 'stat -c %s "$0/model.safetensors"'""",
    "distill_tokens": 50_000,
}
SECONDS = 200  # for a process to come where it is waited for
pytestmark = pytest.mark.timeout(900)  # Ray starts in a second, or in a minute


class Placed:
    """An actor that says where it is."""

    def __init__(self, described: Any) -> None:
        self.describe = SimpleNamespace(remote=lambda: described)


Make = Callable[..., StudyConfig]


@pytest.fixture(scope="module")
def settings_of(make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    place = tmp_path_factory.mktemp("ray")

    def make(study: str, **changes: Any) -> StudyConfig:
        words = SMALL | {"recovery_text": str(text_file), "studies_dir": place} | changes
        return StudyConfig(model=str(make_checkpoint()), study=study, **words)

    return make


@pytest.fixture(scope="module")
def alone(settings_of: Make) -> StudyRecord:
    return search(settings_of("alone"), Heard())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one CPU each; this process is connected to it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.add_node(num_cpus=1)
    ray.init(address=found.address, log_to_driver=False, logging_level="error")
    yield found
    ray.shutdown()
    found.shutdown()
    for number, handler in before.items():
        signal.signal(number, handler)


def folder_of(settings: StudyConfig) -> StudyFolder:
    return StudyFolder(settings.studies_dir / str(settings.study))


def read_scores(study: StudyFolder) -> tuple[dict[tuple[str, str], Any], list[str]]:
    """Scores to the bit by key and proxy, and the candidates of trials."""
    with ScoreStore(study.scores, read_only=True) as store:
        rows = {(row.key, row.proxy): (row.sums, row.counts) for row in store.read_rows()}
        return rows, [trial.evaluation.candidate.key for trial in store.read_trials() if trial.state == "COMPLETE"]


def require_same(settings: StudyConfig, found: StudyRecord, alone: StudyRecord, alone_at: StudyConfig) -> None:
    scores, keys = read_scores(folder_of(settings))
    assert scores == read_scores(folder_of(alone_at))[0]
    assert len(keys) == len(set(keys)) == 10
    assert [member.evaluation.candidate for member in found.frontier.members] == [
        member.evaluation.candidate for member in alone.frontier.members
    ]
    assert [(one.key, one.start, one.best_step, one.validation, one.test) for one in found.distilled] == [
        (one.key, one.start, one.best_step, one.validation, one.test) for one in alone.distilled
    ]


def find_pid(actor: Any) -> int:
    return int(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())))


def test_without_ray_and_with_one_gpu_of_several_there_is_one_error(
    settings_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ResourceError, match=r"--device cuda:1: with --workers or --ray"):
        search(settings_of("second", workers=2, device="cuda:1"), Heard())
    monkeypatch.setattr(executors, "has_ray", lambda: False)
    with pytest.raises(ResourceError, match=r"need Ray, which is not installed.*pip install"):
        search(settings_of("nothing", workers=2), Heard())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_a_cluster_that_does_not_answer_is_one_error(settings_of: Make, address: str) -> None:
    with pytest.raises(ResourceError, match=rf"--ray {address}: no "):
        search(settings_of("nobody", ray=address), Heard())


def test_evaluators_that_are_killed_change_nothing(
    cluster: Cluster, settings_of: Make, alone: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, call_all = RayExecutor.score, RayExecutor.call_all
    killed = []

    def score_and_kill(self: RayExecutor, candidates: Any, **more: Any) -> Any:
        pid = find_pid(self.workers[1].actor)
        os.kill(pid, signal.SIGSTOP)  # so that it is at its work
        for number, scored in enumerate(score(self, candidates, **more)):
            if number == 0:
                os.kill(pid, signal.SIGKILL)
                killed.append("scoring")
            yield scored

    def distill_and_kill(self: RayExecutor, method: str, works: Any, *, on_progress: Any, **more: Any) -> Any:
        assert len(works) == 2
        pid = find_pid(self.workers[0].actor)

        def hear(amount: float, note: str) -> None:
            on_progress(amount, note)
            if note.startswith("training") and len(killed) == 1:
                os.kill(pid, signal.SIGKILL)
                killed.append("distilling")

        return call_all(self, method, works, on_progress=hear, **more)

    start, scratch = RayExecutor.start, []

    def start_and_note(self: RayExecutor, *words: Any, **more: Any) -> None:
        start(self, *words, **more)
        scratch.append(self.scratch)

    monkeypatch.setattr(RayExecutor, "start", start_and_note)
    monkeypatch.setattr(RayExecutor, "score", score_and_kill)
    monkeypatch.setattr(RayExecutor, "call_all", distill_and_kill)
    settings, terminal = settings_of("killed", workers=2), Heard()
    found = search(settings, terminal)
    assert killed == ["scoring", "distilling"]
    said = "\n".join(terminal.lines)
    assert "2 evaluators, on" in said
    assert said.count("an evaluator does not answer") == 2
    require_same(settings, found, alone, settings_of("alone"))
    assert not [name for name in scratch if (Path(tempfile.gettempdir()) / name).exists()]


def test_a_budget_is_kept_to_by_two_evaluators(cluster: Cluster, settings_of: Make) -> None:
    settings = settings_of(
        "budget",
        workers=2,
        trials=6,
        proxy="short-distillation",
        short_steps=1,
        sweep_budget=0,
        distill=False,
        screen=False,
    )
    found = search(settings, Heard())
    _, keys = read_scores(folder_of(settings))
    assert len(keys) == len(set(keys)) == found.frontier.num_scored == 6


def test_work_that_kills_or_fails_or_is_left_is_seen_to(cluster: Cluster, settings_of: Make) -> None:
    with open_ray(settings_of("work", workers=2)) as executor:
        lines: list[str] = []
        executor.say = lines.append

        def do(actor: Any, work: Any) -> Any:
            return actor.__ray_call__.remote(work)

        def fail(self: Any) -> None:
            raise ModelError("cannot be understood")

        def die(self: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        with pytest.raises(ModelError, match="cannot be understood"):
            list(executor._dispatch([fail], do))
        left = executor._dispatch([lambda self: 1] * 10, do)
        assert next(left) == 1
        left.close()
        assert sorted(executor._dispatch([lambda self, i=i: i for i in range(10)], do)) == list(range(10))
        left = executor._dispatch(
            [range(5), range(5, 9), range(9, 10)],
            lambda actor, work: do(actor, lambda self: work[:2]),
            leave=lambda work, found: work[len(found) :],
        )
        assert sorted(one for found in left for one in found) == list(range(10))
        with pytest.raises(ResourceError, match=r"evaluators die .* run the same command again"):
            list(executor._dispatch([die], do))
        assert len(lines) == MAX_TASK_FAILURES
        assert list(executor._dispatch([lambda self: 2], do)) == [2]  # they are started again


def test_a_stretch_ends_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(Actor):
        def _open(self, *session: Any) -> Any:
            return SimpleNamespace(score=lambda candidates, twice: (twice * one for one in candidates))

    actor = Counting(1, "cpu")
    assert actor.run_some([], "score", [1, 2, 3], {"twice": 2}) == [2, 4, 6]
    monkeypatch.setattr("seed.cluster.actor.CHUNK_SECONDS", 0.0)
    assert actor.run_some([], "score", [1, 2, 3], {"twice": 2}) == [2]


def test_the_reference_is_one_evaluator_and_all_are_of_its_kind(
    settings_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = describe_reference(torch.device("cpu"))
    gpu = replace(cpu, type="cuda", name="H200")
    lines: list[str] = []
    executor = RayExecutor.__new__(RayExecutor)
    executor.workers, executor.reference, executor.say = [Worker(name) for name in "abc"], cpu, lines.append
    first, second, third = executor.workers
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(ray, "get", lambda question: (question, "node"))

    first.question, first.gone_since = cpu, time.monotonic()
    executor._name_reference()
    assert executor.workers[0] is first  # it may come back
    executor._check(first)
    assert first.is_there
    first.question, first.gone_since = cpu, -WAIT_SECONDS
    executor._name_reference()
    assert executor.workers == [second, third, first]

    first.question = gpu
    executor._check(first)
    assert executor.workers == [second, third]
    assert "gone for good (it was started again on H200" in lines[-1]

    executor.most_on_one_node, executor.call = 2, lambda method: 5  # type: ignore[method-assign]
    assert executor.count_parallel_students() == 2
    executor.reference = gpu
    assert executor.count_parallel_students() == 5


def test_evaluators_of_one_kind_are_taken_and_counted_by_node(
    settings_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = describe_reference(torch.device("cpu"))
    gpu = replace(cpu, type="cuda", name="H200")
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    described = [(gpu, "a"), (cpu, "a"), (cpu, "b"), (cpu, "b")]
    actors = [Placed(one) for one in described]
    monkeypatch.setattr(connection, "make_gpu_actors", lambda settings: actors)
    monkeypatch.setattr(ray, "wait", lambda asked, **more: (asked, []))
    monkeypatch.setattr(ray, "get", lambda asked: asked)
    monkeypatch.setattr(
        connection, "RayExecutor", lambda actors, reference, most_on_one_node: (actors, reference, most_on_one_node)
    )
    placed: Any = functools.partial(connection.place_actors, settings_of("kinds"))
    assert placed() == placed(device="B200") == (actors[:1], gpu, 1)
    assert placed(device="cpu") == (actors[1:], cpu, 2)


def test_errors_of_rays_own_are_one_error_and_a_signal_keeps_its_number(
    settings_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(connection, "place_actors", lambda settings, device: SimpleNamespace(stop=lambda: None))
    with pytest.raises(ResourceError, match=r"no room in here.* --object-store-memory"), open_ray(settings_of("full")):
        raise ray.exceptions.ObjectStoreFullError("no room in here")
    monkeypatch.setattr(interrupts._Signals, "heard", signal.SIGTERM)  # Ray hears it first
    with pytest.raises(interrupts.Stopped) as stopped, open_ray(settings_of("heard")):
        raise KeyboardInterrupt
    assert stopped.value.exit_code == 143

    def place(settings: StudyConfig, device: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(connection, "place_actors", place)  # while evaluators start, too
    with pytest.raises(interrupts.Stopped) as stopped, open_ray(settings_of("early")):
        pass
    assert stopped.value.exit_code == 143


def test_scratch_on_other_nodes_is_found_again_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    actor = Actor(None, "cpu")
    actor.clean()
    actor.scratch = make_scratch("seed-1")
    (actor.scratch / "distill-0.pt").touch()
    assert (make_scratch("seed-1") / "distill-0.pt").exists()
    actor.clean()
    assert not list(tmp_path.iterdir())
    (tmp_path / "seed-2").symlink_to(tmp_path)
    with pytest.raises(ResourceError, match=r"seed-2 on node .* another user's"):
        make_scratch("seed-2")


def words_of(settings: StudyConfig, *more: str) -> list[str]:
    told = SMALL | {name: getattr(settings, name) for name in ("model", "study", "studies_dir", "recovery_text")}
    given = [f"--{name.replace('_', '-')}={value}" for name, value in told.items()]
    return [sys.executable, "-m", "seed.search", *given, *more]


def start_and_end(words: list[str], study: StudyFolder, *, at_least: int, number: int) -> tuple[int, str]:
    """Run a command until so many candidates are scored, then send it a signal; return its exit code and what it said."""
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + SECONDS
    while process.poll() is None and count_trials(study) < at_least:
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


def count_trials(study: StudyFolder) -> int:
    try:
        with sqlite3.connect(f"file:{study.scores}?mode=ro", uri=True) as db:
            [count] = db.execute("SELECT COUNT(*) FROM trials").fetchone()
        db.close()
    except sqlite3.OperationalError:
        return 0
    return int(count)


def list_processes(text: str) -> list[int]:
    """Processes whose command line or environment holds a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_coordinator_that_is_stopped_or_killed_goes_on_where_it_was(
    cluster: Cluster, settings_of: Make, alone: StudyRecord
) -> None:
    settings = settings_of("stopped")
    study = folder_of(settings)
    mark = f"SEED_TEST_MARK={study.root}"
    words = words_of(settings, "--workers=2")
    code, said = start_and_end(["env", mark, *words], study, at_least=1, number=signal.SIGTERM)
    assert code == 143, said
    assert "What was finished is kept" in said
    until = time.monotonic() + 30
    while left := list_processes(mark):
        assert time.monotonic() < until, left
        time.sleep(0.2)
    before = count_trials(study)
    assert before

    words = words_of(settings, f"--ray={cluster.address}")
    code, said = start_and_end(words, study, at_least=before, number=signal.SIGKILL)
    assert code == -signal.SIGKILL, said
    assert not study.finished.exists()

    terminal = Heard()
    found = search(settings_of("stopped", workers=2), terminal)
    assert "scored before" in "\n".join(terminal.lines)
    require_same(settings, found, alone, settings_of("alone"))


def test_a_node_that_is_taken_away_changes_nothing(
    cluster: Cluster, settings_of: Make, alone: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = RayExecutor.score
    [node] = cluster.worker_nodes

    def score_and_remove(self: RayExecutor, candidates: Any, **more: Any) -> Any:
        os.kill(find_pid(self.workers[1].actor), signal.SIGSTOP)
        for number, scored in enumerate(score(self, candidates, **more)):
            if number == 0:
                cluster.remove_node(node, allow_graceful=False)
            yield scored

    monkeypatch.setattr(RayExecutor, "score", score_and_remove)
    settings = settings_of("removed", workers=2)
    found = search(settings, Heard())
    assert not cluster.worker_nodes
    require_same(settings, found, alone, settings_of("alone"))
