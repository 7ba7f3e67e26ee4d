"""Searches and distillations that something befalls: losses without numbers, kills, full disks, torn files, a lost database."""

import json
from pathlib import Path

import optuna
import pytest
import torch
import transformers

from seed.optimize.storage import open_storage
from tests.conftest import make_config, make_tokenizer
from tests.test_commands import run_seed, search_words


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose second layer overflows where the first is gone, which holds one neuron of it shut."""
    config = make_config("llama", num_layers=4)
    config.mlp_bias = True
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1)
        model.model.layers[0].mlp.down_proj.bias[0] = 10
        mlp = model.model.layers[1].mlp
        mlp.gate_proj.weight[0] = 0
        mlp.gate_proj.weight[0, 0] = -1e6
        mlp.up_proj.weight[0] *= 1e20
        mlp.down_proj.weight[:, 0] *= 1e20
    path = tmp_path_factory.mktemp("fragile")
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


WAYS = {
    "closed form": ["--rung=1"],
    "short distillation": ["--rung=2", "--short-steps=1", "--no-screen", "--storage=sqlite:///trials.db"],
}


@pytest.mark.parametrize("rung", WAYS)
def test_a_set_whose_loss_is_no_number_has_no_value_and_says_why(fragile, text_file, tmp_path, rung):
    words = search_words(fragile, text_file, "--study=fragile", "--no-distill", "--max-dropped=2", *WAYS[rung])
    done = run_seed(*words, cwd=tmp_path)
    assert "3 candidates have no value, since their loss is not a finite number; their trials say so" in done.stdout
    assert "scored 7 of 10 candidates" in done.stdout
    root = tmp_path / "studies" / "fragile"
    url = f"sqlite:///{tmp_path / 'trials.db'}" if rung == "short distillation" else None
    study = optuna.load_study(storage=open_storage(url, journal=root / "journal.log"), study_name="fragile")
    reasons = {trial.user_attrs["dropped"]: trial.user_attrs.get("failed") for trial in study.trials}
    reason = f"the loss of this set ({rung}) is not a finite number"
    assert {dropped: why for dropped, why in reasons.items() if why} == {"0": reason, "0, 2": reason, "0, 3": reason}
    assert len(study.trials) == len(reasons) == 10
    assert reason in (root / "report.html").read_text()
    members = json.loads((root / "frontier.json").read_text())["members"]
    assert not {(0,), (0, 2), (0, 3)} & {
        tuple(set(range(4)) - set(m["evaluation"]["candidate"]["kept_layers"])) for m in members
    }
    if rung == "short distillation":  # none of them is asked for again
        assert "7 candidates were scored before" in run_seed(*words, cwd=tmp_path).stdout
        assert len(study.get_trials()) == 10
