"""What the README tells people to type, typed: with small budgets, and hub models without a network."""

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from seed.resolve import list_presets
from tests.running import ROOT, SMALL_WORDS, error_of, run_seed

README = (ROOT / "README.md").read_text()
SMALL = [*SMALL_WORDS, "--trials=4", "--frontier-size=1"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def seed_commands() -> list[list[str]]:
    """The words of every ``python -m seed...`` or ``studies...`` line of the README."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    lines += re.findall(r"^    (python -m (?:seed|studies).*)$", README, re.M)
    return [
        shlex.split(line, comments=True)[2:]
        for line in lines
        if line.startswith(("python -m seed", "python -m studies"))
    ]


@pytest.fixture(scope="module")
def place(make_checkpoint, text_file, finished_study, tmp_path_factory) -> Path:
    """A folder as the README's reader has it in the end: a checkpoint, some notes, and the finished studies that it names."""
    path = tmp_path_factory.mktemp("readme")
    shutil.copytree(make_checkpoint("llama"), path / "my-checkpoint")
    shutil.copy(text_file, path / "notes.txt")
    for name in ("demo", "gpt2-small"):
        finished_study.copy(path).root.rename(path / "studies" / name)
    return path


def test_the_first_command_searches_the_demo(tmp_path):
    words = next(words for words in seed_commands() if words == ["seed.search"])
    done = run_seed(*words, *SMALL, "--trials=1", "--max-dropped=1", "--sweep-budget=0", "--no-distill", cwd=tmp_path)
    assert done.stdout.endswith("open: studies/demo/report.html\n")
    assert (tmp_path / "studies" / "demo" / "report.html").is_file()


def test_names_of_hub_models_give_the_clear_error_without_a_network(tmp_path):
    tried = 0
    for words in seed_commands():
        model = words[words.index("--model") + 1] if "--model" in words else "demo"
        if model in list_presets() and model != "demo":
            assert "hub cannot be reached" in error_of(run_seed(*words, cwd=tmp_path, code=2))
            tried += 1
    assert tried >= 2
    assert not list(tmp_path.rglob("*.json"))


def test_commands_on_the_readers_own_model_work(place):
    [own] = [words for words in seed_commands() if words[0] == "seed.search" and "./my-checkpoint" in words]
    run_seed(*own, *SMALL, "--no-distill", cwd=place)
    assert (place / "studies" / "my-checkpoint" / "report.html").is_file()
    _, of_layers = [words for words in seed_commands() if words[0] == "seed.export"]
    run_seed(*of_layers, cwd=place)
    assert (place / "cut" / "model.safetensors").is_file()


def test_commands_on_studies_work(place):
    [distill] = [words for words in seed_commands() if words[0] == "seed.distill"]
    trial = distill.index("--trial") + 1
    run_seed(*distill[:trial], "3", *distill[trial + 1 :], "--distill-tokens=1000", cwd=place)
    of_trial, _ = [words for words in seed_commands() if words[0] == "seed.export"]
    trial = of_trial.index("--trial") + 1
    done = run_seed(*of_trial[:trial], "3", *of_trial[trial + 1 :], cwd=place)
    assert "mergekit.yml" in done.stdout
    [evaluate] = [words for words in seed_commands() if words[0] == "seed.evaluate"]
    model = next((place / "studies" / "demo" / "models").iterdir()).name
    done = run_seed(*[word.replace("MODEL", model) for word in evaluate], cwd=place)
    assert "perplexity:" in done.stdout
    report, compare = [words for words in seed_commands() if words[0] == "seed.report"]
    (place / "studies" / "demo" / "report.html").unlink()
    done = run_seed(*report, cwd=place)
    assert (place / "studies" / "demo" / "report.html").is_file()
    pictures = sorted((place / "studies" / "demo" / "pictures").iterdir())
    assert {"pareto.png", "report.png"} <= {path.name for path in pictures}
    assert all(str(path.relative_to(place)) in done.stdout for path in pictures)
    done = run_seed(*compare, cwd=place)
    assert "Fastest within 5" in done.stdout
    assert (place / "studies" / "demo+gpt2-small.html").stat().st_size > 3_000_000


@pytest.mark.parametrize(
    ("experiment", "small", "said"),
    [
        (["seed.experiment", "fidelity"], ["--per-depth=1", "--depths=1", "--short-steps=1"], "noise ceiling"),
        (["seed.experiment", "compare"], ["--strategies=last_layers", "--rng-seeds=0"], "last layers"),
        (["seed.experiment", "recoveries"], ["--recoveries=pretraining", "--rng-seeds=0"], "continued pretraining"),
        (["studies.claims"], ["--rng-seeds=0"], "Removing in stages"),
    ],
)
def test_experiments_run(place, experiment, small, said):
    [words] = [words for words in seed_commands() if words[: len(experiment)] == experiment]
    done = run_seed(*words, *small, "--distill-tokens=1000", "--learning-rate=1e-3", cwd=place)
    assert said in done.stdout
    assert "new study" not in done.stdout + done.stderr  # what Optuna has to say is not for here


def test_the_python_example_runs(place, monkeypatch, capsys):
    [program] = blocks("python")
    small = program.replace(
        "trials=60",
        "trials=2, frontier_size=1, window_tokens=64, calibration_tokens=1024, validation_tokens=2048, test_tokens=2048,"
        "prompt_tokens=8, new_tokens=4, latency_repeats=3, distill_tokens=4096, learning_rate=1e-3, study='example'",
    )
    assert small != program
    monkeypatch.chdir(place)
    exec(small, {})
    assert re.fullmatch(r"\(\d(, \d)*,?\) \d\.\d+ \d\.\d+\n", capsys.readouterr().out)


def test_every_preset_and_option_that_the_readme_names_exists(tmp_path):
    named = re.search(r"`search_spaces/` \((.*?)\)", README, re.S)
    assert named is not None
    assert sorted(re.findall(r"[\w.-]+", named[1].replace("\n", " "))) == list_presets()
    shown = {words[0] for words in seed_commands()}
    known = {
        option for name in shown for option in re.findall(r"--[a-z-]+", run_seed(name, "--help", cwd=tmp_path).stdout)
    }
    assert set(re.findall(r"`(--[a-z-]+)", README)) <= known
    for image in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / image).is_file(), image


def test_the_wheel_holds_presets_model_and_styles(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("seed_search-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"seed/search_spaces/{name}.toml" for name in list_presets()} <= names
    assert {"seed/demo/model/model.safetensors", "seed/demo/training_windows.npy", "seed/reporting/page.css"} <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "studies/")) for name in names)
