"""The ladder of cheap scores: no recovery, closed form, short distillation. A candidate in, qualities out.

Every trial of a study climbs to the same rung, the study's objective; lower rungs come along as they are.
Which candidates are tried is decided elsewhere.
"""

import copy
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from seed import folder
from seed.models.anatomy import Anatomy
from seed.models.checkpoint import measure_size
from seed.models.surgery import cast_weights, make_student, view_layers
from seed.records import Candidate, Evaluation, Latency, Quality, Size
from seed.scoring.corpus import TokenStream
from seed.scoring.distillation import DistillSettings, distill
from seed.scoring.quality import DocumentLosses, judge, logits_of, measure_losses
from seed.scoring.refit import Refit, fit_correction, fold_refit
from seed.scoring.subsets import SubsetWalker


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What scoring works with: the resident dense model, its streams, and what is known of it."""

    anatomy: Anatomy
    calibration: TokenStream
    recovery: TokenStream
    validation: TokenStream
    dense_validation: DocumentLosses
    gains: dict[int, float] | None  # None: closed form is not available for this family
    micro_batch: int
    stored_dtype: torch.dtype
    losses_directory: Path  # <study>/losses

    @property
    def teacher(self) -> Any:
        """The dense model."""
        return self.anatomy.model


class Proxy:
    """Scores candidates at one rung."""

    def __init__(
        self,
        instruments: Instruments,
        *,
        rung: str,
        short: DistillSettings,
        latency_of: Callable[[Candidate], Latency],
    ) -> None:
        assert rung != "closed_form" or instruments.gains is not None
        self.instruments = instruments
        self.rung = rung
        self.short = short
        self.latency_of = latency_of
        self.closed_form = (
            make_walker(instruments, refit=True) if instruments.gains is not None and rung != "none" else None
        )
        needs_raw = rung != "closed_form"
        self.unrecovered = make_walker(instruments, refit=False) if needs_raw else None

    def evaluate(self, candidate: Candidate) -> Evaluation:
        """Climb to the rung and return everything measured on the way."""
        began = time.monotonic()
        qualities: dict[str, Quality] = {}
        refit: Refit | None = None
        if self.unrecovered:
            losses, _ = self.unrecovered.measure(candidate)
            qualities["none"] = keep_quality(self.instruments, candidate, "none", losses)
        if self.closed_form:
            losses, refit = self.closed_form.measure(candidate)
            qualities["closed_form"] = keep_quality(self.instruments, candidate, "closed_form", losses)
        if self.rung == "short_distillation":
            start = choose_start(qualities)
            student = start_student(self.instruments, candidate, refit if start == "closed_form" else None)
            distill(
                student,
                self.instruments.teacher,
                self.instruments.recovery,
                self.short,
                validate=lambda model: validation_losses(self.instruments, model).loss,
            )
            losses = validation_losses(self.instruments, student)
            qualities["short_distillation"] = keep_quality(self.instruments, candidate, "short_distillation", losses)
        return Evaluation(
            candidate=candidate,
            qualities=qualities,
            latency=self.latency_of(candidate),
            size=size_of(self.instruments, candidate),
            seconds=time.monotonic() - began,
            skipped_because=None,
        )


def make_walker(instruments: Instruments, *, refit: bool) -> SubsetWalker:
    """Return a walker over subsets, with closed-form recovery or without."""
    return SubsetWalker(
        instruments.anatomy,
        calibration=instruments.calibration,
        validation=instruments.validation,
        micro_batch=instruments.micro_batch,
        fit=fit_correction if refit else None,
        gains=instruments.gains if refit else None,
    )


def choose_start(qualities: dict[str, Quality]) -> str:
    """The better of the two starts of a distillation, by validation loss."""
    starts = [rung for rung in ("none", "closed_form") if rung in qualities]
    return min(starts, key=lambda rung: qualities[rung].loss)


def start_student(instruments: Instruments, candidate: Candidate, refit: Refit | None) -> nn.Module:
    """A standalone student in float32, raw or with the maps folded in, ready to be trained."""
    student = cast_weights(make_student(instruments.anatomy, candidate), torch.float32)
    if refit is not None:
        fold_refit(student, candidate, refit)
    return student


def validation_losses(instruments: Instruments, model: nn.Module) -> DocumentLosses:
    """Losses on the validation stream of a float32 student as it would be exported and opened again.

    Rounded to the stored type, computed in the dense model's: what is judged is what is handed back.
    """
    compute = next(instruments.anatomy.model.parameters()).dtype
    rounded = cast_weights(cast_weights(copy.deepcopy(model), instruments.stored_dtype), compute)
    return measure_losses(
        logits_of(rounded),
        instruments.validation,
        micro_batch=instruments.micro_batch,
        device=instruments.anatomy.device,
    )


def size_of(instruments: Instruments, candidate: Candidate) -> Size:
    """Size of a candidate, without building it."""
    with view_layers(instruments.anatomy, candidate) as view:
        return measure_size(view, dtype=instruments.stored_dtype)


def keep_quality(instruments: Instruments, candidate: Candidate, rung: str, losses: DocumentLosses) -> Quality:
    """Judge losses beside the dense model's, and store them by document for paired comparisons."""
    path = Path(rung) / f"{candidate.key}.npz"
    content = io.BytesIO()
    np.savez(content, sums=losses.sums, counts=losses.counts)
    folder.write_bytes(instruments.losses_directory / path, content.getvalue())
    return judge(losses, instruments.dense_validation, document_losses_path=str(Path("losses") / path))
