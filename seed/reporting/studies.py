"""Several studies side by side: what each would ship, all frontiers in one plot, and what may be compared.

Each study is judged by its own protocol; ratios are to its own dense model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import plotly.graph_objects as go

from seed.evidence import StudyRecord
from seed.plans import flatten
from seed.reporting.document import Findings
from seed.reporting.figure_parts import (
    DEPTH_COLORS,
    DEPTH_SYMBOLS,
    add_levels,
    escape_plotly,
    finish_figure,
)
from seed.reporting.figures import draw_dense, draw_models
from seed.reporting.result_text import Table, describe_gain, list_models, make_table, name_model
from seed.reporting.wording import ABSENT, join_words, list_layers
from seed.results import MARGINS, StudyResult, recommend

Studies = Mapping[str, StudyResult]  # by name
NAMED_IN_FILE = 3  # studies that the file of a page names
MODEL = ("location", "revision", "commit", "weights_sha256")
TEXT = ("window_tokens", "bos_each_window", "test_tokens", "streams: test: sha256")
WORK = ("device", "latency_batch", "prompt_tokens", "new_tokens", "compiled", "latency_command", "dtype")
MACHINE = ("processor", "threads", "timed on")
# what may not be compared where studies differ in one of these settings
CAUTIONS = {
    MODEL: "The studies cut different dense models, or do not say which: ratios say what dropping layers costs there, not which is better.",
    TEXT: "Perplexities themselves may not be compared: test text, or how it becomes tokens or windows, differs.",
    WORK + MACHINE: "Milliseconds may not be compared: device, threads, type or workload differ.",
}
ALIKE = "Dense model, test text, workload and kind of device are the same, so that all numbers may be compared."
LONGEST = 40  # characters of a value that a cell has room for
CAPTION = (
    "The best model of each depth, chosen on validation text, beside the dense model (cross). Nearer to the lower left is better. "
    "Bars: 95\u00a0% intervals. Dotted: by the proxy, on validation text, not distilled."
)


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


def tell_studies(studies: Studies) -> Findings:
    """Tell what several studies found, and what of it may be compared."""
    rows = [{"study": name, **row} for name, result in studies.items() for row in list_models(result)]
    return Findings(
        study=join_words(list(studies)),
        question="what would each study ship?",
        answers=describe_studies(studies),
        note=" ".join(list_cautions(studies)),
        figures=[(draw_frontiers(studies), CAPTION)],
        tables=[make_table(rows, title="All models, on each study's own text."), tabulate_differences(studies)],
    )


def describe_studies(studies: Studies) -> list[str]:
    """Return what each study would ship within each margin of its own dense model."""
    answers = []
    for margin in MARGINS:
        told = []
        for study, result in studies.items():
            chosen = recommend(result.best, margin=margin).chosen
            gain = f"without {name_model(chosen)}, {describe_gain(chosen, result.record.dense)}" if chosen else "none"
            told.append(f"{study}: {gain}")
        answers.append(f"Fastest within {margin}\u00a0% PPL of its own dense model, {'; '.join(told)}.")
    return answers


def list_cautions(studies: Studies) -> list[str]:
    """Return what may be compared and what may not."""
    differing = find_differences(studies).keys()
    cautions = [caution for settings, caution in CAUTIONS.items() if not differing.isdisjoint(settings)] or [ALIKE]
    if proxies := [name for name, result in studies.items() if not result.distilled]:
        cautions.append(
            f"By the proxy, on validation text, not to be compared with distilled models: {join_words(proxies)}."
        )
    return cautions


def draw_frontiers(studies: Studies) -> go.Figure:
    """Draw the best model of each depth of every study, and a cross for their dense models."""
    lines = [draw_study(name, result, index=index) for index, (name, result) in enumerate(studies.items())]
    figure = go.Figure([*lines, draw_dense()])
    add_levels(figure, MARGINS, top=max([1.0, *(value for line in lines for value in line.y if value is not None)]))
    return finish_figure(
        figure,
        title="Frontiers",
        x_title="latency ratio (smaller is faster)",
        y_title="PPL ratio (smaller is better)",
    )


def draw_study(name: str, result: StudyResult, *, index: int) -> go.Scatter:
    """Draw one study's frontier, in the colour and symbol of its place among the studies."""
    color, symbol = DEPTH_COLORS[index % len(DEPTH_COLORS)], DEPTH_SYMBOLS[index % len(DEPTH_SYMBOLS)]
    return draw_models(
        sorted(result.best, key=lambda one: one.latency.ratio),
        name=escape_plotly(f"{name} ({result.record.plan.protocol.model})"),
        bars=True,
        color=color,
        symbol=symbol,
        size=11,
    ).update(
        mode="lines+markers",
        line={"color": color, "width": 1.5, "dash": "solid" if result.distilled else "dot"},
        showlegend=True,
    )


# ---- how they differ


def tabulate_differences(studies: Studies) -> Table:
    """Return the table of what decides the meaning of the numbers, as far as the studies differ in it."""
    rows = [[key.replace("_", " "), *map(format_value, values)] for key, values in find_differences(studies).items()]
    return Table(title="Only what differs.", columns=["setting", *studies], rows=rows)


def find_differences(studies: Studies) -> dict[str, list[object]]:
    """Return the settings in which studies differ, with each one's value."""
    settings = [flatten(describe_protocol(result.record), separator=": ") for result in studies.values()]
    found = {key: [one.get(key) for one in settings] for one in settings for key in one}
    return {key: values for key, values in found.items() if len(set(map(str, values))) > 1}


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
        "threads": record.environment.num_threads,
        "timed on": record.dense.latency.device,
    }


def format_value(value: object) -> str:
    """Return a value of a protocol as a cell has room for it: long ones by how they begin, layers by their runs."""
    if isinstance(value, list | tuple):
        return list_layers(value) if all(type(item) is int for item in value) else ", ".join(map(str, value))
    text = ABSENT if value is None else f"{value:,}" if type(value) is int else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
