"""A model whose layers may lack attention or MLP, written for runtimes that can run it without them: MLX, and llama.cpp's converter.

Both know Nvidia's DeciLM (``nemotron-nas``): Llama's layers, of each of which the config says what it has. What these runtimes make
of that config is read from their sources: mlx_lm/models/nemotron-nas.py; conversion/deci.py and src/models/deci.cpp of llama.cpp.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from seed import study_dir
from seed.errors import ModelError
from seed.models import checks
from seed.models.checkpoint import copy_companions, explain_failure, load_tokenizer
from seed.models.files import check_files
from seed.models.loader import open_config
from seed.models.provenance import GGUF_READY, Provenance, write_provenance
from seed.models.stored import INDEX, SINGLE, StoredTensor, read_tensors
from seed.records import Candidate

LLAMA_LIKE = ("llama", "mistral")
ROTATIONS = ("default", "linear", "llama3")
WIDTH_STEP = 256  # the config tells an MLP's width by a factor, and readers round up to this
LLAMA3_WORDS = 128_256


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A model that is to be written in another format: its config there, and where the tensors lie that it takes along."""

    source: Path
    config: dict[str, Any]
    tensors: tuple[StoredTensor, ...]
    padding: int  # columns of zeros that each MLP gains

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as they lie."""
        return sum(tensor.num_bytes for tensor in self.tensors)


def plan_conversion(source: Path, candidate: Candidate, *, runtime: str) -> Conversion:
    """Say what of an exported model is written for a runtime.

    Args:
        source: its directory.
        candidate: what is there, as its seed.json says.
        runtime: one of ``FORMATS``.

    Raises:
        ModelError: the runtime cannot hold it, with the reason; or its weights are not those of its config.
    """
    check_files(source)
    with explain_failure(source):
        config = open_config(source)
    lacking = {candidate.kept_layers.index(layer): kind for layer, kind in candidate.lacking.items()}
    reason = _find_reason(config)
    if reason is None and runtime == GGUF_READY:
        reason = _find_gguf_reason(source, config, lacking)
    if reason is not None:
        raise ModelError(
            f"{source}: cannot be written as {runtime}, since {reason}. Use it as it is: there, what is gone writes zeros."
        )
    stored = {tensor.name: tensor for tensor in read_tensors(source)}
    wanted = _list_shapes(config, lacking)
    for name, shape in wanted.items():
        if name not in stored or stored[name].shape != shape:
            found = f"of shape {stored[name].shape}" if name in stored else "missing"
            raise ModelError(f"{source}: {name} is {found}, where its config says {shape}. Export the model again.")
    padding = -config.intermediate_size % WIDTH_STEP
    return Conversion(
        source=source,
        config=_spell_config(config, lacking, mlp_width=config.intermediate_size + padding),
        tensors=tuple(stored[name] for name in wanted),
        padding=padding,
    )


def write_conversion(conversion: Conversion, target: Path, *, provenance: Provenance) -> None:
    """Write a planned conversion aside and rename it; the weights of one file at a time are in memory.

    Args:
        conversion: what is written.
        target: the directory; what was there is replaced.
        provenance: what its seed.json says, besides the hashes of its files.

    Raises:
        ModelError: its tokenizer reads otherwise there.
        ResourceError: the disk does not take it.
    """
    files = sorted({tensor.path for tensor in conversion.tensors})
    count = len(files)
    names = [SINGLE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    weight_map: dict[str, str] = {}
    with study_dir.explain_resource_errors(target), study_dir.replace_directory(target) as aside:
        (aside / "config.json").write_text(json.dumps(conversion.config, indent=2) + "\n", encoding="utf-8")
        for path, name in zip(files, names, strict=True):
            with safe_open(path, framework="pt") as source:
                tensors = {
                    one.name: _pad(one.name, source.get_tensor(one.name), conversion.padding)
                    for one in conversion.tensors
                    if one.path == path
                }
            save_file(tensors, aside / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
        if count > 1:
            index = {"metadata": {}, "weight_map": weight_map}
            (aside / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        copy_companions(aside, original=conversion.source)
        _require_same_words(conversion.source, aside)
        write_provenance(aside, provenance)


def _find_reason(config: Any) -> str | None:
    """Why DeciLM does not compute what a model computes; None: it does."""
    if config.model_type not in LLAMA_LIKE:
        return f"it is a {config.model_type} model, and the format knows Llama's architecture alone"
    rope = config.rope_parameters
    if rope["rope_type"] not in ROTATIONS or rope.get("partial_rotary_factor", 1) != 1:
        return f"it rotates positions in a way that the format does not know ({rope['rope_type']})"
    if getattr(config, "sliding_window", None):
        return f"its attention looks back {config.sliding_window} tokens, and the format's sees all"
    if config.hidden_act != "silu":
        return f"its MLPs use {config.hidden_act}, and the format's use silu"
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return "its projections add biases"
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        return f"its {config.num_attention_heads} heads of {config.head_dim} do not make up its width of {config.hidden_size}"
    return None


def _find_gguf_reason(source: Path, config: Any, lacking: Mapping[int, str]) -> str | None:
    """Why llama.cpp would not convert a model to DeciLM, or compute something else; None: neither."""
    if "mlp" in lacking.values():
        return "llama.cpp leaves out the attention as well of a layer that has no MLP, and its results are others"
    if 0 in lacking:
        return "llama.cpp takes the width of all heads from the first layer, which has no attention"
    if config.vocab_size != LLAMA3_WORDS and not _has_byte_fallback(source, config.vocab_size):
        return (
            f"llama.cpp's converter knows two tokenizers in this format, Llama 3's of {LLAMA3_WORDS:,} tokens and a tokenizer.json in "
            "the manner of Llama 2 (BPE that falls back to bytes, as many tokens as the embedding has), and it has neither"
        )
    return None


def _has_byte_fallback(source: Path, num_words: int) -> bool:
    """Does a tokenizer's file hold so many words, and bytes for whatever they do not spell?"""
    file = source / "tokenizer.json"
    if not file.is_file():
        return False
    said = json.loads(file.read_text(encoding="utf-8"))
    model, decoder = said["model"], said.get("decoder") or {}
    if model["type"] != "BPE" or not model.get("byte_fallback") or decoder.get("type") != "Sequence":
        return False
    return len({*model["vocab"].values(), *(token["id"] for token in said.get("added_tokens", ()))}) == num_words


def _list_shapes(config: Any, lacking: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama without what it lacks, by their names in its checkpoint, which are the format's too."""
    width, inner = config.hidden_size, config.intermediate_size
    key_width = config.num_key_value_heads * config.head_dim
    parts = {
        "attn": {
            "input_layernorm": (width,),
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (key_width, width),
            "self_attn.v_proj": (key_width, width),
            "self_attn.o_proj": (width, width),
        },
        "mlp": {
            "post_attention_layernorm": (width,),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        },
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (config.vocab_size, width), "model.norm": (width,)}
    if not config.tie_word_embeddings:
        shapes["lm_head"] = (config.vocab_size, width)
    for layer in range(config.num_hidden_layers):
        for kind, part in parts.items():
            if lacking.get(layer) != kind:
                shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in part.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def _spell_config(config: Any, lacking: Mapping[int, str], *, mlp_width: int) -> dict[str, Any]:
    rope = dict(config.rope_parameters)
    theta, kind = rope.pop("rope_theta"), rope["rope_type"]
    if kind == "llama3":
        # MLX goes by "type", llama.cpp's converter by "rope_type" in any case, and transformers 5, which both open tokenizers with,
        # trips over the lower one in a config of a family that it does not know
        rope |= {"type": kind, "rope_type": "Llama3"}
    group = config.num_attention_heads // config.num_key_value_heads
    # aimed at the middle of the step that is rounded up
    factor = 3 * (mlp_width - WIDTH_STEP // 2) / (2 * config.hidden_size)
    same = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "rms_norm_eps",
        "max_position_embeddings",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        **{name: getattr(config, name) for name in same},
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else rope,
        # llama.cpp's converter looks for it here
        **{name: value for name, value in rope.items() if name == "original_max_position_embeddings"},
        "block_configs": [
            _spell_block(lacking.get(layer), group=group, factor=factor) for layer in range(config.num_hidden_layers)
        ],
    }


def _spell_block(gone: str | None, *, group: int, factor: float) -> dict[str, Any]:
    """A layer without what is gone. ``group``: heads that share keys and values; ``factor``: tells the width of the MLP."""
    return {
        "attention": {
            "no_op": gone == "attn",
            "replace_with_linear": False,
            "n_heads_in_group": None if gone == "attn" else group,
        },
        "ffn": {
            "no_op": gone == "mlp",
            "replace_with_linear": False,
            "ffn_mult": None if gone == "mlp" else factor,
        },
    }


def _pad(name: str, weight: torch.Tensor, padding: int) -> torch.Tensor:
    """Widen an MLP's weight by what reads and writes zeros; others stay as they are."""
    if name.endswith((".gate_proj.weight", ".up_proj.weight")):
        return torch.nn.functional.pad(weight, (0, 0, 0, padding))
    if name.endswith(".down_proj.weight"):
        return torch.nn.functional.pad(weight, (0, padding))
    return weight


def _require_same_words(source: Path, aside: Path) -> None:
    """See that transformers, which both runtimes open tokenizers with, does not take another one where the family is another."""
    wanted = load_tokenizer(source).encode(checks.SAMPLE)
    try:
        found = load_tokenizer(aside).encode(checks.SAMPLE)
    except ModelError:
        found = None
    if found != wanted:
        raise ModelError(
            f"{source}: its tokenizer_config.json does not say which tokenizer it is, and transformers takes another one in this format. "
            "Open the tokenizer with transformers, save it with save_pretrained, and export the model again."
        )
