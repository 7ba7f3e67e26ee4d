"""A step of short distillation against the plain loop, both alike in data, micro-batch, dtype and compile.

The plain loop runs the dense model, makes all logits of both, and lets autograd differentiate the KL divergence. Ours
takes the dense model's last hidden states from ``targets`` and goes through the head part by part with the gradient
written down. The bound counts layers: (L + h + 3 (k + h)) / (h + 3 (k + h)) with L layers of the dense model, k of the
student, a head worth ``h`` layers, and a backward pass worth two forward ones. What each part adds is listed apart.
"""

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks import shapes, turns
from seed.console import Terminal
from seed.distillation.loop import freeze_prefix
from seed.distillation.losses import Learner, Objective, accumulate_gradients
from seed.distillation.teacher_states import store_states
from seed.evaluation.perplexity import forward_kl
from seed.models.anatomy import Anatomy
from seed.models.surgery import make_student
from seed.optimize.space import drop_layers

DROPPED = (5, 8)  # the first cut in the middle: a frozen prefix of 5 layers
ROUNDS, ROUNDS_FULL = 30, 120
BATCH_WINDOWS, MICRO_BATCH = 4, 4  # the demo's step: 1,024 tokens at once
POOL_WINDOWS = 64
WARM_STEPS = 3
Gradient = Callable[[Anatomy, Tensor], object]  # student, windows: adds to the weights' gradients

# What is compared: what it says -> (slower, faster).
COMPARED = {
    "short_kd_speedup": ("plain", "ours"),
    "short_kd_speedup_bfloat16": ("plain, bfloat16", "ours, bfloat16"),
    "stored states alone": ("plain", "plain, stored states"),
    "head in parts alone": ("plain, stored states", "ours"),
    "bfloat16 alone": ("ours", "ours, bfloat16"),
    "frozen prefix alone": ("ours", "ours, frozen prefix"),
    "compiled layers alone": ("ours", "ours, compiled layers"),
    "compiled layers, bfloat16": ("ours, bfloat16", "ours, bfloat16, compiled layers"),
}


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Time one step of each way in turns."""
    dense, stream = shapes.make_llama(shapes.DEMO_LAYERS), shapes.make_stream(POOL_WINDOWS)
    rounds = ROUNDS_FULL if full else ROUNDS
    with tempfile.TemporaryDirectory() as directory:
        teacher_states = store_states(
            dense, stream, range(POOL_WINDOWS), directory=Path(directory), source="bench", micro_batch=MICRO_BATCH
        )

        def ours(student: Anatomy, windows: Tensor, *, is_mixed: bool = False) -> object:
            return accumulate_gradients(
                [Learner(anatomy=student)],
                dense,
                stream,
                windows,
                Objective(),
                micro_batch=MICRO_BATCH,
                mixed_precision=is_mixed,
                teacher_states=teacher_states,
            )

        def plain(student: Anatomy, windows: Tensor, *, is_mixed: bool = False, is_stored: bool = False) -> None:
            tokens_BT = stream.tokens_NT[windows]
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_mixed):
                with torch.no_grad():
                    wanted = (
                        dense.compute_logits(teacher_states(windows), tokens_BT)
                        if is_stored
                        else dense.model(input_ids=tokens_BT, use_cache=False).logits
                    )
                found = student.model(input_ids=tokens_BT, use_cache=False).logits
            forward_kl(wanted.float(), found.float()).mean().backward()

        ways = {
            "plain": Loop(dense, plain),
            "plain, stored states": Loop(dense, functools.partial(plain, is_stored=True)),
            "ours": Loop(dense, ours),
            "plain, bfloat16": Loop(dense, functools.partial(plain, is_mixed=True)),
            "ours, bfloat16": Loop(dense, functools.partial(ours, is_mixed=True)),
            "ours, frozen prefix": Loop(dense, ours, frozen_layers=DROPPED[0]),
            "ours, compiled layers": Loop(dense, ours, is_compiled=True),
            "ours, bfloat16, compiled layers": Loop(dense, functools.partial(ours, is_mixed=True), is_compiled=True),
        }
        with mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=directory):  # compiled anew, not remembered
            warm_seconds = {name: turns.time_call(loop.warm) for name, loop in ways.items()}
        rows = []
        with terminal.stage("short steps", total=rounds) as advance:
            for number in range(rounds):
                steps = {name: functools.partial(loop.step, number) for name, loop in ways.items()}
                rows.append(turns.time_turn(steps, number=number))
                advance(1, "")
    seconds = {name: np.array([row[name] for row in rows]) for name in ways}
    ratios = {what: turns.spread_of(seconds[slow] / seconds[fast]) for what, (slow, fast) in COMPARED.items()}
    head, kept = shapes.count_head_layers(dense), dense.num_layers - len(DROPPED)
    return {
        "short_kd_speedup": ratios["short_kd_speedup"]["median"],
        "short_kd_speedup_bfloat16": ratios["short_kd_speedup_bfloat16"]["median"],
        "short_kd_bound": (dense.num_layers + head + 3 * (kept + head)) / (head + 3 * (kept + head)),
        "short_kd_ratios": ratios,
        "short_kd_seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "short_kd_warm_seconds": warm_seconds,
    }


class Loop:
    """A student of its own with its optimizer, and a way to its gradient."""

    def __init__(
        self, dense: Anatomy, gradient: Gradient, *, frozen_layers: int = 0, is_compiled: bool = False
    ) -> None:
        student = make_student(dense, drop_layers(dense.num_layers, DROPPED)).requires_grad_(True)
        self.student, self.gradient, self.frozen_layers = Anatomy(student), gradient, frozen_layers
        if is_compiled:
            for layer in self.student.layers:
                layer.compile()
        with freeze_prefix(self.student, frozen_layers):
            self.trained = [weight for weight in student.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=5e-4, betas=(0.9, 0.95), fused=True)

    def warm(self) -> None:
        """The first steps, in which layers are compiled."""
        for _ in range(WARM_STEPS):
            self.step(0)

    def step(self, number: int) -> None:
        """One step, on the windows of its number."""
        windows = torch.arange(number * BATCH_WINDOWS, (number + 1) * BATCH_WINDOWS) % POOL_WINDOWS
        with freeze_prefix(self.student, self.frozen_layers):
            self.gradient(self.student, windows)
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print seconds a step, and ratios."""
    seconds = fields["short_kd_seconds"]
    rows = [[name, f"{1000 * value:.0f}"] for name, value in seconds.items()]
    terminal.show_table(["one step", "ms"], rows, title=f"A step of {BATCH_WINDOWS * shapes.WINDOW_TOKENS:,} tokens")
    rows = [
        [what, " / ".join(COMPARED[what]), turns.show_spread(spread)]
        for what, spread in fields["short_kd_ratios"].items()
    ]
    terminal.show_table(["what", "slower / faster", "ratio (p10 to p90)"], rows)
    share = fields["short_kd_speedup"] / fields["short_kd_bound"]
    terminal.say(
        f"bound by counting {fields['short_kd_bound']:.3f}; reached {share:.0%} of it (at least 85% wanted). "
        f"The first {WARM_STEPS} steps took {fields['short_kd_warm_seconds']['ours, compiled layers']:.0f} s with compiled "
        f"layers, {fields['short_kd_warm_seconds']['ours']:.1f} s without."
    )
