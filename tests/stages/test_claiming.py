"""Evidence for claims is gathered once, piece by piece, and a stopped run goes on to the same end."""

from pathlib import Path

import msgspec
import pytest

from seed.errors import StudyError
from seed.evidence import ClaimsEvidence
from seed.optimize.claims import judge_claims
from seed.scoring.sweep import Sweep
from seed.stages import claiming, training
from seed.stages.claiming import Depths, choose_depths, choose_members
from seed.stages.schooling import Member
from seed.stages.training import TrainingSettings
from seed.stages.workbench import Workbench
from tests.scoring.opened import drop
from tests.stages.opened import open_bench, open_sweep

SETTINGS = TrainingSettings(distill_tokens=1024, rng_seeds=(0, 1), rates=(1e-3, 2e-3))


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def gather(bench: Workbench, sweep: Sweep, *, stop_after: int | None = None) -> ClaimsEvidence:
    """Everything, or what is left of it; stops after so many runs."""
    evidence = claiming.read_evidence(bench, SETTINGS)
    if evidence is None:
        chosen = choose_members(bench, sweep, on_scored=lambda role: None)
        evidence = claiming.start_evidence(bench, sweep, chosen, SETTINGS)
    members = claiming.recall_members(evidence)
    evidence = claiming.measure_latencies(bench, sweep, evidence, members, on_timed=lambda name: None)
    wanted = claiming.list_wanted(members, SETTINGS)
    rates = training.choose_rates(bench, sweep, wanted, rates=SETTINGS.rates, on_step=lambda key: None)
    seen: list[str] = []

    def count(run: object) -> None:
        seen.append("run")
        if len(seen) == stop_after:
            raise StoppedError

    for rng_seed in SETTINGS.rng_seeds:
        evidence = claiming.train_alike(
            bench,
            sweep,
            evidence,
            members,
            SETTINGS,
            rng_seed=rng_seed,
            rates=rates,
            on_step=lambda key: None,
            on_run=count,
        )
    return evidence


def forget_times(evidence: ClaimsEvidence) -> ClaimsEvidence:
    runs = tuple(msgspec.structs.replace(run, seconds=0.0) for run in evidence.ledger.runs)
    return msgspec.structs.replace(evidence, ledger=msgspec.structs.replace(evidence.ledger, runs=runs), latencies={})


@pytest.mark.parametrize(
    ("num_layers", "depths"),
    [
        (2, (1, 1, 1, 1)),
        (4, (1, 2, 3, 3)),
        (6, (1, 2, 3, 4)),
        (12, (1, 2, 3, 6)),
        (22, (2, 4, 6, 11)),
        (32, (3, 5, 8, 16)),
    ],
)
def test_depths_are_shares_of_the_model(num_layers: int, depths: tuple[int, ...]) -> None:
    assert choose_depths(num_layers) == Depths(**dict(zip(("light", "middle", "deep", "severe"), depths, strict=True)))


def test_roles_go_to_the_best_that_scores_tell(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    sweep = open_sweep(bench)
    members = choose_members(bench, sweep, on_scored=lambda role: None)
    singles = [drop(layer) for layer in range(4)]
    assert members["light"].candidate == min(singles, key=lambda single: sweep.measure(single).loss)
    pairs = claiming.list_shallow(4, 2)
    assert len(pairs) == 6
    assert members["pair"].candidate == min(pairs, key=lambda pair: sweep.measure(pair).loss)
    raw = {pair: sweep.measure_unrecovered([pair])[0].loss for pair in pairs}
    assert members["raw pair"].candidate == min(raw, key=lambda pair: raw[pair])
    assert len(members["deep"].candidate.dropped_layers) == 3
    assert members["width deep"].width is not None
    assert choose_members(bench, open_sweep(bench), on_scored=lambda role: None) == members  # whatever is known by then


def test_a_family_without_widths_goes_without(tmp_path: Path) -> None:
    bench = open_bench(tmp_path, family="bloom")
    members = choose_members(bench, open_sweep(bench), on_scored=lambda role: None)
    assert not [role for role in members if role.startswith("width")]
    wanted = claiming.list_wanted(members, SETTINGS)
    assert {one.recovery for one in wanted} == {"distillation", "pretraining", "lora-pretraining"}


def test_a_model_that_plays_two_roles_is_trained_once() -> None:
    member = Member(candidate=drop(1))
    members = {"light": member, "middle": member, "deep": member, "severe": member, "pair": member}
    wanted = claiming.list_wanted(members, SETTINGS)
    assert len(wanted) == len(set(wanted)) == 2 * 3


def test_a_stopped_run_goes_on_to_the_same_evidence(tmp_path: Path) -> None:
    bench = open_bench(tmp_path / "whole")
    whole = gather(bench, open_sweep(bench))
    stopped = open_bench(tmp_path / "stopped")
    for runs in (1, 5):
        with pytest.raises(StoppedError):
            gather(stopped, open_sweep(stopped), stop_after=runs)
    resumed = gather(stopped, open_sweep(stopped))
    assert msgspec.structs.replace(
        forget_times(resumed), ledger=msgspec.structs.replace(forget_times(resumed).ledger, study="whole")
    ) == forget_times(whole)
    staged = [run for run in whole.ledger.runs if run.stages]
    assert [run.rng_seed for run in staged] == [0, 1]
    for run in staged:
        assert run.stages == (whole.roles["middle"],)
        assert set(map(int, whole.roles["middle"].split("-")[1:])) < set(map(int, run.key.split("-")[1:]))
        assert run.tokens == SETTINGS.distill_tokens
    assert {name.rpartition(", ")[2] for name in whole.latencies} == {"batch 1", "batch 8"}
    assert len(judge_claims(whole)) == 11
    assert gather(bench, open_sweep(bench)) == whole  # nothing is done twice


def test_other_settings_are_refused(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    sweep = open_sweep(bench)
    members = choose_members(bench, sweep, on_scored=lambda role: None)
    assert claiming.read_evidence(bench, SETTINGS) is None
    evidence = claiming.start_evidence(bench, sweep, members, SETTINGS)
    assert claiming.read_evidence(bench, SETTINGS) == evidence
    assert claiming.recall_members(evidence) == members
    other = TrainingSettings(distill_tokens=2048, rng_seeds=(0, 1), rates=(1e-3, 2e-3))
    with pytest.raises(StudyError, match=r"distill_tokens: 1024 there, 2048 now"):
        claiming.read_evidence(bench, other)


def test_shallow_roles_do_not_depend_on_what_a_study_happened_to_score(tmp_path: Path) -> None:
    bench = open_bench(tmp_path / "poor")
    poor = open_sweep(bench)
    worst = max(claiming.list_shallow(4, 2), key=lambda pair: open_sweep(open_bench(tmp_path / "x")).measure(pair).loss)
    poor.measure(worst)  # all that this study knows of pairs
    fresh = open_bench(tmp_path / "fresh")
    chosen = choose_members(bench, poor, on_scored=lambda role: None)
    assert chosen == choose_members(fresh, open_sweep(fresh), on_scored=lambda role: None)
    assert chosen["middle"].candidate != worst
