"""A model's directory is looked at before anything is read whole: what never ends, and layers that no model has, are refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seed.dry_run import read_config
from seed.errors import ModelError
from seed.models.checkpoint import load_checkpoint
from seed.models.copying import count_layers
from seed.models.teacher import ModelSource, open_teacher
from tests.conftest import MakeCheckpoint

CPU = torch.device("cpu")
DOORS: dict[str, Callable[[Path], object]] = {
    "search": lambda path: open_teacher(ModelSource(location=str(path)), device=CPU, dtype_name=None),
    "dry run": lambda path: read_config(ModelSource(location=str(path)), None, revision=None),
    "evaluate": lambda path: load_checkpoint(path, device=CPU, dtype=torch.float32),
    "export": count_layers,
}


@pytest.fixture
def checkpoint(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_checkpoint("llama"), tmp_path / "model"))


def change_config(path: Path, **changes: object) -> None:
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize("door", DOORS)
def test_a_billion_layers_are_refused_at_every_door(checkpoint: Path, door: str) -> None:
    change_config(checkpoint, num_hidden_layers=10**9)
    with pytest.raises(
        ModelError, match=r"config\.json: num_hidden_layers = 1000000000, and no model has more than 10,000"
    ):
        DOORS[door](checkpoint)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_files_that_never_end_are_refused_at_every_door(checkpoint: Path, door: str, name: str) -> None:
    (checkpoint / name).unlink(missing_ok=True)
    if name.startswith("tokenizer"):
        os.mkfifo(checkpoint / name)
    else:
        (checkpoint / name).symlink_to("/dev/zero")
    with pytest.raises(ModelError, match=rf"{name}: a pipe or a device"):
        DOORS[door](checkpoint)


def test_files_of_gigabytes_and_what_is_nested_without_end_are_refused(checkpoint: Path) -> None:
    change_config(checkpoint, text_config={"n_layer": 20_000})
    with pytest.raises(ModelError, match="n_layer = 20000, "):
        DOORS["search"](checkpoint)
    (checkpoint / "config.json").write_text("[" * 200_000)
    with pytest.raises(ModelError, match=r"config\.json: not valid JSON"):
        DOORS["search"](checkpoint)
    with (checkpoint / "config.json").open("r+b") as handle:
        handle.truncate(2 * 2**30)
    with pytest.raises(ModelError, match=r"config\.json: 2,048 MB, and such a file has less than 16 MB"):
        DOORS["search"](checkpoint)


@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_part_of_a_model_may_lie_beside_it(checkpoint: Path, door: str) -> None:
    for name in ("corpus.txt", "trainer_log.json"):
        with (checkpoint / name).open("wb") as handle:
            handle.truncate(600 * 2**20)
    os.mkfifo(checkpoint / "progress.txt")
    DOORS[door](checkpoint)
    with (checkpoint / "vocab.json").open("wb") as handle:
        handle.truncate(600 * 2**20)
    with pytest.raises(ModelError, match=r"vocab\.json: 600 MB, and such a file has less than 512 MB"):
        DOORS[door](checkpoint)
