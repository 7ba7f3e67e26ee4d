"""A cut model is the model that its shortened config builds, and a view leaves no trace."""

import copy
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from seed.errors import ModelError
from seed.models.anatomy import Anatomy
from seed.models.surgery import INDEX_NAMES, list_needed, make_student, refuse_unfit, repair_config, view_layers
from seed.records import Candidate
from tests.models.families import EVERY_FAMILY, GATED, compute_logits, make_config, make_model, make_tokens, scramble

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
SUBSETS = ((0, 1, 2, 3), (1, 2, 3), (0, 3), (1, 3), (2,))


def keep(*layers: int) -> Candidate:
    return Candidate(num_layers=4, kept_layers=layers)


def rebuild(student: nn.Module, directory: Path) -> nn.Module:
    """Save and load with plain transformers; every weight found and used."""
    student.save_pretrained(directory)
    rebuilt, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return rebuilt.eval()


def read_indices(model: nn.Module) -> list[tuple[str, str, object]]:
    return [
        (path, name, getattr(module, name))
        for path, module in model.named_modules()
        for name in INDEX_NAMES
        if hasattr(module, name)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_view_student_and_rebuilt_model_agree_to_the_bit(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    anatomy = Anatomy(model)
    tokens = make_tokens()
    first = anatomy.trace(tokens)[0]
    for kept in SUBSETS:
        hidden = first
        with torch.no_grad():
            for layer in kept:
                hidden = anatomy.run_layer(layer, hidden)
            walked = anatomy.compute_logits(hidden, tokens)
        with view_layers(anatomy, keep(*kept)) as view:
            viewed = compute_logits(view, tokens)
        student = make_student(anatomy, keep(*kept))
        rebuilt = rebuild(student, tmp_path / "-".join(map(str, kept)))
        assert torch.equal(viewed, walked), kept
        assert torch.equal(compute_logits(student, tokens), viewed), kept
        assert torch.equal(compute_logits(rebuilt, tokens), viewed), kept
        assert rebuilt.config.get_text_config().num_hidden_layers == len(kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_generation_equals_uncached(family: str) -> None:
    anatomy = Anatomy(make_model(family))
    tokens = make_tokens(1, 12)

    def generate(model: nn.Module, *, use_cache: bool) -> list[int]:
        return model.generate(tokens, max_new_tokens=8, do_sample=False, use_cache=use_cache)[0].tolist()

    for kept in ((0, 3), (1, 2, 3)):
        with view_layers(anatomy, keep(*kept)) as view:
            expected = generate(view, use_cache=False)
            assert generate(view, use_cache=True) == expected, kept
        assert generate(make_student(anatomy, keep(*kept)), use_cache=True) == expected, kept


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


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("gpt2", True), ("qwen2", False)])
def test_ties_stay_as_they_are(family: str, tied: bool, tmp_path: Path) -> None:
    student = make_student(Anatomy(make_model(family)), keep(0, 2))
    for model in (student, rebuild(student, tmp_path)):
        head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        assert (head is embedding) == tied
        assert (head.data_ptr() == embedding.data_ptr()) == tied


def test_only_the_language_model_of_a_vision_model_is_cut(tmp_path: Path) -> None:
    text = GATED | {"head_dim": 8, "sliding_window": 8, "vocab_size": 300}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    model = scramble(transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    student = make_student(Anatomy(model), keep(0, 2, 3))
    assert student.config.get_text_config().num_hidden_layers == 3
    assert student.config.vision_config.num_hidden_layers == 6
    tokens = make_tokens()
    assert torch.equal(compute_logits(rebuild(student, tmp_path), tokens), compute_logits(student, tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_can_be_cut_are_not_refused(family: str) -> None:
    refuse_unfit(make_config(family))


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
            ModelError, match=rf"weights are quantized \({method}\).*original ones.*Choose another model"
        ):
            refuse_unfit(config)


def test_layers_that_a_family_cannot_do_without_are_named() -> None:
    needed = {family: list_needed(make_config(family)) for family in EVERY_FAMILY}
    assert needed["llama"] == needed["qwen2"] == needed["minicpm3"] == needed["falcon_h1"] == []
    assert needed["modernbert-decoder"] == [0]
    assert needed["gpt_neox_japanese"] == needed["gemma4_text"] == needed["gemma4"] == [3]
    assert needed["bamba"] == needed["lfm2"] == needed["qwen3_next"] == [3]
    assert needed["olmo_hybrid"] == [2, 3]


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
        (transformers.Zamba2Config(), "share one attention block"),
    ],
    ids=["jamba", "gpt2 by index", "t5", "zamba2"],
)
def test_unfit_models_are_refused_with_the_reason(config: transformers.PretrainedConfig, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        refuse_unfit(config)
    assert config.model_type in str(caught.value)
    assert "Choose another model" in str(caught.value)
