"""Tiny random models of many families, for what must hold whatever the family is called."""

import copy
from typing import Any

import torch
import transformers
from torch import nn

from seed.models.loader import find_auto_class
from seed.records import Candidate
from tests import conftest

COMMON = {"vocab_size": 257, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4}
GATED = COMMON | {
    "intermediate_size": 64,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
NARROW = GATED | {"head_dim": 8}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GROUPED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 2,
    "topk_group": 1,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
STATES = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_expand": 2, "mamba_chunk_size": 8}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4} | {
    "image_size": 28,
    "patch_size": 14,
}
SIGLIP = VISION | {"model_type": "siglip_vision_model"}
PATCHES = {"depth": 2, "hidden_size": 32, "embed_dim": 32, "num_heads": 4, "intermediate_size": 64} | {
    "patch_size": 14,
    "out_hidden_size": 32,
}
SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
CHOOSING = {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 4}
OLD = {"vocab_size": 257, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128} | {
    "bos_token_id": 0,
    "eos_token_id": 0,
}
OPT = COMMON | {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 128, "pad_token_id": None}
MAMBA = {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 4}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
SIMPLE = ("llama", "gpt2", "qwen2", "gemma2")
# Six kinds that differ in structure; what must hold of any family is tested on these, and every family's own proof by make test-all.
KINDS = (
    "llama",  # grouped keys and values, rotary positions, a gated MLP, its head tied: what most families are
    "gpt2",  # Conv1D, whose weights lie the other way round; learned positions, biases, dropout
    "gemma3_text",  # norms behind attention and MLP too; sliding and full attention; scaled embedding
    "qwen2_moe",  # experts beside a shared one, dense layers named by their index in the config; a head of its own
    "mamba",  # a state-space model: no attention and no MLP, and a cache of another kind
    "falcon",  # attention and MLP side by side, a single head of keys and values; layers that return tuples
)
# What the configs of families are made with.
CONFIGS: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": 257, "hidden_size": 32, "n_layer": 4, "n_head": 4},
    "falcon": COMMON,
    "mpt": {"vocab_size": 257, "d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 128},
    "opt": OPT,
    "opt_post_norm": OPT | {"do_layer_norm_before": False},
    "gpt_neox": COMMON | {"intermediate_size": 64, "max_position_embeddings": 128},
    "gpt_neo": {
        "vocab_size": 257,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 8,
        "max_position_embeddings": 128,
    },
    "granite": GATED | {"residual_multiplier": 0.22, "logits_scaling": 3.0},
    "smollm3": GATED | {"no_rope_layers": [1, 0, 1, 0], "use_sliding_window": False},
    "mixtral": GATED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": GATED
    | EXPERTS
    | {
        "shared_expert_intermediate_size": 16,
        "mlp_only_layers": [1, 2],
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 2,
    },
    "qwen3_moe": NARROW | EXPERTS | {"decoder_sparse_step": 2},
    "deepseek_v3": GATED | LATENT | GROUPED | {"first_k_dense_replace": 2},
    "mamba": MAMBA,
    "afmoe": NARROW | EXPERTS | WINDOWS | {"num_dense_layers": 2, "num_shared_experts": 1},
    "apertus": GATED,
    "arcee": GATED,
    "bamba": GATED | STATES | {"attn_layer_indices": [1, 3]},
    "biogpt": COMMON | ENDS | {"intermediate_size": 64, "max_position_embeddings": 128},
    "bitnet": GATED,
    "codegen": OLD | {"rotary_dim": 8},
    "cohere": GATED,
    "cohere2": GATED | WINDOWS,
    "ctrl": {"vocab_size": 257, "n_embd": 32, "dff": 64, "n_layer": 4, "n_head": 4, "n_positions": 128},
    "cwm": NARROW | WINDOWS,
    "deepseek_v2": GATED | LATENT | GROUPED | {"first_k_dense_replace": 1},
    "deepseek_v4": NARROW | GROUPED | {"q_lora_rank": 16, "sliding_window": 8},
    "doge": GATED,
    "dots1": GATED | GROUPED | WINDOWS | {"first_k_dense_replace": 2, "n_shared_experts": 1},
    "ernie4_5": NARROW,
    "ernie4_5_moe": GATED
    | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_num_shared_experts": 1}
    | {"moe_layer_start_index": 1, "moe_layer_end_index": 2},
    "exaone4": GATED | WINDOWS,
    "exaone_moe": NARROW | EXPERTS | WINDOWS | {"mlp_layer_types": ["dense", "sparse"] * 2, "n_group": 2},
    "dots3_note_text": NARROW | LATENT | GROUPED | {"num_key_value_heads": 4, "n_shared_experts": 1},
    "falcon_h1": NARROW | STATES | {"mamba_d_ssm": 64},
    "falcon_mamba": MAMBA,
    "flex_olmo": GATED | EXPERTS,
    "gemma": NARROW,
    "gemma3": {"text_config": NARROW | WINDOWS, "vision_config": VISION, "mm_tokens_per_image": 4},
    "gemma3_text": NARROW | WINDOWS,
    "gemma4": {
        "text_config": NARROW
        | WINDOWS
        | {"pad_token_id": 0, "global_head_dim": 16, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
        "vision_config": VISION | {"head_dim": 8},
        "audio_config": None,
    },
    "gemma4_text": NARROW
    | WINDOWS
    | {"global_head_dim": 16, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
    "glm": NARROW,
    "glm4": NARROW,
    "glm4_moe": NARROW | GROUPED | {"first_k_dense_replace": 2, "n_shared_experts": 1},
    "gpt_bigcode": OLD,
    "gpt_neox_japanese": COMMON | {"intermediate_multiple_size": 2, "max_position_embeddings": 128},
    "gpt_oss": NARROW | WINDOWS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gptj": OLD | {"rotary_dim": 8},
    "granite_swa": GATED | WINDOWS | {"layer_rope_theta": [1e4, 1e5, 1e4, 1e5]},
    "granitemoe": GATED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid": GATED
    | STATES
    | {"num_local_experts": 4, "shared_intermediate_size": 16, "layer_types": LINEAR["layer_types"]},
    "granitemoeshared": GATED | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 16},
    "helium": NARROW,
    "hunyuan_v1_dense": NARROW,
    "hunyuan_v1_moe": NARROW | {"num_experts": 4, "moe_topk": 2},
    "hy_v3": NARROW | EXPERTS | {"mlp_layer_types": ["dense", "sparse"] * 2},
    "jais2": NARROW,
    "jetmoe": COMMON
    | ENDS
    | {"num_key_value_heads": 2, "kv_channels": 8, "intermediate_size": 64, "num_local_experts": 4},
    "kimi_linear": NARROW
    | LATENT
    | EXPERTS
    | {"linear_head_dim": 8, "linear_num_heads": 4, "layer_types": LINEAR["layer_types"]},
    "laguna": NARROW | EXPERTS | WINDOWS | {"num_attention_heads_per_layer": [4, 8, 4, 8]},
    "lfm2": GATED | {"full_attn_idxs": [1, 3], "conv_L_cache": 3},
    "lfm2_moe": GATED | EXPERTS | {"num_dense_layers": 2, "layer_types": ["conv", "full_attention"] * 2},
    "llama4_text": NARROW
    | {"num_local_experts": 4, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 2, "attention_chunk_size": 8},
    "mamba2": MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "minicpm3": GATED | LATENT,
    "mimo_v2_flash": NARROW | GROUPED | WINDOWS | {"mlp_layer_types": ["dense", "sparse"] * 2},
    "minimax": NARROW | {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": LINEAR["layer_types"]},
    "minimax_m2": NARROW | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "ministral": NARROW | WINDOWS,
    "ministral3": NARROW,
    "mistral": NARROW | {"sliding_window": 8},
    "modernbert-decoder": COMMON
    | {"intermediate_size": 64, "local_attention": 16, "layer_types": WINDOWS["layer_types"]}
    | dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    "nanochat": GATED,
    "nemotron": GATED,
    "nemotron_h": NARROW
    | {"layers_block_type": ["linear_attention", "full_attention", "mlp", "full_attention"]}
    | {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 4, "n_groups": 1, "chunk_size": 8},
    "olmo": GATED,
    "olmo2": GATED,
    "olmo3": GATED | WINDOWS,
    "olmo_hybrid": GATED | LINEAR,
    "olmoe": GATED | EXPERTS,
    "persimmon": COMMON | ENDS | {"intermediate_size": 64, "max_position_embeddings": 128},
    "phi": GATED,
    "phi3": GATED,
    "phimoe": GATED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3": NARROW | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "qwen3_5_text": NARROW | LINEAR,
    "qwen3_5_moe_text": NARROW | LINEAR | EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_next": NARROW | LINEAR | EXPERTS | {"shared_expert_intermediate_size": 16, "mlp_only_layers": [1, 2]},
    "seed_oss": NARROW,
    "stablelm": GATED,
    "starcoder2": GATED,
    "vaultgemma": NARROW | WINDOWS,
    "xglm": {"vocab_size": 257, "d_model": 32, "ffn_dim": 64, "num_layers": 4, "attention_heads": 4} | ENDS,
    "aria_text": NARROW | {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "axk1": NARROW | LATENT | GROUPED,
    "bailing_hybrid": NARROW
    | LATENT
    | EXPERTS
    | {"n_group": 2, "topk_group": 1, "num_experts_per_token": 2, "layer_group_size": 2},
    "cohere2_moe": NARROW | EXPERTS | WINDOWS,
    "flint": NARROW | EXPERTS | WINDOWS | {"shared_expert_intermediate_size": 16, "mlp_only_layers": [1]},
    "gemma4_unified_text": NARROW | WINDOWS | {"global_head_dim": 16, "num_kv_shared_layers": 0},
    "glm4_moe_lite": NARROW | LATENT | GROUPED,
    "gpt-sw3": OLD,
    "granitemoe_swa": GATED
    | WINDOWS
    | {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_rope_theta": [1e4, 1e5, 1e4, 1e5]},
    "hunyuan_v1_moe_by_layer": NARROW | {"num_experts": 4, "moe_topk": [1, 2, 3, 2]},
    "hyperclovax": NARROW,
    "inkling_text": NARROW | GROUPED | EXPERTS | {"n_shared_experts": 1},
    "internlm3": NARROW,
    "iquestcoder": NARROW,
    "kolibri1": NARROW | EXPERTS | WINDOWS | {"shared_expert_intermediate_size": 16},
    "lfm3": NARROW | {"conv_L_cache": 3},
    "mellum": NARROW | EXPERTS | WINDOWS | {"mlp_layer_types": ["dense", "sparse"] * 2},
    "minimax_m3_vl_text": NARROW | EXPERTS,
    "solar_open": NARROW | GROUPED,
    "youtu": NARROW | LATENT,
    # text parts of models that see
    "aya_vision": {"text_config": GATED | WINDOWS | {"model_type": "cohere2"}, "vision_config": SIGLIP},
    "cohere2_vision": {
        "text_config": GATED | WINDOWS | {"model_type": "cohere2"},
        "vision_config": SIGLIP,
        "alignment_intermediate_size": 64,
    },
    "fuyu": {"text_config": NARROW | {"model_type": "persimmon"}},
    "gemma4_unified": {
        "text_config": NARROW
        | WINDOWS
        | {"pad_token_id": 0, "global_head_dim": 16, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
        "vision_config": {"mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 32},
        "audio_config": None,
    },
    "glm4v": {"text_config": NARROW | SECTIONS, "vision_config": PATCHES},
    "idefics3": {"text_config": NARROW | {"model_type": "llama"}, "vision_config": VISION},
    "internvl": {
        "text_config": NARROW | {"model_type": "qwen2"},
        "vision_config": VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
    },
    "lfm2_vl": {
        "text_config": GATED | {"full_attn_idxs": [1, 3], "conv_L_cache": 3, "model_type": "lfm2"},
        "vision_config": VISION | {"model_type": "siglip2_vision_model"},
    },
    "llama4": {
        "text_config": NARROW
        | {"num_local_experts": 4, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 2}
        | {"attention_chunk_size": 8},
        "vision_config": VISION | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    },
    "llava": {
        "text_config": NARROW | {"model_type": "llama"},
        "vision_config": VISION | {"model_type": "clip_vision_model"},
    },
    "llava_next": {
        "text_config": NARROW | {"model_type": "llama"},
        "vision_config": VISION | {"model_type": "clip_vision_model"},
    },
    "llava_onevision": {"text_config": NARROW | {"model_type": "qwen2"}, "vision_config": SIGLIP},
    "mistral3": {
        "text_config": NARROW | {"model_type": "mistral"},
        "vision_config": VISION | {"model_type": "pixtral", "head_dim": 8},
    },
    "qwen2_vl": {"text_config": NARROW | SECTIONS, "vision_config": PATCHES},
    "qwen2_5_vl": {"text_config": NARROW | SECTIONS, "vision_config": PATCHES},
    "qwen3_vl": {"text_config": NARROW | SECTIONS, "vision_config": PATCHES | {"deepstack_visual_indexes": [0]}},
    "qwen3_vl_moe": {
        "text_config": NARROW | SECTIONS | EXPERTS,
        "vision_config": PATCHES | {"deepstack_visual_indexes": [0]},
    },
    "qwen3_5": {"text_config": NARROW | LINEAR, "vision_config": PATCHES},
    "qwen3_5_moe": {
        "text_config": NARROW | LINEAR | EXPERTS | {"shared_expert_intermediate_size": 16},
        "vision_config": PATCHES,
    },
    "smolvlm": {"text_config": NARROW | {"model_type": "llama"}, "vision_config": VISION},
    # refused
    "axk2": NARROW | LATENT | GROUPED | CHOOSING,
    "bert": {},
    "deepseek_v32": NARROW | LATENT | GROUPED | CHOOSING,
    "granite4_vision": {"deepstack_layer_map": [[0, 0]]},
    "beam": NARROW | EXPERTS | WINDOWS,
    "diffllama": GATED,
    "gemma3n_text": {},
    "gemma4_shared": NARROW | WINDOWS | {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 0},
    "gemma4_by_layer": NARROW | WINDOWS | {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8},
    "glm_moe_dsa": {"indexer_types": ["full", "shared"] * 39},
    "gpt2_by_index": OLD | {"scale_attn_by_inverse_layer_idx": True},
    "hrm_text": {},
    "inkling2_text": {},
    "jamba": GATED,
    "longcat_flash": {},
    "rwkv": {},
    "mllama": {},
    "recurrent_gemma": {},
    "openai-gpt": OLD,
    "t5": {},
    "zaya": {"num_experts_per_tok": 1},
    "zamba": {},
    "zamba2": {},
}
# Language models of transformers that are neither proven nor refused by name; a study of one stops where a proof fails.
UNPROVEN = (
    "blt",
    "cohere_compass_text",
    "cpmant",
    "dbrx",
    "dots3_note",
    "emu3",
    "gemma4_assistant",
    "git",
    "got_ocr2",
    "moshi",
    "moss_transcribe_diarize",
    "musicgen",
    "musicgen_melody",
    "phi4_multimodal",
    "qwen4_exp",
    "qwen4_exp_text",
    "xlm",
    "xlnet",
    "xlstm",
)
EVERY_FAMILY = (*SIMPLE, *CONFIGS)
# Where a family stands twice, what transformers calls it.
MODEL_TYPES = {
    "opt_post_norm": "opt",
    "gemma4_shared": "gemma4_text",
    "gemma4_by_layer": "gemma4_text",
    "gpt2_by_index": "gpt2",
    "hunyuan_v1_moe_by_layer": "hunyuan_v1_moe",
}


def make_config(family: str) -> transformers.PretrainedConfig:
    """A 4-layer, 32-wide config."""
    if family in SIMPLE:
        return conftest.make_config(family)
    fields = copy.deepcopy(CONFIGS[family])  # some configs change what they are given
    return transformers.AutoConfig.for_model(MODEL_TYPES.get(family, family), **fields)


def make_model(family: str, *, rng_seed: int = 0) -> nn.Module:
    """A model whose every parameter is random, biases and norms too."""
    config = make_config(family)
    model = find_auto_class(config).from_config(config, dtype=torch.float32)
    return scramble(model, rng_seed=rng_seed)


def scramble(model: nn.Module, *, rng_seed: int = 0) -> nn.Module:
    """Give every parameter a random value, large enough to matter."""
    generator = torch.Generator().manual_seed(rng_seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model.eval().requires_grad_(False)


def make_tokens(num_rows: int = 2, num_tokens: int = 24, *, rng_seed: int = 0) -> torch.Tensor:
    """Random tokens, longer than the sliding windows of 8."""
    return torch.randint(1, 257, (num_rows, num_tokens), generator=torch.Generator().manual_seed(rng_seed))


def compute_logits(model: nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    """What the model itself says."""
    with torch.no_grad():
        return model(input_ids=tokens_BT, use_cache=False).logits


def keep(*layers: int) -> Candidate:
    """A candidate of these four-layer models."""
    return Candidate.keep(num_layers=4, kept_layers=layers)
