"""A dry run needs the shape alone: presets' shapes are the models', formulas are the search's, nothing is written."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from seed import resolve
from seed.config import StudyConfig, list_presets, read_preset
from seed.errors import ModelError, SpaceError
from seed.folder import StudyFolder
from seed.models.anatomy import Anatomy
from seed.models.stored import INDEX
from seed.models.teacher import ModelSource
from seed.scoring.corpus import CorpusRequest, read_source
from seed.stages import costs, protocols, rehearsal, workbench
from seed.stages.costs import Speed
from seed.stages.peaks import estimate_peak
from seed.stages.protocols import describe_reference
from seed.stages.shapes import Shape, describe_shape
from tests.stages.opened import PROTOCOL
from tests.stages.test_peaks import GPU

MakeCheckpoint = Callable[..., Path]
SPEED = Speed(layer=1e-6, head=1e-5, fit=0.25, solve=0.05, step=1e-3, num_layers=4)
PRESETS = {name: read_preset(name) for name in list_presets()}
BUDGETS = {
    "window_tokens": 64,
    "calibration_tokens": 1024,
    "validation_tokens": 2048,
    "test_tokens": 2048,
    "prompt_tokens": 8,
    "new_tokens": 4,
    "device": "cpu",
}


def rehearse(settings: StudyConfig) -> str:
    lines: list[str] = []
    rehearsal.rehearse(resolve.resolve_config(settings), name="dry", say=lines.append)
    return "\n".join(lines)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "demo"])
def test_a_presets_shape_is_its_models(name: str) -> None:
    preset = PRESETS[name]
    model = rehearsal.build_without_weights(rehearsal.make_config(preset["shape"], name=name))
    assert sum(weight.numel() for weight in model.parameters()) == preset["num_params"]
    anatomy = Anatomy(model)
    assert len(anatomy.layers) == preset["num_layers"]
    assert preset["window_tokens"] <= anatomy.config.max_position_embeddings


@pytest.mark.parametrize("name", ["gpt2", "tinyllama"])
def test_sweeps_of_the_reported_models_fit_a_gpu_of_24_gb(name: str) -> None:
    config = rehearsal.make_config(PRESETS[name]["shape"], name=name)
    layers, params = config.num_hidden_layers, PRESETS[name]["num_params"]
    settings = resolve.fill_by_size(
        resolve.resolve_config(StudyConfig(model=name)), num_layers=layers, num_params=params, max_positions=2048
    )
    protocol = protocols.fix_protocol(
        settings,
        protocols.find_source(settings),
        protocols.request_text(settings, config),
        resolve.find_space(settings, num_layers=layers),
        config=config,
        commit=None,
        weights_sha256=None,
        streams={},
        gains={0: 1.0},
        mixed_precision=True,
        device="cpu",
        dtype=torch.float32,
    )
    shape = Shape(
        num_layers=config.num_hidden_layers,
        width=config.hidden_size,
        mlp_width={"gpt2": 3072, "tinyllama": 5632}[name],
        vocabulary=config.vocab_size,
        num_params=params,
        layer_params={"gpt2": 7_087_872, "tinyllama": 44_044_288}[name],
        update_params=0,
        cache_bytes=0,
        number_bytes=4,
        stored_bytes=4,
        kept_bytes=0,
        kept_copies=0,
        gpu_bytes=24 * 10**9,
        calibration_tokens=protocol.calibration_tokens,
        validation_tokens=protocol.validation_tokens,
        test_tokens=300_000,
        recovery_windows=1000,
    )
    assert estimate_peak(shape, protocol, trains=False, climbs=False).num_bytes < rehearsal.GPU_BYTES


def test_the_small_model_has_the_middle_layers_kind() -> None:
    config = rehearsal.make_config(PRESETS["gemma-3-1b"]["shape"], name="gemma-3-1b")
    for name, value in {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 257, "head_dim": 8}.items():
        setattr(config, name, value)
    small = Anatomy(rehearsal.build_small(config, dtype=torch.float32, device=torch.device("cpu")))
    assert len(small.layers) == 2
    assert small.config.layer_types == [config.layer_types[0], config.layer_types[13]]
    assert config.num_hidden_layers == 26  # the given one is as it was
    assert not any(weight.requires_grad for weight in small.model.parameters())


def test_the_rehearsal_and_the_search_agree_given_the_same_speeds(
    make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_checkpoint("llama")
    settings = StudyConfig(model=str(path), recovery_text=str(text_file), studies_dir=tmp_path, **BUDGETS)
    monkeypatch.setattr(costs, "time_parts", lambda *_args, **_settings: SPEED)
    said = rehearse(settings)
    device = torch.device("cpu")
    bench, filled = workbench.open_for_search(
        resolve.resolve_config(settings),
        study=StudyFolder(tmp_path / "dry"),
        device=device,
        reference=describe_reference(device),
    )
    shape = describe_shape(bench)
    plan = costs.draft_plan(filled, bench.protocol, name="dry", shape=shape, speed=SPEED)
    cost = costs.estimate_cost(shape, bench.protocol, plan, SPEED, distill=True)
    for line in costs.describe_plan(bench.protocol, plan, cost):
        assert line in said
    assert "4 candidates" in said
    assert not list(tmp_path.iterdir())


def test_weights_are_never_read(make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((make_checkpoint("gpt2") / "config.json").read_bytes())
    said = rehearse(StudyConfig(model=str(bare), recovery_text=str(text_file), studies_dir=tmp_path, **BUDGETS))
    assert "3 of 4 layers: 4 candidates" in said
    characters = sum(len(text) for text in read_source(str(text_file), None).documents["recovery"])
    assert f"by its {characters:,} characters" in said  # there is no tokenizer either
    assert f"--model {bare}" in said.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]
    (bare / INDEX).write_text(json.dumps({"weight_map": {"wte.weight": "model-00001-of-00002.safetensors"}}))
    partial = rehearse(StudyConfig(model=str(bare), recovery_text=str(text_file), studies_dir=tmp_path, **BUDGETS))
    assert partial.splitlines()[0] == said.splitlines()[0]


def test_families_without_closed_form_are_rehearsed_too(
    make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path: Path
) -> None:
    settings = StudyConfig(
        model=str(make_checkpoint("gemma2")), recovery_text=str(text_file), studies_dir=tmp_path, **BUDGETS
    )
    said = rehearse(settings)
    assert "at rung short distillation" in said
    assert "a sweep" not in said
    with pytest.raises(ModelError, match="--proxy closed-form: not available"):
        rehearse(dataclasses.replace(settings, proxy="closed-form"))


def test_published_sizes_stand_in_for_text_that_is_not_at_hand() -> None:
    request = CorpusRequest(
        recovery="wikitext2",
        validation="hub:someone/texts",
        test=None,
        window_tokens=1024,
        recovery_tokens=50_000_000,
        validation_tokens=65_536,
        test_tokens=None,
    )
    source = ModelSource(location="openai-community/gpt2")
    streams = rehearsal.describe_text(request, source, vocabulary=50_257)
    assert streams["recovery"].tokens == 2_506_353 // 1024 * 1024
    assert streams["validation"].tokens == 65_536
    assert "unknown size" in streams["validation"].source
    assert streams["test"].tokens == pytest.approx(287_644, rel=0.03)
    small = rehearsal.describe_text(request, source, vocabulary=32_000)
    assert small["test"].tokens == pytest.approx(341_469, rel=0.01)


def test_options_that_make_it_fit_are_named() -> None:
    protocol = msgspec.structs.replace(PROTOCOL, window_tokens=2048)
    said = rehearsal.describe_fit(GPU, protocol, trains=True, climbs=False)
    assert said.startswith("does not fit one GPU of 24 GB")
    assert "With --lora-rank 16 at most" in said
    assert rehearsal.describe_fit(GPU, protocol, trains=False, climbs=False).startswith("fits one GPU of 24 GB")


def test_what_is_not_known_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither a known name, .* Did you mean tinyllama"):
        rehearse(StudyConfig(model="tinylama"))
    with pytest.raises(ModelError, match=r"shape is not known offline: .*hf download someone/model config.json"):
        rehearse(StudyConfig(model="someone/model"))
    with pytest.raises(ModelError, match="shape is not known offline"):  # another revision may be another model
        rehearse(StudyConfig(model="gpt2", revision="main"))
    with pytest.raises(ModelError, match=r"config.json is missing"):
        rehearse(StudyConfig(model=str(tmp_path), recovery_text="demo"))
    with pytest.raises(SpaceError, match="max_dropped = 12"):
        rehearse(StudyConfig(model="gpt2", max_dropped=12))
    with pytest.raises(
        SpaceError, match=r"^--lora-rank 100000: more than the model's width of 768, .* Give 768 or less"
    ):
        rehearse(StudyConfig(model="gpt2", lora_rank=100_000))
    with pytest.raises(ModelError, match=r"\[config\] of someone/gpt"):
        rehearsal.make_config(PRESETS["gpt2"]["shape"] | {"model_type": "no such family"}, name="someone/gpt")


def test_work_is_said_in_multiply_adds_and_in_hours_of_a_gpu() -> None:
    said = rehearsal.describe_work(9e16, 1.8e15)  # an hour each
    assert "about 9.2e16 multiply-adds (2e15 of them in float64) take 1 to 3 h at 50 TFLOP/s" in said
    assert "of them" not in rehearsal.describe_work(9e16, 0)
