"""The page of a staged search says what it came to, shows how layers moved, and escapes what users name."""

from html import escape
from pathlib import Path

import msgspec
import pytest

from seed.console import Terminal
from seed.evidence import RankMovement, StagedSearch, StageRecord
from seed.records import Estimate
from seed.reporting.staged import (
    draw_ranks,
    draw_tokens,
    list_answers,
    render_staged_page,
    show_staged,
    write_staged_page,
)
from tests.reporting.factory import make_candidate, make_record

NUM_LAYERS = make_candidate(1).num_layers
EVIL = "<script>alert(1)</script>"


def make_stage(name: str, gone: tuple[int, ...], dropped: tuple[int, ...], *, tokens: int) -> StageRecord:
    result = msgspec.structs.replace(make_record().distilled[0], candidate=make_candidate(*dropped))
    result = msgspec.structs.replace(result, settings={**result.settings, "distill_tokens": 1000})
    singles = {
        str(layer): 0.01 * ((5 * layer + len(gone)) % NUM_LAYERS) for layer in range(NUM_LAYERS) if layer not in gone
    }
    return StageRecord(name=name, gone_layers=gone, result=result, tokens=tokens, singles=singles, rung="closed_form")


def make_staged(verdict: str = "lower", *, study: str = "demo-2-1") -> StagedSearch:
    excess = Estimate(value=-0.012, low=-0.02, high=-0.004)
    return StagedSearch(
        study=study,
        model="demo",
        num_layers=NUM_LAYERS,
        counts=(2, 1),
        stopped_because=None,
        dense=make_record().dense,
        stages=(
            make_stage("stage-1", (), (1, 2), tokens=1000),
            make_stage("stage-2", (1, 2), (1, 2, 5), tokens=2000),
        ),
        one_shot=make_stage("one-shot", (), (1, 3, 5), tokens=1000),
        movements=(RankMovement(before="stage-1", after="stage-2", num_layers=NUM_LAYERS - 2, tau=0.51),),
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
def test_the_page_answers_first(verdict: str, said: str) -> None:
    staged = make_staged(verdict)
    page = render_staged_page(staged)
    for answer in list_answers(staged):
        assert escape(answer) in page
    assert said in " ".join(list_answers(staged))
    assert "-1.20 [-2.00, -0.40]" in page
    assert "+0.51" in page
    assert page.index("The answer") < page.index("How the order of layers moved")
    assert render_staged_page(staged) == page


def test_what_users_name_is_text(tmp_path: Path) -> None:
    staged = msgspec.structs.replace(make_staged(study=EVIL), command=f"python -m seed.search --study '{EVIL}'")
    write_staged_page(staged, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert EVIL not in page
    assert escape(EVIL) in page


def test_every_layer_is_followed_until_it_is_gone() -> None:
    figure = draw_ranks(make_staged())
    lines = {trace.name: trace for trace in figure.data}
    assert set(lines) == {f"layer {layer}" for layer in range(NUM_LAYERS)}
    assert len(lines["layer 1"].x) == 1
    assert len(lines["layer 0"].x) == 2
    for number, count in ((1, NUM_LAYERS), (2, NUM_LAYERS - 2)):
        ranks = sorted(y for trace in figure.data for x, y in zip(trace.x, trace.y, strict=True) if x == number)
        assert ranks == list(range(1, count + 1))


def test_stages_stand_one_behind_the_other() -> None:
    staged = make_staged()
    figure = draw_tokens(staged)
    points = staged.stages[1].result.curve
    assert list(figure.data[1].x) == [1000 + point.tokens for point in points]
    assert figure.data[2].name.startswith("at once")


def test_one_stage_alone_has_no_ranks_to_compare() -> None:
    staged = make_staged()
    alone = msgspec.structs.replace(
        staged,
        stages=staged.stages[:1],
        counts=(2,),
        one_shot=None,
        movements=(),
        excess=Estimate(value=None, low=None, high=None),
        stopped_because="the latency ratio is 0.790, at most 0.8",
    )
    assert not draw_ranks(alone).data
    page = render_staged_page(alone)
    assert "It ended because the latency ratio is 0.790" in page
    assert "plotly" in page  # the library comes with the first figure that there is


def test_the_terminal_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    staged = make_staged()
    show_staged(Terminal(), staged, root=Path("studies/demo-2-1"))
    said = capsys.readouterr().out
    for answer in list_answers(staged):
        assert answer in said
    assert f"studies/demo-2-1/stage-2/models/{staged.stages[1].result.key}" in said
