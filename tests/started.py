"""Commands as processes of their own, which begin with everything imported, so that a test may start and kill many."""

import gc
import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["seed.pipeline", "seed.search", "seed.distill", "seed.distillation.fsdp"])


def start(words: Sequence[str], *, cwd: Path, out: Path, err: Path | None = None, prelude: str = "") -> BaseProcess:
    """Start ``python -m WORDS`` there; what it says goes into files, errors with the rest unless they have their own.

    ``prelude``: Python that the process runs first.
    """
    process = _CONTEXT.Process(target=_run, args=(tuple(words), cwd, out, err or out, prelude))
    process.start()
    return process


class Pair:
    """Two processes with what a launcher would tell them; the first may begin otherwise, the second run elsewhere."""

    def __init__(
        self, *words: str, place: Path, cwd: Path, first_prelude: str = "", second_cwd: Path | None = None
    ) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = str(taken.getsockname()[1])
        self.place, self.processes = place, list[BaseProcess]()
        for rank in range(2):
            told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            self.processes.append(
                start(
                    words,
                    cwd=second_cwd if second_cwd and rank == 1 else cwd,
                    out=place / f"{rank}.out",
                    err=place / f"{rank}.err",
                    prelude=f"import os; os.environ.update({told!r})\n{first_prelude if rank == 0 else ''}",
                )
            )

    def read(self, name: str) -> str:
        """What a process said so far."""
        path = self.place / name
        return path.read_text() if path.exists() else ""

    def end(self, *, seconds: float) -> list[tuple[int | None, str, str]]:
        """Exit code, standard output and standard error of each process; one that is still at work has no exit code."""
        for process in self.processes:
            process.join(seconds)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return [(code, self.read(f"{rank}.out"), self.read(f"{rank}.err")) for rank, code in enumerate(codes)]


def _run(words: Sequence[str], cwd: Path, out: Path, err: Path, prelude: str) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.chdir(cwd)
    os.environ["COLUMNS"] = "160"
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # what was imported stays, and need not be looked through each time
    exec(prelude, {})
    sys.argv = list(words)
    sys.path[0] = str(cwd)
    sys.modules.pop(words[0], None)  # it is run as a program
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
