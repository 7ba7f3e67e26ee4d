"""The loop of a search: budgets are kept, killed and broken runs go on as if nothing had happened, nothing is kept twice."""

import contextlib
import functools
import itertools
import math
import os
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from optuna.trial import FrozenTrial, TrialState

from seed.errors import ResourceError, StudyError
from seed.optimize import trials as loop
from seed.optimize.frontier import Limits
from seed.optimize.sampler import flags_of
from seed.optimize.space import contains, enumerate_candidates
from seed.optimize.storage import load_study, open_storage, view_storage
from seed.optimize.study import open_study
from seed.optimize.trials import Propose, SamplerProposer, Trials, propose_in_order, run_search
from seed.records import Candidate, Scored, ScoreRow, SearchSpace, TrialRecord
from seed.scores import ScoreStore

from ..interrupting import StoppedError, interrupting
from ..reporting import factory

SPACE = SearchSpace(num_layers=12, droppable_layers=(1, 3, 6, 9), min_dropped=1, max_dropped=2)  # 10 candidates
LARGER = SearchSpace(num_layers=12, droppable_layers=(1, 2, 3, 5, 8, 11), min_dropped=1, max_dropped=3)  # 41
ORDER = tuple(random.Random(3).sample(list(enumerate_candidates(SPACE)), SPACE.size))
KEYS = sorted(candidate.key for candidate in ORDER)
PROXY = factory.PROXY
BOUNDLESS = Limits()
Evaluate = Callable[[Candidate], Scored]


def evaluate(candidate: Candidate) -> Scored:
    """Score by what the layers cost: the same candidate always scores the same."""
    ratio = math.exp(sum(factory.LAYER_COSTS[layer] for layer in candidate.dropped_layers))
    row = ScoreRow(key=candidate.key, proxy=PROXY, sums=[ratio])
    return Scored(candidate=candidate, evaluation=factory.make_evaluation(candidate.dropped_layers, ratio), rows=(row,))


def lose(candidate: Candidate, *, ratio: float = math.nan) -> Scored:
    """Score as a model does whose loss is not a number."""
    scored = evaluate(candidate)
    assert scored.evaluation is not None
    qualities = scored.evaluation.qualities
    lost = {**qualities, PROXY: msgspec.structs.replace(qualities[PROXY], ppl_ratio=ratio)}
    return msgspec.structs.replace(scored, evaluation=msgspec.structs.replace(scored.evaluation, qualities=lost))


def skip(candidate: Candidate) -> Scored:
    """Judge a candidate to be hopeless."""
    scored = evaluate(candidate)
    assert scored.evaluation is not None
    skipped = msgspec.structs.replace(scored.evaluation, qualities={}, skipped_because="hopeless")
    return msgspec.structs.replace(scored, evaluation=skipped)


def fail(candidate: Candidate) -> Scored:
    """Find that a candidate cannot be scored."""
    return Scored(candidate=candidate, evaluation=None, failure="out of memory")


def mix(**by_layer: Evaluate) -> Evaluate:
    """Score a candidate as told for the first of its dropped layers that is named."""

    def score(candidate: Candidate) -> Scored:
        named = [by_layer[f"without_{layer}"] for layer in candidate.dropped_layers if f"without_{layer}" in by_layer]
        return (named or [evaluate])[0](candidate)

    return score


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals are not forced to the disk: no power cut is tested."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def break_at(position: int, act: Callable[[], object], then: Evaluate = evaluate) -> Evaluate:
    """Act once, when so many candidates were scored."""
    turn = itertools.count()

    def score(candidate: Candidate) -> Scored:
        if next(turn) == position:
            act()
        return then(candidate)

    return score


def throw(error: type[BaseException]) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


@contextlib.contextmanager
def opened(
    place: Path,
    *,
    url: str | None = None,
    space: SearchSpace = SPACE,
    limits: Limits = BOUNDLESS,
    retry_skipped: bool = False,
) -> Iterator[Trials]:
    """The trials of the study in a folder, as a new process finds them."""
    place.mkdir(exist_ok=True)
    storage = open_storage(url, journal=place / "journal.log")
    study = open_study(storage, name="here", proxy=PROXY, fingerprint="one")
    with ScoreStore(place / "scores.sqlite") as store:
        yield Trials(study, space, store, proxy=PROXY, limits=limits, retry_skipped=retry_skipped)


def run(
    place: Path,
    *,
    trials: int,
    sampler: str = "subset",
    order: Sequence[Candidate] | None = None,
    batch: int = 1,
    score: Evaluate = evaluate,
    hear: Callable[[TrialRecord], None] = lambda record: None,
    asked: list[str] | None = None,
    **more: Any,
) -> list[str]:
    """Search as a new process would; return the keys of the candidates that were scored, in order."""
    found: list[str] = [] if asked is None else asked

    def score_all(candidates: Sequence[Candidate]) -> Iterator[Scored]:
        for candidate in candidates:
            scored = score(candidate)
            found.append(candidate.key)
            yield scored

    with opened(place, **more) as ours:
        ours.listeners.append(hear)
        propose: Propose = SamplerProposer(ours, sampler=sampler, rng_seed=5, batch=batch).propose
        if order is not None:
            propose = functools.partial(propose_in_order, ours, order)
        run_search(ours, propose, score_all, target=trials, batch=batch)
    return found


def kept(place: Path) -> list[tuple[int, str, str]]:
    """Number, candidate and state of every trial in the store."""
    with ScoreStore(place / "scores.sqlite", read_only=True) as store:
        return [(one.number, one.evaluation.candidate.key, one.state) for one in store.read_trials()]


def measured(place: Path) -> list[str]:
    """Candidates whose losses by document are in the store."""
    with ScoreStore(place / "scores.sqlite", read_only=True) as store:
        return [row.key for row in store.read_rows()]


def told(place: Path, url: str | None = None) -> list[FrozenTrial]:
    """Every trial in Optuna."""
    return load_study(view_storage(url, journal=place / "journal.log"), "here").trials


def count_states(place: Path, url: str | None = None) -> dict[str, int]:
    states = [trial.state.name for trial in told(place, url)]
    return {state: states.count(state) for state in sorted(set(states))}


def look(place: Path, url: str | None = None) -> list[tuple[Any, ...]]:
    """All that people see of trials that carry a result."""
    return [
        (one.number, one.state.name, one.values, one.params, one.user_attrs, one.constraints)
        for one in told(place, url)
        if one.state in (TrialState.COMPLETE, TrialState.PRUNED)
    ]


def require_agreement(place: Path, url: str | None = None) -> None:
    """Store and Optuna hold the same trials under the same numbers, none twice and none half done."""
    ours, theirs = kept(place), told(place, url)
    assert [(number, state) for number, _, state in ours] == [(one[0], one[1]) for one in look(place, url)]
    assert len({key for _, key, _ in ours}) == len(ours)
    assert all(trial.state.is_finished() for trial in theirs)


# ---- budgets


@pytest.mark.parametrize(("sampler", "batch"), [("subset", 1), ("subset", 3), ("tpe", 1), ("random", 3)])
def test_the_budget_counts_scored_candidates(tmp_path: Path, sampler: str, batch: int) -> None:
    some = mix(without_1=lose, without_8=skip)
    asked = run(tmp_path, trials=7, sampler=sampler, batch=batch, space=LARGER, score=some)
    assert len(set(asked)) == len(asked) > 7
    assert count_states(tmp_path) == {"COMPLETE": 7, "PRUNED": len(asked) - 7}
    assert [key for _, key, _ in kept(tmp_path)] == asked
    require_agreement(tmp_path)
    for trials in (7, 5):
        assert run(tmp_path, trials=trials, sampler=sampler, batch=batch, space=LARGER, score=some) == []


@pytest.mark.parametrize("more", [{"sampler": "subset", "batch": 3}, {"sampler": "tpe"}, {"order": ORDER}])
def test_a_space_smaller_than_the_budget_ends_the_study(tmp_path: Path, more: dict[str, Any]) -> None:
    assert sorted(run(tmp_path, trials=1000, **more)) == KEYS
    assert run(tmp_path, trials=1000, **more) == []
    assert count_states(tmp_path) == {"COMPLETE": 10}


@pytest.mark.parametrize("sampler", ["subset", "tpe", "random"])
def test_raising_the_budget_goes_on_as_one_longer_run_would(tmp_path: Path, sampler: str) -> None:
    whole = run(tmp_path / "whole", trials=14, space=LARGER, sampler=sampler)
    parts = [
        run(tmp_path / "parts", trials=trials, space=LARGER, sampler=sampler)
        for trials in (4, 11, 14)  # TPE starts to learn after ten
    ]
    assert [len(part) for part in parts] == [4, 7, 3]
    assert list(itertools.chain(*parts)) == whole


def test_trials_outside_a_narrowed_space_do_not_spend_its_budget(tmp_path: Path) -> None:
    deeper = msgspec.structs.replace(SPACE, min_dropped=2)
    first = [key for key in run(tmp_path, trials=7) if key.count("-") == 2]
    assert 0 < len(first) < deeper.size == 6
    more = run(tmp_path, trials=4, space=deeper)
    assert len(first + more) == 4
    more += run(tmp_path, trials=6, space=deeper, order=[one for one in ORDER if contains(deeper, one)])
    assert sorted(first + more) == [key for key in KEYS if key.count("-") == 2]


# ---- broken and killed runs


@pytest.mark.parametrize(
    ("trials", "step", "more"),
    [
        (10, 1, {}),
        (13, 4, {"sampler": "tpe", "space": LARGER}),  # slow, and learns after ten
        (9, 1, {"batch": 3, "space": LARGER}),
        (13, 4, {"sampler": "nsgaii", "batch": 2, "space": LARGER}),
        (10, 1, {"order": ORDER, "batch": 10}),
    ],
    ids=["subset", "tpe", "batches", "batches of another", "walk"],
)
def test_a_run_broken_anywhere_and_resumed_asks_what_an_unbroken_one_would(
    tmp_path: Path, trials: int, step: int, more: dict[str, Any]
) -> None:
    order = run(tmp_path / "unbroken", trials=trials, **more)
    assert len(order) == trials
    for position, error in zip(range(0, trials, step), itertools.cycle([StoppedError, KeyboardInterrupt])):
        place, asked = tmp_path / str(position), []
        with pytest.raises(error):
            run(place, trials=trials, score=break_at(position, throw(error)), asked=asked, **more)
        assert [key for _, key, _ in kept(place)] == asked == order[:position]
        assert run(place, trials=trials, **more) == order[position:]
        require_agreement(place)
        assert [one[2:] for one in look(place)] == [one[2:] for one in look(tmp_path / "unbroken")]


@pytest.mark.parametrize(
    ("keep_seconds", "more"),
    [(0.0, {}), (math.inf, {"batch": 3}), (0.0, {"order": ORDER}), (math.inf, {"order": ORDER, "batch": 10})],
)
def test_what_is_kept_and_not_shown_is_shown_when_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_seconds: float, more: dict[str, Any]
) -> None:
    monkeypatch.setattr(loop, "KEEP_SECONDS", keep_seconds)
    more |= {"trials": 4, "score": mix(without_1=lose, without_3=skip), "limits": Limits(max_latency_ratio=0.9)}
    whole = run(tmp_path / "unbroken", **more)
    states = {state for _, _, state in kept(tmp_path / "unbroken")}
    assert states == {"COMPLETE", "PRUNED"}
    for position in range(len(whole)):
        place, asked = tmp_path / str(position), []
        with interrupting(Trials, "_show", after=position):
            run(place, asked=asked, **more)
        before = kept(place)
        assert len(look(place)) == position < len(before) == len(asked)
        assert asked + run(place, **more) == whole
        assert kept(place)[: len(before)] == before
        require_agreement(place)
        assert look(place) == look(tmp_path / "unbroken")


def test_a_journal_that_is_gone_is_made_anew_with_the_same_numbers(tmp_path: Path) -> None:
    more: dict[str, Any] = {"limits": Limits(max_latency_ratio=0.9, max_ppl_ratio=1.05), "order": ORDER}
    run(tmp_path, trials=5, score=mix(without_3=skip, without_1=fail), **more)
    before, shown = kept(tmp_path), look(tmp_path)
    assert [number for number, _, _ in before] != list(range(len(before)))  # one failed
    (tmp_path / "journal.log").unlink()
    assert set(run(tmp_path, trials=5, score=mix(without_1=fail), **more)).isdisjoint(key for _, key, _ in before)
    assert kept(tmp_path)[: len(before)] == before
    assert look(tmp_path)[: len(shown)] == shown


def test_scores_that_are_gone_are_an_error(tmp_path: Path) -> None:
    run(tmp_path, trials=3)
    (tmp_path / "scores.sqlite").unlink()
    with pytest.raises(
        StudyError, match=r"does not hold what trial 0 of the Optuna study .* Restore it .*--study NAME"
    ):
        run(tmp_path, trials=3)


def test_a_database_that_goes_away_is_one_error_and_the_study_goes_on_in_another(tmp_path: Path) -> None:
    old, new = (f"sqlite:///{tmp_path}/{name}.db" for name in ("old", "new"))
    order = run(tmp_path / "unbroken", trials=4)

    def go_away() -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "old.db")) as connection, connection:
            connection.execute("DROP TABLE trials")

    place = tmp_path / "here"
    with pytest.raises(ResourceError, match=r"no such table: .*run the same command again"):
        run(place, url=old, trials=4, score=break_at(1, go_away))
    known = [key for _, key, _ in kept(place)]
    assert measured(place) == order[:2]
    assert known + run(place, url=new, trials=4) == order
    require_agreement(place, new)
    assert not (place / "journal.log").exists()


# ---- candidates without a value


def test_a_candidate_that_cannot_be_scored_fails_with_its_reason_and_the_search_goes_on(tmp_path: Path) -> None:
    for more in ({}, {"order": ORDER}, {"batch": 3}):
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        for _ in range(2):
            run(place, trials=1000, score=mix(without_3=fail), **more)
        assert count_states(place) == {"COMPLETE": 6, "FAIL": 4}
        failed = [trial for trial in told(place) if trial.state == TrialState.FAIL]
        assert {trial.user_attrs["failed"] for trial in failed} == {"out of memory"}
        assert {trial.params["keep_03"] for trial in failed} == {0}


@pytest.mark.parametrize("more", [{}, {"batch": 3}, {"order": ORDER, "batch": 10}])
def test_candidates_that_fail_in_a_row_end_the_search(tmp_path: Path, more: dict[str, Any]) -> None:
    asked: list[str] = []
    with pytest.raises(ResourceError, match="5 candidates in a row failed, the last one so: out of memory"):
        run(tmp_path, trials=1000, score=fail, asked=asked, **more)
    assert len(asked) == 5


@pytest.mark.parametrize(
    ("more", "ratio"), [({}, math.nan), ({"sampler": "tpe"}, math.inf), ({"order": ORDER}, math.nan)]
)
def test_a_loss_that_is_no_number_is_pruned_with_its_reason_for_good(
    tmp_path: Path, more: dict[str, Any], ratio: float
) -> None:
    def lose_some(candidate: Candidate) -> Scored:
        return lose(candidate, ratio=ratio)

    asked = []
    for _ in range(2):
        asked += run(tmp_path, trials=10, score=mix(without_1=lose_some), retry_skipped=True, **more)
    assert sorted(asked) == KEYS
    assert count_states(tmp_path) == {"COMPLETE": 6, "PRUNED": 4}
    for trial in told(tmp_path):
        said = (
            "the loss of this set (short-distillation) is not a finite number" if not trial.params["keep_01"] else None
        )
        assert trial.user_attrs.get("failed") == said
        assert "skipped" not in trial.user_attrs


@pytest.mark.parametrize("more", [{}, {"sampler": "random"}, {"order": ORDER}])
def test_what_is_skipped_says_why_and_is_asked_again_only_where_it_is_to_be(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    asked = [*run(tmp_path, trials=10, score=mix(without_1=skip), **more), *run(tmp_path, trials=10, **more)]
    assert sorted(asked) == KEYS
    assert count_states(tmp_path) == {"COMPLETE": 6, "PRUNED": 4}
    for trial in told(tmp_path):
        assert trial.user_attrs.get("skipped") == (None if trial.params["keep_01"] else "hopeless")
    again = run(tmp_path, trials=10, retry_skipped=True, **more)
    assert sorted(again) == [key for key in KEYS if "-1" in key]
    assert count_states(tmp_path) == {"COMPLETE": 10, "PRUNED": 4}
    assert run(tmp_path, trials=10, retry_skipped=True, **more) == []


# ---- what people see and do


@pytest.mark.parametrize("more", [{}, {"order": ORDER}])
def test_the_dashboard_finds_flags_attributes_and_constraints(tmp_path: Path, more: dict[str, Any]) -> None:
    limits = Limits(max_ppl_ratio=1.05, max_latency_ratio=0.9, max_memory_bytes=1e6)
    asked = run(tmp_path, trials=10, limits=limits, score=mix(without_6=lose), **more)
    by_key = {candidate.key: candidate for candidate in ORDER}
    for key, trial in zip(asked, told(tmp_path), strict=True):
        evaluation = mix(without_6=lose)(by_key[key]).evaluation
        assert evaluation is not None
        assert trial.params == flags_of(SPACE, by_key[key])
        assert trial.user_attrs["dropped"] == ", ".join(map(str, by_key[key].dropped_layers))
        assert trial.user_attrs["num_params"] == evaluation.size.num_params
        assert trial.constraints == limits.measure(evaluation, proxy=PROXY)
        assert ("PPL ratio" in trial.constraints) == (trial.state == TrialState.COMPLETE)
        if trial.state == TrialState.COMPLETE:
            assert trial.values == [evaluation.qualities[PROXY].ppl_ratio, evaluation.latency.ratio]
            assert set(trial.user_attrs) == {"kept", "dropped", "num_params"}  # columns of a table
