"""A cut model is the model that its shortened config builds, and a view leaves no trace."""

import copy

import pytest
import torch
import transformers
from torch import nn

from seed.errors import ModelError
from seed.models.anatomy import Anatomy
from seed.models.surgery import INDEX_NAMES, list_needed, make_student, refuse_unfit, repair_config, view_layers
from seed.records import Candidate
from tests.models.families import EVERY_FAMILY, GATED, compute_logits, make_config, make_model, make_tokens

FAMILIES = (
    "llama",
    "gpt2",
    "qwen2",
    "gemma2",
    "bloom",
    "falcon",
    "gpt_neo",
    "smollm3",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v3",
)


def keep(*layers: int) -> Candidate:
    return Candidate(num_layers=4, kept_layers=layers)


def read_indices(model: nn.Module) -> list[tuple[str, str, object]]:
    return [
        (path, name, getattr(module, name))
        for path, module in model.named_modules()
        for name in INDEX_NAMES
        if hasattr(module, name)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fails", [False, True], ids=["block ends", "block raises"])
def test_a_view_restores_everything(family: str, fails: bool) -> None:
    model = make_model(family)
    anatomy = Anatomy(model)
    tokens = make_tokens()
    layers = list(anatomy.layers)
    config, indices, logits = copy.deepcopy(model.config.__dict__), read_indices(model), compute_logits(model, tokens)
    assert indices
    try:
        with view_layers(anatomy, keep(1, 3)) as view:
            assert view.config.get_text_config().num_hidden_layers == 2
            assert read_indices(view) != indices
            compute_logits(view, tokens)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert [id(layer) for layer in anatomy.layers] == [id(layer) for layer in layers]
    assert model.config.__dict__ == config
    assert read_indices(model) == indices
    assert torch.equal(compute_logits(model, tokens), logits)


def test_each_kind_of_per_layer_field_follows_the_kept_layers() -> None:
    def fields_of(family: str, *kept: int) -> dict[str, object]:
        return make_student(Anatomy(make_model(family)), keep(*kept)).config.to_dict()

    assert fields_of("qwen2", 1, 2, 3)["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention"]
    assert fields_of("smollm3", 1, 2, 3)["no_rope_layers"] == [0, 1, 0]
    assert fields_of("qwen2_moe", 0, 2, 3)["mlp_only_layers"] == [1]
    assert fields_of("deepseek_v3", 1, 2, 3)["first_k_dense_replace"] == 1
    stepped = fields_of("qwen3_moe", 0, 1, 3)  # every second layer has experts: 1 and 3
    assert (stepped["decoder_sparse_step"], stepped["mlp_only_layers"]) == (1, [0])
    assert fields_of("gpt_neo", 1, 2, 3)["attention_types"] == [[["local"], 1], [["global"], 1], [["local"], 1]]


def test_a_student_has_weights_of_its_own() -> None:
    model = make_model("llama")
    tokens = make_tokens()
    before = compute_logits(model, tokens)
    student = make_student(Anatomy(model), keep(0, 2))
    mine = {parameter.data_ptr() for parameter in model.parameters()}
    assert mine.isdisjoint(parameter.data_ptr() for parameter in student.parameters())
    assert torch.equal(student.model.layers[1].mlp.up_proj.weight, model.model.layers[2].mlp.up_proj.weight)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(compute_logits(model, tokens), before)


BNB = transformers.BitsAndBytesConfig(load_in_4bit=True)


@pytest.mark.parametrize(
    ("quantization", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        (BNB, "bitsandbytes"),
        ({"bits": 4}, "None"),
    ],
    ids=["gptq", "awq", "bitsandbytes", "bitsandbytes object", "unnamed"],
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


def test_layers_that_a_family_cannot_do_without_are_named() -> None:
    needed = {family: list_needed(make_config(family)) for family in EVERY_FAMILY}
    assert needed["llama"] == needed["qwen2"] == needed["minicpm3"] == needed["falcon_h1"] == []
    assert needed["modernbert-decoder"] == [0]
    assert needed["gpt_neox_japanese"] == needed["gemma4_text"] == needed["gemma4"] == [3]
    assert needed["bamba"] == needed["lfm2"] == needed["qwen3_next"] == [3]
    assert needed["olmo_hybrid"] == [2, 3]
    assert needed["qwen3_vl"] == [0]  # what a first vision layer saw enters behind the first layer


def test_a_field_under_two_names_is_restored_once() -> None:
    anatomy = Anatomy(make_model("granitemoehybrid"))  # layers_block_type is an alias of layer_types
    before = list(anatomy.config.layer_types)
    with view_layers(anatomy, keep(1, 3)):
        assert anatomy.config.layer_types == ["full_attention"] * 2
    assert anatomy.config.layer_types == before


def test_a_layer_behind_all_experts_stays_dense_on_its_own() -> None:
    config = make_config("ernie4_5_moe")  # experts in layers 1 and 2
    repair_config(config, (3,))
    assert (config.moe_layer_start_index, config.moe_layer_end_index) == (1, -1)  # -1: to the last layer


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.JambaConfig(), "period over the"),
        (transformers.GPT2Config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
        (transformers.T5Config(), "encoder-decoder"),
        (transformers.LlamaConfig(architectures=["LlamaForSequenceClassification"]), "which writes no text"),
        (transformers.BertConfig(), "what comes after a token"),
        (transformers.Zamba2Config(), "share one attention block"),
    ],
    ids=["jamba", "gpt2 by index", "t5", "classifier", "bert", "zamba2"],
)
def test_unfit_models_are_refused_with_the_reason(config: transformers.PretrainedConfig, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        refuse_unfit(config, place="there")
    assert "there: Seed cannot remove" in str(caught.value)
    assert config.model_type in str(caught.value)
    assert "Choose another model" in str(caught.value)
