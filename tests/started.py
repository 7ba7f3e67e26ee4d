"""Commands as processes of their own, which begin with everything imported, so that a test may start and kill many."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["seed.pipeline", "seed.search", "seed.distill", "seed.evaluate"])


def start(words: Sequence[str], *, cwd: Path, out: Path, err: Path | None = None, prelude: str = "") -> BaseProcess:
    """Start ``python -m WORDS`` there; what it says goes into files, errors with the rest unless they have their own.

    ``prelude``: Python that the process runs first.
    """
    process = _CONTEXT.Process(target=_run, args=(tuple(words), cwd, out, err or out, prelude))
    process.start()
    return process


def _run(words: Sequence[str], cwd: Path, out: Path, err: Path, prelude: str) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.chdir(cwd)
    os.environ["COLUMNS"] = "160"
    import torch

    torch.set_num_threads(1)
    exec(prelude, {})
    sys.argv = list(words)
    sys.path[0] = str(cwd)
    sys.modules.pop(words[0], None)  # it is run as a program
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
