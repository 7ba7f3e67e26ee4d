"""A search in which attention and MLP go alone, from its command to what it hands back."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers

import seed
from seed import study_dir
from seed.config import StudyConfig
from seed.console import Terminal
from seed.errors import SeedError
from seed.evidence import Comparison
from seed.experiment import run_experiment
from seed.models.anatomy import Absent
from seed.models.provenance import read_provenance
from seed.records import DistillResult, Frontier, Latency
from seed.reporting.result_line import JudgedLine
from seed.results import compute_result
from seed.search import find_frontier, search
from seed.stages.study_record import gather_record
from seed.study_dir import StudyFolder
from tests.conftest import MakeCheckpoint
from tests.finished import Heard
from tests.running import SMALL, run_seed

TOLD: dict[str, Any] = SMALL | {
    "max_dropped": 2,
    "frontier_size": 3,
    "parts": ("layer", "attention", "mlp"),
    "trials": 30,
}


class Searched:
    """A finished search by parts."""

    def __init__(self, model: Path, text: Path, place: Path) -> None:
        self.settings = StudyConfig(model=str(model), recovery_text=str(text), studies_dir=place, study="tiny", **TOLD)
        self.folder = StudyFolder(place / "tiny")
        self.terminal = Heard()
        self.record = search(self.settings, self.terminal)


@pytest.fixture(scope="module")
def searched(make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    return Searched(make_checkpoint(), text_file, tmp_path_factory.mktemp("parts"))


def test_the_frontier_is_timed_and_what_is_not_on_it_predicted(searched: Searched) -> None:
    space = searched.record.space
    assert (space.kinds, space.size) == (("attn", "mlp"), 8 + 28 + 56 + 70)
    measured = study_dir.read_record(searched.folder.latency, dict[str, Latency])
    assert all(latency.repeats for latency in measured.values())
    assert all(member.evaluation.latency.repeats for member in searched.record.frontier.members)
    latencies = {trial.evaluation.latency.structure: trial.evaluation.latency for trial in searched.record.trials}
    assert all(latencies[name].ratio == latency.ratio for name, latency in measured.items() if name in latencies)
    assert any("attentions" in name for name in latencies)


def test_what_is_handed_back_is_a_plain_checkpoint_and_opens_without_what_is_gone(searched: Searched) -> None:
    some = [result for result in searched.record.distilled if result.candidate.lacking]
    assert some
    for result in some:
        path = searched.folder.model(result.key)
        assert read_provenance(path, place="here").candidate == result.candidate
        plain = transformers.AutoModelForCausalLM.from_pretrained(path)
        trimmed: Any = seed.load(path)
        tokens = torch.arange(40)[None] + 5
        assert torch.equal(plain(tokens).logits, trimmed(tokens).logits)
        absent = [module for module in trimmed.modules() if isinstance(module, Absent)]
        assert len(absent) == len(result.candidate.lacking)
        assert sum(one.numel() for one in trimmed.parameters()) == result.size.num_params
        asked: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(plain.generate(tokens, **asked), trimmed.generate(tokens, **asked))


def test_python_opens_it_so_too(searched: Searched) -> None:
    told = {name: getattr(searched.settings, name) for name in (*TOLD, "recovery_text", "studies_dir", "study")}
    found = find_frontier(searched.settings.model, quiet=True, **told)
    model = found.models[0].load()
    assert sum(one.numel() for one in model.parameters()) == found.models[0].num_params


def test_a_search_goes_on_as_it_was(searched: Searched, tmp_path: Path) -> None:
    study = StudyFolder(shutil.copytree(searched.folder.root, tmp_path / "tiny"))
    shutil.rmtree(study.models)
    shutil.rmtree(study.distilled)
    frontier = study_dir.read_record(study.frontier, Frontier)
    again = search(replace(searched.settings, studies_dir=tmp_path), Terminal(quiet=True))
    assert again.frontier == frontier
    assert {one.key: one.test.loss for one in again.distilled} == {
        one.key: one.test.loss for one in searched.record.distilled
    }
    assert gather_record(study).trials == searched.record.trials


def test_baselines_are_set_beside_what_lacks_as_much(searched: Searched) -> None:
    assert searched.record.gain is not None
    picks = {one.strategy: one.picks for one in searched.record.gain.baselines}
    assert list(picks) == ["perplexity", "greedy_recovered"]
    assert picks["perplexity"]
    for pick in itertools.chain(*picks.values()):
        assert pick.candidate.num_dropped == pick.best.num_dropped


def test_ways_to_choose_attentions_and_mlps_are_compared(searched: Searched, tmp_path: Path) -> None:
    study = StudyFolder(shutil.copytree(searched.folder.root, tmp_path / "tiny"))
    chosen = ("greedy", "greedy_parts", "llm_drop", "evopress_parts")
    asked: dict[str, Any] = {"depths": (1,), "rng_seeds": (0,), "distill_tokens": 500, "learning_rate": 1e-3}
    run_experiment("compare", study.root, terminal=Heard(), device="cpu", strategies=chosen, **asked)
    record = study_dir.read_record(study.comparison, Comparison)
    picks = {run.strategy: run.picks for run in record.runs}
    assert set(picks) == {"subset", *chosen}
    assert {pick.num_dropped for found in picks.values() for pick in found} == {1}  # of one size
    assert not any(pick.lacking for pick in picks["greedy"])
    [attentions] = picks["llm_drop"]
    assert set(attentions.lacking.values()) == {"attn"}
    assert all(run.cost <= record.budget * (1 + 1e-9) for run in record.runs)


@pytest.mark.parametrize("parts", [("layer",), ("attention",)])
def test_a_study_of_other_parts_is_not_gone_on_with(searched: Searched, parts: tuple[str, ...]) -> None:
    with pytest.raises(SeedError, match=r"holds a study of another plan \(space.kinds: \('attn', 'mlp'\) in the study"):
        search(replace(searched.settings, parts=parts), Terminal(quiet=True))


def test_parts_that_a_family_has_not_are_refused(
    make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path: Path
) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    model = make_checkpoint("opt_post_norm")
    done = run_seed(
        "seed.search", f"--model={model}", f"--recovery-text={text_file}", "--parts=mlp", *words, cwd=tmp_path, code=2
    )
    assert "--parts mlp: cannot go alone in this opt model, since layer 0 has no MLP that Seed knows" in done.stderr
    assert not list(tmp_path.glob("studies/*/plan.json"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--parts=attention", "--max-dropped=3"],
            "with --parts attention there are 4 parts that may go, each half a layer. Give bounds up to 2",
        ),
        (["--parts=attention", "--min-dropped=3"], "with --parts attention there are 4 parts"),
        (["--parts=layer,attention"], "layer; attention or mlp, or both"),
        (["--parts=attention", "--start=there"], "cannot be had with --start"),
        (["--parts=mlp", "--latency-command=true"], "cannot be had with --latency-command"),
        (
            ["--parts=layer,attention,mlp", "--max-memory=1kB"],
            "no candidate can keep the limits: with 1 layer dropped memory is",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_scored(
    make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    model = [f"--model={make_checkpoint()}", f"--recovery-text={text_file}"]
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    done = run_seed("seed.search", *model, *small, *words, cwd=tmp_path, code=2)
    assert said in " ".join(done.stderr.split())


def test_a_dry_run_knows_parts_and_refuses_them_too(tmp_path: Path) -> None:
    done = run_seed("seed.search", "--model=gpt2", "--parts=attention", "--dry-run", "--device=cpu:32GB", cwd=tmp_path)
    assert "up to 2 parts of 24: 78 candidates" in done.stdout + done.stderr  # 12 and 66
    done = run_seed(
        "seed.search", "--model=pythia-160m", "--parts=mlp", "--dry-run", "--device=cpu:32GB", cwd=tmp_path, code=2
    )
    assert "cannot go alone in this gpt_neox model" in done.stderr


def test_what_was_only_predicted_is_timed_before_it_is_distilled(searched: Searched, tmp_path: Path) -> None:
    study = StudyFolder(shutil.copytree(searched.folder.root, tmp_path / "tiny"))
    number, candidate = next(
        (one.number, one.evaluation.candidate)
        for one in gather_record(study).trials
        if not one.evaluation.latency.repeats
    )
    done = run_seed("seed.distill", str(study.root), f"--trial={number}", cwd=tmp_path)
    assert "was predicted" in done.stdout + done.stderr
    assert study_dir.read_record(study.result(candidate.key), DistillResult).latency.repeats


def test_another_set_of_parts_is_another_export(searched: Searched, tmp_path: Path) -> None:
    some = [one for one in searched.record.distilled if one.candidate.lacking]
    for result in some:
        words = (str(searched.folder.root), f"--trial={result.trial_number}", f"--out={tmp_path / 'out'}")
        is_other = result != some[0]
        done = run_seed("seed.export", *words, cwd=tmp_path, code=2 if is_other else 0)
        assert not is_other or "holds" in done.stderr or "lies" in done.stderr or "there" in done.stderr


def test_a_raw_cut_of_parts_is_refused(searched: Searched) -> None:
    number = next(one.number for one in searched.record.trials if one.evaluation.candidate.lacking)
    done = run_seed(
        "seed.export", str(searched.folder.root), f"--trial={number}", "--no-recovery", cwd=searched.folder.root, code=2
    )
    assert "--no-recovery: " in done.stderr


def test_it_is_judged_without_what_is_gone_and_as_a_draft(searched: Searched) -> None:
    [result, *_] = [one for one in searched.record.distilled if one.candidate.lacking]
    path = searched.folder.model(result.key)
    done = run_seed("seed.evaluate", str(path), "--draft", "--json", cwd=searched.folder.root)
    line = msgspec.json.decode(done.stdout, type=JudgedLine)
    assert line.num_params == result.size.num_params
    assert line.acceptance == pytest.approx(result.test.acceptance)
    assert line.draft is not None
    assert line.draft.same == line.draft.prompts > 1
    assert line.draft_speedup is not None
    assert "as a draft: the dense model accepts" in done.stderr
    alone = run_seed(
        "seed.evaluate",
        searched.settings.model,
        f"--test-text={searched.settings.recovery_text}",
        "--draft",
        cwd=searched.folder.root,
        code=2,
    )
    assert "--draft: " in alone.stderr


def test_the_card_says_how_it_is_opened(searched: Searched) -> None:
    [model, *_] = [one for one in compute_result(searched.record).best if one.candidate.lacking]
    card = (searched.folder.model(model.key) / "README.md").read_text(encoding="utf-8")
    assert "seed.load(" in card
    assert "As a draft of the original" in card
    page = searched.folder.report.read_text(encoding="utf-8")
    assert "model = seed.load(" in page
    assert f"models/{model.key} --format mlx" in page
