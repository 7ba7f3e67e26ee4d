"""Weights of fewer bits, as llama.cpp stores them: what a model then weighs, and the numbers that it then computes with.

Blocks of 32 weights share a scale (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); the ``gguf`` package packs them
and unpacks them again. Every matrix is packed, as by ``llama-quantize --pure``, and what is no matrix stays as it is stored.
"""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from seed.records import GGML_TYPES


@torch.no_grad()
def pack_weights(model: nn.Module, *, bits: int, stored_dtype: torch.dtype) -> int:
    """Round a model's matrices to weights of so many bits, in place; return how many bytes all its weights then take.

    A matrix whose rows are no multiple of a block stays as it is. Tied weights count once.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants  # only who asks for bits needs it

    kind = GGMLQuantizationType[GGML_TYPES[bits]]
    block, _ = GGML_QUANT_SIZES[kind]
    transposed = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}
    num_bytes = 0
    for weight in model.parameters():
        rows = weight.T if id(weight) in transposed else weight  # a row makes one output
        if rows.ndim < 2 or rows.shape[-1] % block:
            num_bytes += weight.numel() * stored_dtype.itemsize
            continue
        packed = quants.quantize(rows.detach().float().cpu().numpy(), kind)
        num_bytes += packed.nbytes
        rows.copy_(torch.from_numpy(quants.dequantize(packed, kind)))
    return num_bytes
