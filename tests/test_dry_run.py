"""A dry run needs the shape alone: presets' shapes are the models', formulas are the search's, nothing is written."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seed import cost, dry_run, resolve, sessions
from seed.config import StudyConfig
from seed.cost import Shape
from seed.data.corpus import CorpusRequest, read_source
from seed.errors import ModelError, SpaceError
from seed.models.anatomy import Anatomy
from seed.models.loader import ModelSource
from seed.protocols import describe_reference
from seed.resolve import list_presets, read_preset
from seed.speed import Speed
from seed.study_dir import StudyFolder
from tests.test_cost import GPU, GPU_PROTOCOL, measure

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
    plan = cost.draft_plan(filled, session.protocol, name="dry", shape=shape, speed=speed)
    found = cost.estimate_cost(shape, session.protocol, plan, speed, distill=True)
    for line in cost.describe_plan(session.protocol, plan, found):
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
    def describe(shape: Shape = GPU, *, trains: bool = False) -> str:
        return dry_run.describe_fit(shape, GPU_PROTOCOL, trains=trains)

    said = describe(trains=True)
    assert said.startswith("does not fit one GPU of 24 GB")
    assert "With --lora-rank 16 at most" in said
    assert describe().startswith("fits one GPU of 24 GB")  # the sweep of the reported model does
    double, triple = (dataclasses.replace(GPU, num_params=n * GPU.num_params, layer_params=0) for n in (2, 3))
    assert "With --dtype bfloat16 at most" in describe(triple)
    assert "With --lora-rank 16 --dtype bfloat16 at most" in describe(double, trains=True)
    assert "With" not in describe(dataclasses.replace(GPU, num_params=10**11))


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
