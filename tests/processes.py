"""Processes of a test that begin together."""

import subprocess
import time
from collections.abc import Sequence


def let_go(workers: Sequence["subprocess.Popen[str]"]) -> float:
    """Wait until each has said that it is ready, then tell all to go; return when that was (``time.time``)."""
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
    told = time.time()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return told
