"""Settings of a study's distillations, and the dense model's states for their windows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from msgspec import structs

from seed.distillation.loop import choose_windows
from seed.distillation.losses import Objective
from seed.recovery import RECOVERIES
from seed.stages import budgets
from seed.stages.budgets import distill_settings, list_windows, short_settings, store_teacher_states
from tests.proxy.opened import drop, keep, open_instruments
from tests.stages.opened import open_session


def test_settings_are_those_of_the_protocol(tmp_path: Path) -> None:
    session = open_session(tmp_path, rng_seed=7)
    settings = distill_settings(session, drop(1), steps=9, learning_rate=1e-3, looks=4)
    assert (settings.steps, settings.learning_rate, settings.looks, settings.rng_seed) == (9, 1e-3, 4, 7)
    assert settings.batch_windows == 4  # 256 tokens of windows of 64
    assert settings.micro_batch == 32  # 2,048 tokens through the layers at once
    assert (settings.mixed_precision, settings.lora_rank, settings.frozen_layers) == (False, None, 0)
    again = distill_settings(session, drop(1), steps=9, learning_rate=1e-3, looks=4, rng_seed=0)
    assert again == structs.replace(settings, rng_seed=0)  # zero is a seed like any other
    short = short_settings(session, drop(1))
    assert (short.steps, short.learning_rate, short.looks) == (2, 3e-3, 1)
    short = short_settings(open_session(tmp_path, mixed_precision=True, recovery="lora", lora_rank=8), drop(1))
    assert (short.mixed_precision, short.lora_rank) == (True, 8)


def test_layers_before_the_first_cut_are_frozen_on_request(tmp_path: Path) -> None:
    session = open_session(tmp_path, freeze_prefix=True)
    frozen = {drop(0): 0, drop(1): 1, drop(1, 3): 1, drop(2): 2, drop(1, 2, 3): 0, keep(0, 1, 2, 3): 0}
    frozen |= {drop(3): 2, drop(2, 3): 1}  # one is left to train
    assert {candidate: short_settings(session, candidate).frozen_layers for candidate in frozen} == frozen
    assert short_settings(open_session(tmp_path), drop(2)).frozen_layers == 0


def test_the_windows_of_so_many_steps_are_those_that_steps_choose(tmp_path: Path) -> None:
    session = open_session(tmp_path)
    for steps in (1, 2, 3, 10):
        settings = distill_settings(session, drop(1), steps=steps, learning_rate=1e-3, looks=1)
        chosen = {int(window) for step in range(steps) for window in choose_windows(step, 12, settings)}
        assert list_windows(session, steps=steps, rng_seeds=[0]) == sorted(chosen)
    assert list_windows(session, steps=3, rng_seeds=[0]) == list(range(12))
    both = set(list_windows(session, steps=1, rng_seeds=[0])) | set(list_windows(session, steps=1, rng_seeds=[1]))
    assert list_windows(session, steps=1, rng_seeds=[0, 1]) == sorted(both)
    assert list_windows(session, steps=0, rng_seeds=[0]) == []


def test_states_are_stored_once_and_remembered(tmp_path: Path) -> None:
    session, instruments = open_session(tmp_path), open_instruments()
    done: list[int] = []
    remembering = store_teacher_states(session, instruments, steps=2, rng_seeds=[0], on_window=done.append)
    assert sum(done) == 8
    assert remembering.teacher_states is not None
    assert replace(remembering, teacher_states=None) == instruments
    store_teacher_states(session, instruments, steps=2, rng_seeds=[0], on_window=done.append)
    assert sum(done) == 8
    streams = session.protocol.streams
    other = streams | {"recovery": msgspec.structs.replace(streams["recovery"], sha256="f" * 64)}
    for each in (open_session(tmp_path, weights_sha256="cd" * 32), open_session(tmp_path, streams=other)):
        store_teacher_states(each, instruments, steps=2, rng_seeds=[0], on_window=done.append)
    assert sum(done) == 24  # those of other weights or text are not mixed up
    windows = torch.tensor(list_windows(session, steps=2, rng_seeds=[0]))
    assert remembering.teacher_states(windows).shape == (8, 64, 32)


def test_states_too_many_to_store_are_computed_in_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, instruments = open_session(tmp_path), open_instruments()
    size = 8 * 64 * 32 * 4
    monkeypatch.setattr(budgets, "STORED_BYTES", size - 1)
    held = replace(instruments, teacher_states=lambda windows: windows)  # of a shorter budget: it would not do
    assert store_teacher_states(session, held, steps=2, rng_seeds=[0]) == instruments
    assert not session.folder.work.exists()
    monkeypatch.setattr(budgets, "STORED_BYTES", size)
    assert store_teacher_states(session, instruments, steps=2, rng_seeds=[0]).teacher_states is not None


@pytest.mark.parametrize(
    ("recovery", "wanted"),
    [
        ("distillation", {"objective": Objective(temperature=2.0, ce_share=0.25)}),
        ("hidden-states", {"objective": Objective(temperature=2.0, ce_share=0.25, hidden_weight=1.0)}),
        ("lora", {"objective": Objective(temperature=2.0, ce_share=0.25), "lora_rank": 16}),
        ("pretraining", {"objective": Objective(temperature=2.0, ce_share=1.0)}),
        ("lora-pretraining", {"objective": Objective(temperature=2.0, ce_share=1.0), "lora_rank": 16}),
        ("last-layers", {"objective": Objective(temperature=2.0, ce_share=0.25), "frozen_layers": 0}),
    ],
)
def test_a_recovery_is_a_change_of_settings(tmp_path: Path, recovery: str, wanted: dict[str, Any]) -> None:
    session = open_session(tmp_path, temperature=2.0, ce_share=0.25)
    plain = distill_settings(session, drop(1), steps=9, learning_rate=1e-3, looks=4)
    found = distill_settings(session, drop(1), steps=9, learning_rate=1e-3, looks=4, recovery=RECOVERIES[recovery])
    assert found == structs.replace(plain, **wanted)


def test_states_are_stored_only_for_what_learns_from_them_alone(tmp_path: Path) -> None:
    for stored, protocol in (
        (True, {"recovery": "lora", "lora_rank": 4}),
        (False, {"recovery": "hidden-states"}),
        (False, {"recovery": "pretraining"}),
        (False, {"ce_share": 1.0}),
    ):
        session = open_session(tmp_path, **protocol)
        kept = store_teacher_states(session, open_instruments(), steps=2, rng_seeds=[0])
        assert (kept.teacher_states is not None) == stored


def test_students_side_by_side_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(tmp_path)
    assert budgets.count_parallel_students(session) == budgets.MOST_TOGETHER  # tiny
    each = budgets.HOST_BYTES_PER_WEIGHT * sum(weight.numel() for weight in session.teacher.model.parameters())
    pages = {"SC_PAGE_SIZE": 1, "SC_AVPHYS_PAGES": int(3.5 * each / budgets.FREE_SHARE)}
    monkeypatch.setattr(budgets.os, "sysconf", pages.__getitem__)
    assert budgets.count_parallel_students(session) == 3
    pages["SC_AVPHYS_PAGES"] = 1
    assert budgets.count_parallel_students(session) == 1
