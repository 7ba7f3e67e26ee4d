"""How long the rest takes: the mean pace, counted down, whatever comes in bursts or was found done."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from seed.progress import Glimpse, Pace, draw_glimpse, format_clock


def test_a_steady_pace_is_gone_on_with() -> None:
    pace = Pace(total=10, began=100.0)
    for second in range(1, 5):
        pace.advance(1, now=100.0 + second)
    assert pace.estimate_left(now=104.0) == pytest.approx(6)
    assert pace.estimate_left(now=104.5) == pytest.approx(5.5)


def test_nothing_is_promised_before_there_is_a_pace() -> None:
    pace = Pace(total=10, began=0.0)
    assert pace.estimate_left(now=50.0) is None
    pace.advance(1, now=0.5)
    assert pace.estimate_left(now=1.0) is None  # too early to tell


def test_bursts_do_not_make_the_estimate_jump() -> None:
    pace, now, estimates = Pace(total=100, began=0.0), 0.0, []
    for _ in range(10):  # 10 s of silence, then ten sets at once
        now += 10
        for _ in range(10):
            pace.advance(1, now=now)
        estimates.append((pace.estimate_left(now=now) or 0.0) + now)
    assert estimates == pytest.approx([100.0] * 10)


def test_work_found_done_says_nothing_of_the_pace() -> None:
    pace = Pace(total=10, began=0.0)
    pace.advance(8, now=0.01)
    assert pace.estimate_left(now=30.0) is None
    pace.advance(1, now=30.0)
    assert pace.estimate_left(now=30.0) == pytest.approx(30)


def test_a_stage_that_hangs_does_not_promise_to_be_done() -> None:
    pace = Pace(total=6, began=0.0)
    pace.advance(1, now=1.0)
    waits = [pace.estimate_left(now=now) or 0.0 for now in (10.0, 60.0, 600.0)]
    assert waits == sorted(waits)
    assert waits[0] > 10


def test_more_work_than_was_foretold_ends_at_nothing_left() -> None:
    pace = Pace(total=2, began=0.0)
    for second in (3.0, 4.0, 5.0):
        pace.advance(1, now=second)
    assert pace.estimate_left(now=5.0) == 0


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (8, "0:08"), (200, "3:20"), (7500, "2:05:00")])
def test_clocks_read_as_people_are_used_to(seconds: float, text: str) -> None:
    assert format_clock(seconds) == text


GLIMPSE = Glimpse(
    title="[3/6] search",
    amount="34 of 1,793",
    done=34,
    total=1793,
    elapsed=12,
    left=600,
    note="best PPL ratio at each depth",
    cells=[f"-{depth}: 1.028 ({', '.join(map(str, range(depth)))})" for depth in range(1, 12)],
)


@pytest.mark.parametrize("width", [10, 20, 40, 80, 120, 200])
@pytest.mark.parametrize(
    "glimpse", [GLIMPSE, replace(GLIMPSE, total=0, done=0), replace(GLIMPSE, left=None, note="", cells=[])]
)
def test_no_line_is_wider_than_the_screen(glimpse: Glimpse, width: int) -> None:
    file = io.StringIO()
    Console(file=file, width=width).print(draw_glimpse(glimpse, width=width))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    if width >= 40:
        assert glimpse.title in lines[0]
        assert glimpse.amount in lines[0]
    if width >= 80:
        assert all(cell in file.getvalue() for cell in glimpse.cells)
