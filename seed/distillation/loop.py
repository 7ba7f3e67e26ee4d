"""The one training loop of recovery: short for a score, full for a model worth keeping, one student or several.

AdamW, warm-up then linear decay, towards an ``Objective``. Step 0 counts as a checkpoint, so what comes back is never
worse on validation than what went in; a training whose numbers stop being finite ends there. Resumable: the data of a
step depends on the step alone. Students that see the same batches share the dense model's part of each.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from seed import interrupts, untrusted
from seed.data.corpus import TokenStream
from seed.distillation import lora
from seed.distillation.losses import Learner, Objective, accumulate_gradients
from seed.distillation.processes import SINGLE_PROCESS, SingleProcess
from seed.distillation.teacher_states import TeacherStates, run_teacher
from seed.models.anatomy import Anatomy
from seed.records import CurvePoint, Record, hash_text

CHECKPOINT_SECONDS = 30.0
WARMUP_SHARE = 0.05  # of the steps
PREDICTIONS = Objective()  # the dense model's, and nothing else
SAVING_SHARE = 0.05  # of a large model's time, at most, goes into saving


class DistillSettings(Record, frozen=True, kw_only=True):
    """What decides the outcome of a distillation, besides its start and its data."""

    steps: int
    batch_windows: int
    micro_batch: int
    learning_rate: float
    rng_seed: int
    looks: int = 8  # validations after step 0, evenly spread; the last is at the last step
    objective: Objective = PREDICTIONS
    mixed_precision: bool = False  # layers and head in bfloat16, weights and loss in float32
    frozen_layers: int = 0  # so many leading layers, and the embedding's use before them, are not trained
    recomputes: bool = False  # layers run again on the way back: less memory, a third more time, the same outcome
    lora_rank: int | None = None  # train low-rank updates of the linear maps only

    def __post_init__(self) -> None:
        assert self.steps >= 1
        assert self.batch_windows >= 1
        assert self.micro_batch >= 1
        assert self.learning_rate > 0
        assert self.frozen_layers >= 0
        assert self.lora_rank is None or self.lora_rank >= 1

    @property
    def fingerprint(self) -> str:
        """A hash of the settings."""
        decisive = {name: value for name, value in msgspec.to_builtins(self).items() if name != "recomputes"}
        return hash_text(repr(sorted(decisive.items())))

    @property
    def batch_key(self) -> tuple[object, ...]:
        """What students must have in common to learn from the same batches."""
        return (
            self.steps,
            self.batch_windows,
            self.micro_batch,
            self.rng_seed,
            self.objective,
            self.mixed_precision,
            self.recomputes,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A student to be trained in place.

    Float32 weights, but for LoRA, which leaves them as they are until its updates are merged into them at the end.
    ``validate``: model -> validation loss in nats per token. ``boundaries``: see ``losses.Learner``; only objectives
    that match states need them. ``checkpoint``: where to save progress every half minute, and to resume from.
    ``on_warning`` is told, for people, what went wrong and was got over.
    """

    student: nn.Module
    settings: DistillSettings
    validate: Callable[[nn.Module], float]
    boundaries: tuple[int, ...] | None = None
    checkpoint: Path | None = None
    on_warning: Callable[[str], None] = lambda said: None


class TrainingState(msgspec.Struct, kw_only=True):
    """How far a training is, but for weights."""

    done: int = 0  # steps
    best_step: int = 0
    best_loss: float
    curve: list[CurvePoint]
    divergences: list[float]  # of the steps since the last look


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """What a distillation went through. The student itself holds the best weights."""

    curve: tuple[CurvePoint, ...]  # looks that gave a number
    best_step: int
    diverged_at: int | None = None  # the step where its numbers stopped being finite, which ended it

    @property
    def best_loss(self) -> float:
        """The validation loss of the weights that are kept, nats per token; not a number where no look gave one."""
        return min((point.validation_loss for point in self.curve), default=math.nan)


def distill(
    jobs: Sequence[TrainingJob],
    dense: Anatomy,
    recovery: TokenStream,
    *,
    teacher_states: TeacherStates | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    processes: SingleProcess = SINGLE_PROCESS,
) -> list[Distilled]:
    """Train students side by side and leave each with the weights that validated best.

    Args:
        jobs: on the dense model's device; alike in ``DistillSettings.batch_key``.
        dense: the dense model, frozen.
        recovery: the windows to train on.
        teacher_states: windows -> the dense model's last hidden states; None runs the dense model in every step.
        on_step: called with the number of steps that all have finished.
        processes: those that do this together; students and dense model of several are sharded.
    """
    teacher_states = teacher_states or run_teacher(dense, recovery)
    settings = jobs[0].settings
    assert all(job.settings.batch_key == settings.batch_key for job in jobs), "one batch for all"
    with contextlib.ExitStack() as stack:
        window_tokens = recovery.tokens_NT.shape[1]
        trainings = [_Training(job, stack, processes, window_tokens=window_tokens) for job in jobs]
        is_asked = stack.enter_context(interrupts.hold())  # then it ends behind the step at hand, and loses nothing
        for step in range(min(training.done for training in trainings), settings.steps):
            # others were saved further on, or ended
            active = [training for training in trainings if training.done == step]
            if not active:
                on_step(step + 1)
                continue
            windows = choose_windows(step, len(recovery.tokens_NT), settings)
            divergences = accumulate_gradients(
                [training.learner for training in active],
                dense,
                recovery,
                windows,
                settings.objective,
                micro_batch=settings.micro_batch,
                mixed_precision=settings.mixed_precision,
                recomputes=settings.recomputes,
                teacher_states=teacher_states,
                processes=processes,
            )
            for training, divergence in zip(active, divergences, strict=True):
                training.take_step(divergence)
            on_step(step + 1)
            ends = processes.is_any(is_asked())
            for training in active:
                training.save_when_due(at_once=ends)
            if ends:
                processes.wait()  # launchers end the others with the one that ends first
                raise interrupts.Stopped
        return [training.finish() for training in trainings]


class _Training:
    """One student on its way: its optimizer, its curve, its best weights so far."""

    def __init__(
        self, job: TrainingJob, stack: contextlib.ExitStack, processes: SingleProcess, *, window_tokens: int
    ) -> None:
        """``stack`` holds what has to be undone when training ends."""
        self.job, self.processes, settings = job, processes, job.settings
        student = job.student
        student.eval()  # no dropout: the student should learn the teacher's function, not be regularised
        student.requires_grad_(True)
        if settings.lora_rank is not None:
            lora.add_updates(student, rank=settings.lora_rank, rng_seed=settings.rng_seed)
        self.learner = Learner(anatomy=Anatomy(student), boundaries=job.boundaries)
        stack.enter_context(freeze_prefix(self.learner.anatomy, settings.frozen_layers))
        self.look_steps = {
            max(1, round(settings.steps * look / settings.looks)) for look in range(1, settings.looks + 1)
        }
        self.batch_tokens = settings.batch_windows * window_tokens
        self.trained = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=settings.learning_rate,
            weight_decay=0.0,
            betas=(0.9, 0.95),
            fused=True,
        )
        saved = _load_checkpoint(job, self.trained) if processes.leads else {}
        progress: TrainingState | None = processes.share(saved.get("progress"), TrainingState | None)
        if progress is None:
            loss = job.validate(student)
            first = CurvePoint(step=0, tokens=0, validation_loss=loss, kl_divergence=None)
            progress = TrainingState(best_loss=loss, curve=[first] if math.isfinite(loss) else [], divergences=[])
            self.best_weights = processes.copy_weights(student, self.trained)
        else:
            processes.load_weights(student, self.trained, saved.get("student", {}))
            processes.load_optimizer(student, self.optimizer, saved.get("optimizer", {}))
            self.best_weights = saved.get("best", {})
        self.progress, self.done = progress, progress.done
        self.diverged_at: int | None = None
        self.last_saved, self.save_seconds = time.monotonic(), 0.0

    def take_step(self, divergence: float | None) -> None:
        """Move the weights along the gradient that lies ready, and look at validation text when it is time."""
        settings, progress = self.job.settings, self.progress
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(self.done, settings)
        norm = self.processes.clip_gradients(self.trained)
        if not norm.isfinite().all():  # one step further no weight would be a number
            self._end_early()
            return
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if divergence is not None and math.isfinite(divergence):
            progress.divergences.append(divergence)
        self.done = progress.done = self.done + 1
        if self.done not in self.look_steps:
            return
        loss = self.job.validate(self.job.student)
        if not math.isfinite(loss):
            self._end_early()
            return
        mean = sum(progress.divergences) / len(progress.divergences) if progress.divergences else None
        progress.divergences = []
        tokens = self.done * self.batch_tokens
        progress.curve.append(CurvePoint(step=self.done, tokens=tokens, validation_loss=loss, kl_divergence=mean))
        if loss < progress.best_loss or not math.isfinite(progress.best_loss):
            progress.best_loss, progress.best_step = loss, self.done
            self.best_weights = self.processes.copy_weights(self.job.student, self.trained)

    def _end_early(self) -> None:
        self.diverged_at, self.done = self.done, self.job.settings.steps
        self.optimizer.zero_grad(set_to_none=True)

    def save_when_due(self, *, at_once: bool = False) -> None:
        """Save progress, if the last time was long enough ago, or at once."""
        path = self.job.checkpoint
        is_due = at_once or time.monotonic() - self.last_saved > max(
            CHECKPOINT_SECONDS, self.save_seconds / SAVING_SHARE
        )
        is_wanted = path is not None and self.done < self.job.settings.steps and is_due
        if not self.processes.is_any(is_wanted and self.processes.leads):  # by one clock
            return
        began = time.monotonic()
        state = {
            "fingerprint": self.job.settings.fingerprint,
            "progress": msgspec.to_builtins(self.progress),
            "student": self.processes.copy_weights(self.job.student, self.trained),
            "optimizer": self.processes.copy_optimizer(self.job.student, self.optimizer),
            "best": self.best_weights,
        }
        if path is not None and self.processes.leads:
            with untrusted.replace_file(path) as file:
                torch.save(state, file)
        self.last_saved = time.monotonic()
        self.save_seconds = self.last_saved - began

    def finish(self) -> Distilled:
        """Leave the student with its best weights, frozen, its low-rank updates merged."""
        settings, progress = self.job.settings, self.progress
        if self.diverged_at is not None:
            self.job.on_warning(
                f"training diverged at step {self.diverged_at} of {settings.steps} and ended there; the weights of step "
                f"{progress.best_step} are kept. Lower --learning-rate ({settings.learning_rate:g})."
            )
        self.processes.load_weights(self.job.student, self.trained, self.best_weights)
        self.job.student.requires_grad_(False)
        if settings.lora_rank is not None:
            lora.merge_updates(self.job.student)
        return Distilled(curve=tuple(progress.curve), best_step=progress.best_step, diverged_at=self.diverged_at)


@contextlib.contextmanager
def freeze_prefix(anatomy: Anatomy, frozen_layers: int) -> Iterator[None]:
    """Keep the first layers as they are, and let no gradient pass below them, until the block ends.

    An embedding that is tied to the head is still trained through the head.
    """
    if frozen_layers == 0:
        yield
        return
    assert frozen_layers < anatomy.num_layers
    for layer in anatomy.layers[:frozen_layers]:
        layer.requires_grad_(False)
    embedding, head = anatomy.model.get_input_embeddings(), anatomy.model.get_output_embeddings()  # type: ignore[operator]
    if head is None or embedding.weight is not head.weight:
        embedding.requires_grad_(False)

    def cut(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (args[0].detach(), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach()}

    handle = anatomy.layers[frozen_layers].register_forward_pre_hook(cut, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def schedule(step: int, settings: DistillSettings) -> float:
    """Learning rate of a step as a share of its peak: linear warm-up, then linear to near zero."""
    warmup = max(1, round(settings.steps * WARMUP_SHARE))
    return min((step + 1) / warmup, (settings.steps - step) / max(1, settings.steps - warmup + 1))


def choose_windows(step: int, num_windows: int, settings: DistillSettings) -> Tensor:
    """Windows of a step: a shuffled pass over all of them before any comes again; depends on the step alone."""
    return draw_windows(
        range(step * settings.batch_windows, (step + 1) * settings.batch_windows),
        num_windows=num_windows,
        rng_seed=settings.rng_seed,
    )


def draw_windows(positions: range, *, num_windows: int, rng_seed: int) -> Tensor:
    """The windows at some positions of an endless sequence of shuffled passes over all windows."""
    orders: dict[int, Tensor] = {}
    chosen = []
    for position in positions:
        epoch, index = divmod(position, num_windows)
        if epoch not in orders:
            generator = torch.Generator().manual_seed(rng_seed * 1_000_003 + epoch)
            orders[epoch] = torch.randperm(num_windows, generator=generator)
        chosen.append(int(orders[epoch][index]))
    return torch.tensor(chosen)


def _load_checkpoint(job: TrainingJob, trained: dict[str, nn.Parameter]) -> dict[str, Any]:
    """A saved state of the same settings and of these weights; another is as good as none, which is empty."""
    path = job.checkpoint
    if path is None or not path.is_file():
        return {}
    shapes = {name: weight.shape for name, weight in trained.items()}
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["fingerprint"] != job.settings.fingerprint:
            return {}
        alike = [{name: one.shape for name, one in state[part].items()} == shapes for part in ("student", "best")]
        [group], places = state["optimizer"]["param_groups"], list(shapes.values())
        alike += [len(group["params"]) == len(places)]
        alike += [one["exp_avg"].shape == places[place] for place, one in state["optimizer"]["state"].items()]
        if all(alike):
            return {**state, "progress": msgspec.convert(state["progress"], TrainingState)}
    except Exception:  # noqa: S110 - whatever such a file makes torch raise
        pass
    job.on_warning(f"{path}: damaged, or not written by this version. It is not used: this training starts anew.")
    return {}
