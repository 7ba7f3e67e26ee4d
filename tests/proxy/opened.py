"""Opened studies in small: a tiny dense model, text that it wrote itself, and made-up latencies."""

import functools
from dataclasses import replace

import torch
from torch import nn

from seed.evaluation.perplexity import logits_of, measure_losses
from seed.models.anatomy import Anatomy
from seed.models.surgery import graft, make_student
from seed.proxy.closed_form import measure_gains
from seed.proxy.instruments import Instruments
from seed.records import Candidate, Latency
from tests.models.families import keep, make_model, scramble
from tests.proxy.streams import write_stream

CPU = torch.device("cpu")


def drop(*layers: int) -> Candidate:
    """A candidate of the four-layer models, by what is gone."""
    return keep(*(layer for layer in range(4) if layer not in layers))


CUT = keep(0, 3)
DENSE = keep(0, 1, 2, 3)


@functools.cache
def open_instruments(family: str = "llama", *, stored: torch.dtype = torch.float32) -> Instruments:
    """Instruments that tests share: nothing that scores may change them."""
    model = make_model(family)
    anatomy = Anatomy(model)
    calibration = write_stream(model, 12, 64, rng_seed=1)
    validation = write_stream(model, 12, 32, rng_seed=2)
    return Instruments(
        anatomy=anatomy,
        calibration=calibration,
        recovery=calibration,
        validation=validation,
        dense_validation=measure_losses(logits_of(model), validation, micro_batch=4, device=CPU),
        gains=measure_gains(anatomy, anatomy.trace(calibration.tokens_NT[:4])),
        micro_batch=4,
        stored_dtype=stored,
    )


def open_grafted(family: str = "llama", *, gone: int = 1) -> tuple[Instruments, nn.Module]:
    """Instruments whose candidates are cut from a model without a layer, every weight another; and that model."""
    instruments = open_instruments(family)
    recovered = scramble(make_student(instruments.anatomy, drop(gone)), rng_seed=1)
    return replace(instruments, grafted=graft(instruments.anatomy, recovered, drop(gone))), recovered


def time_candidate(candidate: Candidate) -> Latency:
    """A latency as the study's table would hold it."""
    ratio = len(candidate.kept_layers) / candidate.num_layers
    return Latency(
        structure=f"{len(candidate.kept_layers)} layers",
        workload="decode",
        device="cpu",
        repeats=5,
        median_ms=10 * ratio,
        p10_ms=9 * ratio,
        p90_ms=11 * ratio,
        dense_median_ms=10.0,
        ratio=ratio,
        ratio_low=ratio,
        ratio_high=ratio,
    )
