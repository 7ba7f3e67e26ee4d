"""A comparison told: answers that say what the intervals allow, every strategy drawn, nothing loaded; and the terminal."""

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import plotly.graph_objects as go
import pytest

from seed.console import Terminal
from seed.errors import ResourceError
from seed.evidence import ComparedFinal, Comparison, ComparisonSummary, Reached, StrategyRun
from seed.records import Estimate
from seed.reporting import comparison as pages
from seed.reporting import wording
from seed.reporting.summary import show_comparison

from . import factory
from .test_page import HOSTILE, Reader

Dropped = tuple[int, ...]
COMMAND = "python -m seed.compare studies/demo"
BUDGET = 2e6
NOTHING = Estimate(value=None, low=None, high=None)
LEVEL = Estimate(value=0.0, low=0.0, high=0.0)
TITLES = {
    "subset": "Seed's sampler",
    "perplexity": "one-shot PPL",
    "greedy": "greedy",
    "greedy_recovered": "greedy with recovery",
    "magnitude": "magnitude",
    "random": "random",
}
SOURCES = {name: f"arXiv {place}" for place, name in enumerate(TITLES)}


def estimate(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half)


def make_row(
    strategy: str,
    *picks: Dropped,
    ratio: Estimate | float = 1.05,
    excess: Estimate = LEVEL,
    cost: float = 1e6,
    num_without: int = 0,
) -> Reached:
    return Reached(
        strategy=strategy,
        num_dropped=len(picks[0]),
        picks=tuple(factory.make_candidate(*dropped) for dropped in picks),
        num_runs=len(picks) + num_without,
        num_without=num_without,
        cost=cost,
        ppl_ratio=estimate(ratio) if isinstance(ratio, float) else ratio,
        excess=excess,
    )


def make_summary(*rows: Reached) -> ComparisonSummary:
    return ComparisonSummary(reference="subset", rows=rows)


def make_whole() -> ComparisonSummary:
    """Two depths; the search is beaten once, and chose nothing of the deeper one in one run."""
    return make_summary(
        make_row("random", (4,), ratio=1.041, excess=estimate(-0.02), cost=BUDGET),
        make_row("subset", (5,), ratio=1.05),
        make_row("greedy", (5,), ratio=1.05, cost=4e5),
        make_row("perplexity", (2,), (3,), ratio=1.08, excess=estimate(0.03), cost=0.0),
        make_row("subset", (1, 5), (4, 5), ratio=1.2, num_without=1),
        make_row("magnitude", (5, 6), ratio=1.3, excess=estimate(0.08), cost=0.0),
    )


def make_run(strategy: str, *, cost: float, num_scores: int, rng_seed: int | None = None) -> StrategyRun:
    return StrategyRun(strategy=strategy, rng_seed=rng_seed, cost=cost, num_scores=num_scores, picks=())


def make_comparison(rng_seeds: Sequence[int] = (0, 1)) -> Comparison:
    return Comparison(
        study="demo study",
        model="demo",
        rung="closed_form",
        budget=BUDGET,
        num_candidates=1793,
        dense_test_sums=[20.0],
        test_counts=[10],
        settings={"learning_rate": 0.001, "distill_tokens": 200_000},
        runs=(
            make_run("subset", cost=1e6, num_scores=57, rng_seed=0),
            make_run("subset", cost=5e5, num_scores=1060, rng_seed=1),
            make_run("magnitude", cost=0.0, num_scores=0),
        ),
        finals=tuple(
            ComparedFinal(
                candidate=factory.make_candidate(5), rng_seed=seed, validation_loss=2.0, test_sums=[20.0], seconds=9.0
            )
            for seed in rng_seeds
        ),
    )


def render(summary: ComparisonSummary, *, comparison: Comparison | None = None, titles: dict[str, str] = TITLES) -> str:
    return pages.render_comparison_page(
        comparison or make_comparison(), summary=summary, command=COMMAND, titles=titles, sources=SOURCES
    )


def draw_reached(*rows: Reached) -> go.Figure:
    return pages.draw_reached(make_comparison(), summary=make_summary(*rows), titles=TITLES)


def draw_costs(*rows: Reached) -> go.Figure:
    return pages.draw_costs(make_comparison(), summary=make_summary(*rows), titles=TITLES)


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.fixture(scope="module")
def markup() -> str:
    """The page of the whole comparison."""
    return render(make_whole())


@pytest.fixture(scope="module")
def reader(markup: str) -> Reader:
    """The same page, read back."""
    return Reader(markup)


# ---- answers


def answer(*rows: Reached) -> str:
    """What is said of the first row's depth."""
    return plain(pages.say_answer(make_summary(*rows), rows[0].num_dropped, titles=TITLES))


OURS = make_row("subset", (5,))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (make_row("greedy", (5,)), "greedy chooses the same set"),
        (
            make_row("greedy", (4,), excess=estimate(0.004)),
            "greedy cannot be told apart (+0.40 [-0.60, +1.40] %)",
        ),
        (
            make_row("greedy", (4,), excess=Estimate(value=0.01, low=0.0, high=0.02)),
            "greedy cannot be told apart (+1.00 [+0.00, +2.00] %)",
        ),
        (
            make_row("greedy", (4,), excess=Estimate(value=-0.01, low=-0.02, high=0.0)),
            "greedy cannot be told apart (-1.00 [-2.00, +0.00] %)",
        ),
        (make_row("greedy", (4,), excess=estimate(0.02)), "greedy ends higher (+2.00 [+1.00, +3.00] %)"),
        (make_row("greedy", (4,), excess=estimate(-0.02)), "greedy ends lower (-2.00 [-3.00, -1.00] %)"),
        (make_row("greedy", (4,), excess=NOTHING), "greedy cannot be compared"),
    ],
)
def test_a_baseline_is_held_against_the_search(row: Reached, said: str) -> None:
    assert answer(OURS, row) == (
        f"1 layer dropped: Seed's sampler reaches a PPL ratio of 1.050 [1.040, 1.060]; {said}. "
        "No other strategy is measurably better."
    )


def test_several_sets_that_are_the_same_are_called_sets() -> None:
    sets = ((1, 5), (4, 5))
    assert "; greedy chooses the same sets. " in answer(make_row("subset", *sets), make_row("greedy", *sets))


@pytest.mark.parametrize(
    ("theirs", "is_same"),
    [
        ([(5,), (4,), (4,)], True),
        ([(4,), (4,), (5,)], True),
        ([(4,), (5,), (5,)], False),
        ([(4,), (5,)], False),
        ([(4,), (5,), (4,), (4,), (5,), (4,)], True),
    ],
)
def test_sets_are_the_same_when_they_are_chosen_as_often(theirs: list[Dropped], is_same: bool) -> None:
    said = answer(make_row("subset", (4,), (5,), (4,)), make_row("greedy", *theirs))
    assert ("chooses the same sets" in said) == is_same


def test_baselines_are_named_in_one_order_and_others_only_where_they_are_better() -> None:
    said = answer(
        make_row("random", (1,), excess=estimate(-0.03)),
        make_row("magnitude", (2,), excess=Estimate(value=-0.01, low=-0.02, high=0.0)),
        OURS,
        *(make_row(name, (5,)) for name in ("greedy_recovered", "greedy", "perplexity")),
    )
    assert said.endswith(
        "; one-shot PPL chooses the same set, greedy chooses the same set, greedy with recovery chooses the same set. "
        "Better than it: random (-3.00 [-4.00, -2.00] %)."
    )
    assert "magnitude" not in said


def test_two_that_are_better_are_both_named() -> None:
    better = [make_row(name, (4,), excess=estimate(-0.03)) for name in ("random", "magnitude")]
    assert "Better than it: random (-3.00 [-4.00, -2.00] %), magnitude (-3.00 [-4.00, -2.00] %)." in answer(
        OURS, *better
    )


def test_a_search_by_itself_is_told() -> None:
    assert answer(make_row("subset", (1, 5), ratio=1.2)) == (
        "2 layers dropped: Seed's sampler reaches a PPL ratio of 1.200 [1.190, 1.210]. "
        "No other strategy is measurably better."
    )


def test_a_depth_of_which_the_search_chose_nothing_is_told() -> None:
    summary = make_summary(OURS, make_row("greedy", (1, 2), excess=NOTHING))
    assert (
        pages.say_answer(summary, 2, titles=TITLES) == "2 layers dropped: Seed's sampler chose nothing of this depth."
    )


# ---- numbers


@pytest.mark.parametrize(
    ("given", "ratio", "percent"),
    [
        (Estimate(value=1.0544, low=1.05, high=1.0589), "1.054 [1.050, 1.059]", "+105.44 [+105.00, +105.89] %"),
        (Estimate(value=0.013, low=-0.008, high=0.019), "0.013 [-0.008, 0.019]", "+1.30 [-0.80, +1.90] %"),
        (Estimate(value=1234.5, low=1000.0, high=2000.0), "1,234.500 [1,000.000, 2,000.000]", None),
        (NOTHING, wording.ABSENT, wording.ABSENT),
        (Estimate(value=1.0, low=None, high=None), "1.000", wording.ABSENT),
    ],
)
def test_estimates_are_told_with_their_intervals(given: Estimate, ratio: str, percent: str | None) -> None:
    assert wording.format_interval(given) == ratio
    assert percent is None or plain(pages.format_percent(given)) == percent


@pytest.mark.parametrize(
    ("cost", "told"),
    [
        (0.0, "nothing"),
        (0.04, "<0.001 ×"),
        (0.06, "0.001 ×"),
        (5.0, "0.050 ×"),
        (9.94, "0.099 ×"),
        (9.96, "0.10 ×"),
        (100.0, "1.00 ×"),
        (1e6, "10,000.00 ×"),
    ],
)
def test_costs_are_told_as_shares(cost: float, told: str) -> None:
    assert plain(pages.format_cost(cost, 100.0)) == told


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (make_row("tpe", (5,)), "5"),
        (make_row("tpe", (2, 3, 4), (2, 3, 4)), "2\N{EN DASH}4"),
        (make_row("tpe", (1, 4), (1, 5), (1, 4)), "1, 4 (2 of 3); 1, 5 (1 of 3)"),
        (make_row("tpe", (5,), (5,), num_without=1), "5 (2 of 3); none (1 of 3)"),
    ],
)
def test_picks_are_listed_with_how_many_runs_chose_them(row: Reached, told: str) -> None:
    assert pages.list_picks(row) == told


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        ([1.3], 1.3),
        ([1.1, 1.9], 1.9),
        ([1.0, 1.1, 1.2], 1.2),
        ([0.0, 1.0, 6.0], 6.0),  # six times as far as the middle one, and no farther
        ([0.0, 1.0, 6.1], 1.0),
        ([1.0, 1.1, 1.2, 1.3, 9.0, 80.0], 1.3),
        ([-0.1, 0.0, 4.0], 0.0),
        ([1.2, 1.2, 1.2], 1.2),
        ([0.0, 0.0, 0.0, 1.0, 2.0], 2.0),  # several chose the same
    ],
)
def test_the_axis_reaches_to_the_last_that_is_not_far_off(values: list[float], limit: float) -> None:
    assert pages.find_limit(values) == limit
    assert pages.find_limit(values[::-1]) == limit


# ---- what was reached


def test_every_strategy_has_its_place_best_on_top() -> None:
    figure = draw_reached(*make_whole().rows)
    ours, others, deep_ours, deep_others = figure.data
    assert list(others.x) == [1.08, 1.05, 1.041]
    assert list(others.y) == [0, 1, 3]
    assert (list(ours.x), list(ours.y)) == ([1.05], [2])
    assert (list(deep_ours.x), list(deep_others.x)) == ([1.2], [1.3])
    assert (set(ours.marker.symbol), set(others.marker.symbol)) == ({"diamond"}, {"circle"})
    assert list(others.error_x.array) == list(others.error_x.arrayminus) == pytest.approx([0.01] * 3)
    labels = [plain(label) for label in figure.layout.yaxis.ticktext]
    assert labels == ["one-shot PPL, nothing", "greedy, 0.20 ×", "Seed's sampler, 0.50 ×", "random, 1.00 ×"]
    assert figure.layout.yaxis2.ticktext[0] == "magnitude, nothing"
    assert [annotation.text for annotation in figure.layout.annotations] == [
        f"{wording.name_drop(depth)}: PPL ratio after distillation" for depth in (1, 2)
    ]
    assert [plain(text) for text in others.customdata[2]] == ["4", "-2.00 [-3.00, -1.00] %", "1.041 [1.031, 1.051]"]


def test_what_is_far_off_is_a_triangle_with_its_value() -> None:
    figure = draw_reached(
        make_row("subset", (5,), ratio=1.05),
        make_row("greedy", (4,), ratio=1.06),
        make_row("magnitude", (3,), ratio=1.07),
        make_row("random", (2,), ratio=8.0),
    )
    _, others = figure.data
    assert list(others.x) == pytest.approx([1.08, 1.07, 1.06])  # where the last bar ends
    assert list(others.text) == ["8.000 [7.990, 8.010]", "", ""]
    assert list(others.marker.symbol) == ["triangle-right", "circle", "circle"]
    assert list(others.error_x.array) == list(others.error_x.arrayminus) == pytest.approx([0, 0.01, 0.01])
    assert others.customdata[0][2] == "8.000 [7.990, 8.010]"


def test_a_hopeless_search_is_far_off_too() -> None:
    rows = [make_row("greedy", (4,), ratio=1.06), make_row("magnitude", (3,), ratio=1.07)]
    ours, _ = draw_reached(*rows, make_row("subset", (5,), ratio=3.0)).data
    assert (list(ours.x), list(ours.marker.symbol)) == ([pytest.approx(1.08)], ["triangle-right"])


@pytest.mark.parametrize("num_depths", [1, 12])
def test_few_depths_and_many_are_drawn(num_depths: int) -> None:
    rows = [
        make_row(name, tuple(range(depth)), ratio=1.0 + depth / 10)
        for depth in range(1, num_depths + 1)
        for name in ("subset", "greedy")
    ]
    figure = draw_reached(*rows)
    assert len(figure.data) == 2 * num_depths
    domains = [figure.layout[f"yaxis{place or ''}"].domain for place in [0, *range(2, num_depths + 1)]]
    assert all(high > low for low, high in domains)
    assert [high for _, high in domains] == sorted((high for _, high in domains), reverse=True)
    costs = draw_costs(*rows)
    assert [trace.name for trace in costs.data] == [wording.name_drop(depth) for depth in range(1, num_depths + 1)]
    assert len({(trace.marker.color, trace.marker.symbol[0]) for trace in costs.data}) == num_depths
    seen = Reader(render(make_summary(*rows)))
    assert len([row for row in seen.rows if row[0].startswith(wording.name_drop(1)[0])]) == 2 * num_depths
    assert [tag for tag, _ in seen.elements].count("li") == num_depths
    assert {"answer", "reached", "costs", "numbers"} <= seen.sections.keys()


def test_no_bar_is_negative_where_an_interval_does_not_hold_its_point() -> None:
    above, below = Estimate(value=1.2, low=1.0, high=1.1), Estimate(value=1.2, low=1.3, high=1.4)
    rows = [
        make_row("subset", (5,), ratio=above),
        make_row("greedy", (4,), ratio=above, excess=above),
        make_row("random", (3,), ratio=below, excess=below),
    ]
    _, others = draw_reached(*rows).data
    assert list(others.error_x.array) == pytest.approx([0.2, 0.0])  # random, greedy
    assert list(others.error_x.arrayminus) == pytest.approx([0.0, 0.2])
    (costs,) = draw_costs(*rows[1:]).data
    assert list(costs.error_y.array) == pytest.approx([0.0, 20.0])
    assert list(costs.error_y.arrayminus) == pytest.approx([20.0, 0.0])


def test_what_has_no_interval_has_no_bar() -> None:
    _, others = draw_reached(OURS, make_row("greedy", (4,), ratio=Estimate(value=1.06, low=None, high=None))).data
    assert list(others.error_x.array) == list(others.error_x.arrayminus) == [0.0]


# ---- what was paid


def test_costs_are_drawn_against_the_excess_in_per_cent() -> None:
    shallow, deep = draw_costs(*make_whole().rows).data
    assert list(shallow.y) == pytest.approx([-2.0, 0.0, 0.0, 3.0])
    assert list(shallow.x[:3]) == pytest.approx([1.0, 0.5, 0.2])
    assert list(shallow.error_y.array) == pytest.approx([1.0, 0.0, 0.0, 1.0])
    assert list(deep.y) == pytest.approx([0.0, 8.0])
    assert shallow.marker.symbol[0] != deep.marker.symbol[0]
    assert shallow.customdata[0][0] == "random"


@pytest.mark.parametrize("least", [4e5, 0.0])
def test_what_cost_nothing_has_a_place_on_the_logarithmic_axis(least: float) -> None:
    figure = draw_costs(
        make_row("subset", (5,), cost=least),
        make_row("magnitude", (4,), cost=0.0, excess=estimate(0.01)),
    )
    (trace,) = figure.data
    free = (least or BUDGET) / BUDGET / 3
    assert trace.x[1] == pytest.approx(free)
    assert min(trace.x) > 0
    assert figure.layout.xaxis.type == "log"
    places = dict(zip(figure.layout.xaxis.ticktext, figure.layout.xaxis.tickvals, strict=True))
    assert places["nothing"] == pytest.approx(free)
    assert places["1"] == 1


def test_excesses_that_are_far_off_are_triangles_without_bars() -> None:
    excesses = [0.0, 0.01, 0.02, 3.0]
    rows = [
        make_row(name, (5,), excess=estimate(excess))
        for name, excess in zip(("subset", "greedy", "magnitude", "random"), excesses, strict=True)
    ]
    (trace,) = draw_costs(*rows).data
    assert list(trace.y) == pytest.approx([0, 1, 2, 3])
    assert list(trace.marker.symbol) == ["circle"] * 3 + ["triangle-up"]
    assert list(trace.error_y.array) == pytest.approx([1, 1, 1, 0])
    assert plain(trace.customdata[3][1]) == "+300.00 [+299.00, +301.00] %"


def test_only_depths_at_which_the_search_chose_are_drawn_over_costs() -> None:
    figure = draw_costs(OURS, make_row("greedy", (1, 2), excess=NOTHING))
    assert [trace.name for trace in figure.data] == [wording.name_drop(1)]


# ---- the page


def test_page_is_written_whole_and_replaces_the_old_one(markup: str, tmp_path: Path) -> None:
    path = tmp_path / "compare.html"
    path.write_text("old")
    pages.write_comparison_page(make_comparison(), make_whole(), path, command=COMMAND, titles=TITLES, sources=SOURCES)
    assert [entry.name for entry in tmp_path.iterdir()] == ["compare.html"]
    assert path.read_bytes() == markup.encode()
    with pytest.raises(ResourceError, match="cannot be written"):
        pages.write_comparison_page(
            make_comparison(), make_whole(), path / "x.html", command=COMMAND, titles=TITLES, sources=SOURCES
        )


def test_page_loads_nothing(reader: Reader, markup: str) -> None:
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "img", "base", "object", "embed")
        assert not {"src", "href", "srcset", "data", "action", "poster"} & attributes.keys(), (tag, attributes)
    (policy,) = [a["content"] for _, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert markup.count("plotly.js v") == 1
    assert re.findall(r'Plotly\.newPlot\(\s*"figure-(\w+)"', markup) == ["reached", "costs"]


def test_page_is_well_formed_and_goes_from_answer_to_command(reader: Reader) -> None:
    assert (reader.unbalanced, reader.open) == ([], [])
    assert list(reader.sections) == ["answer", "reached", "costs", "numbers", "settings", "repeat"]
    for depth in (1, 2):
        assert plain(pages.say_answer(make_whole(), depth, titles=TITLES)) in reader.sections["answer"]
    assert "same random seeds (2 seeds)" in reader.sections["answer"]
    assert COMMAND in reader.sections["repeat"]


def test_the_table_holds_every_row_within_a_depth_best_first(reader: Reader) -> None:
    minus = wording.name_drop(1)[0]
    header = next(row for row in reader.rows if row[0] == "dropped, strategy")
    assert header == ["dropped, strategy", "sets chosen", "PPL ratio", "PPL above Seed's sampler", "cost"]
    assert [row for row in reader.rows if row[0].startswith(minus)] == [
        [f"{minus}1, random", "4", "1.041 [1.031, 1.051]", "-2.00 [-3.00, -1.00] %", "1.00 ×"],
        [f"{minus}1, Seed's sampler", "5", "1.050 [1.040, 1.060]", wording.ABSENT, "0.50 ×"],
        [f"{minus}1, greedy", "5", "1.050 [1.040, 1.060]", "+0.00 [+0.00, +0.00] %", "0.20 ×"],
        [
            f"{minus}1, one-shot PPL",
            "2 (1 of 2); 3 (1 of 2)",
            "1.080 [1.070, 1.090]",
            "+3.00 [+2.00, +4.00] %",
            "nothing",
        ],
        [
            f"{minus}2, Seed's sampler",
            "1, 5 (1 of 3); 4, 5 (1 of 3); none (1 of 3)",
            "1.200 [1.190, 1.210]",
            wording.ABSENT,
            "0.50 ×",
        ],
        [f"{minus}2, magnitude", "5, 6", "1.300 [1.290, 1.310]", "+8.00 [+7.00, +9.00] %", "nothing"],
    ]
    assert "Student's t over documents, distillations and runs" in reader.sections["numbers"]


def test_settings_name_every_strategy_with_its_source_scores_and_mean_cost(reader: Reader) -> None:
    for text in ("closed-form recovery", "1,793", "2,000,000", "learning rate", "0.001", "distill tokens", "200000"):
        assert text in reader.sections["settings"], text
    assert reader.rows[-3:] == [
        ["strategy", "source", "runs", "scores", "cost"],
        ["Seed's sampler", SOURCES["subset"], "2", "57, 1,060", "0.38 ×"],
        ["magnitude", SOURCES["magnitude"], "1", "0", "nothing"],
    ]


def test_page_is_the_same_for_the_same_records(markup: str) -> None:
    assert render(make_whole()) == markup


def test_one_seed_is_called_a_seed() -> None:
    assert "(1 seed)" in pages.render_answers(make_comparison((3,)), summary=make_whole(), titles=TITLES)


def test_page_before_anything_is_distilled() -> None:
    markup = render(make_summary(), comparison=make_comparison(()))
    seen = Reader(markup)
    assert list(seen.sections) == ["answer", "settings", "repeat"]
    assert "No strategy's picks are distilled yet" in seen.sections["answer"]
    assert "Plotly.newPlot" not in markup
    assert "57, 1,060" in seen.text


def test_page_of_a_search_that_chose_nothing_has_no_drawing_of_costs() -> None:
    seen = Reader(render(make_summary(make_row("greedy", (5,), excess=NOTHING))))
    assert list(seen.sections) == ["answer", "reached", "numbers", "settings", "repeat"]
    assert "1 layer dropped: Seed's sampler chose nothing of this depth." in seen.sections["answer"]
    (row,) = [row for row in seen.rows if row[0].startswith(wording.name_drop(1))]
    assert row[3] == wording.ABSENT


def test_hostile_strings_stay_text(reader: Reader) -> None:
    comparison = msgspec.structs.replace(
        make_comparison(), study=HOSTILE, model=HOSTILE, rung=HOSTILE, settings={HOSTILE: HOSTILE}
    )
    hostile = dict.fromkeys(TITLES, HOSTILE)
    rendered = pages.render_comparison_page(
        comparison, summary=make_whole(), command=HOSTILE, titles=hostile, sources=hostile
    )
    assert "<script>alert" not in rendered
    assert "<img src=x" not in rendered
    seen = Reader(rendered)
    assert seen.unbalanced == []
    tags = [tag for tag, _ in seen.elements]
    assert "img" not in tags
    assert tags.count("script") == [tag for tag, _ in reader.elements].count("script")
    for section in ("answer", "costs", "numbers", "settings", "repeat"):
        assert HOSTILE in seen.sections[section], section
    assert seen.rows[-1][:2] == [HOSTILE, HOSTILE]
    drawn = pages.draw_reached(comparison, summary=make_whole(), titles=hostile)
    paid = pages.draw_costs(comparison, summary=make_whole(), titles=hostile)
    for text in (*drawn.layout.yaxis.ticktext, paid.data[0].customdata[0][0], paid.layout.title.subtitle.text):
        assert "<img" not in text  # Plotly reads some HTML in labels
        assert "&lt;script&gt;" in text


@pytest.mark.parametrize("num_depths", [1, 2, 12])
def test_a_row_has_room_however_many_depths_there_are(num_depths: int) -> None:
    rows = [make_row(name, tuple(range(n + 1))) for n in range(num_depths) for name in ("subset", "greedy")]
    layout = pages.draw_reached(make_comparison(), summary=make_summary(*rows), titles=TITLES).layout
    plot_px = layout.height - layout.margin.t - 60  # and what is below
    for axis in (layout[f"yaxis{place or ''}"] for place in range(2, num_depths + 1)):
        assert plot_px * (axis.domain[1] - axis.domain[0]) / 2 > 15


# ---- the terminal


def test_the_terminal_tells_each_depth_in_a_table_and_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    summary = make_whole()
    show_comparison(Terminal(), make_comparison(), summary, page=Path("studies/demo/compare.html"), titles=TITLES)
    lines = [plain(line).strip() for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]
    cells = [re.split(r"\s{2,}", line) for line in lines]
    assert cells[:6] == [
        ["1 dropped; distilled, on test text"],
        ["strategy", "sets chosen", "PPL ratio", "PPL above Seed's sampler", "cost"],
        ["random", "4", "1.041 [1.031, 1.051]", "-2.00 [-3.00, -1.00] %", "1.00 ×"],
        ["Seed's sampler", "5", "1.050 [1.040, 1.060]", wording.ABSENT, "0.50 ×"],
        ["greedy", "5", "1.050 [1.040, 1.060]", "+0.00 [+0.00, +0.00] %", "0.20 ×"],
        ["one-shot PPL", "2 (1 of 2); 3 (1 of 2)", "1.080 [1.070, 1.090]", "+3.00 [+2.00, +4.00] %", "nothing"],
    ]
    assert lines[6] == plain(pages.say_answer(summary, 1, titles=TITLES))
    assert lines[7] == "2 dropped; distilled, on test text"
    assert cells[10] == ["magnitude", "5, 6", "1.300 [1.290, 1.310]", "+8.00 [+7.00, +9.00] %", "nothing"]
    assert lines[11:] == [plain(pages.say_answer(summary, 2, titles=TITLES)), "page: studies/demo/compare.html"]


def test_the_terminal_names_the_page_where_nothing_is_distilled(capsys: pytest.CaptureFixture[str]) -> None:
    show_comparison(Terminal(), make_comparison(()), make_summary(), page=Path("compare.html"), titles=TITLES)
    assert capsys.readouterr().out == "page: compare.html\n"
