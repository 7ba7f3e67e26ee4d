"""The command line of experiments: what was typed reaches the experiment, and mistakes are told before anything is opened."""

from pathlib import Path
from typing import Any

import pytest

from seed import experiment
from tests.running import error_of, run_seed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("compare nowhere --strategies greedy wishful", "--strategies wishful: wanted one of subset, sweep, "),
        ("recoveries nowhere --recoveries magic", "--recoveries magic: wanted one of distillation, "),
        ("compare nowhere --rng-seeds=-1", "--rng-seeds -1: wanted a whole number from 0, below 2^31"),
        ("fidelity nowhere --per-depth 0", "--per-depth 0: wanted a whole number from 1, "),
        ("claims nowhere", "invalid choice: 'claims'"),
        ("", "required: compare|fidelity|recoveries"),
        *((f"{name} nowhere", "nowhere: not a study") for name in ("compare", "fidelity", "recoveries")),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(words: str, said: str, tmp_path: Path) -> None:
    done = run_seed("seed.experiment", *words.split(), cwd=tmp_path, code=2)
    assert said in error_of(done)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_was_typed_reaches_the_experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard: dict[str, Any] = {}
    monkeypatch.setattr(experiment, "run_experiment", lambda name, **asked: heard.update(asked, name=name))
    words = "recoveries studies/demo --trials 3 7 --recoveries lora --distill-tokens 50k --learning-rate 1e-3"
    run_seed("seed.experiment", *words.split(), cwd=tmp_path)
    del heard["terminal"]
    assert heard == {
        "name": "recoveries",
        "study": Path("studies/demo"),
        "trials": (3, 7),
        "recoveries": ("lora",),
        "distill_tokens": 50_000,
        "learning_rate": 1e-3,
        "rng_seeds": (0, 1, 2),
        "device": None,
        "trust_remote_code": False,
    }
