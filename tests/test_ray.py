"""Searches over a real Ray cluster of two nodes: the same numbers as in one process, whoever is killed meanwhile."""

import functools
import os
import shlex
import shutil
import signal
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

from seed import evaluator, interrupts
from seed.cluster import connection
from seed.cluster.actor import Actor, make_scratch
from seed.cluster.connection import open_ray
from seed.cluster.ray_executor import WAIT_SECONDS, RayExecutor, Worker
from seed.config import StudyConfig
from seed.errors import ModelError, ResourceError
from seed.protocols import describe_reference
from seed.resolve import typed_command
from seed.scores import ScoreStore
from seed.search import search
from seed.study_dir import StudyFolder
from tests import started
from tests.finished import Finished, Heard

SECONDS = 200  # for a process to come where it is waited for
pytestmark = pytest.mark.timeout(900)  # Ray starts in a second, or in a minute


class Placed:
    """An actor that says where it is."""

    def __init__(self, described: Any) -> None:
        self.describe = SimpleNamespace(remote=lambda: described)


Make = Callable[..., StudyConfig]


@pytest.fixture(scope="module")
def settings_of(finished_study: Finished, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The finished study's settings, for another place."""
    place = tmp_path_factory.mktemp("ray")

    def make(study: str, **changes: Any) -> StudyConfig:
        return replace(finished_study.settings, studies_dir=place, study=study, **changes)

    return make


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


def read_scores(study: StudyFolder) -> tuple[dict[tuple[str, str], Any], list[str]]:
    """Scores to the bit by key and proxy, and the candidates of trials."""
    with ScoreStore(study.scores, read_only=True) as store:
        rows = {(row.key, row.proxy): (row.sums, row.counts) for row in store.read_rows()}
        return rows, [trial.evaluation.candidate.key for trial in store.read_trials() if trial.state == "COMPLETE"]


def find_pid(worker: Worker) -> int:
    return int(ray.get(worker.actor.__ray_call__.remote(lambda self: os.getpid())))


def act_behind_first(
    work: Callable[..., Iterator[Any]], *, stopped: int, act: Callable[[RayExecutor, int], None]
) -> Any:
    """Keep one evaluator at its work, and act, on its process, once another has finished a piece."""

    def do(self: RayExecutor, *args: Any, **more: Any) -> Iterator[Any]:
        pid = find_pid(self.workers[stopped])
        os.kill(pid, signal.SIGSTOP)
        for number, found in enumerate(work(self, *args, **more)):
            if number == 0:
                act(self, pid)
            yield found

    return do


def test_without_ray_and_with_one_gpu_of_several_there_is_one_error(
    settings_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ResourceError, match=r"--device cuda:1: with --workers or --ray"):
        search(settings_of("second", workers=2, device="cuda:1"), Heard())
    monkeypatch.setattr(evaluator, "has_ray", lambda: False)
    with pytest.raises(ResourceError, match=r"need Ray, which is not installed.*pip install"):
        search(settings_of("nothing", workers=2), Heard())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_a_cluster_that_does_not_answer_is_one_error(settings_of: Make, address: str) -> None:
    with pytest.raises(ResourceError, match=rf"--ray {address}: no "):
        search(settings_of("nobody", ray=address), Heard())


def test_work_that_kills_or_fails_or_is_left_is_seen_to(
    cluster: Cluster, settings_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Light:
        """An actor without a model."""

        def __init__(self, *_args: Any) -> None:
            pass

        def describe(self) -> tuple[Any, str]:
            return SimpleNamespace(type="cpu", name="cpu"), ray.get_runtime_context().get_node_id()

        def clean(self) -> None:
            pass

    monkeypatch.setattr(connection, "make_actor", lambda **more: ray.remote(max_restarts=4, num_cpus=1)(Light))
    monkeypatch.setattr("seed.cluster.ray_executor.MAX_TASK_FAILURES", 2)
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
        assert len(lines) == 2
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
    monkeypatch.setattr(connection, "RayExecutor", lambda actors, reference, nodes: (actors, reference, nodes))
    placed: Any = functools.partial(connection.place_actors, settings_of("kinds"))
    assert placed() == placed(device="B200") == (actors[:1], gpu, ["a"])
    assert placed(device="cpu") == (actors[1:], cpu, ["a", "b", "b"])


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


@pytest.mark.parametrize("started_here", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["joined", "own"])
def test_a_coordinator_that_is_stopped_leaves_nothing_behind_and_goes_on_without_ray(
    started_here: bool, settings_of: Make, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    cluster = None if started_here else request.getfixturevalue("cluster")
    settings = settings_of(
        f"stopped-{started_here}",
        trials=6,
        proxy="short-distillation",
        short_steps=1,
        sweep_budget=0,
        distill=False,
        screen=False,
    )
    study, out = StudyFolder(settings.studies_dir / settings.study), tmp_path / "out"
    mark = f"SEED_TEST_MARK={study.root}"
    words = shlex.split(typed_command(replace(settings, workers=2, ray=cluster and cluster.address)))[2:]
    process = started.start(words, cwd=tmp_path, out=out, prelude=f"import os; os.environ.update([{mark.split('=')}])")
    until = time.monotonic() + SECONDS
    while process.exitcode is None and not has_trial(study):
        assert time.monotonic() < until, out.read_text()
        time.sleep(0.05)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143, out.read_text()
    assert "2 evaluators, on" in out.read_text()
    assert "What was finished is kept" in out.read_text()
    until = time.monotonic() + 30
    while left := list_processes(mark) or (cluster and ray.available_resources()["CPU"] < 2):
        assert time.monotonic() < until, left
        time.sleep(0.2)
    before = read_scores(study)[1]
    terminal = Heard()
    found = search(settings, terminal)
    assert "scored before" in "\n".join(terminal.lines)
    _, keys = read_scores(study)
    assert keys[: len(before)] == before
    assert len(keys) == len(set(keys)) == found.frontier.num_scored == 6


def has_trial(study: StudyFolder) -> bool:
    return study.scores.exists() and bool(read_scores(study)[1])


def test_an_evaluator_that_is_killed_and_a_node_that_is_taken_away_change_nothing(
    cluster: Cluster, settings_of: Make, finished_study: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(executor: RayExecutor, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def remove_node(executor: RayExecutor, pid: int) -> None:
        [node] = cluster.worker_nodes
        cluster.remove_node(node, allow_graceful=False)
        shutil.rmtree(Path(tempfile.gettempdir(), executor.scratch))  # which is nobody's any more

    monkeypatch.setattr(RayExecutor, "score", act_behind_first(RayExecutor.score, stopped=0, act=kill))
    monkeypatch.setattr(RayExecutor, "call_all", act_behind_first(RayExecutor.call_all, stopped=1, act=remove_node))
    # so that no timing decides anything
    settings = settings_of("killed", workers=2, latency_command="""sh -c 'stat -c %s "$0/model.safetensors"'""")
    terminal, alone = Heard(), finished_study.record
    found = search(settings, terminal)
    said = "\n".join(terminal.lines)
    assert "2 evaluators, on" in said
    assert said.count("an evaluator does not answer") == 2
    assert not cluster.worker_nodes
    scores, keys = read_scores(StudyFolder(settings.studies_dir / "killed"))
    assert scores == read_scores(finished_study.folder)[0]
    assert len(keys) == len(set(keys)) == 10
    assert [member.evaluation.candidate for member in found.frontier.members] == [
        member.evaluation.candidate for member in alone.frontier.members
    ]
    assert [(one.key, one.start, one.best_step, one.validation, one.test) for one in found.distilled] == [
        (one.key, one.start, one.best_step, one.validation, one.test) for one in alone.distilled
    ]
