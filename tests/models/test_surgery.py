"""A cut model is the model that its shortened config builds, and a view leaves no trace."""

import contextlib
import copy

import pytest
import torch
import transformers
from torch import nn

from seed.errors import ModelError
from seed.models.anatomy import Anatomy
from seed.models.surgery import INDEX_NAMES, refuse_unfit, repair_config, view_layers
from tests.models.families import GATED, KINDS, compute_logits, keep, make_config, make_model, make_tokens


def read_indices(model: nn.Module) -> list[tuple[str, str, object]]:
    return [
        (path, name, getattr(module, name))
        for path, module in model.named_modules()
        for name in INDEX_NAMES
        if hasattr(module, name)
    ]


@pytest.mark.parametrize("family", KINDS)
def test_a_view_restores_everything(family: str) -> None:
    model = make_model(family)
    anatomy = Anatomy(model)
    tokens = make_tokens()
    layers = list(anatomy.layers)
    config, indices, logits = copy.deepcopy(model.config.__dict__), read_indices(model), compute_logits(model, tokens)
    assert indices
    for error in (None, ZeroDivisionError):  # the block ends, or fails
        with contextlib.suppress(ZeroDivisionError), view_layers(anatomy, keep(1, 3)) as view:
            assert view.config.get_text_config().num_hidden_layers == 2
            assert read_indices(view) != indices
            compute_logits(view, tokens)
            if error:
                raise error
        assert [id(layer) for layer in anatomy.layers] == [id(layer) for layer in layers]
        assert model.config.__dict__ == config
        assert read_indices(model) == indices
        assert torch.equal(compute_logits(model, tokens), logits)


@pytest.mark.parametrize(
    ("family", "kept", "fields"),
    [
        ("qwen2", (1, 2, 3), {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
        ("smollm3", (1, 2, 3), {"no_rope_layers": [0, 1, 0]}),
        ("qwen2_moe", (0, 2, 3), {"mlp_only_layers": [1]}),
        ("deepseek_v3", (1, 2, 3), {"first_k_dense_replace": 1}),
        # every second layer has experts: 1 and 3
        ("qwen3_moe", (0, 1, 3), {"decoder_sparse_step": 1, "mlp_only_layers": [0]}),
        ("gpt_neo", (1, 2, 3), {"attention_types": [[["local"], 1], [["global"], 1], [["local"], 1]]}),
        # experts in layers 1 and 2; -1: to the last layer
        ("ernie4_5_moe", (3,), {"moe_layer_start_index": 1, "moe_layer_end_index": -1}),
        # layers_block_type is an alias of layer_types
        ("granitemoehybrid", (1, 3), {"layer_types": ["full_attention"] * 2}),
    ],
)
def test_each_kind_of_per_layer_field_follows_the_kept_layers(
    family: str, kept: tuple[int, ...], fields: dict[str, object]
) -> None:
    config = make_config(family)
    whole = copy.deepcopy(config.__dict__)
    before = repair_config(config, kept)
    assert {name: getattr(config, name) for name in fields} == fields
    config.__dict__.update(before)
    assert config.__dict__ == whole


@pytest.mark.parametrize(
    ("quantization", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        (transformers.BitsAndBytesConfig(load_in_4bit=True), "bitsandbytes"),
        ({"bits": 4}, "None"),
    ],
    ids=["gptq", "bitsandbytes object", "unnamed"],
)
def test_quantized_weights_are_refused_by_name(quantization: object, method: str) -> None:
    for config in (
        transformers.LlamaConfig(**GATED, quantization_config=quantization),
        transformers.Gemma3Config(text_config=GATED | {"quantization_config": quantization}),
    ):
        with pytest.raises(
            ModelError, match=rf"weights are quantized \({method}\).*Give the model that it was made from"
        ):
            refuse_unfit(config, place="there")
