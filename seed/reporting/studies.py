"""Several studies side by side: whose model wins within each margin, all frontiers in one plot, and what may be compared.

Each study is judged by its own protocol; ratios are to its own dense model.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import plotly.graph_objects as go

from seed.evidence import StudyRecord
from seed.plans import flatten
from seed.records import Estimate
from seed.reporting.document import prepare_figures, render
from seed.reporting.figure_parts import (
    DEPTH_COLORS,
    DEPTH_SYMBOLS,
    GREY,
    add_levels,
    draw_bars,
    escape_plotly,
    finish_figure,
)
from seed.reporting.result_text import (
    Table,
    describe_cost,
    describe_quality,
    list_dense,
    list_model,
    make_table,
    name_best,
    name_model,
)
from seed.reporting.wording import ABSENT, format_change, format_count, format_interval, join_words, list_layers
from seed.results import MARGINS, Model, Standing, StudyResult, rank_studies, read_latency_ratio, recommend

Studies = Mapping[str, StudyResult]  # by name
NAMED_IN_FILE = 3  # studies that the file of a page names
SAME_MODEL = ("location", "revision", "commit", "weights_sha256")
SAME_WINDOWS = ("window_tokens", "bos_each_window", "test_tokens")
SAME_SPEED = ("device", "latency_batch", "prompt_tokens", "new_tokens", "compiled", "latency_command", "dtype")
HASH, HASH_DIGITS = re.compile(r"[0-9a-f]{40,}"), 12
HOVER = (
    "%{customdata[0]}, without %{customdata[1]}<br>parameters: %{customdata[2]}<br>"
    "PPL ratio: %{customdata[3]}<br>latency ratio: %{customdata[4]}<extra></extra>"
)
COLUMNS = ("study", "dropped layers", "parameters", "latency ratio", "ms", "PPL ratio", "test PPL", "KL", "top-1")


def name_page(paths: Sequence[Path]) -> str:
    """Return the file of the page on these studies: ``a+b.html``; of many, the first are named."""
    names = [name.replace("/", "-") for name in name_studies(paths)]
    more = len(names) - NAMED_IN_FILE
    return "+".join([*names[:NAMED_IN_FILE], *([f"{more}-more"] if more > 0 else [])]) + ".html"


def name_studies(paths: Sequence[Path]) -> list[str]:
    """Return what to call each study: its folder's name, with as much of the path as tells it from the others."""
    whole = [path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in whole) + 1):
        names = ["/".join(path.parts[-depth:]) for path in whole]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in whole]


def render_studies_page(studies: Studies) -> str:
    """Return the page as HTML. The same results give the same bytes."""
    common = compare_protocols(studies)
    figures = {"pareto": draw_frontiers(studies)}
    if common.has_one_scale:
        figures["absolute"] = draw_frontiers(studies, is_absolute=True)
    return render(
        "studies.html",
        name=join_words(list(studies)),
        studies=studies,
        answers=describe_studies(studies),
        common=common,
        figures=prepare_figures(figures),
        models=tabulate_all(studies),
        differences=tabulate_differences(studies),
        commands="\n\n".join(f"# {name}\n{result.record.plan.command}" for name, result in studies.items()),
    )


# ---- whose model to ship


def describe_studies(studies: Studies) -> list[str]:
    """Return, for each margin, whose model leads and how far the others are behind; what each has, where that cannot be compared."""
    describe = describe_race if compare_protocols(studies).may_rank else describe_each
    return [describe(studies, margin=margin) for margin in MARGINS]


def describe_race(studies: Studies, *, margin: int) -> str:
    """Return whose model is the fastest within a margin, and how the others stand."""
    standings, begin = rank_studies(studies, margin=margin), f"Fastest within {margin}\u00a0% PPL: "
    if not standings:
        return f"{begin}none in any of them."
    leader, *rest = standings
    sure = "all of it within" if leader.recommendation.is_sure else "some of it beyond"
    told = describe_model(leader.model, studies[leader.study])
    others = [describe_standing(one, leader.model) for one in rest]
    missing = [study for study in studies if study not in {one.study for one in standings}]
    others += [f"{', '.join(missing)}: none"] if missing else []
    return f"{begin}{leader.study}, {told}, 95\u00a0% interval: {sure}. Beside it {'; '.join(others)}."


def describe_each(studies: Studies, *, margin: int) -> str:
    """Return the fastest model of each study within a margin of its own dense model, and no winner."""
    found = {study: recommend(result.best, margin=margin).chosen for study, result in studies.items()}
    told = [f"{study}: {describe_model(one, studies[study]) if one else 'none'}" for study, one in found.items()]
    return f"Within {margin}\u00a0% PPL of its own dense model, {'; '.join(told)}."


def describe_model(model: Model, result: StudyResult) -> str:
    """Return which layers are left, size, speed and perplexity."""
    return f"{name_best(model)}, {describe_cost(model, result.record)}, {describe_quality(model)}"


def describe_standing(standing: Standing, best: Model) -> str:
    """Return a model beside the leading one: which layers, how far behind, and its perplexity."""
    one, behind = standing.model, standing.behind
    lead = format_change(behind, places=1)
    if behind.low is None:
        lead += ", timed too few times to tell"
    elif standing.is_level:
        lead += ", no measurable difference"
    layers = "the same layers" if one.candidate == best.candidate else name_best(one)
    return f"{standing.study}: {layers}, latency ratio {lead}, {describe_quality(one)}"


def tabulate_all(studies: Studies) -> Table:
    """Return the table of all models of all studies, each study's dense model first; without distilled ones, the proxy's."""
    rows = []
    for name, result in studies.items():
        dense_ms = result.record.dense.latency.median_ms
        models = (*result.distilled, *result.width_baselines) if result.distilled else result.best
        cells = [list_dense(result.record), *(list_model(model, result.record) for model in models)]
        speeds = [1.0, *(model.latency.ratio for model in models)]
        for index, (row, speed) in enumerate(zip(cells, speeds, strict=True)):
            if index and not result.distilled:
                row |= {"PPL ratio": f"{row['PPL ratio']}, proxy", **dict.fromkeys(("test PPL", "KL", "top-1"))}
            row |= {"study": name, "ms": f"{speed * dense_ms:.1f}"}
            rows.append({column: row[column] for column in COLUMNS})
    return make_table(rows)


def draw_frontiers(studies: Studies, *, is_absolute: bool = False) -> go.Figure:
    """Draw the best model of each depth of every study, joined to its dense model; ``is_absolute``: PPL and milliseconds."""
    lines = [
        draw_study(name, result, index=index, is_absolute=is_absolute)
        for index, (name, result) in enumerate(studies.items())
    ]
    figure = go.Figure(lines)
    if not is_absolute:
        add_levels(figure, MARGINS, top=max(value for line in lines for value in line.y))
    return finish_figure(
        figure,
        title="In perplexity and milliseconds" if is_absolute else "Frontiers",
        x_title="milliseconds (smaller is faster)" if is_absolute else "latency ratio (smaller is faster)",
        y_title="test PPL (smaller is better)" if is_absolute else "PPL ratio (smaller is better)",
    )


def draw_study(name: str, result: StudyResult, *, index: int, is_absolute: bool) -> go.Scatter:
    """Draw one study's frontier, in the colour and symbol of its place among the studies; the dense model comes last."""
    color, symbol = DEPTH_COLORS[index % len(DEPTH_COLORS)], DEPTH_SYMBOLS[index % len(DEPTH_SYMBOLS)]
    dense, whole = result.record.dense, Estimate(value=1.0, low=1.0, high=1.0)
    ppl, ms = (dense.judged.perplexity, dense.latency.median_ms) if is_absolute else (1.0, 1.0)
    known = [one for one in result.best if one.ppl_ratio.value is not None]
    shown = sorted(known, key=lambda one: one.latency.ratio)
    ratios = [*(one.ppl_ratio for one in shown), whole]
    speeds = [*(read_latency_ratio(one.latency) for one in shown), whole]
    layers = [*map(name_model, shown), "none (dense)"]
    sizes = [format_count(size.num_params) for size in (*(one.size for one in shown), dense.size)]
    points = zip(layers, sizes, ratios, speeds, strict=True)
    return go.Scatter(
        x=[(speed.value or 0.0) * ms for speed in speeds],
        y=[(ratio.value or 0.0) * ppl for ratio in ratios],
        mode="lines+markers",
        name=escape_plotly(f"{name} ({result.record.plan.protocol.model})"),
        line={"color": color, "width": 1.5, "dash": "solid" if result.distilled else "dot"},
        marker={"color": [*[color] * len(shown), GREY], "symbol": [*[symbol] * len(shown), "x"], "size": 11},
        error_x=draw_bars(speeds, scale=ms),
        error_y=draw_bars(ratios, scale=ppl),
        customdata=[
            [escape_plotly(name), gone, size, format_interval(ratio), format_interval(speed)]
            for gone, size, ratio, speed in points
        ],
        hovertemplate=HOVER.replace("<extra>", "<br>test PPL %{y:.2f}, %{x:.1f} ms<extra>") if is_absolute else HOVER,
        showlegend=True,
    )


# ---- what may be compared


@dataclass(frozen=True, kw_only=True)
class Common:
    """What studies have in common."""

    has_one_model: bool  # all cut the same weights
    has_one_text: bool  # all were judged on the same tokens, cut into the same windows
    has_one_speed: bool  # all were timed alike, on devices of the same name
    is_steady: bool  # the same dense model took about as long each time; different models may take what they take
    proxies: tuple[str, ...]  # studies that distilled nothing
    num_studies: int

    @property
    def may_rank(self) -> bool:
        """Are dense model, workload and text the same, so that one study's model may be called the best?"""
        are_alike = len(self.proxies) in (0, self.num_studies)  # judged on test text, or all by the proxy
        return self.has_one_model and self.has_one_text and self.has_one_speed and are_alike

    @property
    def has_one_scale(self) -> bool:
        """May perplexities and milliseconds themselves be compared?"""
        return self.has_one_text and self.has_one_speed and self.is_steady and not self.proxies


def compare_protocols(studies: Studies) -> Common:
    """Return what the studies have in common.

    Too far apart for one machine: the middle 80 % of one study's times of the dense model and of another's do not overlap.
    """
    records = [result.record for result in studies.values()]
    models, windows, speeds = (
        [tuple(getattr(record.plan.protocol, key) for key in keys) for record in records]
        for keys in (SAME_MODEL, SAME_WINDOWS, SAME_SPEED)
    )
    machines = [
        (one.environment.processor, one.environment.num_threads, one.dense.latency.device, one.dense.latency.workload)
        for one in records
    ]
    texts = [record.plan.protocol.streams["test"].sha256 for record in records]
    times = [record.dense.latency for record in records]
    has_one_model = len(set(models)) == 1
    return Common(
        has_one_model=has_one_model,
        has_one_text=len(set(texts)) == len(set(windows)) == 1,
        has_one_speed=len(set(speeds)) == len(set(machines)) == 1,
        is_steady=not has_one_model or max(time.p10_ms for time in times) <= min(time.p90_ms for time in times),
        proxies=tuple(name for name, result in studies.items() if not result.distilled),
        num_studies=len(studies),
    )


def tabulate_differences(studies: Studies) -> Table:
    """Return the table of what decides the meaning of the numbers, as far as the studies differ in it."""
    protocols = [flatten(describe_protocol(result.record), separator=": ") for result in studies.values()]
    rows = []
    for key in dict.fromkeys(key for one in protocols for key in one):
        values = [one.get(key) for one in protocols]
        if len(set(map(str, values))) > 1:
            rows.append([key.replace("_", " "), *map(format_value, values)])
    return Table(title="Only what differs.", columns=["setting", *studies], rows=rows)


def describe_protocol(record: StudyRecord) -> dict[str, Any]:
    """Return what decides what a study's numbers mean, and how much went into them."""
    plan = record.plan
    return {
        **msgspec.to_builtins(plan.protocol),
        "planned trials": plan.trials,
        "candidates scored": record.frontier.num_scored,
        "distillation tokens per model": plan.distill_tokens,
        "distillations of each model": plan.replicas,
        "seed version": plan.seed_version,
        "processor": record.environment.processor,
    }


def format_value(value: object) -> str:
    """Return a value of a protocol as a cell has room for it: hashes by their first digits, layers by their runs."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        if value and all(type(item) is int for item in value):
            return list_layers(value)
        return ", ".join(map(format_value, value)) or ABSENT
    text = str(value)
    return f"{text[:HASH_DIGITS]}…" if HASH.fullmatch(text) else text
