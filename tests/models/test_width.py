"""A narrow model is the dense one with the same neurons and heads silenced, and an ordinary checkpoint."""

import copy
from pathlib import Path

import pytest
import torch
import transformers
from msgspec.structs import replace
from torch import nn

from seed.errors import ModelError
from seed.models.anatomy import Anatomy
from seed.models.width import WidthImportance, find_widths, make_narrow, plan_width, weight_by_input
from seed.records import WidthCut
from tests.models.families import GATED, compute_logits, make_model, make_tokens, scramble

UNTIED_GROUPS = "qwen2, a head of keys and values for each"
WITH_HEADS = ("llama", "mistral", UNTIED_GROUPS, "gemma3_text", "phi")
MLP_ONLY = ("gpt2", "opt", "falcon", "olmo2")
ALL = WITH_HEADS + MLP_ONLY


def open_model(family: str) -> Anatomy:
    if family != UNTIED_GROUPS:
        return Anatomy(make_model(family))
    config = transformers.Qwen2Config(**GATED | {"num_key_value_heads": 4})
    return Anatomy(scramble(transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)))


def draw_importance(anatomy: Anatomy) -> WidthImportance:
    """At random, so that kept neurons and heads lie scattered and differ from layer to layer."""
    widths = find_widths(anatomy)
    generator = torch.Generator().manual_seed(1)
    heads = torch.rand(4, widths.dense.num_heads, generator=generator)
    return WidthImportance(
        neurons_LF=torch.rand(4, widths.dense.mlp_width, generator=generator),
        heads_LH=heads if widths.attention_reader else None,
    )


def list_cuts(anatomy: Anatomy) -> list[WidthCut]:
    """Every number of heads, with a narrow MLP and a full one."""
    widths = find_widths(anatomy)
    return [
        replace(widths.dense, mlp_width=mlp_width, num_heads=heads, num_kv_heads=kv_heads)
        for heads, kv_heads in widths.head_choices
        for mlp_width in (19, widths.dense.mlp_width)
    ]


def best(scores: list[float], count: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


def pick_heads(heads: list[float], cut: WidthCut, dense: WidthCut) -> set[int]:
    """Whole groups where KV heads go, else the best of each group."""
    size = dense.num_heads // dense.num_kv_heads
    groups = [range(first, first + size) for first in range(0, dense.num_heads, size)]
    if cut.num_kv_heads < dense.num_kv_heads:
        kept = best([sum(heads[i] ** 2 for i in group) for group in groups], cut.num_kv_heads)
        return {i for g in kept for i in groups[g]}
    per_group = cut.num_heads // cut.num_kv_heads
    return {group[i] for group in groups for i in best([heads[i] for i in group], per_group)}


def silence(anatomy: Anatomy, cut: WidthCut, importance: WidthImportance) -> nn.Module:
    """The dense model where nothing reads the dropped neurons and heads."""
    widths = find_widths(anatomy)
    silenced = Anatomy(copy.deepcopy(anatomy.model))
    for index, layer in enumerate(silenced.layers):
        kept = best(importance.neurons_LF[index].tolist(), cut.mlp_width)
        silence_reads(layer.get_submodule(widths.mlp_reader), kept, widths.dense.mlp_width)
        if importance.heads_LH is not None:
            assert widths.attention_reader is not None
            kept = pick_heads(importance.heads_LH[index].tolist(), cut, widths.dense)
            assert len(kept) == cut.num_heads
            silence_reads(layer.get_submodule(widths.attention_reader), kept, widths.dense.num_heads)
    return silenced.model


def silence_reads(projection: nn.Module, kept: set[int], count: int) -> None:
    rows = weight_by_input(projection).unflatten(0, (count, -1))
    for unit in set(range(count)) - kept:
        rows[unit].zero_()


def rebuild(model: nn.Module, directory: Path) -> nn.Module:
    """Save and load with plain transformers; every weight found and used."""
    model.save_pretrained(directory)
    rebuilt, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return rebuilt.eval()


def count_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", ALL)
def test_a_narrow_model_is_the_dense_one_with_the_rest_silenced_and_an_ordinary_checkpoint(
    family: str, tmp_path: Path
) -> None:
    anatomy = open_model(family)
    importance, widths, tokens = draw_importance(anatomy), find_widths(anatomy), make_tokens()
    dense = compute_logits(anatomy.model, tokens)
    assert torch.equal(compute_logits(make_narrow(anatomy, widths.dense, importance), tokens), dense)
    for cut in list_cuts(anatomy):
        narrow = make_narrow(anatomy, cut, importance)
        found = compute_logits(narrow, tokens)
        if cut != widths.dense:
            expected = compute_logits(silence(anatomy, cut, importance), tokens)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert (found - dense).abs().max() > 1e-2
        rebuilt = rebuild(narrow, tmp_path / cut.key)
        assert torch.equal(compute_logits(rebuilt, tokens), found)
        assert count_params(rebuilt) == count_params(narrow) == widths.count_params(cut)
        head, embedding = narrow.get_output_embeddings().weight, narrow.get_input_embeddings().weight
        assert (head is embedding) == anatomy.config.tie_word_embeddings
        cached, uncached = (
            narrow.generate(make_tokens(1, 12), max_new_tokens=8, do_sample=False, use_cache=use_cache)
            for use_cache in (True, False)
        )
        assert cached.tolist() == uncached.tolist()
        if family in WITH_HEADS:
            config = narrow.config
            assert (config.num_attention_heads, config.num_key_value_heads) == (cut.num_heads, cut.num_kv_heads)
            assert (config.head_dim, config.intermediate_size, config.num_hidden_layers) == (8, cut.mlp_width, 4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_plan_has_the_parameters_that_it_counts_as_near_as_may_be(family: str) -> None:
    anatomy = open_model(family)
    widths = find_widths(anatomy)
    layer = count_params(anatomy.layers[0])
    for dropped in (0, 0.5, 1, 1.5):
        wanted = widths.num_params - int(dropped * layer)
        cut = plan_width(anatomy, num_params=wanted)
        num_params = count_params(make_narrow(anatomy, cut, draw_importance(anatomy)))
        assert num_params == widths.count_params(cut)
        # of all cuts none is nearer with these heads
        assert abs(num_params - wanted) <= widths.unit_params["mlp_width"] / 2
    assert plan_width(anatomy, num_params=widths.num_params) == widths.dense
    heads, kv_heads = widths.head_choices[-1]
    least = replace(widths.dense, mlp_width=1, num_heads=heads, num_kv_heads=kv_heads)
    assert plan_width(anatomy, num_params=widths.count_params(least)) == least
    for wanted in (1000, widths.num_params + 1):
        with pytest.raises(ModelError, match="fewer dropped layers") as caught:
            plan_width(anatomy, num_params=wanted)
        assert f"{widths.count_params(least):,} to {widths.num_params:,} parameters" in str(caught.value)


def test_wide_mlps_are_cut_in_even_steps() -> None:
    config = transformers.LlamaConfig(**GATED | {"intermediate_size": 4096, "num_hidden_layers": 1})
    anatomy = Anatomy(transformers.AutoModelForCausalLM.from_config(config))
    widths = find_widths(anatomy)
    for lost in (0, 1, 9, 700, 4000):
        cut = plan_width(anatomy, num_params=widths.num_params - lost * widths.unit_params["mlp_width"])
        assert cut.mlp_width % 16 == 0
        assert abs(widths.num_params - lost * widths.unit_params["mlp_width"] - widths.count_params(cut)) <= 8 * 96


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mixtral", "mixtures of experts"),
        ("qwen2_moe", "mixtures of experts"),
        ("bloom", "no field of the config states their width of 128"),
        ("phi3", "no projection of its own writes the 64 neurons"),
        ("mamba", "states no number of attention heads"),
    ],
)
def test_models_that_cannot_be_cut_are_refused_with_the_reason(family: str, reason: str) -> None:
    anatomy = open_model(family)
    with pytest.raises(ModelError, match=reason) as caught:
        find_widths(anatomy)
    assert type(anatomy.model).__name__ in str(caught.value)
    assert "choose another model" in str(caught.value)


def test_layers_of_different_widths_are_refused() -> None:
    anatomy = open_model("llama")
    other = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**GATED | {"intermediate_size": 128})
    )
    anatomy.layers[2].mlp = other.model.layers[2].mlp
    with pytest.raises(ModelError, match="layers are not all alike"):
        find_widths(anatomy)
