"""Processes of a test that begin together."""

import subprocess
from collections.abc import Sequence


def let_go(workers: Sequence["subprocess.Popen[str]"]) -> None:
    """Wait until each has said that it is ready, then tell all to go."""
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
