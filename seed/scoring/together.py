"""Training students together with other processes: the first one's part, which leads, and the others', who follow.

The first process opens models and text, decides, and judges, as if it were alone. When it comes to training, it sends
the others all they need: so they open no file, and cannot disagree with it. While students train, they and the dense
model are sharded over all; whole models wait in the first one's host memory.
"""

import contextlib
import functools
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from seed.errors import ResourceError
from seed.models.anatomy import Anatomy
from seed.models.outline import Outline, draw_outline
from seed.records import Record
from seed.scoring import sharding
from seed.scoring.corpus import TokenStream
from seed.scoring.distillation import Distilled, DistillSettings, Pupil, distill
from seed.scoring.process_group import ProcessGroup, find_device
from seed.scoring.quality import logits_of, measure_token_losses, sum_by_document


class Order(Record, frozen=True, kw_only=True):
    """One training, as the first process describes it to the others; weights and text follow."""

    students: tuple[Outline, ...]
    settings: tuple[DistillSettings, ...]
    dense: Outline
    micro_batch: int
    stored_dtype: torch.dtype
    device_type: str


class StreamNote(Record, frozen=True, kw_only=True):
    """A token stream without its tokens, and without whose they are."""

    source: str
    num_documents: int


@dataclass(frozen=True, kw_only=True)
class _Whole:
    """What only the first process has: whole models, text, and where progress is saved."""

    dense: nn.Module
    pupils: Sequence[Pupil]
    recovery: TokenStream
    validation: TokenStream


def refuse_unfit(settings: DistillSettings, model: nn.Module) -> None:
    """Raise with the reason when several processes cannot train students of a model by these settings.

    Raises:
        ResourceError: with the cure.
        ModelError: likewise; the others cannot build this model.
    """
    reason = None
    if settings.lora_rank is not None:
        reason = "this study trains low-rank updates (LoRA), which are small enough for one"
    if settings.objective.needs_states:
        reason = "this study's objective measures the layers' states beside all others in one process's windows"
    if type(model).__module__.startswith("transformers_modules."):
        reason = "this model brings its own code, which the other processes do not have"
    if any(isinstance(module, nn.ModuleList) and name.endswith("experts") for name, module in model.named_modules()):
        reason = "this model's experts are modules of their own, and those that no token of a process chooses have no gradient"
    if reason:
        raise ResourceError(f"several processes: {reason}. Run the same command in one process, with python -m.")
    draw_outline(model)


def lead(
    group: ProcessGroup,
    pupils: Sequence[Pupil],
    dense: Anatomy,
    *,
    recovery: TokenStream,
    validation: TokenStream,
    micro_batch: int,
    stored_dtype: torch.dtype,
    idle: Sequence[nn.Module] = (),
    on_step: Callable[[int], None] = lambda step: None,
) -> list[Distilled]:
    """Train whole students as ``distill`` does, with the help of all who ``follow``.

    Args:
        group: the processes; this is the first.
        pupils: whole students. They are validated on the validation stream as they would be exported.
        dense: the dense model, whole.
        recovery: the windows to train on.
        validation: the windows to validate on.
        micro_batch: validation windows that go through a model at once.
        stored_dtype: the type that weights are exported in.
        idle: other models that need not lie on the device meanwhile.
        on_step: called with the number of steps that all have finished.
    """
    students, device_type = [pupil.student for pupil in pupils], dense.device.type
    with _on_host([dense.model, *students, *idle]):
        order = Order(
            students=tuple(map(draw_outline, students)),
            settings=tuple(pupil.settings for pupil in pupils),
            dense=draw_outline(dense.model),
            micro_batch=micro_batch,
            stored_dtype=stored_dtype,
            device_type=device_type,
        )
        group.tell(order, Order | None)
        recovery = replace(recovery, documents_NT=recovery.documents_NT[:0])  # nobody asks whose they are
        whole = _Whole(dense=dense.model, pupils=pupils, recovery=recovery, validation=validation)
        return _train(group, order, whole, on_step=on_step)


def dismiss(group: ProcessGroup) -> None:
    """Let the others go: nothing more will be trained."""
    group.tell(None, Order | None)


def follow(group: ProcessGroup) -> None:
    """Take part in what the first process trains, until it lets the others go."""
    while order := group.hear(Order | None):
        _train(group, order)


def share_stream(group: ProcessGroup, stream: TokenStream | None) -> TokenStream:
    """A stream that only the first process has, in every process."""
    note: StreamNote = group.tell(
        None if stream is None else StreamNote(source=stream.source, num_documents=stream.num_documents), StreamNote
    )
    tokens_NT = group.share(None if stream is None else stream.tokens_NT)
    documents_NT = group.share(None if stream is None else torch.from_numpy(stream.documents_NT))
    return TokenStream(
        tokens_NT=tokens_NT,
        documents_NT=documents_NT.numpy(),
        num_documents=note.num_documents,
        source=note.source,
    )


def _train(
    group: ProcessGroup,
    order: Order,
    whole: _Whole | None = None,
    *,
    on_step: Callable[[int], None] = lambda step: None,
) -> list[Distilled]:
    """Every process's part of a training; only the first has anything whole."""
    device = find_device(group, order.device_type)
    recovery = share_stream(group, None if whole is None else whole.recovery)
    validation = share_stream(group, None if whole is None else whole.validation)
    dense = None if whole is None else whole.dense
    teacher = sharding.shard_model(order.dense, sharding.share_buffers(group, order.dense, dense), dense, device=device)
    sharded = []
    for place, (drawn, settings) in enumerate(zip(order.students, order.settings, strict=True)):
        pupil = None if whole is None else whole.pupils[place]
        student = None if pupil is None else pupil.student
        buffers = sharding.share_buffers(group, drawn, student)
        exported = sharding.shard_empty(drawn, buffers, dtype=order.dense.dtypes[0], device=device)
        sharded.append(
            Pupil(
                student=sharding.shard_model(drawn, buffers, student, device=device),
                settings=settings,
                validate=functools.partial(
                    _validate, group=group, order=order, validation=validation, exported=exported, device=device
                ),
                checkpoint=None if pupil is None else pupil.checkpoint,
                complain=_ignore if pupil is None else pupil.complain,
            )
        )
    with warnings.catch_warnings():
        # OPT's layers end in a view, and FSDP fears that someone changes it in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
        distilled = distill(sharded, Anatomy(teacher), recovery, on_step=on_step, group=group)
    for place, pupil in enumerate(sharded):
        weights = [sharding.copy_whole(weight) for weight in pupil.student.parameters()]
        if whole is not None:
            _settle(whole.pupils[place].student, weights)
    del teacher, sharded, exported, pupil
    gc.collect()  # sharded models refer to themselves, and their memory is wanted
    return distilled


def _ignore(said: str) -> None:
    """Leave it to the first process to say it."""


@torch.no_grad()
def _settle(student: nn.Module, weights: Sequence[torch.Tensor]) -> None:
    """Leave a whole student as training in one process leaves it: with its best weights, frozen."""
    for weight, value in zip(student.parameters(), weights, strict=True):
        weight.copy_(value)
    student.eval().requires_grad_(False)


def _validate(
    student: nn.Module,
    *,
    group: ProcessGroup,
    order: Order,
    validation: TokenStream,
    exported: nn.Module,
    device: torch.device,
) -> float:
    """Validation loss of a sharded student as it would be exported and opened again; each process takes its share of windows."""
    sharding.round_weights(student, exported, stored=order.stored_dtype)
    tokens_NT = validation.tokens_NT
    mine, _ = group.take_share(torch.arange(len(tokens_NT)))
    rows = measure_token_losses(logits_of(exported), tokens_NT[mine], micro_batch=order.micro_batch, device=device)
    return sum_by_document(group.gather_rows(rows, num_rows=len(tokens_NT)), validation).loss


@contextlib.contextmanager
def _on_host(models: Sequence[nn.Module]) -> Iterator[None]:
    """Let models lie in the host's memory until the block ends."""
    devices = [next(model.parameters()).device for model in models]
    for model in models:
        model.to("cpu")
    try:
        yield
    finally:
        for model, device in zip(models, devices, strict=True):
            model.to(device)
