"""A dry run needs the shape alone: presets' shapes are the models', formulas are the search's, nothing is written."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seed import cost, dry_run, resolve, sessions
from seed.assumed_speed import LAUNCH_SECONDS, find_device
from seed.config import StudyConfig
from seed.cost import Estimator
from seed.data.corpus import CorpusRequest, read_source
from seed.dry_run import DryRun
from seed.errors import ModelError, ResourceError, SpaceError
from seed.models.anatomy import Anatomy
from seed.models.loader import ModelSource
from seed.protocols import describe_reference
from seed.resolve import list_presets, read_preset
from seed.speed import Speed
from seed.study_dir import StudyFolder
from tests.test_cost import GPU, GPU_PROTOCOL, SPEED, measure

MakeCheckpoint = Callable[..., Path]
CPU, META = torch.device("cpu"), torch.device("meta")
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


def run(settings: StudyConfig) -> str:
    lines: list[str] = []
    dry_run.run(resolve.resolve_config(settings), name="dry", say=lines.append)
    return "\n".join(lines)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "demo"])
def test_a_presets_shape_is_its_models(name: str) -> None:
    preset = PRESETS[name]
    config = dry_run.make_config(preset["shape"], name=name)
    model = dry_run.build(config, device=META)
    assert sum(weight.numel() for weight in model.parameters()) == preset["num_params"]
    anatomy = Anatomy(model)
    assert len(anatomy.layers) == preset["num_layers"]
    assert preset["window_tokens"] <= anatomy.config.max_position_embeddings
    small = Anatomy(
        dry_run.build(dry_run.shorten(config), device=META)
    )  # has the kinds of the first, the middle and the last
    kinds = getattr(anatomy.config, "layer_types", None)
    assert len(small.layers) == 4
    assert kinds is None or small.config.layer_types == [kinds[0], kinds[len(kinds) // 2], *kinds[-2:]]
    assert config.get_text_config().num_hidden_layers == preset["num_layers"]  # is as it was


def test_a_dry_run_and_the_search_agree_given_the_same_speeds(
    make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_checkpoint("llama")
    settings = StudyConfig(model=str(path), recovery_text=str(text_file), studies_dir=tmp_path, **BUDGETS)
    same = Speed(layer=1e-6, head=1e-5, recovery=(0.5, 0.0), step=1e-3, num_layers=4)
    monkeypatch.setattr(cost, "time_parts", lambda *_args, **_settings: same)
    said = run(settings)
    session, filled = sessions.open_for_search(
        resolve.resolve_config(settings),
        study=StudyFolder(tmp_path / "dry"),
        device=CPU,
        reference=describe_reference(CPU),
    )
    shape, speed = measure(session)
    estimator = Estimator(protocol=session.protocol, shape=shape, speed=speed)
    plan = estimator.draft_plan(filled, name="dry")
    found = estimator.estimate_cost(plan, distill=True)
    for line in cost.describe_plan(plan, found):
        assert line in said
    assert "4 candidates" in said
    assert not list(tmp_path.iterdir())


def test_weights_are_never_read(make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((make_checkpoint("gpt2") / "config.json").read_bytes())
    said = run(StudyConfig(model=str(bare), recovery_text=str(text_file), studies_dir=tmp_path, **BUDGETS))
    assert "3 of 4 layers: 4 candidates" in said
    characters = sum(len(text) for text in read_source(str(text_file), None).documents["recovery"])
    assert f"by its {characters:,} characters" in said  # there is no tokenizer either
    assert f"--model {bare}" in said.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]


def test_families_without_closed_form_have_no_sweep(
    make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path: Path
) -> None:
    settings = StudyConfig(
        model=str(make_checkpoint("opt_post_norm")), recovery_text=str(text_file), studies_dir=tmp_path, **BUDGETS
    )
    said = run(settings)
    assert "scored by short distillation" in said
    assert "a sweep" not in said
    with pytest.raises(ModelError, match="--proxy closed-form: not available"):
        run(dataclasses.replace(settings, proxy="closed-form"))


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
    streams = dry_run.describe_text(request, ModelSource(location="openai-community/gpt2"))
    assert {name: stream.tokens for name, stream in streams.items()} == {
        "recovery": 2651 * 1024,
        "validation": 65_536,
        "test": 311 * 1024,
    }
    assert "unknown size" in streams["validation"].source


def test_options_that_make_it_fit_are_named() -> None:
    def describe(times: int = 1, *, trains: bool = False, size: int = 24) -> str:
        shape = dataclasses.replace(GPU, num_params=times * GPU.num_params, gpu_bytes=size * 10**9)
        return dry_run.describe_fit(Estimator(protocol=GPU_PROTOCOL, shape=shape, speed=SPEED), trains=trains)

    assert describe(trains=True).startswith("fits one GPU of 24 GB")
    said = describe(trains=True, size=22)
    assert said.startswith("does not fit one GPU of 22 GB")
    assert "With --dtype bfloat16 at most" in said
    assert "With --lora-rank 16 --dtype bfloat16 at most" in describe(2, trains=True)
    assert "With" not in describe(100)


def test_a_device_that_is_not_here_is_planned_for_by_its_published_rates(
    make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path: Path
) -> None:
    path = make_checkpoint("llama")

    def plan(device: str, **options: Any) -> DryRun:
        settings = StudyConfig(model=str(path), recovery_text=str(text_file), studies_dir=tmp_path)
        return dry_run.plan_search(
            resolve.resolve_config(dataclasses.replace(settings, **BUDGETS | {"device": device} | options)), name="dry"
        )

    here, cpu, gpu = plan("cpu"), plan("cpu:16GB"), plan("cuda:24GB")
    shape = here.estimator.shape
    assert cpu.estimator.shape == shape
    assert gpu.estimator.shape == dataclasses.replace(shape, gpu_bytes=24 * 10**9)
    assert gpu.estimator.speed.head < cpu.estimator.speed.head
    # tiny layers are done sooner than they are started
    assert gpu.estimator.speed.step == pytest.approx(4 * LAUNCH_SECONDS)
    assert gpu.plan.protocol.mixed_precision
    said = run(gpu.settings)
    assert "of disk, on a GPU with 24 GB" in said
    assert "nothing was timed: 50 % of the published rates of a GeForce RTX 4090, TFLOP/s 165 in bfloat16" in said
    assert "fits one GPU of 24 GB" in said
    assert said.splitlines()[-1].startswith("run it there: ")
    assert "--device" not in said.splitlines()[-1]
    with pytest.raises(ResourceError, match=r"but cuda:1MB has 1\.00.MB"):
        run(dataclasses.replace(gpu.settings, device="cuda:1MB"))
    with pytest.raises(ResourceError, match=r"--time 0 s: even so little takes .* on a CPU with 16 GB"):
        run(cpu.settings.change(time=1e-3))


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("cuda:16GB", "RTX 4090"),
        ("cuda:48 GB", "RTX 4090"),
        ("CUDA:80gb", "A100"),
        ("cuda:141GB", "A100"),
        ("cpu:8GB", "AVX2"),
        ("cuda:1", None),
        ("cuda:4.4.4GB", None),
        (None, None),
    ],
)
def test_devices_are_named_by_their_memory(name: str | None, like: str | None) -> None:
    found = find_device(name)
    assert (found is None) == (like is None)
    assert found is None or str(like) in found.like


def test_what_is_not_known_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither a known name, .* Did you mean tinyllama"):
        run(StudyConfig(model="tinylama"))
    with pytest.raises(ModelError, match=r"shape is not known offline: .*hf download someone/model config.json"):
        run(StudyConfig(model="someone/model"))
    with pytest.raises(ModelError, match="shape is not known offline"):  # another revision may be another model
        run(StudyConfig(model="gpt2", revision="main"))
    with pytest.raises(ModelError, match=r"config\.json: is missing"):
        run(StudyConfig(model=str(tmp_path), recovery_text="demo"))
    with pytest.raises(SpaceError, match="max_dropped = 12"):
        run(StudyConfig(model="gpt2", max_dropped=12))
    with pytest.raises(
        SpaceError, match=r"^--lora-rank 100000: more than the model's width of 768, .* Give 768 or less"
    ):
        run(StudyConfig(model="gpt2", lora_rank=100_000))
    with pytest.raises(ModelError, match=r"\[config\] of someone/gpt"):
        dry_run.make_config(PRESETS["gpt2"]["shape"] | {"model_type": "no such family"}, name="someone/gpt")
