"""Scoring a space: swept whole where that was planned, best first; else searched; resumed without repeating anything."""

import math
from pathlib import Path

import msgspec
import pytest

from seed import study_dir
from seed.config import StudyConfig
from seed.console import Terminal
from seed.optimize.space import enumerate_candidates
from seed.plans import SearchPlan
from seed.proxy.instruments import start_student
from seed.proxy.sweep import Sweep
from seed.records import Candidate, Latency, Quality, ScoreRow, TrialRecord
from seed.scores import ScoreStore
from seed.sessions import Session
from seed.stages import searching
from seed.stages.searching import describe_recovery, measure_recovery, name_solver, rank_candidates
from tests.interrupting import interrupting
from tests.proxy.opened import drop
from tests.reporting import factory
from tests.stages.opened import SPACE, TinyStudy, make_table

EVERYTHING = list(enumerate_candidates(SPACE))


def keys_of(trials: tuple[TrialRecord, ...], *, state: str = "COMPLETE") -> list[str]:
    return [trial.evaluation.candidate.key for trial in trials if trial.state == state]


@pytest.fixture
def distilled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the candidates whose students were made to be trained."""
    made: list[str] = []

    def spy(instruments, candidate, refit, *, settings=None):
        made.append(candidate.key)
        return start_student(instruments, candidate, refit, settings=settings)

    monkeypatch.setattr("seed.proxy.proxy.start_student", spy)
    return made


# ---- the order


def quality_of(loss: float) -> Quality:
    return factory.make_quality(math.exp(loss))


def test_the_best_of_every_depth_come_first_then_the_second_best() -> None:
    losses = {(1,): 0.3, (2,): 0.1, (0, 1): 0.9, (0, 2): 0.4, (1, 2): 0.6, (0, 1, 2): 2.0}
    qualities = {factory.make_candidate(*dropped): quality_of(loss) for dropped, loss in losses.items()}
    ranked = [candidate.dropped_layers for candidate in rank_candidates(qualities)]
    assert ranked == [(2,), (0, 2), (0, 1, 2), (1,), (1, 2), (0, 1)]
    alike = {factory.make_candidate(layer): quality_of(0.5) for layer in (7, 3, 5)}
    assert [candidate.key for candidate in rank_candidates(alike)] == ["drop-3", "drop-5", "drop-7"]


# ---- what closed form recovers


def recovered(raw: float, closed: float) -> dict[str, Quality]:
    """Qualities at these PPL ratios."""
    return {"none": factory.make_quality(raw), "closed-form": factory.make_quality(closed)}


def test_recovery_is_a_share_of_the_loss_of_cutting() -> None:
    assert measure_recovery(recovered(math.e, math.exp(0.25))) == pytest.approx(0.75)
    assert measure_recovery(recovered(1.5, 1.5)) == pytest.approx(0.0)
    assert measure_recovery(recovered(1.2, 1.44)) == pytest.approx(-1.0)  # it made things worse
    assert measure_recovery(recovered(1.2, 1.0)) == pytest.approx(1.0)
    for raw in (1.0, 0.98):  # nothing was lost
        assert measure_recovery(recovered(raw, 1.0)) is None


def test_recovery_is_said_in_a_line() -> None:
    sample = [recovered(math.e, math.exp(1 - share)) for share in (0.9, 0.25, 0.5)]
    line = describe_recovery([*sample, recovered(0.99, 0.98)], 298)
    assert "recovers 50% of what cutting costs" in line
    assert "median of 3 sets out of 298; 25% to 90%" in line
    assert "\n" not in line
    assert "within the noise of the validation text" in describe_recovery([recovered(0.99, 1.0)], 3)
    assert "within the noise of the validation text" in describe_recovery([], 0)


def test_how_candidates_were_chosen_is_said() -> None:
    def say(*, covers_space: bool, num_scored: int, trials: int = 9, sampler: str = "subset") -> str:
        plan: SearchPlan = msgspec.structs.replace(factory.make_record().plan, covers_space=covers_space, trials=trials)
        frontier = msgspec.structs.replace(factory.make_record().frontier, num_scored=num_scored)
        return name_solver(plan, StudyConfig(sampler=sampler), SPACE, frontier)

    assert say(covers_space=True, num_scored=10) == say(covers_space=False, num_scored=10) == "enumerated"
    assert (
        say(covers_space=False, num_scored=4, trials=10) == "enumerated"
    )  # ten sets fit the trials; some were skipped
    assert say(covers_space=False, num_scored=4) == "searched with subset"
    assert say(covers_space=True, num_scored=4) == "searched with subset, a sweep of all of them as its prior"
    assert say(covers_space=True, num_scored=4, sampler="tpe") == "searched with tpe"


# ---- closed form


def test_a_space_that_is_swept_is_scored_whole_and_nothing_is_measured_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = TinyStudy(tmp_path)
    assert len(keys_of(search.run(trials=2))) == 2  # a sweep that was stopped, gone on with by --trials
    trials = search.run(terminal=Terminal())
    out = capsys.readouterr().out
    assert "closed form recovers " in out
    assert "sets out of 10;" in out
    assert sorted(keys_of(trials)) == sorted(candidate.key for candidate in EVERYTHING)
    assert all(trial.evaluation.qualities["closed-form"].ppl_ratio > 0 for trial in trials)
    assert len(known_by_closed_form(search)) == len(EVERYTHING)
    rows = read_rows(search)
    monkeypatch.setattr("seed.proxy.sweep.make_walker", None)
    monkeypatch.setattr("seed.proxy.sweep.measure_unrecovered", None)
    assert search.run() == trials
    assert read_rows(search) == rows


def known_by_closed_form(search: TinyStudy) -> dict[Candidate, Quality]:
    """What was scored by closed form, in the study or by it."""
    with search.open() as opened:
        return {
            one: opened.cache.known(one)["closed-form"]
            for one in EVERYTHING
            if opened.cache.is_known(one, "closed-form")
        }


def read_rows(search: TinyStudy) -> list[ScoreRow]:
    with ScoreStore(search.session.folder.scores, read_only=True) as store:
        return store.read_rows()


@pytest.mark.parametrize("proxy", ["closed-form", "short-distillation"])
def test_a_broken_sweep_resumed_ends_as_an_unbroken_one(proxy: str, tmp_path: Path) -> None:
    count = 3 if proxy == "short-distillation" else 10  # a sweep scores all, and leads short distillation
    whole = TinyStudy(tmp_path / "whole", proxy=proxy).run(trials=count)
    search = TinyStudy(tmp_path / "broken", proxy=proxy)
    with interrupting(Sweep, "recover", after=6):
        search.run(trials=count)
    rows = read_rows(search)
    trials = search.run(trials=count)
    assert read_rows(search)[: len(rows)] == rows
    assert keys_of(trials) == keys_of(whole)
    for one, other in zip(trials, whole, strict=True):
        assert one.evaluation.qualities[proxy] == other.evaluation.qualities[proxy]


def test_a_structure_that_was_never_timed_is_timed_when_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table()
    missing = table.pop("2 layers")
    timed: list[str] = []

    def measure(session: Session, candidate: Candidate) -> Latency:
        timed.append(candidate.key)
        return missing

    monkeypatch.setattr("seed.stages.latency_table.measure_latency", measure)
    search = TinyStudy(tmp_path, table=table)
    assert len(keys_of(search.run())) == 10
    assert len(timed) == 1
    assert study_dir.read_record(search.session.folder.latency, dict[str, Latency])["2 layers"] == missing


# ---- the climb


def test_a_climb_goes_on_with_the_next_best(tmp_path: Path, distilled: list[str]) -> None:
    search = TinyStudy(tmp_path, proxy="short-distillation")
    whole = keys_of(TinyStudy(tmp_path / "whole", proxy="short-distillation").run(trials=4))
    distilled.clear()
    search.run(trials=2)
    assert keys_of(search.run(trials=4)) == whole == distilled


@pytest.mark.parametrize("screen", [True, False])
def test_hopeless_candidates_are_skipped_unless_told_otherwise(
    screen: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    distilled: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    hopeless = {drop(0, 1).key, drop(3).key}

    def judge(self: object, candidate: Candidate, quality: Quality, *, structure: str) -> str | None:
        assert structure == f"{len(candidate.kept_layers)} layers"
        return "hopeless" if candidate.key in hopeless else None

    monkeypatch.setattr(searching.Screen, "judge", judge)
    trials = TinyStudy(tmp_path, proxy="short-distillation", short_steps=1).run(
        trials=10, screen=screen, terminal=Terminal()
    )
    out = capsys.readouterr().out
    assert len(trials) == 10
    if screen:
        assert set(keys_of(trials, state="PRUNED")) == hopeless
        assert hopeless.isdisjoint(distilled)
        assert "2 candidates were not worth short distillation and skipped" in out
        assert {trial.evaluation.skipped_because for trial in trials if trial.state == "PRUNED"} == {"hopeless"}
    else:
        assert keys_of(trials, state="PRUNED") == []
        assert "skipped" not in out


# ---- the dense model's states


def test_the_climb_uses_stored_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = TinyStudy(tmp_path, proxy="short-distillation")
    with study.open() as opened:
        opened.executor.store_states(steps=2, rng_seeds=[0], on_progress=lambda amount, note: None)
        monkeypatch.setattr("seed.distillation.loop.run_teacher", None)
        assert len(study.score(opened, trials=1)) == 1
