"""From what was asked to a whole config, and back to the command that says the same."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from seed import resolve, search, study_dir
from seed.cli import BYTES, COUNT, POSITIVE, SECONDS, WHOLE
from seed.config import DEFAULTS, OPTIONS, StudyConfig, fill_by_size
from seed.errors import CorpusError, SeedError, SpaceError
from seed.resolve import presets_directory

# ---- the command that says the same


def read_back(settings: StudyConfig) -> StudyConfig:
    """Type the command again."""
    words = shlex.split(resolve.typed_command(settings))
    assert words[:3] == ["python", "-m", "seed.search"]
    typed = search.read_words(words[3:])
    return StudyConfig(**typed, given=frozenset(typed))


SAMPLES: dict[str, Any] = {  # of options that take only some values
    "start": "/models/drop-1-7",
    "dtype": "bfloat16",
    "parts": ("attention", "mlp"),
    "bits": (8, 4),
    "tasks": ("arc_easy", "hellaswag"),
    "min_task": ("arc_easy=0.95", "hellaswag=0.9"),
    "sampler": "nsgaii",
    "proxy": "short-distillation",
    "recovery": "last-layers",
    "stages": "2+1",
    "time": 2700.5,
    "max_latency_ratio": 0.123456789012345,
    "max_ppl_ratio": 1.07,
    "ce_share": 0.5,
    "storage": "postgresql://me@host/studies",
}
TOGETHER = {"stages": {"max_dropped": None}, "one_shot": {"stages": "1+1"}} | {
    name: {"tasks": ("arc_easy",)}
    for name in ("task_limit", "task_batch", "include_path", "confirm_unsafe_code", "min_task")
}


@pytest.mark.parametrize("name", [name for name, (said, _) in OPTIONS.items() if said.help is not None])
def test_the_typed_command_says_the_same(name: str) -> None:
    default, kind = DEFAULTS[name], OPTIONS[name][1]
    if isinstance(default, bool):
        value: Any = not default
    elif kind in (COUNT, WHOLE):
        value = 3
    elif kind in (POSITIVE, BYTES, SECONDS):
        value = 0.1 + 0.2
    else:
        value = SAMPLES.get(name, 'some "quoted" $HOME\'s `name`.txt')
    settings = StudyConfig(**TOGETHER.get(name, {}) | {name: value})
    again = read_back(settings)
    assert again.is_given(name)
    assert dataclasses.replace(again, given=frozenset()) == settings


def test_only_what_was_told_is_typed() -> None:
    assert resolve.typed_command(StudyConfig()) == "python -m seed.search"
    told = StudyConfig(trials=5, distill=False, rng_seed=0, given=frozenset({"rng_seed"}))
    for settings in (told, resolve.resolve_config(told)):
        assert resolve.typed_command(settings) == "python -m seed.search --no-distill --trials 5 --rng-seed 0"


def test_numbers_are_typed_as_people_type_them() -> None:
    told = {"time": 2700.0, "sweep_budget": 10800.0, "max_memory": 1.8e9}
    assert resolve.typed_command(StudyConfig(**told)) == (
        "python -m seed.search --max-memory 1800000000 --time 45m --sweep-budget 3h"
    )


# ---- names and presets


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("demo", "demo"),
        ("TinyLlama/TinyLlama-1.1B", "TinyLlama-1.1B"),
        ("/models/My Model (v2)/", "My-Model-v2"),
        ("models/drop-4-11", "drop-4-11"),
        (".", "inside"),
        ("..", "my-model"),
        ("/", "study"),
        ("名前", "study"),
        ("_private/_model", "model"),
        (".hidden", "hidden"),
        ("a b", "a-b"),
        ("x" * 150, "x" * 100),
    ],
)
def test_a_study_is_called_like_its_model(
    model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-model" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my-model" / "inside")
    assert resolve.name_default_study(model) == name
    assert study_dir.name_study(name) == name  # which is not refused


def write(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    return path


def test_flags_win_over_the_file_of_the_user_and_that_over_the_preset(tmp_path: Path) -> None:
    gpt2 = resolve.resolve_config(StudyConfig(model="gpt2"))
    assert (gpt2.hub_id, gpt2.num_layers, gpt2.max_dropped) == ("openai-community/gpt2", 12, 4)
    file = write(tmp_path, '[search]\ntrials = 7\nsampler = "random"\nscreen = false\n[recovery]\ndistill = false\n')
    told = {"model": "gpt2", "space": file, "screen": True, "rng_seed": 3}
    mine = resolve.resolve_config(StudyConfig(**told, given=frozenset(told)))
    assert (mine.trials, mine.sampler, mine.distill, mine.screen, mine.rng_seed) == (7, "random", False, True, 3)
    assert (mine.hub_id, mine.max_dropped, mine.learning_rates) == (gpt2.hub_id, 4, gpt2.learning_rates)
    names = ("trials", "sampler", "max_dropped", "screen")
    assert [name for name in names if mine.is_given(name)] == ["trials", "sampler", "screen"]
    assert [name for name in names if mine.is_typed(name)] == ["screen"]
    assert resolve.typed_command(mine) == f"python -m seed.search --model gpt2 --space {file} --screen --rng-seed 3"
    copied = resolve.resolve_config(StudyConfig(model="gpt2", space=presets_directory() / "gpt2.toml"))
    assert not copied.in_file
    assert resolve.resolve_config(mine) is not None
    with pytest.raises(SpaceError, match=r"mine\.toml: --eval-command: is about distilled models"):
        resolve.resolve_config(StudyConfig(model="gpt2", space=file, eval_command="judge.sh"))
    with pytest.raises(SpaceError, match=r"nowhere\.toml"):
        resolve.resolve_config(StudyConfig(space=tmp_path / "nowhere.toml"))
    with pytest.raises(SpaceError, match=r"mine\.toml: --max-dropped: cannot be had with --stages"):
        resolve.resolve_config(StudyConfig(stages="1+1", space=write(tmp_path, "[space]\nmax_dropped = 2\n")))
    assert resolve.resolve_config(StudyConfig(model="someone/else")).num_layers is None


def test_what_only_files_and_python_say_is_not_typed() -> None:
    assert resolve.typed_command(StudyConfig(droppable_layers=(1, 2), trials=3)) == "python -m seed.search --trials 3"
    with pytest.raises(SeedError, match="unknown setting trails") as caught:
        search.find_frontier(trails=3)
    assert "trials" in str(caught.value)
    assert "droppable_layers" not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "revision"),
    [
        ({}, "b" * 40),
        ({"model": "someone/model"}, "b" * 40),
        ({"model": "someone/model", "revision": "main"}, "main"),
        ({"model": "."}, None),  # only shaped like it
    ],
)
def test_a_pinned_revision_is_that_of_its_model_alone(tmp_path: Path, told: dict[str, str], revision: str) -> None:
    file = write(tmp_path, f'[model]\nname = "someone/model"\nrevision = "{"b" * 40}"\n[data]\ncorpus = "demo"\n')
    found = resolve.resolve_config(StudyConfig(space=file, **told))
    assert (found.model, found.revision) == (told.get("model", "someone/model"), revision)


def test_a_file_says_of_its_model_what_it_knows_and_chooses_no_other(tmp_path: Path) -> None:
    gpt2, pinned = resolve.resolve_config(StudyConfig(model="gpt2")), {"model": "someone/model"}
    nameless = write(tmp_path, '[model]\nrevision = "abc"\n')
    assert resolve.resolve_config(StudyConfig(space=nameless, **pinned)).revision == "abc"
    assert resolve.resolve_config(StudyConfig(space=nameless, model="gpt2")).hub_id == gpt2.hub_id
    known = write(tmp_path, '[model]\nname = "openai-community/gpt2"\n[search]\nsampler = "tpe"\n')
    found = resolve.resolve_config(StudyConfig(space=known))
    for name in ("revision", "num_layers", "trials", "learning_rates", "recovery_text", "shape"):
        assert getattr(found, name) == getattr(gpt2, name) is not None
    assert resolve.resolve_config(StudyConfig(space=known, model="gpt2")).sampler == "tpe"
    other = write(tmp_path, '[model]\nname = "evil/model"\n')
    for model in ("gpt2", "someone/model"):
        with pytest.raises(SpaceError, match=rf"mine\.toml: is of evil/model, and --model says {model}"):
            resolve.resolve_config(StudyConfig(space=other, model=model))


def fill(num_layers: int = 12, num_params: int = 10**8, max_positions: int = 2048, **told: Any) -> StudyConfig:
    settings = resolve.resolve_config(StudyConfig(**{"model": "someone/model"} | told))
    return fill_by_size(settings, num_layers=num_layers, num_params=num_params, max_positions=max_positions)


@pytest.mark.parametrize("num_layers", [2, 12, 80])
def test_a_model_that_no_file_knows_is_searched_by_its_size(num_layers: int) -> None:
    settings = fill(num_layers)
    assert resolve.find_space(settings, num_layers=num_layers).size >= num_layers
    assert (settings.window_tokens, settings.recovery_text, settings.test_tokens) == (1024, "wikitext2", 262_144)
    assert fill(max_positions=128).window_tokens == 128
    assert fill(window_tokens=64).window_tokens == 64
    assert fill(model="gpt2").test_tokens is None  # all
    small, large = fill(num_params=10**8), fill(num_params=10**10)
    assert (small.learning_rates or ())[1] > (large.learning_rates or ())[1]
    assert (small.distill_tokens or 0) < (large.distill_tokens or 0)


@pytest.mark.parametrize(
    ("told", "bounds"),
    [
        ({}, (1, 4)),
        ({"max_dropped": 2}, (1, 2)),
        ({"min_dropped": 5}, (5, 5)),
        ({"min_dropped": 2}, (2, 4)),
        ({"space": "min_dropped = 3", "max_dropped": 2}, (2, 2)),
        ({"space": "min_dropped = 3"}, (3, 4)),
        ({"space": "min_dropped = 6"}, (6, 6)),
        ({"space": "max_dropped = 2", "min_dropped": 3}, (3, 3)),
        ({"space": "droppable_layers = [2, 3]"}, (1, 2)),
    ],
)
def test_bounds_that_are_told_move_the_others(tmp_path: Path, told: dict[str, Any], bounds: tuple[int, int]) -> None:
    if "space" in told:
        told = told | {"space": write(tmp_path, f"[space]\n{told['space']}\n")}
    space = resolve.find_space(resolve.resolve_config(StudyConfig(model="gpt2", **told)), num_layers=12)
    assert (space.min_dropped, space.max_dropped) == bounds


def test_layers_are_those_of_the_opened_model(tmp_path: Path) -> None:
    gpt2 = resolve.resolve_config(StudyConfig(model="gpt2"))
    with pytest.raises(SpaceError, match=r"gpt2\.toml: num_layers = 12, but gpt2 has 24 layers"):
        resolve.find_space(gpt2, num_layers=24)
    with pytest.raises(SpaceError, match=r"^--max-dropped: max_dropped = 12"):
        resolve.find_space(resolve.resolve_config(StudyConfig(model="gpt2", max_dropped=12)), num_layers=12)
    assert resolve.find_space(gpt2, num_layers=12, needed=[0, 11]).droppable_layers == tuple(range(1, 11))
    file = write(tmp_path, "[space]\ndroppable_layers = [3, 11]\nmax_dropped = 2\n")
    mine = resolve.resolve_config(StudyConfig(model="gpt2", space=file))
    assert resolve.find_space(mine, num_layers=12, needed=[0]).droppable_layers == (3, 11)
    with pytest.raises(
        SpaceError, match=r"mine\.toml: droppable_layers names \[11\].* cannot do without\. Leave them out"
    ):
        resolve.find_space(mine, num_layers=12, needed=[0, 11])


def test_paths_of_texts_are_made_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "demo").mkdir()  # of a corpus's name
    monkeypatch.chdir(tmp_path)
    resolved = resolve.resolve_config(
        StudyConfig(recovery_text="notes.txt", validation_text="demo", test_text="hub:someone/text")
    )
    assert resolved.recovery_text == str(tmp_path.resolve() / "notes.txt")
    assert resolved.validation_text == "demo"
    assert resolved.test_text == "hub:someone/text"
    assert resolve.resolve_config(StudyConfig(test_text="./demo")).test_text == str(tmp_path.resolve() / "demo")


@pytest.mark.parametrize("text", ["~nobody-of-that-name/notes.txt", "n" * 300 + ".txt"])
def test_a_text_that_cannot_be_a_path_is_left_to_the_corpus_to_refuse(text: str) -> None:
    assert resolve.resolve_config(StudyConfig(test_text=text)).test_text == text


def test_a_start_brings_its_original_along(tmp_path: Path) -> None:
    start = tmp_path / "drop-1"
    start.mkdir()
    content = {"base_model": "openai-community/gpt2", "num_layers": 12, "dropped_layers": [1], "width": None}
    content["kept_layers"] = [0, *range(2, 12)]
    (start / "seed.json").write_text(json.dumps(content | {"settings": {"distill_tokens": 5}}))
    settings = resolve.resolve_config(StudyConfig(start=start))
    assert (settings.model, settings.num_layers) == ("gpt2", 12)


def test_a_local_model_is_asked_for_its_text(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"which text\? Give --recovery-text FILE"):
        resolve.resolve_config(StudyConfig(model=str(tmp_path)))
    assert resolve.resolve_config(StudyConfig(model=str(tmp_path), recovery_text="demo"))
    assert resolve.resolve_config(StudyConfig(model="someone/a-model"))
    assert resolve.resolve_config(StudyConfig(model="demo"))
