"""Models whose weights lie in shards on several processes (FSDP2): made, read and filled weight by weight.

Each layer is gathered when it runs, and let go of afterwards; so are the embedding and the head, and what is left. A
weight is whole on one device only while it is on its way. What is trained, and from which batches, others decide.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from seed.models.anatomy import Anatomy
from seed.models.outline import Outline, build_hollow
from seed.scoring.process_group import ProcessGroup

Buffers = Mapping[str, Tensor]


def share_buffers(group: ProcessGroup, drawn: Outline, model: nn.Module | None) -> Buffers:
    """The buffers of a model that only the first process has, in every process."""
    own = {} if model is None else dict(model.named_buffers())
    return {name: group.share(own.get(name)) for name in drawn.buffers}


def shard(drawn: Outline, buffers: Buffers, make_weight: Callable[[int], Tensor], *, device: torch.device) -> nn.Module:
    """A model whose weights are sharded over all processes. ``make_weight``: place among its weights -> the whole weight on the device."""
    model = build_hollow(drawn, buffers).to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    places = {id(weight): place for place, weight in enumerate(model.parameters())}
    for part in _list_parts(model):
        for weight in part.parameters():
            if not isinstance(weight, DTensor):  # a part within this one has its own
                weight.data = make_weight(places[id(weight)])
        sharded = fully_shard(part, mesh=mesh, reshard_after_forward=True)
        # Each process's gradient is of its share of a batch and already divided by all of the batch's tokens.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    return model.eval()


def _list_parts(model: nn.Module) -> Iterator[nn.Module]:
    """What is gathered at once: a layer, the embedding, the head, the rest; a tied embedding belongs to the rest."""
    whole: Any = model
    embedding, head = whole.get_input_embeddings(), whole.get_output_embeddings()
    yield from Anatomy(model).layers
    if head is not None and embedding.weight is not head.weight:
        yield from (embedding, head)
    yield model


def shard_model(drawn: Outline, buffers: Buffers, model: nn.Module | None, *, device: torch.device) -> nn.Module:
    """The same model sharded; only the first process has it whole, and sends it weight by weight."""
    weights = None if model is None else list(model.parameters())

    def receive(place: int) -> Tensor:
        if weights is None:
            value = torch.empty(drawn.shapes[place], dtype=drawn.dtypes[place], device=device)
        else:
            value = weights[place].detach().to(device, copy=True)
        dist.broadcast(value, 0)
        return value

    return shard(drawn, buffers, receive, device=device)


def shard_empty(drawn: Outline, buffers: Buffers, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A sharded model of the same shape in another type, to be filled by ``round_weights``."""

    def make_zeros(place: int) -> Tensor:
        return torch.zeros(drawn.shapes[place], dtype=dtype, device=device)

    return shard(drawn, buffers, make_zeros, device=device)


@torch.no_grad()
def round_weights(model: nn.Module, into: nn.Module, *, stored: torch.dtype) -> None:
    """Give a sharded model the weights of another as they would be stored; each process does its own shards."""
    for weight, rounded in zip(model.parameters(), into.parameters(), strict=True):
        assert isinstance(weight, DTensor)
        assert isinstance(rounded, DTensor)
        rounded.to_local().copy_(weight.to_local().to(stored))


def copy_whole(weight: Tensor) -> Tensor:
    """The value of a tensor in the host's memory, apart from what happens to it next.

    A sharded one is gathered by all processes, and comes out whole on the first; what the others get is empty.
    """
    value = weight.detach()
    if isinstance(value, DTensor):
        value = value.full_tensor()
        if dist.get_rank() > 0:
            return value.new_empty(0, device="cpu")
    return value.to("cpu", copy=True)


@torch.no_grad()
def fill(weight: Tensor, value: Tensor) -> None:
    """Give a tensor another value. A sharded one takes it from the first process, whatever the others hand in."""
    if isinstance(weight, DTensor):
        is_first, device = dist.get_rank() == 0, weight.to_local().device
        whole = (
            value.to(device, weight.dtype) if is_first else torch.empty(weight.shape, dtype=weight.dtype, device=device)
        )
        dist.broadcast(whole, 0)
        value = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
    weight.copy_(value)


def gather_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state with whole tensors where they were sharded, as one process would have it."""
    state = optimizer.state_dict()
    whole = {
        index: {name: copy_whole(value) if isinstance(value, DTensor) else value for name, value in moments.items()}
        for index, moments in state["state"].items()
    }
    return {**state, "state": whole}


def spread_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Load an optimizer's state of whole tensors, of which the first process has the values."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def spread(value: Any, weight: Tensor) -> Any:
        if not isinstance(weight, DTensor) or value.shape != weight.shape:
            return value
        sharded = torch.empty_like(weight)
        fill(sharded, value)
        return sharded

    spread_state = {
        index: {name: spread(value, weights[index]) for name, value in moments.items()}
        for index, moments in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": spread_state})


def sketch_optimizer(optimizer: torch.optim.Optimizer, steps: Mapping[int, float]) -> dict[str, Any]:
    """AdamW's state after so many steps of each weight, by its place, for a process that has no values of it."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments = {
        place: {
            "step": torch.tensor(count, dtype=torch.float32),
            **{name: torch.empty(weights[place].shape, device="meta") for name in ("exp_avg", "exp_avg_sq")},
        }
        for place, count in steps.items()
    }
    return {**optimizer.state_dict(), "state": moments}
