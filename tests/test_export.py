"""Candidates leave a study as they were cut or as they were distilled, say what they are, and mergekit makes the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import seed
from seed import distill, evaluate, protocols
from seed.errors import ModelError
from seed.models.checkpoint import load_checkpoint
from seed.models.provenance import describe_original, find_damage, read_start
from seed.plans import read_plan
from seed.records import Candidate, TrialRecord
from seed.reporting.result_line import ExportLine
from seed.stages import exporting
from seed.stages.study_record import find_trial, gather_record
from tests.finished import Finished, Heard
from tests.hub import COMMIT, Hub, fill_repository
from tests.models.test_provenance import DAMAGES
from tests.running import error_of, read_line, run_seed

Weights = dict[str, torch.Tensor]


class Place:
    """A folder with a copy of the finished study: ``model``, licensed, and ``studies/tiny``, searched and distilled."""

    def __init__(self, finished: Finished, path: Path) -> None:
        self.path, self.study = path, finished.copy(path)
        self.model = Path(finished.settings.model)
        (path / "model").symlink_to(self.model)
        record = gather_record(self.study)
        done = {result.candidate for result in record.distilled}
        scored = [trial for trial in record.trials if trial.state == "COMPLETE"]
        self.undistilled = [trial for trial in scored if trial.evaluation.candidate not in done]
        self.distilled = find_trial(record, record.frontier.members[0].trial_number, place=path)
        assert self.distilled.evaluation.candidate in done

    def run(self, *words: str | Path) -> ExportLine:
        return read_line(run_seed("seed.export", *map(str, words), "--json", cwd=self.path), ExportLine)

    def fail(self, *words: str | Path) -> str:
        return error_of(run_seed("seed.export", *map(str, words), cwd=self.path, code=2))

    def find_model(self, trial: TrialRecord) -> Path:
        return self.study.model(trial.evaluation.candidate.key)


@pytest.fixture
def place(finished_study: Finished, tmp_path: Path) -> Place:
    return Place(finished_study, tmp_path)


@pytest.fixture
def cut(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A model of six layers that is nobody else's."""
    return Path(shutil.copytree(make_checkpoint("llama", num_layers=6), tmp_path / "model"))


def export(model: Path, *words: str | Path) -> None:
    run_seed("seed.export", str(model), *map(str, words), cwd=model.parent)


def fail(model: Path, *words: str | Path) -> str:
    return error_of(run_seed("seed.export", str(model), *map(str, words), cwd=model.parent, code=2))


def stack(recipe: dict) -> Weights:
    """What a passthrough merge of a Llama is, by mergekit's documentation: slices stacked, all else from the first model."""
    assert recipe["merge_method"] == "passthrough"
    found: Weights = {}
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


def expect_equal(found: Weights, wanted: Weights) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_candidate_that_is_not_distilled_is_written_as_it_was_cut(place: Place) -> None:
    trial = place.undistilled[0]
    candidate = trial.evaluation.candidate
    words = ["studies/tiny", f"--trial={trial.number}", "--no-recovery", "--json"]
    done = run_seed("seed.export", *words, cwd=place.path)
    line = read_line(done, ExportLine)
    path = place.path / line.path
    assert path.samefile(place.study.unrecovered / candidate.key)
    assert (line.kept_layers, line.num_layers, line.is_recovered) == (candidate.kept_layers, 4, False)
    assert line.unrecovered_ppl_ratio == pytest.approx(trial.evaluation.qualities["none"].ppl_ratio)
    assert f"--trial {trial.number}" in done.stderr.split("to recover it: ")[1]
    assert find_damage(path) is None
    weights, dense = load_file(path / "model.safetensors"), load_file(place.model / "model.safetensors")
    for position, layer in enumerate(candidate.kept_layers):
        name = "mlp.up_proj.weight"
        assert torch.equal(weights[f"model.layers.{position}.{name}"], dense[f"model.layers.{layer}.{name}"])
    expect_equal(stack(yaml.safe_load((path / "mergekit.yml").read_text())), weights)
    load_checkpoint(path, device=torch.device("cpu"), dtype=torch.float32)
    assert (path / "LICENSE").read_text() == "Ours."

    said = json.loads((path / "seed.json").read_text())
    assert said["base_model"] == str(place.model)
    assert said["base_sha256"] == protocols.hash_weights(place.model)
    assert said["window_tokens"] == 64
    assert tuple(said["kept_layers"]) == candidate.kept_layers
    assert tuple(said["dropped_layers"]) == candidate.dropped_layers
    assert (said["study"], said["trial"], said["recovered"]) == ("tiny", trial.number, False)
    assert said["streams"] == json.loads(place.study.plan.read_text())["protocol"]["streams"]
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


def test_a_distilled_model_is_found_and_copied(place: Place) -> None:
    trial, model = place.distilled, place.find_model(place.distilled)
    line = place.run("studies/tiny", f"--trial={trial.number}")
    assert (line.is_recovered, line.recipe) == (True, None)
    assert (place.path / line.path).samefile(model)
    for _ in range(2):  # the same once more
        assert place.run("studies/tiny", f"--trial={trial.number}", "--out=copy").path == "copy"
    assert {file.name: file.read_bytes() for file in (place.path / "copy").iterdir()} == {
        file.name: file.read_bytes() for file in model.iterdir()
    }
    said = json.loads((model / "seed.json").read_text())
    result = json.loads(place.study.result(model.name).read_text())
    assert said["recovered"]
    assert said["trial"] == trial.number
    assert said["settings"] == result["settings"]
    assert (model / "LICENSE").read_text() == "Ours."  # which its card names
    assert said["metrics"]["test"]["ppl_ratio"] == result["test"]["ppl_ratio"]
    assert said["licence"] == {"license": "other", "license_name": "our-own", "license_link": "LICENSE"}
    assert ModelCard((model / "README.md").read_text()).data.license_name == "our-own"
    error = place.fail("studies/tiny", f"--trial={place.undistilled[0].number}", "--no-recovery", "--out=copy")
    assert "copy: something else is already there" in error
    (place.path / "copy" / "tokenizer.json").unlink()
    error = place.fail("studies/tiny", f"--trial={trial.number}", "--out=copy")
    assert "copy: damaged: tokenizer.json is missing. Move it away" in error
    # without recovery it is still to be had, judged on test text
    line = place.run("studies/tiny", f"--trial={trial.number}", "--no-recovery", "--out=raw")
    assert (line.unrecovered_ppl_ratio, line.text) == (result["test_unrecovered"]["ppl_ratio"], "test")


def test_a_damaged_model_is_refused_wherever_it_is_used(place: Place) -> None:
    trial, model = place.distilled, place.find_model(place.distilled)
    words = ("studies/tiny", f"--trial={trial.number}")
    raw = place.path / "raw"
    place.run(*words, "--no-recovery", "--out", raw)
    evaluate.check_model(model)
    assert distill.choose_trials(place.study, gather_record(place.study), trial=None, replicas=1) == []
    name, harm, how = DAMAGES[0]
    for path in (model, raw):
        harm(path / name)
    said = f"damaged: {name} {how}"
    cure = f"{model.name}: {said}. Write it again: python -m seed.distill"
    assert cure in place.fail(*words, "--out=never")
    with pytest.raises(ModelError, match=cure):
        evaluate.check_model(model)
    assert distill.choose_trials(place.study, gather_record(place.study), trial=None, replicas=1) == [trial]
    assert not (place.path / "never").exists()
    for place_said, use in (
        ("", lambda: evaluate.check_model(raw)),
        ("--start ", lambda: read_start(raw)),
        ("--model ", lambda: describe_original(str(raw))),
    ):
        with pytest.raises(ModelError, match=f"^{place_said}{raw}: {said}"):
            use()
    assert f"{raw}: {said}" in place.fail(raw, "--keep=0,1", "--out=never")
    assert f"{raw}: {said}. Move it away" in place.fail(*words, "--no-recovery", "--out", raw)


def test_layers_of_a_model_that_was_cut_before_go_by_the_original(cut: Path, tmp_path: Path) -> None:
    again = tmp_path / "twice"
    done = run_seed("seed.export", "./model", "--keep=0,2-5", "--out=once", "--json", cwd=tmp_path)
    line = read_line(done, ExportLine)
    assert (line.kept_layers, line.base_model) == ((0, 2, 3, 4, 5), str(cut))
    assert line.unrecovered_ppl_ratio is None
    export(tmp_path / "once", "--keep=0,1,4", "--out", again)
    said = json.loads((again / "seed.json").read_text())
    assert (said["num_layers"], said["kept_layers"], said["dropped_layers"]) == (6, [0, 2, 5], [1, 3, 4])
    assert said["base_model"] == str(cut)
    assert said["start"]["path"] == str(tmp_path / "once")
    assert "How much it lost was not measured." in (again / "README.md").read_text()
    recipe = yaml.safe_load((again / "mergekit.yml").read_text())
    assert [part["sources"][0]["layer_range"] for part in recipe["slices"]] == [[0, 2], [4, 5]]  # of what was cut
    expect_equal(stack(recipe), load_file(again / "model.safetensors"))
    whole, left = load_file(cut / "model.safetensors"), load_file(again / "model.safetensors")
    assert torch.equal(left["model.layers.2.mlp.up_proj.weight"], whole["model.layers.5.mlp.up_proj.weight"])


def test_a_recovered_model_that_is_cut_again_says_which_weights_it_comes_from(place: Place) -> None:
    trial = place.distilled
    kept, start = trial.evaluation.candidate.kept_layers, place.find_model(trial)
    place.run(start, "--keep=0,2", "--out=out")
    said = json.loads((place.path / "out" / "seed.json").read_text())
    assert said["kept_layers"] == [kept[0], kept[2]]
    assert (said["base_model"], said["base_sha256"]) == (str(place.model), protocols.hash_weights(place.model))
    assert (place.path / "out" / "LICENSE").read_text() == "Ours."

    # so does a study of a recovered model
    plan = read_plan(place.study)
    protocol = msgspec.structs.replace(
        plan.protocol,
        start=str(start),
        start_sha256=protocols.hash_weights(start),
        start_tokens=4096,
    )
    num_layers = trial.evaluation.candidate.num_layers
    candidate = Candidate.keep(num_layers=num_layers, kept_layers=(kept[0], kept[2]))
    evaluation = msgspec.structs.replace(trial.evaluation, candidate=candidate)
    of_start = msgspec.structs.replace(trial, evaluation=evaluation)
    order = exporting.order_trial(place.study, msgspec.structs.replace(plan, protocol=protocol), of_start, ())
    path = place.path / "staged"
    line = exporting.write_order(order, path, terminal=Heard())
    assert line.kept_layers == candidate.kept_layers
    recovered, found = (load_file(one / "model.safetensors") for one in (start, path))
    for position, layer in enumerate((0, 2)):
        name = "self_attn.q_proj.weight"
        assert torch.equal(found[f"model.layers.{position}.{name}"], recovered[f"model.layers.{layer}.{name}"])
    said = json.loads((path / "seed.json").read_text())
    assert said["kept_layers"] == list(candidate.kept_layers)
    assert said["start"] == {"path": str(start), "sha256": protocol.start_sha256, "tokens": 4096}
    assert read_start(path).tokens == 4096
    assert "recovered for 4,096 tokens before" in (path / "README.md").read_text()


def test_what_cannot_be_done_is_said_with_the_cure(place: Place) -> None:
    number = place.undistilled[0].number
    (place.path / "mine").mkdir()
    (place.path / "mine" / "notes.txt").write_text("mine")
    for words, wanted in (
        (["studies/tiny", f"--trial={number}"], f"python -m seed.distill studies/tiny --trial {number}"),
        (["studies/tiny", "--trial=999"], "no such finished trial"),
        (["studies/tiny"], "--trial N"),
        (["studies/nowhere", "--trial=1"], "not a study"),
        (["studies/tiny", "--trial=1", "--keep=1"], "Leave out"),
        (["studies/tiny", f"--trial={number}", "--revision=abc"], "--revision abc"),
        (["model", "--keep=1"], "--out DIRECTORY"),
        (["model", "--keep=1,6", "--out=out"], "has 4 layers, 0 to 3. Name layers"),
        (["model", "--keep=1", "--out=mine"], "something else is already there"),
        (["model", "--keep=0-3", "--out=out"], "nothing would be cut"),
        (["studies/tiny", "--keep=1", "--out=out"], "is a study"),
        (["model", "--keep=1", "--out", "model/cut"], "Give another --out"),
        (["someone/model", "--keep=1", "--out=out"], "hub cannot be reached"),
        (["./nowhere", "--keep=1", "--out=out"], "no such directory"),
        (["model", "--revision=abc", "--keep=1", "--out=out"], "only models of the hub"),
        *((["model", "--keep=1", "--out", out], f"{out}: this command runs in it") for out in (".", "..")),
    ):
        assert wanted in place.fail(*words), words
    assert (place.path / "mine" / "notes.txt").read_text() == "mine"
    assert not (place.path / "out").exists()
    assert not (place.model / "cut").exists()
    config = place.model / "config.json"
    before = shutil.copy2(config, place.path / "config.json")
    config.write_text(config.read_text() + "\n")
    try:
        assert "changed since" in place.fail("studies/tiny", f"--trial={number}", "--no-recovery")
    finally:
        shutil.copy2(before, config)


def test_what_lies_there_is_never_written_over(cut: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(cut, "--keep=0,2", "--out=out")
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    again = run_seed("seed.export", str(cut), "--keep=0,2", "--out=out", cwd=tmp_path)
    assert "is there already, and stays as it is" in again.stdout
    trained = {name: weight + 1 for name, weight in load_file(out / "model.safetensors").items()}
    save_file(trained, out / "model.safetensors", metadata={"format": "pt"})
    (out / "notes.txt").write_text("mine")
    assert "out: damaged: model.safetensors is not as it was written. Move it away" in fail(
        cut, "--keep=0,2", "--out=out"
    )
    assert "already there" in fail(cut, "--keep=0,3", "--out=out")
    expect_equal(load_file(out / "model.safetensors"), trained)
    assert (out / "notes.txt").read_text() == "mine"
    export(cut, "--keep=0,2", "--out=of")
    save_file(load_file(cut / "model.safetensors"), cut / "model.safetensors", metadata={"format": "pt"})
    assert "something else is already there" in fail(cut, "--keep=0,2", "--out=of")  # the source was written since


def test_a_model_without_a_tokenizer_is_refused(cut: Path, tmp_path: Path) -> None:
    (cut / "tokenizer_config.json").unlink()
    for _ in range(2):  # tokenizer.json will do, and what was written is known again
        export(cut, "--keep=0,2", "--out=out")
    (cut / "tokenizer.json").unlink()
    error = fail(cut, "--keep=0,2", "--out=none")
    assert "a tokenizer (tokenizer.json, tokenizer.model or vocab.json) is missing" in error
    assert not (tmp_path / "none").exists()


def test_what_is_left_out_is_said_and_a_stale_provenance_is_not_believed(cut: Path, tmp_path: Path) -> None:
    weights = load_file(cut / "model.safetensors")
    heads = {"value_head.weight": torch.ones(3), "value_head.bias": torch.ones(1)}
    save_file(weights | heads, cut / "model.safetensors", metadata={"format": "pt"})
    done = run_seed("seed.export", str(cut), "--keep=0,2", "--out=out", "--json", cwd=tmp_path)
    assert "left out, since transformers does not read it: value_head.bias and 1 more" in done.stderr
    assert read_line(done, ExportLine).left_out == tuple(sorted(heads))
    shutil.copy(tmp_path / "out" / "seed.json", cut / "seed.json")
    assert "seed.json says that 2 layers were kept, and its config has 6" in fail(cut, "--keep=0", "--out=other")


def test_a_model_of_the_hub_is_downloaded_whole_and_of_one_commit(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fill_repository(tmp_path / "remote")
    hub.repositories["someone/model"] = tmp_path / "remote"
    hub.lead(monkeypatch, tmp_path / "cache")
    words = ["seed.export", "someone/model", "--keep=0,3", "--json"]
    done = run_seed(*words, "--out=cut", cwd=tmp_path)
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
    assert (card.data.base_model, card.data.base_model_relation) == ("someone/model", "merge")
    assert card.data.license_link == "LICENSE"
    assert f"revision {COMMIT}" in card.text
    assert f"python -m seed.export someone/model --keep 0,3 --revision {COMMIT} --out DIRECTORY" in card.text
    recipe = yaml.safe_load((out / "mergekit.yml").read_text())
    assert [part["sources"][0]["model"] for part in recipe["slices"]] == [f"someone/model@{COMMIT}"] * 2

    # what the cache holds is enough, and a shard that it lacks is not called damaged
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert read_line(run_seed(*words, "--out=again", cwd=tmp_path), ExportLine).base_revision == COMMIT
    next((tmp_path / "cache").rglob("snapshots/*/model.safetensors-00002-*")).unlink()
    error = error_of(run_seed(*words, "--out=twice", cwd=tmp_path, code=2))
    assert "someone/model" in error
    assert "not in the local cache, and the hub cannot be reached" in error


def test_a_link_is_followed_to_where_it_leads(place: Place) -> None:
    link, real = place.path / "link", place.path / "real"
    link.symlink_to("real")
    for words in (["model", "--keep=0,3"], ["studies/tiny", f"--trial={place.distilled.number}"]):
        real.mkdir()
        place.run(*words, "--out", link)
        assert find_damage(real) is None
        assert link.readlink() == Path("real")
        shutil.rmtree(real)
