"""A checkpoint that is cut on disk is the student that is cut in memory, and takes no memory to cut."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from seed.errors import ModelError
from seed.models import copying, surgery
from seed.models.anatomy import Anatomy
from seed.models.checkpoint import load_checkpoint
from seed.models.copying import plan_cut, write_cut
from seed.models.stored import INDEX, SINGLE, read_tensors
from seed.models.surgery import make_student
from seed.records import Candidate
from tests.conftest import MakeCheckpoint, make_tokenizer
from tests.models.families import make_model

CPU = torch.device("cpu")


def save(family: str, path: Path, *, shard_bytes: int | None = None) -> torch.nn.Module:
    """A checkpoint of a random model, in one file or in several."""
    model = make_model(family)
    model.save_pretrained(path, **({} if shard_bytes is None else {"max_shard_size": shard_bytes}))
    make_tokenizer().save_pretrained(path)
    return model


def cut(source: Path, *kept: int, shard_bytes: int = copying.SHARD_BYTES) -> Path:
    target = source.with_name(f"{source.name}-cut")
    write_cut(plan_cut(source, kept), target, documents={"README.md": "# A card"}, shard_bytes=shard_bytes)
    return target


def expect_student(model: torch.nn.Module, found: Path, *kept: int) -> torch.nn.Module:
    """What was written loads whole, and is the student; returns it."""
    loaded = load_checkpoint(found, device=CPU, dtype=torch.float32)
    student = make_student(Anatomy(model), Candidate.keep(num_layers=4, kept_layers=kept))
    wanted, weights = student.state_dict(), loaded.state_dict()
    assert list(weights) == list(wanted)
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    skipped = {"_name_or_path", "dtype", "architectures"}
    same = [{k: v for k, v in one.config.to_dict().items() if k not in skipped} for one in (loaded, student)]
    assert same[0] == same[1]
    return loaded


def test_ties_and_types_stay_as_the_input_has_them(tmp_path: Path) -> None:
    save("llama", tmp_path / "whole")
    weights = {name: weight.bfloat16() for name, weight in load_file(tmp_path / "whole" / SINGLE).items()}
    norm = "model.layers.2.input_layernorm.weight"
    weights[norm] = weights[norm][:31].float()  # odd, and wider: it must not put others out of line
    weights[norm] = torch.cat([weights[norm], torch.ones(1)])
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()  # some files hold tied weights twice
    save_file(weights, tmp_path / "whole" / SINGLE, metadata={"format": "pt"})
    assert plan_cut(tmp_path / "whole", (0, 1)).dtype == "bfloat16"
    assert plan_cut(tmp_path / "whole", (0, 2)).dtype is None
    found = load_file(cut(tmp_path / "whole", 0, 2) / SINGLE)
    assert "lm_head.weight" not in found  # once is enough
    assert found["model.layers.1.input_layernorm.weight"].dtype == torch.float32
    assert torch.equal(found["model.layers.1.input_layernorm.weight"], weights[norm])
    assert found["model.norm.weight"].dtype == torch.bfloat16
    for name, weight in found.items():
        assert torch.equal(weight, weights[name.replace("layers.1.", "layers.2.")]), name


def test_names_of_a_bare_decoder_and_tensors_that_nobody_reads_are_understood(tmp_path: Path) -> None:
    """As on the hub: GPT-2's names lack the outermost part, and its masks and further heads are no weights."""
    model = save("gpt2", tmp_path / "whole")
    weights = load_file(tmp_path / "whole" / SINGLE)
    bare = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    bare |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8) for layer in range(4)}
    bare |= {"h.4.eh_proj.weight": torch.ones(3), "further.head": torch.ones(3)}
    save_file(bare, tmp_path / "whole" / SINGLE, metadata={"format": "pt"})
    found = cut(tmp_path / "whole", 1, 2)
    names = set(load_file(found / SINGLE))
    assert "h.1.ln_1.weight" in names
    assert not names & {"h.4.eh_proj.weight", "h.2.eh_proj.weight", "further.head"}
    expect_student(model, found, 1, 2)


def test_what_stands_beside_weights_comes_along_and_code_does_not(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    source = shutil.copytree(make_checkpoint("llama"), tmp_path / "whole")
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnModel"}
    (source / "config.json").write_text(json.dumps(config))
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (source / "video_preprocessor_config.json").write_text('{"auto_map": {}, "fps": 2}')
    (source / "processor_config.json").write_bytes(b"\xff no JSON")  # nobody reads it, and it can point to no code
    for name in ("modeling_own.py", "tokenization_own.py", "LICENSE.txt", "chat_template.jinja", "notes.bin"):
        (source / name).write_text(name)
    (tmp_path / "blob").write_text("from the hub's cache")
    (source / "NOTICE").symlink_to(tmp_path / "blob")
    found = cut(source, 0, 2)
    assert (found / "NOTICE").read_text() == "from the hub's cache"
    assert not (found / "NOTICE").is_symlink()
    names = {path.name for path in found.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE.txt"} <= names
    assert "chat_template.jinja" in names
    assert (found / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"
    assert json.loads((found / "video_preprocessor_config.json").read_text()) == {"fps": 2}
    assert not names & {"modeling_own.py", "tokenization_own.py", "notes.bin"}
    assert (found / "processor_config.json").read_bytes() == b"\xff no JSON"
    assert "auto_map" not in (found / "config.json").read_text()
    assert (found / "README.md").read_text() == "# A card"
    tokenizer = transformers.AutoTokenizer.from_pretrained(found)
    assert tokenizer.decode(tokenizer("round trip")["input_ids"]) == "round trip"


def test_unfit_families_and_layers_that_are_not_there_or_needed_are_refused(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    source = shutil.copytree(make_checkpoint("llama"), tmp_path / "whole")
    config = json.loads((source / "config.json").read_text())
    for model_type, said in (("own", "plain transformers"), ("bert", "what comes after a token")):
        (source / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
        with pytest.raises(ModelError, match=said):
            plan_cut(source, (0, 1))
    for kept in ((), (4,), (2, 1), (1, 1), (-1, 0)):
        with pytest.raises(ModelError, match="layer"):
            plan_cut(make_checkpoint("llama"), kept)
    save("bamba", tmp_path / "bamba")
    with pytest.raises(ModelError, match=r"bamba: layer 3 would go, without which transformers .* bamba .*Keep it too"):
        plan_cut(tmp_path / "bamba", (0, 2))


@pytest.mark.parametrize(
    ("family", "unknown", "kept", "said"),
    [
        ("modernbert-decoder", "FIRST_STAYS", (1, 2, 3), "there is no place for .*layers.0.attn_norm"),
        ("gpt_neox_japanese", "LAST_STAYS", (0, 1, 2), "would not load layers 0, 1, 2 alone"),
        ("olmo_hybrid", "RECURRENT_STAYS", (1, 3), "accepts no config of layers 1, 3 alone"),
    ],
)
def test_what_seed_does_not_know_of_a_family_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, unknown: str, kept: tuple[int, ...], said: str
) -> None:
    save(family, tmp_path / "whole")
    monkeypatch.setattr(surgery, unknown, ())
    with pytest.raises(ModelError, match=f"whole: .*{said}.*Keep other layers"):
        plan_cut(tmp_path / "whole", kept)


def write_hollow_checkpoint(path: Path, config: transformers.PretrainedConfig) -> int:
    """A checkpoint of zeros that take no room on disk; return the bytes of its weights."""
    config.save_pretrained(path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    header, end = {}, 0
    for name, weight in model.state_dict().items():
        header[name] = {"dtype": "BF16", "shape": weight.shape, "data_offsets": [end, end := end + weight.nbytes]}
    encoded = json.dumps(header).encode()
    with (path / SINGLE).open("wb") as handle:
        handle.write(struct.pack("<Q", len(encoded)) + encoded)
        handle.truncate(8 + len(encoded) + end)
    return end


def read_bytes_of(name: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


def test_a_large_model_takes_no_more_memory_than_a_small_one(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=32_000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, num_attention_heads=8
    )
    total = write_hollow_checkpoint(tmp_path / "large", config)
    assert total > 200_000_000
    write_cut(plan_cut(make_checkpoint("llama"), (0, 2)), tmp_path / "small")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = read_bytes_of("VmRSS")
    write_cut(plan_cut(tmp_path / "large", (0, 2, 3)), tmp_path / "cut", shard_bytes=100_000_000)
    assert read_bytes_of("VmHWM") - before < 40_000_000  # pieces of 16 MiB, and a model without weights
    written = sum(tensor.num_bytes for tensor in read_tensors(tmp_path / "cut"))
    layer = 2 * (4 * 1024**2 + 3 * 1024 * 2816 + 2 * 1024)
    assert written == total - layer
    files = [load_file(file) for file in (tmp_path / "cut").glob("*.safetensors")]
    assert len(files) > 2
    assert all(sum(weight.nbytes for weight in weights.values()) <= 100_000_000 for weights in files)
    index = json.loads((tmp_path / "cut" / INDEX).read_text())
    assert index["metadata"] == {"total_size": written, "total_parameters": written // 2}
