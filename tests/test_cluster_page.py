"""What docs/cluster.md tells people to type: parsed, and the cluster in small started by it and searched on."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from seed.search import read_words
from tests.running import environment, search_words

PAGE = (Path(__file__).parent.parent / "docs" / "cluster.md").read_text()


def blocks(language: str) -> list[str]:
    return [re.sub("^  ", "", block, flags=re.M) for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)]


def list_commands() -> list[list[str]]:
    """The words of every line of shell."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", "").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_shell_is_shell_and_searches_parse():
    for block in blocks("bash"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    [entrypoint] = [yaml.safe_load(block)["entrypoint"].split() for block in blocks("yaml")]
    searches = 0
    for words in [*list_commands(), entrypoint]:
        if "seed.search" in words:
            typed = read_words(words[words.index("seed.search") + 1 :])
            assert typed["workers"] == 2 if "ray" not in typed else typed["ray"] == "auto"
            searches += 1
    assert searches == 4


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with so short a name that Ray's sockets fit below it."""
    with tempfile.TemporaryDirectory(prefix="seed-") as directory:
        yield Path(directory)


@pytest.mark.slow
@pytest.mark.timeout(600)  # six processes of Ray's, and a search
def test_two_nodes_on_one_machine_start_as_shown_and_search(make_checkpoint, text_file, place):
    """Nodes stay in the foreground (``--block``), so that they can be ended without ``ray stop``, which ends everybody's."""
    generate, head, second, search = [
        words
        for words in list_commands()
        if "--generate" in words or "--num-cpus=1" in words or "--no-distill" in words
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    around = environment(RAY_AUTH_MODE="token", HOME=str(place), RAY_TMPDIR=str(place), RAY_USAGE_STATS_ENABLED="0")
    programs = f"{Path(sys.executable).parent}{os.pathsep}{around['PATH']}"
    ray = {"env": around | {"PATH": programs}, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(generate, check=True, **ray)
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for count, words in enumerate((head, second), 1):
            nodes.append(subprocess.Popen([*" ".join(words).replace("6379", str(port)).split(), "--block"], **ray))
            wait_for_nodes(ray, count=count)
        words = search_words(make_checkpoint("llama"), text_file, *search[search.index("--ray") :], "--study=tiny")
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=place, env=ray["env"], capture_output=True, text=True, timeout=400)
    finally:
        for node in reversed(nodes):
            node.send_signal(signal.SIGTERM)
            node.wait(60)
    assert done.returncode == 0, done.stderr
    assert "2 evaluators, on cpu" in done.stdout
    assert "scored 4 of 4 candidates" in done.stdout
    assert (place / "studies" / "tiny" / "report.html").is_file()


def wait_for_nodes(ray: dict, *, count: int) -> None:
    """Until the cluster has so many."""
    for _ in range(60):
        done = subprocess.run(["ray", "status"], env=ray["env"], capture_output=True, text=True)
        if len(re.findall(r"^ 1 node_", done.stdout, re.M)) == count:
            return
        time.sleep(1)
    raise AssertionError(f"no {count} nodes: {done.stdout}{done.stderr}")
