"""The processes of one run, as ``torchrun`` or ``accelerate launch`` starts them: who each is, what they tell one another.

The first reads, decides, writes and speaks; the others lend it memory and time. A process that is lost ends all: the
others see its connection close. What they tell is data: records, checked by type where they are heard, and tensors.
Nothing here knows of models, and one process alone needs none of it.
"""

import contextlib
import datetime
import gc
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from seed.errors import ResourceError, first_line
from seed.records import Record

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what launchers say
JOINING = datetime.timedelta(minutes=5)
# The others wait while the first measures starts and judges; launchers end them when it dies.
WAITING = datetime.timedelta(days=30)
LOST = re.compile(r"\bgloo\b|[Cc]onnection|remote process exited")  # gloo's words, and NCCL's


class TensorForm(Record, frozen=True, kw_only=True):
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """This process among those of its run."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Is this the process that decides and writes?"""
        return self.rank == 0

    def take_share(self, items: Tensor) -> tuple[Tensor, int]:
        """This process's part of some items, and how many of its first count.

        All parts are equally long, so that all processes take equally many steps; what fills them up does not count.
        """
        if self.size == 1:
            return items, len(items)
        length = -(-len(items) // self.size)
        mine = items[self.rank * length : (self.rank + 1) * length]
        return torch.cat([mine, items[:1].repeat(length - len(mine))]), len(mine)

    def gather_rows(self, rows: np.ndarray, *, num_rows: int) -> np.ndarray:
        """The rows of all shares, in the items' order, in every process."""
        if self.size == 1:
            return rows
        found = [torch.empty(rows.shape, dtype=torch.from_numpy(rows[:0]).dtype) for _ in range(self.size)]
        dist.all_gather(found, torch.from_numpy(rows))
        return torch.cat(found)[:num_rows].numpy()

    def add_up(self, total: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def tell(self, value: Any, kind: Any) -> Any:
        """What the first process says, whatever the others do. ``kind``: its type; records, numbers, texts, and their collections.

        Raises:
            ResourceError: another process cannot read it as that.
        """
        if self.size == 1:
            return value
        words = bytearray(pack(value)) if self.leads else bytearray()
        length = torch.tensor(len(words))
        dist.broadcast(length, 0)
        told = torch.frombuffer(words or bytearray(int(length)), dtype=torch.uint8)
        dist.broadcast(told, 0)
        return value if self.leads else unpack(told.numpy().tobytes(), kind)

    def hear(self, kind: Any) -> Any:
        """What the first process tells next; this is another."""
        return self.tell(None, kind)

    def share(self, tensor: Tensor | None) -> Tensor:
        """The first process's tensor, in the host's memory, in every process; what the others hand in does not count."""
        if self.size == 1:
            assert tensor is not None
            return tensor
        if self.leads:
            assert tensor is not None
            value = tensor.cpu().contiguous()
            self.tell(TensorForm(shape=tuple(value.shape), dtype=value.dtype), TensorForm)
        else:
            form: TensorForm = self.hear(TensorForm)
            value = torch.empty(form.shape, dtype=form.dtype)
        if value.numel():
            dist.broadcast(value.view(-1).view(torch.uint8), 0)
        return value


def pack(value: Any) -> bytes:
    """Records and what they hold as bytes (MessagePack, which knows infinity and not-a-number)."""
    return msgspec.msgpack.encode(value, enc_hook=_name_dtype)


def unpack(words: bytes, kind: Any) -> Any:
    """The value of a type that was packed.

    Raises:
        ResourceError: these bytes are no such value.
    """
    try:
        return msgspec.msgpack.decode(words, type=kind, dec_hook=_read_dtype)
    except msgspec.DecodeError as error:
        raise ResourceError(
            f"the first process of this run says what this one does not understand ({error}). Install the same version of Seed "
            "on all hosts."
        ) from error


def _name_dtype(value: Any) -> str:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    raise NotImplementedError(f"{type(value).__name__} is not told to other processes")


def _read_dtype(kind: type, name: Any) -> Any:
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if kind is torch.dtype and isinstance(dtype, torch.dtype):
        return dtype
    raise ValueError(f"{name!r} is no type of tensors")


ALONE = ProcessGroup()


@contextlib.contextmanager
def join_group() -> Iterator[ProcessGroup]:
    """Find the other processes of this run, and leave them when the block ends.

    Raises:
        ResourceError: they cannot be found, a GPU for each is missing, or one was lost.
    """
    missing = [name for name in LAUNCHED if name not in os.environ]
    if missing:
        raise ResourceError(
            f"several processes (WORLD_SIZE = {os.environ['WORLD_SIZE']}), but {', '.join(missing)} is not set. Start them with "
            "torchrun or accelerate launch, or unset WORLD_SIZE for one process."
        )
    local_rank = int(os.environ["LOCAL_RANK"])
    has_gpus = torch.cuda.is_available()
    try:
        store, rank, size = next(rendezvous("env://", timeout=JOINING))
        if has_gpus and local_rank < torch.cuda.device_count():
            torch.cuda.set_device(local_rank)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if has_gpus else "gloo", store=store, rank=rank, world_size=size, timeout=WAITING
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: the processes of this run did not find each other "
            f"({first_line(error)}). Check that the address can be reached from all hosts and that the port is free."
        ) from error
    group = ProcessGroup(rank=rank, size=size)
    try:
        yield group
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        if not group.leads:  # the one that failed has said why
            raise SystemExit(2) from None
        raise ResourceError(
            f"another of the {size} processes of this run ended; what it said, or its launcher, tells why. What was saved is "
            "kept: run the same command again to go on, with as many processes as you like."
        ) from error
    except KeyboardInterrupt:
        if group.leads:
            raise
        raise SystemExit(130) from None
    gc.collect()  # sharded models hold on to the group, and its threads must end before the interpreter does
    dist.destroy_process_group()


def find_device(group: ProcessGroup, kind: str) -> torch.device:
    """The device of this process, of the kind that the first one works on.

    Raises:
        ResourceError: there are more processes on this host than GPUs.
    """
    if kind == "cpu":
        return torch.device("cpu")
    local_rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local_rank >= count:
        raise ResourceError(
            f"process {group.rank} of {group.size}: number {local_rank} on its host, which has {count} GPU{'s' * (count != 1)}. Start as many "
            "processes on a host as it has GPUs."
        )
    return torch.device(kind, local_rank)


def _is_lost(error: RuntimeError) -> bool:
    """Did a collective fail because another process is gone? Other failures are not for users to mend."""
    return LOST.search(str(error)) is not None
