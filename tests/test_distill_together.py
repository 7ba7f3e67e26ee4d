"""seed.distill as users run it over several processes: by accelerate launch, and by hand when something goes wrong."""

import json
import shutil
import socket
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from seed import study_dir
from seed.plans import SearchPlan
from seed.reporting.result_line import DistillLine, SearchLine
from tests import started
from tests.running import environment, read_line, run_seed, search_words

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


class Pair:
    """Two processes with what a launcher would tell them; the first may begin otherwise, the second run elsewhere."""

    def __init__(self, place: Path, *words: str, cwd: Path, first: str = "", second_cwd: Path | None = None) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = str(taken.getsockname()[1])
        self.place = place
        self.processes: list[BaseProcess] = []
        for rank in range(2):
            told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            self.processes.append(
                started.start(
                    ["seed.distill", *words],
                    cwd=second_cwd if second_cwd and rank == 1 else cwd,
                    out=place / f"{rank}.out",
                    err=place / f"{rank}.err",
                    prelude=f"import os; os.environ.update({told!r})\n{first if rank == 0 else ''}",
                )
            )

    def read(self, name: str) -> str:
        path = self.place / name
        return path.read_text() if path.exists() else ""

    def end(self) -> list[tuple[int | None, str, str]]:
        """Exit code, standard output and standard error of each process; they must end soon."""
        for process in self.processes:
            process.join(QUICK_SECONDS)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return [(code, self.read(f"{rank}.out"), self.read(f"{rank}.err")) for rank, code in enumerate(codes)]


def test_accelerate_launch_hands_back_what_one_process_does(searched, tmp_path):
    alone, together = (shutil.copytree(searched, tmp_path / name) for name in ("alone", "together"))
    [model] = read_line(run_seed("seed.distill", "studies/tiny", "--json", cwd=alone), SearchLine).models
    [trial] = [str(member["trial_number"]) for member in read(alone, "frontier.json")["members"]]
    words = [*ACCELERATE, "seed.distill", "studies/tiny", "--trial", trial, "--json"]
    done = subprocess.run(words, cwd=together, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert read_line(done, DistillLine).distilled.key == model.key
    assert done.stderr.count("to train in 2 processes") == done.stderr.count("report: ") == 1  # one process speaks
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
    first, second = Pair(tmp_path, "studies/tiny", cwd=searched, second_cwd=tmp_path).end()
    assert first == (2, "", "")
    assert second[:2] == (2, "")
    assert second[2].startswith("error: studies/tiny: not a study")


def test_processes_that_see_different_folders_do_not_train(searched, tmp_path):
    path = shutil.copytree(searched, tmp_path / "other")
    plan = study_dir.read_record(path / "studies" / "tiny" / "plan.json", SearchPlan)
    changed = msgspec.structs.replace(plan, identity=plan.identity | {"rng_seed": 7})
    study_dir.write_record(path / "studies" / "tiny" / "plan.json", changed)
    first, second = Pair(tmp_path, "studies/tiny", cwd=searched, second_cwd=path).end()
    assert first[0] == 2
    assert first[2].startswith("error: the 2 processes of this run see different folders")
    assert second == (2, "", "")


def test_a_full_disk_ends_both(searched, tmp_path):
    path = shutil.copytree(searched, tmp_path / "full")
    first, second = Pair(tmp_path, "studies/tiny", cwd=path, first=FULL_DISK).end()
    assert first[0] == second[0] == 2
    assert "the disk does not take" in first[2] or "cannot be written" in first[2]
    assert "Traceback" not in first[2]
    assert second[1:] == ("", "")
    assert not list((path / "studies" / "tiny").rglob("model.safetensors"))


def test_a_killed_process_ends_the_other(searched, tmp_path):
    path = shutil.copytree(searched, tmp_path / "killed")
    pair = Pair(tmp_path, "studies/tiny", "--distill-tokens=10000000", cwd=path)
    until = time.monotonic() + QUICK_SECONDS
    while "training for" not in pair.read("0.out"):
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(2)
    pair.processes[1].kill()
    (code, _, error), (killed, *_) = pair.end()
    assert (code, killed) == (2, -9)
    assert error.startswith("error: another of the 2 processes of this run ended")
    assert error.count("\n") == 1
