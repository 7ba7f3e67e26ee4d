"""The ladder of cheap scores: no recovery, closed form, short distillation. A candidate in, qualities out."""

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
from seed.proxy.instruments import make_job, size_of, start_student, train_students, validation_losses
from seed.proxy.sweep import Sweep
from seed.records import Candidate, Evaluation, Latency, Quality, Size
from seed.study_dir import is_out_of_memory

Screen = Callable[[Candidate, Quality], str | None]  # closed-form quality -> why the last proxy is not worth it


class Proxy:
    """Scores candidates at one proxy."""

    def __init__(
        self,
        sweep: Sweep,
        *,
        proxy: str,
        short: Callable[[Candidate], DistillSettings],
        latency_of: Callable[[Candidate], Latency],
        screen: Screen = lambda candidate, quality: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        assert proxy != "closed-form" or sweep.instruments.gains is not None
        self.sweep = sweep
        self.proxy = proxy
        self.short = short
        self.latency_of = latency_of
        self.screen = screen
        self.say = say
        self.shrunk = 1  # by what micro-batches of training are divided
        self._sizes: dict[str, Size] = {}  # by structure, which decides it as it does latency

    def evaluate(self, candidate: Candidate) -> Evaluation:
        """Climb to the proxy, or to where the screen stops, and return everything measured on the way.

        Where the memory is full, half as many windows go through a model at once, from then on.

        Raises:
            CandidateError: the memory does not suffice for one window.
        """
        while True:
            try:
                return self._evaluate(candidate)
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

    def _evaluate(self, candidate: Candidate) -> Evaluation:
        began = time.monotonic()
        qualities = self.sweep.known(candidate)
        skipped_because: str | None = None
        if self.proxy != "none" and self.sweep.instruments.gains is not None:
            qualities["closed-form"] = self.sweep.measure(candidate)
        if self.proxy == "none":
            [qualities["none"]] = self.sweep.measure_unrecovered([candidate])
        elif self.proxy == "short-distillation" and self.proxy not in qualities:
            if "closed-form" in qualities:
                skipped_because = self.screen(candidate, qualities["closed-form"])
            if skipped_because is None:
                [qualities["none"]] = self.sweep.measure_unrecovered([candidate])
                qualities[self.proxy] = self._distill_shortly(candidate, qualities)
        latency = self.latency_of(candidate)
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

    def _distill_shortly(self, candidate: Candidate, qualities: dict[str, Quality]) -> Quality:
        began = time.monotonic()
        instruments, settings = self.sweep.instruments, self.short(candidate)
        start = choose_start(qualities)
        if not math.isfinite(qualities[start].loss):  # its gradients would be no numbers either
            nothing = np.full_like(instruments.dense_validation.sums, math.nan)
            losses = DocumentLosses(sums=nothing, counts=instruments.dense_validation.counts)
            return self.sweep.keep(candidate, self.proxy, losses, seconds=time.monotonic() - began)
        settings = structs.replace(settings, micro_batch=max(1, settings.micro_batch // self.shrunk))
        refit = self.sweep.recover(candidate) if start == "closed-form" else None
        student = start_student(instruments, candidate, refit, settings=settings)
        looks: dict[float, DocumentLosses] = {}

        def look(model: nn.Module) -> float:
            losses = validation_losses(instruments, model)
            looks[losses.loss] = losses
            return losses.loss

        train_students(
            instruments, [replace(make_job(instruments, student, settings, candidate=candidate), validate=look)]
        )
        best = looks[min(looks)]  # the weights that distillation hands back are those of its best look
        return self.sweep.keep(candidate, self.proxy, best, seconds=time.monotonic() - began)


def choose_start(qualities: dict[str, Quality]) -> str:
    """The better of the two starts of a distillation, by validation loss."""
    starts = [proxy for proxy in ("none", "closed-form") if proxy in qualities]
    return min(starts, key=lambda proxy: math.inf if math.isnan(qualities[proxy].loss) else qualities[proxy].loss)
