"""Two real processes train what one would: same curve, same weights, and either goes on where the other was killed."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs
from torch import nn

from seed.distillation import loop
from seed.distillation.fsdp import ProcessGroup, empty, require_shardable
from seed.distillation.losses import Objective
from seed.errors import ResourceError
from tests.distillation import group_worker
from tests.distillation.group_worker import Case, train, write_cases
from tests.models.families import KINDS, make_model
from tests.started import Pair

CASES = [
    Case(name="tied embedding, one window for two", batch_windows=1),
    Case(name="frozen embedding of its own, text alone", frozen_layers=1, family="qwen2", ce_share=1.0),
    Case(name="experts, side by side, half text", family="qwen2_moe", num_students=2, ce_share=0.5),
    Case(name="layers that end in a view, unequal parts", family="opt", batch_windows=5),
    Case(name="mixed precision, recomputed", mixed_precision=True, recomputes=True),
    Case(name="stored and computed in bfloat16", stored="bfloat16", dense="bfloat16"),
]
STOPPED = Case(name="stopped", steps=6, kill_at=4)


def work(directory: Path, cases: list[Case]) -> list[tuple[int | None, str, str]]:
    """Train in two new processes; results lie in the directory. Return their exit codes and what they said."""
    words = [str(write_cases(directory / "cases.json", cases)), str(directory)]
    return Pair(group_worker.__name__, *words, place=directory, cwd=directory).end(seconds=120)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """What two processes made of the cases, and of one that a single process was killed in; how each held the models."""
    directory = tmp_path_factory.mktemp("together")
    stopped = replace(STOPPED, checkpoint=str(directory / "progress.pt"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CHECKPOINT_SECONDS", "SAVING_SHARE"):
            patch.setattr(loop, name, -1.0)  # progress is saved at every step
        patch.setattr(group_worker.os, "kill", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            train(stopped)
    for code, out, error in work(directory, [*CASES, replace(stopped, kill_at=None)]):
        assert (code, out) == (0, ""), error
        assert "Warning" not in error
    shards = [json.loads((directory / f"shards-{rank}.json").read_text()) for rank in range(2)]
    return torch.load(directory / "results.pt"), shards


def assert_same_training(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-6)
        assert one["best_step"] == other["best_step"] > 0
        assert one["is_frozen"]
        if other["divergences"][0] is None:
            assert one["divergences"] == other["divergences"]
        else:
            assert one["divergences"] == pytest.approx(other["divergences"], rel=1e-4)
        for name, weight in other["weights"].items():
            torch.testing.assert_close(one["weights"][name], weight, rtol=0, atol=3e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_train_as_one(case: Case, together: tuple[dict[str, Any], Any]) -> None:
    assert_same_training(together[0][case.name], train(case))


def test_every_process_holds_its_half_of_student_and_dense_model(together: tuple[Any, list[Any]]) -> None:
    for shards in together[1]:
        assert len(shards) == 3 * (len(CASES) + 1) + 2  # dense, student, its exported form
        assert all(one["all_sharded"] for one in shards)
        assert all(0.45 < one["here"] / one["whole"] < 0.55 for one in shards)


def test_two_processes_go_on_where_one_was_killed(together: tuple[dict[str, Any], Any]) -> None:
    [found] = together[0]["stopped"]
    assert found["steps"] == [4, 5, 6]
    assert_same_training([found], train(replace(STOPPED, kill_at=None)))


def test_one_process_goes_on_where_two_were_killed(tmp_path: Path) -> None:
    stopped = replace(STOPPED, checkpoint=str(tmp_path / "progress.pt"))
    (first, *_), (second, *_) = work(tmp_path, [stopped])
    assert (first, second) == (-signal.SIGKILL, 2)
    saved = torch.load(tmp_path / "progress.pt-0", weights_only=True)
    assert saved["progress"]["done"] == 3
    [found] = train(replace(stopped, kill_at=None))
    assert found["steps"] == [4, 5, 6]
    [unbroken] = train(replace(STOPPED, kill_at=None))
    assert {name: weight.shape for name, weight in saved["student"].items()} == {
        name: weight.shape for name, weight in unbroken["weights"].items()
    }
    assert_same_training([found], [unbroken])


def test_all_save_and_stop_behind_the_step_where_one_is_asked_to(tmp_path: Path) -> None:
    stopped = replace(STOPPED, kill_at=None, stop_at=3, checkpoint=str(tmp_path / "progress.pt"))
    for code, _, said in work(tmp_path, [stopped]):
        assert code == 1
        assert "seed.interrupts.Stopped" in said
    [found] = train(replace(stopped, stop_at=None))
    assert found["steps"] == [4, 5, 6]
    assert_same_training([found], train(replace(stopped, stop_at=None, checkpoint=None)))


@pytest.mark.parametrize(("num_items", "size"), [(4, 2), (1, 2), (4, 3), (2, 4)])
def test_shares_are_equally_long_and_count_everything_once(num_items: int, size: int) -> None:
    items = torch.arange(10, 10 + num_items)
    shares = [ProcessGroup(rank, size).take_share(items) for rank in range(size)]
    assert len({len(mine) for mine, _ in shares}) == 1
    assert torch.equal(torch.cat([mine[:counted] for mine, counted in shares]), items)


@pytest.mark.parametrize("family", KINDS)
def test_an_emptied_model_has_all_but_its_weights(family: str) -> None:
    model = make_model(family)
    emptied = empty(model)
    assert all(weight.is_meta for weight in emptied.parameters())
    for of in (nn.Module.named_parameters, nn.Module.named_buffers):
        pairs = [[*of(one, remove_duplicate=False)] for one in (emptied, model)]
        described = [[(name, tensor.dtype, tensor.shape) for name, tensor in one] for one in pairs]
        assert described[0] == described[1]
    assert len([*emptied.parameters()]) == len([*model.parameters()])  # ties are tied
    for found, own in zip(emptied.buffers(), model.buffers(), strict=True):
        assert torch.equal(found, own)
        assert found is not own


class Routed(nn.Module):
    """A layer whose experts are modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])


@pytest.mark.parametrize(
    ("change", "model", "reason"),
    [
        ({"lora_rank": 4}, make_model("llama"), "LoRA"),
        ({"objective": Objective(hidden_weight=1.0)}, make_model("llama"), "states"),
        ({}, Routed(), "experts"),
    ],
    ids=["lora", "states", "experts"],
)
def test_what_several_processes_cannot_do_is_refused(change: dict[str, Any], model: nn.Module, reason: str) -> None:
    require_shardable(CASES[0].settings, make_model("llama"))
    with pytest.raises(ResourceError, match=reason) as caught:
        require_shardable(structs.replace(CASES[0].settings, **change), model)
    assert "in one process" in str(caught.value)
