"""How a training stands among processes: alone, as here, or as one of several (``fsdp.ProcessGroup``, the same with other bodies)."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
Weights = Mapping[str, nn.Parameter]


class SingleProcess:
    """This process alone: it holds whole models, decides, and writes."""

    rank, size = 0, 1

    @property
    def leads(self) -> bool:
        """Is this the process that writes and speaks?"""
        return self.rank == 0

    @contextlib.contextmanager
    def fail_together(self) -> Iterator[None]:
        """End every process where any of them raises a ``SeedError`` in the block; one says it."""
        yield

    def require_alike(self, decided: str) -> None:
        """Raise unless all processes decided the same."""

    def share(self, value: T, kind: Any) -> T:
        """The first process's value, in all. ``kind``: its type, as msgspec reads it."""
        return value

    def wait(self) -> None:
        """Wait until all processes are here."""

    def is_any(self, flag: bool) -> bool:
        """Does any process say so?"""
        return flag

    def find_least(self, number: int) -> int:
        """The least that any process says."""
        return number

    def take_share(self, items: Tensor) -> tuple[Tensor, int]:
        """This process's part of some items, and how many of its first count.

        All parts are equally long, so that all processes take equally many steps; what fills them up does not count.
        """
        length = -(-len(items) // self.size)
        mine = items[self.rank * length : (self.rank + 1) * length]
        return torch.cat([mine, items[:1].repeat(length - len(mine))]), len(mine)

    def add_up(self, total: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        return total

    def clip_gradients(self, trained: Weights) -> Tensor:
        """Clip the gradients of these weights to norm 1, all together; return the norm they had."""
        return torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)

    def copy_weights(self, student: nn.Module, trained: Weights) -> dict[str, Tensor]:
        """The values of a student's trained weights, apart from what training does to them next, in the host's memory.

        A GPU's memory is what decides how large a model can be trained: 16 bytes a weight instead of 20. Of several
        processes only the first gets them.
        """
        return {name: weight.detach().to("cpu", copy=True) for name, weight in trained.items()}

    @torch.no_grad()
    def load_weights(self, student: nn.Module, trained: Weights, values: Mapping[str, Tensor]) -> None:
        """Give a student's trained weights other values; of several processes the first one's."""
        assert trained.keys() == values.keys()
        for name, weight in trained.items():
            weight.copy_(values[name])

    def copy_optimizer(self, student: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state, as one process has it; of several only the first gets it."""
        return optimizer.state_dict()

    def load_optimizer(self, student: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Give the optimizer a state, as one process has it; of several the first one's."""
        optimizer.load_state_dict(state)


SINGLE_PROCESS = SingleProcess()
