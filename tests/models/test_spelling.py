"""What transformers 4.57 wrote and could read, it can read once layers are gone: the export is in the original's own words.

Its files lie under ``fixtures``, whose ``make.py`` says how they were made, with what that version computes from them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from seed.models import spelling
from seed.models.anatomy import Anatomy
from seed.models.checkpoint import load_checkpoint, write_checkpoint
from seed.models.copying import plan_cut, write_cut
from seed.models.loader import ModelSource, Teacher, find_auto_class, open_teacher
from seed.models.surgery import make_student
from seed.records import Candidate
from tests.models.fixtures.make import CONFIGS, FACTS, HERE, TEXT, compute_logits, fill_weights

CPU = torch.device("cpu")
WRITTEN = {"README.md", "seed.json", "model.safetensors"}
FACTS_457 = json.loads(FACTS.read_text())
KEPT = (0, 2, 3)
KINDS = ["sliding_attention", "full_attention"] * 2
# What changes where a layer goes.
CUT: dict[str, dict[str, Any]] = {
    "learned": {"n_layer": 3},
    "longrope": {"num_hidden_layers": 3},
    "experts": {"num_hidden_layers": 3},
    "yarn": {"num_hidden_layers": 3, "max_window_layers": 3, "layer_types": ["full_attention"] * 3},
    "gemma3-sees": {"num_hidden_layers": 3, "layer_types": [KINDS[layer] for layer in KEPT]},
}


def make_original(name: str, path: Path) -> Path:
    """A checkpoint as 4.57.6 writes it, with the weights that it computed the facts with."""
    shutil.copytree(HERE / "tokenizers" / CONFIGS[name][1], path)
    shutil.copytree(HERE / "configs" / name, path, dirs_exist_ok=True)
    config = transformers.AutoConfig.from_pretrained(path)
    model = fill_weights(find_auto_class(config).from_config(config, dtype=torch.float32))
    model.save_pretrained(path / "weights")
    (path / "weights" / "model.safetensors").rename(path / "model.safetensors")
    shutil.rmtree(path / "weights")
    return path


def export(teacher: Teacher, target: Path, *kept: int) -> torch.nn.Module:
    """Cut and write as a search does it; return what was written from memory."""
    student = make_student(Anatomy(teacher.model), Candidate.keep(num_layers=4, kept_layers=kept))
    write_checkpoint(
        student, target, tokenizer=teacher.tokenizer, original=teacher.directory, dtype=teacher.stored_dtype
    )
    return student


def read_files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name not in WRITTEN}


def read_config(path: Path) -> dict[str, Any]:
    """Fields of the part that writes text."""
    said: dict[str, Any] = json.loads((path / "config.json").read_text())
    return said.get("text_config", said)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_4_57_wrote_and_an_export_of_it_are_one(name: str, tmp_path: Path) -> None:
    original = make_original(name, tmp_path / "original")
    teacher = open_teacher(ModelSource(location=str(original)), device=CPU, dtype_name=None)
    logits = compute_logits(teacher.model)
    if name != "experts":  # whose parameters have other names in memory
        expected = torch.tensor(FACTS_457["logits"][name])
        torch.testing.assert_close(logits[: len(expected)], expected, atol=1e-4, rtol=0)
    before = read_files(original)
    if name == "yarn":  # the count of leading layers is bounded by that of all
        before["config.json"] = before["config.json"].replace(b'"max_window_layers": 28', b'"max_window_layers": 4')
    export(teacher, tmp_path / "all", 0, 1, 2, 3)
    assert read_files(tmp_path / "all") == before
    assert torch.equal(compute_logits(load_checkpoint(tmp_path / "all", device=CPU, dtype=torch.float32)), logits)


@pytest.mark.parametrize("name", CUT)
def test_where_a_layer_goes_its_fields_change_and_no_other(name: str, tmp_path: Path) -> None:
    original = make_original(name, tmp_path / "original")
    teacher = open_teacher(ModelSource(location=str(original)), device=CPU, dtype_name=None)
    student = export(teacher, tmp_path / "cut", *KEPT)
    fields, after = read_config(original), read_config(tmp_path / "cut")
    assert after == fields | CUT[name]
    assert list(after) == list(fields)
    write_cut(plan_cut(original, KEPT), tmp_path / "copied")
    assert read_files(tmp_path / "copied") == read_files(tmp_path / "cut")
    loaded = load_checkpoint(tmp_path / "copied", device=CPU, dtype=torch.float32)
    assert torch.equal(compute_logits(loaded), compute_logits(student))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_ids_are_those_of_4_57(kind: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(HERE / "tokenizers" / kind)
    assert tokenizer(TEXT)["input_ids"] == FACTS_457["ids"][kind]


def respell(tmp_path: Path, original: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What is written of a config when some fields of it are otherwise."""
    source, target = tmp_path / "original", tmp_path / "export"
    for path in (source, target):
        path.mkdir(exist_ok=True)
    (source / "config.json").write_text(json.dumps(original))
    config = transformers.AutoConfig.from_pretrained(source)
    for name, value in changes.items():
        setattr(config.get_text_config(), name, value)
    config.save_pretrained(target)
    spelling.spell_config(target, original=source)
    found: dict[str, Any] = json.loads((target / "config.json").read_text())
    return found


ALIAS = {"model_type": "gpt2", "num_hidden_layers": 4, "n_embd": 16, "n_head": 2}
OLDER = {"model_type": "llama", "num_hidden_layers": 4, "torch_dtype": "float16", "rope_scaling": None}
NAMED = {"model_type": "qwen3_moe", "num_hidden_layers": 4, "num_experts": 8}
FLAT = {"model_type": "qwen2_vl", "num_hidden_layers": 4, "max_window_layers": 4, "vision_config": {"depth": 2}}
PATTERN = {"model_type": "gemma3_text", "num_hidden_layers": 4, "sliding_window_pattern": 2}
SWAPPED = {"layer_types": ["full_attention", "sliding_attention"]}


@pytest.mark.parametrize(
    ("original", "changes", "written"),
    [
        (ALIAS, {}, {}),
        (OLDER, {"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}),
        (NAMED, {"num_local_experts": 4}, {"num_experts": 4}),
        (FLAT, {"layer_types": ["full_attention"] * 2}, {}),
        (PATTERN, SWAPPED, SWAPPED),  # what the original's words cannot say is added
    ],
    ids=["alias", "older", "experts", "flat", "pattern"],
)
def test_a_field_has_the_name_and_the_place_that_the_original_gives_it(
    original: dict[str, Any], changes: dict[str, Any], written: dict[str, Any], tmp_path: Path
) -> None:
    assert respell(tmp_path, original, num_hidden_layers=2, **changes) == original | {"num_hidden_layers": 2} | written
    nested = {"model_type": "llava", "text_config": {"model_type": "llama", "num_hidden_layers": 4}}
    shorter = nested["text_config"] | {"num_hidden_layers": 3}
    assert respell(tmp_path, nested, num_hidden_layers=3)["text_config"] == shorter


def test_a_config_that_plain_transformers_does_not_open_stays_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text('{"model_type": "own", "depth": 4}')
    transformers.LlamaConfig(num_hidden_layers=2).save_pretrained(tmp_path)
    spelling.spell_config(tmp_path, original=tmp_path / "own")
    assert transformers.AutoConfig.from_pretrained(tmp_path).num_hidden_layers == 2


def test_rotation_of_a_longrope_has_the_three_words_that_older_readers_accept(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0], "long_factor": [2.0]}
    config = {
        "original_max_position_embeddings": 16,
        "rope_parameters": rope | {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 16},
    }
    found = spelling.spell_rope(config)
    assert found["rope_scaling"] == {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    assert (found["rope_theta"], found["partial_rotary_factor"]) == (1e4, 0.5)
    by_kind = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
    found = spelling.spell_rope({"rope_parameters": by_kind | {"sliding_attention": {"rope_theta": 1e4}}})
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1e6, 1e4)
