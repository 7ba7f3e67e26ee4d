"""The study: budgets count, killed and broken runs go on as if nothing had happened, damage is mended or named."""

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import optuna
import pytest
from optuna.storages.journal import JournalFileSymlinkLock
from optuna.trial import TrialState

import seed
from seed.errors import CandidateError, ResourceError, StudyError
from seed.optimize import journal as journals
from seed.optimize import storage as storages
from seed.optimize import study as studies
from seed.optimize import teamwork
from seed.optimize import trials as trials_of
from seed.optimize.sampler import UNSKIPPED_STATES, candidate_of, flag_distributions, flags_of
from seed.optimize.space import drop_layers, enumerate_candidates
from seed.optimize.subset import FLAG
from seed.records import Candidate, Evaluation, SearchSpace, TrialRecord
from seed.sharing import Shares
from tests.processes import let_go

from ..reporting import factory

SPACE = SearchSpace(num_layers=12, droppable_layers=(1, 3, 6, 9), min_dropped=1, max_dropped=2)  # 10 candidates
LARGER = SearchSpace(num_layers=12, droppable_layers=(1, 2, 3, 5, 8, 11), min_dropped=1, max_dropped=3)  # 41
RUNG = factory.RUNG
REPOSITORY = Path(seed.__file__).parents[1]
Evaluate = Callable[[Candidate], Evaluation]


def evaluate(candidate: Candidate) -> Evaluation:
    """Score by what the layers cost: the same candidate always scores the same."""
    ratio = math.exp(sum(factory.LAYER_COSTS[layer] for layer in candidate.dropped_layers))
    return factory.make_evaluation(candidate.dropped_layers, ratio)


def without_number(candidate: Candidate) -> Evaluation:
    """Score as a model does whose loss is not a number."""
    evaluation = evaluate(candidate)
    quality = msgspec.structs.replace(
        evaluation.qualities[RUNG], loss=math.nan, perplexity=math.nan, ppl_ratio=math.nan
    )
    return msgspec.structs.replace(evaluation, qualities={**evaluation.qualities, RUNG: quality})


def open_again(place: Path, *, fingerprint: str = "one") -> optuna.Study:
    """Open the study in a folder as a new process does: repaired, replayed, cleared of leftovers."""
    storage = storages.open_storage(None, journal=place / "journal.log")
    study = studies.open_study(storage, name="here", rung=RUNG, fingerprint=fingerprint)
    teamwork.clear_study(study)
    return study


def in_memory() -> optuna.Study:
    return studies.open_study(optuna.storages.InMemoryStorage(), name="here", rung=RUNG, fingerprint="one")


def run(
    study: optuna.Study,
    *,
    trials: int,
    space: SearchSpace = SPACE,
    sampler: str = "tpe",
    score: Evaluate = evaluate,
    on_trial: Callable[[TrialRecord], None] = lambda trial: None,
    **more: Any,
) -> list[str]:
    """Run trials; return the keys of the candidates that were asked for, in order."""
    asked: list[str] = []

    def remember(candidate: Candidate) -> Evaluation:
        asked.append(candidate.key)
        return score(candidate)

    trials_of.run_trials(
        study,
        space,
        trials=trials,
        sampler=sampler,
        rng_seed=5,
        rung=RUNG,
        evaluate=remember,
        on_trial=on_trial,
        **more,
    )
    return asked


def values_of(study: optuna.Study) -> list[tuple[str, float]]:
    """Candidates and PPL ratios of the scored trials, in order."""
    return [
        (record.evaluation.candidate.key, record.evaluation.qualities[RUNG].ppl_ratio)
        for record in studies.read_trials(study)
        if record.state == "COMPLETE"
    ]


def count_states(study: optuna.Study) -> dict[str, int]:
    found: dict[str, int] = {}
    for trial in study.get_trials(deepcopy=False):
        found[trial.state.name] = found.get(trial.state.name, 0) + 1
    return found


# ---- budgets


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_budget_counts_scored_candidates(tmp_path: Path, sampler: str) -> None:
    study = open_again(tmp_path)
    asked = run(study, trials=6, sampler=sampler)
    assert len(asked) == 6
    assert values_of(study) == [
        (key, evaluate(drop_layers(12, [int(layer) for layer in key.split("-")[1:]])).qualities[RUNG].ppl_ratio)
        for key in asked
    ]
    assert [trial.values[1] for trial in study.trials] == [
        record.evaluation.latency.ratio for record in studies.read_trials(study)
    ]


def test_a_space_smaller_than_the_budget_ends_the_study(tmp_path: Path) -> None:
    study = open_again(tmp_path)
    assert sorted(run(study, trials=1000)) == sorted(candidate.key for candidate in enumerate_candidates(SPACE))
    assert run(study, trials=1000) == []


def test_a_resume_at_the_cap_runs_nothing(tmp_path: Path) -> None:
    first = run(open_again(tmp_path), trials=5)
    again = open_again(tmp_path)
    assert run(again, trials=5) == []
    assert run(again, trials=3) == []
    assert [key for key, _ in values_of(again)] == first
    assert count_states(again) == {"COMPLETE": 5}


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii", "random"])
def test_raising_the_budget_goes_on_as_one_longer_run_would(tmp_path: Path, sampler: str) -> None:
    whole = run(in_memory(), trials=16, space=LARGER, sampler=sampler)
    parts = [
        run(open_again(tmp_path), trials=trials, space=LARGER, sampler=sampler)
        for trials in (4, 11, 16)  # TPE starts to learn after ten
    ]
    assert [len(part) for part in parts] == [4, 7, 5]
    assert [*parts[0], *parts[1], *parts[2]] == whole


def test_raising_the_budget_to_the_whole_space_asks_for_the_rest(tmp_path: Path) -> None:
    first = run(open_again(tmp_path), trials=6)
    rest = run(open_again(tmp_path), trials=10)
    assert sorted(first + rest) == sorted(candidate.key for candidate in enumerate_candidates(SPACE))


def test_trials_outside_a_narrowed_space_do_not_spend_its_budget() -> None:
    # --max-latency-ratio and --max-memory narrow the space of a study that goes on
    study = in_memory()
    deeper = msgspec.structs.replace(SPACE, min_dropped=2)
    first = run(study, trials=8)
    inside = [key for key in first if key.count("-") == 2]
    assert 0 < len(inside) < deeper.size == 6
    more = run(study, trials=6, space=deeper)
    assert sorted(inside + more) == sorted(candidate.key for candidate in enumerate_candidates(deeper))


def test_every_trial_is_shown_as_it_is_told() -> None:
    study, shown = in_memory(), []
    run(study, trials=4, on_trial=shown.append)
    assert tuple(shown) == studies.read_trials(study)
    assert [record.number for record in shown] == [0, 1, 2, 3]


def test_trials_read_back_from_the_journal_are_what_was_measured(tmp_path: Path) -> None:
    asked = run(open_again(tmp_path), trials=3)
    records = studies.read_trials(open_again(tmp_path))
    by_key = {candidate.key: candidate for candidate in enumerate_candidates(SPACE)}
    assert [record.evaluation for record in records] == [evaluate(by_key[key]) for key in asked]
    assert [record.state for record in records] == ["COMPLETE"] * 3


def test_the_dashboard_finds_flags_names_and_objectives(tmp_path: Path) -> None:
    study = open_again(tmp_path)
    run(study, trials=2)
    assert study.metric_names == ["PPL ratio (short distillation)", "latency ratio"]
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MINIMIZE"]
    trial = study.trials[0]
    candidate = candidate_of(SPACE, trial.params)
    assert set(trial.params) == {"keep_01", "keep_03", "keep_06", "keep_09"}
    assert trial.user_attrs["dropped"] == ", ".join(map(str, candidate.dropped_layers))
    assert trial.user_attrs["num_params"] == evaluate(candidate).size.num_params
    assert trial.user_attrs["kept"] == studies.spell_layers(candidate.kept_layers)
    assert set(trial.user_attrs) == {"kept", "dropped", "num_params"}  # columns of a table


def test_layers_are_spelled_for_people() -> None:
    assert studies.spell_layers((0, 2, 3, 4, 5, 6, 8, 9)) == "0, 2-6, 8, 9"
    assert studies.spell_layers((0, 1)) == "0, 1"
    assert studies.spell_layers(()) == ""


def test_trials_of_earlier_versions_are_read_too() -> None:
    """They hold the evaluation as a user attribute, and no string of kept layers."""
    new, old = in_memory(), in_memory()
    add(new, trials=3)
    for trial in new.trials:
        old.add_trial(
            optuna.trial.create_trial(
                state=trial.state,
                values=trial.values,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={"dropped": trial.user_attrs["dropped"], "evaluation": trial.system_attrs["evaluation"]},
            )
        )
    assert studies.read_trials(old) == studies.read_trials(new) != ()


# ---- scores that are no numbers


def score_some_without_number() -> Evaluate:
    """Every third candidate has no number."""
    turn = itertools.count()
    return lambda candidate: without_number(candidate) if next(turn) % 3 == 1 else evaluate(candidate)


def test_a_loss_that_is_no_number_is_pruned_and_does_not_count(tmp_path: Path) -> None:
    study = open_again(tmp_path)
    asked = run(study, trials=6, score=score_some_without_number())
    assert len(asked) == len(set(asked)) == 9
    assert count_states(study) == {"COMPLETE": 6, "PRUNED": 3}
    assert [trial.number for trial in study.trials if trial.state == TrialState.PRUNED] == [1, 4, 7]


@pytest.mark.parametrize("way", ["subset", "tpe", "order", "added"])
def test_a_loss_that_is_no_number_has_its_reason_and_is_final(way: str) -> None:
    def score_most(candidate: Candidate) -> Evaluation:
        return without_number(candidate) if 1 in candidate.dropped_layers else evaluate(candidate)

    study, asked = in_memory(), []
    for _ in range(2):
        if way == "added":
            asked += add(study, score=score_most, retry_skipped=True)
        else:
            more = {"order": ORDER} if way == "order" else {"sampler": way}
            asked += run(study, trials=10, score=score_most, retry_skipped=True, **more)
    assert sorted(asked) == sorted(candidate.key for candidate in ORDER)
    assert count_states(study) == {"COMPLETE": 6, "PRUNED": 4}
    reasons = {trial.user_attrs.get("failed") for trial in study.trials if trial.state == TrialState.PRUNED}
    assert reasons == {"the loss of this set (short distillation) is not a finite number"}
    assert all("failed" not in trial.user_attrs for trial in study.trials if trial.state == TrialState.COMPLETE)
    assert all("skipped" not in trial.user_attrs for trial in study.trials)


def test_a_study_with_a_loss_that_is_no_number_can_be_read(tmp_path: Path) -> None:
    run(open_again(tmp_path), trials=4, score=score_some_without_number())
    records = studies.read_trials(open_again(tmp_path))
    assert [key for key, _ in values_of(open_again(tmp_path))] == [
        record.evaluation.candidate.key for record in records if record.state == "COMPLETE"
    ]
    assert sum(record.state == "COMPLETE" for record in records) == 4


def test_a_study_whose_standard_error_is_unknown_can_be_read(tmp_path: Path) -> None:
    # a stream of one document has none (seed/scoring/quality.py), and JSON has no NaN
    def from_one_document(candidate: Candidate) -> Evaluation:
        evaluation = evaluate(candidate)
        quality = msgspec.structs.replace(
            evaluation.qualities[RUNG], documents=1, standard_error=math.nan, ppl_ratio_standard_error=math.nan
        )
        return msgspec.structs.replace(evaluation, qualities={RUNG: quality})

    run(open_again(tmp_path), trials=3, score=from_one_document)
    assert len(studies.read_trials(open_again(tmp_path))) == 3


def test_an_infinite_loss_is_pruned() -> None:
    def overflow(candidate: Candidate) -> Evaluation:
        evaluation = evaluate(candidate)
        quality = msgspec.structs.replace(evaluation.qualities[RUNG], ppl_ratio=math.inf)
        return msgspec.structs.replace(evaluation, qualities={RUNG: quality})

    study = in_memory()
    run(study, trials=10, score=overflow)
    assert count_states(study) == {"PRUNED": 10}


def test_a_skipped_candidate_is_pruned_with_its_reason_and_not_asked_again() -> None:
    def skip_first(candidate: Candidate) -> Evaluation:
        evaluation = evaluate(candidate)
        if 1 not in candidate.dropped_layers:
            return evaluation
        lower = {"none": evaluation.qualities["none"]}
        return msgspec.structs.replace(evaluation, qualities=lower, skipped_because="hopeless")

    study = in_memory()
    asked = run(study, trials=9, score=skip_first)
    assert len(asked) == len(set(asked)) == 10  # four with layer 1 are skipped, so all of the space is asked
    skipped = [record for record in studies.read_trials(study) if record.state == "PRUNED"]
    assert len(skipped) == 4
    assert {record.evaluation.skipped_because for record in skipped} == {"hopeless"}


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii", "random"])
def test_pruned_trials_do_not_stop_a_sampler(sampler: str) -> None:
    study = in_memory()
    run(study, trials=14, space=LARGER, sampler=sampler, score=score_some_without_number())
    assert count_states(study) == {"COMPLETE": 14, "PRUNED": 7}


# ---- broken runs


class BrokenError(Exception):
    pass


def break_at(position: int, error: type[BaseException] = BrokenError) -> Evaluate:
    """Raise once, when ``position`` candidates were scored."""
    turn = itertools.count()

    def score(candidate: Candidate) -> Evaluation:
        if next(turn) == position:
            raise error
        return evaluate(candidate)

    return score


@pytest.mark.parametrize(("space", "trials"), [(SPACE, 10), (LARGER, 15)], ids=["whole space", "tpe"])
def test_a_broken_run_resumed_asks_what_an_unbroken_one_would(space: SearchSpace, trials: int) -> None:
    unbroken = in_memory()
    order = run(unbroken, trials=trials, space=space)
    assert len(order) == trials
    for position in range(trials):
        storage = optuna.storages.InMemoryStorage()
        broken, resumed = (
            studies.open_study(storage, name="here", rung=RUNG, fingerprint="one") for _ in ("first", "again")
        )
        with pytest.raises(BrokenError):
            run(broken, trials=trials, space=space, score=break_at(position))
        assert [key for key, _ in values_of(resumed)] == order[:position]
        assert run(resumed, trials=trials, space=space) == order[position:]  # the broken one is tried again
        assert values_of(resumed) == values_of(unbroken)
        assert count_states(resumed) == {"COMPLETE": trials, "FAIL": 1}


def test_a_run_broken_again_and_again_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    unbroken = in_memory()
    run(unbroken, trials=14, space=LARGER)
    for _ in range(4):
        with pytest.raises(BrokenError):
            run(open_again(tmp_path), trials=14, space=LARGER, score=break_at(3))
    final = open_again(tmp_path)
    run(final, trials=14, space=LARGER)
    assert values_of(final) == values_of(unbroken)
    assert count_states(final) == {"COMPLETE": 14, "FAIL": 4}


def test_ctrl_c_fails_the_trial_and_goes_through(tmp_path: Path) -> None:
    study = open_again(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(study, trials=5, score=break_at(2, KeyboardInterrupt))
    assert count_states(study) == {"COMPLETE": 2, "FAIL": 1}


# ---- candidates in a given order

ORDER = tuple(random.Random(3).sample(list(enumerate_candidates(SPACE)), SPACE.size))


def add(
    study: optuna.Study,
    *,
    trials: int = 1000,
    space: SearchSpace = SPACE,
    order: Iterable[Candidate] = ORDER,
    score: Evaluate = evaluate,
    on_trial: Callable[[TrialRecord], None] = lambda trial: None,
    **more: Any,
) -> list[str]:
    """Add trials; return the keys of the candidates that were evaluated, in order."""
    asked: list[str] = []

    def remember(candidate: Candidate) -> Evaluation:
        asked.append(candidate.key)
        return score(candidate)

    trials_of.add_trials(study, space, order, trials=trials, rung=RUNG, evaluate=remember, on_trial=on_trial, **more)
    return asked


def test_candidates_are_evaluated_and_kept_in_the_order_given(tmp_path: Path) -> None:
    asked = add(open_again(tmp_path))
    assert asked == [candidate.key for candidate in ORDER]
    records = studies.read_trials(open_again(tmp_path))
    assert [record.evaluation for record in records] == [evaluate(candidate) for candidate in ORDER]
    assert [record.number for record in records] == list(range(10))
    assert count_states(open_again(tmp_path)) == {"COMPLETE": 10}


def test_added_trials_are_those_that_asking_would_make(tmp_path: Path) -> None:
    added, asked = in_memory(), in_memory()
    add(added, trials=4)
    run(asked, trials=4, order=ORDER[:4])
    for one, other in zip(added.trials, asked.trials, strict=True):
        assert one.number == other.number
        assert one.values == other.values
        assert one.params == other.params
        assert one.distributions == other.distributions
        assert one.user_attrs == other.user_attrs
        assert one.system_attrs["evaluation"] == other.system_attrs["evaluation"]
        assert one.state == other.state


def test_adding_stops_at_the_number_of_complete_trials() -> None:
    study = in_memory()
    assert add(study, trials=4) == [candidate.key for candidate in ORDER[:4]]
    assert add(study, trials=4) == []
    assert add(study, trials=6) == [candidate.key for candidate in ORDER[4:6]]


def test_what_the_study_has_is_passed_over(tmp_path: Path) -> None:
    first = add(open_again(tmp_path), trials=3)
    rest = add(open_again(tmp_path), order=ORDER[::-1])
    assert rest == [candidate.key for candidate in ORDER[::-1] if candidate.key not in first]
    assert count_states(open_again(tmp_path)) == {"COMPLETE": 10}
    assert add(open_again(tmp_path)) == []


def test_what_a_sampler_asked_for_is_passed_over() -> None:
    study = in_memory()
    first = run(study, trials=4, sampler="random")
    assert add(study) == [candidate.key for candidate in ORDER if candidate.key not in first]
    assert run(study, trials=1000) == []


def test_added_candidates_are_not_asked_for_again() -> None:
    study = in_memory()
    first = add(study, trials=7)
    assert sorted(first + run(study, trials=1000)) == sorted(candidate.key for candidate in ORDER)


def test_a_candidate_named_twice_is_evaluated_once() -> None:
    assert add(in_memory(), order=[*ORDER[:2], *ORDER[:3]]) == [candidate.key for candidate in ORDER[:3]]


def test_added_candidates_without_a_number_are_pruned_and_do_not_count() -> None:
    study = in_memory()
    asked = add(study, trials=6, score=score_some_without_number())
    assert asked == [candidate.key for candidate in ORDER[:9]]
    assert count_states(study) == {"COMPLETE": 6, "PRUNED": 3}
    assert [trial.number for trial in study.trials if trial.state == TrialState.PRUNED] == [1, 4, 7]
    assert all("skipped" not in trial.user_attrs for trial in study.trials)


def test_a_skipped_candidate_is_added_with_its_reason_and_not_evaluated_again() -> None:
    def skip_first(candidate: Candidate) -> Evaluation:
        evaluation = evaluate(candidate)
        if 1 not in candidate.dropped_layers:
            return evaluation
        lower = {"none": evaluation.qualities["none"]}
        return msgspec.structs.replace(evaluation, qualities=lower, skipped_because="hopeless")

    study, shown = in_memory(), []
    add(study, score=skip_first, on_trial=shown.append)
    assert count_states(study) == {"COMPLETE": 6, "PRUNED": 4}
    for trial, candidate in zip(study.trials, ORDER, strict=True):
        is_skipped = 1 in candidate.dropped_layers
        assert trial.user_attrs.get("skipped") == ("hopeless" if is_skipped else None)
        assert trial.state == (TrialState.PRUNED if is_skipped else TrialState.COMPLETE)
        assert trial.values == (None if is_skipped else values_at(candidate))
    assert tuple(shown) == studies.read_trials(study)
    assert add(study, score=skip_first) == []


def test_a_skipped_candidate_with_a_number_still_has_no_value() -> None:
    def skip(candidate: Candidate) -> Evaluation:
        return msgspec.structs.replace(evaluate(candidate), skipped_because="hopeless")

    study = in_memory()
    add(study, score=skip)
    assert count_states(study) == {"PRUNED": 10}


def test_a_broken_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(BrokenError):
        add(open_again(tmp_path), score=break_at(4))
    assert count_states(open_again(tmp_path)) == {"COMPLETE": 4}  # what broke left no trial
    shown: list[TrialRecord] = []
    assert add(open_again(tmp_path), on_trial=shown.append) == [candidate.key for candidate in ORDER[4:]]
    assert [trial.number for trial in shown] == [4, 5, 6, 7, 8, 9]
    whole = in_memory()
    add(whole)
    assert values_of(open_again(tmp_path)) == values_of(whole)


def test_numbers_shown_are_those_of_the_study_also_behind_failed_trials() -> None:
    study, shown = in_memory(), []
    with pytest.raises(BrokenError):
        run(study, trials=3, score=break_at(1))
    add(study, trials=4, on_trial=shown.append)
    assert [trial.number for trial in shown] == [2, 3, 4]
    assert tuple(shown) == studies.read_trials(study)[1:]


def test_candidates_outside_a_narrowed_space_do_not_count() -> None:
    study = in_memory()
    add(study, trials=10)
    deeper = msgspec.structs.replace(SPACE, min_dropped=2)
    assert len(studies.complete_keys(study, deeper)) == 6
    assert add(study, trials=6, space=deeper, order=enumerate_candidates(deeper)) == []


def values_at(candidate: Candidate) -> list[float]:
    evaluation = evaluate(candidate)
    return [evaluation.qualities[RUNG].ppl_ratio, evaluation.latency.ratio]


KILLED = """
import math, os, signal, sys
from pathlib import Path
from seed.optimize import storage as storages
from seed.optimize import study as studies
from seed.optimize import teamwork
from seed.optimize import trials as trials_of
from seed.records import Evaluation, SearchSpace
import msgspec

place, space, answers, position = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
answers = msgspec.json.decode(answers, type=dict[str, Evaluation])
told = 0

def evaluate(candidate):
    global told
    if told == position:
        os.kill(os.getpid(), signal.SIGKILL)
    told += 1
    return answers[candidate.key]

study = studies.open_study(
    storages.open_storage(None, journal=place / "journal.log"),
    name="here", rung="short_distillation", fingerprint="one",
)
trials_of.run_trials(
    study, msgspec.json.decode(space, type=SearchSpace), trials=14, sampler="tpe", rng_seed=5,
    rung="short_distillation", evaluate=evaluate,
)
"""


def test_a_killed_run_resumed_asks_what_an_unbroken_one_would(tmp_path: Path) -> None:
    order = run(unbroken := in_memory(), trials=14, space=LARGER)
    answers = {candidate.key: evaluate(candidate) for candidate in enumerate_candidates(LARGER)}
    arguments = [str(tmp_path), msgspec.json.encode(LARGER).decode(), msgspec.json.encode(answers).decode(), "11"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    journal = storages.open_storage(None, journal=tmp_path / "journal.log")
    left = optuna.load_study(storage=journal, study_name="here")
    assert count_states(left) == {"COMPLETE": 11, "RUNNING": 1}
    resumed = open_again(tmp_path)
    assert count_states(resumed) == {"COMPLETE": 11, "FAIL": 1}
    assert run(resumed, trials=14, space=LARGER) == order[11:]
    assert values_of(resumed) == values_of(unbroken)


def test_trials_left_running_are_failed_and_their_candidates_tried_again(tmp_path: Path) -> None:
    other = open_again(tmp_path)
    run(other, trials=3)
    other.sampler = optuna.samplers.RandomSampler(seed=0)
    left = drop_layers(12, [3, 9])
    other.enqueue_trial(flags_of(SPACE, left))
    other.ask(fixed_distributions=flag_distributions(SPACE))  # asked, never told
    other.ask()  # killed before its flags were written
    study = open_again(tmp_path)
    assert count_states(study) == {"COMPLETE": 3, "FAIL": 2}
    assert left.key in run(study, trials=10)
    assert len(values_of(study)) == 10


def test_trials_that_somebody_queued_do_not_stop_a_study(tmp_path: Path) -> None:
    study = open_again(tmp_path)
    study.enqueue_trial(flags_of(SPACE, drop_layers(12, [3])))
    again = open_again(tmp_path)
    assert len(run(again, trials=3)) == 3


# ---- the journal


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The journal of four scored candidates."""
    place = tmp_path_factory.mktemp("journal")
    run(open_again(place), trials=4)
    return (place / "journal.log").read_bytes()


def cut_offsets(journal: bytes) -> Iterator[int]:
    """Places in the last lines: at each line's end, just around it, and in its middle."""
    ends = [index + 1 for index, byte in enumerate(journal) if byte == ord("\n")][-6:]
    for before, end in itertools.pairwise(ends):
        yield from (before, before + 1, (before + end) // 2, end - 1)


def test_a_torn_last_line_is_cut_and_all_before_is_kept(tmp_path: Path, journal: bytes) -> None:
    path = tmp_path / "journal.log"
    for offset in cut_offsets(journal):
        path.write_bytes(journal[:offset])
        journals.repair_journal(path)
        assert path.read_bytes() == journal[: journal[:offset].rfind(b"\n") + 1]
    whole = [record.evaluation for record in studies.read_trials(open_again(tmp_path))]
    assert len(whole) == 3  # the last cut was in what told the fourth
    order = run(in_memory(), trials=4)
    assert [evaluation.candidate.key for evaluation in whole] == order[:3]
    assert run(open_again(tmp_path), trials=4) == order[3:]


@pytest.mark.parametrize("tail", [b'{"op_code":', b'{"op_code":4,"trial\n', b"\0" * 64, b"\0\0\n", b"\n"])
def test_rubbish_at_the_end_is_cut(tmp_path: Path, journal: bytes, tail: bytes) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(journal + tail)
    journals.repair_journal(path)
    assert path.read_bytes() == journal
    assert len(values_of(open_again(tmp_path))) == 4


def test_a_whole_journal_is_left_as_it_is(tmp_path: Path, journal: bytes) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(journal)
    journals.repair_journal(path)
    assert path.read_bytes() == journal


@pytest.mark.parametrize("content", [b"", b"{", b"\n"])
def test_a_journal_without_a_whole_line_starts_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.log").write_bytes(content)
    assert len(run(open_again(tmp_path), trials=2)) == 2


@pytest.mark.parametrize("damage", [b'{"op_code":5,"wor{"op_code":5}', b"\0\0\0\0", b""])
@pytest.mark.parametrize("number", [1, 7])
def test_a_damaged_line_within_is_refused_with_its_number(
    tmp_path: Path, journal: bytes, damage: bytes, number: int
) -> None:
    lines = journal.splitlines()
    lines[number - 1] = damage
    path = tmp_path / "journal.log"
    path.write_bytes(damaged := b"\n".join(lines) + b"\n")
    with pytest.raises(StudyError, match=rf"journal\.log: line {number} is damaged") as caught:
        storages.open_storage(None, journal=path)
    assert "--study NAME" in str(caught.value)
    assert path.read_bytes() == damaged


def test_a_lock_left_by_a_killed_writer_is_removed(tmp_path: Path, journal: bytes) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(journal)
    JournalFileSymlinkLock(str(path)).acquire()  # and never released: Optuna alone would wait for half a minute
    assert os.path.lexists(tmp_path / "journal.log.lock")
    storage = storages.open_storage(None, journal=path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["journal.log"]  # before anyone waits for it
    study = studies.open_study(storage, name="here", rung=RUNG, fingerprint="one")
    assert len(run(study, trials=6)) == 2


def test_every_line_of_the_journal_is_json(journal: bytes) -> None:
    assert all(json.loads(line) for line in journal.splitlines())


# ---- which study, which storage


def test_a_study_of_another_plan_is_refused(tmp_path: Path) -> None:
    run(open_again(tmp_path), trials=2)
    with pytest.raises(StudyError, match=r"another plan.*--study NAME"):
        open_again(tmp_path, fingerprint="two")
    assert len(values_of(open_again(tmp_path))) == 2


def test_a_study_killed_while_it_was_made_still_gets_its_names(tmp_path: Path) -> None:
    study = open_again(tmp_path)
    run(study, trials=1)
    path = tmp_path / "journal.log"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))  # the study and its fingerprint, nothing more
    again = open_again(tmp_path)
    assert again.user_attrs[studies.FINGERPRINT] == "one"
    assert again.metric_names == study.metric_names


SECRETS = [
    "postgresql://me:hunter2@host/studies",
    "postgresql+psycopg://me:hunter2@host:5432/studies?sslmode=require",
    "mysql+pymysql://me:hunter2@host/studies",
    "redis://:hunter2@host",
    "postgresql://me:hunter2%40@host/studies",
    "postgresql://me:hunter2@x@host/studies",
    # SQLAlchemy takes everything up to the last @ for the password, urlsplit does not
    "postgresql://me:hunter2#x@host/studies",
    "postgresql://me:hunter2/x@host/studies",
    "postgresql://me:hunter2?x@host/studies",
    "postgresql://me:hunter2[x@host/studies",
    "postgresql://host/studies?user=me&password=hunter2",
]


@pytest.mark.parametrize("url", SECRETS)
def test_a_password_in_the_url_is_refused_and_never_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(StudyError) as caught:
        storages.open_storage(url, journal=tmp_path / "journal.log")
    assert "hunter2" not in str(caught.value)
    assert "holds a password" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["postgresql://me@host/studies", "sqlite:///a:b@c.db", "sqlite:////tmp/x.db"])
def test_a_url_without_a_password_passes(url: str) -> None:
    storages.check_storage_url(url)


@pytest.mark.parametrize("url", ["nosuchdriver://host/studies", "sqlite:////nowhere/at/all.db", "studies.db"])
def test_a_storage_that_cannot_be_opened_is_refused_with_the_url(tmp_path: Path, url: str) -> None:
    with pytest.raises(StudyError) as caught:
        storages.open_storage(url, journal=tmp_path / "journal.log")
    message = str(caught.value)
    assert message.startswith(f"--storage {url}: cannot be opened (")
    assert "sqlite:///" in message
    assert "\n" not in message


def test_a_database_holds_a_study_as_the_journal_does(tmp_path: Path) -> None:
    def reopen() -> optuna.Study:
        storage = storages.open_storage(f"sqlite:///{tmp_path / 'studies.db'}", journal=tmp_path / "journal.log")
        return studies.open_study(storage, name="here", rung=RUNG, fingerprint="one")

    order = run(in_memory(), trials=4)
    with pytest.raises(BrokenError):
        run(reopen(), trials=4, score=break_at(2))
    resumed = reopen()
    assert run(resumed, trials=4) == order[2:]
    assert [key for key, _ in values_of(resumed)] == order
    assert not (tmp_path / "journal.log").exists()


# ---- several workers

LEFT, OTHER = ORDER[:2]
FLAGS = dict.fromkeys(flag_distributions(SPACE), FLAG)
QUICK = 0.1  # seconds
SLOW = teamwork.CHOOSING_SECONDS / 2 + 1


class Clock:
    """Time that passes only while somebody sleeps; ``on_sleep`` is what others do meanwhile."""

    def __init__(self, on_sleep: Callable[[int], object] = lambda turn: None) -> None:
        self.now, self.turns, self.on_sleep = 0.0, 0, on_sleep

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.turns += 1
        self.on_sleep(self.turns)


def start(study: optuna.Study, candidate: Candidate) -> optuna.Trial:
    """A trial that is going to hold this candidate, and has written no flag yet."""
    study.enqueue_trial(flags_of(SPACE, candidate))
    return study.ask()


def write(trial: optuna.Trial, names: Iterable[str] = FLAGS) -> None:
    for name in names:
        trial.suggest_categorical(name, FLAGS[name].choices)


def hold(study: optuna.Study, candidate: Candidate, state: TrialState = TrialState.RUNNING) -> optuna.Trial:
    trial = start(study, candidate)
    write(trial)
    if state != TrialState.RUNNING:
        study.tell(trial, values_at(candidate) if state == TrialState.COMPLETE else None, state=state)
    return trial


def claim(study: optuna.Study, trial: optuna.Trial, *, asked_seconds: float = QUICK) -> bool:
    return teamwork.Claims(study, SPACE).claim(trial, asked_seconds=asked_seconds)


@pytest.mark.parametrize(
    ("state", "is_ours"),
    [
        (TrialState.COMPLETE, False),
        (TrialState.PRUNED, False),
        (TrialState.RUNNING, False),
        (TrialState.FAIL, True),
    ],
)
def test_a_trial_gives_way_to_an_earlier_one_of_its_set(state: TrialState, is_ours: bool) -> None:
    study = in_memory()
    hold(study, LEFT, state)
    assert claim(study, hold(study, LEFT)) == is_ours
    assert claim(study, hold(study, OTHER))


def test_what_was_skipped_can_be_claimed_where_it_is_to_be_tried_after_all() -> None:
    study = in_memory()
    hold(study, LEFT, TrialState.PRUNED)
    hold(study, OTHER, TrialState.COMPLETE)
    claims = teamwork.Claims(study, SPACE, states=UNSKIPPED_STATES)
    assert claims.claim(hold(study, LEFT), asked_seconds=QUICK)
    assert not claims.claim(hold(study, OTHER), asked_seconds=QUICK)


@pytest.mark.parametrize(("asked_seconds", "is_ours"), [(QUICK, True), (SLOW, False)])
def test_only_who_was_slow_to_choose_gives_way_to_later_trials(asked_seconds: float, is_ours: bool) -> None:
    study = in_memory()
    first, second = hold(study, LEFT), hold(study, LEFT)
    alone = hold(study, OTHER)
    assert claim(study, first, asked_seconds=asked_seconds) == is_ours
    assert not claim(study, second)
    assert claim(study, alone, asked_seconds=asked_seconds)


def test_of_many_that_hold_one_set_the_first_claims_it_in_whatever_order_they_look() -> None:
    for order in itertools.permutations(range(3)):
        study = in_memory()
        trials = [hold(study, LEFT) for _ in range(3)]
        assert [claim(study, trials[place]) for place in order] == [place == 0 for place in order]


@pytest.mark.parametrize(("candidate", "is_ours"), [(LEFT, False), (OTHER, True)])
def test_an_earlier_trial_is_waited_for_until_its_last_flag_is_written(
    monkeypatch: pytest.MonkeyPatch, candidate: Candidate, is_ours: bool
) -> None:
    study = in_memory()
    names, choosing = list(FLAGS), start(study, candidate)
    turns = {2: names[:-1], 4: names[-1:]}
    monkeypatch.setattr(teamwork, "time", clock := Clock(lambda turn: write(choosing, turns.get(turn, ()))))
    assert claim(study, hold(study, LEFT)) == is_ours
    assert clock.turns == 4


def test_an_earlier_trial_that_fails_while_it_chooses_is_waited_for_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    study = in_memory()
    choosing = start(study, LEFT)
    monkeypatch.setattr(teamwork, "time", clock := Clock(lambda turn: study.tell(choosing, state=TrialState.FAIL)))
    assert claim(study, hold(study, LEFT))
    assert clock.turns == 1


def test_a_later_trial_that_is_choosing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    study = in_memory()
    ours = hold(study, LEFT)
    study.ask()
    monkeypatch.setattr(teamwork, "time", clock := Clock())
    assert claim(study, ours)
    assert clock.turns == 0


def test_finished_trials_without_flags_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    study = in_memory()
    study.tell(study.ask(), state=TrialState.FAIL)
    study.tell(study.ask(), [1.0, 1.0])
    monkeypatch.setattr(teamwork, "time", clock := Clock())
    assert claim(study, hold(study, LEFT))
    assert clock.turns == 0


def test_a_worker_that_died_while_it_chose_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    study = in_memory()
    study.ask()
    monkeypatch.setattr(teamwork, "time", clock := Clock())
    claims = teamwork.Claims(study, SPACE)
    assert claims.claim(hold(study, LEFT), asked_seconds=QUICK)
    assert clock.now >= teamwork.CHOOSING_SECONDS
    turns = clock.turns
    assert claims.claim(hold(study, OTHER), asked_seconds=QUICK)
    assert clock.turns == turns


def test_a_worker_taken_for_dead_that_comes_back_evaluates_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    study = in_memory()
    slow, slower = start(study, LEFT), start(study, OTHER)
    monkeypatch.setattr(teamwork, "time", clock := Clock())
    claims = teamwork.Claims(study, SPACE)
    assert claims.claim(hold(study, LEFT), asked_seconds=QUICK)
    write(slow)
    assert not claim(study, slow, asked_seconds=clock.now)
    write(slower)
    assert claim(study, slower, asked_seconds=clock.now)
    assert not claims.claim(hold(study, OTHER), asked_seconds=QUICK)  # its set counts, although it was given up


def test_a_set_that_was_given_away_and_then_failed_is_evaluated_by_another() -> None:
    study = in_memory()
    first, second = hold(study, LEFT), hold(study, LEFT)
    assert not claim(study, second)
    for trial in (second, first):
        study.tell(trial, state=TrialState.FAIL)
    assert claim(study, hold(study, LEFT))


class LeftError(Exception):
    pass


def leave() -> None:
    raise LeftError


def name_worker(name: str, *, others: Collection[str] = ("one", "two", "three")) -> teamwork.Worker:
    """One of several at work."""
    return teamwork.Worker(name=name, is_there=lambda other: other in others)


@pytest.mark.parametrize("sampler", ["subset", "tpe", "random"])
def test_what_a_worker_evaluates_is_left_alone_by_another(tmp_path: Path, sampler: str) -> None:
    first = open_again(tmp_path)
    second = optuna.load_study(storage=first._storage, study_name="here")
    asked: list[str] = []

    def score_second(candidate: Candidate) -> Evaluation:
        asked.append(candidate.key)
        return evaluate(candidate)

    def evaluate_among_others(candidate: Candidate) -> Evaluation:
        with pytest.raises(LeftError):  # it waits: this one may yet fail
            run(second, trials=1000, sampler=sampler, score=score_second, worker=name_worker("two"), on_wait=leave)
        return evaluate(candidate)

    own = run(first, trials=1000, sampler=sampler, score=evaluate_among_others, worker=name_worker("one"))
    assert len(own) == 1
    assert sorted(own + asked) == sorted(candidate.key for candidate in ORDER)
    assert count_states(first) == {"COMPLETE": 10}


def test_a_set_whose_worker_was_killed_again_and_again_is_evaluated_after_all(tmp_path: Path) -> None:
    seen: list[str] = []

    def break_off(candidate: Candidate) -> Evaluation:
        seen.append(candidate.key)
        raise KeyboardInterrupt

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            run(open_again(tmp_path), trials=3, sampler="subset", score=break_off)
    assert len(set(seen)) == 1
    assert run(open_again(tmp_path), trials=3, sampler="subset")[0] == seen[0]


def test_who_gives_way_asks_for_something_else() -> None:
    study = in_memory()
    other = teamwork.Claims(study, SPACE, worker=name_worker("two"))
    for candidate in (ORDER[0], ORDER[1]):
        assert other.make(candidate) is not None
    study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs={teamwork.WORKER: "three"}))
    assert not teamwork.Claims(study, SPACE, worker=name_worker("one", others=("one", "two"))).claim(
        hold(study, ORDER[0]), asked_seconds=QUICK
    )


def test_a_budget_is_kept_by_all_workers_together() -> None:
    """Whoever looks last finds that what runs and what is done make up the budget."""
    study = in_memory()
    first, second, third = (teamwork.Claims(study, SPACE, worker=name_worker(name)) for name in ("one", "two", "three"))
    trials = [claims.make(ORDER[place]) for place, claims in enumerate((first, second, third))]
    found = [
        claims.claim(trial, asked_seconds=QUICK, trials=2)
        for claims, trial in ((third, trials[2]), (first, trials[0]), (second, trials[1]))
        if trial is not None
    ]
    assert found == [False, True, True]


def test_the_trial_of_a_worker_that_died_is_failed_and_its_set_tried_first() -> None:
    study = in_memory()
    dead = teamwork.Claims(study, SPACE, worker=name_worker("dead"))
    assert dead.make(ORDER[7]) is not None
    assert run(study, trials=2, worker=name_worker("one"))[0] == ORDER[7].key
    assert count_states(study) == {"COMPLETE": 2, "FAIL": 1}


def test_a_set_that_kills_its_workers_is_tried_three_times_and_no_more() -> None:
    study = in_memory()
    for number in range(3):
        dead = teamwork.Claims(study, SPACE, worker=name_worker(f"dead {number}"))
        assert ORDER[7].key not in dead.look().taken
        assert dead.make(ORDER[7]) is not None
    for sampler in ("subset", "random"):
        asked = run(study, trials=1000, sampler=sampler, worker=name_worker("one"))
        assert ORDER[7].key not in asked
    assert count_states(study) == {"COMPLETE": 9, "FAIL": 3}


def test_a_candidate_that_cannot_be_evaluated_fails_with_its_reason_and_the_search_goes_on() -> None:
    def refuse(candidate: Candidate) -> Evaluation:
        if 3 in candidate.dropped_layers:
            raise CandidateError("out of memory")
        return evaluate(candidate)

    study = in_memory()
    asked = run(study, trials=1000, sampler="subset", score=refuse)
    assert len(asked) == len(set(asked)) == 10
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert {trial.user_attrs["failed"] for trial in failed} == {"out of memory"}
    assert len(failed) == 4
    assert run(study, trials=1000, sampler="subset", score=refuse) == []


def test_candidates_that_all_fail_end_the_search() -> None:
    def refuse(candidate: Candidate) -> Evaluation:
        raise CandidateError("out of memory")

    with pytest.raises(ResourceError, match="5 candidates in a row failed, the last one so: out of memory"):
        run(in_memory(), trials=1000, score=refuse)


def test_a_worker_taken_for_dead_tells_nothing() -> None:
    study = in_memory()
    slow = teamwork.Claims(study, SPACE, worker=name_worker("slow"))
    trial = slow.make(ORDER[0])
    assert trial is not None
    run(study, trials=1, worker=name_worker("one"))  # "slow" is not there, and its trial is failed
    assert not slow.tell(trial, [1.0, 1.0], user_attrs={}, system_attrs={})
    assert count_states(study) == {"COMPLETE": 1, "FAIL": 1}


def test_workers_with_an_order_walk_stretches_of_their_own() -> None:
    study = in_memory()
    order = list(enumerate_candidates(LARGER))
    queues = [trials_of.Queue(order) for _ in range(2)]
    workers = [teamwork.Claims(study, LARGER, worker=name_worker(name)) for name in ("one", "two")]
    walked: list[list[int]] = [[], []]
    for turn in range(len(order)):
        number = turn % 2
        candidate = queues[number].choose(workers[number].look())
        assert candidate is not None
        trial = workers[number].make(candidate)
        assert trial is not None
        assert workers[number].claim(trial, asked_seconds=QUICK)
        walked[number].append(order.index(candidate))
        if turn > 0:  # the other one ends what it began
            other = workers[1 - number]
            running = [t for t in study.trials if t.number == other.own]
            other.tell(optuna.Trial(study, running[0]._trial_id), [1.0, 1.0], user_attrs={}, system_attrs={})
    assert sorted(walked[0] + walked[1]) == list(range(len(order)))
    neighbours = sum(b - a == 1 for walk in walked for a, b in itertools.pairwise(walk))
    assert neighbours >= len(order) * 2 / 3


def test_what_others_finish_while_a_worker_begins_is_not_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, asked = in_memory(), []
    look = trials_of.taken_keys

    def look_late(*args, **more):  # another process finishes the first set just after we have looked
        found = look(*args, **more)
        monkeypatch.setattr(trials_of, "taken_keys", look)
        trials_of.add_trials(study, SPACE, ORDER[:1], trials=1, rung=RUNG, evaluate=evaluate)
        return found

    def remember(candidate: Candidate) -> Evaluation:
        asked.append(candidate.key)
        return evaluate(candidate)

    monkeypatch.setattr(trials_of, "taken_keys", look_late)
    shares = Shares(tmp_path / "shares")
    trials_of.add_trials(study, SPACE, ORDER[:3], trials=3, rung=RUNG, evaluate=remember, shares=shares)
    assert asked == [candidate.key for candidate in ORDER[1:3]]
    assert count_states(study) == {"COMPLETE": 3}


def test_a_worker_whose_claim_is_lost_leaves_the_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    study = in_memory()
    other = teamwork.Claims(study, LARGER, worker=name_worker("other"))
    order = list(enumerate_candidates(LARGER))
    claim, asked = teamwork.Claims.claim, []

    def claim_late(claims, trial, **more):  # another worker has the same candidate
        monkeypatch.setattr(teamwork.Claims, "claim", claim)
        assert other.make(order[0]) is not None
        return False

    def remember(candidate: Candidate) -> Evaluation:
        asked.append(order.index(candidate))
        raise KeyboardInterrupt

    monkeypatch.setattr(teamwork.Claims, "claim", claim_late)
    with pytest.raises(KeyboardInterrupt):
        run(
            study,
            trials=9,
            space=LARGER,
            order=order,
            score=remember,
            worker=name_worker("one", others=["one", "other"]),
        )
    assert asked == [len(trials_of.cut_stretches(len(order))[0])]


WORKER = """
import sys, time
from pathlib import Path
import msgspec, optuna
from seed.optimize import storage as storages
from seed.optimize import trials as trials_of
from seed.optimize.sampler import FeasibleSampler
from seed.optimize.subset import SubsetSampler
from seed.optimize.teamwork import Worker
from seed.presence import Presence
from seed.records import Evaluation, SearchSpace

journal, log, sampler, space, answers = sys.argv[1:]
answers = msgspec.json.decode(answers, type=dict[str, Evaluation])
chooser = SubsetSampler if sampler == "subset" else FeasibleSampler
choose = chooser.sample_relative

def choose_slowly(*args):  # so that all of them have chosen before anyone writes what
    chosen = choose(*args)
    time.sleep(0.05)
    return chosen

def evaluate(candidate):
    with open(log, "a") as handle:
        handle.write(candidate.key + "\\n")
    return answers[candidate.key]

chooser.sample_relative = choose_slowly
study = optuna.load_study(study_name="here", storage=storages.open_storage(None, journal=Path(journal)))
presence = Presence(Path(journal).parent / "present")
with presence.be_there():
    print("ready", flush=True)
    sys.stdin.readline()
    trials_of.run_trials(
        study, msgspec.json.decode(space, type=SearchSpace), trials=1000, sampler=sampler, rng_seed=5,
        rung="short_distillation", evaluate=evaluate, worker=Worker(name=presence.name, is_there=presence.is_there),
    )
"""


@pytest.mark.parametrize("sampler", ["subset", "random"])
def test_processes_that_share_a_study_evaluate_every_candidate_once(tmp_path: Path, sampler: str) -> None:
    study = open_again(tmp_path)
    answers = {candidate.key: evaluate(candidate) for candidate in ORDER}
    logs = [tmp_path / f"{worker}.txt" for worker in range(3)]
    encoded = [msgspec.json.encode(value).decode() for value in (SPACE, answers)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path / "journal.log"), str(log), sampler, *encoded],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for log in logs
    ]
    try:
        let_go(workers)
        ends = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [(worker.returncode, err) for worker, (_, err) in zip(workers, ends, strict=True)] == [(0, "")] * 3
    asked = [key for log in logs if log.exists() for key in log.read_text().split()]
    assert sorted(asked) == sorted(answers)
    states = count_states(study)
    states.pop("FAIL", 0)  # where they got in each other's way, which a busy machine may keep them from
    assert states == {"COMPLETE": SPACE.size}
