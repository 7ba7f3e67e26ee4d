"""The cheap scores: no recovery, closed form, short distillation. A candidate in, qualities out; ``subset_walker`` computes losses."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from msgspec import structs
from torch import nn

from seed.distillation.loop import DistillSettings
from seed.errors import CandidateError, first_line
from seed.evaluation.perplexity import DocumentLosses
from seed.optimize.screening import Screen
from seed.proxy.instruments import exported_losses, make_job, size_of, start_student, train_students
from seed.proxy.sweep import Sweep
from seed.records import Candidate, Evaluation, Latency, Quality, Size
from seed.study_dir import is_out_of_memory


class Proxy:
    """Scores candidates at one proxy. ``short``: how a candidate is distilled shortly."""

    def __init__(
        self,
        sweep: Sweep,
        *,
        name: str,
        short: Callable[[Candidate], DistillSettings],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        assert name != "closed-form" or sweep.instruments.gains is not None
        self.sweep = sweep
        self.name = name
        self.short = short
        self.say = say
        self.shrunk = 1  # by what micro-batches of training are divided
        self._sizes: dict[str, Size] = {}  # by structure, which decides it as it does latency

    def evaluate(self, candidate: Candidate, *, latency: Latency, screen: Screen | None = None) -> Evaluation:
        """Climb to the proxy, or to where the screen stops, and return everything measured on the way.

        ``latency`` is that of its structure. Where the memory is full, half as many windows go through a model at once, from then on.

        Raises:
            CandidateError: the memory does not suffice for one window.
        """
        while True:
            began = time.monotonic()
            try:
                qualities, skipped_because = self._climb(candidate, screen, structure=latency.structure)
                if latency.structure not in self._sizes:
                    self._sizes[latency.structure] = size_of(self.sweep.instruments, candidate)
                return Evaluation(
                    candidate=candidate,
                    qualities=qualities,
                    latency=latency,
                    size=self._sizes[latency.structure],
                    seconds=time.monotonic() - began,
                    skipped_because=skipped_because,
                )
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # only here the error, and with it what was computed, is gone from memory
            training = self.short(candidate).micro_batch // self.shrunk
            self.shrunk *= 2
            if not (self.sweep.shrink() or training > 1):
                raise CandidateError(f"{candidate.key}: out of memory, one window of text at a time ({reason})")
            self.say(f"{candidate.key}: out of memory; half as many windows go through the model at once from now on")

    def _climb(
        self, candidate: Candidate, screen: Screen | None, *, structure: str
    ) -> tuple[dict[str, Quality], str | None]:
        """Qualities by proxy, and why there is none at the last."""
        qualities = self.sweep.known(candidate)
        if self.sweep.instruments.gains is not None:
            qualities["closed-form"] = self.sweep.measure(candidate)
        if self.name == "short-distillation" and self.name not in qualities:
            if "closed-form" in qualities and screen is not None:
                reason = screen.judge(candidate, qualities["closed-form"], structure=structure)
                if reason is not None:
                    return qualities, reason
            [qualities["none"]] = self.sweep.measure_unrecovered([candidate])
            began, settings = time.monotonic(), self.short(candidate)
            settings = structs.replace(settings, micro_batch=max(1, settings.micro_batch // self.shrunk))
            losses = distill_shortly(self.sweep, candidate, settings)
            qualities[self.name] = self.sweep.keep(candidate, self.name, losses, seconds=time.monotonic() - began)
        return qualities, None


def distill_shortly(sweep: Sweep, candidate: Candidate, settings: DistillSettings) -> DocumentLosses:
    """Distill a candidate, scored before, from its better start; losses of the best weights, as they would be exported."""
    instruments, qualities = sweep.instruments, sweep.known(candidate)
    start = choose_start(qualities)
    if not math.isfinite(qualities[start].loss):  # its gradients would be no numbers either
        dense = instruments.dense_validation
        return replace(dense, sums=np.full_like(dense.sums, math.nan))
    refit = sweep.recover(candidate) if start == "closed-form" else None
    student = start_student(instruments, candidate, refit, settings=settings)
    looks: dict[float, DocumentLosses] = {}

    def look(model: nn.Module) -> float:
        losses = exported_losses(instruments, model, instruments.validation)
        looks[losses.loss] = losses
        return losses.loss

    job = make_job(instruments, student, settings, candidate=candidate)
    train_students(instruments, [replace(job, validate=look)])
    return looks[min(looks)]  # distillation hands back the weights of its best look


def choose_start(qualities: dict[str, Quality]) -> str:
    """The better of the two starts of a distillation, by validation loss."""
    starts = [name for name in ("none", "closed-form") if name in qualities]
    return min(starts, key=lambda name: math.inf if math.isnan(qualities[name].loss) else qualities[name].loss)
