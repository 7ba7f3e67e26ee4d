"""seed.distill as users run it over several processes: by accelerate launch, and by hand when something goes wrong."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from seed import study_dir
from seed.plans import SearchPlan
from seed.reporting.result_line import DistillLine, SearchLine
from tests.running import environment, read_line, run_seed, search_words
from tests.started import Pair

# without a GPU these are CPU processes
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "-m"]
QUICK_SECONDS = 60.0  # of starting two processes and ending them on a busy machine; a hang takes days
FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))
"""


@pytest.fixture(scope="module")
def searched(make_checkpoint, text_file, tmp_path_factory) -> Path:
    """A folder with a study that is not distilled; text counts in its objective, so that a random model improves."""
    path = tmp_path_factory.mktemp("searched")
    words = search_words(make_checkpoint(), text_file, "--study=tiny", "--no-distill", "--ce-share=0.5")
    run_seed(*words, "--max-dropped=1", "--frontier-size=1", cwd=path)
    return path


def run_pair(place: Path, *words: str, **more: Any) -> list[tuple[int | None, str, str]]:
    """Run ``seed.distill`` in two processes; see ``Pair.end``."""
    return Pair("seed.distill", "studies/tiny", *words, place=place, **more).end(seconds=QUICK_SECONDS)


@pytest.mark.parametrize("launcher", ["none", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_two_processes_hand_back_what_one_does(launcher, searched, tmp_path):
    alone, together = (shutil.copytree(searched, tmp_path / name) for name in ("alone", "together"))
    [model] = read_line(run_seed("seed.distill", "studies/tiny", "--json", cwd=alone), SearchLine).models
    [trial] = [str(member["trial_number"]) for member in read(alone, "frontier.json")["members"]]
    if launcher == "accelerate":
        words = [*ACCELERATE, "seed.distill", "studies/tiny", "--trial", trial, "--json"]
        done = subprocess.run(words, cwd=together, env=environment(), capture_output=True, text=True, timeout=280)
    else:
        first, second = run_pair(tmp_path, "--trial", trial, "--json", cwd=together)
        assert second == (0, "", "")
        done = subprocess.CompletedProcess([], *first)
    assert done.returncode == 0, done.stderr
    assert read_line(done, DistillLine).distilled.key == model.key
    assert done.stderr.count("to train in 2 processes") == done.stderr.count("open: ") == 1  # one process speaks
    expected, found = (read(path, f"distilled/{model.key}.json") for path in (alone, together))
    assert found["best_step"] == expected["best_step"] > 0
    curve = [point["validation_loss"] for point in expected["curve"]]
    assert [point["validation_loss"] for point in found["curve"]] == pytest.approx(curve, rel=1e-4)
    assert found["test"]["loss"] == pytest.approx(expected["test"]["loss"], rel=1e-4)
    assert found["validation"]["loss"] == pytest.approx(min(curve), rel=1e-4)  # what was judged is what was exported
    weights, wanted = (
        load_file(path / "studies" / "tiny" / "models" / model.key / "model.safetensors") for path in (together, alone)
    )
    assert weights.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-4)
    again = run_seed("seed.distill", "studies/tiny", cwd=together)
    assert again.stdout == "studies/tiny: every member of the frontier is distilled\n"


def read(cwd: Path, name: str) -> dict:
    return json.loads((cwd / "studies" / "tiny" / name).read_text())


def test_what_one_process_finds_wrong_ends_both(searched, tmp_path):
    first, second = run_pair(tmp_path, cwd=searched, second_cwd=tmp_path)
    assert first == (2, "", "")
    assert second[:2] == (2, "")
    assert second[2].startswith("error: studies/tiny: not a study")


UNOPENED = """
from seed import errors, sessions
def reopen(*_args, **_more): raise errors.ModelError("the model changed since")
sessions.reopen = reopen
"""


def test_a_model_that_one_process_cannot_open_ends_both(searched, tmp_path):
    first, second = run_pair(tmp_path, cwd=searched, first_prelude=UNOPENED)
    assert first[0] == 2
    assert first[2].endswith("error: the model changed since\n")
    assert second == (2, "", "")


def test_processes_that_see_different_folders_do_not_train(searched, tmp_path):
    path = shutil.copytree(searched, tmp_path / "other")
    place = path / "studies" / "tiny" / "plan.json"
    plan = study_dir.read_record(place, SearchPlan)
    study_dir.write_record(place, replace(plan, protocol=replace(plan.protocol, rng_seed=7)))
    first, second = run_pair(tmp_path, cwd=searched, second_cwd=path)
    assert first[0] == 2
    assert first[2].startswith("error: the 2 processes of this run see different folders")
    assert second == (2, "", "")


@pytest.mark.slow
def test_a_full_disk_ends_both(searched, tmp_path):
    path = shutil.copytree(searched, tmp_path / "full")
    first, second = run_pair(tmp_path, cwd=path, first_prelude=FULL_DISK)
    assert first[0] == second[0] == 2
    assert "the disk does not take" in first[2] or "cannot be written" in first[2]
    assert "Traceback" not in first[2]
    assert second[1:] == ("", "")
    assert not list((path / "studies" / "tiny").rglob("model.safetensors"))


def test_a_killed_process_ends_the_other(searched, tmp_path):
    path = shutil.copytree(searched, tmp_path / "killed")
    pair = Pair("seed.distill", "studies/tiny", "--distill-tokens=10000000", place=tmp_path, cwd=path)
    until = time.monotonic() + QUICK_SECONDS
    while "training for" not in pair.read("0.out"):
        assert time.monotonic() < until
        time.sleep(0.1)
    pair.processes[1].kill()
    (code, _, error), (killed, *_) = pair.end(seconds=QUICK_SECONDS)
    assert (code, killed) == (2, -9)
    assert error.startswith("error: another of the 2 processes of this run ended")
    assert error.count("\n") == 1
