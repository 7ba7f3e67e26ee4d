"""What processes tell one another arrives as it was, and only as what was expected."""

import math
from typing import Any

import msgspec
import pytest
import torch

from seed.errors import ResourceError
from seed.models.outline import draw_outline
from seed.records import CurvePoint
from seed.scoring.distillation import DistillSettings, Standing
from seed.scoring.objectives import Objective
from seed.scoring.process_group import TensorForm, pack, unpack
from seed.scoring.together import Order, StreamNote
from tests.conftest import make_model

SETTINGS = DistillSettings(
    steps=7,
    batch_windows=3,
    micro_batch=2,
    learning_rate=1e-3,
    rng_seed=2**60,
    objective=Objective(temperature=2.0, ce_share=0.1, hidden_weight=0.3),
    mixed_precision=True,
    frozen_layers=2,
    lora_rank=4,
)
ORDER = Order(
    students=(draw_outline(make_model("gpt2", num_layers=2)), draw_outline(make_model("llama", num_layers=3))),
    settings=(SETTINGS, SETTINGS),
    dense=draw_outline(make_model("gemma2").to(torch.bfloat16)),
    micro_batch=4,
    stored_dtype=torch.bfloat16,
    device_type="cuda",
)
STANDING = Standing(
    step=4,
    best_step=2,
    best_loss=math.inf,
    divergences=(0.1 + 0.2, 1e-300, 5.0),
    curve=(
        CurvePoint(step=0, tokens=0, validation_loss=math.inf, kl_divergence=None),
        CurvePoint(step=2, tokens=2**40, validation_loss=1 / 3, kl_divergence=0.5),
    ),
    weight_steps={0: 4.0, 7: 3.0},
)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (ORDER, Order | None),
        (None, Order | None),
        (STANDING, Standing | None),
        (None, Standing | None),
        (StreamNote(source="text.txt \u00fc", num_documents=3), StreamNote),
        (TensorForm(shape=(3, 0, 2), dtype=torch.float16), TensorForm),
        (TensorForm(shape=(), dtype=torch.bool), TensorForm),
        (True, bool),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_told_arrives_as_it_was(value: Any, kind: Any) -> None:
    heard = unpack(pack(value), kind)
    assert heard == value
    assert type(heard) is type(value)


def test_what_is_no_number_arrives_too() -> None:
    heard: Standing = unpack(pack(msgspec.structs.replace(STANDING, divergences=(math.nan,))), Standing)
    assert math.isnan(heard.divergences[0])


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (1, bool),
        (None, StreamNote),
        ({"source": "text", "num_documents": "3"}, StreamNote),
        ({"source": "text", "num_documents": 3, "more": 1}, StreamNote),
        ({"shape": [1], "dtype": "load"}, TensorForm),
        ({"shape": [1], "dtype": 5}, TensorForm),
        ({"shape": [1.5], "dtype": "float32"}, TensorForm),
        (msgspec.to_builtins(STANDING) | {"step": "4"}, Standing | None),
        (msgspec.to_builtins(SETTINGS) | {"more": 1}, DistillSettings),  # a later version's
    ],
)
def test_what_was_not_expected_is_refused(told: Any, kind: Any) -> None:
    with pytest.raises(ResourceError, match="same version of Seed"):
        unpack(pack(told), kind)


def test_half_of_what_was_told_is_refused() -> None:
    with pytest.raises(ResourceError):
        unpack(pack(ORDER)[:-1], Order | None)


@pytest.mark.parametrize("value", [torch.ones(2), torch.nn.Linear(1, 1), print, object()])
def test_only_data_is_told(value: Any) -> None:
    with pytest.raises(NotImplementedError, match="not told"):
        pack(value)
