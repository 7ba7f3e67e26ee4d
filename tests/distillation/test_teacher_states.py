"""Stored states are the dense model's own, to the bit; computed once, and never trusted when torn."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from seed.distillation.teacher_states import TeacherStates, count_bytes, run_teacher, store_states
from seed.errors import ResourceError
from seed.models.anatomy import Anatomy
from seed.models.surgery import cast_weights
from tests.interrupting import StoppedError
from tests.models.families import make_model
from tests.proxy.streams import draw_stream

STREAM = draw_stream(9, 16, rng_seed=1)
WINDOWS = (7, 2, 2, 5, 0, 7, 8)  # repeated, and in no order


def store(anatomy: Anatomy, directory: Path, *, windows: Sequence[int] = WINDOWS, **changes: Any) -> TeacherStates:
    settings = {"directory": directory, "source": "weights/text", "micro_batch": 2} | changes
    return store_states(anatomy, STREAM, windows, **settings)


def list_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.states"))


def count_forwards(anatomy: Anatomy) -> list[int]:
    """Windows of every forward pass from now on."""
    seen: list[int] = []
    anatomy.layers[0].register_forward_hook(lambda _module, args, _output: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize(("family", "dtype"), [("llama", torch.bfloat16), ("gpt2", torch.float32)])
def test_recalled_states_are_the_dense_models_to_the_bit(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    anatomy = Anatomy(cast_weights(make_model(family), dtype))
    teacher_states = store(anatomy, tmp_path, micro_batch=1)
    live = run_teacher(anatomy, STREAM)
    for windows in ([7], [0], [2, 5], [8, 2, 7, 0, 5], [5, 5]):
        found = teacher_states(torch.tensor(windows))
        assert found.dtype == dtype
        assert found.shape == (len(windows), 16, 32)
        # one window at a time, as they were stored: products of other shapes may round otherwise
        assert torch.equal(found, torch.cat([live(torch.tensor([window])) for window in windows]))
    assert torch.equal(live(torch.tensor([3])), anatomy.trace(STREAM.tokens_NT[3:4])[-1])
    first = teacher_states(torch.tensor([0]))
    kept: Tensor = first.clone()
    first.zero_()
    assert torch.equal(teacher_states(torch.tensor([0])), kept)  # what is stored does not change with it
    for unknown in ([1], [0, 6]):  # windows that were not stored are never made up
        with pytest.raises(AssertionError, match="only stored windows"):
            teacher_states(torch.tensor(unknown))


def test_each_window_is_stored_once_and_found_again(tmp_path: Path) -> None:
    anatomy, done = Anatomy(make_model("llama")), list[int]()
    first = store(anatomy, tmp_path, on_window=done.append)(torch.tensor(WINDOWS))
    [path] = list_files(tmp_path)
    assert path.stat().st_size == count_bytes(num_windows=5, window_tokens=16, width=32, dtype=torch.float32)
    assert done == [2, 2, 1]
    forwards = count_forwards(anatomy)
    again = store(anatomy, tmp_path, windows=sorted(set(WINDOWS)), micro_batch=5, on_window=done.append)
    assert torch.equal(again(torch.tensor(WINDOWS)), first)
    assert forwards == []
    assert list_files(tmp_path) == [path]


@pytest.mark.parametrize(
    "changes",
    [{"windows": (0, 2)}, {"source": "weights/other text"}, {"anatomy": "bfloat16"}],
    ids=["windows", "source", "type"],
)
def test_other_states_are_other_files(changes: dict[str, Any], tmp_path: Path) -> None:
    anatomy = other = Anatomy(make_model("llama"))
    if changes.pop("anatomy", None):
        other = Anatomy(cast_weights(make_model("llama"), torch.bfloat16))
    held = store(anatomy, tmp_path)
    before = held(torch.tensor(WINDOWS)).clone()
    [first] = list_files(tmp_path)
    forwards = count_forwards(other)
    store(other, tmp_path, **changes)
    assert forwards
    [second] = list_files(tmp_path)  # one set is kept
    assert second != first
    assert torch.equal(held(torch.tensor(WINDOWS)), before)  # and who has the other open keeps it


def test_a_torn_file_is_computed_anew(tmp_path: Path) -> None:
    anatomy = Anatomy(make_model("llama"))
    expected = store(anatomy, tmp_path)(torch.tensor(WINDOWS)).clone()
    [path] = list_files(tmp_path)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    assert torch.equal(store(anatomy, tmp_path)(torch.tensor(WINDOWS)), expected)
    assert path.read_bytes() == content


def test_a_stopped_computation_leaves_no_states(tmp_path: Path) -> None:
    anatomy = Anatomy(make_model("llama"))

    def stop(count: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        store(anatomy, tmp_path, on_window=stop)
    assert list_files(tmp_path) == []
    live = run_teacher(anatomy, STREAM)
    assert torch.equal(store(anatomy, tmp_path)(torch.tensor([0, 2])), live(torch.tensor([0, 2])))
    assert not list(tmp_path.glob(".*.new"))


def test_a_disk_without_room_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = Anatomy(make_model("llama"))
    forwards = count_forwards(anatomy)
    monkeypatch.setattr("seed.study_dir.shutil.disk_usage", lambda path: SimpleNamespace(free=5))
    with pytest.raises(ResourceError, match="the dense model's states needs about"):
        store(anatomy, tmp_path)
    assert forwards == []
