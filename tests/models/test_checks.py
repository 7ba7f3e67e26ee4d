"""What is wrong with a model's files is refused at every door, and what is odd is told, before any number is measured."""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from seed.config import StudyConfig
from seed.dry_run import read_config
from seed.errors import CorpusError, ModelError
from seed.models import checks
from seed.models.anatomy import Anatomy
from seed.models.checkpoint import load_checkpoint, measure_size, prove_round_trip, write_checkpoint
from seed.models.copying import plan_cut, write_cut
from seed.models.loader import ModelSource, Teacher, check_source, open_teacher
from seed.models.stored import INDEX, SINGLE
from seed.protocols import hash_weights
from seed.stages.exporting import stamp_weights
from tests.conftest import MakeCheckpoint, make_model, make_tokenizer
from tests.models import families
from tests.models.families import compute_logits, make_tokens

CPU = torch.device("cpu")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
NORM, QUERY = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"


def open_directory(path: Path) -> Teacher:
    return open_teacher(ModelSource(location=str(path)), device=CPU, dtype_name=None)


def load(path: Path) -> Any:
    return load_checkpoint(path, device=CPU, dtype=torch.float32)


def cut(path: Path) -> Any:
    return plan_cut(path, (0, 2))


def check(path: Path) -> None:
    check_source(ModelSource(location=str(path)), presets=[])


def run_dry(path: Path) -> Any:
    return read_config(ModelSource(location=str(path)), StudyConfig())


DOORS: tuple[Callable[[Path], Any], ...] = (open_directory, load, cut, check)


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    weights = change(load_file(path / SINGLE))
    save_file({name: one.contiguous() for name, one in weights.items()}, path / SINGLE, metadata={"format": "pt"})


def change_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value != "gone"}))


def move_weights(path: Path, place: str) -> Path:
    """Put all weights where an index then says that they are."""
    names = dict.fromkeys(load_file(path / SINGLE), place)
    (path / place).parent.mkdir(exist_ok=True)
    moved = (path / SINGLE).rename(path / place)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return moved


def test_weights_in_a_folder_are_opened_copied_and_part_of_what_a_model_is(checkpoint: Path, tmp_path: Path) -> None:
    files = [checkpoint / "config.json", checkpoint / SINGLE]
    plain = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
    assert hash_weights(checkpoint) == plain
    moved = move_weights(checkpoint, "shards/model-00001-of-00001.safetensors")
    assert hash_weights(checkpoint) == plain
    check(checkpoint)
    expected = compute_logits(make_model("llama"), make_tokens())
    for door in (lambda path: open_directory(path).model, load):
        assert torch.equal(compute_logits(door(checkpoint), make_tokens()), expected)
    write_cut(cut(checkpoint), tmp_path / "cut")
    assert load(tmp_path / "cut").config.num_hidden_layers == 2
    stamp = stamp_weights(checkpoint)
    shutil.copyfile(moved, tmp_path / "elsewhere")
    moved.unlink()
    moved.symlink_to(tmp_path / "elsewhere")  # as in the hub's cache
    assert hash_weights(checkpoint) == plain
    moved.write_bytes(moved.read_bytes()[:-1] + b"x")
    assert hash_weights(checkpoint) != plain
    assert stamp_weights(checkpoint) != stamp


def rewrite_header(path: Path, found: bytes, wanted: bytes) -> None:
    content = (path / SINGLE).read_bytes()
    assert found in content
    (path / SINGLE).write_bytes(content.replace(found, wanted, 1))


def store_as(dtype: torch.dtype) -> Callable[[Path], None]:
    return lambda path: change_weights(
        path, lambda weights: weights | {QUERY: (weights[QUERY] * 100).clamp(0, 100).to(dtype)}
    )


def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights[QUERY][3, 5] = float("nan")
    return weights


def put_elsewhere(path: Path, *, place: str) -> None:
    moved = move_weights(path, "shards/one.safetensors").rename(path.parent / "elsewhere.safetensors")
    index = (path / INDEX).read_text()
    (path / INDEX).write_text(index.replace("shards/one.safetensors", place.format(moved=moved)))


def wrap(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        QUERY.replace(".weight", ".base_layer.weight") if name == QUERY else name: one for name, one in weights.items()
    }


def take_apart(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: one for name, one in weights.items() if name != QUERY}


def pickle_weights(path: Path) -> None:
    (path / SINGLE).unlink()
    (path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")


OUTSIDE = r"index\.json: names weights outside its folder .*elsewhere.* Put them"
ADAPTER = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 12345\n"
# What is wrong with files, and what is said of it at every door.
DAMAGED_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "torn": (lambda path: os.truncate(path / SINGLE, (path / SINGLE).stat().st_size - 5), "damaged"),
    "empty": (lambda path: os.truncate(path / SINGLE, 0), "damaged|cannot be read"),
    "endless header": (
        lambda path: (path / SINGLE).write_bytes(struct.pack("<Q", 2**40) + (path / SINGLE).read_bytes()[8:]),
        "damaged",
    ),
    "offsets": (lambda path: rewrite_header(path, b'"data_offsets":[0,', b'"data_offsets":[8,'), "damaged"),
    "halved": (
        lambda path: rewrite_header(path, b'"dtype":"F32","shape":[32]', b'"dtype":"F16","shape":[32]'),
        "damaged",
    ),
    "untyped": (lambda path: rewrite_header(path, b'"F32"', b'"F12"'), "damaged .*F12"),
    "pickled": (pickle_weights, r"safetensors.* convert"),
    "pointer": (lambda path: (path / SINGLE).write_text(POINTER), r"model\.safetensors: .*pointer.*git lfs pull"),
    "shard": (
        lambda path: move_weights(path, "model-00001-of-00002.safetensors").unlink(),
        r"model-00001-of-00002\.safetensors, which .*index.* names, does not lie",
    ),
    "above": (lambda path: put_elsewhere(path, place="../elsewhere.safetensors"), OUTSIDE),
    "around": (lambda path: put_elsewhere(path, place="shards/../../elsewhere.safetensors"), OUTSIDE),
    "absolute": (lambda path: put_elsewhere(path, place="{moved}"), OUTSIDE),
}
# What is wrong beside them, seen before anything is opened, in a dry run too.
DAMAGED_TEXTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "named by config": (
        lambda path: change_config(path, transformers_weights="others.safetensors"),
        r"config\.json: names its weights itself .*others",
    ),
    "no config": (lambda path: (path / "config.json").unlink(), r"config\.json: is missing.*save_pretrained"),
    "torn config": (lambda path: (path / "config.json").write_text("{"), r"config\.json: not valid JSON"),
    "adapter": (
        lambda path: (path / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}'),
        r"a LoRA adapter lies there .* Merge it",
    ),
    "billions of layers": (
        lambda path: change_config(path, num_hidden_layers=10**9),
        r"config\.json: num_hidden_layers = 1000000000, and no model has more than 10,000",
    ),
    "a part's layers": (lambda path: change_config(path, text_config={"n_layer": 20_000}), "n_layer = 20000, "),
    "nested config": (
        lambda path: (path / "config.json").write_text("[" * 200_000),
        r"config\.json: not valid JSON",
    ),
    "config of gigabytes": (
        lambda path: os.truncate(path / "config.json", 2 * 2**30),
        r"config\.json: 2,048 MB, and such a file has less than 16 MB",
    ),
    "words of gigabytes": (
        lambda path: (path / "vocab.json").touch() or os.truncate(path / "vocab.json", 600 * 2**20),
        r"vocab\.json: 600 MB, and such a file has less than 512 MB",
    ),
    "endless": (
        lambda path: (path / "chat_template.jinja").symlink_to("/dev/zero"),
        r"chat_template\.jinja: a pipe or a device",
    ),
    "pipe": (
        lambda path: (path / "tokenizer_config.json").unlink() or os.mkfifo(path / "tokenizer_config.json"),
        r"tokenizer_config\.json: a pipe or a device",
    ),
}
# What only its opening sees.
MISFITS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "mistyped": (
        lambda path: change_config(path, hidden_size="abc"),
        r"config.* (is wrong|cannot be)|cannot be loaded",
    ),
    "integers": (store_as(torch.int8), rf"1 tensor of its weights .* I8 \({QUERY}\), .*[Dd]equantize"),
    "eight bits": (store_as(torch.float8_e4m3fn), rf"weights .* F8_E4M3 \({QUERY}\), .*[Dd]equantize"),
    "quantized": (
        lambda path: change_config(path, quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantized|cannot be loaded",
    ),
    "adapter's tensors": (
        lambda path: change_weights(path, lambda weights: weights | {ADAPTER: torch.ones(2, 2)}),
        rf"1 tensor of an adapter .*{ADAPTER}.* Merge the adapter .*merge_and_unload",
    ),
    "around an adapter": (
        lambda path: change_weights(path, wrap),
        "base_layer.* Merge the adapter|base_layer|do not match its config",
    ),
    "missing": (lambda path: change_weights(path, take_apart), "q_proj|do not match"),
    "misshapen": (
        lambda path: change_weights(path, lambda weights: weights | {QUERY: torch.zeros(32, 33)}),
        "cannot be loaded|do not match",
    ),
    "a layer less": (lambda path: change_config(path, num_hidden_layers=5), r"layers\.4|do not match"),
}


@pytest.mark.parametrize(
    ("damage", "doors"),
    [
        *((damage, DOORS) for damage in DAMAGED_FILES),
        *((damage, (*DOORS, run_dry)) for damage in DAMAGED_TEXTS),
        *((damage, DOORS[:3]) for damage in MISFITS),
    ],
)
def test_a_damaged_checkpoint_is_refused_at_every_door(
    checkpoint: Path, damage: str, doors: tuple[Callable[[Path], Any], ...]
) -> None:
    harm, said = (DAMAGED_FILES | DAMAGED_TEXTS | MISFITS)[damage]
    harm(checkpoint)
    for door in doors:
        with pytest.raises(ModelError, match=said) as caught:
            door(checkpoint)
        assert str(checkpoint) in str(caught.value)


def test_what_is_no_part_of_a_model_may_lie_beside_it(checkpoint: Path) -> None:
    for name in ("corpus.txt", "trainer_log.json"):
        (checkpoint / name).touch()
        os.truncate(checkpoint / name, 600 * 2**20)
    os.mkfifo(checkpoint / "progress.txt")
    for door in (*DOORS, run_dry):
        door(checkpoint)


def test_weights_that_are_no_numbers_are_named_and_told_from_those_that_only_the_chosen_type_cannot_hold(
    checkpoint: Path,
) -> None:
    change_weights(checkpoint, lambda weights: weights | {NORM: weights[NORM] * 1e6})
    with pytest.raises(ModelError, match=r"as float16\. It is stored in float32: choose another --dtype"):
        open_teacher(ModelSource(location=str(checkpoint)), device=CPU, dtype_name="float16")
    change_weights(checkpoint, spoil)
    for door in (open_directory, load):
        with pytest.raises(ModelError, match=rf"{QUERY} holds 1 of 1,024 numbers that are NaN or infinite .*\[3, 5\]"):
            door(checkpoint)


def test_constants_of_older_checkpoints_are_no_quantized_weights(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    path = shutil.copytree(make_checkpoint("gpt2"), tmp_path / "gpt2")
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 128, 128, dtype=torch.uint8)}
    change_weights(path, lambda weights: weights | mask | {"h.1.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)})
    assert "2 of 54 tensors in its files are not read by transformers" in " ".join(open_directory(path).notes)
    cut(path)


def test_tensors_that_are_not_read_are_told(checkpoint: Path) -> None:
    assert open_directory(checkpoint).notes == ()
    further = {f"model.layers.{layer}.eh_proj.weight": torch.ones(2) for layer in range(4, 9)}
    change_weights(checkpoint, lambda weights: weights | further)
    [note] = open_directory(checkpoint).notes
    assert note.startswith("5 of 43 tensors in its files are not read by transformers")
    assert note.endswith("model.layers.6.eh_proj.weight and 2 more")


def test_a_file_is_no_model(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match=r"--model .*\.safetensors: is a file.* Give the directory of the original"):
        check_source(ModelSource(location=str(checkpoint / "model.safetensors")), presets=[])


def give_words(path: Path, words: list[str], *, special: bool = False, **ends: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(words, special_tokens=special)
    for name, word in ends.items():
        setattr(tokenizer, name, word)
    tokenizer.save_pretrained(path)
    return tokenizer


def test_a_tokenizer_of_more_words_than_the_embedding_has_rows_is_refused(checkpoint: Path) -> None:
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {"seventy": 257, "eighty": 258}
    (checkpoint / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"gives ids up to 258 \('eighty'\), and its embedding has 257 rows"):
        open_directory(checkpoint)
    give_words(checkpoint, ["<stop>"], special=True, eos_token="<stop>")
    with pytest.raises(ModelError, match=r"gives ids up to 257 \('<stop>'\)"):  # every text would end with it
        open_directory(checkpoint)


@pytest.mark.parametrize(("word", "special"), [("<image>", True), ("<tool_call>", False)])
def test_an_added_token_beyond_the_rows_is_refused_where_a_text_holds_it(
    checkpoint: Path, word: str, special: bool
) -> None:
    give_words(checkpoint, [word], special=special)
    teacher = open_directory(checkpoint)
    tokens = torch.tensor([teacher.tokenizer.encode(f"an {word} here")])
    with pytest.raises(CorpusError, match=r"notes\.txt: holds the token 257, and the model's embedding has 257 rows"):
        checks.refuse_ids(tokens, teacher.model, source="notes.txt")
    checks.refuse_ids(tokens.clamp(max=256), teacher.model, source="notes.txt")


@pytest.mark.parametrize("factor", [1, 2])
def test_a_head_stored_beside_a_tied_embedding_is_exported_as_it_is_measured(
    checkpoint: Path, tmp_path: Path, factor: int
) -> None:
    change_weights(checkpoint, lambda weights: weights | {HEAD: weights[EMBEDDING] * factor})
    teacher = open_directory(checkpoint)
    is_tied = factor == 1
    assert teacher.model.config.tie_word_embeddings is is_tied
    assert [("hold lm_head.weight with other numbers" in note) for note in teacher.notes] == ([] if is_tied else [True])
    expected = compute_logits(teacher.model, make_tokens())
    size = measure_size(teacher.model, dtype=torch.float32)
    write_checkpoint(
        teacher.model, tmp_path / "distilled", tokenizer=teacher.tokenizer, original=checkpoint, dtype=torch.float32
    )
    write_cut(plan_cut(checkpoint, (0, 1, 2, 3)), tmp_path / "copied")
    for path in (tmp_path / "distilled", tmp_path / "copied"):
        weights = load_file(path / SINGLE)
        assert (HEAD in weights) is not is_tied
        assert sum(one.numel() for one in weights.values()) == size.num_params
        assert json.loads((path / "config.json").read_text())["tie_word_embeddings"] is is_tied
        assert torch.equal(compute_logits(load(path), make_tokens()), expected)


def test_kinds_of_layers_beyond_the_decoder_s_are_cut_off(tmp_path: Path) -> None:
    families.make_model("hy_v3").save_pretrained(tmp_path / "whole")
    make_tokenizer().save_pretrained(tmp_path / "whole")
    change_config(tmp_path / "whole", mlp_layer_types=["dense", "sparse", "dense", "sparse", "sparse"])
    teacher = open_directory(tmp_path / "whole")
    prove_round_trip(Anatomy(teacher.model), make_tokens(), scratch=tmp_path, dtype=torch.float32)
    write_cut(plan_cut(tmp_path / "whole", (0, 2, 3)), tmp_path / "cut")
    assert load(tmp_path / "cut").config.mlp_layer_types == ["dense", "dense", "sparse"]


@pytest.mark.parametrize("said", ["gone", "float32"])
def test_the_stored_type_is_that_of_the_tensors_whatever_the_config_says(checkpoint: Path, said: str) -> None:
    norms = [NORM, "model.layers.0.input_layernorm.weight"]
    change_weights(
        checkpoint,
        lambda weights: {name: one if name in norms else one.bfloat16() for name, one in weights.items()},
    )
    change_config(checkpoint, dtype=said)
    teacher = open_directory(checkpoint)
    assert teacher.stored_dtype == torch.bfloat16
    [note] = teacher.notes
    assert note.startswith("2 tensors of 64 numbers are stored in float32, the others in bfloat16")
    assert next(teacher.model.parameters()).dtype == torch.float32


def write_tokenizer(path: Path, *, pre_tokenizer: Any, normalizer: Any = None, family: str, **about: Any) -> Tokenizer:
    """Write byte tokens as a tokenizer.json, beside what transformers chooses its class by."""
    words = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    written = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    written.normalizer, written.pre_tokenizer, written.decoder = normalizer, pre_tokenizer, decoders.ByteLevel()
    written.add_special_tokens(words[:1])
    written.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps({"model_type": family}))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": words[0]} | about))
    return written


@pytest.mark.parametrize(("family", "about"), [(None, {}), ("qwen2", {}), ("qwen2", {"add_prefix_space": False})])
def test_tokens_are_those_of_the_tokenizer_file_whatever_transformers_makes_of_it(
    tmp_path: Path, family: str | None, about: dict[str, bool]
) -> None:
    written = write_tokenizer(
        tmp_path,
        normalizer=normalizers.Lowercase(),
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        family=family or "llama",
        tokenizer_class="Qwen2Tokenizer" if family else "PreTrainedTokenizerFast",
        **about,
    )
    opened, told = checks.open_tokenizer(tmp_path, place="--model x")
    text = "Hello World 2024"
    assert opened.encode(text) == written.encode(text).ids
    assert opened.eos_token == "<|endoftext|>"
    if family is None:
        assert told is None
    else:
        assert opened.encode(text) != transformers.AutoTokenizer.from_pretrained(tmp_path).encode(text)
        assert told is not None
        assert "makes other tokens of a text than its tokenizer.json does, as Qwen2Tokenizer" in told


@pytest.mark.parametrize("setting", [None, False, True])
def test_a_first_space_is_as_the_tokenizer_s_config_says_and_else_as_its_file_does(
    tmp_path: Path, setting: bool | None
) -> None:
    in_file = not setting
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=in_file)
    about = {} if setting is None else {"add_prefix_space": setting}
    write_tokenizer(tmp_path, pre_tokenizer=pre_tokenizer, family="gpt2", tokenizer_class="GPT2Tokenizer", **about)
    opened, told = checks.open_tokenizer(tmp_path, place="--model x")
    has_space = in_file if setting is None else setting
    assert opened.tokenize("Hello World") == [*(["Ġ"] if has_space else []), *"HelloĠWorld"]
    assert (told is None) is (setting is not None)
