"""What a model is without its weights, as plain data, and the same model built from that, its weights empty.

For processes that open no file and hold a model that another one opened. A config states a model of transformers' own,
dense, cut in depth or cut in width alike; what it leaves out (the class, the implementation of attention and experts,
each weight's type) stands beside it, and buffers are handed over as they are. Nothing here sends or receives anything.
"""

import copy
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn

from seed.errors import ModelError
from seed.records import Record

PLAIN = r"^\w+$"  # names of transformers' own implementations; those of kernels from the hub have a slash
IMPLEMENTATIONS = {"attn_implementation": "_attn_implementation", "experts_implementation": "_experts_implementation"}


class Outline(Record, frozen=True, kw_only=True):
    """A model of transformers' own without its weights and buffers."""

    class_name: str
    config: str  # JSON, as in a checkpoint
    implementations: dict[
        str, Annotated[str, Meta(pattern=PLAIN)]
    ]  # by the config's arguments, which checkpoints leave out
    names: tuple[str, ...]  # of the weights, tied ones once
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    buffers: tuple[str, ...]


def draw_outline(model: nn.Module) -> Outline:
    """The outline of a model, and proof that the same model can be built from it.

    Raises:
        ModelError: it cannot: some of its code is not transformers' own, or its config leaves something out.
    """
    config: Any = model.config
    implementations = _read_implementations(config)
    if _find_class(type(model).__name__) is not type(model):
        raise _refuse(model, "its code is not transformers' own")
    if not all(re.match(PLAIN, name) for name in implementations.values()):
        raise _refuse(model, "it computes with code from the hub")
    weights = dict(model.named_parameters())
    outline = Outline(
        class_name=type(model).__name__,
        config=config.to_json_string(use_diff=False),
        implementations=implementations,
        names=tuple(weights),
        shapes=tuple(tuple(weight.shape) for weight in weights.values()),
        dtypes=tuple(weight.dtype for weight in weights.values()),
        buffers=tuple(name for name, _ in model.named_buffers()),
    )
    try:
        difference = _find_difference(_build_on_meta(outline), outline)
    except Exception as error:  # an unknown family fails in ways of its own
        raise _refuse(model, f"{type(error).__name__}: {error}") from error
    if difference:
        raise _refuse(model, difference)
    return outline


def _refuse(model: nn.Module, reason: str) -> ModelError:
    return ModelError(
        f"several processes: {type(model).__name__} is not made by its config alone, which is all that the others get "
        f"({reason}). Run the same command in one process, with python -m."
    )


@torch.no_grad()
def build_hollow(outline: Outline, buffers: Mapping[str, Tensor]) -> nn.Module:
    """The model with weights of no elements, in the host's memory; ties are tied. ``buffers``: all of the outline's.

    Raises:
        ModelError: this installation's model of that name is another one.
    """
    try:
        built = _build_on_meta(outline)
        difference = _find_difference(built, outline)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        difference = f"{type(error).__name__}: {error}"
    if difference:
        raise ModelError(
            f"{outline.class_name}: another model here than in the first process ({difference}). Install the same version "
            "of transformers on all hosts."
        )
    known: dict[int, Any] = {id(buffer): buffers[name].clone() for name, buffer in built.named_buffers()}
    for weight, dtype in zip(built.parameters(), outline.dtypes, strict=True):
        known[id(weight)] = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
    return copy.deepcopy(built, known)


def _read_implementations(config: Any) -> dict[str, str]:
    found = {argument: getattr(config, name, None) for argument, name in IMPLEMENTATIONS.items()}
    return {argument: name for argument, name in found.items() if name is not None}


def _find_class(name: str) -> type[nn.Module] | None:
    """The language model of transformers that is called so."""
    import transformers
    from transformers.models.auto import modeling_auto

    known = {
        *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(),
    }
    return getattr(transformers, name) if name in known else None


def _build_on_meta(outline: Outline) -> nn.Module:
    kind: Any = _find_class(outline.class_name)
    if kind is None:
        raise ValueError(f"transformers has no language model {outline.class_name}")
    fields = json.loads(outline.config, object_hook=_read_fields)
    config = kind.config_class.from_dict({**fields, **outline.implementations})
    with torch.device("meta"):
        built: nn.Module = kind(config)
    return built


def _read_fields(found: dict[str, Any]) -> Any:
    """Numbers that JSON lacks stand as {"__float__": "Infinity"}; a config that names implementations could name code."""
    if found.keys() == {"__float__"}:
        return float(found["__float__"])
    return {name: value for name, value in found.items() if "_implementation" not in name}


def _find_difference(built: nn.Module, outline: Outline) -> str | None:
    """Say what is not as in the outline: a name or a shape; or which tensor is neither weight nor buffer, and so would lack values."""
    loose = [
        f"{name}.{key}"
        for name, part in built.named_modules()
        for key in vars(part)
        if torch.is_tensor(vars(part)[key])
    ]
    if loose:
        return f"{loose[0]} is neither weight nor buffer"
    found: dict[str, Any] = {name: tuple(weight.shape) for name, weight in built.named_parameters()}
    found |= {name: "a buffer" for name, _ in built.named_buffers()}
    wanted: dict[str, Any] = dict(zip(outline.names, outline.shapes, strict=True))
    wanted |= dict.fromkeys(outline.buffers, "a buffer")
    if list(found) == list(wanted) and found == wanted:
        return None
    wrong = [name for name in found | wanted if found.get(name) != wanted.get(name)]
    if not wrong:
        return "its weights come in another order"
    return f"{wrong[0]} is {found.get(wrong[0], 'missing')}, and {wanted.get(wrong[0], 'nothing')} was wanted"
