"""Searches and distillations that something befalls: losses without numbers, kills, full disks, torn files, a lost database."""

import json
import resource
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch
import transformers

from seed.models.checkpoint import is_whole
from seed.optimize.storage import open_storage
from tests.conftest import make_config, make_tokenizer
from tests.test_commands import error_of, run_seed, search_words
from tests.test_workers import RUNG_2, Search, has_scored, require_whole
from tests.test_workers import start as start  # a fixture


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose second layer overflows where the first is gone, which holds one neuron of it shut."""
    config = make_config("llama", num_layers=4)
    config.mlp_bias = True
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1)
        model.model.layers[0].mlp.down_proj.bias[0] = 10
        mlp = model.model.layers[1].mlp
        mlp.gate_proj.weight[0] = 0
        mlp.gate_proj.weight[0, 0] = -1e6
        mlp.up_proj.weight[0] *= 1e20
        mlp.down_proj.weight[:, 0] *= 1e20
    path = tmp_path_factory.mktemp("fragile")
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


WAYS = {
    "closed form": ["--rung=1"],
    "short distillation": ["--rung=2", "--short-steps=1", "--no-screen", "--storage=sqlite:///trials.db"],
}


@pytest.mark.parametrize("rung", WAYS)
def test_a_set_whose_loss_is_no_number_has_no_value_and_says_why(fragile, text_file, tmp_path, rung):
    words = search_words(fragile, text_file, "--study=fragile", "--no-distill", "--max-dropped=2", *WAYS[rung])
    done = run_seed(*words, cwd=tmp_path)
    assert "3 candidates have no value, since their loss is not a finite number; their trials say so" in done.stdout
    assert "scored 7 of 10 candidates" in done.stdout
    root = tmp_path / "studies" / "fragile"
    url = f"sqlite:///{tmp_path / 'trials.db'}" if rung == "short distillation" else None
    study = optuna.load_study(storage=open_storage(url, journal=root / "journal.log"), study_name="fragile")
    reasons = {trial.user_attrs["dropped"]: trial.user_attrs.get("failed") for trial in study.trials}
    reason = f"the loss of this set ({rung}) is not a finite number"
    assert {dropped: why for dropped, why in reasons.items() if why} == {"0": reason, "0, 2": reason, "0, 3": reason}
    assert len(study.trials) == len(reasons) == 10
    assert reason in (root / "report.html").read_text()
    members = json.loads((root / "frontier.json").read_text())["members"]
    assert not {(0,), (0, 2), (0, 3)} & {
        tuple(set(range(4)) - set(m["evaluation"]["candidate"]["kept_layers"])) for m in members
    }
    if rung == "short distillation":  # none of them is asked for again
        assert "7 candidates were scored before" in run_seed(*words, cwd=tmp_path).stdout
        assert len(study.get_trials()) == 10


def read_times(search: Search) -> dict[str, int]:
    """When the record of each finished model was written."""
    return {path.stem: path.stat().st_mtime_ns for path in search.folder.root.glob("distilled/*.json")}


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_disk_that_fills_up_and_torn_files_end_in_one_error_or_are_mended(start: Callable[..., Search]) -> None:
    full = start(*RUNG_2)
    full.wait_until(has_scored(full, 2))
    journal = full.folder.journal.stat().st_size
    resource.prlimit(full.process.pid, resource.RLIMIT_FSIZE, (journal, journal))  # as when the disk is full
    assert full.end() == 2, full.read()
    [error] = [line for line in full.read().splitlines() if line.startswith("error: ")]
    assert "the disk does not take" in error or "cannot be written" in error
    assert "Traceback" not in full.read()
    assert not list(full.folder.root.rglob(".*.new"))
    assert not full.folder.models.exists()
    before = full.list_scored()

    again = start(*RUNG_2)
    assert again.end() == 0, again.read()
    assert f"{len(before)} candidates were scored before" in again.read()
    require_whole(again)
    assert set(before) <= set(again.list_scored())

    times = read_times(again)
    good, bad = sorted(times)
    record = again.folder.result(bad)
    truncate(record)
    torn = run_seed(*again.words, cwd=again.place, code=2)
    assert f"{bad}.json: cannot be read" in error_of(torn)
    assert "Remove this file and run the search of this study again" in error_of(torn)
    record.unlink()
    [weights] = again.folder.model(bad).glob("*.safetensors")
    truncate(weights)
    progress = again.folder.work / f"distill-{bad}.pt"
    torch.save({"step": 1}, progress)
    truncate(progress)
    mended = run_seed(*again.words, cwd=again.place)
    assert "Distilled frontier" in mended.stdout
    require_whole(again)
    found = read_times(again)
    assert found.keys() == times.keys()
    assert found[good] == times[good]
    for key in times:
        assert is_whole(again.folder.model(key))
    assert not progress.exists()
