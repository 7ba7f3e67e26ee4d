"""Planning: a command says the same as its settings, a plan repeats itself, and studies never mix."""

import contextlib
import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import seed
from seed import folder
from seed.errors import CorpusError, SeedError, SpaceError, StudyError
from seed.optimize.space import list_presets
from seed.plans import Protocol, SearchPlan, StreamRecord
from seed.records import SearchSpace
from seed.search import make_parser
from seed.stages import planning
from seed.stages.settings import SearchSettings

REPOSITORY = Path(seed.__file__).parents[1]


def stream(name: str) -> StreamRecord:
    return StreamRecord(source="Python 3.11 standard library", tokens=16384, documents=40, sha256=name * 32)


PROTOCOL = Protocol(
    model="demo",
    location="demo",
    revision=None,
    commit=None,
    weights_sha256="ab" * 32,
    trust_remote_code=False,
    license="apache-2.0",
    space=SearchSpace(num_layers=12, droppable_layers=tuple(range(12)), min_dropped=1, max_dropped=3),
    recovery_text="demo",
    validation_text=None,
    test_text=None,
    window_tokens=256,
    calibration_tokens=8192,
    validation_tokens=16384,
    test_tokens=49152,
    bos_each_window=False,
    streams={"recovery": stream("a1"), "validation": stream("b2"), "test": stream("c3")},
    rung="closed_form",
    short_steps=10,
    batch_tokens=2048,
    short_learning_rate=3e-4,
    mixed_precision=False,
    lora_rank=None,
    freeze_prefix=False,
    latency_batch=1,
    prompt_tokens=64,
    new_tokens=48,
    latency_repeats=9,
    compiled=False,
    latency_command=None,
    device="cpu",
    dtype="float32",
    rng_seed=0,
)


def make_plan(protocol: Protocol = PROTOCOL, *, covers_space: bool = False, **settings: Any) -> SearchPlan:
    return planning.make_plan(
        SearchSettings(**settings),
        protocol,
        name="demo",
        trials=298,
        distill_tokens=100_000,
        covers_space=covers_space,
    )


# ---- the command that says the same

EVERYTHING = SearchSettings(
    model="some one/model's name",
    revision="a" * 40,
    trust_remote_code=True,
    space=Path("my spaces/mine.toml"),
    study="first-try",
    studies_dir=Path("/tmp/studies of mine"),
    storage="postgresql://me@host/studies",
    workers=3,
    ray="10.0.0.1:6379",
    trials=57,
    sampler="nsgaii",
    rung=2,
    sweep_budget=5400.0,
    screen=False,
    rng_seed=7,
    device="cuda:1",
    dtype="bfloat16",
    recovery_text="hub:someone/text:en",
    validation_text="texts/$HOME and `more`.txt",
    test_text='a "quoted" name.jsonl',
    window_tokens=128,
    calibration_tokens=1000,
    validation_tokens=2000,
    test_tokens=3000,
    short_steps=3,
    max_dropped=5,
    max_ppl_ratio=1.07,
    max_latency_ratio=0.123456789012345,
    max_memory=1.8e9,
    frontier_size=3,
    distill_tokens=123456,
    learning_rate=3e-5,
    lora_rank=8,
    min_dropped=2,
    start=Path("/models/drop-1-7"),
    replicas=3,
    recovery="lora",
    temperature=2.0,
    ce_share=0.5,
    freeze_prefix=True,
    latency_batch=4,
    prompt_tokens=17,
    new_tokens=33,
    latency_repeats=5,
    latency_command="./time.sh --fast | tail -1",
    eval_command="python 'my judge.py' --tasks a,b",
)

# What contradicts something above
THE_REST = SearchSettings(distill=False, compiled=True)
IN_STAGES = SearchSettings(stages="2+1", one_shot=False, width_baseline=True)


def read_back(settings: SearchSettings) -> SearchSettings:
    """Type the command again."""
    words = shlex.split(planning.typed_command(settings))
    assert words[:3] == ["python", "-m", "seed.search"]
    return SearchSettings(**vars(make_parser().parse_args(words[3:])))


@pytest.mark.parametrize(
    "settings",
    [
        SearchSettings(),
        SearchSettings(model="tinyllama", trials=200),
        SearchSettings(distill=False, max_memory=6e9),
        SearchSettings(compiled=True, device="cuda", dtype="float16"),
        SearchSettings(max_memory=0.5, learning_rate=1e-7),
        SearchSettings(sweep_budget=0.0, screen=False),
        SearchSettings(sweep_budget=0.25, lora_rank=64, freeze_prefix=True),
        SearchSettings(model="/models/llama [v2]", studies_dir=Path("~/studies"), rng_seed=2**31 - 1),
        EVERYTHING,
        THE_REST,
        IN_STAGES,
    ],
    ids=lambda settings: planning.typed_command(settings)[:60],
)
def test_the_typed_command_says_the_same(settings: SearchSettings) -> None:
    assert read_back(settings) == settings


def test_every_setting_can_be_typed() -> None:
    default = SearchSettings()
    same = [f.name for f in dataclasses.fields(default) if getattr(default, f.name) == getattr(EVERYTHING, f.name)]
    assert sorted(same) == [
        "compiled",
        "distill",
        "one_shot",
        "stages",
        "width_baseline",
    ]  # EVERYTHING, which is read back above, leaves none out but these
    assert (THE_REST.distill, THE_REST.compiled) == (False, True)


def test_only_what_differs_from_the_default_is_typed() -> None:
    assert planning.typed_command(SearchSettings()) == "python -m seed.search"
    assert planning.typed_command(SearchSettings(trials=5, distill=False)) == (
        "python -m seed.search --trials 5 --no-distill"
    )


def test_the_parser_leaves_out_what_was_not_typed() -> None:
    assert vars(make_parser().parse_args([])) == {}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--sampler", "grid"], "--sampler"),
        (["--rung", "0"], "--rung"),
        (["--trials", "many"], "--trials"),
        (["--max-memory", "much"], "'much' is not a size"),
        (["--sweep-budget", "soon"], "'soon' is not a time"),
        (["--sweep-budget", "10y"], "'10y' is not a time"),
        (["--sweep-budget=-1"], "'-1' is not a time"),
        (["--lora-rank", "few"], "--lora-rank"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_the_parser_refuses_by_name(capsys: pytest.CaptureFixture[str], words: list[str], found: str) -> None:
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(words)
    assert caught.value.code == 2
    assert found in capsys.readouterr().err.splitlines()[-1]


def test_help_names_every_preset_and_needs_no_torch() -> None:
    script = (
        "import runpy, sys\n"
        "sys.argv = ['seed.search', '--help']\n"
        "try:\n"
        "    runpy.run_module('seed.search', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'plotly', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    shown = " ".join(done.stdout.split()).replace("- ", "-")  # names may be broken at a hyphen
    assert "usage: python -m seed.search" in done.stdout
    assert all(name in shown for name in list_presets())


@pytest.mark.parametrize(("typed", "seconds"), [("10m", 600.0), ("2h", 7200.0), ("0", 0.0), ("45", 45.0)])
def test_a_time_can_be_typed(typed: str, seconds: float) -> None:
    settings = SearchSettings(**vars(make_parser().parse_args(["--sweep-budget", typed])))
    assert settings.sweep_budget == seconds


# ---- names and presets


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("demo", "demo"),
        ("TinyLlama/TinyLlama-1.1B", "TinyLlama-1.1B"),
        ("/models/My Model (v2)/", "My-Model-v2"),
        ("models/drop-4-11", "drop-4-11"),
        ("~", "study"),
        ("/", "study"),
        ("名前", "study"),
    ],
)
def test_a_study_is_called_like_its_model(model: str, name: str) -> None:
    assert planning.name_default_study(model) == name


def test_the_folder_one_is_in_gives_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-model" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my-model" / "inside")
    assert planning.name_default_study(".") == "inside"
    assert planning.name_default_study("..") == "my-model"


@pytest.mark.parametrize(
    "model", ["demo", "a/b", "_private/_model", "x" * 150, ".hidden", "--", "a b", "é", "..", "_", "model.", "1"]
)
def test_a_name_that_nobody_typed_is_never_refused(model: str) -> None:
    name = planning.name_default_study(model)
    assert folder.name_study(name) == name


def test_a_preset_is_found_by_file_by_name_or_not_at_all(tmp_path: Path) -> None:
    demo = planning.find_preset(SearchSettings())
    assert demo is not None
    assert demo.model.name == "demo"
    gpt2 = planning.find_preset(SearchSettings(model="gpt2"))
    assert gpt2 is not None
    assert gpt2.model.name == "openai-community/gpt2"
    assert planning.find_preset(SearchSettings(model="someone/else")) is None
    with pytest.raises(SpaceError, match=r"mine\.toml"):
        planning.find_preset(SearchSettings(space=tmp_path / "mine.toml"))


def test_max_dropped_replaces_the_presets(tmp_path: Path) -> None:
    preset = planning.find_preset(SearchSettings(model="gpt2"))
    assert preset is not None
    assert planning.check_dropped(SearchSettings(model="gpt2"), preset, num_layers=12) == preset
    fitted = planning.check_dropped(SearchSettings(model="gpt2", max_dropped=2), preset, num_layers=12)
    assert (fitted.space.min_dropped, fitted.space.max_dropped) == (1, 2)
    deep = msgspec.structs.replace(preset, space=msgspec.structs.replace(preset.space, min_dropped=3))
    fitted = planning.check_dropped(SearchSettings(model="gpt2", max_dropped=2), deep, num_layers=12)
    assert (fitted.space.min_dropped, fitted.space.max_dropped) == (2, 2)


def test_a_preset_of_another_model_is_refused() -> None:
    preset = planning.find_preset(SearchSettings(model="gpt2"))
    assert preset is not None
    with pytest.raises(SpaceError, match=r"gpt2\.toml: num_layers = 12, but gpt2 has 24 layers"):
        planning.check_dropped(SearchSettings(model="gpt2"), preset, num_layers=24)
    settings = SearchSettings(model="x", space=Path("mine.toml"))
    with pytest.raises(SpaceError, match=r"mine\.toml: num_layers = 12"):
        planning.check_dropped(settings, preset, num_layers=24)


def test_layers_that_a_family_cannot_do_without_stay() -> None:
    preset = planning.find_preset(SearchSettings(model="gpt2"))
    assert preset is not None
    fitted = planning.check_dropped(SearchSettings(model="gpt2"), preset, num_layers=12, needed=[0, 11])
    assert fitted.space.droppable_layers == tuple(range(1, 11))
    wanted = msgspec.structs.replace(preset, space=msgspec.structs.replace(preset.space, droppable_layers=(3, 11)))
    assert planning.check_dropped(SearchSettings(model="gpt2"), wanted, num_layers=12, needed=[0]) == wanted
    with pytest.raises(
        SpaceError, match=r"gpt2\.toml: droppable_layers names \[11\].* cannot do without\. Leave them out"
    ):
        planning.check_dropped(SearchSettings(model="gpt2"), wanted, num_layers=12, needed=[0, 11])


# ---- texts


def test_paths_of_texts_are_made_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "demo").mkdir()  # of a corpus's name
    monkeypatch.chdir(tmp_path)
    settings = SearchSettings(recovery_text="notes.txt", validation_text="demo", test_text="hub:someone/text")
    resolved = planning.resolve_paths(settings)
    assert resolved.recovery_text == str(tmp_path.resolve() / "notes.txt")
    assert resolved.validation_text == "demo"
    assert resolved.test_text == "hub:someone/text"
    assert planning.resolve_paths(SearchSettings()) == SearchSettings()
    assert planning.resolve_paths(SearchSettings(test_text="./demo")).test_text == str(tmp_path.resolve() / "demo")


@pytest.mark.parametrize("text", ["~nobody-of-that-name/notes.txt", "n" * 300 + ".txt"])
def test_a_text_that_cannot_be_a_path_is_left_to_the_corpus_to_refuse(text: str) -> None:
    with contextlib.suppress(SeedError):
        assert planning.resolve_paths(SearchSettings(test_text=text)).test_text == text


# ---- one study, one protocol


def test_a_plan_repeats_the_settings() -> None:
    plan = make_plan(trials=298, max_ppl_ratio=1.1, frontier_size=4)
    assert (plan.trials, plan.frontier_size, plan.distill_tokens, plan.max_ppl_ratio) == (298, 4, 100_000, 1.1)
    assert plan.command == "python -m seed.search --trials 298 --max-ppl-ratio 1.1 --frontier-size 4"
    assert plan.seed_version == seed.__version__
    assert planning.read_protocol(plan, place=Path("studies/demo")) == PROTOCOL


def test_a_plan_from_its_file_is_the_same_study(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = make_plan()
    folder.write_record(path, plan)
    again = folder.read_record(path, SearchPlan)
    assert again.fingerprint == plan.fingerprint
    assert planning.read_protocol(again, place=tmp_path) == PROTOCOL
    planning.continue_plan(again, make_plan(trials=500, max_ppl_ratio=1.5, frontier_size=1), place=tmp_path)


def test_what_is_said_of_the_text_makes_no_other_study() -> None:
    noted = {
        name: msgspec.structs.replace(stream, notes=("3 files read",)) for name, stream in PROTOCOL.streams.items()
    }
    wanted = make_plan(msgspec.structs.replace(PROTOCOL, streams=noted))
    found = make_plan()
    for stream in found.identity["streams"].values():
        del stream["notes"]  # as an earlier version wrote it
    assert planning.continue_plan(found, wanted, place=Path("studies/demo")).identity == found.identity
    assert planning.compare_protocols(found.identity, wanted.identity) == []


@pytest.mark.parametrize("covered", [True, False])
def test_whether_to_sweep_is_settled_when_the_study_begins(covered: bool) -> None:
    found = make_plan(covers_space=covered, trials=10)
    wanted = make_plan(covers_space=not covered, trials=20)  # the machine is busier, or less busy, today
    continued = planning.continue_plan(found, wanted, place=Path("studies/demo"))
    assert continued == msgspec.structs.replace(wanted, covers_space=covered)
    assert continued.command == "python -m seed.search --trials 20"


@pytest.mark.parametrize("covered", [True, False])
def test_another_sweep_budget_settles_anew_whether_to_sweep(covered: bool) -> None:
    found = make_plan(covers_space=covered)
    wanted = make_plan(covers_space=not covered, sweep_budget=7200.0)
    assert planning.continue_plan(found, wanted, place=Path("studies/demo")) == wanted


def test_a_plan_repeats_the_sweep() -> None:
    for covered in (True, False):
        plan = make_plan(covers_space=covered, sweep_budget=90.0)
        assert (plan.sweep_budget, plan.covers_space) == (90.0, covered)


def test_equal_protocols_differ_in_nothing() -> None:
    assert planning.compare_protocols(PROTOCOL, PROTOCOL) == []


def test_differences_are_said_field_by_field() -> None:
    other = msgspec.structs.replace(
        PROTOCOL,
        rng_seed=3,
        test_tokens=None,
        space=msgspec.structs.replace(PROTOCOL.space, max_dropped=4),
        streams={**PROTOCOL.streams, "test": msgspec.structs.replace(PROTOCOL.streams["test"], tokens=7)},
    )
    assert planning.compare_protocols(PROTOCOL, other) == [
        "rng_seed: 0 in the study, 3 now",
        "space.max_dropped: 3 in the study, 4 now",
        "streams.test.tokens: 16384 in the study, 7 now",
        "test_tokens: 49152 in the study, None now",
    ]


@pytest.mark.parametrize("field", Protocol.__struct_fields__)
def test_a_study_refuses_another_protocol_and_names_the_field(field: str) -> None:
    value = getattr(PROTOCOL, field)
    changed: Any
    if field == "space":
        changed = msgspec.structs.replace(value, min_dropped=2)
    elif field == "streams":
        changed = {**value, "test": stream("d4")}
    elif isinstance(value, bool):
        changed = not value
    elif field == "lora_rank":
        changed = 16
    elif isinstance(value, (int, float)):
        changed = value + 1
    else:
        changed = f"{value}-other"
    other = make_plan(msgspec.structs.replace(PROTOCOL, **{field: changed}))
    with pytest.raises(StudyError) as caught:
        planning.continue_plan(make_plan(), other, place=Path("studies/demo"))
    message = str(caught.value)
    assert message.startswith(f"studies/demo: holds a study of another plan ({field}")
    assert " in the study, " in message
    assert "--study NAME" in message


def test_many_differences_are_counted() -> None:
    other = msgspec.structs.replace(
        PROTOCOL,
        **{name: getattr(PROTOCOL, name) + 1 for name in ("window_tokens", "calibration_tokens", "validation_tokens")},
        **{name: getattr(PROTOCOL, name) + 1 for name in ("short_steps", "batch_tokens", "latency_batch")},
        **{
            name: getattr(PROTOCOL, name) + 1 for name in ("prompt_tokens", "new_tokens", "latency_repeats", "rng_seed")
        },
    )
    with pytest.raises(StudyError, match="; and 2 more"):
        planning.continue_plan(make_plan(), make_plan(other), place=Path("studies/demo"))


@pytest.mark.parametrize(
    "identity",
    [
        {},
        {**msgspec.to_builtins(PROTOCOL), "new_field": 1},
        {**msgspec.to_builtins(PROTOCOL), "rng_seed": "zero"},
    ],
)
def test_a_plan_of_another_version_is_refused_with_both_versions(identity: dict[str, object]) -> None:
    plan = msgspec.structs.replace(make_plan(), identity=identity, seed_version="9.9")
    with pytest.raises(StudyError, match=rf"written by seed 9\.9, and this is {seed.__version__}") as caught:
        planning.continue_plan(plan, make_plan(), place=Path("studies/demo"))
    assert "--study NAME" in str(caught.value)


def test_a_start_brings_its_original_along(tmp_path: Path) -> None:
    start = tmp_path / "drop-1"
    start.mkdir()
    content = {"base_model": "openai-community/gpt2", "num_layers": 12, "dropped_layers": [1], "width": None}
    content["kept_layers"] = [0, *range(2, 12)]
    (start / "seed.json").write_text(json.dumps(content | {"settings": {"distill_tokens": 5}}))
    settings, preset = planning.start_from_preset(SearchSettings(start=start))
    assert settings.model == "gpt2"
    assert preset is not None
    assert preset.model.num_layers == 12


def test_a_local_model_is_asked_for_its_text(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"which text\? Give --recovery-text FILE"):
        planning.start_from_preset(SearchSettings(model=str(tmp_path)))
    assert planning.start_from_preset(SearchSettings(model=str(tmp_path), recovery_text="demo"))
    assert planning.start_from_preset(SearchSettings(model="someone/a-model"))
    assert planning.start_from_preset(SearchSettings(model="demo"))


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (seed.__version__, r"its plan.json is damaged, .*`int`.*window_tokens"),
        ("0.0.9", rf"its plan was written by seed 0\.0\.9, and this is {seed.__version__} .*window_tokens"),
    ],
)
def test_a_plan_that_does_not_read_is_told_with_its_field(version: str, said: str) -> None:
    plan = make_plan()
    torn = msgspec.structs.replace(plan, identity={**plan.identity, "window_tokens": "many"}, seed_version=version)
    with pytest.raises(StudyError, match=said):
        planning.read_protocol(torn, place=Path("studies/demo"))
