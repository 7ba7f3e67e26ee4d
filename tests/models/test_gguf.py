"""A GGUF file is a model like any other: opened as what it was made from, cut, recovered, exported, and said to be one."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from tokenizers import pre_tokenizers

from seed.errors import ModelError, ResourceError
from seed.models.gguf import convert
from seed.models.loader import ModelSource, check_source, open_teacher
from seed.models.provenance import hash_file, read_provenance
from seed.plans import read_plan
from seed.stages.study_record import gather_record
from seed.study_dir import StudyFolder
from tests.conftest import make_model, make_tokenizer
from tests.models.families import compute_logits, make_tokens
from tests.running import error_of, run_seed, search_words

NAMES = {
    "model.layers": "blk",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(
    path: Path,
    *,
    kind: Kind = Kind.F32,
    family: str = "llama",
    words: bool = True,
    further: bool = False,
    **values: int,
) -> transformers.PreTrainedModel:
    """Write a random Llama as llama.cpp's converter does; return it.

    Args:
        path: of the file.
        kind: that its matrices are stored in.
        family: that the file names.
        words: its tokenizer is in it.
        further: so is a tensor that transformers does not read.
        values: of its metadata, besides.
    """
    model = make_model("llama")
    config = model.config
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(4)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_license("apache-2.0")
    for name, value in values.items():
        writer.add_uint16(name.replace("_", "."), value)
    if words:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())[:-1], "ZZ"])
        writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * 256)
        writer.add_token_merges(["Z Z"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
    for name, weight in model.state_dict().items():
        data = weight.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # rotated by neighbours there, by halves here
            heads = len(data) // config.head_dim
            data = data.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(data.shape)
        if name != "lm_head.weight":  # which is the embedding
            stored = Kind.F32 if data.ndim == 1 else kind
            data = gguf.quants.quantize(np.ascontiguousarray(data), stored)
            writer.add_tensor(
                functools.reduce(lambda said, one: said.replace(*one), NAMES.items(), name), data, raw_dtype=stored
            )
    if further:
        writer.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture(autouse=True)
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files are made into directories."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tiny-Q8_0.gguf"


def test_a_file_opens_as_what_it_was_made_from(file: Path) -> None:
    model = write_gguf(file)
    check_source(ModelSource(location=str(file)), presets=[])
    teacher = open_teacher(ModelSource(location=str(file)), device=torch.device("cpu"), dtype_name=None)
    assert torch.equal(compute_logits(teacher.model, make_tokens()), compute_logits(model, make_tokens()))
    assert teacher.tokenizer("Hello there")["input_ids"] == make_tokenizer()("Hello there")["input_ids"]
    assert teacher.notes == ("from a GGUF file (38 tensors in F32)",)
    assert teacher.stored_dtype == torch.float32


def test_numbers_that_transformers_does_not_read_are_told(file: Path) -> None:
    write_gguf(file, further=True)
    teacher = open_teacher(ModelSource(location=str(file)), device=torch.device("cpu"), dtype_name=None)
    assert teacher.notes[1] == "transformers reads 45,376 of the 45,380 numbers in this GGUF file"


def test_weights_that_are_missing_are_not_made_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NAMES, "mlp.up_proj", "ffn_other")
    write_gguf(file)
    with pytest.raises(ModelError, match="do not match its config"):
        convert(file)


def hear(*words: str, cwd: Path) -> str:
    """What a command says, on one line."""
    return " ".join(run_seed(*words, cwd=cwd).stdout.split())


def test_a_whole_pass_says_where_its_models_come_from(file: Path, text_file: Path, tmp_path: Path) -> None:
    write_gguf(file, kind=Kind.Q8_0)
    words = search_words(file, text_file, "--max-dropped", "1", "--trials", "2", "--frontier-size", "1")
    told = "a GGUF file of quantized weights (29 tensors in Q8_0, 9 in F32), put back into bfloat16"
    for _ in range(2):  # before the file was opened, and after
        assert f"from {told}" in hear(*words, "--dry-run", cwd=tmp_path)
        assert not (tmp_path / "studies").exists()
        run_seed(
            "seed.evaluate",
            str(file),
            "--test-text",
            str(text_file),
            "--test-tokens",
            "256",
            "--window-tokens",
            "64",
            cwd=tmp_path,
        )
    assert f"from {told}" in hear(*words, cwd=tmp_path)
    study = StudyFolder(tmp_path / "studies" / "tiny-Q8_0")
    record = gather_record(study)
    assert read_plan(study).protocol.weights_sha256 == hash_file(file)
    assert told in study.report.read_text()
    [done] = record.distilled
    trial = next(trial for trial in record.trials if trial.evaluation.candidate != done.candidate)
    run_seed(
        "seed.export", str(study.root), "--trial", str(trial.number), "--no-recovery", "--out", "cut", cwd=tmp_path
    )
    run_seed("seed.export", str(file), "--keep", "0,2", "--out", "kept", cwd=tmp_path)
    for path in (study.model(done.key), tmp_path / "cut", tmp_path / "kept"):
        said = read_provenance(path, place=str(path))
        assert (said.base_model, said.base_sha256) == (str(file), hash_file(file))
        assert said.gguf_types == {"Q8_0": 29, "F32": 9}
        assert said.licence == {"license": "apache-2.0"}
        assert told.replace("_", r"\_") in (path / "README.md").read_text()
        model = transformers.AutoModelForCausalLM.from_pretrained(path)  # no GGUF is needed any more
        assert (model.dtype, len(model.model.layers)) == (torch.bfloat16, len(said.kept_layers))
        assert (
            transformers.AutoTokenizer.from_pretrained(path)("Hi")["input_ids"] == make_tokenizer()("Hi")["input_ids"]
        )
    assert "is there already" in hear("seed.export", str(file), "--keep", "0,2", "--out", "kept", cwd=tmp_path)
    assert "nothing is left to do" in hear(*words, cwd=tmp_path)
    write_gguf(file, kind=Kind.Q4_0)
    assert "gguf_types.Q4_0" in error_of(run_seed(*words, cwd=tmp_path, code=2))


def test_a_conversion_that_ended_early_is_not_taken_for_a_whole_one(
    file: Path, monkeypatch: pytest.MonkeyPatch, assets: Path
) -> None:
    write_gguf(file)
    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedModel, "save_pretrained", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(file)
    assert [path.suffix for path in assets.rglob("*") if path.is_file()] == [".lock"]
    made = convert(file)
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert (convert(file) / "model.safetensors").stat().st_mtime_ns == stamp


def interrupt(*_args: object, **_settings: object) -> None:
    raise KeyboardInterrupt


def test_a_place_that_cannot_be_written_is_named(file: Path, assets: Path) -> None:
    write_gguf(file)
    assets.write_text("a file")
    with pytest.raises(ResourceError, match=r"assets/seed.*cannot be written .*HF_ASSETS_CACHE"):
        convert(file)


def damage(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_gguf(path)
        path.write_bytes(change(path.read_bytes()))

    return write


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.touch(), "no whole GGUF file"),
    "something else": (damage(lambda data: b"GGML" + data[4:]), "no whole GGUF file .it does not begin with GGUF"),
    "half a header": (damage(lambda data: data[:500]), "no whole GGUF file .it ends within its header"),
    "half the weights": (damage(lambda data: data[:-5000]), r"[\d,]+ bytes, and its header tells of [\d,]+"),
    "a part": (lambda path: write_gguf(path, split_count=2), "one of 2 parts .*llama-gguf-split --merge"),
    "no words": (lambda path: write_gguf(path, words=False), "no tokenizer in it"),
    "unknown": (lambda path: write_gguf(path, family="clip"), "does not open .*architecture clip is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_opened_is_refused_with_its_reason(
    case: str, file: Path, text_file: Path, tmp_path: Path
) -> None:
    write, reason = REFUSED[case]
    write(file)
    for more in ((), ("--dry-run",)):
        error = error_of(run_seed(*search_words(file, text_file, *more), cwd=tmp_path, code=2))
        assert re.search(reason, error)
        assert error.startswith(f"error: --model {file}: ")
    assert not (tmp_path / "studies").exists()


def test_what_is_missing_to_read_it_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(file)
    monkeypatch.setattr("seed.models.gguf.NEEDED", ("gguf", "no_such_package"))
    with pytest.raises(ModelError, match=r"no_such_package must be installed: pip install 'seed-search\[gguf\]'"):
        convert(file)
