"""Searches and distillations that something befalls: losses without numbers, kills, full disks, torn files, a lost database."""

import contextlib
import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch
import transformers
from tests.test_workers import RUNG_2, Search, has_scored, is_running, require_whole
from tests.test_workers import start as start  # a fixture

from seed.models.integrity import find_damage
from seed.optimize.storage import open_storage
from tests.conftest import make_config, make_tokenizer
from tests.test_commands import environment, error_of, run_seed, search_words


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
    assert (
        "3 candidates were left without a value, since their loss is not a finite number; their trials say so"
        in done.stdout
    )
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
        assert find_damage(again.folder.model(key)) is None
    assert not progress.exists()


# Python imports it in every process. Each of three moments of an export kills the process that comes there first.
KILLER = """
import io, os, re, signal

def die_at(moment):
    try:
        os.unlink(os.path.join(os.environ["MOMENTS"], moment))
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)

def open_or_die(file, *args, **more):
    if re.search(r"/models/\\.[^/]+\\.new/README.md$", str(file)):
        die_at("half written")
    return plain_open(file, *args, **more)

def rename_or_die(source, target, **more):
    plain_rename(source, target, **more)
    if re.search(r"/models/\\.[^/]+\\.new$", str(source)):
        die_at("not judged")

def replace_or_die(source, target, **more):
    plain_replace(source, target, **more)
    if "/distilled/" in str(target):
        die_at("finished")

plain_open, plain_rename, plain_replace = io.open, os.rename, os.replace
io.open, os.rename, os.replace = open_or_die, rename_or_die, replace_or_die
"""


def kill_all(search: Search) -> None:
    """Kill a search and its workers, and wait until they are gone."""
    search.process.send_signal(signal.SIGSTOP)  # it starts no further ones
    workers = search.list_workers()
    search.process.kill()
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    search.end()
    until = time.monotonic() + 60
    while any(map(is_running, workers)):
        assert time.monotonic() < until
        time.sleep(0.2)


def test_workers_killed_while_they_distil_and_export_lose_no_model_and_make_none_twice(
    start: Callable[..., Search], tmp_path: Path
) -> None:
    moments, hooks = tmp_path / "moments", tmp_path / "hooks"
    for path in (moments, hooks):
        path.mkdir()
    for moment in ("half written", "not judged", "finished"):
        (moments / moment).touch()
    (hooks / "sitecustomize.py").write_text(KILLER)
    killer = {"PYTHONPATH": f"{hooks}:{environment()['PYTHONPATH']}", "MOMENTS": str(moments)}
    words = ["--workers=2", "--frontier-size=4", "--max-dropped=2"]
    killed = start(*words, **killer)
    killed.wait_until(lambda: not list(moments.iterdir()))
    first = read_times(killed)  # when each model was finished
    time.sleep(random.Random(0).uniform(0, 0.5))  # wherever they are by now
    kill_all(killed)
    first = read_times(killed) | first
    assert first
    for path in killed.folder.models.iterdir():
        assert path.name.startswith(".") or find_damage(path) is None

    again = start(*words)
    assert again.end() == 0, again.read()
    found = read_times(again)
    assert len(found) == 4
    assert found == found | first  # what was finished is as it was
    assert sorted(path.name for path in again.folder.models.iterdir()) == sorted(found)
    for key in found:
        assert find_damage(again.folder.model(key)) is None
