"""Low-rank updates of a student's linear maps (LoRA, arXiv 2106.09685), by PEFT, merged into the weights at the end."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from seed.errors import ModelError


def add_updates(student: nn.Module, *, rank: int, rng_seed: int) -> None:
    """Put trainable low-rank updates of zero beside every linear map but the head, in place; freeze the rest.

    Raises:
        ModelError: low-rank updates do not fit the model.
    """
    from peft import LoraConfig, inject_adapter_in_model

    maps = list_maps(student)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=maps,
        fan_in_fan_out=any(isinstance(student.get_submodule(name), Conv1D) for name in maps),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng_seed)
        try:
            inject_adapter_in_model(config, student)
        except ValueError as error:  # PEFT's refusal of some families
            raise ModelError(
                f"--lora-rank: low-rank updates do not fit {type(student).__name__} ({error}). Leave the option out to train "
                "all weights."
            ) from error
    for weight in student.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def list_maps(student: nn.Module) -> list[str]:
    """Names of the linear maps that get an update: all but the head.

    Raises:
        ModelError: there is none, or there are experts fused into one tensor, which no update reaches.
    """
    fused = [name for name, weight in student.named_parameters() if weight.ndim == 3 and "expert" in name]
    head = student.get_output_embeddings()  # type: ignore[operator]
    names = [
        name
        for name, module in student.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    ]
    if fused or not names:
        why = "its experts are fused into one tensor" if fused else "it has no linear maps"
        raise ModelError(
            f"--lora-rank: low-rank updates do not fit {type(student).__name__}: {why}. Leave the option out to train all "
            "weights."
        )
    return names


def count_update_params(model: nn.Module) -> int:
    """Parameters of updates of rank 1 to all of a model's linear maps; 0 where none fits it."""
    try:
        weights = [model.get_parameter(f"{name}.weight") for name in list_maps(model)]
    except ModelError:
        return 0
    return sum(sum(weight.shape) for weight in weights)


def merge_updates(student: nn.Module) -> None:
    """Add the updates to the weights and take PEFT's modules out again, in place; nothing happens where there are none."""
    if not any(type(module).__module__.startswith("peft.") for module in student.modules()):
        return  # importing PEFT takes seconds
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(student.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(student.get_submodule(parent), leaf, module.get_base_layer())
