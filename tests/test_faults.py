"""Searches and distillations that something befalls: losses without numbers, kills, full disks, torn files."""

import os
import shlex
import signal
import time
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
from seed.resolve import typed_command
from seed.scores import ScoreStore
from seed.search import search
from seed.study_dir import StudyFolder
from tests import started
from tests.conftest import make_config, make_tokenizer
from tests.finished import SMALL, Finished, Heard

TRIALS = 6
CLIMB: dict[str, Any] = {
    "proxy": "short-distillation",
    "short_steps": 2,
    "trials": TRIALS,
    "sweep_budget": 0,
    "screen": False,
    "distill": False,
}


def list_scored(study: StudyFolder) -> list[tuple[int, str]]:
    """Numbers and keys of the candidates that carry a value."""
    if not study.scores.exists():
        return []
    with ScoreStore(study.scores, read_only=True) as store:
        records = store.read_trials()
    return [(record.number, record.evaluation.candidate.key) for record in records if record.state == "COMPLETE"]


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose second layer's attention overflows where the first is gone, behind which all but one channel are small."""
    config = make_config("llama", num_layers=4)
    config.mlp_bias = True
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1)
        model.model.layers[0].mlp.down_proj.bias[0] = 1000
        attention = model.model.layers[1].self_attn
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight *= 1e20
            projection.weight[:, 0] = 0
    path = tmp_path_factory.mktemp("fragile")
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


WAYS: dict[str, dict[str, Any]] = {
    "closed-form": {"proxy": "closed-form"},
    "short-distillation": {"proxy": "short-distillation", "short_steps": 1, "screen": False},
}


@pytest.mark.parametrize("proxy", WAYS)
def test_a_set_whose_loss_is_no_number_has_no_value_and_says_why(
    proxy: str, fragile: Path, text_file: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'trials.db'}" if proxy == "short-distillation" else None
    told = SMALL | WAYS[proxy] | {"model": str(fragile), "recovery_text": str(text_file), "storage": url}
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


def start_and_end(words: list[str], study: StudyFolder, out: Path, *, at_least: int, number: int) -> int | None:
    """Run a command until so many candidates are scored, then send it a signal; return its exit code."""
    process = started.start(words, cwd=study.root.parent, out=out)
    try:
        until = time.monotonic() + 200
        while len(list_scored(study)) < at_least:
            assert process.exitcode is None, out.read_text()
            assert time.monotonic() < until, out.read_text()
            time.sleep(0.02)
        os.kill(process.pid or 0, number)
        process.join(60)
        return process.exitcode
    finally:
        process.kill()
        process.join()


def test_a_search_that_is_killed_or_asked_to_stop_goes_on_with_the_same_command(
    finished_study: Finished, tmp_path: Path
) -> None:
    settings, study = finished_study.move(tmp_path)
    settings = replace(settings, **CLIMB)
    words = shlex.split(typed_command(settings))[2:]
    before: list[tuple[int, str]] = []
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM)):
        out = tmp_path / f"{code}.txt"
        assert start_and_end(words, study, out, at_least=len(before) + 1, number=number) == code, out.read_text()
        assert "Traceback" not in out.read_text()
        assert ("run the same command again to go on" in out.read_text()) == (code > 0)
        found = list_scored(study)
        assert found[: len(before)] == before
        before = found
    again = Heard()
    search(settings, again)
    assert f"{len(before)} candidates were scored before" in "\n".join(again.lines)
    found = list_scored(study)
    assert found[: len(before)] == before
    assert len(found) == len({key for _, key in found}) == TRIALS  # the budget is kept to the trial
    with ScoreStore(study.scores, read_only=True) as store:
        assert {row.key for row in store.read_rows()} >= {key for _, key in found}
    assert study.report.is_file()


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
