"""Searches and distillations that something befalls: losses without numbers, kills, full disks, torn files."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import transformers

from seed.config import StudyConfig
from seed.errors import StudyError
from seed.models.provenance import find_damage
from seed.optimize.storage import open_storage
from seed.scores import ScoreStore
from seed.search import search
from seed.study_dir import StudyFolder
from tests import started
from tests.conftest import MakeCheckpoint, make_config, make_tokenizer
from tests.finished import SMALL, Finished, Heard
from tests.running import search_words

TRIALS = 9
SHORT = [
    "--proxy=short-distillation",
    "--short-steps=2",
    f"--trials={TRIALS}",
    "--sweep-budget=0",
    "--no-screen",
    "--frontier-size=2",
]


class Search:
    """A search as a user starts it, and what it says."""

    def __init__(self, model: Path, text: Path, place: Path, *more: str, prelude: str = "") -> None:
        self.place = place
        self.words = search_words(model, text, "--study=tiny", *more)
        self.folder = StudyFolder(place / "studies" / "tiny")
        self.output = place / f"output-{len(list(place.glob('output-*')))}.txt"
        self.process = started.start(self.words, cwd=place, out=self.output, prelude=prelude)

    def read(self) -> str:
        return self.output.read_text()

    def wait_until(self, is_so: Callable[[], bool], *, seconds: float = 200) -> None:
        until = time.monotonic() + seconds
        while not is_so():
            assert self.process.exitcode is None, self.read()
            assert time.monotonic() < until, self.read()
            time.sleep(0.05)

    def end(self, *, seconds: float = 250) -> int:
        self.process.join(seconds)
        assert self.process.exitcode is not None, self.read()
        return self.process.exitcode

    def list_scored(self) -> list[tuple[int, str]]:
        """Numbers and keys of the candidates that carry a value."""
        if not self.folder.scores.exists():
            return []
        with ScoreStore(self.folder.scores, read_only=True) as store:
            records = store.read_trials()
        return [(record.number, record.evaluation.candidate.key) for record in records if record.state == "COMPLETE"]


def has_scored(search: Search, count: int) -> Callable[[], bool]:
    return lambda: len(search.list_scored()) >= count


def require_whole(search: Search) -> None:
    """Check that a search ended with its budget kept to the trial, and with whole models."""
    found = search.list_scored()
    assert len(found) == len({key for _, key in found}) == TRIALS
    with ScoreStore(search.folder.scores, read_only=True) as store:
        assert {row.key for row in store.read_rows()} >= {key for _, key in found}
    models = sorted(path.name for path in search.folder.models.iterdir())
    assert models == sorted(read_times(search))
    assert len(models) == 2
    for key in models:
        assert find_damage(search.folder.model(key)) is None
    assert search.folder.report.is_file()
    assert not list(search.folder.root.rglob(".*.new"))


@pytest.fixture
def start(make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path: Path) -> Iterator[Callable[..., Search]]:
    """Return what starts a search; whatever still runs in the end is killed."""
    started: list[Search] = []

    def make(*more: str, prelude: str = "") -> Search:
        started.append(Search(make_checkpoint("llama", num_layers=6), text_file, tmp_path, *more, prelude=prelude))
        return started[-1]

    yield make
    for one in started:
        one.process.kill()
        one.process.join()


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


WAYS: dict[str, dict[str, Any]] = {
    "closed-form": {},
    "short-distillation": {"short_steps": 1, "screen": False},
}


@pytest.mark.parametrize("proxy", WAYS)
def test_a_set_whose_loss_is_no_number_has_no_value_and_says_why(
    proxy: str, fragile: Path, text_file: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'trials.db'}" if proxy == "short-distillation" else None
    told = (
        SMALL | WAYS[proxy] | {"proxy": proxy, "model": str(fragile), "recovery_text": str(text_file), "storage": url}
    )
    settings, terminal = StudyConfig(**told, studies_dir=tmp_path, study="fragile", distill=False), Heard()
    record = search(settings, terminal)
    said = "\n".join(terminal.lines)
    assert (
        "3 candidates were left without a value, since their loss is not a finite number; their trials say so" in said
    )
    assert "scored 7 of 10 candidates" in said
    root = tmp_path / "fragile"
    study = optuna.load_study(storage=open_storage(url, journal=root / "journal.log"), study_name="fragile")
    reasons = {trial.user_attrs["dropped"]: trial.user_attrs.get("failed") for trial in study.trials}
    reason = f"the loss of this set ({proxy}) is not a finite number"
    assert {dropped: why for dropped, why in reasons.items() if why} == {"0": reason, "0, 2": reason, "0, 3": reason}
    assert len(study.trials) == len(reasons) == 10
    assert reason in (root / "report.html").read_text()
    members = {member.evaluation.candidate.dropped_layers for member in record.frontier.members}
    assert not {(0,), (0, 2), (0, 3)} & members
    if url is not None:  # none of them is asked for again
        again = Heard()
        search(settings, again)
        assert "7 candidates were scored before" in "\n".join(again.lines)
        assert len(study.get_trials()) == 10


@pytest.mark.timeout(900)  # seconds; one after another, some searches
def test_a_search_that_is_killed_or_asked_to_stop_goes_on_with_the_same_command(start: Callable[..., Search]) -> None:
    before: set[tuple[int, str]] = set()
    kill, term, interrupt = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
    for count, signals, codes in (
        (2, [kill], [-kill]),
        (4, [term], [128 + term]),
        (6, [interrupt, interrupt], [128 + interrupt, -interrupt]),
    ):
        search = start(*SHORT)
        search.wait_until(has_scored(search, count))
        for number in signals:
            os.kill(search.process.pid, number)
        assert search.end(seconds=60) in codes
        assert "Traceback" not in search.read()
        assert ("run the same command again to go on" in search.read()) == (search.process.exitcode > 0)
        assert before <= set(search.list_scored())
        before = set(search.list_scored())
    again = start(*SHORT)
    assert again.end() == 0, again.read()
    assert f"{len(before)} candidates were scored before" in again.read()
    require_whole(again)
    assert before <= set(again.list_scored())


def read_times(search: Search) -> dict[str, int]:
    """When the record of each finished model was written."""
    return {path.stem: path.stat().st_mtime_ns for path in search.folder.root.glob("distilled/*.json")}


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_torn_files_end_in_one_error_or_are_mended(finished_study: Finished, tmp_path: Path) -> None:
    study = finished_study.copy(tmp_path)
    settings = replace(finished_study.settings, studies_dir=study.root.parent)
    good, bad = sorted(path.stem for path in study.distilled.iterdir())
    written, record = study.result(good).stat().st_mtime_ns, study.result(bad)
    truncate(record)
    with pytest.raises(StudyError, match=f"{bad}.json: cannot be read.*Remove this file and run the command again"):
        search(settings, Heard())
    record.unlink()
    [weights] = study.model(bad).glob("*.safetensors")
    truncate(weights)
    progress = study.work / f"distill-{bad}-0.pt"
    torch.save({"step": 1}, progress)
    truncate(progress)
    search(settings, Heard())
    assert record.is_file()
    assert study.result(good).stat().st_mtime_ns == written
    assert not progress.exists()
    assert {key: find_damage(study.model(key)) for key in (good, bad)} == {good: None, bad: None}


MOMENTS = ("trained", "half written", "unrecorded", "finished")
# Each of these moments kills the process that comes there first.
KILLER = """
import io, os, re, signal

def die_at(moment):
    try:
        os.unlink(os.path.join(MOMENTS, moment))
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
        die_at("unrecorded")

def replace_or_die(source, target, **more):
    plain_replace(source, target, **more)
    if "/distilled/" in str(target):
        die_at("finished")
    if "/work/distill-" in str(target):
        die_at("trained")

from seed.distillation import loop

loop.CHECKPOINT_SECONDS = -1.0
plain_open, plain_rename, plain_replace = io.open, os.rename, os.replace
io.open, os.rename, os.replace = open_or_die, rename_or_die, replace_or_die
"""


@pytest.mark.timeout(900)  # seconds; one after another, some searches
def test_a_pass_that_is_killed_while_it_exports_loses_no_model_and_makes_none_twice(
    start: Callable[..., Search], tmp_path: Path
) -> None:
    moments = tmp_path / "moments"
    moments.mkdir()
    for moment in MOMENTS:
        (moments / moment).touch()
    words = ["--max-dropped=2", "--frontier-size=3", "--distill-tokens=20000"]  # two steps
    times: dict[str, int] = {}
    for left in range(len(MOMENTS) - 1, -1, -1):
        killed = start(*words, prelude=f"MOMENTS = {str(moments)!r}\n{KILLER}")
        assert killed.end() == -signal.SIGKILL, killed.read()
        assert len(list(moments.iterdir())) == left
        found = read_times(killed)
        assert found == found | times
        times = found
    assert times
    again = start(*words)
    assert again.end() == 0, again.read()
    found = read_times(again)
    assert len(found) == 3
    assert found == found | times  # what was finished is as it was
    assert sorted(path.name for path in again.folder.models.iterdir()) == sorted(found)
    for key in found:
        assert find_damage(again.folder.model(key)) is None
