"""What README and docs tell people to type, typed: with small budgets, and hub models without a network; the rest is parsed."""

import argparse
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from seed.resolve import list_presets
from studies import results
from tests.running import ROOT, SMALL_WORDS, error_of, run_seed

# docs/cluster.md has a test of its own, docs/FAMILIES.md holds no commands
PAGES = {
    name: (ROOT / name).read_text() for name in ("README.md", "docs/guide.md", "docs/method.md", "docs/results.md")
}
ALL = "\n".join(PAGES.values())
SMALL = [*SMALL_WORDS, "--trials=4", "--frontier-size=1"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", ALL, re.S)


def spans() -> list[str]:
    """What stands in backquotes within text, each on one line."""
    text = re.sub(r"```.*?```", "", ALL, flags=re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def shell_commands() -> list[list[str]]:
    """The words of every command in a block of shell that runs a module of Seed's, each once."""
    return find_commands([line for block in blocks("sh") for line in block.splitlines()])


def find_commands(lines: list[str]) -> list[list[str]]:
    found = [match[1] for line in lines if (match := re.search(r"-m ((?:seed|studies)\.\w+.*)", line))]
    return [list(words) for words in dict.fromkeys(tuple(shlex.split(line, comments=True)) for line in found)]


@pytest.fixture(scope="module")
def place(make_checkpoint, text_file, finished_study, tmp_path_factory) -> Path:
    """A folder as a reader has it in the end: a checkpoint, some notes, and the finished studies that are named."""
    path = tmp_path_factory.mktemp("readme")
    shutil.copytree(make_checkpoint("llama"), path / "my-checkpoint")
    shutil.copy(text_file, path / "notes.txt")
    for name in ("demo", "gpt2-small"):
        finished_study.copy(path).root.rename(path / "studies" / name)
    return path


def test_the_first_command_searches_the_demo(tmp_path):
    done = run_seed(
        "seed.search", *SMALL, "--trials=1", "--max-dropped=1", "--sweep-budget=0", "--no-distill", cwd=tmp_path
    )
    assert done.stdout.endswith("open: studies/demo/report.html\n")
    assert (tmp_path / "studies" / "demo" / "report.html").is_file()


def test_names_of_hub_models_give_the_clear_error_without_a_network(tmp_path):
    tried = 0
    for words in shell_commands():
        model = words[words.index("--model") + 1] if "--model" in words else "demo"
        is_of_the_hub = model in list_presets() or re.fullmatch(r"\w+/[\w.-]+", model)
        if is_of_the_hub and model != "demo" and "--dry-run" not in words:
            assert "hub cannot be reached" in error_of(run_seed(*words, cwd=tmp_path, code=2))
            tried += 1
    assert tried >= 4
    assert not list(tmp_path.rglob("*.json"))


def test_commands_on_the_readers_own_model_work(place):
    [own] = [words for words in shell_commands() if words[0] == "seed.search" and "./my-checkpoint" in words]
    run_seed(*own, *SMALL, "--no-distill", cwd=place)
    assert (place / "studies" / "my-checkpoint" / "report.html").is_file()
    _, of_layers = [words for words in shell_commands() if words[0] == "seed.export"]
    run_seed(*of_layers, cwd=place)
    assert (place / "cut" / "model.safetensors").is_file()


def test_commands_on_studies_work(place):
    [distill] = [words for words in shell_commands() if words[0] == "seed.distill"]
    trial = distill.index("--trial") + 1
    run_seed(*distill[:trial], "3", *distill[trial + 1 :], "--distill-tokens=1000", cwd=place)
    of_trial, _ = [words for words in shell_commands() if words[0] == "seed.export"]
    trial = of_trial.index("--trial") + 1
    done = run_seed(*of_trial[:trial], "3", *of_trial[trial + 1 :], cwd=place)
    assert "mergekit.yml" in done.stdout
    [evaluate] = [words for words in shell_commands() if words[0] == "seed.evaluate"]
    model = next((place / "studies" / "demo" / "models").iterdir()).name
    done = run_seed(*[word.replace("MODEL", model) for word in evaluate], cwd=place)
    assert "perplexity:" in done.stdout
    report, compare = [words for words in shell_commands() if words[0] == "seed.report"]
    (place / "studies" / "demo" / "report.html").unlink()
    run_seed(*report, cwd=place)
    assert (place / "studies" / "demo" / "report.html").is_file()
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
    [words] = [words for words in shell_commands() if words[: len(experiment)] == experiment]
    done = run_seed(*words, *small, "--distill-tokens=1000", "--learning-rate=1e-3", cwd=place)
    assert said in done.stdout
    assert "new study" not in done.stdout + done.stderr  # what Optuna has to say is not for here


def test_the_python_examples_run(place, monkeypatch, capsys):
    load, search = blocks("python")
    monkeypatch.chdir(place)
    model = next((place / "studies" / "demo" / "models").iterdir())
    exec(re.sub(r"studies/demo/models/[\w-]+", str(model.relative_to(place)), load), {})
    small = search.replace(
        "trials=60",
        "trials=2, frontier_size=1, window_tokens=64, calibration_tokens=1024, validation_tokens=2048, test_tokens=2048,"
        "prompt_tokens=8, new_tokens=4, latency_repeats=3, distill_tokens=4096, learning_rate=1e-3, study='example'",
    )
    assert small != search
    capsys.readouterr()
    exec(small, {})
    assert re.search(r"^\(\d(, \d)*,?\) \d\.\d+ \d\.\d+\n$", capsys.readouterr().out, re.M)


class EnoughError(Exception):
    """A command was understood, and goes no further."""


@pytest.mark.parametrize("words", [*shell_commands(), *find_commands(spans())], ids=" ".join)
def test_every_command_is_understood(words, monkeypatch):
    if words[0] == "studies.results" or words[1:] == ["--help"]:
        return  # takes no words; stops by itself
    parse = argparse.ArgumentParser.parse_args

    def parse_only(*args: object) -> None:
        parse(*args)
        raise EnoughError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", words)
    is_folder = (ROOT / words[0].replace(".", "/")).is_dir()
    with pytest.raises(EnoughError):
        importlib.import_module(words[0] + ".__main__" * is_folder).main()


def test_every_preset_option_target_and_link_exists(tmp_path):
    named = re.search(r"`search_spaces/` \((.*?)\)", ALL, re.S)
    assert named is not None
    assert sorted(re.findall(r"[\w.-]+", named[1].replace("\n", " "))) == list_presets()
    shown = {words[0] for words in shell_commands()}
    helps = [run_seed(name, "--help", cwd=tmp_path).stdout for name in sorted(shown)]
    assert {match[0] for span in spans() if (match := re.match(r"--[a-z-]+", span))} <= set(
        re.findall(r"--[a-z-]+", "".join(helps))
    )
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", ALL, re.M)) <= set(targets)
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, heading = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            titles = re.findall(r"^#+ (.*)", target.read_text(), re.M) if heading else []
            assert not heading or heading in [
                re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles
            ]


def test_the_readme_is_short_and_its_block_fits_a_terminal():
    assert len(PAGES["README.md"].splitlines()) <= 150
    [shown] = re.findall(r"```\n(without layers.*?)```", PAGES["README.md"], re.S)
    assert max(map(len, shown.splitlines())) <= 80


def test_the_page_of_results_is_what_the_records_make():
    assert results.render_page() == results.PAGE.read_text(), "run: python -m studies.results"


def test_the_wheel_holds_presets_model_and_styles(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("seed_search-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"seed/search_spaces/{name}.toml" for name in list_presets()} <= names
    assert {"seed/demo/model/model.safetensors", "seed/demo/training_windows.npy", "seed/reporting/page.css"} <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "studies/")) for name in names)
