"""A study in the terminal, as a line of JSON and in Optuna Dashboard: the same result, and every foreign string as text."""

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest

from seed.evidence import StudyRecord
from seed.records import Candidate
from seed.reporting.page import MOST_TRIALS, draw_dashboard, write_note
from seed.reporting.result_line import SearchLine, StagedLine, describe_one_more, describe_search, describe_staged
from seed.reporting.result_text import WIDTH, write_result
from seed.reporting.wording import quote_code
from seed.results import StudyResult, compute_result
from seed.study_dir import StudyFolder

from . import factory
from .conftest import check_snapshot
from .test_staged_page import make_staged

STUDY = StudyFolder(Path("studies/demo"))
replace = msgspec.structs.replace


@pytest.mark.parametrize("kind", ["full", "undistilled"])
def test_the_terminal_shows_the_result(request: pytest.FixtureRequest, kind: str) -> None:
    said = write_result(compute_result(request.getfixturevalue(kind)), study=STUDY)
    assert max(map(len, said.splitlines())) <= WIDTH
    check_snapshot(f"terminal_{kind}.txt", said + "\n")


def test_where_nothing_is_within_the_nearest_is_named_and_one_answer_is_said_once(record: StudyRecord) -> None:
    first = record.distilled[0]
    far = replace(record, distilled=(replace(first, test=factory.make_quality(1.3)),), equivalences=())
    said = write_result(compute_result(far), study=STUDY).splitlines()
    assert said[-3] == "Within 2 %, 5 % and 10 % PPL: none."
    assert said[-2].startswith(f"nearest: {STUDY.model(first.key)}  ")
    same = replace(record, distilled=(first,), equivalences=())
    assert write_result(compute_result(same), study=STUDY).count("Fastest within") == 1
    layers = tuple(range(0, 60, 2))
    candidate = Candidate(num_layers=80, parts=tuple(map(str, layers)))
    long = write_result(compute_result(replace(same, distilled=(replace(first, candidate=candidate),))), study=STUDY)
    *lines, ship, _ = long.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert candidate.key in ship


# ---- JSON


def test_the_line_says_what_was_found(full: StudyRecord, undistilled: StudyRecord) -> None:
    result, line = compute_result(full), describe_search(full, STUDY)
    assert [one.key for one in line.models] == [model.key for model in result.distilled]
    assert [one.ppl_ratio for one in line.models] == [model.ppl_ratio for model in result.distilled]
    assert [one.key for one in line.width_baselines] == [model.key for model in result.width_baselines]
    assert {(one.text, one.path) for one in line.models} == {("test", str(STUDY.model(one.key))) for one in line.models}
    assert [one.within_percent for one in line.recommended] == [2, 5, 10]
    first = full.distilled[0]
    assert describe_one_more(first, STUDY, full.replications[first.key]).distilled == line.models[0]
    bare = describe_search(undistilled, STUDY)
    assert [one.key for one in bare.models] == [one.evaluation.candidate.key for one in undistilled.frontier.members]
    assert {(one.text, one.path) for one in bare.models} == {("validation", None)}
    for told in (line, bare):
        text = msgspec.json.encode(told)
        assert b"\n" not in text
        assert msgspec.json.decode(text, type=SearchLine) == told


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_know_become_null(record: StudyRecord, number: float) -> None:
    spoilt = dict.fromkeys(("perplexity", "ppl_ratio", "ppl_ratio_standard_error", "loss"), number)
    broken = replace(
        record,
        distilled=tuple(
            replace(one, test=replace(one.test, **spoilt), test_unrecovered=replace(one.test, **spoilt))
            for one in record.distilled
        ),
        dense=replace(record.dense, test=replace(record.dense.test, **spoilt)),
    )
    text = msgspec.json.encode(describe_search(broken, STUDY))
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["models"][0]["ppl_ratio"] == {"value": None, "low": None, "high": None}
    assert found["models"][0]["unrecovered_ppl_ratio"] is None
    assert found["dense"]["test_ppl"] is None
    assert msgspec.json.decode(text, type=SearchLine).dense.test_ppl is None


def test_stages_have_a_line_of_their_own() -> None:
    staged, root = make_staged(), Path("studies/demo-2-1")
    line, last = describe_staged(staged, root), staged.stages[-1]
    assert line.stages[-1].best.path == str(root / last.name / "models" / last.result.key)
    assert (line.stages[-1].tokens, line.excess) == (last.tokens, staged.excess)
    assert msgspec.json.decode(msgspec.json.encode(line), type=StagedLine) == line


# ---- Optuna Dashboard


def test_the_note_gives_the_answer_and_explains(full: StudyRecord, undistilled: StudyRecord) -> None:
    notes = [write_note(one.plan, root=STUDY.root, result=compute_result(one)) for one in (full, undistilled)]
    notes.append(write_note(full.plan, root=STUDY.root))
    check_snapshot("notes.md", "\n\n".join(notes))
    assert "secret-password" not in "".join(notes)


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", "a`b<i>", "``", "[x](javascript:alert(1))", "*a*\n# b", "</code><img src=x>"],
)
def test_a_hostile_name_stays_text(record: StudyRecord, name: str) -> None:
    plan = replace(record.plan, protocol=replace(record.plan.protocol, model=name), command=f"seed {name}")
    note = write_note(plan, root=Path(name), result=compute_result(replace(record, plan=plan)))
    assert note.splitlines()[0] == f"# Seed: which layers can {quote_code(name)} live without?"
    assert note.count("```") % 2 == 0  # every block that opens ends


def test_the_board_stays_small(result: StudyResult) -> None:
    board = draw_dashboard(result)
    assert board == draw_dashboard(result)
    assert all(name.startswith("seed-") for name in board)
    assert sum(map(len, board.values())) < 150_000
    many = draw_dashboard(dataclasses.replace(result, scored=50 * result.scored))
    [scored] = [one for one in json.loads(many["seed-pareto"])["data"] if one["name"] == "scored, validation text"]
    assert len(scored["x"]) <= MOST_TRIALS
    assert [many[name] for name in board if name != "seed-pareto"] == [
        board[name] for name in board if name != "seed-pareto"
    ]
