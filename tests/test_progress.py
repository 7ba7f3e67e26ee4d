"""How long the rest takes: the mean pace, whatever comes in bursts or was found done."""

import io

import pytest
from rich.console import Console

from seed.console import Stage


def test_bursts_do_not_make_the_estimate_jump() -> None:
    stage, now, estimates = Stage(title="search", total=100, began=0.0), 0.0, []
    for _ in range(10):  # 10 s of silence, then ten sets at once
        now += 10
        for _ in range(10):
            stage.advance(1, now=now)
        estimates.append((stage.estimate_left(now=now) or 0.0) + now)
    assert estimates == pytest.approx([100.0] * 10)


def test_work_found_done_says_nothing_of_the_pace() -> None:
    stage = Stage(title="search", total=10, began=0.0)
    stage.advance(8, now=0.01)
    assert stage.estimate_left(now=30.0) is None
    stage.advance(1, now=30.0)
    assert stage.estimate_left(now=30.0) == pytest.approx(30)


def test_no_line_is_wider_than_the_screen() -> None:
    cells = [f"-{depth}: 1.028 ({', '.join(map(str, range(depth)))})" for depth in range(1, 12)]
    for total, done, note, facts in ((1793, 34, "best of each depth", cells), (0, 0, "none", []), (9, 3, "", [])):
        stage = Stage(title="[3/6] search", total=total, began=0.0)
        stage.advance(done, now=12.0)
        stage.note, stage.cells = note, facts
        for width in (10, 20, 40, 80, 200):
            file = io.StringIO()
            Console(file=file, width=width).print(stage.draw(width=width, now=14.0))
            lines = file.getvalue().splitlines()
            assert max(map(len, lines)) <= width
            assert width < 40 or (stage.title in lines[0] and stage.amount in lines[0])
            assert width < 80 or all(cell in file.getvalue() for cell in facts)
