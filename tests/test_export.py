"""Candidates leave a study as they were cut or as they were distilled, say what they are, and mergekit makes the same."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import seed
from seed import distill, evaluate, export, folder
from seed.errors import ModelError
from seed.models.checkpoint import load_checkpoint
from seed.models.integrity import find_damage
from seed.plans import SearchPlan
from seed.reporting.result_line import ExportLine
from seed.stages import exporting, planning, protocols
from seed.stages.gathering import find_trial, gather_record
from seed.stages.starts import describe_original, read_start
from tests.hub import COMMIT, Hub, fill_repository
from tests.models.test_integrity import DAMAGES
from tests.test_commands import error_of, read_line, run_seed, search_words

NUM_LAYERS = 6


@pytest.fixture(scope="module")
def place(make_checkpoint, text_file, tmp_path_factory) -> Path:
    """A folder with a searched study of a licensed six-layer model: four trials, the best of them distilled."""
    path = tmp_path_factory.mktemp("export")
    model = shutil.copytree(make_checkpoint("llama", num_layers=NUM_LAYERS), path / "model")
    (model / "README.md").write_text("---\nlicense: other\nlicense_name: our-own\nlicense_link: LICENSE\n---\n# M\n")
    (model / "LICENSE").write_text("Ours.")
    words = [
        "--study=tiny",
        "--frontier-size=1",
        "--min-dropped=2",
        "--max-dropped=2",
        "--proxy=short-distillation",
        "--short-steps=1",
    ]
    run_seed(*search_words(model, text_file, *words, "--trials=4", "--no-screen"), cwd=path)
    return path


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That folder, and this process in it; what was written without recovery is gone afterwards."""
    monkeypatch.chdir(place)
    yield place
    shutil.rmtree(place / "studies" / "tiny" / "unrecovered", ignore_errors=True)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Run the command in this process, which has imported all that it needs."""
    monkeypatch.setattr(sys, "argv", ["seed.export", *words])
    export.main()


def read_trials(place: Path) -> dict[bool, list]:
    """The study's finished trials, by whether they were distilled."""
    record = gather_record(folder.StudyFolder(place / "studies" / "tiny"))
    done = {result.candidate for result in record.distilled}
    found: dict[bool, list] = {True: [], False: []}
    for trial in record.trials:
        if trial.state == "COMPLETE":
            found[trial.evaluation.candidate in done].append(trial)
    return found


def stack(recipe: dict) -> dict[str, torch.Tensor]:
    """What a passthrough merge of a Llama is, by mergekit's documentation: slices stacked, all else from the first model."""
    assert recipe["merge_method"] == "passthrough"
    found: dict[str, torch.Tensor] = {}
    layer = 0
    for part in recipe["slices"]:
        [source] = part["sources"]
        weights = load_file(Path(source["model"]) / "model.safetensors")
        found = {name: weight for name, weight in weights.items() if ".layers." not in name} | found
        for index in range(*source["layer_range"]):
            prefix = f"model.layers.{index}."
            own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
            assert own
            found |= {f"model.layers.{layer}.{name}": weight for name, weight in own.items()}
            layer += 1
    return {name: weight.to(getattr(torch, recipe["dtype"])) for name, weight in found.items()}


def expect_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_candidate_that_is_not_distilled_is_written_as_it_was_cut(inside: Path) -> None:
    trial = read_trials(inside)[False][0]
    candidate = trial.evaluation.candidate
    done = run_seed("seed.export", "studies/tiny", f"--trial={trial.number}", "--no-recovery", "--json", cwd=inside)
    line = read_line(done, ExportLine)
    path = inside / line.path
    assert path == inside / "studies" / "tiny" / "unrecovered" / candidate.key
    assert (line.kept_layers, line.num_layers, line.is_recovered) == (candidate.kept_layers, NUM_LAYERS, False)
    assert line.unrecovered_ppl_ratio == pytest.approx(trial.evaluation.qualities["none"].ppl_ratio)
    assert f"--trial {trial.number}" in done.stderr.split("to recover it: ")[1]
    assert find_damage(path) is None
    weights, dense = load_file(path / "model.safetensors"), load_file(inside / "model" / "model.safetensors")
    for position, layer in enumerate(candidate.kept_layers):
        name = "mlp.up_proj.weight"
        assert torch.equal(weights[f"model.layers.{position}.{name}"], dense[f"model.layers.{layer}.{name}"])
    load_checkpoint(path, device=torch.device("cpu"), dtype=torch.float32)
    assert (path / "LICENSE").read_text() == "Ours."

    said = json.loads((path / "seed.json").read_text())
    plan = json.loads((inside / "studies" / "tiny" / "plan.json").read_text())
    assert said["base_model"] == str(inside / "model")
    assert said["base_sha256"] == protocols.hash_weights(inside / "model")
    assert said["window_tokens"] == 64
    assert tuple(said["kept_layers"]) == candidate.kept_layers
    assert tuple(said["dropped_layers"]) == candidate.dropped_layers
    assert (said["study"], said["trial"], said["recovered"]) == ("tiny", trial.number, False)
    assert said["streams"] == plan["identity"]["streams"]
    assert said["versions"]["transformers"] == transformers.__version__
    assert said["seed"] == seed.__version__
    assert said["metrics"]["validation"]["ppl_ratio"] == pytest.approx(line.unrecovered_ppl_ratio)
    assert read_start(path).tokens == 0  # a search may go on from it

    card = ModelCard((path / "README.md").read_text())
    assert "**It is not recovered.**" in card.text
    assert f"{line.unrecovered_ppl_ratio:.4f}" in card.text
    assert f"python -m seed.distill studies/tiny --trial {trial.number}" in card.text
    assert (card.data.license, card.data.license_name) == ("other", "our-own")
    assert not hasattr(card.data, "base_model") or card.data.base_model is None  # a directory is none of the hub's
    assert {result.metric_type for result in card.data.eval_results} >= {"perplexity", "perplexity_ratio"}


def test_the_recipe_stacks_the_same_tensors(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for trial in read_trials(inside)[False][:2]:
        run(monkeypatch, "studies/tiny", f"--trial={trial.number}", "--no-recovery")
        path = inside / "studies" / "tiny" / "unrecovered" / trial.evaluation.candidate.key
        expect_equal(stack(yaml.safe_load((path / "mergekit.yml").read_text())), load_file(path / "model.safetensors"))


def test_mergekit_makes_the_same_tensors(inside: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = shutil.which("mergekit-yaml")
    if program is None:
        pytest.skip("mergekit-yaml is not on the PATH: pip install mergekit, in an environment of its own")
    trial = read_trials(inside)[False][0]
    run(monkeypatch, "studies/tiny", f"--trial={trial.number}", "--no-recovery")
    path = inside / "studies" / "tiny" / "unrecovered" / trial.evaluation.candidate.key
    done = subprocess.run([program, str(path / "mergekit.yml"), str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [file] = (tmp_path / "out").glob("*.safetensors")
    expect_equal(load_file(file), load_file(path / "model.safetensors"))


def test_a_distilled_model_is_found_and_copied(inside: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    [trial] = read_trials(inside)[True]
    model = inside / "studies" / "tiny" / "models" / trial.evaluation.candidate.key
    run(monkeypatch, "studies/tiny", f"--trial={trial.number}", "--json")
    line = msgspec.json.decode(capfd.readouterr().out, type=ExportLine)
    assert (inside / line.path, line.is_recovered, line.recipe) == (model, True, None)
    run(monkeypatch, "studies/tiny", f"--trial={trial.number}", "--out=copy")
    assert "model:  copy" in capfd.readouterr().out
    assert {file.name: file.read_bytes() for file in (inside / "copy").iterdir()} == {
        file.name: file.read_bytes() for file in model.iterdir()
    }
    said = json.loads((model / "seed.json").read_text())
    result = json.loads(next((inside / "studies" / "tiny" / "distilled").glob("*.json")).read_text())
    assert said["recovered"]
    assert said["trial"] == trial.number
    assert said["settings"] == result["settings"]
    assert (model / "LICENSE").read_text() == "Ours."  # which its card names
    assert said["metrics"]["test"]["ppl_ratio"] == result["test"]["ppl_ratio"]
    assert said["licence"] == {"license": "other", "license_name": "our-own", "license_link": "LICENSE"}
    assert ModelCard((model / "README.md").read_text()).data.license_name == "our-own"
    run(monkeypatch, "studies/tiny", f"--trial={trial.number}", "--out=copy")  # the same once more
    number = read_trials(inside)[False][0].number
    error = fail(monkeypatch, capfd, "studies/tiny", f"--trial={number}", "--no-recovery", "--out=copy")
    assert "copy: something else is already there" in error
    (inside / "copy" / "tokenizer.json").unlink()
    error = fail(monkeypatch, capfd, "studies/tiny", f"--trial={trial.number}", "--out=copy")
    assert "copy: damaged: tokenizer.json is missing. Move it away" in error
    # without recovery it is still to be had, judged on test text
    run(monkeypatch, "studies/tiny", f"--trial={trial.number}", "--no-recovery", "--out=raw")
    assert f"{result['test_unrecovered']['ppl_ratio']:.4f} on test text" in capfd.readouterr().out
    for name in ("copy", "raw"):
        shutil.rmtree(inside / name)


def list_undistilled(place: Path) -> list:
    """The frontier's trials that seed.distill would distill."""
    study = folder.StudyFolder(place / "studies" / "tiny")
    return distill.choose_trials(study, gather_record(study), trial=None, replicas=1)


@pytest.mark.parametrize(("name", "harm", "said"), DAMAGES[:3])
def test_a_damaged_model_is_refused_wherever_it_is_used(
    inside: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd, name: str, harm, said: str
) -> None:
    [trial] = read_trials(inside)[True]
    model = inside / "studies" / "tiny" / "models" / trial.evaluation.candidate.key
    copy, raw = shutil.copytree(model, tmp_path / "copy"), tmp_path / "raw"
    run(monkeypatch, "studies/tiny", f"--trial={trial.number}", "--no-recovery", f"--out={raw}")
    whole = (model / name).read_bytes()
    for path in (model, copy, raw):
        harm(path / name)
    cure = f"{model.name}: damaged: {name} {said}. Write it again: python -m seed.distill"
    try:
        assert cure in fail(monkeypatch, capfd, "studies/tiny", f"--trial={trial.number}", "--out=never")
        with pytest.raises(ModelError, match=cure):
            evaluate.check_model(model)
        assert list_undistilled(inside) == [trial]
    finally:
        (model / name).write_bytes(whole)
    assert not (inside / "never").exists()
    evaluate.check_model(model)
    assert list_undistilled(inside) == []
    for path in (copy, raw):
        with pytest.raises(ModelError, match=f"{path}: damaged: {name} {said}"):
            evaluate.check_model(path)
        with pytest.raises(ModelError, match=f"--start {path}: damaged: {name} {said}"):
            read_start(path)
        with pytest.raises(ModelError, match=f"--model {path}: damaged: {name} {said}"):
            describe_original(str(path))
        said_of_cut = fail(monkeypatch, capfd, str(path), "--keep=0,1", "--out=never")
        assert str(path) in said_of_cut
        assert "damaged" in said_of_cut or name.partition(".")[0] in said_of_cut  # or what cannot be read of it
    words = ("studies/tiny", f"--trial={trial.number}", "--no-recovery", f"--out={raw}")
    assert f"{raw}: damaged: {name} {said}. Move it away" in fail(monkeypatch, capfd, *words)


def test_layers_of_a_model_that_was_cut_before_go_by_the_original(
    inside: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd
) -> None:
    out, again = tmp_path / "once", tmp_path / "twice"
    run(monkeypatch, "./model", "--keep=0,2-5", "--out", str(out), "--json")
    line = msgspec.json.decode(capfd.readouterr().out, type=ExportLine)
    assert (line.kept_layers, line.base_model) == ((0, 2, 3, 4, 5), str(inside / "model"))
    assert line.unrecovered_ppl_ratio is None
    run(monkeypatch, str(out), "--keep=0,1,4", "--out", str(again))
    said = json.loads((again / "seed.json").read_text())
    assert (said["num_layers"], said["kept_layers"], said["dropped_layers"]) == (6, [0, 2, 5], [1, 3, 4])
    assert said["base_model"] == str(inside / "model")
    assert said["start"]["path"] == str(out)
    assert "How much it lost was not measured." in (again / "README.md").read_text()
    recipe = yaml.safe_load((again / "mergekit.yml").read_text())
    assert [part["sources"][0]["layer_range"] for part in recipe["slices"]] == [[0, 2], [4, 5]]  # of what was cut
    expect_equal(stack(recipe), load_file(again / "model.safetensors"))
    whole, left = load_file(inside / "model" / "model.safetensors"), load_file(again / "model.safetensors")
    assert torch.equal(left["model.layers.2.mlp.up_proj.weight"], whole["model.layers.5.mlp.up_proj.weight"])


def test_a_recovered_model_that_is_cut_again_says_which_weights_it_comes_from(
    inside: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    [distilled] = read_trials(inside)[True]
    before = distilled.evaluation.candidate.kept_layers
    model = inside / "studies" / "tiny" / "models" / distilled.evaluation.candidate.key
    run(monkeypatch, str(model), "--keep=0,2", "--out", str(tmp_path / "out"))
    said = json.loads((tmp_path / "out" / "seed.json").read_text())
    assert said["kept_layers"] == [before[0], before[2]]
    assert (said["base_model"], said["base_sha256"]) == (
        str(inside / "model"),
        protocols.hash_weights(inside / "model"),
    )
    assert (tmp_path / "out" / "LICENSE").read_text() == "Ours."


def test_a_study_of_a_recovered_model_is_cut_from_that(inside: Path, tmp_path: Path) -> None:
    study = folder.StudyFolder(inside / "studies" / "tiny")
    plan = folder.read_record(study.plan, SearchPlan)
    protocol = planning.read_protocol(plan, place=study.root)
    [distilled] = read_trials(inside)[True]
    before = distilled.evaluation.candidate.kept_layers
    start = study.model(distilled.evaluation.candidate.key)
    protocol = msgspec.structs.replace(
        protocol, start=str(start), start_sha256=protocols.hash_weights(start), start_tokens=4096
    )
    candidate = msgspec.structs.replace(distilled.evaluation.candidate, kept_layers=(before[0], *before[2:]))
    evaluation = msgspec.structs.replace(distilled.evaluation, candidate=candidate)
    trial = msgspec.structs.replace(distilled, evaluation=evaluation)
    order = exporting.order_trial(study, plan, protocol, trial, ())
    line = exporting.write_copy(exporting.plan_order(order, tmp_path / "out"), on_bytes=lambda num_bytes: None)
    assert line.kept_layers == candidate.kept_layers
    recovered, found = (load_file(path / "model.safetensors") for path in (start, tmp_path / "out"))
    for position, layer in enumerate((0, 2, 3)):
        name = "self_attn.q_proj.weight"
        assert torch.equal(found[f"model.layers.{position}.{name}"], recovered[f"model.layers.{layer}.{name}"])
    said = json.loads((tmp_path / "out" / "seed.json").read_text())
    assert said["kept_layers"] == list(candidate.kept_layers)
    assert said["start"] == {"path": str(start), "sha256": protocol.start_sha256, "tokens": 4096}
    assert read_start(tmp_path / "out").tokens == 4096
    assert "recovered for 4,096 tokens before" in (tmp_path / "out" / "README.md").read_text()


def fail(monkeypatch: pytest.MonkeyPatch, capfd, *words: str) -> str:
    """The one line of an error of the command, run in this process."""
    from seed.console import run_command

    monkeypatch.setattr(sys, "argv", ["seed.export", *words])
    with pytest.raises(SystemExit) as caught:
        run_command(export.main)
    assert caught.value.code == 2
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    return lines[0]


def test_what_cannot_be_done_is_said_with_the_cure(
    inside: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd
) -> None:
    number = read_trials(inside)[False][0].number
    monkeypatch.setattr("seed.interrupts.listen", lambda: None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for words, wanted in (
        (["studies/tiny", f"--trial={number}"], f"python -m seed.distill studies/tiny --trial {number}"),
        (["studies/tiny", "--trial=999"], "no such finished trial"),
        (["studies/tiny"], "--trial N"),
        (["studies/nowhere", "--trial=1"], "not a study"),
        (["studies/tiny", "--trial=1", "--keep=1"], "Leave out"),
        (["studies/tiny", f"--trial={number}", "--revision=abc"], "--revision abc"),
        (["model", "--keep=1"], "--out DIRECTORY"),
        (["model", "--keep=1,6", "--out", str(tmp_path / "out")], "model has 6 layers, 0 to 5"),
        (["model", "--keep=1", "--out", str(tmp_path / "mine")], "something else is already there"),
        (["model", "--keep=0-5", "--out", str(tmp_path / "out")], "nothing would be cut"),
        (["studies/tiny", "--keep=1", "--out", str(tmp_path / "out")], "is a study"),
        (["model", "--keep=1", "--out", "model/cut"], "Give another --out"),
        (["someone/model", "--keep=1", "--out", str(tmp_path / "out")], "hub cannot be reached"),
        (["./nowhere", "--keep=1", "--out", str(tmp_path / "out")], "no such directory"),
        (["model", "--revision=abc", "--keep=1", "--out", str(tmp_path / "out")], "only models of the hub"),
    ):
        assert wanted in fail(monkeypatch, capfd, *words), words
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()
    assert not (inside / "model" / "cut").exists()
    config = inside / "model" / "config.json"
    before = config.read_text()
    config.write_text(before + "\n")
    try:
        error = fail(monkeypatch, capfd, "studies/tiny", f"--trial={number}", "--no-recovery")
        assert "changed since" in error
    finally:
        config.write_text(before)


def test_what_lies_there_is_never_written_over(
    inside: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd
) -> None:
    out = tmp_path / "out"
    run(monkeypatch, "model", "--keep=0,2", "--out", str(out))
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    trained = {name: weight + 1 for name, weight in load_file(out / "model.safetensors").items()}
    save_file(trained, out / "model.safetensors", metadata={"format": "pt"})
    (out / "notes.txt").write_text("mine")
    capfd.readouterr()
    error = fail(monkeypatch, capfd, "model", "--keep=0,2", "--out", str(out))
    assert "out: damaged: model.safetensors is not as it was written. Move it away" in error
    assert "already there" in fail(monkeypatch, capfd, "model", "--keep=0,3", "--out", str(out))
    expect_equal(load_file(out / "model.safetensors"), trained)
    assert (out / "notes.txt").read_text() == "mine"
    source = shutil.copytree(inside / "model", tmp_path / "model")
    run(monkeypatch, str(source), "--keep=0,2", "--out", str(tmp_path / "of"))
    capfd.readouterr()
    run(monkeypatch, str(source), "--keep=0,2", "--out", str(tmp_path / "of"))
    assert "is there already, and stays as it is" in capfd.readouterr().out
    save_file(load_file(source / "model.safetensors"), source / "model.safetensors", metadata={"format": "pt"})
    error = fail(monkeypatch, capfd, str(source), "--keep=0,2", "--out", str(tmp_path / "of"))
    assert "something else is already there" in error  # the source was written since


def test_a_model_without_a_tokenizer_and_a_config_of_wrong_types_are_refused(
    inside: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd
) -> None:
    source = shutil.copytree(inside / "model", tmp_path / "model")
    (source / "tokenizer_config.json").unlink()
    for _ in range(2):  # tokenizer.json will do, and what was written is known again
        run(monkeypatch, str(source), "--keep=0,2", "--out", str(tmp_path / "out"))
    (source / "tokenizer.json").unlink()
    error = fail(monkeypatch, capfd, str(source), "--keep=0,2", "--out", str(tmp_path / "none"))
    assert "a tokenizer (tokenizer.json, tokenizer.model or vocab.json) is missing" in error
    for field, value in (("hidden_size", "abc"), ("num_hidden_layers", None), ("rope_parameters", 3)):
        wrong = shutil.copytree(inside / "model", tmp_path / field)
        config = json.loads((wrong / "config.json").read_text())
        (wrong / "config.json").write_text(json.dumps(config | {field: value}))
        assert f"{wrong}: its config" in fail(
            monkeypatch, capfd, str(wrong), "--keep=0", "--out", str(tmp_path / "none")
        )
    assert not (tmp_path / "none").exists()


def test_what_is_left_out_is_said_and_a_stale_provenance_is_not_believed(
    inside: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd
) -> None:
    source = shutil.copytree(inside / "model", tmp_path / "model")
    weights = load_file(source / "model.safetensors")
    heads = {"value_head.weight": torch.ones(3), "value_head.bias": torch.ones(1)}
    save_file(weights | heads, source / "model.safetensors", metadata={"format": "pt"})
    run(monkeypatch, str(source), "--keep=0,2", "--out", str(tmp_path / "out"), "--json")
    said = capfd.readouterr()
    assert "left out, since transformers does not read it: value_head.bias and 1 more" in said.err
    assert msgspec.json.decode(said.out, type=ExportLine).left_out == tuple(sorted(heads))
    shutil.copy(tmp_path / "out" / "seed.json", source / "seed.json")
    error = fail(monkeypatch, capfd, str(source), "--keep=0", "--out", str(tmp_path / "other"))
    assert "seed.json says that 2 layers were kept, and its config has 6" in error


def test_a_model_of_the_hub_is_found_in_its_cache(
    inside: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd
) -> None:
    commit = "4e20de362430cd3b72f300e6b0f18e50e7166e08"
    snapshot = tmp_path / "hub" / "models--someone--model" / "snapshots" / commit
    shutil.copytree(inside / "model", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    words = ["someone/model", f"--revision={commit}", "--keep=0,3", "--out", str(tmp_path / "out")]
    run(monkeypatch, *words)
    said = json.loads((tmp_path / "out" / "seed.json").read_text())
    assert (said["base_model"], said["base_revision"]) == ("someone/model", commit)
    card = ModelCard((tmp_path / "out" / "README.md").read_text())
    assert card.data.base_model == "someone/model"
    assert card.data.base_model_relation == "merge"
    assert card.data.license_name == "our-own"
    recipe = yaml.safe_load((tmp_path / "out" / "mergekit.yml").read_text())
    assert recipe["slices"][1]["sources"][0] == {"model": f"someone/model@{commit}", "layer_range": [3, 4]}


def test_a_model_of_the_hub_is_downloaded_whole_and_of_one_commit(hub: Hub, tmp_path: Path) -> None:
    fill_repository(tmp_path / "remote")
    hub.repositories["someone/model"] = tmp_path / "remote"
    words = ["seed.export", "someone/model", "--keep=0,3", "--out=cut", "--json"]
    done = run_seed(*words, cwd=tmp_path, **hub.environment(tmp_path / "cache"))
    shards = [path.name for path in (tmp_path / "remote").glob("model.safetensors-*-of-*.safetensors")]
    assert len(shards) > 2
    beside = {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
    }
    beside |= {"generation_config.json", "LICENSE", "NOTICE", "processor_config.json", "video_preprocessor_config.json"}
    assert sorted(hub.sent) == sorted({"config.json", "README.md", "model.safetensors.index.json", *beside, *shards})

    out = tmp_path / "cut"
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        *{"config.json", "README.md", "model.safetensors", "seed.json", "mergekit.yml"},
        *beside,
    }
    load_checkpoint(out, device=torch.device("cpu"), dtype=torch.float32)
    assert set(transformers.AutoTokenizer.from_pretrained(out).chat_template) == {"default", "tool_use"}
    assert read_line(done, ExportLine).base_revision == COMMIT
    assert json.loads((out / "seed.json").read_text())["base_revision"] == COMMIT
    card = ModelCard((out / "README.md").read_text())
    assert card.data.license_link == "LICENSE"
    assert f"revision {COMMIT}" in card.text
    assert f"python -m seed.export someone/model --keep 0,3 --revision {COMMIT} --out DIRECTORY" in card.text
    recipe = yaml.safe_load((out / "mergekit.yml").read_text())
    assert [part["sources"][0]["model"] for part in recipe["slices"]] == [f"someone/model@{COMMIT}"] * 2


def test_a_model_of_which_the_cache_lacks_a_shard_is_not_called_damaged(hub: Hub, tmp_path: Path) -> None:
    fill_repository(tmp_path / "remote")
    hub.repositories["someone/model"] = tmp_path / "remote"
    words = ["seed.export", "someone/model", "--keep=0,3"]
    run_seed(*words, "--out=once", cwd=tmp_path, **hub.environment(tmp_path / "cache"))
    shard = next((tmp_path / "cache").rglob("snapshots/*/model.safetensors-00002-*"))
    shard.unlink()
    offline = hub.environment(tmp_path / "cache") | {"HF_HUB_OFFLINE": "1"}
    error = error_of(run_seed(*words, "--out=twice", cwd=tmp_path, code=2, **offline))
    assert "someone/model" in error
    assert "not in the local cache, and the hub cannot be reached" in error


def test_a_link_is_followed_to_where_it_leads(inside: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    [distilled] = read_trials(inside)[True]
    for words in (["model", "--keep=0,3"], ["studies/tiny", f"--trial={distilled.number}"]):
        (tmp_path / "real").mkdir()
        run(monkeypatch, *words, "--out", str(tmp_path / "link"))
        assert find_damage(tmp_path / "real") is None
        assert (tmp_path / "link").readlink() == Path("real")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
        if words[0] == "model":
            weights = load_file(tmp_path / "real" / "model.safetensors")
            assert len({name.split(".")[2] for name in weights if ".layers." in name}) == 2
        shutil.rmtree(tmp_path / "real")


def test_the_directory_that_one_stands_in_is_not_replaced(
    inside: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd
) -> None:
    place = tmp_path / "empty"
    place.mkdir()
    monkeypatch.chdir(place)
    for out in (".", "..", str(place)):
        error = fail(monkeypatch, capfd, str(inside / "model"), "--keep=0,3", "--out", out)
        assert f"{out}: this command runs in it" in error
        assert "another --out" in error
    assert not list(place.iterdir())


def test_trials_are_found_by_their_number(inside: Path) -> None:
    record = gather_record(folder.StudyFolder(inside / "studies" / "tiny"))
    assert find_trial(record, 1, place=inside).number == 1
