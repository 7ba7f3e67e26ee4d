"""The note for Optuna Dashboard gives the answer, and keeps every foreign string as text."""

from pathlib import Path

import msgspec
import pytest

from seed.findings import StudyRecord
from seed.reporting.answers import list_contenders, say_contender
from seed.reporting.board import draw_board, thin_trials
from seed.reporting.notes import (
    escape_text,
    quote_code,
    write_opening_note,
    write_study_note,
)

HOSTILE = "<script>alert(1)</script>"


def test_the_study_note_gives_the_answer_and_explains(record: StudyRecord) -> None:
    note = write_study_note(record, root=Path("studies/demo"))
    best = list_contenders(record)[0]
    assert escape_text(say_contender(best, record)) in note
    assert f"](trials?numbers={record.frontier.members[0].trial_number})" in note
    for said in (
        "Fastest within 5",
        "`PPL ratio (short distillation)`",
        "`kept`",
        "`studies/demo`",
        record.plan.command,
    ):
        assert said in note
    assert "secret-password" not in note


def test_a_study_without_models_says_so(undistilled: StudyRecord) -> None:
    note = write_study_note(undistilled, root=Path("studies/demo"))
    assert "Nothing was distilled" in note
    assert "`models/`" not in note


def test_a_search_that_has_begun_says_so(record: StudyRecord) -> None:
    note = write_opening_note(record.plan, rung="closed_form", root=Path("studies/demo"))
    assert "The search is running" in note
    assert "`PPL ratio (closed form)`" in note


@pytest.mark.parametrize(
    "name", [HOSTILE, "a`b<i>", "``", "[x](javascript:alert(1))", "*a*\n# b", "</code><img src=x>"]
)
def test_a_hostile_name_stays_text(record: StudyRecord, name: str) -> None:
    plan = msgspec.structs.replace(record.plan, identity={"model": name}, command=f"seed {name}")
    note = write_study_note(msgspec.structs.replace(record, plan=plan), root=Path(name))
    title = note.splitlines()[0]
    assert title == f"# Seed: which layers can {quote_code(name)} live without?"
    assert all(note.count(mark) % 2 == 0 for mark in ("`" * 3,))  # every block that opens ends


def test_marks_and_html_are_escaped() -> None:
    assert escape_text(HOSTILE) == "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert escape_text("a*b_c|d\n# e & [f](g) `h`") == r"a\*b\_c\|d \# e &amp; \[f\](g) \`h\`"
    assert quote_code("a`b") == "``a`b``"
    assert quote_code("`a") == "`` `a ``"


def test_the_board_is_the_same_for_the_same_record_and_stays_small(record: StudyRecord) -> None:
    board = draw_board(record)
    assert board == draw_board(record)
    assert all(name.startswith("seed-") for name in board)
    assert sum(map(len, board.values())) < 150_000


def test_trials_are_thinned_but_never_those_of_the_frontier(record: StudyRecord) -> None:
    thin = thin_trials(record, most=20)
    assert len(thin.trials) <= 20 + len(record.frontier.members)
    assert {member.trial_number for member in record.frontier.members} <= {trial.number for trial in thin.trials}
    assert thin_trials(record) == record
