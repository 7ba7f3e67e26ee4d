"""Tiny random models of many families, for what must hold whatever the family is called."""

import torch
import transformers
from torch import nn

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
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SIMPLE = ("llama", "gpt2", "qwen2", "gemma2")
FAMILIES = (
    *SIMPLE,
    "bloom",
    "falcon",
    "mpt",
    "opt",
    "opt_post_norm",
    "gpt_neox",
    "gpt_neo",
    "granite",
    "smollm3",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v3",
    "mamba",
)


def make_config(family: str) -> transformers.PretrainedConfig:
    """A 4-layer, 32-wide config."""
    if family in SIMPLE:
        return conftest.make_config(family)
    makers = {
        "bloom": lambda: transformers.BloomConfig(vocab_size=257, hidden_size=32, n_layer=4, n_head=4),
        "falcon": lambda: transformers.FalconConfig(**COMMON),
        "mpt": lambda: transformers.MptConfig(vocab_size=257, d_model=32, n_layers=4, n_heads=4, max_seq_len=128),
        "opt": make_opt_config,
        "opt_post_norm": lambda: make_opt_config(do_layer_norm_before=False),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**COMMON, intermediate_size=64, max_position_embeddings=128),
        "gpt_neo": lambda: transformers.GPTNeoConfig(
            vocab_size=257,
            hidden_size=32,
            num_layers=4,
            num_heads=4,
            attention_types=[[["global", "local"], 2]],
            window_size=8,
            max_position_embeddings=128,
        ),
        "granite": lambda: transformers.GraniteConfig(**GATED, residual_multiplier=0.22, logits_scaling=3.0),
        "smollm3": lambda: transformers.SmolLM3Config(**GATED, no_rope_layers=[1, 0, 1, 0], use_sliding_window=False),
        "mixtral": lambda: transformers.MixtralConfig(**GATED, num_local_experts=4, num_experts_per_tok=2),
        "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
            **GATED,
            **EXPERTS,
            shared_expert_intermediate_size=16,
            mlp_only_layers=[1, 2],
            use_sliding_window=True,
            sliding_window=8,
            max_window_layers=2,
        ),
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**GATED, **EXPERTS, head_dim=8, decoder_sparse_step=2),
        "deepseek_v3": lambda: transformers.DeepseekV3Config(
            **GATED | {"num_key_value_heads": 4},
            moe_intermediate_size=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=2,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
        ),
        "mamba": lambda: transformers.MambaConfig(vocab_size=257, hidden_size=32, num_hidden_layers=4, state_size=4),
    }
    return makers[family]()


def make_opt_config(**changes: object) -> transformers.OPTConfig:
    """OPT: layers with fc1 and fc2 of their own, and biases everywhere."""
    return transformers.OPTConfig(
        **COMMON, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=128, pad_token_id=None, **changes
    )


def make_model(family: str, *, rng_seed: int = 0) -> nn.Module:
    """A model whose every parameter is random, biases and norms too."""
    model = transformers.AutoModelForCausalLM.from_config(make_config(family), dtype=torch.float32)
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
