"""What a study can be told: wrong or contradicting values are refused by their flag or key, and files are read."""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seed.config import Stages, StudyConfig, parse_stages
from seed.errors import SeedError, SpaceError, StudyError
from seed.optimize.space import make_space
from seed.resolve import list_presets, presets_directory, read_file, read_preset

WHOLE = """\
[model]
name = "someone/model"
num_layers = 12

[space]
max_dropped = 4
min_dropped = 1
droppable_layers = [1, 2, 3, 4, 5, 6]

[data]
corpus = "wikitext2"
window_tokens = 64
test_tokens = "4k"

[recovery]
learning_rates = [1e-4, 3e-4]

[latency]
batch = 1

[search]
trials = 50
sampler = "tpe"
"""
Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"trials": 0}, "--trials 0"),
        ({"max_ppl_ratio": math.nan}, "--max-ppl-ratio nan"),
        ({"max_ppl_ratio": 1.0}, "--max-ppl-ratio 1.0"),
        ({"max_latency_ratio": 1.0}, "--max-latency-ratio 1.0"),
        ({"max_latency_ratio": 0.0}, "--max-latency-ratio 0.0"),
        ({"max_memory": "1.8 XB"}, "--max-memory 1.8 XB"),
        ({"proxy": "none"}, "--proxy none"),
        ({"sampler": "grid"}, "--sampler grid"),
        ({"dtype": "int8"}, "--dtype int8"),
        ({"rng_seed": -1}, "--rng-seed -1"),
        ({"model": ""}, "--model "),
        ({"studies_dir": ""}, "--studies-dir "),
        ({"recovery_text": "caf\udce9.txt"}, "--recovery-text caf\udce9.txt"),
        ({"learning_rate": -1e-4}, "--learning-rate -0.0001"),
        ({"sweep_budget": -1}, "--sweep-budget -1"),
        ({"lora_rank": 8, "recovery": "pretraining"}, "--lora-rank 8"),
        ({"recovery": "magic"}, "--recovery magic"),
        ({"temperature": 0.0}, "--temperature 0.0"),
        ({"temperature": 2.0, "recovery": "pretraining"}, "--temperature 2.0"),
        ({"ce_share": 1.5}, "--ce-share 1.5"),
        ({"ce_share": 0.5, "recovery": "lora-pretraining"}, "--ce-share 0.5"),
        ({"min_dropped": 3, "max_dropped": 2}, "--min-dropped 3"),
        ({"stages": "2+"}, "--stages 2+"),
        ({"stages": "0+1"}, "--stages 0+1"),
        ({"stages": "1+...+1"}, "--stages 1+...+1"),
        ({"stages": "1+..."}, "--stages 1+..."),
        ({"stages": "2+1", "max_dropped": 3}, "--max-dropped"),
        ({"stages": "2+1", "start": "/models/drop-1"}, "--start"),
        ({"stages": "2+1", "storage": "sqlite:///x.db"}, "--storage"),
        ({"stages": "2+1", "distill": False}, "--no-distill"),
        ({"one_shot": False}, "--no-one-shot"),
        ({"compiled": True, "latency_command": "time.sh"}, "--compiled"),
        ({"distill": False, "eval_command": "judge.sh"}, "--eval-command"),
        ({"replicas": 3, "distill": False}, "--replicas 3"),
        ({"width_baseline": True, "distill": False}, "--width-baseline"),
        ({"bits": (8,), "distill": False}, "--bits"),
        ({"bits": (8, 3)}, "--bits (8, 3)"),
        ({"tasks": ("arc_easy",), "distill": False}, "--tasks"),
        ({"min_task": ("arc_easy=0.9",)}, "--min-task"),
        ({"tasks": ("arc_easy",), "min_task": "arc_easy=2"}, "--min-task arc_easy=2"),
        ({"tasks": ("arc_easy",), "min_task": "arc_easy"}, "--min-task arc_easy"),
        ({"width_baseline": True, "start": "/models/drop-1"}, "--width-baseline"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_flag(settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(SeedError) as caught:
        StudyConfig(**settings)
    assert str(caught.value).startswith(f"{flag}: ")
    assert "\n" not in str(caught.value)


def test_a_password_in_the_storage_is_refused_and_never_repeated() -> None:
    with pytest.raises(StudyError, match="--storage") as caught:
        StudyConfig(storage="postgresql://me:hunter2@host/studies")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_memory": "1.8 GB", "distill_tokens": "45m", "sweep_budget": "10 min"},
        {"max_ppl_ratio": 1.0001},
        {"sweep_budget": 0},
        {"lora_rank": 1, "recovery": "lora-pretraining"},
        {"ce_share": 0.0},
        {"ce_share": 1.0},
        {"stages": "2+1", "max_latency_ratio": 0.8},
        {"stages": "1+...", "max_ppl_ratio": 1.1},
        {"max_latency_ratio": 0.9999},
    ],
)
def test_settings_at_the_border_pass(settings: dict[str, Any]) -> None:
    assert StudyConfig(**settings)


def test_text_is_read_as_on_the_command_line() -> None:
    config = StudyConfig(max_memory="1.8GB", trials="1e3", studies_dir="here")  # type: ignore[arg-type]
    assert (config.max_memory, config.trials, config.studies_dir) == (1.8e9, 1000, Path("here"))
    described = StudyConfig(**read_preset("gpt2")).describe()
    assert json.loads(json.dumps(described)) == described


def test_stages_are_numbers_of_layers_and_may_go_on() -> None:
    assert parse_stages("2+1") == Stages(counts=(2, 1), goes_on=False)
    assert parse_stages("3 + 1 + ...") == Stages(counts=(3, 1), goes_on=True)


@pytest.mark.parametrize(
    ("settings", "recovery"),
    [({}, "distillation"), ({"lora_rank": 8}, "lora"), ({"recovery": "last-layers"}, "last-layers")],
)
def test_a_rank_alone_asks_for_low_rank_updates(settings: dict[str, Any], recovery: str) -> None:
    assert StudyConfig(**settings).chosen_recovery.name == recovery


# ---- files


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes the whole file with one place changed, which must be there."""

    def write_file(old: str = "", new: str = "", *, then: str = "") -> Path:
        assert old in WHOLE
        path = tmp_path / "mine.toml"
        path.write_text((WHOLE.replace(old, new, 1) if old else WHOLE) + then)
        return path

    return write_file


def refuse(path: Path) -> str:
    """Read a wrong file; return the only line it was refused with, without the file's name, which it must begin with."""
    with pytest.raises(SpaceError) as caught:
        read_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_every_preset_is_whole_and_fits_its_model() -> None:
    assert list_presets() == sorted(list_presets())
    assert len(list_presets()) >= 19
    assert all((presets_directory() / f"{name}.toml").is_file() for name in list_presets())
    for name in list_presets():
        found = read_preset(name)
        space = make_space(num_layers=found["num_layers"], max_dropped=found["max_dropped"], place=name)
        assert 0 < space.max_dropped <= found["num_layers"] // 2  # deeper, nothing useful is left
        assert re.fullmatch(r"[0-9a-f]{40}", found.get("revision", "a" * 40))
        assert found["batch_tokens"] % found["window_tokens"] == 0
        assert list(found["learning_rates"]) == sorted(found["learning_rates"])
        assert {"hub_id", "recovery_text", "calibration_tokens", "validation_tokens", "distill_tokens"} <= found.keys()
        assert StudyConfig(**found)
        if name == "demo":
            assert space.size == 298 <= found["trials"]
    assert read_preset("someone/model") == {}


def test_a_file_is_read_as_it_stands(write: Write) -> None:
    assert read_file(write(then='[config]\nmodel_type = "llama"\n')) == {
        "hub_id": "someone/model",
        "num_layers": 12,
        "max_dropped": 4,
        "min_dropped": 1,
        "droppable_layers": (1, 2, 3, 4, 5, 6),
        "recovery_text": "wikitext2",
        "window_tokens": 64,
        "test_tokens": 4000,
        "learning_rates": (1e-4, 3e-4),
        "latency_batch": 1,
        "trials": 50,
        "sampler": "tpe",
        "shape": {"model_type": "llama"},
    }
    assert read_file(write(WHOLE, "")) == {}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "[latency]",
            "[latencies]",
            ["unknown key latencies", "Did you mean latency?", "Allowed: model, space, data,"],
        ),
        ("num_layers =", "num_layer =", ["[model] has an unknown key num_layer", "Did you mean num_layers?"]),
        ("trials =", "trails =", ["[search]", "Did you mean trials?", "Allowed: time, trials, sampler, proxy,"]),
        ("batch = 1", 'latency_command = "rm"', ["[latency] has an unknown key latency_command"]),
        ('name = "someone/model"', "trust_remote_code = true", ["[model] has an unknown key trust_remote_code"]),
        ("[search]", '[run]\nstorage = "sqlite:///x"\n[search]', ["unknown key run"]),
        ("max_dropped = 4", 'max_dropped = "four"', ["space.max_dropped = four: wanted a whole number"]),
        ("trials = 50", "trials = true", ["search.trials = True: wanted a whole number"]),
        ('corpus = "wikitext2"', "corpus = 5", ["data.corpus = 5: wanted text"]),
        ("[1e-4, 3e-4]", "1e-4", ["recovery.learning_rates = 0.0001: wanted one or more numbers"]),
        ("[1e-4, 3e-4]", "[]", ["recovery.learning_rates"]),
        ("[1, 2, 3, 4, 5, 6]", "[1, 2, 2]", ["wanted layers in rising order, each once"]),
        ("[model]", "config = 3\n[model]", ["config = 3: wanted a section, [config]"]),
        ("max_dropped = 4", "max_dropped = ", ["not valid TOML", "line 6"]),
        ("max_dropped = 4", "max_dropped = 7", ["max_dropped = 7", "Use 6 or fewer"]),
        ("min_dropped = 1", "min_dropped = 5", ["min_dropped = 5", "min_dropped <= max_dropped"]),
        (WHOLE, "[space]\nmin_dropped = 5\nmax_dropped = 2", ["min_dropped = 5 and max_dropped = 2"]),
        ("[1, 2, 3, 4, 5, 6]", "[1, 2, 3, 12]", ["[12]", "0 to 11"]),
    ],
)
def test_a_wrong_file_is_refused_with_its_place_and_the_cure(write: Write, old: str, new: str, said: list[str]) -> None:
    message = refuse(write(old, new))
    for text in said:
        assert text in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[model]\nnum_layers = 1000000000", "num_layers = 1000000000, and no model has more than 10,000 layers"),
        (b"[config]\nnum_hidden_layers = 1000000000", "num_hidden_layers = 1000000000"),
        (b"[config.text_config]\nn_layer = 99999", "n_layer = 99999"),
        (b"x = " + b"[" * 100_000, "not valid TOML"),
        (b"x = " + b"9" * 6000, "not valid TOML"),
        (b"\xff\xfe\x00", "not valid TOML"),
        (b"#" * 1_000_001, "larger than 1 MB"),
    ],
    ids=["layers", "config", "nested config", "nested", "digits", "no text", "large"],
)
def test_what_no_file_of_options_holds_is_refused_at_once(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "space.toml"
    path.write_bytes(content)
    assert said in refuse(path)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", Path("/dev/zero")):
        assert "cannot be read (a pipe or a device, and no file" in refuse(path)
    assert "No such file" in refuse(tmp_path / "nowhere.toml")
    assert "cannot be read" in refuse(tmp_path)
