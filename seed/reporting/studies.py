"""ProcessGroup studies side by side: whose model wins within each margin, all frontiers in one plot, and what may be compared.

Each study is judged by its own protocol; ratios are to its own dense model. Whatever is not known of both is taken to differ.
"""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from seed import study_dir
from seed.evidence import StudyRecord
from seed.records import Estimate
from seed.reporting.document import (
    escape,
    render_contents,
    render_document,
    render_figure,
    render_section,
    render_table,
)
from seed.reporting.marks import DEPTH_COLORS, DEPTH_SYMBOLS, GREY, add_levels, draw_bars, finish_figure
from seed.reporting.sentences import name_model, say_leader, say_others, say_ratio
from seed.reporting.tables import list_quality
from seed.reporting.wording import (
    ABSENT,
    count_things,
    format_count,
    format_interval,
    format_latency_ratio,
    join_words,
    list_layers,
)
from seed.results import MARGINS, Model, StudyResult, compute_result, rank_studies, read_latency_ratio

QUESTION = "Seed: which study has the model to ship?"
CONTENTS = {
    "answer": "Answer",
    "comparability": "Comparable?",
    "pareto": "Frontiers",
    "absolute": "PPL and ms",
    "models": "Models",
    "protocols": "Differences",
    "repeat": "Repeat",
}
NAMED_IN_FILE = 3  # studies that the file of a page names
SAME_MODEL = ("location", "revision", "commit", "weights_sha256")
SAME_WINDOWS = ("window_tokens", "bos_each_window", "test_tokens")
SAME_SPEED = ("device", "latency_batch", "prompt_tokens", "new_tokens", "compiled", "latency_command", "dtype")
HASH, HASH_DIGITS = re.compile(r"[0-9a-f]{40,}"), 12
INTERVALS = (
    "%{customdata[0]}, without %{customdata[1]}<br>parameters: %{customdata[2]}<br>"
    "PPL ratio: %{customdata[3]}<br>latency ratio: %{customdata[4]}"
)
HOVER = INTERVALS + "<extra></extra>"
ABSOLUTE_HOVER = INTERVALS + "<br>test PPL %{y:.2f}, %{x:.1f} ms<extra></extra>"
CAPTION = (
    "The best model of each depth, chosen on validation text, joined to its dense model (cross). Nearer to the lower left is "
    "better. Bars: 95 % intervals."
)
ABSOLUTE_CAPTION = " Bars are those of the ratios to the dense model; they leave out how the machine differed from one study's time to another's."


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


def say_comparison(studies: Mapping[str, StudyRecord]) -> list[str]:
    """Return, for each margin, whose model leads, and how far the others are behind."""
    results = {name: compute_result(record) for name, record in studies.items()}
    ranked = {margin: rank_studies(results, margin=margin) for margin in MARGINS}
    return [
        f"{say_leader(results, standings, margin=margin)} {say_others(results, standings)}".strip()
        for margin, standings in ranked.items()
    ]


def write_frontiers_page(studies: Mapping[str, StudyRecord], path: Path) -> None:
    """Write the page on several studies, by name, as one self-contained HTML file.

    Raises:
        ResourceError: the file cannot be written.
    """
    study_dir.write_bytes(path, render_frontiers_page(studies).encode())


def render_frontiers_page(studies: Mapping[str, StudyRecord]) -> str:
    """Return the page as HTML. The same records give the same bytes."""
    results = {name: compute_result(record) for name, record in studies.items()}
    answers = "\n".join(render_margin(results, margin=margin) for margin in MARGINS)
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in say_comparability(studies))
    commands = "\n\n".join(f"# {name}\n{record.plan.command}" for name, record in studies.items())
    note = (
        "PPL ratio and latency ratio: to the study's own dense model. Of models whose speed cannot be told apart, the one that "
        "loses the least perplexity is named first; the others' latency ratio beside it is in per cent of its own. Brackets: "
        "95 % intervals; of latencies as of independent measurements."
    )
    drawn = {"pareto": ("Frontiers", draw_frontiers(results))}
    if has_one_scale(studies):
        drawn["absolute"] = ("In perplexity and milliseconds", draw_frontiers(results, is_absolute=True))
    sections = {
        "answer": (
            "Which model to ship",
            f'<ul class="answers">\n{answers}\n</ul>\n<p class="note">{escape(note)}</p>',
        ),
        "comparability": ("What may be compared", f"<ul>\n{items}\n</ul>"),
        **{
            key: (title, render_figure(figure, key=key, with_library=key == "pareto"))
            for key, (title, figure) in drawn.items()
        },
        "models": ("Models", render_models(results)),
        "protocols": ("What differs between the studies", render_differences(studies)),
        "repeat": ("Repeat them", f'<pre tabindex="0">{escape(commands)}</pre>'),
    }
    return render_document(
        [render_section(key, title, body) for key, (title, body) in sections.items()],
        name=join_words(list(studies)),
        question=QUESTION,
        subtitle=say_subjects(studies),
        contents=render_contents([(key, CONTENTS[key]) for key in sections]),
    )


def render_margin(studies: Mapping[str, StudyResult], *, margin: int) -> str:
    """Return whose model leads within a margin, and below it how far the others are behind, as an item."""
    standings = rank_studies(studies, margin=margin)
    said = escape(say_leader(studies, standings, margin=margin))
    if standings:
        name = f"PPL: {escape(standings[0].study)},"
        said = said.replace(name, f"PPL: <strong>{name[5:-1]}</strong>,", 1)
    return f"<li>{said}<p>{escape(say_others(studies, standings))}</p></li>"


def say_subjects(studies: Mapping[str, StudyRecord]) -> str:
    """Return what each study cut, how many models came of it, and where it was measured, in a line."""
    told = [
        f"{name}: {record.plan.identity.get('model', 'model')}, {record.space.num_layers} layers, "
        f"{count_things(len(record.distilled), 'model')} distilled, {record.dense.latency.device}"
        for name, record in studies.items()
    ]
    return " · ".join(told)


def render_models(studies: Mapping[str, StudyResult]) -> str:
    """Return the table of all models of all studies, each study's dense model first; without distilled ones, the proxy's."""
    header = ["study", "without", "parameters", "latency ratio", "ms", "PPL ratio", "test PPL", "KL", "top-1 agreement"]
    rows = []
    for name, result in studies.items():
        dense = result.record.dense
        ppl, _, *others = list_quality(dense.test, is_dense=True)
        ms = f"{dense.latency.median_ms:.1f}"
        rows.append([name, "none (dense)", format_count(dense.size.num_params), "1", ms, "1", ppl, *others])
        for model in (*result.distilled, *result.baselines) if result.distilled else result.best:
            ppl, _, *others = list_quality(model.quality)
            judged = [say_ratio(model), ppl, *others]
            rows.append(
                [
                    name,
                    name_model(model),
                    format_count(model.size.num_params),
                    format_latency_ratio(model.latency),
                    f"{model.latency.ratio * dense.latency.median_ms:.1f}",
                    *(judged if model.is_distilled else [f"{judged[0]}, proxy", ABSENT, ABSENT, ABSENT]),
                ]
            )
    caption = (
        "All distilled models, on each study's own test text; brackets are 95 % intervals, ± is one standard error. With several "
        "distillations of a model the ratio is their mean, and the rest is the exported one's."
    )
    if any(result.baselines for result in studies.values()):
        caption += " Rows with a width: all layers kept, each cut evenly."
    if not all(result.distilled for result in studies.values()):
        caption += " Proxy: the best of each depth without distillation, on validation text."
    return render_table(caption, header, rows)


def render_differences(studies: Mapping[str, StudyRecord]) -> str:
    """Return the table of what decides the meaning of the numbers, as far as the studies differ in it."""
    flat = [_flatten(describe_protocol(record)) for record in studies.values()]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [
        [key.replace("_", " "), *(spell(one.get(key)) for one in flat)]
        for key in keys
        if len({str(one.get(key)) for one in flat}) > 1
    ]
    if not rows:
        return "<p>Nothing: all were searched by the same protocol, on the same kind of machine.</p>"
    return render_table("Only what differs.", ["setting", *studies], rows)


def describe_protocol(record: StudyRecord) -> dict[str, Any]:
    """Return what decides what a study's numbers mean, and how much went into them."""
    plan = record.plan
    return {
        **plan.identity,
        "planned trials": plan.trials,
        "candidates scored": record.frontier.num_scored,
        "distillation tokens per model": plan.distill_tokens,
        "distillations of each model": plan.replicas,
        "seed version": plan.seed_version,
        "processor": record.environment.processor,
    }


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            found |= _flatten(item, f"{prefix}{key}: ")
        else:
            found[f"{prefix}{key}"] = item
    return found


def draw_frontiers(studies: Mapping[str, StudyResult], *, is_absolute: bool = False) -> go.Figure:
    """Draw the best model of each depth of every study, joined to its dense model; ``is_absolute``: PPL and milliseconds."""
    figure = go.Figure()
    for index, (name, result) in enumerate(studies.items()):
        figure.add_trace(draw_study(name, result, index=index, is_absolute=is_absolute))
    if not is_absolute:
        add_levels(figure, MARGINS, top=max(value for trace in figure.data for value in trace.y))
    has_proxies = not all(result.distilled for result in studies.values())
    return finish_figure(
        figure,
        title="Frontiers",
        caption=CAPTION
        + (ABSOLUTE_CAPTION if is_absolute else "")
        + (" Dotted: by the proxy, not distilled." if has_proxies else ""),
        x_title="milliseconds (smaller is faster)" if is_absolute else "latency ratio (smaller is faster)",
        y_title="test PPL (smaller is better)" if is_absolute else "PPL ratio (smaller is better)",
    )


def draw_study(name: str, result: StudyResult, *, index: int, is_absolute: bool) -> go.Scatter:
    """Draw one study's frontier, in the colour and symbol of its place among the studies; the dense model comes last."""
    color, symbol = DEPTH_COLORS[index % len(DEPTH_COLORS)], DEPTH_SYMBOLS[index % len(DEPTH_SYMBOLS)]
    dense = result.record.dense
    ppl, ms = (dense.test.perplexity, dense.latency.median_ms) if is_absolute else (1.0, 1.0)
    known = [one for one in result.best if one.ppl_ratio.value is not None]
    shown = sorted(known, key=lambda one: one.latency.ratio)
    ratios = [*(one.ppl_ratio for one in shown), Estimate(value=1.0, low=1.0, high=1.0)]
    speeds = [*(read_latency_ratio(one.latency) for one in shown), Estimate(value=1.0, low=1.0, high=1.0)]
    words = [describe_point(name, one) for one in shown]
    words.append([html.escape(name), "none (dense)", format_count(dense.size.num_params)])
    return go.Scatter(
        x=[(speed.value or 0.0) * ms for speed in speeds],
        y=[(ratio.value or 0.0) * ppl for ratio in ratios],
        mode="lines+markers",
        name=html.escape(f"{name} ({result.record.plan.identity.get('model', 'model')})", quote=False),
        line={"color": color, "width": 1.5, "dash": "solid" if result.distilled else "dot"},
        marker={"color": [*[color] * len(shown), GREY], "symbol": [*[symbol] * len(shown), "x"], "size": 11},
        error_x=draw_bars(speeds, scale=ms),
        error_y=draw_bars(ratios, scale=ppl),
        customdata=[
            [*told, format_interval(ratio), format_interval(speed)]
            for told, ratio, speed in zip(words, ratios, speeds, strict=True)
        ],
        hovertemplate=ABSOLUTE_HOVER if is_absolute else HOVER,
        showlegend=True,
    )


def describe_point(name: str, model: Model) -> list[str]:
    """Return the words of a point where the pointer rests: study, dropped layers, parameters."""
    layers = list_layers(model.candidate.dropped_layers)
    return [html.escape(name), layers, format_count(model.size.num_params)]


def say_comparability(studies: Mapping[str, StudyRecord]) -> list[str]:
    """Return what the numbers of these studies have in common, and what may not be compared."""
    records = list(studies.values())
    is_one_model = has_same_model(studies)
    sentences = [
        "All cut the same dense model. Ratios are to it, as each study measured it."
        if is_one_model
        else "The studies cut different dense models, or do not say which. Ratios are to each study's own, so they say what dropping layers costs and "
        "gains there, not which model is better."
    ]
    proxies = [name for name, record in studies.items() if not record.distilled]
    if proxies:
        sentences.append(
            f"Not distilled, and shown by the proxy on validation text, which is no fair rival of a distilled model: {', '.join(proxies)}."
        )
    tokens = {record.plan.distill_tokens for record in records if record.distilled}
    if len(tokens) > 1:
        said = " and ".join(f"{count:,}" for count in sorted(tokens))
        sentences.append(
            f"Models were distilled for different numbers of tokens ({said}), which is part of what differs here."
        )
    same_text, same_speed = has_same_text(studies), has_same_speed(studies)
    sentences.append(
        "Test text, tokens and windows are the same, so test perplexities may be compared themselves."
        if same_text
        else "Perplexities themselves may not be compared: the studies differ in test text, or in how it becomes tokens or windows."
    )
    dense = join_words([f"{record.dense.latency.median_ms:.1f}" for record in records])
    sentences.append(
        f"Milliseconds may not be compared: the same dense model took {dense} ms, too far apart for one machine that was equally free."
        if same_speed and not is_steady(studies)
        else "Workload and kind of device are the same, so milliseconds may be compared as far as runs at different times can be: "
        f"the dense model took {dense} ms."
        if same_speed and is_one_model
        else "Workload and kind of device are the same, so milliseconds may be compared, as far as runs at different times can be."
        if same_speed
        else "Milliseconds may not be compared: the studies differ in device, threads, type or workload."
    )
    if same_text and same_speed and is_steady(studies) and proxies:
        sentences.append(
            "A plot in perplexity and milliseconds is left out: without distillation there is no test perplexity."
        )
    return sentences


def has_same_model(studies: Mapping[str, StudyRecord]) -> bool:
    """Do all cut the same weights?"""
    known = [tuple(record.plan.identity.get(key) for key in SAME_MODEL) for record in studies.values()]
    return known[0][0] is not None and len(set(map(spell, known))) == 1


def has_same_text(studies: Mapping[str, StudyRecord]) -> bool:
    """Were all judged on the same tokens, cut into the same windows?"""
    texts = [read_identity(record, "streams").get("test", {}).get("sha256") for record in studies.values()]
    windows = {spell(tuple(record.plan.identity.get(key) for key in SAME_WINDOWS)) for record in studies.values()}
    return texts[0] is not None and len(set(texts)) == 1 and len(windows) == 1


def has_same_speed(studies: Mapping[str, StudyRecord]) -> bool:
    """Were all timed alike, on devices of the same name?"""
    known = {
        spell(
            (
                *(record.plan.identity.get(key) for key in SAME_SPEED),
                record.environment.processor,
                record.environment.num_threads,
                record.dense.latency.device,
                record.dense.latency.workload,
            )
        )
        for record in studies.values()
    }
    return len(known) == 1


def is_steady(studies: Mapping[str, StudyRecord]) -> bool:
    """Did the same dense model take about as long each time? Different models may take what they take.

    Too far apart: the middle 80 % of one study's times and of another's do not overlap.
    """
    if not has_same_model(studies):
        return True
    times = [record.dense.latency for record in studies.values()]
    return max(time.p10_ms for time in times) <= min(time.p90_ms for time in times)


def has_one_scale(studies: Mapping[str, StudyRecord]) -> bool:
    """May perplexities and milliseconds themselves be compared?"""
    is_timed_alike = has_same_speed(studies) and is_steady(studies)
    return has_same_text(studies) and is_timed_alike and all(record.distilled for record in studies.values())


def read_identity(record: StudyRecord, key: str) -> dict[str, Any]:
    """Return a part of a study's identity that is made of parts, or nothing."""
    found = record.plan.identity.get(key)
    return found if isinstance(found, dict) else {}


def spell(value: object) -> str:
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
        return ", ".join(map(spell, value)) or ABSENT
    text = str(value)
    return f"{text[:HASH_DIGITS]}…" if HASH.fullmatch(text) else text
