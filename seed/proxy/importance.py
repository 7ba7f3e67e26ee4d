"""What layers are worth, by the measures that one-shot rankings rest on; and neurons and heads, for cuts in width.

Shapes: L layers, N tokens of a micro-batch, F MLP neurons, H attention heads of width C (H * C = I), D hidden width.
"""

import contextlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from seed.data.corpus import TokenStream
from seed.evaluation.perplexity import iterate_batches
from seed.models.anatomy import Anatomy, SublayerAnatomy
from seed.models.width import WidthImportance, find_widths, weight_by_input


@torch.no_grad()
def measure_block_influence(anatomy: Anatomy, stream: TokenStream, *, micro_batch: int) -> list[float]:
    """1 - the mean cosine similarity of a layer's input and output over all tokens (ShortGPT, arXiv 2403.03853, eq. 1); L."""
    similar = torch.zeros(anatomy.num_layers, dtype=torch.float64)
    count = 0
    for tokens in iterate_batches(stream, micro_batch=micro_batch, device=anatomy.device):
        states = anatomy.trace(tokens)
        for layer in range(anatomy.num_layers):
            similar[layer] += _cosine(states[layer], states[layer + 1]).sum().cpu()
        count += tokens.numel()
    return (1 - similar / count).tolist()


def measure_attention_influence(anatomy: Anatomy, stream: TokenStream, *, micro_batch: int) -> list[float]:
    """The same of each layer's attention alone, what it adds to its input included (LLM-Drop, arXiv 2406.15786); L."""
    return measure_block_influence(SublayerAnatomy(anatomy.model), stream, micro_batch=micro_batch)[::2]


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
    for tokens in iterate_batches(stream, micro_batch=micro_batch, device=anatomy.device):
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
        for tokens in iterate_batches(stream, micro_batch=micro_batch, device=anatomy.device):
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


# ---- width


@torch.no_grad()
def measure_width_importance(anatomy: Anatomy, stream: TokenStream, *, micro_batch: int) -> WidthImportance:
    """L2 norm over all tokens of what a neuron or a head adds to its layer's output.

    For a neuron that is the norm of its activations times the norm of its outgoing weights: the products that Wanda
    (arXiv 2306.11695, eq. 1) ranks weights by, taken together. Minitron (arXiv 2407.14679, section 2.2) leaves the
    weights out and takes the mean over each sequence before the norm, which cuts worse.

    Raises:
        ModelError: the model cannot be cut in width.
    """
    widths = find_widths(anatomy)
    neurons_LF = torch.zeros(anatomy.num_layers, widths.dense.mlp_width, dtype=torch.float64)
    heads_LH = torch.zeros(anatomy.num_layers, widths.dense.num_heads, dtype=torch.float64)

    def watch(reader: nn.Module, energies: Tensor, measure: Callable[[Tensor, Tensor], Tensor]) -> RemovableHandle:
        def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            energies.add_(measure(args[0].flatten(0, -2).float(), weight_by_input(module).float()).double().cpu())

        return reader.register_forward_pre_hook(before)

    def measure_heads(read_NI: Tensor, weight_ID: Tensor) -> Tensor:
        read_HNC = read_NI.unflatten(1, (widths.dense.num_heads, -1)).transpose(0, 1)
        weight_HCD = weight_ID.unflatten(0, (widths.dense.num_heads, -1))
        products_HCC = read_HNC.mT @ read_HNC  # each head's output itself would be far larger
        energies_H: Tensor = (products_HCC @ weight_HCD * weight_HCD).sum(dim=(1, 2))
        return energies_H

    with contextlib.ExitStack() as stack:
        for layer, module in enumerate(anatomy.layers):
            reader = module.get_submodule(widths.mlp_reader)
            stack.callback(watch(reader, neurons_LF[layer], _measure_neurons).remove)
            if widths.attention_reader is not None:
                reader = module.get_submodule(widths.attention_reader)
                stack.callback(watch(reader, heads_LH[layer], measure_heads).remove)
        for tokens in iterate_batches(stream, micro_batch=micro_batch, device=anatomy.device):
            anatomy.run_layers(tokens)
    return WidthImportance(
        neurons_LF=neurons_LF.sqrt(), heads_LH=None if widths.attention_reader is None else heads_LH.sqrt()
    )


def _measure_neurons(read_NF: Tensor, weight_FD: Tensor) -> Tensor:
    return read_NF.square().sum(dim=0) * weight_FD.square().sum(dim=1)
