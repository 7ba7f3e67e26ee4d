"""A model outside a study is judged on the windows of its original, where it says which, so that PPLs compare."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from seed.errors import CorpusError
from seed.reporting.result_line import JudgedLine, JudgedLines
from seed.resolve import choose_text, choose_window
from tests.conftest import MakeCheckpoint
from tests.finished import Finished
from tests.models.test_provenance import write_start
from tests.running import error_of, read_line, run_seed


@pytest.mark.parametrize(
    ("said", "window", "why"),
    [
        ({"window_tokens": 48}, 48, "as in the study that it comes from, of demo"),
        ({}, 256, "as the search space of its original, demo"),
        ({"window_tokens": 10**9}, 256, "as the search space of its original, demo"),
        ({"window_tokens": "48"}, 512, "does not compare (--window-tokens)"),
        ({"base_model": "/models/mine"}, 512, "does not compare (--window-tokens)"),
        ({"dropped_layers": "damaged"}, 512, "does not compare (--window-tokens)"),
    ],
)
def test_windows_are_those_of_the_original(tmp_path: Path, said: dict[str, Any], window: int, why: str) -> None:
    found, reason = choose_window(str(write_start(tmp_path / "model", **said)), None, longest=512)
    assert found == window
    assert why in reason


def test_what_is_typed_or_a_model_s_own_counts_first(tmp_path: Path) -> None:
    exported = str(write_start(tmp_path / "model", window_tokens=48))
    assert choose_window(exported, 64, longest=512) == (64, "as told")
    assert choose_window("demo", None, longest=512)[0] == 256
    assert choose_window("nowhere", None, longest=4096)[0] == 1024


@pytest.mark.parametrize("source", ["/etc/passwd", 7, None, "demo"])
def test_the_text_is_one_that_the_model_names_where_it_is_known(tmp_path: Path, source: object) -> None:
    path = write_start(tmp_path / "model", streams=source and {"test": {"source": source}})
    if source == "demo":
        assert choose_text(str(path)) == choose_text("demo") == "demo"
    else:
        with pytest.raises(CorpusError, match=r"which text\? Give --test-text"):
            choose_text(str(path))
    assert choose_text("someone/a-model") == "wikitext2"


def test_several_models_of_a_study_are_judged_one_beside_the_other_by_the_workload_that_is_told(
    finished_study: Finished, tmp_path: Path
) -> None:
    models = sorted(map(str, finished_study.folder.models.iterdir()))
    error = error_of(run_seed("seed.evaluate", str(finished_study.folder.root), cwd=tmp_path, code=2))
    assert error.endswith(f"is a study. Name one or more of its models: {' '.join(models)}.")
    timed = ["--latency-batch=2", "--prompt-tokens=6", "--new-tokens=3", "--latency-repeats=4"]
    done = run_seed("seed.evaluate", *models, *timed, "--test-tokens=256", "--json", cwd=tmp_path)
    lines = read_line(done, JudgedLines).models
    assert [line.model for line in lines] == models
    assert all(line.workload == "decode 3 tokens after 6, batch 2, eager, KV cache" for line in lines)
    assert all(line.ppl_ratio is not None for line in lines)
    assert [row.split()[0] for row in done.stderr.splitlines()[-len(models) :]] == [Path(one).name for one in models]
    assert f"judging {Path(models[0]).name}: done in" in done.stderr
    alone = ["seed.evaluate", models[0], f"--test-text={finished_study.settings.recovery_text}", "--test-tokens=256"]
    stopwatch = f"{sys.executable} -c 'print(7)'"
    line = read_line(
        run_seed(*alone, "--latency-command", stopwatch, "--latency-repeats=3", "--json", cwd=tmp_path), JudgedLine
    )
    assert (line.latency_ms, line.workload) == (7.0, stopwatch)
    error = error_of(run_seed(*alone, "--latency-command", stopwatch, "--latency-batch=1", cwd=tmp_path, code=2))
    assert "--latency-batch: says how Seed times" in error
    error = error_of(run_seed(*alone, "--prompt-tokens=1000000", cwd=tmp_path, code=2))
    assert "--prompt-tokens 1000000 and --new-tokens" in error


def test_the_command_says_which_windows_it_took(
    make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(make_checkpoint(), tmp_path / "model")
    rows = [json.dumps({"text": text}) + "\n" for text in text_file.read_text().split("\n\n")[:20]]
    (tmp_path / "rows.jsonl").write_text("".join(rows * 3))
    words = ["seed.evaluate", "model", "--test-text=rows.jsonl", "--test-tokens=256"]
    assert "windows:    128 tokens, as many as it reads" in run_seed(*words[:3], cwd=tmp_path).stdout
    write_start(model, window_tokens=64)
    said = run_seed(*words, "--json", cwd=tmp_path)
    assert "windows:    64 tokens, as in the study that it comes from, of demo" in said.stderr
    protocol = json.loads(said.stdout)["protocol"]
    assert "rows.jsonl; 40 of 60 documents left out as copies of others; " in protocol
    assert "windows of 64 tokens" in protocol
