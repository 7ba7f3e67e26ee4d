"""How fast a model's parts run here, each timed for real: a layer, the head, closed form of a candidate, a step of training."""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from seed.data.corpus import TokenStream
from seed.distillation.loop import DistillSettings, TrainingJob, distill
from seed.distillation.memory import GPU_BYTES_PER_WEIGHT, TRAINED_TOKENS
from seed.evaluation.perplexity import choose_micro_batch
from seed.models.anatomy import Anatomy, count_params
from seed.models.surgery import cast_weights, list_needed, make_student
from seed.optimize.space import drop_layers
from seed.protocols import computes_bfloat16
from seed.proxy.closed_form import ProjectionFit
from seed.proxy.shared_maps import shares_maps
from seed.proxy.subset_walker import SubsetWalker, count_work
from seed.stages.budgets import measure_free_bytes

TIMING_TURNS = 4  # of which the first does not count
TIMED_TOKENS = 256  # on a CPU
TIMED_INPUTS = 768  # of a map, at most
LONG_SECONDS = 2.0  # a score that takes longer is timed once
TIMED_LAYERS = 4  # of the student that is trained
TRAINING_FORWARDS = 3.3  # where training is not timed: a forward and a backward pass, and the dense model's head


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds of the parts that a search is made of."""

    layer: float  # one layer, one token
    head: float  # final norm, head and loss, one token
    recovery: tuple[float, float]  # of a layer in closed form, beside running it; and more for a calibration token
    step: float  # the dense model reading one token
    num_layers: int
    training: float = TRAINING_FORWARDS  # one trained token, in forward passes of the student

    @property
    def forward(self) -> float:
        """The dense model, one token."""
        return self.run(self.num_layers)

    def run(self, num_layers: float) -> float:
        """A model of so many layers, one token."""
        return num_layers * self.layer + self.head


def draw_tokens(anatomy: Anatomy, window_tokens: int) -> torch.Tensor:
    """Random tokens (B, T) that keep the device busy."""
    on_gpu, vocabulary = anatomy.device.type == "cuda", anatomy.config.vocab_size
    rows = choose_micro_batch(window_tokens, vocabulary, device=anatomy.device) if on_gpu else 1
    columns = window_tokens if on_gpu else min(window_tokens, TIMED_TOKENS)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (rows, columns), generator=generator).to(anatomy.device)


def time_parts(
    anatomy: Anatomy,
    tokens_BT: torch.Tensor,
    *,
    num_layers: int,
    gains: Mapping[int, float] | None,
    trains: bool,
) -> Speed:
    """Time the parts of a model of so many layers on this one: itself, or some of its layers.

    Args:
        anatomy: what is timed.
        tokens_BT: that run through it.
        num_layers: of the whole model.
        gains: what closed form needs; None: there is none.
        trains: are students trained? That is timed only where its few layers leave half of the memory.
    """
    states, middle = anatomy.trace(tokens_BT), anatomy.num_layers // 2
    seconds = _time_in_turns(
        {
            "head": lambda: anatomy.compute_logits(states[-1], tokens_BT).float().logsumexp(-1).sum(),
            "layer": lambda: anatomy.run_layer(middle, states[middle]),
            "step": lambda: anatomy.model(input_ids=tokens_BT[:1, :1], use_cache=False).logits,
        }
    )
    layer, head = seconds["layer"] / tokens_BT.numel(), seconds["head"] / tokens_BT.numel()
    recovery = 0.0, 0.0
    if gains is not None:
        recovery = _time_closed_form(anatomy, tokens_BT, dict(gains), layer=layer, head=head)
    speed = Speed(
        layer=layer,
        head=head,
        recovery=recovery,
        step=seconds["step"] * num_layers / anatomy.num_layers,
        num_layers=num_layers,
    )
    if trains:
        return replace(speed, training=_time_training(anatomy, tokens_BT, speed, last_BTD=states[-1]))
    return speed


@torch.no_grad()
def _time_in_turns(runs: Mapping[str, Callable[[], torch.Tensor]]) -> dict[str, float]:
    """Seconds of each call, the best of several after a first: so a machine that is busy now and then tells the same."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(TIMING_TURNS):
        for name, run in runs.items():
            start = time.perf_counter()
            run().flatten()[0].item()  # waits for the device
            found[name].append(time.perf_counter() - start)
    return {name: min(seconds[1:]) for name, seconds in found.items()}


def _time_closed_form(
    anatomy: Anatomy, tokens_BT: torch.Tensor, gains: dict[int, float], *, layer: float, head: float
) -> tuple[float, float]:
    """Seconds of a layer's recovery beside running it, whatever the tokens and for each calibration token.

    A candidate without the last layers is scored, on so many tokens, and where that is quick on twice as many.
    """
    if shares_maps(anatomy):
        return _time_maps(anatomy, tokens_BT, layer=anatomy.num_layers // 2)
    free = [one for one in range(anatomy.num_layers) if one not in list_needed(anatomy.model.config)][-2:]
    candidate = drop_layers(anatomy.num_layers, free[: anatomy.num_layers - 1])
    work = count_work([candidate], closed_form=True)
    scored = _hold(tokens_BT[:1, : min(64, tokens_BT.shape[1])])
    found: list[float] = []
    for calibration_BT in (tokens_BT, tokens_BT.repeat(2, 1)):
        walker = SubsetWalker(
            anatomy, calibration=_hold(calibration_BT), validation=scored, micro_batch=len(tokens_BT), gains=gains
        )
        start = time.perf_counter()
        walker.measure(candidate)
        took = time.perf_counter() - start
        tokens = calibration_BT.numel() + scored.num_tokens
        ran = (work.run_layers * tokens + work.plain_layers * scored.num_tokens) * layer + scored.num_tokens * head
        found.append(max(0.0, took - ran) / work.run_layers)
        if took > LONG_SECONDS:
            break
    once, twice = found[0], found[-1]
    each = min(max(0.0, twice - once), once) / tokens_BT.numel()
    return once - each * tokens_BT.numel(), each


def _time_maps(anatomy: Anatomy, tokens_BT: torch.Tensor, *, layer: int) -> tuple[float, float]:
    """Seconds of one map, whatever the tokens and for each calibration token, from one of fewer inputs."""
    states, outlet = anatomy.trace(tokens_BT), anatomy.find_output_projection(layer)
    assert outlet is not None, "measure_gains proved that there is one"
    with outlet.record_inputs() as recorded:
        anatomy.run_layer(layer, states[layer])
    inputs, gap = recorded[0].reshape(*tokens_BT.shape, -1)[..., :TIMED_INPUTS], states[layer + 1] - states[layer]
    found: list[float] = []
    for turns in (1, 1, 4):  # the first does not count
        start = _now(anatomy.device)
        ProjectionFit([inputs] * turns, has_bias=False).solve([gap] * turns)
        found.append(_now(anatomy.device) - start)
    _, once, longer = found
    larger = outlet.num_inputs / inputs.shape[-1]
    each = max(0.0, longer - once) / (3 * tokens_BT.numel())
    whatever = max(0.0, once - each * tokens_BT.numel())
    return whatever * larger**3, each * larger**2  # factors, and sums


def _time_training(anatomy: Anatomy, tokens_BT: torch.Tensor, speed: Speed, *, last_BTD: torch.Tensor) -> float:
    """What a trained token takes, in forward passes: the loop's own steps on a student of few layers, the best behind the first."""
    needed = list_needed(anatomy.model.config)
    others = [layer for layer in range(anatomy.num_layers) if layer not in needed]
    kept = sorted([*needed, *others[: max(1, TIMED_LAYERS - len(needed))]])
    gone = [layer for layer in range(anatomy.num_layers) if layer not in kept]
    num_params = count_params(anatomy.model) - sum(count_params(anatomy.layers[layer]) for layer in gone)
    if GPU_BYTES_PER_WEIGHT * num_params > measure_free_bytes(anatomy.device) / 2:
        return TRAINING_FORWARDS
    tokens_BT = tokens_BT[: max(1, TRAINED_TOKENS // tokens_BT.shape[1])]
    student = cast_weights(make_student(anatomy, drop_layers(anatomy.num_layers, gone)), torch.float32)
    settings = DistillSettings(
        steps=3,
        batch_windows=len(tokens_BT),
        micro_batch=len(tokens_BT),
        learning_rate=1e-9,
        rng_seed=0,
        looks=1,
        mixed_precision=computes_bfloat16(anatomy.device),
    )
    ends: list[float] = []
    distill(
        [TrainingJob(student=student, settings=settings, validate=lambda model: 0.0)],
        anatomy,
        _hold(tokens_BT),
        teacher_states=lambda windows: last_BTD[windows.to(last_BTD.device)],
        on_step=lambda step: ends.append(_now(anatomy.device)),
    )
    seconds = min(later - earlier for earlier, later in itertools.pairwise(ends))
    return seconds / (tokens_BT.numel() * speed.run(len(kept)))


def _hold(tokens_BT: torch.Tensor) -> TokenStream:
    """These tokens as a stream of one document."""
    return TokenStream(
        tokens_NT=tokens_BT.cpu(), documents_NT=np.zeros(tuple(tokens_BT.shape), np.int32), num_documents=1, source=""
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
