"""The one distillation loop: short for a score, full for a model worth keeping.

Forward KL from the dense model's predictions to the student's at every position (Hinton et al. 2015, at
temperature 1), AdamW, warm-up then linear decay. Step 0 counts as a checkpoint, so what comes back is
never worse on validation than what went in. Resumable: the data of a step depends on the step alone.

The dense model's last hidden states come from ``recall``, which may have stored them. Logits of both models are
made by the family's own head, some positions at a time, so that no vocabulary is too large.

Which student, and from which weights, is decided by the caller. Shapes: B sequences, T tokens, V vocabulary.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from seed.models.anatomy import Anatomy
from seed.records import CurvePoint, hash_text
from seed.scoring import lora
from seed.scoring.corpus import TokenStream
from seed.scoring.quality import split_for_head
from seed.scoring.targets import Recall, recall_live

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
    mixed_precision: bool = False  # layers and head in bfloat16, weights and loss in float32
    frozen_layers: int = 0  # so many leading layers, and the embedding's use before them, are not trained
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
        return hash_text(repr(sorted(asdict(self).items())))


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """What a distillation went through. The student itself holds the best weights."""

    curve: tuple[CurvePoint, ...]
    best_step: int


def distill(
    student: nn.Module,
    dense: Anatomy,
    recovery: TokenStream,
    settings: DistillSettings,
    *,
    validate: Callable[[nn.Module], float],
    recall: Recall | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Distilled:
    """Train ``student`` towards the dense model and leave it with the weights that validated best.

    Args:
        student: on its device; trained in place. Float32 weights, but for LoRA, which leaves them as they are
            until its updates are merged into them at the end.
        dense: the dense model, frozen, on the same device.
        recovery: the windows to train on.
        settings: budget and rates.
        validate: model -> validation loss in nats per token.
        recall: windows -> the dense model's last hidden states; None runs the dense model in every step.
        checkpoint: where to save progress every half minute, and to resume from.
        on_step: called with the number of finished steps.
    """
    recall = recall or recall_live(dense, recovery)
    student.eval()  # no dropout: the student should learn the teacher's function, not be regularised
    student.requires_grad_(True)
    if settings.lora_rank is not None:
        lora.add_updates(student, rank=settings.lora_rank, rng_seed=settings.rng_seed)
    anatomy = Anatomy(student)
    look_steps = {max(1, round(settings.steps * look / settings.looks)) for look in range(1, settings.looks + 1)}
    batch_tokens = settings.batch_windows * recovery.tokens_NT.shape[1]
    with freeze_prefix(anatomy, settings.frozen_layers):
        trained = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
        optimizer = torch.optim.AdamW(
            trained.values(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=(0.9, 0.95),
            fused=True,
        )
        saved = _read_checkpoint(checkpoint, settings)
        if saved is None:
            start, best_step, best_loss, best_weights = 0, 0, validate(student), copy_weights(trained)
            curve = [CurvePoint(step=0, tokens=0, validation_loss=best_loss, kl_divergence=None)]
            divergences: list[float] = []
        else:
            load_weights(trained, saved["student"])
            optimizer.load_state_dict(saved["optimizer"])
            start, best_step, best_loss = saved["step"], saved["best_step"], saved["best_loss"]
            best_weights, divergences = saved["best"], saved["divergences"]
            curve = [msgspec.convert(point, CurvePoint) for point in saved["curve"]]
        last_saved, save_seconds = time.monotonic(), 0.0
        for step in range(start, settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * schedule(step, settings)
            windows = choose_windows(step, len(recovery.tokens_NT), settings)
            divergence = accumulate_gradient(anatomy, dense, recovery, windows, settings, recall=recall)
            torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            divergences.append(divergence)
            done = step + 1
            if done in look_steps:
                loss = validate(student)
                mean = sum(divergences) / len(divergences)
                divergences = []
                curve.append(
                    CurvePoint(step=done, tokens=done * batch_tokens, validation_loss=loss, kl_divergence=mean)
                )
                if loss < best_loss:
                    best_loss, best_step, best_weights = loss, done, copy_weights(trained)
            on_step(done)
            is_due = time.monotonic() - last_saved > max(CHECKPOINT_SECONDS, save_seconds / SAVING_SHARE)
            if checkpoint and done < settings.steps and is_due:
                began_saving = time.monotonic()
                state = {
                    "fingerprint": settings.fingerprint,
                    "step": done,
                    "student": copy_weights(trained),
                    "optimizer": optimizer.state_dict(),
                    "best": best_weights,
                    "best_step": best_step,
                    "best_loss": best_loss,
                    "divergences": divergences,
                    "curve": msgspec.to_builtins(curve),
                }
                _write_checkpoint(checkpoint, state)
                last_saved = time.monotonic()
                save_seconds = last_saved - began_saving
        load_weights(trained, best_weights)
    student.requires_grad_(False)
    if settings.lora_rank is not None:
        lora.merge_updates(student)
    return Distilled(curve=tuple(curve), best_step=best_step)


def accumulate_gradient(
    student: Anatomy,
    dense: Anatomy,
    recovery: TokenStream,
    windows: Tensor,
    settings: DistillSettings,
    *,
    recall: Recall,
) -> float:
    """Add the gradient of the batch's mean KL divergence to the student's weights; return it, nats per token.

    Layers run on ``micro_batch`` windows at once. The head follows on fewer positions at a time: each part's
    gradient goes back to the last hidden state, and from there through the layers once.
    """
    device = student.device
    tokens_BT = recovery.tokens_NT[windows].to(device)
    targets_BTD = recall(windows)
    vocabulary = student.config.vocab_size
    total = torch.zeros((), dtype=torch.float64, device=device)
    for rows in torch.arange(len(windows)).split(settings.micro_batch):
        piece, target = tokens_BT[rows], targets_BTD[rows]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.mixed_precision):
            hidden = student.run_layers(piece)
        leaf = hidden.detach().requires_grad_(True)
        for part in split_for_head(piece, vocabulary=vocabulary):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.mixed_precision):
                logits = student.compute_logits(leaf[part], piece[part])
                with torch.no_grad():
                    wanted = dense.compute_logits(target[part], piece[part])
            divergence, gradient = kl_and_gradient(wanted, logits.detach())
            total += divergence.sum()
            logits.backward((gradient / tokens_BT.numel()).to(logits.dtype))
        if hidden.requires_grad:
            hidden.backward(leaf.grad)
    return float(total) / tokens_BT.numel()


@torch.no_grad()
def kl_and_gradient(teacher_logits: Tensor, student_logits: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) at every position in nats, and its gradient by the student's logits (..., V), float32.

    The gradient is softmax(student) - softmax(teacher) (Hinton et al. 2015, equation 2 at temperature 1).
    """
    wanted = torch.log_softmax(teacher_logits.float(), dim=-1)
    found = torch.log_softmax(student_logits.float(), dim=-1)
    probabilities = wanted.exp()
    divergence = (probabilities * wanted.sub_(found)).sum(-1)
    return divergence, found.exp_().sub_(probabilities)


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


def copy_weights(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the values of the trained weights, apart from what training does to them next."""
    return {name: weight.detach().clone() for name, weight in weights.items()}


@torch.no_grad()
def load_weights(weights: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    """Give the trained weights other values."""
    assert weights.keys() == values.keys()
    for name, weight in weights.items():
        weight.copy_(values[name])


def schedule(step: int, settings: DistillSettings) -> float:
    """Learning rate of a step as a share of its peak: linear warm-up, then linear to near zero."""
    warmup = max(1, round(settings.steps * settings.warmup_share))
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
