"""Commands as users type them, run in this process, which has imported all that they need."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from seed.console import run_command

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
SMALL: dict[str, Any] = {  # what makes a search take little time
    "window_tokens": 64,
    "calibration_tokens": 512,
    "validation_tokens": 512,
    "test_tokens": 1024,
    "prompt_tokens": 4,
    "new_tokens": 2,
    "latency_repeats": 3,
    "distill_tokens": 2000,
    "learning_rate": 1e-3,
    "device": "cpu",
}
SMALL_WORDS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
Done = subprocess.CompletedProcess[str]


def run_seed(*words: str, cwd: Path, code: int = 0) -> Done:
    """Run ``python -m seed...`` in a folder; its exit code must be ``code``."""
    out, err, found = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", list(words))
        patch.setattr("seed.interrupts.listen", lambda: None)
        try:
            is_folder = (ROOT / words[0].replace(".", "/")).is_dir()
            run_command(importlib.import_module(words[0] + ".__main__" * is_folder).main)
        except SystemExit as end:
            found = int(end.code or 0)
    done = Done(words, found, out.getvalue(), err.getvalue())
    assert found == code, f"exit code {found}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def environment(**extra: str) -> dict[str, str]:
    """This process's environment with the package found and the hub out of reach, for processes that are real."""
    return (
        os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "160"} | extra
    )


def search_words(model: Path, text: Path, *more: str) -> list[str]:
    """What searches this model in little time."""
    return ["seed.search", "--model", str(model), "--recovery-text", str(text), *SMALL_WORDS, *more]


def error_of(done: Done) -> str:
    """The one line of an error; a traceback fails the test."""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def read_line(done: Done, kind: type[T]) -> T:
    """The one line that a script reads, as a record of this kind."""
    assert done.stdout.endswith("\n")
    assert done.stdout.count("\n") == 1, done.stdout
    return msgspec.json.decode(done.stdout, type=kind)
