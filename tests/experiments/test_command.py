"""The command line of experiments: what was typed reaches the experiment, and mistakes are told before anything is opened."""

import sys
from pathlib import Path
from typing import Any

import pytest

from seed import experiment
from seed.errors import StudyError


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["compare", "nowhere", "--strategies", "greedy", "wishful"],
            "--strategies wishful: wanted one of subset, sweep, ",
        ),
        (["recoveries", "nowhere", "--recoveries", "magic"], "--recoveries magic: wanted one of distillation, "),
        (["compare", "nowhere", "--rng-seeds=-1"], "--rng-seeds -1: wanted a whole number from 0, below 2^31"),
        (["fidelity", "nowhere", "--per-depth", "0"], "--per-depth 0: wanted a whole number from 1, "),
        (["claims", "nowhere"], "invalid choice: 'claims'"),
        ([], "required: compare|fidelity|recoveries"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["experiment", *words])
    with pytest.raises(SystemExit) as stop:
        experiment.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert (said in error, error.count("error: "), error.count("\n")) == (True, 1, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["compare", "fidelity", "recoveries"])
def test_a_missing_study_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["experiment", name, "nowhere"])
    with pytest.raises(StudyError, match="nowhere: not a study"):
        experiment.main()
    assert not list(tmp_path.iterdir())


def test_what_was_typed_reaches_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, Any] = {}
    monkeypatch.setattr(experiment, "run_experiment", lambda name, path, **asked: heard.update(asked, at=(name, path)))
    words = "recoveries studies/demo --trials 3 7 --recoveries lora --distill-tokens 50k --learning-rate 1e-3"
    monkeypatch.setattr(sys, "argv", ["experiment", *words.split()])
    experiment.main()
    del heard["terminal"]
    assert heard == {
        "at": ("recoveries", Path("studies/demo")),
        "trials": (3, 7),
        "recoveries": ("lora",),
        "distill_tokens": 50_000,
        "learning_rate": 1e-3,
        "rng_seeds": (0, 1, 2),
        "device": None,
        "trust_remote_code": False,
    }
