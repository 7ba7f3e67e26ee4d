"""A whole pass in this process, stopped at each of its steps and gone on with: the same result, and nothing finished done twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seed.console import Terminal
from seed.records import Candidate, Evaluation
from seed.scoring.proxy import Proxy
from seed.search import search
from seed.stages import finals, gains, judging, latencies, publishing, workbench
from tests.finished import Finished, describe, timed_alike

QUIET = Terminal(quiet=True)


class StoppedError(Exception):
    """Stands for whatever ends a pass."""


def stop_behind(count: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """What does so much of the work and then ends the pass."""
    left = [count]

    def stop(*args: Any, **kwargs: Any) -> Any:
        if left[0] == 0:
            raise StoppedError
        left[0] -= 1
        return work(*args, **kwargs)

    return stop


# the step, what is stopped there, and behind how much of it; each pass gets further than the one before
STOPS: dict[str, tuple[object, str, int]] = {
    "proofs": (workbench, "prove", 0),
    "latency": (latencies, "measure_latency", 1),
    "dense": (judging, "judge_dense", 0),
    "search": (Proxy, "evaluate", 4),
    "rivals": (gains, "measure_gain", 0),
    "distill": (finals, "train_together", 0),
    "judge": (judging, "judge_exported", 1),
    "export": (finals, "keep_first", 1),
    "report": (publishing, "write_page", 0),
}


def test_a_pass_stopped_at_every_step_ends_as_an_unbroken_one(
    finished_study: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, study = finished_study.move(tmp_path)
    scored: list[Candidate] = []
    judged: list[object] = []
    evaluate, judge_dense = Proxy.evaluate, judging.judge_dense

    def count_scored(proxy: Proxy, candidate: Candidate) -> Evaluation:
        evaluation = evaluate(proxy, candidate)
        scored.append(candidate)
        return evaluation

    def count_judged(*args: Any) -> Any:
        judged.append(judge_dense(*args))
        return judged[-1]

    monkeypatch.setattr(Proxy, "evaluate", count_scored)
    monkeypatch.setattr(judging, "judge_dense", count_judged)
    with timed_alike() as timed:
        for step, (place, name, count) in STOPS.items():
            with monkeypatch.context() as patch:
                patch.setattr(place, name, stop_behind(count, getattr(place, name)))
                with pytest.raises(StoppedError):
                    search(settings, QUIET)
            assert study.frontier.exists() == (list(STOPS).index(step) > list(STOPS).index("search"))
            if step == "search":
                assert len(scored) == 4
            if step == "export":
                [first] = study.distilled.iterdir()
                written = first.stat().st_mtime_ns
        record = search(settings, QUIET)
    assert first.stat().st_mtime_ns == written
    assert record.distilled
    assert describe(study) == describe(finished_study.folder)
    assert timed == finished_study.timed
    assert len(scored) == len(set(scored)) == record.frontier.num_scored
    assert len(judged) == 1
    assert not list(study.root.rglob(".*.new"))
