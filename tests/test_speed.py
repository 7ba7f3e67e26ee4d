"""Parts are timed for real: the best of several turns, closed form and training by what does them in a search."""

from pathlib import Path

import pytest
import torch

from seed import speed
from tests.stages.opened import open_session


def test_times_are_the_best_of_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy now and then tells the same as a quiet one."""
    clock, calls = [0.0], [0]

    def run() -> torch.Tensor:
        calls[0] += 1
        clock[0] += 0.5 if calls[0] % 3 else 0.01
        return torch.zeros(1)

    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    found = speed._time_in_turns({"layer": run, "head": run})
    assert found == {"layer": pytest.approx(0.01), "head": pytest.approx(0.01)}


@pytest.mark.parametrize("free_bytes", [1e12, 0.0])
def test_training_is_timed_where_there_is_room(
    free_bytes: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "measure_free_bytes", lambda device: free_bytes)
    session = open_session(tmp_path)
    before = {name: weight.clone() for name, weight in session.anatomy.model.named_parameters()}
    found = speed.time_parts(
        session.anatomy,
        speed.draw_tokens(session.anatomy, 64),
        num_layers=30,
        gains=session.gains,
        trains=True,
    )
    assert found.training > 0
    assert (found.training == speed.TRAINING_FORWARDS) == (free_bytes == 0)
    assert found.forward == pytest.approx(30 * found.layer + found.head)
    for name, weight in session.anatomy.model.named_parameters():
        assert torch.equal(weight, before[name])
        assert not weight.requires_grad
