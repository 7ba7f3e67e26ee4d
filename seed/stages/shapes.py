"""The shape of a model and its texts: all that estimates of time, memory and disk know of them.

Estimates depend on a ``Shape`` alone, so that a dry run without weights and the search itself use the same formulas.
"""

from dataclasses import dataclass

import torch

from seed.models.anatomy import Anatomy
from seed.models.checkpoint import measure_size
from seed.scoring.lora import count_update_params
from seed.scoring.memory import count_kept_bytes, count_usable_bytes
from seed.stages.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class Shape:
    """All that estimates know of a model and its texts. Tokens, bytes, and numbers of parameters."""

    num_layers: int
    width: int
    mlp_width: int  # what the widest MLP output projection reads; 0 where closed form is not available
    vocabulary: int
    num_params: int
    layer_params: int  # of one layer, the mean
    update_params: int  # of a low-rank update of rank 1 of all linear maps; 0 where none fits
    cache_bytes: int  # of the KV cache, one token
    number_bytes: int  # of a number that is computed with
    stored_bytes: int  # of a number in an exported model
    kept_bytes: (
        int  # what training one layer keeps of one token for the way back; 0 on the CPU, where it is not counted
    )
    kept_copies: int  # and what it keeps whatever the tokens: weights rounded to bfloat16
    gpu_bytes: int  # that tensors can have; 0 on the CPU
    calibration_tokens: int
    validation_tokens: int
    test_tokens: int
    recovery_windows: int

    @property
    def on_gpu(self) -> bool:
        """Is it on a GPU?"""
        return self.gpu_bytes > 0

    def __post_init__(self) -> None:
        assert self.layer_params * self.num_layers <= self.num_params


def describe_shape(bench: Workbench) -> Shape:
    """The shape of an opened model and its text."""
    anatomy, on_gpu = bench.anatomy, bench.device.type == "cuda"
    kept = (0, 0)
    if on_gpu:
        kept = count_kept_bytes(anatomy, take_micro_batch(bench), mixed_precision=bench.protocol.mixed_precision)
    return Shape(
        num_layers=anatomy.num_layers,
        width=anatomy.config.hidden_size,
        mlp_width=0 if bench.gains is None else measure_mlp_width(anatomy),
        vocabulary=anatomy.config.vocab_size,
        num_params=sum(weight.numel() for weight in anatomy.model.parameters()),
        layer_params=sum(weight.numel() for weight in anatomy.layers.parameters()) // anatomy.num_layers,
        update_params=count_update_params(anatomy.model),
        cache_bytes=measure_size(anatomy.model, dtype=bench.dtype).kv_bytes_per_token,
        number_bytes=bench.dtype.itemsize,
        stored_bytes=bench.teacher.stored_dtype.itemsize,
        kept_bytes=kept[0],
        kept_copies=kept[1],
        gpu_bytes=count_usable_bytes(bench.device) if on_gpu else 0,
        calibration_tokens=bench.protocol.calibration_tokens,
        validation_tokens=bench.streams["validation"].num_tokens,
        test_tokens=bench.streams["test"].num_tokens,
        recovery_windows=len(bench.streams["recovery"].tokens_NT),
    )


def take_micro_batch(bench: Workbench) -> torch.Tensor:
    """A micro-batch of validation text on the device."""
    return bench.streams["validation"].tokens_NT[: bench.micro_batch].to(bench.device)


def measure_mlp_width(anatomy: Anatomy) -> int:
    """From how many numbers of a token closed form computes a correction, at most, in a model that has it."""
    outlets = [anatomy.find_outlet(layer) for layer in range(anatomy.num_layers)]
    return max(outlet.num_inputs for outlet in outlets if outlet is not None)
