"""Staged searches, replicas and widths, run as users run them: real processes, killed and resumed."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from seed.reporting.result_line import StagedLine
from tests.running import error_of, read_line, search_words
from tests.test_commands import kill_when, run_seed

RUNS = ["--distill-tokens=8192", "--learning-rate=3e-3"]


def forget_times(value: object) -> object:
    """The same without what a clock decides."""
    if isinstance(value, dict):
        timed = {"seconds", "latency", "latencies", "command", "start", "study", "created"} | {
            "provenance_sha256",
        }
        return {key: forget_times(part) for key, part in value.items() if key not in timed}
    return [forget_times(part) for part in value] if isinstance(value, list) else value


def read(path: Path) -> object:
    return forget_times(json.loads(path.read_text()))


def test_a_staged_search_names_original_layers_and_goes_on_where_it_was_killed(make_checkpoint, text_file, tmp_path):
    model = make_checkpoint("llama", num_layers=6)
    words = search_words(model, text_file, "--stages=2+1", "--frontier-size=1", "--replicas=2", *RUNS)
    done = run_seed(*words, "--study=unbroken", cwd=tmp_path)
    root = tmp_path / "studies" / "unbroken"
    staged = json.loads((root / "stages.json").read_text())
    first, second = (stage["result"]["candidate"]["parts"] for stage in staged["stages"])
    assert (len(first), len(second)) == (2, 3)
    assert set(first) < set(second)
    assert "3 of 6 layers in stages of 2+1" in done.stdout
    assert "At once for the same tokens" in done.stdout
    path = root / "stage-2" / "models" / f"drop-{'-'.join(second)}"
    exported = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert exported.config.num_hidden_layers == 3
    said = json.loads((path / "seed.json").read_text())
    assert said["settings"]["earlier_tokens"] == said["settings"]["distill_tokens"]
    assert said["base_model"] == str(model)
    judged = run_seed("seed.evaluate", str(path), cwd=tmp_path)  # beside the original, as everything is
    assert f"perplexity: {staged['stages'][1]['result']['test']['perplexity']:.3f}" in judged.stdout
    once = json.loads((root / "one-shot" / "plan.json").read_text())
    assert once["distill_tokens"] == 2 * json.loads((root / "stage-1" / "plan.json").read_text())["distill_tokens"]

    for stage in ("stage-1", "stage-2", "one-shot"):  # once each: in the midst of a stage's distillation
        kill_when(
            [*words, "--study=killed"],
            tmp_path,
            lambda study, stage=stage: (study / stage / "frontier.json").exists(),
            study="killed",
        )
    again = run_seed(*words, "--study=killed", "--json", cwd=tmp_path)
    assert "continuing the study" in again.stderr
    line = read_line(again, StagedLine)
    assert [stage.stage for stage in line.stages] == ["stage-1", "stage-2"]
    assert all((tmp_path / str(stage.best.path) / "config.json").is_file() for stage in line.stages)
    killed = tmp_path / "studies" / "killed"
    assert read(killed / "stages.json") == read(root / "stages.json")
    (killed / "report.html").unlink()
    shown = run_seed("seed.report", "studies/killed", cwd=tmp_path)
    assert "in stages of 2+1" in shown.stdout
    plain = run_seed(*search_words(model, text_file, "--study=killed"), cwd=tmp_path, code=2)
    assert "holds a staged search" in error_of(plain)
    assert (killed / "report.html").stat().st_size < 6_000_000


def test_a_search_goes_on_from_a_recovered_model_of_another(make_checkpoint, text_file, tmp_path):
    model = make_checkpoint("gpt2")
    words = search_words(model, text_file, "--frontier-size=1", "--max-dropped=1", *RUNS)
    run_seed(*words, "--study=first", cwd=tmp_path)
    [start] = (tmp_path / "studies" / "first" / "models").iterdir()
    text = ["--recovery-text", str(text_file), *[word for word in words if word.startswith("--") and "=" in word]]
    more = [word for word in text if not word.startswith(("--max-dropped", "--study"))]
    run_seed("seed.search", "--start", str(start), "--study=second", *more, "--max-dropped=2", cwd=tmp_path)
    plan = json.loads((tmp_path / "studies" / "second" / "plan.json").read_text())
    [gone] = json.loads((start / "seed.json").read_text())["dropped_layers"]
    assert plan["protocol"]["space"]["gone_layers"] == [gone]
    assert plan["protocol"]["location"] == str(model)
    [member] = json.loads((tmp_path / "studies" / "second" / "frontier.json").read_text())["members"]
    assert str(gone) in member["evaluation"]["candidate"]["parts"]
    # what it went on from is part of the plan
    config = (start / "config.json").read_text()
    (start / "config.json").write_text(config + "\n")
    error = error_of(run_seed("seed.report", "studies/nowhere", cwd=tmp_path, code=2))
    assert "not a study" in error
    error = error_of(run_seed("seed.distill", "studies/second", "--trial=0", cwd=tmp_path, code=2))
    assert "changed since" in error
    (start / "config.json").write_text(config)
    other = make_checkpoint("llama")
    wrong = run_seed("seed.search", "--start", str(start), "--model", str(other), *more, cwd=tmp_path, code=2)
    assert f"was recovered from {model}" in error_of(wrong)
    empty = run_seed("seed.search", "--start", str(tmp_path), *more, cwd=tmp_path, code=2)
    assert "no seed.json" in error_of(empty)


def test_replicas_and_widths_stand_beside_the_frontier(make_checkpoint, text_file, tmp_path):
    words = search_words(make_checkpoint(), text_file, "--study=wide", "--frontier-size=2", "--max-dropped=1", *RUNS)
    done = run_seed(*words, "--replicas=3", "--width-baseline", cwd=tmp_path)
    study = tmp_path / "studies" / "wide"
    results = {path.stem: json.loads(path.read_text()) for path in (study / "distilled").glob("*.json")}
    [width] = [key for key in results if key.startswith("width-")]
    assert len(results) == 3
    for key, result in results.items():
        assert [replica["rng_seed"] for replica in result["replicas"]] == [0, 1, 2]
        exported = transformers.AutoModelForCausalLM.from_pretrained(study / "models" / key, dtype=torch.float32)
        assert sum(weight.numel() for weight in exported.parameters()) == result["size"]["num_params"]
        assert exported.config.num_hidden_layers == (4 if key == width else 3)
    assert done.stdout.count(", mean of 3") >= 3  # in the table, and wherever one of them is recommended
    page = (study / "report.html").read_text()
    assert "Equivalent: two one-sided tests" in page
    assert "uniform width, distilled" in page
    judged = run_seed("seed.evaluate", str(study / "models" / width), cwd=tmp_path)
    assert f"perplexity: {results[width]['test']['perplexity']:.3f}" in judged.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stages", "2+x"], "--stages 2+x"),
        (["--stages", "1+..."], "goes on until a target"),
        (["--stages", "2+1", "--max-dropped", "3"], "--max-dropped"),
        (["--recovery", "pretraining", "--temperature", "2"], "--temperature"),
        (["--stages", "2+1", "--dry-run"], "--dry-run"),
    ],
)
def test_what_cannot_be_is_said_at_once(tmp_path, words, said):
    assert said in error_of(run_seed("seed.search", *words, cwd=tmp_path, code=2))
    assert not (tmp_path / "studies").exists()
