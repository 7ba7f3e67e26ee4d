"""Remove layers: a view of some layers of a resident model, and a standalone student.

Removing takes more than a shorter list: integer layer indices run over all submodules, per-layer
lists of the config pick masks and rotary embeddings by position. ``view_layers`` changes all of them
and puts all of them back. Families whose weights mean something else at another index are refused.
Nothing here reads or writes files.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from seed.errors import ModelError
from seed.models.anatomy import Anatomy, text_config
from seed.records import Candidate

INDEX_NAMES = ("layer_idx", "layer_id", "layer_number")
# Lists with one entry a layer: keep the entries of the kept layers.
SLICED_LISTS = (
    "layer_types",
    "no_rope_layers",
    "attention_layers",
    "block_types",
    "layers_block_type",
    "layer_block_type",
    "mlp_layer_types",
)
# Lists of layer indices: keep those of kept layers, renumbered.
REMAPPED_LISTS = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "attn_layer_indices")
# The first n layers are of another kind: count those that are kept.
LEADING_COUNTS = ("first_k_dense_replace", "num_dense_layers", "max_window_layers")
# Periods over the index survive no removal; 1 (every layer) is the only harmless value.
PERIODS = (
    "attn_layer_period",
    "expert_layer_period",
    "moe_layer_freq",
    "interleave_moe_layer_step",
    "cross_attention_interval",
)
REFUSED_TYPES = {
    "jamba": "its attention and expert layers are placed by a period over the layer index",
    "gemma3n_text": "its later layers share the keys and values of earlier ones",
    "gemma3n": "its later layers share the keys and values of earlier ones",
    "gemma4_text": "its later layers share the keys and values of earlier ones",
    "gemma4": "its later layers share the keys and values of earlier ones",
    "diffllama": "its attention holds a constant computed from the layer's index",
    "zamba": "its layers share one attention block",
    "zamba2": "its layers share one attention block",
}


def refuse_unfit(config: Any) -> None:
    """Raise with the reason when layers of this family cannot be removed."""
    text = config.get_text_config()
    reason = REFUSED_TYPES.get(text.model_type)
    for name in PERIODS:
        if isinstance(getattr(text, name, None), int) and getattr(text, name) > 1:
            reason = f"its config places layers by a period over the index ({name} = {getattr(text, name)})"
    if getattr(text, "scale_attn_by_inverse_layer_idx", False):
        reason = "it scales attention by the layer's index (scale_attn_by_inverse_layer_idx)"
    if getattr(config, "is_encoder_decoder", False):
        reason = "it is an encoder-decoder, not a decoder-only language model"
    if getattr(config, "quantization_config", None) is not None:
        reason = "its weights are quantized, and recovery needs the original ones"
    if reason:
        raise ModelError(
            f"{text.model_type}: Seed cannot remove layers from this model, since {reason}. Choose another model."
        )


def repair_config(config: Any, kept_layers: Sequence[int]) -> dict[str, Any]:
    """Fit a text config to the kept layers, in place; return the fields as they were."""
    num_layers = config.num_hidden_layers
    new_index = {layer: position for position, layer in enumerate(kept_layers)}
    changes: dict[str, Any] = {"num_hidden_layers": len(kept_layers)}
    sparse_step = getattr(config, "decoder_sparse_step", 1)
    dense_layers = getattr(config, "mlp_only_layers", None)
    if sparse_step not in (None, 1):
        dense_layers = [i for i in range(num_layers) if (i + 1) % sparse_step != 0 or i in (dense_layers or [])]
        changes["decoder_sparse_step"] = 1
        changes["mlp_only_layers"] = [new_index[layer] for layer in dense_layers if layer in new_index]
    for name in SLICED_LISTS:
        values = getattr(config, name, None)
        if isinstance(values, (list, tuple)) and len(values) == num_layers:
            changes[name] = [values[layer] for layer in kept_layers]
    for name in REMAPPED_LISTS:
        values = getattr(config, name, None)
        if isinstance(values, (list, tuple)) and name not in changes:
            changes[name] = [new_index[layer] for layer in values if layer in new_index]
    for name in LEADING_COUNTS:
        if isinstance(getattr(config, name, None), int):
            changes[name] = sum(layer < getattr(config, name) for layer in kept_layers)
    if "attention_layers" in changes and hasattr(config, "attention_types"):  # gpt_neo keeps both forms
        changes["attention_types"] = [[[kind], 1] for kind in changes["attention_layers"]]
    # num_hidden_layers is an alias in some families (n_layer); past setattr, which validates each step
    before: dict[str, Any] = {}
    aliases = getattr(type(config), "attribute_map", {}) or {}
    for name, value in changes.items():
        stored = aliases.get(name, name)
        if stored in config.__dict__:
            before[stored] = config.__dict__[stored]
            config.__dict__[stored] = value
    return before


@contextlib.contextmanager
def view_layers(anatomy: Anatomy, candidate: Candidate) -> Iterator[nn.Module]:
    """Let the resident model consist of the kept layers only, without a copy, until the block ends."""
    assert candidate.num_layers == anatomy.num_layers, "a candidate belongs to one model"
    assert not set(candidate.kept_layers) & set(anatomy.gone_layers), "a layer that is gone cannot be kept"
    original = anatomy.layers
    kept = [original[layer] for layer in candidate.kept_layers]
    undo: list[tuple[nn.Module, str, Any]] = []
    configs = [text_config(module) for module in (anatomy.model, *anatomy.owner.modules()) if hasattr(module, "config")]
    texts = {id(config): config for config in configs}
    befores = [(config, repair_config(config, candidate.kept_layers)) for config in texts.values()]
    setattr(anatomy.owner, anatomy.attribute, nn.ModuleList(kept))
    for position, (layer, module) in enumerate(zip(candidate.kept_layers, kept, strict=True)):
        for submodule in module.modules():
            for name in INDEX_NAMES:
                found = getattr(submodule, name, None)
                if isinstance(found, int) and not isinstance(found, bool):
                    undo.append((submodule, name, found))
                    setattr(submodule, name, found - layer + position)  # some families count from 1
    try:
        yield anatomy.model
    finally:
        setattr(anatomy.owner, anatomy.attribute, original)
        for module, name, value in undo:
            setattr(module, name, value)
        for config, before in befores:
            config.__dict__.update(before)


def cast_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert parameters, in place, and nothing else: ``model.to`` would round rotary frequencies too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def make_student(anatomy: Anatomy, candidate: Candidate) -> nn.Module:
    """Return a standalone model of the kept layers with weights of its own; ties stay tied."""
    with view_layers(anatomy, candidate) as view:
        student: nn.Module = copy.deepcopy(view)
    return student
