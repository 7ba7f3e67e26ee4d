"""What MLP neurons and attention heads are worth, by what they write: the order in which a width cut keeps them.

Shapes: N tokens of a micro-batch, F MLP neurons, H attention heads of width C (H * C = I), D hidden width.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from seed.data.corpus import TokenStream
from seed.evaluation.perplexity import iterate_batches
from seed.models.anatomy import Anatomy
from seed.models.width import WidthImportance, find_widths, weight_by_input


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
        for _, tokens in iterate_batches(stream, micro_batch=micro_batch, device=anatomy.device):
            anatomy.run_layers(tokens)
    return WidthImportance(
        neurons_LF=neurons_LF.sqrt(), heads_LH=None if widths.attention_reader is None else heads_LH.sqrt()
    )


def _measure_neurons(read_NF: Tensor, weight_FD: Tensor) -> Tensor:
    return read_NF.square().sum(dim=0) * weight_FD.square().sum(dim=1)
