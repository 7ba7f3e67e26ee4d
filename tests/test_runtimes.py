"""What reads an exported directory: which runtimes are really run here, and which are only checked by what they read.

Run, on directories cut and exported as a search does it: plain transformers in a process of its own, and MLX (mlx-lm, on the
CPU), which must give the student's logits. ``lm-eval`` is run in test_tasks.py.

Not run, for want of a build or of a GPU: llama.cpp and vLLM. What their converter and loader go by is checked instead: the
architecture's name, per-layer lists as long as there are layers, the family's tensor names counted from 0, the format of
the safetensors files, and every tokenizer file of the original. MLX is not asked for GPT-2: its loader wants the names of the
first release, without ``transformer.``, which save_pretrained does not write.
"""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from seed import sessions
from seed.models.anatomy import Anatomy
from seed.models.checkpoint import write_checkpoint
from seed.models.loader import ModelSource, open_teacher
from seed.models.surgery import make_student
from seed.plans import read_plan
from seed.records import Candidate
from tests import conftest
from tests.finished import Finished
from tests.models.families import compute_logits, make_config, scramble
from tests.running import environment

FAMILIES = ("llama", "qwen2", "gemma2", "gpt2")
# These rotate a part of each head, and their older configs have words of their own for it.
PARTLY_ROTATED = ("nemotron", "glm4", "gpt_neox")
KEPT = (0, 2, 3)
VOCABULARY = 400
LLAMA_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,  # not what runtimes take where they find none
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PART_ROPE = {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.75}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
LAYER = re.compile(r"\.(?:layers|h)\.(\d+)\.")
# no longer than the sliding windows of 8, which MLX does not know for these families
TOKENS = torch.tensor([[1, 5, 200, 42, 77, 130, 33, 9]])


@dataclass(frozen=True, kw_only=True)
class Export:
    """An original and what was exported of it without one layer."""

    family: str
    original: Path
    path: Path
    student: nn.Module


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model as Llama and Gemma bring one."""
    place = tmp_path_factory.mktemp("vocabulary")
    (place / "text.txt").write_text("\n".join(f"layer {i} may go, layer {i + 1} stays" for i in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(place / "text.txt"),
        model_prefix=str(place / "tokenizer"),
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return place / "tokenizer.model"


def make_original(family: str, path: Path, vocabulary: Path) -> None:
    """A checkpoint with all that a published one has."""
    config = make_config(family)
    config.vocab_size = VOCABULARY
    if family == "llama":
        config.rope_parameters = dict(LLAMA_ROPE)
    elif family in PARTLY_ROTATED:
        config.rope_parameters = dict(PART_ROPE)
    if family == "gpt_neox":  # what MLX takes for granted
        config.intermediate_size = 4 * config.hidden_size
        config.hidden_act = "gelu_pytorch_tanh"
    model = scramble(transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, bos_token_id=1, eos_token_id=[2, 7]
    )
    model.save_pretrained(path)
    if family in ("llama", "gemma2"):
        shutil.copy(vocabulary, path / "tokenizer.model")
        kind = {"llama": "LlamaTokenizer", "gemma2": "GemmaTokenizer"}[family]
        named = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (path / "tokenizer_config.json").write_text(json.dumps(named))
    else:
        conftest.make_tokenizer().save_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)  # takes a family's own rules for splitting text
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    (path / "LICENSE").write_text("Ours.")
    (path / "processor_config.json").write_text('{"image_seq_length": 4}')


@pytest.fixture(scope="module")
def exports(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Export]:
    """For each family an original, opened and cut as a search does it, and the exported directory."""
    made = {}
    for family in (*FAMILIES, *PARTLY_ROTATED):
        place = tmp_path_factory.mktemp(family)
        make_original(family, place / "original", vocabulary)
        teacher = open_teacher(
            ModelSource(location=str(place / "original")), device=torch.device("cpu"), dtype_name=None
        )
        student = make_student(Anatomy(teacher.model), Candidate.keep(num_layers=4, kept_layers=KEPT))
        write_checkpoint(
            student,
            place / "drop-1",
            tokenizer=teacher.tokenizer,
            original=teacher.directory,
            dtype=teacher.stored_dtype,
        )
        made[family] = Export(family=family, original=place / "original", path=place / "drop-1", student=student)
    return made


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", FAMILIES)
def test_files_differ_in_what_has_to_do_with_layers_alone(exports: dict[str, Export], family: str) -> None:
    require_config(exports[family])
    require_tensors(exports[family])
    require_files(exports[family])


def require_config(export: Export) -> None:
    family = export.family
    before, after = (read(path / "config.json") for path in (export.original, export.path))
    assert after["architectures"] == before["architectures"]
    assert after["model_type"] == before["model_type"]
    assert "auto_map" not in after
    count = "n_layer" if family == "gpt2" else "num_hidden_layers"
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    wanted = {count: len(KEPT)}
    if "layer_types" in before:
        wanted["layer_types"] = [before["layer_types"][layer] for layer in KEPT]
    if family == "qwen2":
        wanted["max_window_layers"] = 1  # of the two leading layers with full attention one is left
    if family != "gpt2":
        wanted["rope_theta"] = before["rope_parameters"]["rope_theta"]
    if family == "llama":
        wanted["rope_scaling"] = {name: value for name, value in LLAMA_ROPE.items() if name != "rope_theta"}
    assert {name: after[name] for name in changed} == wanted
    lists = [value for value in after.values() if isinstance(value, list) and len(value) > 1]
    assert all(len(value) == len(KEPT) for value in lists)


def require_tensors(export: Export) -> None:
    """Check that they are the family's own, counted from 0."""
    assert [path.name for path in export.path.glob("*.safetensors")] == ["model.safetensors"]
    with safe_open(export.path / "model.safetensors", framework="pt") as stored:
        assert stored.metadata()["format"] == "pt"
    before, after = (load_file(path / "model.safetensors") for path in (export.original, export.path))
    wanted = {}
    for name, tensor in before.items():
        layer = LAYER.search(name)
        if layer is None:
            wanted[name] = tensor
        elif int(layer[1]) in KEPT:
            wanted[f"{name[: layer.start(1)]}{KEPT.index(int(layer[1]))}{name[layer.end(1) :]}"] = tensor
    assert set(after) == set(wanted)
    assert {int(layer[1]) for layer in map(LAYER.search, after) if layer} == set(range(len(KEPT)))
    for name, tensor in wanted.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name


def require_files(export: Export) -> None:
    """Check that every file of the original is there and says the same."""
    family, original, path = export.family, export.original, export.path
    assert {file.name for file in path.iterdir()} == {file.name for file in original.iterdir()}
    assert (path / "LICENSE").read_text() == "Ours."
    for name in ("tokenizer.json", "generation_config.json", "processor_config.json"):
        assert read(path / name) == read(original / name)
    assert (path / "chat_template.jinja").read_text() == TEMPLATE
    if family in ("llama", "gemma2"):
        assert (path / "tokenizer.model").read_bytes() == (original / "tokenizer.model").read_bytes()


PLAIN = """
import json, math, sys, torch, transformers
transformers.utils.logging.disable_progress_bar()

def open_both(path):
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(path)

tokens, windows, judged, *paths = json.loads(sys.stdin.read())
found = {}
with torch.no_grad():
    for path in paths:
        model, tokenizer = open_both(path)
        text = tokenizer.decode(tokenizer("layer 7 may go", add_special_tokens=False)["input_ids"])
        found[path] = [model(torch.tensor(tokens)).logits.tolist(), text]
    model, windows = open_both(judged)[0], torch.tensor(windows)
    logits = model(windows).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
    cached, uncached = (
        model.generate(windows[:1, :8], max_new_tokens=12, do_sample=False, use_cache=use) for use in (True, False)
    )
assert torch.equal(cached, uncached)
assert "seed" not in sys.modules
print(json.dumps([math.exp(loss), found]))
"""


def test_plain_transformers_in_a_process_of_its_own_gives_the_students_logits_and_a_studys_perplexity(
    exports: dict[str, Export], finished_study: Finished
) -> None:
    protocol = read_plan(finished_study.folder).protocol
    windows = sessions.reopen(finished_study.folder, protocol, device_name="cpu").streams["test"].tokens_NT
    paths = [str(finished_study.model), *(str(export.path) for export in exports.values())]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN],
        input=json.dumps([TOKENS.tolist(), windows.tolist(), *paths]),
        cwd="/",
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=""),
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    perplexity, found = json.loads(done.stdout)
    assert perplexity == pytest.approx(finished_study.record.distilled[0].test.perplexity, rel=1e-4)
    for export in exports.values():
        logits, text = found[str(export.path)]
        assert torch.equal(torch.tensor(logits), compute_logits(export.student, TOKENS)), export.family
        assert text == "layer 7 may go"


@pytest.mark.parametrize("family", [*(family for family in FAMILIES if family != "gpt2"), *PARTLY_ROTATED])
def test_mlx_gives_the_students_logits(exports: dict[str, Export], family: str) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model, load_tokenizer

    path = exports[family].path
    model, _ = load_model(path)
    found = np.array(model(mx.array(TOKENS.numpy())))
    wanted = compute_logits(exports[family].student, TOKENS).numpy()
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert load_tokenizer(path).encode("layer 7 may go") == tokenizer.encode("layer 7 may go")
