"""Full distillation against Hugging Face's Trainer: training tokens a second, and whether both learn the same.

The plain way is a ``transformers.Trainer`` whose loss is forward KL between all logits of the dense model and of the
student, by autograd, with the dense model's forward in every step. Alike in both: start, windows and their order, batch,
micro-batch, number type, AdamW and its schedule, clipping. The Trainer neither logs, saves nor evaluates; its clock runs
from its first step to its last, ours over the whole call of ``distill``, whose looks at validation text are left out.
Groups of students are trained one after another by the Trainer, side by side by us; their tokens are added up. Stored
states were computed before the clock runs: in a study one pass over the text serves every student.

Bounds count layers, a head being worth ``h`` and a backward pass two forward ones: a plain step costs
(L + h) + 3 (k + h) with L layers of the dense model and k of the student; of the dense model's part ours has h where its
states are stored, L + h where they are not, once for all students. What head in parts and a written-down gradient save or
cost is not counted.
"""

import contextlib
import copy
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import structs
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks import shapes, turns
from seed import protocols, sessions
from seed.console import Terminal
from seed.distillation.loop import DistillSettings, TrainingJob, choose_windows, distill, schedule
from seed.distillation.teacher_states import TeacherStates
from seed.evaluation.perplexity import forward_kl, logits_of, measure_losses
from seed.optimize.space import drop_layers
from seed.proxy.instruments import Instruments, start_student
from seed.stages import budgets

SETS = {"drop-1": (1,), "drop-1-7": (1, 7), "drop-1-6-7": (1, 6, 7)}
SINGLE_PROCESS = "drop-1-7"
ROUNDS, ROUNDS_FULL = 8, 30
STEPS = 4  # a round's, of each student
EQUAL_STEPS = 12
LEARNING_RATE = 5e-4
WAYS = {  # what it says -> (sets, are the dense model's states stored?)
    "one student, stored states": ((SINGLE_PROCESS,), True),
    "one student, live teacher": ((SINGLE_PROCESS,), False),
    "three students, stored states": (tuple(SETS), True),
    "three students, live teacher": (tuple(SETS), False),
}


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Train by the Trainer and by us in turns, and compare what was learnt."""
    with tempfile.TemporaryDirectory() as directory:
        session, instruments = shapes.open_demo(Path(directory))
        stored = budgets.store_teacher_states(session, instruments, steps=EQUAL_STEPS, rng_seeds=[0])
        lessons = {
            "float32": make_settings(session, steps=STEPS, mixed_precision=False),
            "bfloat16": make_settings(session, steps=STEPS, mixed_precision=True),
        }
        if not protocols.computes_bfloat16(session.device):
            del lessons["bfloat16"]
        seconds = {
            name: time_rounds(terminal, stored, settings, name=name, rounds=ROUNDS_FULL if full else ROUNDS)
            for name, settings in lessons.items()
        }
        equality = compare_outcomes(
            stored, make_settings(session, steps=EQUAL_STEPS, mixed_precision=False), directory=Path(directory)
        )
    head = shapes.count_head_layers(session.anatomy)
    tokens = STEPS * session.batch_windows * session.protocol.window_tokens
    return {
        "trainer_speedup": {
            name: {way: turns.spread_of(compare_seconds(rows, way)) for way in WAYS} for name, rows in seconds.items()
        },
        "trainer_bounds": {
            way: count_bound(
                [session.anatomy.num_layers - len(SETS[name]) for name in sets],
                num_layers=session.anatomy.num_layers,
                head_layers=head,
                is_stored=is_stored,
            )
            for way, (sets, is_stored) in WAYS.items()
        },
        "trainer_tokens_per_second": {
            name: {
                "Trainer": turns.spread_of([tokens / row[SINGLE_PROCESS] for row in rows]),
                **{way: turns.spread_of([len(WAYS[way][0]) * tokens / row[way] for row in rows]) for way in WAYS},
            }
            for name, rows in seconds.items()
        },
        "trainer_equality": equality,
        "trainer_details": {
            "head_layers": head,
            "batch_windows": session.batch_windows,
            "window_tokens": session.protocol.window_tokens,
            "steps": STEPS,
            "rounds": ROUNDS_FULL if full else ROUNDS,
        },
    }


def make_settings(session: sessions.Session, *, steps: int, mixed_precision: bool) -> DistillSettings:
    """The study's own settings, with one look at the end; micro-batches are batches where those are smaller."""
    settings = budgets.distill_settings(
        session,
        drop_layers(session.anatomy.num_layers, SETS[SINGLE_PROCESS]),
        steps=steps,
        learning_rate=LEARNING_RATE,
        looks=1,
    )
    micro_batch = min(settings.micro_batch, settings.batch_windows)
    assert settings.batch_windows % micro_batch == 0, "the Trainer knows whole micro-batches only"
    return structs.replace(settings, micro_batch=micro_batch, mixed_precision=mixed_precision)


def time_rounds(
    terminal: Terminal, stored: Instruments, settings: DistillSettings, *, name: str, rounds: int
) -> list[dict[str, float]]:
    """Seconds of every way, round by round; the Trainer's ways are called by their sets. A first round warms up."""
    starts = make_starts(stored)
    rows = []
    with tempfile.TemporaryDirectory() as directory, terminal.stage(name, total=rounds) as advance:
        for number in range(rounds + 1):
            ways: dict[str, Callable[[], float]] = {
                one: functools.partial(
                    time_trainer, stored, copy.deepcopy(starts[one]), settings, directory=Path(directory)
                )
                for one in SETS
            }
            for way, (sets, is_stored) in WAYS.items():
                students = [copy.deepcopy(starts[one]) for one in sets]
                teacher_states = stored.teacher_states if is_stored else None
                ways[way] = functools.partial(time_ours, stored, students, settings, teacher_states=teacher_states)
            names = list(ways) if number % 2 == 0 else list(ways)[::-1]
            row = {way: ways[way]() for way in names}
            if number > 0:
                rows.append(row)
                advance(1, f"{compare_seconds([row], next(iter(WAYS)))[0]:.2f}")
    return rows


def make_starts(instruments: Instruments) -> dict[str, nn.Module]:
    """A raw student of each set."""
    num_layers = instruments.anatomy.num_layers
    return {name: start_student(instruments, drop_layers(num_layers, gone), None) for name, gone in SETS.items()}


def compare_seconds(rows: Sequence[dict[str, float]], way: str) -> np.ndarray:
    """How many times as many tokens a second a way trains as the Trainer does on the same students, by round."""
    return np.array([sum(row[name] for name in WAYS[way][0]) / row[way] for row in rows])


def count_bound(kept: Sequence[int], *, num_layers: int, head_layers: float, is_stored: bool) -> float:
    """What sharing and storing the dense model's part could save at most, counted in layers."""
    trained = sum(3 * (layers + head_layers) for layers in kept)
    shared = head_layers if is_stored else num_layers + head_layers
    return (len(kept) * (num_layers + head_layers) + trained) / (shared + trained)


def time_ours(
    instruments: Instruments,
    students: Sequence[nn.Module],
    settings: DistillSettings,
    *,
    teacher_states: TeacherStates | None,
) -> float:
    """Seconds of our training, students side by side."""
    jobs = [TrainingJob(student=student, settings=settings, validate=lambda model: 0.0) for student in students]
    return turns.time_call(
        lambda: distill(jobs, instruments.anatomy, instruments.recovery, teacher_states=teacher_states)
    )


def time_trainer(instruments: Instruments, student: nn.Module, settings: DistillSettings, *, directory: Path) -> float:
    """Seconds of the Trainer's steps."""
    return run_trainer(instruments, student, settings, directory=directory).seconds


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run of the Trainer took, and its training loss step by step, nats per token."""

    seconds: float
    losses: tuple[float, ...]


def run_trainer(instruments: Instruments, student: nn.Module, settings: DistillSettings, *, directory: Path) -> Run:
    """Train a student in place by a Trainer, on the same batches that ours has."""
    student.requires_grad_(True)
    recovery = instruments.recovery
    windows = torch.cat([choose_windows(step, len(recovery.tokens_NT), settings) for step in range(settings.steps)])
    optimizer = torch.optim.AdamW(
        student.parameters(),
        lr=settings.learning_rate,
        weight_decay=0.0,
        betas=(0.9, 0.95),
        fused=True,
    )
    clock = Clock()
    trainer = DistillTrainer(
        model=student,
        args=TrainingArguments(
            output_dir=str(directory),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.micro_batch,
            gradient_accumulation_steps=settings.batch_windows // settings.micro_batch,
            max_grad_norm=1.0,
            bf16=settings.mixed_precision,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=True,
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": recovery.tokens_NT[window]} for window in windows],
        optimizers=(
            optimizer,
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, settings)),
        ),
        callbacks=[clock],
    )
    trainer.dense, trainer.mixed_precision = instruments.anatomy.model, settings.mixed_precision
    trainer.model_accepts_loss_kwargs = False  # the loss is a mean already
    with contextlib.redirect_stdout(None):  # it prints its last figures
        trainer.train()
    losses = torch.stack(trainer.losses).view(settings.steps, -1).mean(1)
    return Run(seconds=clock.end - clock.start, losses=tuple(losses.tolist()))


class DistillTrainer(Trainer):
    """Forward KL to a dense model, the plain way. It is given ``dense`` and ``mixed_precision`` after it was made."""

    dense: nn.Module
    mixed_precision: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[Tensor] = []

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.mixed_precision):
            with torch.no_grad():
                wanted = self.dense(input_ids=inputs["input_ids"], use_cache=False).logits
            found = model(input_ids=inputs["input_ids"], use_cache=False).logits
        loss = forward_kl(wanted.float(), found.float()).mean()
        self.losses.append(loss.detach())
        return loss


class Clock(TrainerCallback):
    """When training began, and when its last step ended."""

    def __init__(self) -> None:
        self.start = self.end = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.end = time.perf_counter()


def compare_outcomes(instruments: Instruments, settings: DistillSettings, *, directory: Path) -> dict[str, Any]:
    """Largest relative differences of losses between the Trainer's student and ours, in float32, from the same start."""

    def validate(model: nn.Module) -> float:  # not rounded as for export: that would hide or blow up differences
        return measure_losses(
            logits_of(model),
            instruments.validation,
            micro_batch=instruments.micro_batch,
            device=instruments.anatomy.device,
        ).loss

    found: dict[str, Any] = {"steps": settings.steps}
    settings = structs.replace(settings, looks=settings.steps)
    theirs = make_starts(instruments)[SINGLE_PROCESS]
    run = run_trainer(instruments, theirs, settings, directory=directory)
    theirs_end = validate(theirs)
    for name, teacher_states in (("stored states", instruments.teacher_states), ("live teacher", None)):
        job = TrainingJob(student=make_starts(instruments)[SINGLE_PROCESS], settings=settings, validate=validate)
        [distilled] = distill([job], instruments.anatomy, instruments.recovery, teacher_states=teacher_states)
        start, *curve = distilled.curve
        ours = [point.kl_divergence for point in curve]
        found[name] = {
            "training_loss_difference": float(np.abs(np.array(ours) / np.array(run.losses) - 1).max()),
            "validation_loss_difference": abs(curve[-1].validation_loss / theirs_end - 1),
            "training_loss": [ours[0], ours[-1]],
            "validation_loss": [start.validation_loss, curve[-1].validation_loss],
        }
    return found


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print ratios beside their bounds, rates, and how far outcomes differ."""
    details = fields["trainer_details"]
    for name, ratios in fields["trainer_speedup"].items():
        rates = fields["trainer_tokens_per_second"][name]
        rows = [["Trainer, one student", f"{rates['Trainer']['median']:,.0f}", "", ""]]
        rows += [
            [way, f"{rates[way]['median']:,.0f}", turns.show_spread(ratio), f"{fields['trainer_bounds'][way]:.2f}"]
            for way, ratio in ratios.items()
        ]
        terminal.show_table(
            ["training", "tokens / s", "over the Trainer (p10 to p90)", "bound by counting"],
            rows,
            title=f"{name}, steps of {details['batch_windows'] * details['window_tokens']:,} tokens: at least 1.0 wanted",
        )
    for name in ("stored states", "live teacher"):
        found = fields["trainer_equality"][name]
        terminal.say(
            f"float32, {name}, {fields['trainer_equality']['steps']} steps from the same start: training losses differ from the "
            f"Trainer's by at most {found['training_loss_difference']:.1e}, the last validation loss by "
            f"{found['validation_loss_difference']:.1e} (relative)"
        )
