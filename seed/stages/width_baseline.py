"""The baseline of uniform width beside sets of layers: the same parameters, all layers kept, each cut evenly.

How a width is chosen and cut is ``models.width``'s business, which neurons and heads stay ``proxy.width_order``'s; here is
which widths go with which depths, and how fast they are.
"""

from collections.abc import Sequence

import torch
from torch import nn

from seed.evaluation import latency as timing
from seed.models.surgery import cast_weights
from seed.models.width import make_narrow, plan_width
from seed.protocols import name_device
from seed.proxy.instruments import Instruments, size_of
from seed.records import Candidate, Latency, WidthCut
from seed.sessions import Session


def start_narrow(instruments: Instruments, width: WidthCut) -> nn.Module:
    """The dense model cut to a width, with float32 weights of its own, not trained."""
    return cast_weights(make_narrow(instruments.anatomy, width, instruments.width_importance), torch.float32)


def plan_widths(instruments: Instruments, candidates: Sequence[Candidate]) -> list[WidthCut]:
    """The width that has each size of these candidates, in parameters; candidates of one size share one.

    Raises:
        ModelError: this family's widths cannot be cut.
    """
    sizes = {size_of(instruments, candidate).num_params for candidate in candidates}
    return [plan_width(instruments.anatomy, num_params=num_params) for num_params in sorted(sizes, reverse=True)]


def measure_width_latency(session: Session, instruments: Instruments, width: WidthCut) -> Latency:
    """Time a width beside the dense model, as structures are timed."""
    workload, vocabulary = session.workload, session.anatomy.config.vocab_size
    narrow = cast_weights(start_narrow(instruments, width), session.dtype)
    dense = timing.prepare_run(session.teacher.model, workload, vocabulary=vocabulary)
    cut = timing.prepare_run(narrow, workload, vocabulary=vocabulary)
    return timing.measure_pair(dense, cut, workload, structure=width.key, device=name_device(session.device))
