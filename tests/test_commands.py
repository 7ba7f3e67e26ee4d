"""The commands that users run, as users run them, on tiny checkpoints: what they leave, take up again and refuse."""

import contextlib
import ctypes
import json
import math
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open

from seed import cost
from seed.cost import Speed
from seed.reporting.result_line import DistillLine, JudgedLine, SearchLine, StagedLine
from seed.stages import students
from seed.stages.study_record import gather_record
from tests.finished import Finished
from tests.running import Done, error_of, read_line, run_seed, search_words

Make = Callable[..., Path]
ONE_MODEL = ["--frontier-size=1", "--max-dropped=1"]


# ---- a finished study, once more


def test_a_finished_search_is_told_to_a_script_in_one_line(finished_study: Finished, tmp_path: Path) -> None:
    study = finished_study.copy(tmp_path)
    done = run_seed(*finished_study.words, "--json", cwd=tmp_path)
    assert "finished before: nothing is left to do in studies/tiny" in done.stderr
    shown = done.stderr.splitlines()
    assert shown[-2].startswith(("ship: studies/tiny/models/drop-", "nearest: studies/tiny/models/drop-"))
    assert shown[-1] == "open: studies/tiny/report.html"
    line = read_line(done, SearchLine)
    assert {tuple(model.dropped_layers): model.ppl_ratio.value for model in line.models} == {
        result.candidate.dropped_layers: result.test.ppl_ratio for result in finished_study.record.distilled
    }
    assert all((tmp_path / str(model.path) / "config.json").is_file() for model in line.models)
    assert (tmp_path / line.report).is_file()
    assert line.num_scored == line.space_size
    for result in finished_study.record.distilled:
        assert f"{result.test.perplexity:.3f}" in (study.model(result.key) / "README.md").read_text()
        losses = [point.validation_loss for point in result.curve]
        assert losses[0] >= min(losses) == pytest.approx(result.validation.loss, abs=1e-5)
    judged = run_seed("seed.evaluate", str(study.model(result.key)), "--json", cwd=tmp_path)
    assert f"perplexity: {result.test.perplexity:.3f}" in judged.stderr
    assert read_line(judged, JudgedLine).ppl == pytest.approx(result.test.perplexity)


def test_one_more_model_comes_out_of_a_finished_study(finished_study: Finished, tmp_path: Path) -> None:
    study, record = finished_study.copy(tmp_path), gather_record(finished_study.folder)
    done = {result.candidate for result in record.distilled}
    trial = next(trial for trial in record.trials if trial.evaluation.candidate not in done)
    files = f'{sys.executable} -c "import sys, os; print(len(os.listdir(sys.argv[1])))"'
    words = ["seed.distill", "studies/tiny", "--json", "--trial"]
    said = run_seed(*words, str(trial.number), "--eval-command", files, cwd=tmp_path)
    assert "distilled: studies/tiny/models/drop-" in said.stderr
    path = tmp_path / str(read_line(said, DistillLine).distilled.path)
    assert path == study.model(trial.evaluation.candidate.key)
    assert (path / "config.json").is_file()
    result = json.loads(study.result(path.name).read_text())
    assert result["user_score"] >= 5
    assert math.isfinite(result["test"]["ppl_ratio"])
    failed = run_seed(*words, "999", cwd=tmp_path, code=2)
    assert failed.stdout == ""
    assert "--trial 999" in error_of(failed)
    assert "0 to" in error_of(failed)


# ---- searches with options of their own


def test_low_rank_updates_behind_a_frozen_prefix_end_up_in_an_ordinary_checkpoint(
    make_checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    words = search_words(
        make_checkpoint("gpt2"), text_file, "--study=thin", "--lora-rank=2", "--freeze-prefix", *ONE_MODEL
    )
    run_seed(*words, "--proxy=short-distillation", "--short-steps=2", cwd=tmp_path)
    study = tmp_path / "studies" / "thin"
    [result] = [json.loads(path.read_text()) for path in (study / "distilled").iterdir()]
    [model] = (study / "models").iterdir()
    assert "LoRA of rank 2" in result["settings"]["trained"]
    with safe_open(model / "model.safetensors", framework="np") as stored:
        assert not [name for name in stored.keys() if "lora" in name or "base_layer" in name]  # noqa: SIM118
    judged = run_seed("seed.evaluate", str(model), cwd=tmp_path)
    assert f"perplexity: {result['test']['perplexity']:.3f}" in judged.stdout


def test_users_own_stopwatch_judge_and_storage_are_used(make_checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    config = "import json, sys; print(json.load(open(sys.argv[1] + '/config.json'))['num_hidden_layers'] * {})"
    stopwatch, judge = (f'{sys.executable} -c "{config.format(factor)}"' for factor in (10, 1000))
    run_seed(
        *search_words(make_checkpoint(), text_file, "--study=mine", "--frontier-size=1", "--max-dropped=2"),
        "--latency-command",
        stopwatch,
        "--eval-command",
        judge,
        "--storage=sqlite:///mine.db",
        "--max-latency-ratio=0.6",
        cwd=tmp_path,
    )
    study = tmp_path / "studies" / "mine"
    latency = json.loads((study / "latency.json").read_text())
    assert latency["3 layers"]["ratio"] == pytest.approx(0.75)
    assert latency["2 layers"]["ratio"] == pytest.approx(0.5)
    [member] = json.loads((study / "frontier.json").read_text())["members"]
    assert len(member["evaluation"]["candidate"]["parts"]) == 2  # three layers would be too slow
    assert json.loads((study / "dense.json").read_text())["user_score"] == 4000
    assert json.loads(next((study / "distilled").glob("*.json")).read_text())["user_score"] == 2000
    assert (tmp_path / "mine.db").exists()


def test_replicas_and_widths_stand_beside_the_frontier(make_checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    words = search_words(make_checkpoint(), text_file, "--study=wide", "--frontier-size=2", "--max-dropped=1")
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
    assert "PPL: test text, mean of 3 distillations" in " ".join(done.stdout.split())
    page = (study / "report.html").read_text()
    assert "Equivalent: two one-sided tests" in page
    assert "uniform width, distilled" in page
    judged = run_seed("seed.evaluate", str(study / "models" / width), cwd=tmp_path)
    assert f"perplexity: {results[width]['test']['perplexity']:.3f}" in judged.stdout


def test_a_search_goes_on_from_a_recovered_model_of_another(
    finished_study: Finished, make_checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    start = shutil.copytree(finished_study.model, tmp_path / "start")
    gone = json.loads((start / "seed.json").read_text())["dropped_layers"]
    words = ["seed.search", "--start", str(start), *search_words(start, text_file)[3:]]
    run_seed(*words, "--study=second", "--frontier-size=1", f"--max-dropped={len(gone) + 1}", cwd=tmp_path)
    study = tmp_path / "studies" / "second"
    protocol = json.loads((study / "plan.json").read_text())["protocol"]
    assert protocol["space"]["gone_layers"] == gone
    assert protocol["location"] == finished_study.settings.model
    [member] = json.loads((study / "frontier.json").read_text())["members"]
    assert set(map(str, gone)) <= set(member["evaluation"]["candidate"]["parts"])
    # what it went on from is part of the plan
    config = (start / "config.json").read_text()
    (start / "config.json").write_text(config + "\n")
    error = error_of(run_seed("seed.distill", "studies/second", "--trial=0", cwd=tmp_path, code=2))
    assert "changed since" in error
    (start / "config.json").write_text(config)
    wrong = run_seed(*words, "--model", str(make_checkpoint("llama")), cwd=tmp_path, code=2)
    assert f"was recovered from {finished_study.settings.model}" in error_of(wrong)


def forget_times(value: object) -> object:
    """The same without what a clock decides."""
    if isinstance(value, dict):
        timed = {"seconds", "latency", "latencies", "command", "created", "provenance_sha256"}
        return {key: forget_times(part) for key, part in value.items() if key not in timed}
    return [forget_times(part) for part in value] if isinstance(value, list) else value


def test_a_staged_search_names_original_layers_and_goes_on_where_it_was_stopped(
    make_checkpoint: Make, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_checkpoint("llama")
    words = search_words(model, text_file, "--stages=1+1", "--frontier-size=1", "--study=staged")
    place, left = tmp_path / "place", tmp_path / "left"
    place.mkdir()
    root, train_students = place / "studies" / "staged", students.train_students

    def copy_first(*args: object, **more: object) -> object:
        """Leave behind what a search has that is killed in the midst of the second stage's distillation."""
        if (root / "stage-2" / "frontier.json").exists() and not left.exists():
            shutil.copytree(place, left)
        return train_students(*args, **more)

    monkeypatch.setattr(students, "train_students", copy_first)
    done = run_seed(*words, cwd=place)
    staged = json.loads((root / "stages.json").read_text())
    first, second = (stage["result"]["candidate"]["parts"] for stage in staged["stages"])
    assert (len(first), len(second)) == (1, 2)
    assert set(first) < set(second)
    assert "2 of 4 layers in stages of 1+1" in done.stdout
    assert "At once for the same tokens" in done.stdout
    path = root / "stage-2" / "models" / f"drop-{'-'.join(second)}"
    assert transformers.AutoConfig.from_pretrained(path).num_hidden_layers == 2
    said = json.loads((path / "seed.json").read_text())
    assert said["settings"]["earlier_tokens"] == said["settings"]["distill_tokens"]
    assert said["base_model"] == str(model)
    judged = run_seed("seed.evaluate", str(path), cwd=place)  # beside the original, as everything is
    assert f"perplexity: {staged['stages'][1]['result']['test']['perplexity']:.3f}" in judged.stdout
    once = json.loads((root / "one-shot" / "plan.json").read_text())
    assert once["distill_tokens"] == 2 * said["settings"]["distill_tokens"]

    place.rename(tmp_path / "unbroken")
    left.rename(place)
    again = run_seed(*words, "--json", cwd=place)
    assert "continuing the study" in again.stderr
    line = read_line(again, StagedLine)
    assert [stage.stage for stage in line.stages] == ["stage-1", "stage-2"]
    assert all((place / str(stage.best.path) / "config.json").is_file() for stage in line.stages)
    assert forget_times(json.loads((root / "stages.json").read_text())) == forget_times(staged)
    (root / "report.html").unlink()
    assert "in stages of 1+1" in run_seed("seed.report", "studies/staged", cwd=place).stdout
    assert (root / "report.html").stat().st_size < 6_000_000
    plain = run_seed(*search_words(model, text_file, "--study=staged"), cwd=place, code=2)
    assert "holds a staged search" in error_of(plain)


# ---- dry runs


def test_a_dry_run_says_what_a_search_takes_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = Speed(layer=1e-6, head=1e-5, recovery=(0.25, 0.0), step=1e-3, num_layers=4)
    monkeypatch.setattr(cost, "time_parts", lambda *_args, **_settings: speed)
    said = run_seed("seed.search", "--model=gpt2", "--dry-run", cwd=tmp_path).stdout
    for text in (
        "11 of 12 layers: 12 candidates",
        "10 of 12 layers: 66 candidates, 110\u00a0M parameters, -11.4 %",
        "plan: ",
        "memory: dense model",
        "times are of cpu",
    ):
        assert text in said
    assert said.splitlines()[-1] == "run it: python -m seed.search --model gpt2"
    words = ["seed.search", "--model=gpt2", "--device=cuda:1GB"]
    assert "but cuda:1GB has 1.00" in error_of(run_seed(*words, "--dry-run", cwd=tmp_path, code=2))
    assert "is for python -m seed.search --dry-run" in error_of(run_seed(*words, cwd=tmp_path, code=2))
    staged = ["seed.search", "--stages=2+1", "--dry-run"]
    assert "--dry-run: plans one search" in error_of(run_seed(*staged, cwd=tmp_path, code=2))
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_checkpoint_keeps_its_options(make_checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    words = search_words(
        make_checkpoint("gpt2"), text_file, "--max-dropped=2", "--proxy=short-distillation", "--study=one"
    )
    said = run_seed(*words, "--dry-run", cwd=tmp_path).stdout
    assert "all 10 candidates scored by short distillation" in said
    assert "2 of 4 layers: 6 candidates" in said
    command = said.splitlines()[-1]
    assert "--max-dropped 2" in command
    assert "--study one" in command
    assert "dry-run" not in command
    assert not list(tmp_path.iterdir())


# ---- what is wrong is one error, and nothing is half-written


def test_a_search_of_what_seed_cut_says_to_what_its_ratios_are(make_checkpoint: Make, tmp_path: Path) -> None:
    run_seed("seed.export", str(make_checkpoint("gpt2")), "--keep=0,2-3", "--out=cut", cwd=tmp_path)
    words = ["seed.search", "--model", "./cut", "--recovery-text=nowhere.txt"]
    for more in ([], ["--dry-run"]):
        said = run_seed(*words, *more, cwd=tmp_path, code=2).stdout
        assert "./cut: is not an original, but what Seed made of" in said
        assert "3 of its 4 layers, not recovered" in said
        assert "give --start ./cut instead of --model" in said


def test_a_judge_is_told_of_its_own_options(make_checkpoint: Make, tmp_path: Path) -> None:
    model = shutil.copytree(make_checkpoint(), tmp_path / "model")
    error = error_of(run_seed("seed.evaluate", "model", cwd=tmp_path, code=2))
    assert "which text? Give --test-text FILE" in error
    assert "--recovery-text" not in error
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    error = error_of(run_seed("seed.evaluate", "model", "--test-text=demo", cwd=tmp_path, code=2))
    assert "its weights are quantized" in error
    assert "recovery" not in error


BAD_WORDS = {
    "unknown model": (["--model", "tinylama"], ["tinylama", "tinyllama"]),
    "no network": (["--model", "tinyllama"], ["TinyLlama", "hub cannot be reached", "--model demo"]),
    "missing directory": (["--model", "./nowhere"], ["./nowhere", "no such directory"]),
    "trials": (["--trials", "0"], ["--trials 0: wanted a whole number from 1"]),
    "study path": (["--study", "a/b"], ["a/b", "--studies-dir"]),
    "layers": (["--max-dropped", "12"], ["max_dropped = 12", "3 or fewer"]),
    "device": (["--device", "cuda:7"], ["--device cuda:7", "Available: cpu"]),
    "missing text": (["--recovery-text", "nowhere.txt"], ["nowhere.txt", "no such file"]),
    "window": (["--window-tokens", "100000"], ["--window-tokens 100000", "128"]),
    "validation limit": (["--validation-tokens", "64"], ["--validation-tokens 64", "or more"]),
    "calibration limit": (["--calibration-tokens=1"], ["--calibration-tokens 1:", "or more"]),
    "memory limit": (["--max-memory=1kB"], ["no candidate can keep the limits"]),
    "dry run for a script": (["--dry-run", "--json"], ["--dry-run", "--json"]),
    "space file": (["--space", "nowhere.toml"], ["nowhere.toml"]),
}


@pytest.mark.parametrize("case", BAD_WORDS)
def test_bad_input_gets_one_clear_error_and_writes_no_study(
    make_checkpoint: Make, text_file: Path, tmp_path: Path, case: str
) -> None:
    words, wanted = BAD_WORDS[case]
    began = time.monotonic()
    error = error_of(run_seed(*search_words(make_checkpoint(), text_file), *words, cwd=tmp_path, code=2))
    assert time.monotonic() - began < 60  # a blocked hub must not hang; generous, since machines are slow
    for text in wanted:
        assert text in error
    assert not list(tmp_path.rglob("journal.log")) or case == "memory limit"


def test_bad_files_are_named_and_nothing_is_written(make_checkpoint: Make, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short\n")
    error = error_of(
        run_seed("seed.search", "--model", str(make_checkpoint()), "--recovery-text", str(short), cwd=tmp_path, code=2)
    )
    assert "tokens, but needs at least" in error
    toml = tmp_path / "mine.toml"
    toml.write_text("[model]\nname = 'x'\nnum_layers = 'four'\n")
    error = error_of(run_seed("seed.search", "--space", str(toml), cwd=tmp_path, code=2))
    assert "mine.toml" in error
    assert "model.num_layers" in error
    error = error_of(run_seed("seed.report", "nowhere", cwd=tmp_path, code=2))
    assert "not a study" in error
    assert not (tmp_path / "studies").exists()


def drop_rights() -> None:
    """Make root like anyone in this thread: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH it may not read everything."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the third version of these calls, for this thread
    rights = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable ones, twice
    assert libc.capget(header, rights) == 0
    for kind in range(3):
        rights[kind] &= ~0b110
    assert libc.capset(header, rights) == 0


def run_unprivileged(*words: str, cwd: Path) -> Done:
    """Fail as somebody whom the file system may say no to."""
    with ThreadPoolExecutor(1, initializer=drop_rights) as pool:
        return pool.submit(run_seed, *words, cwd=cwd, code=2).result()


def test_what_may_not_be_read_is_named_and_not_taken_for_missing(
    make_checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "."):
        model = shutil.copytree(make_checkpoint(), tmp_path / "theirs")
        (model / name).chmod(0)
        words = (
            search_words(model, text_file)
            if name == "."
            else ["seed.evaluate", str(model), "--test-text", str(text_file)]
        )
        error = error_of(run_unprivileged(*words, cwd=tmp_path))
        assert f"{model / name}: permission denied" in error
        assert "own" in error
        (model / name).chmod(0o755)
        shutil.rmtree(model)
    assert not list(tmp_path.iterdir())


def test_a_study_of_somebody_else_says_what_to_do(tmp_path: Path) -> None:
    study = tmp_path / "theirs"
    study.mkdir()
    (study / "plan.json").write_text("{}")
    study.chmod(0o555)
    error = error_of(run_unprivileged("seed.report", "theirs", cwd=tmp_path))
    assert "theirs: cannot be written (Permission denied)" in error
    assert "work on a copy of your own" in error
    study.chmod(0)
    for command in ("seed.report", "seed.dashboard", "seed.distill"):
        error = error_of(run_unprivileged(command, "theirs", cwd=tmp_path))
        assert "theirs" in error
        assert "permission denied. Ask its owner" in error


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_hidden_layers", "4"), ("hidden_size", "32"), ("layer_types", ["full_attention"] * 2)],
)
def test_a_config_that_does_not_hold_together_is_one_error(
    make_checkpoint: Make, text_file: Path, tmp_path: Path, field: str, value: object
) -> None:
    model = shutil.copytree(make_checkpoint("qwen2"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {field: value}))
    for more in ([], ["--dry-run"]):
        error = error_of(run_seed(*search_words(model, text_file, *more), cwd=tmp_path, code=2))
        assert f"{model}: its config.json is wrong (" in error
        assert field in error
        assert "Mend it" in error


@contextlib.contextmanager
def limit_files(most_bytes: int) -> Iterator[None]:
    """No file may grow any longer, as on a disk that is full; Python ignores the signal that tells of it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_reported_and_leaves_nothing_half_written(
    make_checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    words = search_words(make_checkpoint(), text_file, "--study=full", *ONE_MODEL)
    with limit_files(40_000):
        error_of(run_seed(*words, cwd=tmp_path, code=2))
    assert not list((tmp_path / "studies").rglob("*.safetensors"))
    run_seed(*words, cwd=tmp_path)  # with room again, the same command finishes
