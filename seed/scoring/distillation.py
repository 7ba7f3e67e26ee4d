"""The one distillation loop: short for a score, full for a model worth keeping.

Forward KL from the dense model's predictions to the student's at every position (Hinton et al. 2015, at
temperature 1), AdamW, warm-up then linear decay. Step 0 counts as a checkpoint, so what comes back is
never worse on validation than what went in. Resumable: the data of a step depends on the step alone.

Which student, and from which weights, is decided by the caller. Shapes: B sequences, T tokens.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seed.records import CurvePoint, hash_text
from seed.scoring.corpus import TokenStream
from seed.scoring.quality import forward_kl

CHECKPOINT_SECONDS = 30.0
SAVING_SHARE = 0.05  # of a large model's time, at most, goes into saving


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """What decides the outcome of a distillation, besides its start and its data."""

    steps: int
    batch_windows: int
    micro_batch: int
    learning_rate: float
    rng_seed: int
    warmup_share: float = 0.05
    weight_decay: float = 0.0
    looks: int = 8  # validations after step 0, evenly spread; the last is at the last step

    def __post_init__(self) -> None:
        assert self.steps >= 1
        assert self.batch_windows >= 1
        assert self.micro_batch >= 1
        assert self.learning_rate > 0

    @property
    def fingerprint(self) -> str:
        """A hash of the settings."""
        return hash_text(repr(sorted(asdict(self).items())))


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """What a distillation went through. The student itself holds the best weights."""

    curve: tuple[CurvePoint, ...]
    best_step: int


def distill(
    student: nn.Module,
    teacher: nn.Module,
    recovery: TokenStream,
    settings: DistillSettings,
    *,
    validate: Callable[[nn.Module], float],
    checkpoint: Path | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Distilled:
    """Train ``student`` towards ``teacher`` and leave it with the weights that validated best.

    Args:
        student: float32 weights on its device; trained in place.
        teacher: the dense model, frozen, on the same device.
        recovery: the windows to train on.
        settings: budget and rates.
        validate: model -> validation loss in nats per token.
        checkpoint: where to save progress every half minute, and to resume from.
        on_step: called with the number of finished steps.
    """
    device = next(student.parameters()).device
    student.requires_grad_(True)
    student.eval()  # no dropout: the student should learn the teacher's function, not be regularised
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.95)
    )
    look_steps = {max(1, round(settings.steps * look / settings.looks)) for look in range(1, settings.looks + 1)}
    start, curve, best_loss, best_step, best_weights = 0, [], math.inf, 0, {}
    saved = _read_checkpoint(checkpoint, settings)
    if saved is None:
        best_loss = validate(student)
        curve = [CurvePoint(step=0, tokens=0, validation_loss=best_loss, kl_divergence=None)]
        best_weights = copy.deepcopy(student.state_dict())
    else:
        student.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
        start, best_step, best_loss, best_weights = saved["step"], saved["best_step"], saved["best_loss"], saved["best"]
        curve = [CurvePoint(**point) for point in saved["curve"]]
    divergences: list[float] = saved["divergences"] if saved else []
    last_saved, save_seconds = time.monotonic(), 0.0
    batch_tokens = settings.batch_windows * recovery.tokens_NT.shape[1]
    for step in range(start, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, settings)
        batch = recovery.tokens_NT[choose_windows(step, len(recovery.tokens_NT), settings)].to(device)
        divergences.append(_train_step(student, teacher, batch, optimizer, micro_batch=settings.micro_batch))
        done = step + 1
        if done in look_steps:
            loss = validate(student)
            mean = sum(divergences) / len(divergences)
            divergences = []
            curve.append(CurvePoint(step=done, tokens=done * batch_tokens, validation_loss=loss, kl_divergence=mean))
            if loss < best_loss:
                best_loss, best_step = loss, done
                best_weights = copy.deepcopy(student.state_dict())
        on_step(done)
        is_due = time.monotonic() - last_saved > max(CHECKPOINT_SECONDS, save_seconds / SAVING_SHARE)
        if checkpoint and done < settings.steps and is_due:
            began_saving = time.monotonic()
            state = {
                "fingerprint": settings.fingerprint,
                "step": done,
                "student": student.state_dict(),
                "optimizer": optimizer.state_dict(),
                "best": best_weights,
                "best_step": best_step,
                "best_loss": best_loss,
                "divergences": divergences,
                "curve": [
                    {
                        "step": p.step,
                        "tokens": p.tokens,
                        "validation_loss": p.validation_loss,
                        "kl_divergence": p.kl_divergence,
                    }
                    for p in curve
                ],
            }
            _write_checkpoint(checkpoint, state)
            last_saved = time.monotonic()
            save_seconds = last_saved - began_saving
    student.load_state_dict(best_weights)
    student.requires_grad_(False)
    return Distilled(curve=tuple(curve), best_step=best_step)


def schedule(step: int, settings: DistillSettings) -> float:
    """Learning rate of a step as a share of its peak: linear warm-up, then linear to near zero."""
    warmup = max(1, round(settings.steps * settings.warmup_share))
    return min((step + 1) / warmup, (settings.steps - step) / max(1, settings.steps - warmup + 1))


def choose_windows(step: int, num_windows: int, settings: DistillSettings) -> Tensor:
    """Windows of a step: a shuffled pass over all of them before any comes again; depends on the step alone."""
    positions = range(step * settings.batch_windows, (step + 1) * settings.batch_windows)
    orders: dict[int, Tensor] = {}
    chosen = []
    for position in positions:
        epoch, index = divmod(position, num_windows)
        if epoch not in orders:
            generator = torch.Generator().manual_seed(settings.rng_seed * 1_000_003 + epoch)
            orders[epoch] = torch.randperm(num_windows, generator=generator)
        chosen.append(int(orders[epoch][index]))
    return torch.tensor(chosen)


def tune_learning_rate(
    learning_rates: Sequence[float],
    run: Callable[[float], float],
) -> tuple[float, dict[float, float]]:
    """Return the rate whose run ends with the lowest validation loss, and every rate's loss.

    Rates are tried upwards until one is worse than the one before: losses over rates have one valley.
    """
    losses: dict[float, float] = {}
    for rate in sorted(learning_rates):
        loss = run(rate)
        losses[rate] = loss if math.isfinite(loss) else math.inf
        if losses[rate] > min(losses.values()) * (1 + 1e-4):
            break
    return min(losses, key=lambda rate: losses[rate]), losses


def _train_step(
    student: nn.Module, teacher: nn.Module, batch_BT: Tensor, optimizer: torch.optim.Optimizer, *, micro_batch: int
) -> float:
    """One optimizer step on a batch; returns its mean KL divergence in nats per token."""
    total = 0.0
    for piece in batch_BT.split(micro_batch):
        with torch.no_grad():
            teacher_logits = teacher(input_ids=piece, use_cache=False).logits.float()
        with torch.autocast(piece.device.type, dtype=torch.bfloat16, enabled=piece.device.type == "cuda"):
            student_logits = student(input_ids=piece, use_cache=False).logits
        loss = forward_kl(teacher_logits, student_logits.float()).sum() / batch_BT.numel()
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    with aside.open("wb") as handle:
        torch.save(state, handle)
        handle.flush()
        os.fsync(handle.fileno())
    aside.replace(path)


def _read_checkpoint(path: Path | None, settings: DistillSettings) -> dict[str, Any] | None:
    """Return a saved state of the same settings; a torn or foreign one is as good as none."""
    if path is None or not path.is_file():
        return None
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever a torn file makes torch raise; training starts anew
        return None
    is_ours = isinstance(state, dict) and state.get("fingerprint") == settings.fingerprint
    return state if is_ours else None
