"""Several studies side by side: whose model wins within each margin, all frontiers in one plot, and what may be compared.

Each study is judged by its own protocol; ratios are to its own dense model. Nothing is measured here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seed import folder
from seed.findings import StudyRecord
from seed.records import DenseResult, Latency
from seed.reporting.answers import MARGINS, list_contenders
from seed.reporting.comparability import has_one_scale, say_comparability, spell
from seed.reporting.document import (
    escape,
    render_contents,
    render_document,
    render_figure,
    render_section,
    render_table,
)
from seed.reporting.frontiers_figure import draw_frontiers
from seed.reporting.leads import join_words, rank_studies, say_leader, say_others
from seed.reporting.replication import name_model, say_ratio
from seed.reporting.tables import list_quality
from seed.reporting.wording import (
    ABSENT,
    count_things,
    format_count,
    format_latency_ratio,
    list_layers,
)

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


def write_frontiers_page(studies: Mapping[str, StudyRecord], path: Path) -> None:
    """Write the page on several studies, by name, as one self-contained HTML file.

    Raises:
        ResourceError: the file cannot be written.
    """
    folder.write_bytes(path, render_frontiers_page(studies).encode())


def render_frontiers_page(studies: Mapping[str, StudyRecord]) -> str:
    """Return the page as HTML. The same records give the same bytes."""
    answers = "\n".join(render_margin(studies, margin=margin) for margin in MARGINS)
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in say_comparability(studies))
    commands = "\n\n".join(f"# {name}\n{record.plan.command}" for name, record in studies.items())
    note = (
        "PPL ratio and latency ratio: to the study's own dense model. Of models whose speed cannot be told apart, the one that "
        "loses the least perplexity is named first; the others' latency ratio beside it is in per cent of its own. Brackets: "
        "95 % intervals; of latencies as of independent measurements."
    )
    drawn = {"pareto": ("Frontiers", draw_frontiers(studies))}
    if has_one_scale(studies):
        drawn["absolute"] = ("In perplexity and milliseconds", draw_frontiers(studies, is_absolute=True))
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
        "models": ("Models", render_models(studies)),
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


def render_margin(studies: Mapping[str, StudyRecord], *, margin: int) -> str:
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


def render_models(studies: Mapping[str, StudyRecord]) -> str:
    """Return the table of all models of all studies, each study's dense model first; without distilled ones, the proxy's."""
    header = ["study", "without", "parameters", "latency ratio", "ms", "PPL ratio", "test PPL", "KL", "top-1 agreement"]
    rows = []
    for name, record in studies.items():
        dense = record.dense
        ppl, _, *others = list_quality(dense.test, is_dense=True)
        ms = f"{dense.latency.median_ms:.1f}"
        rows.append([name, "none (dense)", format_count(dense.size.num_params), "1", ms, "1", ppl, *others])
        for result in (*record.distilled, *record.baselines):
            ppl, _, *others = list_quality(result.test)
            ratio = say_ratio(result, record.replications.get(result.key))
            size = format_count(result.size.num_params)
            rows.append([name, name_model(result), size, *list_speed(result.latency, dense), ratio, ppl, *others])
        for one in [] if record.distilled else list_contenders(record):
            layers, size = list_layers(one.candidate.dropped_layers), format_count(one.size.num_params)
            rows.append(
                [
                    name,
                    layers,
                    size,
                    *list_speed(one.latency, dense),
                    f"{one.said_ratio}, proxy",
                    ABSENT,
                    ABSENT,
                    ABSENT,
                ]
            )
    caption = (
        "All distilled models, on each study's own test text; brackets are 95 % intervals, ± is one standard error. With several "
        "distillations of a model the ratio is their mean, and the rest is the exported one's."
    )
    if any(record.baselines for record in studies.values()):
        caption += " Rows with a width: all layers kept, each cut evenly."
    if not all(record.distilled for record in studies.values()):
        caption += " Proxy: the best of each depth without distillation, on validation text."
    return render_table(caption, header, rows)


def list_speed(latency: Latency, dense: DenseResult) -> list[str]:
    """Return the cells on speed: the ratio, and what it makes of the dense model's milliseconds."""
    return [format_latency_ratio(latency), f"{latency.ratio * dense.latency.median_ms:.1f}"]


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
