"""Remove layers: a view of some layers of a resident model, and a standalone student; which families are refused, and why.

Removing takes more than a shorter list: layer indices run over all submodules, and per-layer lists of the config pick
masks and rotary embeddings by position.
"""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from seed.errors import ModelError
from seed.models.anatomy import INDEX_NAMES, Anatomy, Gap, SublayerAnatomy, text_config
from seed.records import KINDS, Candidate

# Lists with one entry a layer: keep the entries of the kept layers, and none of layers beyond the decoder's, which some have.
SLICED_LISTS = (
    "layer_types",
    "no_rope_layers",
    "attention_layers",
    "block_types",
    "layers_block_type",
    "layer_block_type",
    "mlp_layer_types",
    "layer_rope_theta",
    "num_attention_heads_per_layer",
    "indexer_types",
    "moe_topk",
)
# Lists of layer indices: keep those of kept layers, renumbered.
REMAPPED_LISTS = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "attn_layer_indices")
# The first n layers are of another kind: count those that are kept.
LEADING_COUNTS = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "max_window_layers")
# Layers beyond the decoder's, that predict further tokens: transformers has none, and none are written.
FURTHER_LAYERS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
# Periods over the index survive no removal; 1 (every layer) is the only harmless value.
PERIODS = (
    "attn_layer_period",
    "expert_layer_period",
    "moe_layer_freq",
    "moe_layer_interval",
    "interleave_moe_layer_step",
    "cross_attention_interval",
    "n_layers_per_attn_res_block",
)
REFUSED_TYPES = {
    "jamba": "its attention and expert layers are placed by a period over the layer index",
    "gemma3n_text": "its later layers share the keys and values of earlier ones",
    "diffllama": "its attention holds a constant computed from the layer's index",
    "beam": "it scales the residual stream by the layer's index",
    "recurrent_gemma": "its layers keep what they remember to themselves, so that cached decoding cannot be followed",
    "openai-gpt": "it decodes without a cache",
    "rwkv": "its layers keep what they remember to themselves, so that cached decoding cannot be followed",
    "zaya": "its layers hand their routers' states on to one another",
    "zamba": "its layers share one attention block",
    "zamba2": "its layers share one attention block",
    "hrm_text": "it runs the same layers again and again",
    "longcat_flash": "its config counts two layers for each one that it has",
}
# Fields that a config sets where layers are not alike or not apart.
REFUSED_FIELDS = {
    "hidden_size_per_layer_input": "its embedding holds a part for each layer",
    "ple_layer_ids": "its embedding holds a part for some layers",
    "deepstack_layer_map": "images enter its layers by their index",
    "cross_attention_layers": "some of its layers read images only",
    "scale_attn_by_inverse_layer_idx": "it scales attention by the layer's index",
}
# Heads for other tasks than writing: as a language model, such a checkpoint would lose its head.
OTHER_TASKS = tuple(
    f"For{task}"
    for task in ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice", "MaskedLM")
)
# Families that never look ahead, though their configs do not say that they decode.
CAUSAL_ANYWAY = ("gpt_neox", "gpt_neox_japanese")
# Families that are built with a first or a last layer unlike the others, whatever the config says of it.
FIRST_STAYS = ("modernbert-decoder",)
LAST_STAYS = ("gemma4_text", "gemma4_unified_text", "gpt_neox_japanese")
RECURRENT_STAYS = ("olmo_hybrid",)


def refuse_unfit(config: Any, *, place: str, will_cut: bool = True) -> None:
    """Raise with the reason where a checkpoint is no whole decoder-only language model, or layers of its family cannot be removed.

    Args:
        config: the whole model's.
        place: where it comes from.
        will_cut: layers are to be removed.

    Raises:
        ModelError: with the reason.
    """
    text = config.get_text_config()
    quantized = getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized.quant_method
        raise ModelError(
            f"{place}: its weights are quantized ({getattr(method, 'value', method)}), and Seed opens unquantized ones only. Give the "
            "model that it was made from."
        )
    if reason := _find_other_kind(config, text) or (_find_reason(config, text) if will_cut else None):
        what = "remove layers from" if will_cut else "open"
        raise ModelError(
            f"{place}: Seed cannot {what} this {text.model_type} model, since {reason}. Choose another model."
        )


def _find_other_kind(config: Any, text: Any) -> str | None:
    other = next((name for name in getattr(config, "architectures", None) or () if name.endswith(OTHER_TASKS)), None)
    if other is not None:
        return f"it is a {other}, which writes no text"
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder, not a decoder-only language model"
    if getattr(text, "is_decoder", None) is False and text.model_type not in CAUSAL_ANYWAY:
        return "it attends to what comes after a token too (is_decoder = false)"
    return None


def _find_reason(config: Any, text: Any) -> str | None:
    if text.model_type in REFUSED_TYPES:
        return REFUSED_TYPES[text.model_type]
    if getattr(text, "num_kv_shared_layers", None):
        return f"its later layers share the keys and values of earlier ones (num_kv_shared_layers = {text.num_kv_shared_layers})"
    for name, reason in REFUSED_FIELDS.items():
        if getattr(text, name, None) or getattr(config, name, None):
            return f"{reason} ({name})"
    if "shared" in (getattr(text, "indexer_types", None) or ()):
        return "some of its layers attend where an earlier layer chose to (indexer_types)"
    for name in PERIODS:
        period = getattr(text, name, None)
        is_listed = name == "interleave_moe_layer_step" and getattr(text, "moe_layers", None)  # it went into that list
        if isinstance(period, int) and period > 1 and not is_listed:
            return f"its config places layers by a period over the index ({name} = {period})"
    return None


def list_needed(config: Any) -> list[int]:
    """Layers that must stay, since transformers builds or decodes no right model without them.

    Caches of hybrids count tokens in a layer with attention: their last one stays, which is one of several. Where images enter
    behind the first few layers, these stay. ``config`` is the whole model's.
    """
    text = config.get_text_config()
    needed = {0} if text.model_type in FIRST_STAYS else set()
    for part in (config, getattr(config, "vision_config", None)):
        needed |= set(range(len(getattr(part, "deepstack_visual_indexes", None) or ())))
    if text.model_type in LAST_STAYS:
        needed.add(text.num_hidden_layers - 1)
    kinds = (getattr(text, "layer_types", None) or ())[: text.num_hidden_layers]
    attending = [i for i, kind in enumerate(kinds) if "attention" in kind and kind != "linear_attention"]
    recurrent = [i for i in range(len(kinds)) if i not in attending]
    if attending and recurrent:
        needed.add(attending[-1])
        if text.model_type in RECURRENT_STAYS:
            needed.add(recurrent[-1])
    return sorted(needed)


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
        if isinstance(values, (list, tuple)) and len(values) >= num_layers:
            changes[name] = [values[layer] for layer in kept_layers]
    for name in REMAPPED_LISTS:
        values = getattr(config, name, None)
        if isinstance(values, (list, tuple)) and name not in changes:
            changes[name] = [new_index[layer] for layer in values if layer in new_index]
    for name in LEADING_COUNTS:
        if isinstance(getattr(config, name, None), int):
            changes[name] = sum(layer < getattr(config, name) for layer in kept_layers)
    if isinstance(last := getattr(config, "moe_layer_end_index", None), int):  # every layer up to this one has experts
        changes["moe_layer_end_index"] = sum(layer <= last for layer in kept_layers) - 1
        if changes["moe_layer_end_index"] == -1:  # no layer with experts is left, and -1 would mean the last one
            changes["moe_layer_start_index"] = len(kept_layers)
    changes |= {name: 0 for name in FURTHER_LAYERS if getattr(config, name, None)}
    # divided by the square root of the number of layers when a model is built: shrunk with it, so that the quotient stays
    if isinstance(depth := getattr(config, "scale_depth", None), (int, float)):
        changes["scale_depth"] = depth * math.sqrt(len(kept_layers) / num_layers)
    if "attention_layers" in changes and hasattr(config, "attention_types"):  # gpt_neo keeps both forms
        changes["attention_types"] = [[[kind], 1] for kind in changes["attention_layers"]]
    # transformers keeps what single layers have of their own in a table by index (per_layer_config)
    table = config.__dict__.get("_heterogeneity_spec")
    if table is not None:
        overrides = {new_index[i]: own for i, own in table.per_layer_overrides.items() if i in new_index}
        changes["_heterogeneity_spec"] = dataclasses.replace(table, per_layer_overrides=overrides)
    # num_hidden_layers is an alias in some families (n_layer); past setattr, which validates each step
    before: dict[str, Any] = {}
    aliases = getattr(type(config), "attribute_map", {}) or {}
    for name, value in changes.items():
        stored = aliases.get(name, name)
        if stored in config.__dict__ and stored not in before:  # layer_types and layers_block_type may be one field
            before[stored] = config.__dict__[stored]
            config.__dict__[stored] = value
    return before


@contextlib.contextmanager
def view_layers(anatomy: Anatomy, candidate: Candidate) -> Iterator[nn.Module]:
    """Let the resident model consist of the kept layers only, less what they lack, without a copy, until the block ends."""
    with anatomy.without(candidate.lacking), _view_kept(anatomy, candidate) as view:
        yield view


@contextlib.contextmanager
def _view_kept(anatomy: Anatomy, candidate: Candidate) -> Iterator[nn.Module]:
    assert candidate.num_layers == anatomy.num_layers, "a candidate belongs to one model"
    assert not set(candidate.kept_layers) & set(anatomy.gone_layers), "a layer that is gone cannot be kept"
    original = anatomy.layers
    kept = [original[layer] for layer in candidate.kept_layers]
    undo: list[tuple[nn.Module, str, Any]] = []
    configs = [text_config(module) for module in (anatomy.model, *anatomy.owner.modules()) if hasattr(module, "config")]
    # not those of a vision tower
    texts = {id(config): config for config in configs if type(config) is type(anatomy.config)}
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


@torch.no_grad()
def restore_parts(student: nn.Module, anatomy: Anatomy, candidate: Candidate) -> None:
    """Put attention and MLP back where a student lacks them, in place, so that they write zeros: a plain checkpoint holds them."""
    restored = SublayerAnatomy(student)
    for layer, kind in candidate.lacking.items():
        position = candidate.kept_layers.index(layer)
        absent = restored.get_part(position, kind)
        part = cast_weights(copy.deepcopy(anatomy.get_part(layer, kind)), next(student.parameters()).dtype)
        for index in INDEX_NAMES:
            if hasattr(part, index) and hasattr(absent, index):
                setattr(part, index, getattr(absent, index))
        restored.put_part(position, kind, part)
        outlet = restored.find_output_projection(2 * position + KINDS.index(kind))
        assert outlet is not None, "prove_sublayers proved that there is one"
        outlet.silence()


@torch.no_grad()
def remove_parts(model: nn.Module, candidate: Candidate) -> None:
    """Take out of a standalone model of a candidate's layers, in place, what they lack."""
    if not candidate.lacking:
        return
    anatomy = Anatomy(model)
    for layer, kind in candidate.lacking.items():
        position = candidate.kept_layers.index(layer)
        anatomy.put_part(position, kind, anatomy.make_absent(position, kind))


@torch.no_grad()
def graft(anatomy: Anatomy, recovered: nn.Module, candidate: Candidate) -> Anatomy:
    """Return the recovered model with its layers at their original indices, and gaps where the others were.

    Args:
        anatomy: the original model; neither changed nor shared with what is returned.
        recovered: the model of the candidate's kept layers, as ``load_checkpoint`` opens it; its weights are copied
            and converted to the original's type.
        candidate: which layers of the original it kept.

    Raises:
        ModelError: it is not a model of these layers of this original.
    """
    gone = f"layer {', '.join(map(str, candidate.dropped_layers))}" if candidate.dropped_layers else "nothing"
    place = f"the recovered {type(recovered).__name__} without {gone}"
    grafted = Anatomy(copy.deepcopy(anatomy.model))
    with view_layers(grafted, candidate) as view:
        _check_config(view, recovered, place=place)
        weights = recovered.state_dict()
        try:
            view.load_state_dict(weights)
        except RuntimeError as error:  # its message begins with the class and lists what is wrong
            wrong = " ".join(str(error).split()[:60])
            raise ModelError(
                f"{place}: its weights do not fit the original model's ({wrong}). Give a model that was recovered from "
                "this original."
            ) from error
        for name, weight in view.state_dict().items():
            if not torch.equal(weight, weights[name].to(weight)):
                raise ModelError(
                    f"{place}: {name} is tied to another weight in the original model, but has values of its own. "
                    "Give a model that was recovered from this original."
                )
    # How layers return their states is seen when one runs.
    grafted.run_layers(torch.zeros(1, 2, dtype=torch.long, device=grafted.device))
    for layer in candidate.dropped_layers:
        grafted.layers[layer] = Gap(returns_tuple=grafted.returns_tuple, like=grafted.layers[layer])
    return grafted


def _check_config(view: nn.Module, recovered: nn.Module, *, place: str) -> None:
    """Layers of equal shapes may be of different kinds: windows, positions, experts."""
    wanted, found = text_config(view), text_config(recovered)
    for name in ("num_hidden_layers", *SLICED_LISTS, *REMAPPED_LISTS, *LEADING_COUNTS):
        expected, actual = (
            list(value) if isinstance(value, tuple) else value
            for value in (getattr(config, name, None) for config in (wanted, found))
        )
        if expected != actual:
            raise ModelError(
                f"{place}: its config says {name} = {actual}, but these layers of the original model have {expected}. "
                "Give the model that was recovered without these very layers."
            )
