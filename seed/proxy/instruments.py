"""What scoring works with: the resident dense model, its streams, what is known of it, and what they make.

In a later stage of a search candidates are cut from a model that was recovered before and grafted into the dense one's
skeleton. The dense model stays the teacher of every distillation and the base of every ratio.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seed.data.corpus import TokenStream
from seed.distillation import lora
from seed.distillation.loop import Distilled, DistillSettings, TrainingJob, distill
from seed.distillation.processes import SINGLE_PROCESS, SingleProcess
from seed.distillation.teacher_states import TeacherStates
from seed.evaluation.perplexity import DocumentLosses, logits_of, measure_losses
from seed.models.anatomy import Anatomy, SublayerAnatomy
from seed.models.checkpoint import measure_size
from seed.models.surgery import cast_weights, make_student, view_layers
from seed.models.width import WidthImportance
from seed.proxy.closed_form import Refit, fold_refit
from seed.proxy.importance import measure_width_importance
from seed.proxy.subset_walker import SubsetWalker
from seed.records import Candidate, Size


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """The dense model and its streams on the device, opened once."""

    anatomy: Anatomy
    calibration: TokenStream
    recovery: TokenStream
    validation: TokenStream
    dense_validation: DocumentLosses
    gains: dict[int, float] | None  # None: closed form is not available for this family
    micro_batch: int
    stored_dtype: torch.dtype
    # the dense model's stored last hidden states; None: computed in every step
    teacher_states: TeacherStates | None = None
    grafted: Anatomy | None = None  # what candidates are cut from instead of the dense model
    by_sublayers: bool = False  # do attention and MLP go alone?
    processes: SingleProcess = SINGLE_PROCESS  # those that train together; all else the first does alone

    @property
    def source(self) -> Anatomy:
        """The model whose layers candidates are made of."""
        return self.grafted or self.anatomy

    @functools.cached_property
    def walked(self) -> Anatomy:
        """The same as it is walked for scores: layer by layer, or by attention and MLP."""
        return SublayerAnatomy(self.source.model) if self.by_sublayers else self.source

    @functools.cached_property
    def width_importance(self) -> WidthImportance:
        """What the dense model's neurons and heads are worth, on calibration text; measured when first asked for."""
        return measure_width_importance(self.anatomy, self.calibration, micro_batch=self.micro_batch)

    @property
    def teacher(self) -> Any:
        """The dense model."""
        return self.anatomy.model


def make_walker(instruments: Instruments) -> SubsetWalker:
    """Return a walker over subsets with closed-form recovery."""
    assert instruments.gains is not None, "closed form is available for this family"
    return SubsetWalker(
        instruments.walked,
        calibration=instruments.calibration,
        validation=instruments.validation,
        micro_batch=instruments.micro_batch,
        gains=instruments.gains,
    )


def start_student(
    instruments: Instruments, candidate: Candidate, refit: Refit | None, *, settings: DistillSettings | None = None
) -> nn.Module:
    """A standalone student, raw or with the maps folded in, ready to be trained by these settings.

    In float32, but when low-rank updates will be trained: then in the dense model's own type.
    """
    student = cast_weights(make_student(instruments.source, candidate), torch.float32)
    if refit is not None:
        fold_refit(student, candidate, refit, by_sublayers=instruments.by_sublayers)
    if settings is not None and settings.lora_rank is not None:
        cast_weights(student, next(instruments.anatomy.model.parameters()).dtype)
    return student


def train_student(
    instruments: Instruments,
    student: nn.Module,
    settings: DistillSettings,
    *,
    candidate: Candidate | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Distilled:
    """Train one student on the recovery stream, validated as it would be exported. ``candidate``: its layers' original places."""
    job = make_job(instruments, student, settings, candidate=candidate, checkpoint=checkpoint)
    [distilled] = train_students(instruments, [job], on_step=on_step)
    return distilled


def make_job(
    instruments: Instruments,
    student: nn.Module,
    settings: DistillSettings,
    *,
    candidate: Candidate | None = None,
    checkpoint: Path | None = None,
    on_warning: Callable[[str], None] = lambda said: None,
) -> TrainingJob:
    """A student ready to be trained, validated as it would be exported. Without a candidate it has all layers."""
    kept = range(instruments.anatomy.num_layers) if candidate is None else candidate.kept_layers
    return TrainingJob(
        student=student,
        settings=settings,
        validate=lambda model: exported_losses(instruments, model, instruments.validation).loss,
        boundaries=(*kept[1:], instruments.anatomy.num_layers),
        checkpoint=checkpoint,
        on_warning=on_warning,
    )


def train_students(
    instruments: Instruments, jobs: Sequence[TrainingJob], *, on_step: Callable[[int], None] = lambda step: None
) -> list[Distilled]:
    """Train students of the same batches side by side on the recovery stream, with the other processes where there are several."""
    if instruments.processes.size > 1:
        from seed.distillation import fsdp

        assert isinstance(instruments.processes, fsdp.ProcessGroup)
        return fsdp.train(
            instruments.processes,
            jobs,
            instruments.anatomy,
            recovery=instruments.recovery,
            validation=instruments.validation,
            micro_batch=instruments.micro_batch,
            stored_dtype=instruments.stored_dtype,
            idle=[] if instruments.grafted is None else [instruments.grafted.model],
            on_step=on_step,
        )
    return distill(
        jobs, instruments.anatomy, instruments.recovery, teacher_states=instruments.teacher_states, on_step=on_step
    )


def exported_losses(instruments: Instruments, model: nn.Module, stream: TokenStream) -> DocumentLosses:
    """Losses of a student as it would be exported and opened again.

    Low-rank updates merged, rounded to the stored type, computed in the dense model's: what is judged is what is
    handed back.
    """
    compute = next(instruments.anatomy.model.parameters()).dtype
    exported = copy.deepcopy(model)
    lora.merge_updates(exported)
    exported = cast_weights(cast_weights(exported, instruments.stored_dtype), compute)
    return measure_losses(
        logits_of(exported), stream, micro_batch=instruments.micro_batch, device=instruments.anatomy.device
    )


def size_of(instruments: Instruments, candidate: Candidate) -> Size:
    """Size of a candidate, without building it: of the dense model's layers, since recovery changes no shape."""
    with view_layers(instruments.anatomy, candidate) as view:
        return measure_size(view, dtype=instruments.stored_dtype)
