"""Opening a model works from a directory alone, and what is missing is named with its cure."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import constants

from seed.errors import ModelError, ResourceError
from seed.models.loader import (
    ModelSource,
    Teacher,
    check_source,
    choose_device,
    choose_dtype,
    find_licence,
    open_teacher,
)
from tests.conftest import make_model, make_tokenizer
from tests.hub import COMMIT, Hub, fill_repository
from tests.models.families import compute_logits, make_tokens

CPU = torch.device("cpu")
PRESETS = ["demo", "gpt2", "tinyllama"]


def open_directory(path: Path) -> Teacher:
    return open_teacher(ModelSource(location=str(path)), device=CPU, dtype_name=None)


def test_a_directory_opens_ready_for_inference(checkpoint: Path) -> None:
    teacher = open_directory(checkpoint)
    tokens = make_tokens()
    assert torch.equal(compute_logits(teacher.model, tokens), compute_logits(make_model("llama"), tokens))
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert teacher.tokenizer("hello")["input_ids"] == make_tokenizer()("hello")["input_ids"]
    assert teacher.commit is None


def test_files_that_break_a_library_in_ways_of_their_own_are_errors_too(checkpoint: Path) -> None:
    (checkpoint / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_directory(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_attention_heads": 0}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_directory(checkpoint)


def test_a_model_that_writes_no_text_is_refused_with_the_cure(tmp_path: Path) -> None:
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no language model.*save the language model on its own"):
        open_directory(tmp_path)


@pytest.mark.parametrize("torn", ["{", None])
def test_a_tokenizer_that_is_torn_or_gone_is_an_error_that_names_the_place(checkpoint: Path, torn: str | None) -> None:
    (checkpoint / "tokenizer.json").unlink()
    if torn:
        (checkpoint / "tokenizer.json").write_text(torn)
    with pytest.raises(ModelError) as caught:
        open_directory(checkpoint)
    assert str(checkpoint) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("TinyLama", "Did you mean tinyllama?"),
        ("gpt-2", "Did you mean gpt2?"),
        ("zzzzzz", "Known names: demo, gpt2, tinyllama."),
        ("ow ner/name", "neither a known name, nor a directory, nor a hub id"),
        ("./not-here", "no such directory"),
        ("/not/here", "no such directory"),
        ("not/here/either", "no such directory"),
    ],
)
def test_a_name_that_cannot_be_a_model_says_what_could(name: str, wanted: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_source(ModelSource(location=name), presets=PRESETS)
    assert wanted in str(caught.value)
    assert f"--model {name}" in str(caught.value)


@pytest.mark.timeout(60)
def test_a_hub_id_without_network_gives_the_cures() -> None:
    source = ModelSource(location="nobody/has-this-model", revision="abc")
    check_source(source, presets=PRESETS)
    with pytest.raises(ModelError) as caught:
        open_teacher(source, device=CPU, dtype_name=None)
    message = str(caught.value)
    assert "--model nobody/has-this-model (revision abc): not in the local cache" in message
    for cure in ("hf download", "local directory", "--model demo"):
        assert cure in message


@pytest.mark.parametrize("name", ["banana", "cuda:99", "xpu"])
def test_a_device_that_is_not_there_is_an_error(name: str) -> None:
    with pytest.raises(ResourceError, match=rf"--device {name}: not available here\. Available: cpu"):
        choose_device(name)


def test_the_type_follows_the_device_unless_asked_otherwise() -> None:
    assert choose_device("cpu") == CPU
    assert choose_dtype(None, device=CPU, stored=torch.bfloat16) == torch.float32
    for stored in (torch.bfloat16, torch.float32):
        assert choose_dtype(None, device=torch.device("cuda"), stored=stored) == stored
    assert choose_dtype("float16", device=CPU, stored=torch.float32) == torch.float16


def test_a_teacher_of_the_hub_comes_with_its_companions_and_its_commit(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_repository(tmp_path / "remote")
    hub.repositories["someone/model"] = tmp_path / "remote"
    snapshot = tmp_path / "cache" / "models--someone--model" / "snapshots" / COMMIT
    hub.lead(monkeypatch, tmp_path / "cache")
    for revision in (None, COMMIT, None):
        source = ModelSource(location="someone/model", revision=revision)
        opened = open_teacher(source, device=CPU, dtype_name=None)
        assert (opened.directory, opened.commit) == (snapshot, COMMIT)
        if revision:  # what is missing beside the weights does not keep a model from being opened without network
            (snapshot / "NOTICE").unlink()
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    remote = {str(path.relative_to(tmp_path / "remote")) for path in (tmp_path / "remote").rglob("*") if path.is_file()}
    assert sorted(hub.sent) == sorted(remote - {"pytorch_model.bin"})  # each once, and nothing that is not needed
    for name in ("LICENSE", "processor_config.json", "video_preprocessor_config.json"):
        assert (snapshot / name).is_file()


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\nlanguage: en\n---\n# A", {"license": "mit"}),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n",
            {"license": "other", "license_name": "own", "license_link": "LICENSE"},
        ),
        ("# No metadata", {}),
        ("---\nlicense: [a, b]\n---\n", {}),
        ("---\nlicense: {\n---\n", {}),
        (None, {}),
    ],
)
def test_a_licence_is_what_the_card_says(tmp_path: Path, card: str | None, licence: dict[str, str]) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert find_licence(tmp_path, named=None) == licence
    assert find_licence(tmp_path, named="gemma") == {"license": "gemma"}
