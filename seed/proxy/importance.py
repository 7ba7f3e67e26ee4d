"""Measures of layers that one-shot rankings rest on, each named after the paper that ranks by it.

Shapes: L layers, B sequences, T tokens, D hidden width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seed.data.corpus import TokenStream
from seed.evaluation.perplexity import iterate_batches
from seed.models.anatomy import Anatomy


@torch.no_grad()
def measure_block_influence(anatomy: Anatomy, stream: TokenStream, *, micro_batch: int) -> list[float]:
    """1 - the mean cosine similarity of a layer's input and output over all tokens (ShortGPT, arXiv 2403.03853, eq. 1); L."""
    similar = torch.zeros(anatomy.num_layers, dtype=torch.float64)
    count = 0
    for _, tokens in iterate_batches(stream, micro_batch=micro_batch, device=anatomy.device):
        states = anatomy.trace(tokens)
        for layer in range(anatomy.num_layers):
            similar[layer] += _cosine(states[layer], states[layer + 1]).sum().cpu()
        count += tokens.numel()
    return (1 - similar / count).tolist()


@torch.no_grad()
def measure_angular_distances(
    anatomy: Anatomy, stream: TokenStream, *, num_layers: int, micro_batch: int
) -> list[float]:
    """Mean angle between the inputs of layer i and of layer i + n at the last token of each sequence, as a share of pi.

    Gromov et al., arXiv 2403.17887, eq. 6 and 7; L - n + 1 numbers. Layers that are gone do not count.
    """
    gone = anatomy.gone_layers
    before = [layer for layer in range(anatomy.num_layers + 1) if layer not in gone]  # and after the last
    places = len(before) - num_layers
    angles = torch.zeros(places, dtype=torch.float64)
    count = 0
    for _, tokens in iterate_batches(stream, micro_batch=micro_batch, device=anatomy.device):
        traced = anatomy.trace(tokens)
        states = [traced[layer][:, -1] for layer in before]
        for first in range(places):
            cosine = _cosine(states[first], states[first + num_layers]).clamp(-1, 1)
            angles[first] += (cosine.arccos() / math.pi).sum().cpu()
        count += len(tokens)
    return (angles / count).tolist()


def measure_taylor(anatomy: Anatomy, stream: TokenStream, *, micro_batch: int) -> list[float]:
    """Sum over a layer's weights of |weight * gradient of the loss| (Shortened LLaMA, arXiv 2402.02834, section 3.1); L.

    The gradient is that of the mean loss over the stream; matrices count, as in the paper, and norms do not.
    """
    matrices = [_matrices(anatomy, layer) for layer in range(anatomy.num_layers)]
    was_trained = [(weight, weight.requires_grad) for weight in anatomy.model.parameters()]
    total = stream.num_tokens
    try:
        anatomy.model.requires_grad_(False)
        for weights in matrices:
            for weight in weights:
                weight.requires_grad_(True)
        for _, tokens in iterate_batches(stream, micro_batch=micro_batch, device=anatomy.device):
            logits = anatomy.model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
            (loss / total).backward()
        return [
            sum(
                float((weight.detach().double() * weight.grad.double()).abs().sum())
                for weight in weights
                if weight.grad is not None
            )
            for weights in matrices
        ]
    finally:
        anatomy.model.zero_grad(set_to_none=True)
        for weight, flag in was_trained:
            weight.requires_grad_(flag)


@torch.no_grad()
def measure_magnitude(anatomy: Anatomy) -> list[float]:
    """Sum over a layer's matrices of |weight| (Shortened LLaMA, arXiv 2402.02834, section 3.1); L."""
    return [
        sum(float(weight.double().abs().sum()) for weight in _matrices(anatomy, layer))
        for layer in range(anatomy.num_layers)
    ]


def _matrices(anatomy: Anatomy, layer: int) -> Sequence[torch.nn.Parameter]:
    return [weight for weight in anatomy.layers[layer].parameters() if weight.ndim >= 2]


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1)
