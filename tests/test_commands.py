"""The commands that users run, run as users run them: real processes on tiny checkpoints, killed and resumed."""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from seed.reporting.result_line import DistillLine, JudgedLine, SearchLine
from seed.scores import ScoreStore
from tests import started
from tests.running import environment, error_of, read_line, search_words


def run_seed(*words: str, cwd: Path, code: int = 0, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m seed...`` in an empty folder; its exit code must be ``code``. ``extra``: of its environment."""
    if extra:  # some of it is read when modules are imported
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280, env=environment(**extra))
    else:
        with tempfile.TemporaryDirectory() as place:
            out, err = Path(place, "out"), Path(place, "err")
            process = started.start(words, cwd=cwd, out=out, err=err)
            process.join(280)
            exit_code = process.exitcode
            process.kill()
            assert exit_code is not None, f"still at work\n{out.read_text()[-4000:]}\n{err.read_text()[-4000:]}"
            done = subprocess.CompletedProcess(words, exit_code, out.read_text(), err.read_text())
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


# Root may read everything; without these two rights (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) it is like anyone.
UNPRIVILEGED = """
import ctypes, os, sys
for right in (1, 2):
    ctypes.CDLL(None).prctl(24, right, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
"""


def run_unprivileged(*words: str, cwd: Path, code: int) -> subprocess.CompletedProcess[str]:
    """The same as somebody whom the file system may say no to."""
    command = [sys.executable, "-c", UNPRIVILEGED, *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280, env=environment())
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def test_the_whole_pass_gives_checkpoints_that_plain_transformers_loads(make_checkpoint, text_file, tmp_path):
    done = run_seed(
        *search_words(make_checkpoint("gpt2"), text_file, "--study", "tiny", "--frontier-size=2"), cwd=tmp_path
    )
    study = tmp_path / "studies" / "tiny"
    assert "Distilled frontier" in done.stdout
    assert f"optuna-dashboard {Path('studies/tiny/journal.log')}" in done.stdout
    assert (study / "report.html").stat().st_size < 6_000_000
    results = [json.loads(path.read_text()) for path in sorted((study / "distilled").glob("*.json"))]
    assert len(results) == 2
    for result in results:
        path = study / "models" / f"drop-{'-'.join(result['candidate']['parts'])}"
        assert "base_model" in json.loads((path / "seed.json").read_text())
        assert f"{result['test']['perplexity']:.3f}" in (path / "README.md").read_text()
        best = min(point["validation_loss"] for point in result["curve"])
        assert best <= result["curve"][0]["validation_loss"]
        assert result["validation"]["loss"] == pytest.approx(best, abs=1e-5)
    # the report's PPL, found again by plain transformers on the same windows, without seed in the process
    program = PLAIN_PERPLEXITY.format(path=str(path), text=str(tmp_path / "windows.json"))
    save_test_windows(study, tmp_path / "windows.json")
    plain = subprocess.run(
        [sys.executable, "-c", program], cwd="/", capture_output=True, text=True, env=environment(PYTHONPATH="")
    )
    assert plain.returncode == 0, plain.stderr
    found = json.loads(plain.stdout)
    assert not found["seed_imported"]
    assert found["perplexity"] == pytest.approx(result["test"]["perplexity"], rel=1e-4)
    assert found["cached_equals_uncached"]

    judged = run_seed("seed.evaluate", str(path), "--json", cwd=tmp_path)
    assert f"perplexity: {result['test']['perplexity']:.3f}" in judged.stderr
    assert read_line(judged, JudgedLine).ppl == pytest.approx(result["test"]["perplexity"])
    again = run_seed(
        *search_words(make_checkpoint("gpt2"), text_file, "--study", "tiny", "--frontier-size=2", "--json"),
        cwd=tmp_path,
    )
    assert "finished before: nothing is left to do in studies/tiny" in again.stderr
    assert again.stderr.split("dense model:")[1] == done.stdout.split("dense model:")[1]
    line = read_line(again, SearchLine)
    found = {tuple(map(str, model.dropped_layers)): model.ppl_ratio.value for model in line.models}
    assert found == {tuple(result["candidate"]["parts"]): result["test"]["ppl_ratio"] for result in results}
    assert all((tmp_path / model.path / "config.json").is_file() for model in line.models)
    assert all((tmp_path / str(model.path) / "config.json").is_file() for model in line.models)
    assert (tmp_path / line.report).is_file()
    assert line.num_scored == line.space_size


PLAIN_PERPLEXITY = """
import json, math, sys, torch, transformers
transformers.utils.logging.disable_progress_bar()
model = transformers.AutoModelForCausalLM.from_pretrained({path!r}, dtype=torch.float32).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained({path!r})
windows = torch.tensor(json.load(open({text!r})))
with torch.no_grad():
    logits = model(windows).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
    prompt = windows[:1, :8]
    cached = model.generate(prompt, max_new_tokens=12, do_sample=False, use_cache=True)
    uncached = model.generate(prompt, max_new_tokens=12, do_sample=False, use_cache=False)
print(json.dumps(dict(perplexity=math.exp(loss), seed_imported="seed" in sys.modules,
                      cached_equals_uncached=bool(torch.equal(cached, uncached)))))
"""


def save_test_windows(study: Path, target: Path) -> None:
    """Write the very windows that the study's test PPL was computed on."""
    from seed import sessions, study_dir
    from seed.plans import read_plan

    opened = study_dir.open_existing(study)
    protocol = read_plan(opened).protocol
    session = sessions.reopen(opened, protocol, device_name="cpu")
    target.write_text(json.dumps(session.streams["test"].tokens_NT.tolist()))


def members_of(study: Path) -> list[tuple]:
    """What of a frontier must not depend on how often its search was killed: everything but times."""
    frontier = json.loads((study / "frontier.json").read_text())
    return [
        (m["evaluation"]["candidate"]["parts"], m["rank"], m["evaluation"]["qualities"], m["tied_with"])
        for m in frontier["members"]
    ]


WAYS = {  # each with the finished trials after which it is killed
    "swept": (3, []),
    "searched": (11, ["--sweep-budget=0", "--trials=20", "--sampler=tpe"]),
    "climbed": (5, ["--proxy=short-distillation", "--short-steps=2", "--trials=14"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_search_ends_where_an_unbroken_one_does(make_checkpoint, text_file, tmp_path, way):
    finished, options = WAYS[way]
    model = make_checkpoint("llama", num_layers=6)  # 41 sets of up to three layers
    # measured times differ from run to run, and samplers look at them
    stopwatch = "import json, sys; print(json.load(open(sys.argv[1] + '/config.json'))['num_hidden_layers'])"
    words = search_words(model, text_file, "--max-dropped=3", "--frontier-size=3", *options)
    words += ["--latency-command", f'{sys.executable} -c "{stopwatch}"']
    run_seed(*words, "--study=unbroken", cwd=tmp_path)
    kill_after_trials([*words, "--study=killed"], tmp_path, study="killed", finished=finished)
    kill_when(
        [*words, "--study=killed"], tmp_path, lambda study: any((study / "distilled").glob("*.json")), study="killed"
    )
    done = run_seed(*words, "--study=killed", cwd=tmp_path)
    assert "continuing the study" in done.stdout
    unbroken, killed = tmp_path / "studies" / "unbroken", tmp_path / "studies" / "killed"
    assert members_of(killed) == members_of(unbroken)
    assert [path.name for path in sorted((killed / "models").iterdir())] == [
        path.name for path in sorted((unbroken / "models").iterdir())
    ]
    for path in sorted((unbroken / "distilled").glob("*.json")):
        one, other = json.loads(path.read_text()), json.loads((killed / "distilled" / path.name).read_text())
        assert one["test"] == other["test"]
        assert one["curve"] == other["curve"]


def kill_after_trials(words: list[str], cwd: Path, *, study: str, finished: int) -> None:
    """Start a search and kill it, hard, once its store holds this many trials."""

    def is_time(root: Path) -> bool:
        if not (root / "scores.sqlite").exists():
            return False
        with ScoreStore(root / "scores.sqlite", read_only=True) as store:
            return len(store.read_trials()) >= finished

    kill_when(words, cwd, is_time, study=study)


def kill_when(words: list[str], cwd: Path, is_time: Callable[[Path], bool], *, study: str) -> None:
    process = started.start(words, cwd=cwd, out=Path(os.devnull))
    try:
        deadline = time.monotonic() + 200
        while process.exitcode is None and not is_time(cwd / "studies" / study):
            assert time.monotonic() < deadline, "the search did not get there"
            time.sleep(0.01)
        assert process.exitcode is None, "the search ended before it could be killed"
    finally:
        process.kill()
        process.join()


def test_one_more_model_comes_out_of_a_finished_study(make_checkpoint, text_file, tmp_path):
    scores = f'{sys.executable} -c "import sys, os; print(len(os.listdir(sys.argv[1])))"'
    words = search_words(
        make_checkpoint(),
        text_file,
        "--study=one",
        "--frontier-size=1",
        "--proxy=short-distillation",
        "--short-steps=2",
    )
    run_seed(*words, "--no-distill", cwd=tmp_path)
    study = tmp_path / "studies" / "one"
    assert not (study / "models").exists()
    done = run_seed("seed.distill", "studies/one", "--trial=2", "--eval-command", scores, "--json", cwd=tmp_path)
    assert "test PPL ratio" in done.stderr
    line = read_line(done, DistillLine)
    assert (tmp_path / str(line.distilled.path) / "config.json").is_file()
    result = json.loads(next((study / "distilled").glob("*.json")).read_text())
    assert result["user_score"] >= 5
    assert math.isfinite(result["test"]["ppl_ratio"])
    run_seed("seed.report", "studies/one", cwd=tmp_path)
    failed = run_seed("seed.distill", "studies/one", "--trial=999", "--json", cwd=tmp_path, code=2)
    assert failed.stdout == ""
    error = error_of(failed)
    assert "--trial 999" in error
    assert "0 to" in error


def test_low_rank_updates_behind_a_frozen_prefix_end_up_in_an_ordinary_checkpoint(make_checkpoint, text_file, tmp_path):
    model = make_checkpoint("gpt2")
    words = search_words(model, text_file, "--study=thin", "--frontier-size=1", "--lora-rank=2", "--freeze-prefix")
    run_seed(*words, "--max-dropped=1", "--proxy=short-distillation", "--short-steps=2", cwd=tmp_path)
    study = tmp_path / "studies" / "thin"
    result = json.loads(next((study / "distilled").glob("*.json")).read_text())
    assert "LoRA of rank 2" in result["settings"]["trained"]
    with safe_open(next((study / "models").glob("*/*.safetensors")), framework="np") as stored:
        assert not [name for name in stored.keys() if "lora" in name or "base_layer" in name]  # noqa: SIM118
    judged = run_seed("seed.evaluate", str(next((study / "models").iterdir())), cwd=tmp_path)
    assert f"perplexity: {result['test']['perplexity']:.3f}" in judged.stdout


def test_damaged_scores_are_named(make_checkpoint, text_file, tmp_path):
    words = search_words(make_checkpoint(), text_file, "--study=torn", "--no-distill", "--max-dropped=2")
    run_seed(*words, cwd=tmp_path)
    scores = tmp_path / "studies" / "torn" / "scores.sqlite"
    whole = scores.read_bytes()
    begin = whole.index(b"drop-1closed-form") + len(b"drop-1closed-form")
    scores.write_bytes(whole[:begin] + bytes([whole[begin] ^ 1]) + whole[begin + 1 :])  # of its losses
    error = error_of(run_seed(*words, cwd=tmp_path, code=2))
    assert "scores.sqlite: the score of 'drop-1' ('closed-form') is damaged" in error
    scores.write_bytes(whole)
    run_seed(*words, cwd=tmp_path)


def test_users_own_stopwatch_judge_and_storage_are_used(make_checkpoint, text_file, tmp_path):
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


def test_a_changed_plan_under_the_same_name_is_refused_with_what_differs(make_checkpoint, text_file, tmp_path):
    words = search_words(make_checkpoint(), text_file, "--study=same", "--no-distill", "--max-dropped=1")
    run_seed(*words, cwd=tmp_path)
    before = (tmp_path / "studies" / "same" / "plan.json").read_bytes()
    error = error_of(run_seed(*words, "--rng-seed=7", cwd=tmp_path, code=2))
    assert "rng_seed: 0 in the study, 7 now" in error
    assert "--study NAME" in error
    assert (tmp_path / "studies" / "same" / "plan.json").read_bytes() == before


def test_limits_that_nothing_can_keep_are_refused(make_checkpoint, text_file, tmp_path):
    words = search_words(make_checkpoint(), text_file, "--study=tight", "--no-distill", "--max-dropped=1")
    assert "no candidate can keep the limits" in error_of(run_seed(*words, "--max-memory=1kB", cwd=tmp_path, code=2))


DRY_RUNS = {
    "gpt2": [
        "12 layers, 124 M parameters",
        "10 of 12 layers: 66 candidates",
        "9 of 12 layers: 220",
        "fits one GPU of 24 GB",
    ],
    "tinyllama": [
        "20 of 22 layers: 231 candidates, 1.01\u00a0B parameters, -8.0 %",
        "19 of 22 layers: 1,540",
        "-12.0 %",
    ],
    "demo": [
        "all 298 candidates scored by closed-form recovery",
        "documents of demo",
        "9 of 12 layers: 220 candidates",
    ],
}


@pytest.mark.parametrize("name", DRY_RUNS)
def test_a_dry_run_says_what_a_search_takes_and_writes_nothing(tmp_path, name):
    said = run_seed("seed.search", "--model", name, "--dry-run", cwd=tmp_path).stdout.replace("124\u00a0M", "124 M")
    for text in [
        *DRY_RUNS[name],
        "plan: ",
        "memory: dense model",
        "a GPU is far faster: ",
        "at 50 TFLOP/s",
        "estimated on cpu",
    ]:
        assert text in said
    assert said.splitlines()[-1] == f"run it: python -m seed.search --model {name}"
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_checkpoint_keeps_its_options(make_checkpoint, text_file, tmp_path):
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
    error = error_of(run_seed("seed.search", "--model", "someone/model", "--dry-run", cwd=tmp_path, code=2))
    assert "its shape is not known offline" in error


def test_a_search_of_what_seed_cut_says_to_what_its_ratios_are(make_checkpoint, tmp_path):
    run_seed("seed.export", str(make_checkpoint("gpt2")), "--keep=0,2-3", "--out=cut", cwd=tmp_path)
    words = ["seed.search", "--model", "./cut", "--recovery-text=nowhere.txt"]
    for more in ([], ["--dry-run"]):
        said = run_seed(*words, *more, cwd=tmp_path, code=2).stdout
        assert "./cut: is not an original, but what Seed made of" in said
        assert "3 of its 4 layers, not recovered" in said
        assert "give --start ./cut instead of --model" in said


def test_a_judge_is_told_of_its_own_options(make_checkpoint, tmp_path):
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
    "layers": (["--max-dropped", "12"], ["max_dropped = 12", "11 or fewer"]),
    "device": (["--device", "cuda:7"], ["--device cuda:7", "Available: cpu"]),
    "missing text": (["--recovery-text", "nowhere.txt"], ["nowhere.txt", "no such file"]),
    "window": (["--window-tokens", "100000"], ["--window-tokens 100000", "512"]),
    "validation limit": (["--validation-tokens", "256"], ["--validation-tokens 256", "1024 or more"]),
    "calibration limit": (["--calibration-tokens=1"], ["--calibration-tokens 1:", "1024 or more"]),
    "dry run for a script": (["--dry-run", "--json"], ["--dry-run", "--json"]),
    "space file": (["--space", "nowhere.toml"], ["nowhere.toml"]),
}


@pytest.mark.parametrize("case", BAD_WORDS)
def test_bad_input_gets_one_clear_error_and_writes_nothing(tmp_path, case):
    words, wanted = BAD_WORDS[case]
    began = time.monotonic()
    error = error_of(run_seed("seed.search", *words, cwd=tmp_path, code=2))
    assert time.monotonic() - began < 60  # a blocked hub must not hang; generous, since machines are slow
    for text in wanted:
        assert text in error
    assert not list(tmp_path.iterdir())


def test_bad_files_are_named_and_nothing_is_written(make_checkpoint, tmp_path):
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
    assert "seed.report" not in error
    error = error_of(run_seed("seed.report", "nowhere", cwd=tmp_path, code=2))
    assert "not a study" in error
    assert not (tmp_path / "studies").exists()


def test_what_may_not_be_read_is_named_and_not_taken_for_missing(make_checkpoint, text_file, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "."):
        model = shutil.copytree(make_checkpoint(), tmp_path / "theirs")
        (model / name).chmod(0)
        words = (
            search_words(model, text_file)
            if name == "."
            else ["seed.evaluate", str(model), "--test-text", str(text_file)]
        )
        error = error_of(run_unprivileged(*words, cwd=tmp_path, code=2))
        assert f"{model / name}: permission denied" in error
        assert "own" in error
        (model / name).chmod(0o755)
        shutil.rmtree(model)
    assert not list(tmp_path.iterdir())


def test_a_study_of_somebody_else_says_what_to_do(tmp_path):
    study = tmp_path / "theirs"
    study.mkdir()
    (study / "plan.json").write_text("{}")
    study.chmod(0o555)
    error = error_of(run_unprivileged("seed.report", "theirs", cwd=tmp_path, code=2))
    assert "theirs: cannot be written (Permission denied)" in error
    assert "work on a copy of your own" in error
    study.chmod(0)
    for command in ("seed.report", "seed.dashboard", "seed.distill"):
        error = error_of(run_unprivileged(command, "theirs", cwd=tmp_path, code=2))
        assert "theirs" in error
        assert "permission denied. Ask its owner" in error


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_hidden_layers", "4"), ("hidden_size", "32"), ("layer_types", ["full_attention"] * 2)],
)
def test_a_config_that_does_not_hold_together_is_one_error(make_checkpoint, text_file, tmp_path, field, value):
    model = shutil.copytree(make_checkpoint("qwen2"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {field: value}))
    for more in ([], ["--dry-run"]):
        error = error_of(run_seed(*search_words(model, text_file, *more), cwd=tmp_path, code=2))
        assert f"{model}: its config.json is wrong (" in error
        assert field in error
        assert "Mend it" in error


def test_a_full_disk_is_reported_and_leaves_nothing_half_written(make_checkpoint, text_file, tmp_path):
    words = search_words(make_checkpoint(), text_file, "--study=full", "--frontier-size=1", "--max-dropped=1")
    program = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000));"
        "sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 2, done.stderr[-3000:]
    error_of(done)
    assert not list((tmp_path / "studies").rglob("*.safetensors"))
    run_seed(*words, cwd=tmp_path)  # with room again, the same command finishes


def test_two_searches_of_one_study_do_not_mix(make_checkpoint, text_file, tmp_path):
    words = search_words(make_checkpoint(), text_file, "--study=busy", "--no-distill", "--max-dropped=1")
    run_seed(*words, cwd=tmp_path)
    from seed import study_dir

    with study_dir.lock(study_dir.open_existing(tmp_path / "studies" / "busy")):
        error = error_of(run_seed(*words, cwd=tmp_path, code=2))
    assert f"pid {os.getpid()}" in error


def test_find_frontier_returns_the_frontier_as_records(make_checkpoint, text_file, tmp_path):
    from seed.search import find_frontier

    record = find_frontier(
        str(make_checkpoint()),
        recovery_text=str(text_file),
        studies_dir=tmp_path,
        window_tokens=64,
        calibration_tokens=1024,
        validation_tokens=2048,
        test_tokens=2048,
        prompt_tokens=8,
        new_tokens=4,
        latency_repeats=3,
        max_dropped=2,
        distill=False,
        device="cpu",
    )
    assert record.frontier.num_scored == record.frontier.space_size == 10
    assert {len(member.evaluation.candidate.dropped_layers) for member in record.frontier.members} <= {1, 2}
