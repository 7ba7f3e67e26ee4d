"""What a search added, in words: for the terminal and for the report."""

import msgspec
import pytest

from seed.findings import Rival, RivalPick, SearchGain
from seed.reporting.gain import say_pick, say_rival, say_solver
from seed.reporting.page import render_page

from . import factory

BEST = {1: factory.make_candidate(5), 2: factory.make_candidate(1, 5)}


def make_pick(*dropped: int, ratio: float | None = 1.013, error: float | None = 0.002) -> RivalPick:
    return RivalPick(
        candidate=factory.make_candidate(*dropped), best=BEST[len(dropped)], ppl_ratio=ratio, standard_error=error
    )


def make_gain(*picks: RivalPick, is_whole: bool = True, title: str = "greedy") -> SearchGain:
    rival = Rival(strategy="greedy", title=title, cost=2e5, num_scores=23, picks=picks, is_whole=is_whole)
    return SearchGain(rung="closed_form", solver="searched with subset", cost=8e5, num_scores=57, rivals=(rival,))


@pytest.mark.parametrize(
    ("pick", "said"),
    [
        (make_pick(5, ratio=1.0, error=0.0), "−1: the same set"),
        (make_pick(7), "−1: PPL 1.3 ± 0.2\u00a0% higher (7)"),
        (make_pick(2, 3, ratio=0.994), "−2: PPL 0.6 ± 0.2\u00a0% lower (2, 3)"),
        (make_pick(2, 3, ratio=None, error=None), "−2: not scored (2, 3)"),
    ],
)
def test_a_pick_is_held_against_the_searchs(pick: RivalPick, said: str) -> None:
    assert say_pick(pick).replace("\N{MINUS SIGN}", "−") == said


def test_a_rival_is_told_with_its_cost() -> None:
    gain = make_gain(make_pick(7), make_pick(1, 5, ratio=1.0))
    told = say_rival(gain.rivals[0], gain)
    assert told.startswith("greedy (0.25 × the search's cost): ")
    assert told.endswith(": the same set")
    assert "1.3 ± 0.2" in told


def test_the_same_sets_are_told_once() -> None:
    gain = make_gain(make_pick(5), make_pick(1, 5))
    assert say_rival(gain.rivals[0], gain).endswith(": the same set at every depth that it reached")
    assert say_rival(make_gain(make_pick(5)).rivals[0], gain).endswith(": the same set")


@pytest.mark.parametrize("picks", [(), (make_pick(7),)])
def test_where_a_rival_stopped_the_way_on_is_told(picks: tuple[RivalPick, ...]) -> None:
    gain = make_gain(*picks, is_whole=False)
    told = say_rival(gain.rivals[0], gain)
    assert "python -m seed.experiment compare" in told
    assert "cost" not in told  # of what it did not get to is not known


def test_how_many_of_how_many() -> None:
    frontier = msgspec.structs.replace(factory.make_record().frontier, num_scored=57, space_size=1793)
    assert say_solver(make_gain(), frontier) == "57 of 1,793 candidates scored, searched with subset."


def test_the_report_tells_it_and_older_studies_go_without() -> None:
    record = factory.make_record()
    assert "What the search added" not in render_page(record, command="run")
    page = render_page(msgspec.structs.replace(record, gain=make_gain(make_pick(7), title="<b>")), command="run")
    assert "What the search added" in page
    assert "&lt;b&gt; (0.25 × the search&#x27;s cost): " in page
    assert "800,000 layer-tokens" in page
