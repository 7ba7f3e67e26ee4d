"""A model built from its outline is the same model: names, shapes, types, ties, buffers, and, given its weights, logits."""

import json
from typing import Any

import pytest
import torch
import transformers
from msgspec.structs import replace
from torch import nn

from seed.errors import ModelError
from seed.models.anatomy import Anatomy
from seed.models.outline import build_hollow, draw_outline
from seed.models.surgery import make_student
from seed.models.width import WidthImportance, find_widths, make_narrow
from seed.records import Candidate
from tests.models.families import FAMILIES, compute_logits, make_model, make_tokens

CUT = Candidate(num_layers=4, kept_layers=(0, 2, 3))
TIED = draw_outline(make_model("llama"))


def build_again(model: nn.Module) -> Any:
    return build_hollow(draw_outline(model), dict(model.named_buffers()))


def assert_same_model(built: Any, model: Any) -> None:
    """Equal in everything but the weights' values, of which it has none; then in what it computes from the same."""
    assert type(built) is type(model)
    for of in (nn.Module.named_parameters, nn.Module.named_buffers):
        pairs = [[*of(one, remove_duplicate=False)] for one in (built, model)]
        assert [(name, tensor.dtype) for name, tensor in pairs[0]] == [
            (name, tensor.dtype) for name, tensor in pairs[1]
        ]
    assert not any(weight.numel() or weight.is_meta or weight.requires_grad for weight in built.parameters())
    assert len([*built.parameters()]) == len([*model.parameters()])  # ties are tied
    for (name, buffer), (_, own) in zip(built.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(buffer, own), name
        assert buffer is not own
    assert strip_version(built.config) == strip_version(model.config)
    assert built.config._attn_implementation == model.config._attn_implementation
    for empty, weight in zip(built.parameters(), model.parameters(), strict=True):
        empty.data = weight.data
    tokens_BT = make_tokens()
    assert torch.equal(compute_logits(built.eval(), tokens_BT), compute_logits(model, tokens_BT))


def strip_version(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name != "transformers_version"}


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_model_and_student_are_built_again(family: str) -> None:
    torch.manual_seed(0)  # Mamba draws some weights itself
    model = make_model(family)
    assert_same_model(build_again(model), model)
    student = make_student(Anatomy(model), CUT)
    assert_same_model(build_again(student), student)


def test_a_model_cut_in_width_is_built_again() -> None:
    anatomy = Anatomy(make_model("llama"))
    cut = replace(find_widths(anatomy).dense, mlp_width=40, num_heads=2)
    narrow = make_narrow(anatomy, cut, WidthImportance(neurons_LF=torch.rand(4, 64), heads_LH=torch.rand(4, 4)))
    assert_same_model(build_again(narrow), narrow)


def test_types_of_single_weights_and_changed_buffers_are_kept() -> None:
    model: Any = make_model("qwen2").to(torch.bfloat16)
    model.model.norm.weight.data = model.model.norm.weight.data.float()
    model.model.rotary_emb.inv_freq = torch.arange(4.0)
    built = build_again(model)
    assert built.model.norm.weight.dtype == torch.float32
    assert built.lm_head.weight.dtype == torch.bfloat16
    assert built.model.rotary_emb.inv_freq.tolist() == [0, 1, 2, 3]


def test_infinity_in_a_config_and_the_implementation_of_attention_are_kept() -> None:
    model: Any = make_model("llama")
    model.config.longest = float("inf")
    model.set_attn_implementation("eager")
    built = build_again(model)
    assert built.config.longest == float("inf")
    assert built.config._attn_implementation == "eager"


class Own(transformers.LlamaForCausalLM):
    """A model whose code is not transformers' own."""


def take_bias_away(model: Any) -> None:
    model.transformer.h[1].mlp.c_fc.bias = None


def use_kernel(model: Any) -> None:
    model.config._attn_implementation_internal = "kernels-community/flash-attn2"


def spoil_config(model: Any) -> None:
    model.config.__dict__["n_head"] = 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (take_bias_away, r"h\.1\.mlp\.c_fc\.bias is \(128,\), and nothing was wanted"),
        (use_kernel, "code from the hub"),
        (spoil_config, "ValueError"),
    ],
    ids=lambda change: getattr(change, "__name__", None),
)
def test_a_model_that_its_config_does_not_make_is_refused(change: Any, reason: str) -> None:
    model = make_model("gpt2")
    change(model)
    with pytest.raises(ModelError, match=reason) as caught:
        draw_outline(model)
    assert "in one process" in str(caught.value)


def test_a_tensor_that_would_lack_its_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seed.models.outline._find_class", lambda name: Own)
    model = Own(transformers.LlamaConfig(**json.loads(TIED.config)))
    draw_outline(model)
    monkeypatch.setattr(Own, "post_init", lambda self: setattr(self, "scale", torch.ones(1)))
    with pytest.raises(ModelError, match="scale is neither weight nor buffer"):
        draw_outline(model)


def test_a_model_with_code_of_its_own_is_refused() -> None:
    with pytest.raises(ModelError, match="not transformers' own"):
        draw_outline(Own(transformers.LlamaConfig(**json.loads(TIED.config))))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"class_name": "OsSystem"}, "no language model OsSystem"),
        ({"class_name": "PreTrainedModel"}, "no language model"),
        ({"class_name": "Qwen2ForCausalLM"}, "q_proj.bias"),
        ({"shapes": ((1, 1), *TIED.shapes[1:])}, r"embed_tokens.weight is \(257, 32\), and \(1, 1\) was wanted"),
        ({"names": TIED.names[::-1], "shapes": TIED.shapes[::-1]}, "another order"),
        ({"buffers": (*TIED.buffers, "more")}, "more is missing"),
        ({"config": "{"}, "JSONDecodeError"),
    ],
)
def test_another_model_here_than_in_the_first_process_is_refused(change: dict[str, Any], found: str) -> None:
    buffers = {name: torch.zeros(4) for name in (*TIED.buffers, "more")}
    with pytest.raises(ModelError, match=found) as caught:
        build_hollow(replace(TIED, **change), buffers)
    assert "same version of transformers" in str(caught.value)


def test_a_config_cannot_name_code() -> None:
    fields = json.loads(TIED.config) | dict.fromkeys(
        ("attn_implementation", "_attn_implementation", "experts_implementation"), "owner/kernel"
    )
    fields["auto_map"] = {"AutoModelForCausalLM": "owner/repository--module.Class"}
    outline = replace(TIED, config=json.dumps(fields))
    built: Any = build_hollow(outline, {name: torch.zeros(4) for name in TIED.buffers})
    assert type(built) is transformers.LlamaForCausalLM
    assert built.config._attn_implementation == "sdpa"
