"""The page of a staged search says what it came to, leads to each stage's report, and escapes what users name."""

from pathlib import Path

import msgspec
import pytest
from markupsafe import escape

from seed.console import Terminal
from seed.evidence import StagedSearch, StageRecord
from seed.records import Estimate
from seed.reporting.document import render_findings
from seed.reporting.staged_page import list_answers, show_staged, tell_staged
from tests.reporting.factory import make_candidate, make_record

EVIL = "<script>alert(1)</script>"


def make_stage(name: str, dropped: tuple[int, ...], *, tokens: int) -> StageRecord:
    result = msgspec.structs.replace(make_record().distilled[0], candidate=make_candidate(*dropped))
    return StageRecord(name=name, result=result, tokens=tokens)


def make_staged(verdict: str = "lower", *, study: str = "demo-2-1") -> StagedSearch:
    excess = Estimate(value=-0.012, low=-0.02, high=-0.004)
    return StagedSearch(
        study=study,
        model="demo",
        stopped_because=None,
        dense=make_record().dense,
        stages=(
            make_stage("stage-1", (1, 2), tokens=1000),
            make_stage("stage-2", (1, 2, 5), tokens=2000),
        ),
        one_shot=make_stage("one-shot", (1, 3, 5), tokens=1000),
        excess=excess,
        verdict=verdict,
        command="python -m seed.search --stages 2+1",
    )


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("lower", "Stages are better"),
        ("higher", "Stages are worse"),
        ("equivalent", "equivalent within 0.5"),
        ("cannot tell", "cannot be told apart"),
    ],
)
def test_each_verdict_has_its_words(verdict: str, said: str) -> None:
    assert said in list_answers(make_staged(verdict))[-1]


def test_the_page_answers_first_and_escapes() -> None:
    staged = make_staged(study=EVIL)
    page = render_findings(tell_staged(staged), command=f"python -m seed.search --study '{EVIL}'")
    assert all(escape(answer) in page for answer in list_answers(staged))
    assert "-1.20 [-2.00, -0.40]" in page
    assert "in stages of 2+1" in page
    for name in ("stage-1", "stage-2", "one-shot"):
        assert f'href="{name}/report.html"' in page
    assert EVIL not in page
    assert escape(EVIL) in page
    reason = "the latency ratio is 0.790, at most 0.8"
    alone = msgspec.structs.replace(staged, stages=staged.stages[:1], one_shot=None, stopped_because=reason)
    assert list_answers(alone)[1:] == [f"It ended because {reason}."]


def test_the_terminal_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    staged = make_staged()
    show_staged(Terminal(), staged, root=Path("studies/demo-2-1"))
    said = capsys.readouterr().out
    for answer in list_answers(staged):
        assert answer in said
    assert f"studies/demo-2-1/stage-2/models/{staged.stages[1].result.key}" in said
