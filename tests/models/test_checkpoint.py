"""What is exported is what was measured; what is damaged, or cut wrongly, is refused."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from seed.errors import ModelError
from seed.models import surgery
from seed.models.anatomy import Anatomy
from seed.models.checkpoint import (
    ALIGNED_BYTES,
    load_checkpoint,
    measure_size,
    prove_round_trip,
    write_checkpoint,
)
from seed.models.loader import ModelSource, open_teacher
from seed.records import Candidate
from tests.conftest import make_tokenizer
from tests.models.families import compute_logits, make_model, make_tokens, scramble

CPU = torch.device("cpu")


def write(model: nn.Module, target: Path, *, dtype: torch.dtype = torch.float32) -> None:
    write_checkpoint(model, target, tokenizer=make_tokenizer(), dtype=dtype)


def load(path: Path) -> nn.Module:
    return load_checkpoint(path, device=CPU, dtype=torch.float32)


def prove(model: nn.Module, scratch: Path) -> None:
    prove_round_trip(Anatomy(model), make_tokens(), scratch=scratch, dtype=torch.float32)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_plain_transformers_loads_what_was_written_over_what_was_there(family: str, tmp_path: Path) -> None:
    student = surgery.make_student(Anatomy(make_model(family)), Candidate.keep(num_layers=4, kept_layers=(0, 2)))
    tokens, out = make_tokens(), tmp_path / "out"
    expected = compute_logits(student, tokens)
    write(make_model("llama", rng_seed=1), out, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    (out / "stale.txt").write_text("from before")
    write(student, out)
    plain = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    for loaded in (plain, load(out)):
        assert torch.equal(compute_logits(loaded, tokens), expected)
        assert not loaded.training
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer("round trip")["input_ids"]) == "round trip"
    assert not (out / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing left aside
    config = json.loads((out / "config.json").read_text())
    number = "n_layer" if family == "gpt2" else "num_hidden_layers"
    (out / "config.json").write_text(json.dumps(config | {number: 1, "layer_types": None}))
    with pytest.raises(ModelError, match=rf"{out}: .*(layers|h)\.1"):  # weights are left over
        load(out)


@pytest.mark.parametrize(
    ("family", "field", "nothing"),
    [
        ("llama", "INDEX_NAMES", ()),  # latency runs views with a cache, which needs them right
        ("qwen2", "SLICED_LISTS", ()),  # windows of 24 tokens, sliding windows of 8
        ("smollm3", "SLICED_LISTS", ("layer_types",)),
        ("qwen2_moe", "REMAPPED_LISTS", ()),
        ("deepseek_v3", "LEADING_COUNTS", ()),
        ("gpt_neox_japanese", "LAST_STAYS", ()),
        ("modernbert-decoder", "FIRST_STAYS", ()),
    ],
)
def test_what_surgery_does_not_know_is_refused(
    family: str, field: str, nothing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surgery, field, nothing)
    with pytest.raises(ModelError) as caught:
        prove(make_model(family), tmp_path)
    assert not list(tmp_path.iterdir()), caught.value


def test_weights_that_mean_something_else_at_another_index_are_refused(tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        vocab_size=257, n_embd=32, n_layer=4, n_head=4, n_positions=128, scale_attn_by_inverse_layer_idx=True
    )
    model = scramble(transformers.AutoModelForCausalLM.from_config(config))
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight.mul_(5)  # attention that is not flat
    with pytest.raises(ModelError, match="logits differ"):
        prove(model, tmp_path)


def test_a_family_that_is_called_in_another_way_is_refused_and_not_a_crash(tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.OpenAIGPTConfig(vocab_size=257, n_embd=32, n_layer=4, n_head=4, n_positions=128)
    )
    with pytest.raises(ModelError, match="Choose another model"):
        prove(model, tmp_path)  # it has no cache


def test_loaded_weights_lie_where_kernels_round_as_for_any_others(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    for note in range(8):  # a header of another length puts them elsewhere
        save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt", "note": "x" * 8 * note})
        assert all(weight.data_ptr() % ALIGNED_BYTES == 0 for weight in load(checkpoint).parameters())


def test_parameters_are_counted_once_and_bytes_follow_the_type() -> None:
    student = surgery.make_student(Anatomy(make_model("llama")), Candidate.keep(num_layers=4, kept_layers=(0, 1)))
    size = measure_size(student, dtype=torch.bfloat16)
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32
    assert size.num_params == 257 * 32 + 32 + 2 * layer  # the head is tied to the embedding
    assert size.weight_bytes == 2 * size.num_params


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "falcon"])
def test_cache_bytes_are_those_of_a_real_cache(family: str) -> None:
    model = make_model(family)
    cache = transformers.DynamicCache()  # without sliding windows, which would cut it short
    with torch.no_grad():
        model(input_ids=make_tokens(1, 10), past_key_values=cache, use_cache=True)
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert measure_size(model, dtype=torch.float32).kv_bytes_per_token == stored / 10


MODELING = """
import os, pathlib
from transformers import LlamaForCausalLM

pathlib.Path(os.environ["SEED_TEST_MARK"]).write_text("ran")


class OwnModel(LlamaForCausalLM):
    pass
"""


@pytest.fixture
def own_code(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A checkpoint that brings code along, and the file that is there once the code has run."""
    mark = tmp_path / "mark"
    monkeypatch.setenv("SEED_TEST_MARK", str(mark))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (checkpoint / "modeling_own.py").write_text(MODELING)
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnModel"}
    config["nested"] = [{"auto_map": {"AutoConfig": "else.where"}, "kept": 1}]
    (checkpoint / "config.json").write_text(json.dumps(config))
    return checkpoint, mark


def test_code_of_a_model_runs_only_at_the_user_s_word_and_is_never_exported(
    own_code: tuple[Path, Path], tmp_path: Path
) -> None:
    path, mark = own_code
    opened = open_teacher(ModelSource(location=str(path)), device=CPU, dtype_name="float32")
    assert type(opened.model) is transformers.LlamaForCausalLM
    load(path)
    assert not mark.exists()
    opened = open_teacher(ModelSource(location=str(path), trust_remote_code=True), device=CPU, dtype_name="float32")
    assert type(opened.model).__name__ == "OwnModel"
    assert mark.read_text()
    student = surgery.make_student(Anatomy(opened.model), Candidate.keep(num_layers=4, kept_layers=(0, 2)))
    student.save_pretrained(tmp_path / "as-transformers-would")
    assert list((tmp_path / "as-transformers-would").glob("*.py")), (
        "transformers exports code no more: is this still needed?"
    )
    write(student, tmp_path / "out")
    assert list((tmp_path / "out").rglob("*.py")) == []
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["nested"] == [{"kept": 1}]
    assert not [file for file in (tmp_path / "out").glob("*.json") if "auto_map" in file.read_text()]
    mark.unlink()
    load(tmp_path / "out")
    assert not mark.exists()


def test_an_unknown_family_with_code_is_refused_without_a_question(own_code: tuple[Path, Path]) -> None:
    path, mark = own_code
    config = json.loads((path / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"]["AutoConfig"] = "modeling_own.OwnConfig"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="add --trust-remote-code"):
        open_teacher(ModelSource(location=str(path)), device=CPU, dtype_name=None)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(path)
    assert not mark.exists()
