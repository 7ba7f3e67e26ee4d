"""Exported models without some attentions and MLPs, in other runtimes' formats: MLX writes the tokens that they write here.

llama.cpp is not run: what its converter and its loader go by is checked instead.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models

import seed
from seed.errors import ModelError
from seed.models.anatomy import Anatomy
from seed.models.checkpoint import write_checkpoint
from seed.models.loader import find_auto_class
from seed.models.provenance import describe_model, find_damage, read_start, write_provenance
from seed.models.surgery import make_student, restore_parts
from seed.records import Candidate
from seed.reporting.result_line import ExportLine
from tests import conftest
from tests.models.families import compute_logits, make_config, scramble
from tests.running import error_of, read_line, run_seed

PROMPT = [1, 5, 200, 42, 77, 130, 33, 9, 250, 18, 64]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
Config = dict[str, Any]


def export_parts(path: Path, *parts: str, family: str = "llama", tokenizer: Any = None, **changes: Any) -> Path:
    """A model without these parts, as a study leaves it."""
    config = make_config(family)
    for name, value in changes.items():
        setattr(config, name, value)
    model = scramble(find_auto_class(config).from_config(config, dtype=torch.float32))
    for name, weight in model.named_parameters():
        if "_proj" in name:
            weight.data *= 4  # layers then matter beside the embedding
    anatomy, candidate = Anatomy(model), Candidate.drop(4, parts)
    student = make_student(anatomy, candidate)
    restore_parts(student, anatomy, candidate)
    write_checkpoint(student, path, tokenizer=tokenizer or conftest.make_tokenizer(), dtype=torch.float32)
    write_provenance(path, describe_model(candidate, base_model="ours", settings={"distill_tokens": 1}))
    return path


def convert(source: Path, *words: str) -> ExportLine:
    done = run_seed("seed.export", source.name, *words, "--out=out", "--json", cwd=source.parent)
    return read_line(done, ExportLine)


def fail(source: Path, *words: str) -> str:
    return error_of(run_seed("seed.export", str(source), *words, cwd=source.parent, code=2))


def read_config(path: Path) -> Config:
    return json.loads((path / "config.json").read_text())


def make_sentencepiece_like() -> transformers.PreTrainedTokenizerFast:
    """256 bytes, and a token that ends a text, as a tokenizer of Llama 2 spells them."""
    words = ["<end>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: index for index, token in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<end>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>")


MLX_CASES: dict[str, tuple[tuple[str, ...], Config]] = {
    "attention": (("1.attn", "3.attn"), {}),
    "MLP": (("1.mlp",), {"rope_parameters": LLAMA3_ROPE}),
    "both, and a layer": (("0.attn", "2", "3.mlp"), {"tie_word_embeddings": False}),
    "the first MLP and the last attention": (
        ("0.mlp", "3.attn"),
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}, "intermediate_size": 256},
    ),
    "nothing": ((), {"num_key_value_heads": 4}),
}


@pytest.mark.parametrize("case", MLX_CASES)
def test_mlx_writes_the_tokens_that_seed_load_writes(case: str, tmp_path: Path) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    parts, changes = MLX_CASES[case]
    source = export_parts(tmp_path / "model", *parts, **changes)
    line = convert(source, "--format=mlx")
    trimmed: Any = seed.load(source)
    tokens = list(PROMPT)
    for _ in range(24):
        tokens.append(int(compute_logits(trimmed, torch.tensor([tokens]))[0, -1].argmax()))
    wanted = tokens[len(PROMPT) :]
    assert len(set(wanted)) > 1

    model, tokenizer = mlx_lm.load(str(tmp_path / line.path))
    # the prompt in pieces, so that masks and rotations go by what the cache holds
    steps = generate_step(mx.array(PROMPT), model, max_tokens=24, prefill_step_size=4)
    assert [int(token) for token, _ in steps] == wanted
    found = np.array(model(mx.array([PROMPT])))
    np.testing.assert_allclose(found, compute_logits(trimmed, torch.tensor([PROMPT])).numpy(), atol=1e-4)
    assert tokenizer.decode(tokenizer.encode("round trip")) == "round trip"

    weights, whole = (load_file(path / "model.safetensors") for path in (tmp_path / "out", source))
    assert set(weights) == {name for name, _ in trimmed.named_parameters() if "norm" not in name} | {
        name for name in whole if "norm" in name and not is_before(name, line.kept_layers, parts)
    }
    assert {len(weight) for name, weight in weights.items() if "gate_proj" in name} == {256}


def is_before(name: str, kept_layers: tuple[int, ...], parts: tuple[str, ...]) -> bool:
    """Does a norm stand before a part that is gone?"""
    if not name.startswith("model.layers."):
        return False
    layer = kept_layers[int(name.split(".")[2])]
    return f"{layer}.{'attn' if 'input_layernorm' in name else 'mlp'}" in parts


def test_what_llama_cpp_goes_by_is_there(tmp_path: Path) -> None:
    source = export_parts(
        tmp_path / "model",
        "1.attn",
        "2",
        tokenizer=make_sentencepiece_like(),
        rope_parameters=LLAMA3_ROPE,
    )
    line = convert(source, "--format=gguf-ready")
    assert (line.kept_layers, line.is_recovered) == ((0, 1, 3), True)
    config, weights = read_config(tmp_path / "out"), load_file(tmp_path / "out" / "model.safetensors")
    assert config["architectures"] == ["DeciLMForCausalLM"]
    assert config["original_max_position_embeddings"] == 64  # which it reads beside the rotation, not in it
    assert config["rope_theta"] == 500000.0
    assert len(config["block_configs"]) == config["num_hidden_layers"] == 3
    for layer, block in enumerate(config["block_configs"]):
        group, factor = block["attention"]["n_heads_in_group"], block["ffn"]["ffn_mult"]
        assert block["attention"]["replace_with_linear"] is False
        assert (group is None) == (layer == 1)
        if group is not None:
            head_width = config["hidden_size"] // config["num_attention_heads"]
            key_width = config["num_attention_heads"] // group * head_width
            assert weights[f"model.layers.{layer}.self_attn.k_proj.weight"].shape == (key_width, 32)
        width = int(2 * factor * config["hidden_size"] / 3)
        assert weights[f"model.layers.{layer}.mlp.up_proj.weight"].shape == (-(-width // 256) * 256, 32)
    assert not [name for name in weights if name.startswith(("model.layers.1.self_attn", "model.layers.1.input"))]


@pytest.mark.parametrize(
    ("parts", "words", "reason"),
    [
        (("2.mlp",), None, "llama.cpp leaves out the attention as well of a layer that has no MLP"),
        (("0.attn",), None, "llama.cpp takes the width of all heads from the first layer, which has no attention"),
        (("1.attn",), conftest.make_tokenizer, "converter knows two tokenizers in this format"),
    ],
)
def test_what_llama_cpp_would_compute_wrongly_is_refused(
    parts: tuple[str, ...], words: Any, reason: str, tmp_path: Path
) -> None:
    source = export_parts(tmp_path / "model", *parts, tokenizer=(words or make_sentencepiece_like)())
    error = fail(source, "--format=gguf-ready", "--out=out")
    assert f"{source}: cannot be written as gguf-ready, since " in error
    assert reason in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"family": "qwen2"}, "it is a qwen2 model"),
        ({"hidden_act": "gelu"}, "its MLPs use gelu"),
        ({"attention_bias": True}, "its projections add biases"),
        ({"head_dim": 16}, "its 4 heads of 16 do not make up its width of 32"),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "original_max_position_embeddings": 64,
                }
            },
            "it rotates positions in a way that the format does not know (yarn)",
        ),
    ],
)
def test_what_is_not_llamas_architecture_is_refused(changes: Config, reason: str, tmp_path: Path) -> None:
    source = export_parts(tmp_path / "model", "1.attn", **changes)
    assert reason in fail(source, "--format=mlx", "--out=out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_done_is_said_with_the_cure(tmp_path: Path) -> None:
    source = export_parts(tmp_path / "model", "1.attn")
    line = convert(source, "--format=mlx")
    out = tmp_path / "out"
    assert convert(source, "--format=mlx") == line
    assert find_damage(out) is None
    said = json.loads((out / "seed.json").read_text())
    assert (said["format"], said["lacking"], said["base_model"]) == ("mlx", {"1": "attn"}, "ours")
    other = export_parts(tmp_path / "other", "2.attn")
    assert "something else is already there" in fail(other, "--format=mlx", "--out=out")
    for use in (lambda: seed.load(out), lambda: read_start(out)):
        with pytest.raises(ModelError, match="is written as mlx, and only its runtime reads it"):
            use()
    assert "is written as mlx" in fail(out, "--format=mlx", "--out=twice")
    for words, wanted in (
        (["--format=mlx"], "Add --out DIRECTORY"),
        (["--format=mlx", "--keep=1", "--out=new"], "Leave out"),
        (["--format=onnx", "--out=new"], "wanted one of mlx, gguf-ready"),
    ):
        assert wanted in fail(source, *words)
    (source / "config.json").write_text("{}")
    assert "damaged: config.json is not as it was written" in fail(source, "--format=mlx", "--out=new")
    (source / "seed.json").unlink()
    assert "no seed.json there" in fail(source, "--format=mlx", "--out=new")
    assert not (tmp_path / "new").exists()
