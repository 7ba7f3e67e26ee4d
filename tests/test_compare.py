"""Comparing strategies on a finished study, as users do."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seed import folder
from seed.compare import compare_strategies, main
from seed.console import Terminal
from seed.errors import SeedError, StudyError
from seed.evidence import Comparison
from seed.plans import SearchPlan
from seed.records import Frontier
from seed.search import find_frontier
from seed.stages import workbench
from seed.stages.gathering import gather_record
from tests.conftest import MakeCheckpoint
from tests.test_commands import error_of, run_seed

CHOSEN = ("subset", "perplexity", "last_layers", "random")


def search(model: Path, text: Path, root: Path, **settings: Any) -> Path:
    """The folder of a small finished search."""
    find_frontier(
        str(model),
        study="tiny",
        recovery_text=str(text),
        studies_dir=root,
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
        **settings,
    )
    return root / "tiny"


@pytest.fixture(scope="module")
def finished(make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search that nothing may change."""
    return search(make_checkpoint(), text_file, tmp_path_factory.mktemp("studies"))


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


def compare(study: Path, *strategies: str) -> Comparison:
    comparison, _ = compare_strategies(
        study,
        terminal=Terminal(),
        strategies=strategies,
        rng_seeds=(0, 1),
        distill_tokens=2048,
        learning_rate=1e-3,
        device="cpu",
    )
    return comparison


def test_a_comparison_is_made_once_and_added_to(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = compare(study, *CHOSEN)
    out = capsys.readouterr().out
    content = (study / "compare.json").read_bytes()
    assert (study / "compare.html").stat().st_size > 1000
    assert [run.strategy for run in first.runs] == ["subset", "subset", "perplexity", "last_layers", "random", "random"]
    assert "plan: 4 strategies" in out
    for title in ("Seed's sampler (seed 0)", "Seed's sampler (seed 1)", "one-shot PPL", "random (seed 1)"):
        assert f"  {title}: " in out
    assert "  last layers: 3; 2, 3; cost nothing" in out
    assert "2 dropped; distilled, on test text" in out
    picks = {pick for run in first.runs for pick in run.picks}
    assert {(final.candidate, final.rng_seed) for final in first.finals} == {
        (p, seed) for p in picks for seed in (0, 1)
    }

    assert compare(study, *CHOSEN) == first
    assert (study / "compare.json").read_bytes() == content
    again = capsys.readouterr().out
    assert "(seed 0): " not in again  # nobody chose anew
    assert again.split("1 dropped;")[1] == out.split("1 dropped;")[1]

    more = compare(study, "magnitude")
    assert more.runs[: len(first.runs)] == first.runs
    assert [run.strategy for run in more.runs[len(first.runs) :]] == ["magnitude"]
    assert more.finals[: len(first.finals)] == first.finals  # seconds too
    assert json.loads((study / "compare.json").read_text())["study"] == "tiny"


def test_the_command_line_is_passed_on_and_other_settings_are_refused(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["compare", str(study), "--strategies", "last_layers", "magnitude", "--rng-seeds", "4", "4", "--device=cpu"]
    words += ["--distill-tokens=2048", "--learning-rate=0.002"]
    monkeypatch.setattr(sys, "argv", [*words, "--cost=500000"])
    main()
    found = folder.read_record(study / "compare.json", Comparison)
    assert [run.strategy for run in found.runs] == ["subset", "last_layers", "magnitude"]
    assert {final.rng_seed for final in found.finals} == {4}
    assert (found.budget, found.settings["learning_rate"], found.settings["distill_tokens"]) == (500000, 0.002, 2048)
    assert 0 < found.runs[0].cost <= 500000
    content = (study / "compare.json").read_bytes()
    monkeypatch.setattr(sys, "argv", [*words, "--cost=600000"])
    with pytest.raises(StudyError, match=r"cost: 500000\.0 there, 600000\.0 now"):
        main()
    assert (study / "compare.json").read_bytes() == content


def test_a_cost_that_pays_for_no_score_leaves_the_search_without_a_choice(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", str(study), "--strategies", "last_layers", "--rng-seeds", "4", "--distill-tokens=2048"]
    monkeypatch.setattr(sys, "argv", [*words, "--cost=1"])
    main()
    assert folder.read_record(study / "compare.json", Comparison).runs[0].picks == ()
    assert "1 layer dropped: Seed's sampler chose nothing of this depth" in capsys.readouterr().out
    page = (study / "compare.html").read_text()
    assert "--strategies subset last_layers --cost 1.0 --rng-seeds 4 --distill-tokens 2048" in page


def test_an_unknown_strategy_is_named_before_anything_is_opened(tmp_path: Path) -> None:
    error = error_of(run_seed("seed.compare", "nowhere", "--strategies", "greedy", "wishful", cwd=tmp_path, code=2))
    assert "--strategies wishful: unknown" in error
    assert "greedy_recovered" in error  # what there is
    with pytest.raises(SeedError, match="wishful"):
        compare(tmp_path / "nowhere", "wishful")
    assert not list(tmp_path.iterdir())


def test_a_missing_study_is_named(tmp_path: Path) -> None:
    error = error_of(run_seed("seed.compare", "nowhere", cwd=tmp_path, code=2))
    assert "nowhere" in error
    assert "not a study" in error
    assert not list(tmp_path.iterdir())


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    done = run_seed("seed.compare", "nowhere", "--rng-seeds=-1", cwd=tmp_path, code=2)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "--rng-seeds -1: wanted a whole number from 0" in done.stderr
    assert not list(tmp_path.iterdir())


def test_closed_form_that_was_found_wrong_is_not_trusted_later_either(
    make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbench, "prove_closed_form", lambda *_: "a fault")
    study = search(make_checkpoint(), text_file, tmp_path, proxy="short-distillation", trials=2, short_steps=2)
    plan = folder.read_record(study / "plan.json", SearchPlan)
    assert not plan.trusts_closed_form
    monkeypatch.undo()
    comparison = compare(study, "last_layers")
    assert comparison.rung == "none"
    assert {run.strategy for run in comparison.runs} == {"subset", "last_layers"}


def test_only_what_the_search_was_bound_to_is_compared(
    finished: Path, make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path: Path
) -> None:
    sizes = {
        trial.evaluation.latency.structure: trial.evaluation.size
        for trial in gather_record(folder.open_existing(finished)).trials
    }
    larger, smaller = sorted(
        (size.weight_bytes + 12 * size.kv_bytes_per_token for size in sizes.values()), reverse=True
    )
    study = search(make_checkpoint(), text_file, tmp_path, max_memory=(larger + smaller) / 2)
    space = folder.read_record(study / "frontier.json", Frontier).space
    assert space is not None
    assert (space.min_dropped, space.max_dropped) == (2, 2)
    comparison = compare(study, "last_layers", "perplexity")
    assert comparison.num_candidates == space.size
    assert {len(pick.dropped_layers) for run in comparison.runs for pick in run.picks} == {2}


def test_a_student_that_is_no_model_any_more_is_kept_and_read_back(study: Path) -> None:
    compare(study, "last_layers")
    known = folder.read_record(study / "compare.json", Comparison)
    broken = msgspec.structs.replace(known.finals[0], validation_loss=None, test_sums=[None] * len(known.test_counts))
    changed = msgspec.structs.replace(known, finals=(broken, *known.finals[1:]))
    folder.write_record(study / "compare.json", changed)
    assert compare(study, "last_layers") == changed
    assert (study / "compare.html").stat().st_size > 1000
