"""Training over several processes, as ``torchrun`` or ``accelerate launch`` starts them: weights in shards (FSDP2).

Every process opens model and text for itself; the first says what is trained. A process that is lost ends all.
"""

import contextlib
import copy
import datetime
import functools
import gc
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from seed.data.corpus import TokenStream
from seed.distillation.loop import Distilled, DistillSettings, TrainingJob, distill
from seed.distillation.processes import SingleProcess, T, Weights
from seed.errors import ResourceError, SeedError, first_line
from seed.evaluation.perplexity import logits_of, measure_token_losses
from seed.models.anatomy import Anatomy
from seed.models.surgery import cast_weights

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what launchers say
JOINING = datetime.timedelta(minutes=5)
# The others wait while the first measures starts and judges; launchers end them when it dies.
WAITING = datetime.timedelta(days=30)
LOST = re.compile(r"\bgloo\b|[Cc]onnection|remote process exited")  # gloo's words, and NCCL's
TO_FIRST = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_FIRST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)


class ProcessGroup(SingleProcess):
    """This process among several. Students and dense model lie in shards on all; the first alone writes and speaks."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.device = torch.device("cpu")

    def take_device(self, kind: str) -> None:
        """Work on this process's own device of the kind that the study was measured on.

        Raises:
            ResourceError: there are more processes on this host than GPUs.
        """
        local_rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if kind != "cpu" and local_rank >= count:
            raise ResourceError(
                f"process {self.rank} of {self.size}: number {local_rank} on its host, which has {count} "
                f"GPU{'s' * (count != 1)}. Start as many processes on a host as it has GPUs."
            )
        self.device = torch.device("cpu") if kind == "cpu" else torch.device(kind, local_rank)

    @contextlib.contextmanager
    def fail_together(self) -> Iterator[None]:
        found: SeedError | None = None
        try:
            yield
        except SeedError as error:
            found = error
        first = self.find_least(self.size if found is None else self.rank)
        if found is not None and first == self.rank:
            raise found
        if first < self.size:
            with contextlib.suppress(RuntimeError):
                self.wait()  # until the one that says it is gone: launchers end the others with the first that ends
            raise SystemExit(2)

    def require_alike(self, decided: str) -> None:
        differs = self.is_any(self.share(decided, str) != decided)
        with self.fail_together():
            if differs:
                raise ResourceError(
                    f"the {self.size} processes of this run see different folders, and would not train the same. Let all hosts "
                    "see the study's folder, models and text as the first does, and install the same version of Seed."
                )

    def share(self, value: T, kind: Any) -> T:
        content = torch.frombuffer(bytearray(msgspec.msgpack.encode(value)), dtype=torch.uint8)
        size = torch.tensor(len(content))  # on the CPU: who waits for the first process keeps no GPU busy
        dist.broadcast(size, 0)
        content = content if self.leads else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(content, 0)
        found: T = msgspec.msgpack.decode(content.numpy().tobytes(), type=kind)
        return found

    def wait(self) -> None:
        self.find_least(0)

    def is_any(self, flag: bool) -> bool:
        return self.find_least(-int(flag)) < 0

    def find_least(self, number: int) -> int:
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def add_up(self, total: Tensor) -> Tensor:
        dist.all_reduce(total)
        return total

    def clip_gradients(self, trained: Weights) -> Tensor:
        norm = super().clip_gradients(trained)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def copy_weights(self, student: nn.Module, trained: Weights) -> dict[str, Tensor]:
        whole: dict[str, Any] = get_model_state_dict(student, options=TO_FIRST)
        return {name: whole[name] for name in trained} if self.leads else {}

    def load_weights(self, student: nn.Module, trained: Weights, values: Mapping[str, Tensor]) -> None:
        assert not self.leads or trained.keys() == values.keys()
        set_model_state_dict(student, dict(values) if self.leads else {}, options=FROM_FIRST)

    def copy_optimizer(self, student: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        found: dict[str, Any] = get_optimizer_state_dict(student, optimizer, options=TO_FIRST)
        if not self.leads:
            return {}
        [group] = found["param_groups"]  # names, where one process has places
        state = {place: found["state"][name] for place, name in enumerate(group["params"]) if name in found["state"]}
        return {"state": state, "param_groups": [{**group, "params": list(range(len(group["params"])))}]}

    def load_optimizer(self, student: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        if self.leads:
            names = [name for name, weight in student.named_parameters() if weight.requires_grad]
            [group] = state["param_groups"]
            state = {
                "state": {names[place]: moments for place, moments in state["state"].items()},
                "param_groups": [{**group, "params": names}],
            }
        set_optimizer_state_dict(student, optimizer, state if self.leads else {}, options=FROM_FIRST)


@contextlib.contextmanager
def join_processes() -> Iterator[ProcessGroup]:
    """Find the other processes of this run, and leave them when the block ends.

    Raises:
        ResourceError: they cannot be found, or one was lost.
    """
    missing = [name for name in LAUNCHED if name not in os.environ]
    if missing:
        raise ResourceError(
            f"several processes (WORLD_SIZE = {os.environ['WORLD_SIZE']}), but {', '.join(missing)} is not set. Start them with "
            "torchrun or accelerate launch, or unset WORLD_SIZE for one process."
        )
    has_gpus, local_rank = torch.cuda.is_available(), int(os.environ["LOCAL_RANK"])
    try:
        store, rank, size = next(rendezvous("env://", timeout=JOINING))
        if has_gpus and local_rank < torch.cuda.device_count():
            torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl" if has_gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAITING)
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: the processes of this run did not find each other "
            f"({first_line(error)}). Check that the address can be reached from all hosts and that the port is free."
        ) from error
    several = ProcessGroup(rank, size)
    try:
        yield several
        several.wait()  # what the first finds wrong to the last ends all
    except RuntimeError as error:
        if LOST.search(str(error)) is None:  # other failures are not for users to mend
            raise
        if not several.leads:  # the one that failed has said why
            raise SystemExit(2) from None
        raise ResourceError(
            f"another of the {size} processes of this run ended; what it said, or its launcher, tells why. What was saved is "
            "kept: run the same command again to go on, with as many processes as you like."
        ) from error
    gc.collect()  # sharded models hold on to the group, and its threads must end before the interpreter does
    dist.destroy_process_group()


def require_shardable(settings: DistillSettings, model: nn.Module) -> None:
    """Raise with the reason when several processes cannot train students of a model by these settings.

    Raises:
        ResourceError: with the cure.
    """
    reason = None
    if settings.lora_rank is not None:
        reason = "this study trains low-rank updates (LoRA), which are small enough for one"
    if settings.objective.needs_states:
        reason = "this study's objective measures the layers' states beside all others in one process's windows"
    if any(isinstance(module, nn.ModuleList) and name.endswith("experts") for name, module in model.named_modules()):
        reason = "this model's experts are modules of their own, and those that no token of a process chooses have no gradient"
    if reason:
        raise ResourceError(f"several processes: {reason}. Run the same command in one process, with python -m.")


def empty(model: nn.Module) -> nn.Module:
    """The same model without its weights' values, which then take no memory; ties are tied, buffers are there."""
    known: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, known)


def shard(model: nn.Module, *, device: torch.device, dtype: torch.dtype | None = None) -> nn.Module:
    """The same model with its weights in shards; of whole weights only the first process's count.

    ``dtype``: the weights' type, where they are filled later (``round_weights``).
    """
    sharded = empty(model)
    if dtype is not None:
        cast_weights(sharded, dtype)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in _list_parts(sharded):
        gathered = fully_shard(part, mesh=mesh, reshard_after_forward=True)
        # Each process's gradient is of its share of a batch and already divided by all of the batch's tokens.
        gathered.set_gradient_divide_factor(1.0)
        gathered.set_force_sum_reduction_for_comms(True)
    sharded.to_empty(device=device)
    for buffer, value in zip(sharded.buffers(), model.buffers(), strict=True):
        buffer.copy_(value)
    if dtype is None:
        set_model_state_dict(sharded, model.state_dict() if dist.get_rank() == 0 else {}, options=FROM_FIRST)
    return sharded.eval()


def _list_parts(model: nn.Module) -> Iterator[nn.Module]:
    """What is gathered at once: a layer, the embedding, the head, the rest; a tied embedding belongs to the rest."""
    whole: Any = model
    embedding, head = whole.get_input_embeddings(), whole.get_output_embeddings()
    yield from Anatomy(model).layers
    if head is not None and embedding.weight is not head.weight:
        yield from (embedding, head)
    yield model


@torch.no_grad()
def round_weights(model: nn.Module, into: nn.Module, *, stored: torch.dtype) -> None:
    """Give a sharded model the weights of another as they would be stored; each process does its own shards."""
    for weight, rounded in zip(model.parameters(), into.parameters(), strict=True):
        assert isinstance(weight, DTensor)
        assert isinstance(rounded, DTensor)
        rounded.to_local().copy_(weight.to_local().to(stored))


def train(
    processes: ProcessGroup,
    jobs: Sequence[TrainingJob],
    dense: Anatomy,
    *,
    recovery: TokenStream,
    validation: TokenStream,
    micro_batch: int,
    stored_dtype: torch.dtype,
    idle: Sequence[nn.Module] = (),
    on_step: Callable[[int], None] = lambda step: None,
) -> list[Distilled]:
    """Train students as ``distill`` does, with all processes, which call this alike.

    Args:
        processes: this one among the others.
        jobs: students, whole in the first process and of the same shape in the others, where they stay as they are.
        dense: the dense model, likewise.
        recovery: the windows to train on.
        validation: the windows to validate on, each student as it would be exported.
        micro_batch: validation windows that go through a model at once.
        stored_dtype: the type that weights are exported in.
        idle: other models that need not lie on the device meanwhile.
        on_step: called with the number of steps that all have finished.
    """
    device, compute = processes.device, next(dense.model.parameters()).dtype
    with _on_host([dense.model, *(job.student for job in jobs), *idle] if processes.leads else []):
        teacher, sharded = shard(dense.model, device=device), []
        for job in jobs:
            validate = functools.partial(
                _validate,
                processes=processes,
                validation=validation,
                exported=shard(job.student, device=device, dtype=compute),
                stored=stored_dtype,
                micro_batch=micro_batch,
                device=device,
            )
            sharded.append(replace(job, student=shard(job.student, device=device), validate=validate))
        with warnings.catch_warnings():
            # OPT's layers end in a view, and FSDP fears that someone changes it in place.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
            distilled = distill(sharded, Anatomy(teacher), recovery, on_step=on_step, processes=processes)
        for job, one in zip(jobs, sharded, strict=True):
            weights = get_model_state_dict(one.student, options=TO_FIRST)
            if processes.leads:
                job.student.load_state_dict(weights)
                job.student.eval().requires_grad_(False)
        del teacher, sharded, validate, one
        gc.collect()  # sharded models refer to themselves, and their memory is wanted
    return distilled


def _validate(
    student: nn.Module,
    *,
    processes: SingleProcess,
    validation: TokenStream,
    exported: nn.Module,
    stored: torch.dtype,
    micro_batch: int,
    device: torch.device,
) -> float:
    """Validation loss of a sharded student as it would be exported and opened again; each process takes its share of windows."""
    round_weights(student, exported, stored=stored)
    tokens_NT = validation.tokens_NT
    mine, num_counted = processes.take_share(torch.arange(len(tokens_NT)))
    losses_NT = measure_token_losses(logits_of(exported), tokens_NT[mine], micro_batch=micro_batch, device=device)
    total = processes.add_up(torch.tensor(losses_NT[:num_counted].sum(dtype="float64")))
    return float(total) / tokens_NT[:, 1:].numel()


@contextlib.contextmanager
def _on_host(models: Sequence[nn.Module]) -> Iterator[None]:
    """Let models lie in the host's memory until the block ends."""
    devices = [next(model.parameters()).device for model in models]
    for model in models:
        model.to("cpu")
    try:
        yield
    finally:
        for model, device in zip(models, devices, strict=True):
            model.to(device)
