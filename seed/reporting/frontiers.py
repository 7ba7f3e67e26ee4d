"""Several studies side by side: whose model wins within each margin, all frontiers in one plot, and what may be compared.

Each study is judged by its own protocol; ratios are to its own dense model. Nothing is measured here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seed import folder
from seed.findings import StudyRecord
from seed.records import Latency
from seed.reporting.answers import MARGINS, Contender, name_contender, recommend, say_quality
from seed.reporting.document import escape, render_document, render_figure, render_section, render_table
from seed.reporting.frontiers_figure import draw_frontiers
from seed.reporting.tables import list_quality, list_size
from seed.reporting.wording import (
    ABSENT,
    describe_size,
    describe_speed,
    format_latency_ratio,
    list_layers,
)

QUESTION = "Seed: which study has the model to ship?"
NAMED_IN_FILE = 3  # studies that the file of a page names
SAME_SPEED = ("device", "latency_batch", "prompt_tokens", "new_tokens", "compiled", "latency_command", "dtype")


def name_page(paths: Sequence[Path]) -> str:
    """Return the file of the page on these studies: ``a+b.html``; of many, the first are named."""
    names = [path.resolve().name for path in paths]
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
    answers = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in say_comparison(studies))
    notes = "\n".join(f"<p>{escape(sentence)}</p>" for sentence in say_comparability(studies))
    commands = "\n".join(f"# {name}\n{record.plan.command}" for name, record in studies.items())
    sections = [
        render_section("answer", "Which model to ship", f'<ul class="answers">\n{answers}\n</ul>\n{notes}'),
        render_section("pareto", "Frontiers", render_figure(draw_frontiers(studies), key="pareto", with_library=True)),
    ]
    if has_one_scale(studies):
        drawn = render_figure(draw_frontiers(studies, is_absolute=True), key="absolute", with_library=False)
        sections.append(render_section("absolute", "The same in perplexity and milliseconds", drawn))
    sections += [
        render_section("models", "Models", render_models(studies)),
        render_section("protocols", "What differs between the studies", render_differences(studies)),
        render_section("repeat", "Repeat them", f'<pre tabindex="0">{escape(commands)}</pre>'),
    ]
    return render_document(sections, name=" and ".join(studies), question=QUESTION)


def say_comparison(studies: Mapping[str, StudyRecord]) -> list[str]:
    """Return, for each margin, whose model is the fastest within it."""
    sentences = []
    for margin in MARGINS:
        found: list[tuple[str, Contender]] = []
        for name, record in studies.items():
            [chosen] = recommend(record, margins=[margin])
            if chosen.contender is not None:
                found.append((name, chosen.contender))
        if not found:
            sentences.append(f"Fastest within {margin}\u00a0% PPL: none in any of them.")
            continue
        found.sort(key=lambda pair: pair[1].latency.ratio)
        (name, best), *others = found
        size = describe_size(best.size.num_params, dense_num_params=studies[name].dense.size.num_params)
        rest = "; ".join(f"{other}: {say_slower(one.latency, best.latency)}" for other, one in others)
        missing = [other for other in studies if other not in dict(found)]
        rest = "; ".join(filter(None, [rest, f"none in {', '.join(missing)}" if missing else ""]))
        sentences.append(
            f"Fastest within {margin}\u00a0% PPL: {name}, {name_contender(best)}, {describe_speed(best.latency)}, {size}, "
            f"{say_quality(best)}{f' ({rest})' if rest else ''}."
        )
    return sentences


def say_slower(latency: Latency, best: Latency) -> str:
    """Return a speed beside the best one: where the intervals overlap, which is faster cannot be told."""
    overlap = latency.ratio_low <= best.ratio_high and best.ratio_low <= latency.ratio_high
    return describe_speed(latency) + (", which is no measurable difference" if overlap else "")


def say_comparability(studies: Mapping[str, StudyRecord]) -> list[str]:
    """Return what the numbers of these studies have in common, and what may not be compared."""
    sentences = ["Ratios are to each study's own dense model, by its own protocol."]
    proxies = [name for name, record in studies.items() if not record.distilled]
    if proxies:
        sentences.append(f"Not distilled, and shown by the proxy on validation text: {', '.join(proxies)}.")
    if not has_same_text(studies):
        sentences.append(
            "Perplexities themselves may not be compared: the studies differ in test text or in how it becomes tokens."
        )
    if not has_same_speed(studies):
        sentences.append("Milliseconds may not be compared: the studies differ in device, type or workload.")
    if has_one_scale(studies):
        sentences.append(
            "Test text, tokens, device and workload are the same, so that perplexities and milliseconds may be compared too."
        )
    return sentences


def has_same_text(studies: Mapping[str, StudyRecord]) -> bool:
    """Were all judged on the same tokens?"""
    texts = [read_identity(record, "streams").get("test", {}).get("sha256") for record in studies.values()]
    return texts[0] is not None and len(set(texts)) == 1


def has_same_speed(studies: Mapping[str, StudyRecord]) -> bool:
    """Were all timed alike, on devices of the same name?"""
    known = [
        (
            *(record.plan.identity.get(key) for key in SAME_SPEED),
            record.environment.processor,
            record.dense.latency.workload,
        )
        for record in studies.values()
    ]
    return len(set(known)) == 1


def has_one_scale(studies: Mapping[str, StudyRecord]) -> bool:
    """May perplexities and milliseconds themselves be compared?"""
    return has_same_text(studies) and has_same_speed(studies) and all(record.distilled for record in studies.values())


def read_identity(record: StudyRecord, key: str) -> dict[str, Any]:
    """Return a part of a study's identity that is made of parts, or nothing."""
    found = record.plan.identity.get(key)
    return found if isinstance(found, dict) else {}


def render_models(studies: Mapping[str, StudyRecord]) -> str:
    """Return the table of all models of all studies, each study's dense model first."""
    header = [
        "study",
        "without",
        "parameters",
        "weights",
        "KV cache per token",
        "test PPL",
        "test PPL ratio",
        "KL",
        "top-1 agreement",
        "latency ratio",
        "ms",
    ]
    rows = []
    for name, record in studies.items():
        dense = record.dense
        rows.append(
            [
                name,
                "none (dense)",
                *list_size(dense.size),
                *list_quality(dense.test, is_dense=True),
                "1",
                f"{dense.latency.median_ms:.1f}",
            ]
        )
        for result in record.distilled:
            layers = list_layers(result.candidate.dropped_layers)
            ms = f"{result.latency.median_ms:.1f}"
            rows.append(
                [
                    name,
                    layers,
                    *list_size(result.size),
                    *list_quality(result.test),
                    format_latency_ratio(result.latency),
                    ms,
                ]
            )
    return render_table("All distilled models, on each study's own test text.", header, rows)


def render_differences(studies: Mapping[str, StudyRecord]) -> str:
    """Return the table of what decides the meaning of the numbers, as far as the studies differ in it."""
    flat = [_flatten(describe_protocol(record)) for record in studies.values()]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [
        [key.replace("_", " "), *(str(one.get(key, ABSENT)) for one in flat)]
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
            found[f"{prefix}{key}"] = ", ".join(map(str, item)) if isinstance(item, list | tuple) else item
    return found
