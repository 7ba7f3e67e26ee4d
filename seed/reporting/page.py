"""The report: one HTML file that answers first, then shows how the answer came about, and loads nothing."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from seed import study_dir
from seed.evidence import StudyRecord
from seed.records import DistillResult
from seed.reporting.document import (
    escape,
    render_contents,
    render_details,
    render_document,
    render_figure,
    render_section,
    render_strip,
    render_table,
    render_values,
)
from seed.reporting.figures import FIGURES, draw_gallery
from seed.reporting.sentences import (
    name_best,
    name_model,
    say_baseline,
    say_baselines,
    say_best,
    say_certainty,
    say_disturbance,
    say_introduction,
    say_none,
    say_quality,
    say_ratio,
    say_solver,
    say_subject,
)
from seed.reporting.tables import list_frontier, list_models, list_quality, list_size
from seed.reporting.trial_table import Facts, render_data, render_trials
from seed.reporting.wording import (
    ABSENT,
    MARGIN_PERCENT,
    describe_size,
    describe_speed,
    format_latency_ratio,
    format_number,
    list_layers,
    name_depth,
    name_layers,
    name_rung,
)
from seed.results import Recommendation, StudyResult, compute_result

QUESTION = "Seed: which layers can this model live without?"
HINT = "Choose a point, a card or a row: the model is lit everywhere on this page and described in a corner; Escape lets go."
PANEL = '<aside id="picked" aria-live="polite" aria-label="the chosen model" hidden></aside>'
CONTENTS = (
    ("answer", "Answer"),
    ("pareto", "Frontier"),
    ("layers", "Layers"),
    ("distilled", "Models"),
    ("sensitivity", "Sensitivity"),
    ("agreement", "Trust"),
    ("gain", "Gain"),
    ("latency", "Latency"),
    ("trials", "Trials"),
    ("protocol", "Protocol"),
)


# The rule by which streams are made, whole: who has the texts can make the streams again.
TEXT_RULE = (
    "Documents that differ from an earlier one in case and spaces only are left out. Thirty or more go to recovery, "
    "validation and test by the first byte of the sha256 of their text: its last decimal digit is 8 for validation, 9 "
    "for test. Fewer are cut into passages of 2,000 characters or more, at blank lines, else lines, else spaces (one "
    "of more than 20,000 again, and where there are fewer than twenty, one of more than 4,000; a paragraph of 100 or "
    "more that began one begins one again). Passages that are copies of earlier ones are left out; the others go to "
    "the three in blocks of 8 : 1 : 1, two at least to the latter. A text given for one stream alone is that stream's "
    "whole; a data set's own splits stay. Validation or test text beyond 4 million characters, 16 for each token of "
    "its limit where that is more, 16 million without a limit, is thinned to that: documents are spread evenly, none "
    "longer than its share where there are fewer than a hundred, else than a hundredth. Then contamination is taken "
    "out: words are runs of letters, digits and underscores (Chinese characters and kana: each one) of the text in "
    "Unicode's form NFKC and casefolded. A document of recovery text that has a 13-gram of words in common with "
    "validation or test text, or of validation text with test text, loses those stretches (up to the first line or "
    "sentence end behind 200 characters, 400 at most) of which 10 % or more of the 13-grams are there; 13-grams in "
    "more than two and more than 1 % of the judged documents are a form and do not count. Where documents are short "
    "the runs are as long as the shortest 5 % of a stream, 8 words at least (told with the stream), and the stretches "
    "are lines and sentences. Documents that are there whole are left out whatever their length; those shorter than a "
    "run are compared whole only. The demo's splits keep their overlap, which is told. A judged document that is "
    "alone is cut into passages. Recovery documents are shuffled beforehand (Python's random.Random(0)), all others "
    "stay in order; each ends with the end-of-text token (WikiText-2: none); what fills no window at the end is left "
    "out, and a limit takes windows spread evenly."
)


def write_page(record: StudyRecord, path: Path, *, command: str) -> None:
    """Write the report of a study as one self-contained HTML file.

    Args:
        record: all that is shown; sections for which it has nothing are left out.
        path: the file; readers see the old one or the new one, never half of it.
        command: the shell command that repeats the study.

    Raises:
        ResourceError: the file cannot be written.
    """
    study_dir.write_bytes(path, render_page(record, command=command).encode())


def render_page(record: StudyRecord, *, command: str) -> str:
    """Return the report as HTML. The same record gives the same bytes."""
    result = compute_result(record)
    drawn = render_figures(result)
    sections = {
        "answer": render_answer(result),
        "pareto": drawn["pareto"],
        "layers": drawn["layers"],
        "distilled": render_distilled(result),
        "sensitivity": drawn["sensitivity"],
        "agreement": drawn["agreement"],
        "gain": render_gain(record, drawn["gain"]),
        "progress": drawn["progress"],
        "curves": drawn["curves"],
        "latency": drawn["latency"],
        "frontier": render_frontier(result),
        "trials": render_trials(record),
        "protocol": render_protocol(record),
        "repeat": render_section("repeat", "Repeat this", f'<pre tabindex="0">{escape(command)}</pre>'),
    }
    code = resources.files("seed.reporting").joinpath("page.js").read_text(encoding="utf-8")
    return render_document(
        sections.values(),
        name=record.plan.name,
        question=QUESTION,
        subtitle=say_subject(record),
        contents=render_contents([(key, title) for key, title in CONTENTS if sections[key]]),
        script=f"{PANEL}\n{render_data(record, list_facts(result))}\n<script>\n{code}</script>\n",
    )


def render_answer(result: StudyResult) -> str:
    """Return the answer: which model to ship within each margin, then each depth's best in a sentence."""
    introduction = f"<p>{escape(say_introduction(result))}</p>"
    if not result.best:
        return render_section("answer", "The answer", introduction)
    groups = itertools.groupby(result.recommended, key=lambda one: (one.chosen, one.slower))
    cards = "\n".join(render_card(list(group), result=result) for _, group in groups)
    listed = ""
    for model in result.best:
        name = escape(name_best(model))
        listed += f"<li>{escape(say_best(model, result)).replace(name, f'<strong>{name}</strong>', 1)}</li>\n"
    beside = say_baselines(result)
    body = (
        f'<div class="cards">\n{cards}\n</div>\n{introduction}\n<ul class="answers">\n{listed}</ul>\n'
        f'{f"<p>{escape(beside)}</p>" if beside else ""}\n<p class="note">{escape(say_note(result))}</p>'
    )
    return render_section("answer", "Which model to ship", body)


def say_note(result: StudyResult) -> str:
    """Return how to read the answer."""
    record, latency = result.record, result.record.dense.latency
    sentences = [
        "PPL ratio: perplexity divided by the dense model's on the same tokens; ± is one standard error, clustered by document; "
        f"brackets are 95 % intervals. Speed: {latency.workload} on {latency.device}, against the dense model. Sizes count "
        "parameters. Tied: the 95 % interval of the paired difference holds zero.",
        f"Equivalent: two one-sided tests at 5 % put the difference within {MARGIN_PERCENT} of perplexity."
        if record.equivalences
        else "",
        "With one distillation of each model, intervals hold how documents differ, not how distillations do (--replicas 3)."
        if record.distilled and not record.replications
        else "",
        say_disturbance(result),
    ]
    return " ".join(filter(None, sentences))


def render_card(group: list[Recommendation], *, result: StudyResult) -> str:
    """Return the card of a recommended model, or of margins that no model keeps."""
    margins = " or ".join(f"{one.margin}\u00a0%" for one in group)
    head = f'<p class="margin">Fastest within <strong>{margins}</strong> PPL</p>'
    chosen = group[0].chosen
    if chosen is None:
        return f'<div class="card none">{head}<p class="pick">none</p><p>{escape(say_none(group[0], result))}</p></div>'
    size = describe_size(chosen.size.num_params, dense_num_params=result.record.dense.size.num_params)
    # of margins that are kept alike, the narrowest that is sure, or else the widest; both where they differ
    sure, unsure = [one for one in group if one.is_sure], [one for one in group if not one.is_sure]
    certainty = "".join(
        f'<p class="certainty {"sure" if one.is_sure else "unsure"}">'
        f"{escape(say_certainty(one, names_margin=len(group) > 1))}</p>"
        for one in [*unsure[-1:], *sure[:1]]
    )
    where = f'<p class="path"><code>models/{escape(chosen.key)}</code></p>' if chosen.is_distilled else ""
    return (
        f'<div class="card" data-id="{chosen.link}">{head}'
        f'<p class="pick">{escape(name_depth(chosen.candidate))}</p>'
        f"{render_strip(chosen.candidate.dropped_layers, num_layers=chosen.candidate.num_layers)}"
        f"<p>without {escape(name_layers(chosen.candidate.dropped_layers))}</p>"
        f"<ul><li>{escape(describe_speed(chosen.latency))}</li><li>{escape(size)}</li>"
        f"<li>{escape(say_quality(chosen))}</li></ul>{certainty}{where}"
        '<button type="button" class="go" data-go="pareto">show it in the plot</button></div>'
    )


def list_facts(result: StudyResult) -> Facts:
    """Return what the panel of a chosen model says of those that were distilled, by id."""
    facts = {}
    for model in (*result.distilled, *result.baselines):
        known = [
            ("test PPL ratio", say_ratio(model)),
            ("test PPL", format_number(model.quality.perplexity, places=2)),
            ("without recovery", ABSENT if model.unrecovered is None else format_number(model.unrecovered)),
            ("latency ratio", format_latency_ratio(model.latency)),
            ("checkpoint", f"models/{model.key}"),
        ]
        name = (
            f"{name_depth(model.candidate)}, without {name_model(model)}" if model.width is None else name_model(model)
        )
        facts[model.link] = (name, known)
    return facts


def render_distilled(result: StudyResult) -> str:
    """Return the table of distilled models, the dense model first."""
    if not result.distilled:
        return ""
    dense, models = result.record.dense, (*result.distilled, *result.baselines)
    columns, rows = list_models(result)
    columns.insert(5, "test PPL")
    for row, model in zip(rows, models, strict=True):
        row.insert(5, format_number(model.quality.perplexity, places=2))
    known = {
        **dict(zip(columns[1:4], list_size(dense.size), strict=True)),
        "latency ratio": format_latency_ratio(dense.latency),
        **dict(zip(("test PPL", "PPL ratio"), list_quality(dense.test, is_dense=True), strict=False)),
    }
    first = ["none (dense)", *(known.get(column, ABSENT) for column in columns[1:])]
    caption = (
        "All on test text, which was read once. ±: one standard error. Brackets: 95 % intervals; of a PPL ratio that is the mean "
        "of several distillations by Student's t, as documents and distillations vary, and the first is exported, whatever the "
        "others reached. Unrecovered: the same layers without recovery. KL: from the dense model's predictions, nats per token. "
        "Top-1: how often the most likely next token is the dense model's."
        + (" A row with widths: all layers kept, each cut evenly to the same size." if result.baselines else "")
    )
    ids = [None, *(model.link for model in models)]
    return render_section(
        "distilled", "Distilled models", render_table(caption, columns, [first, *rows], first_is_dense=True, ids=ids)
    )


def render_frontier(result: StudyResult) -> str:
    """Return the table of the frontier and its runners-up, as the proxy sees them."""
    if not result.frontier:
        return ""
    caption = (
        f"PPL ratios after {name_rung(result.record.frontier.proxy)}, on validation text. P(best): how often a resampling of "
        "the documents puts this candidate first among those of its structure. Tied: with how many others the 95 % interval of "
        "the paired difference holds zero."
    )
    table = render_table(caption, *list_frontier(result), ids=[model.link for model in result.frontier])
    return render_section("frontier", "The frontier by the proxy", table)


def render_gain(record: StudyRecord, figure: str) -> str:
    """Return how simpler ways to choose compare with the search, at which cost; ``figure`` is HTML."""
    gain = record.gain
    if gain is None:
        return ""
    items = "\n".join(f"<li>{escape(say_baseline(baseline, gain))}</li>" for baseline in gain.baselines)
    note = (
        f"PPL of what each would have dropped, beside the search's best of the same depth, after {name_rung(gain.proxy)} on "
        "validation text; ± is one standard error of the paired difference, clustered by document. The search chose by "
        "these very scores, so that a little of its lead may be luck: python -m seed.experiment compare judges distilled models, on "
        f"test text. Cost: {gain.cost:,.0f} layer-tokens for the search (one layer applied to one token; other work by its "
        "multiply-adds); for the others, what they would have paid by themselves."
    )
    body = f'<p>{escape(say_solver(gain, record.frontier))}</p>\n<ul class="answers">\n{items}\n</ul>\n{figure}\n<p class="note">{escape(note)}</p>'
    return render_section("gain", "What the search added", body)


def render_figures(result: StudyResult) -> dict[str, str]:
    """Return the sections that show a figure, by key; plotly.js comes with the first. Gain is a figure without a section."""
    found = dict.fromkeys(FIGURES, "")
    for index, (key, figure) in enumerate(draw_gallery(result).items()):
        html = render_figure(figure, key=key, with_library=index == 0, folds=key == "pareto")
        if key == "pareto":
            html += f'\n<p class="note">{HINT}</p>'
        found[key] = html if key == "gain" else render_section(key, figure.layout.title.text, html)
    return found


def render_protocol(record: StudyRecord) -> str:
    """Return how the numbers were measured: the search's extent, the plan and its identity, the distillations."""
    frontier, space, plan = record.frontier, record.space, record.plan
    if frontier.num_scored >= frontier.space_size:
        extent = f"All {frontier.space_size:,} candidates of the space were scored: it was enumerated, not sampled."
    else:
        extent = (
            f"{frontier.num_scored:,} of the {frontier.space_size:,} candidates of the space were scored: it was "
            "searched, not enumerated, so a better candidate may exist."
        )
    states = Counter(trial.state for trial in record.trials)
    trials = ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()))
    ranking = f"The frontier ranks by validation text after {name_rung(frontier.proxy)}. {record.agreement.verdict}"
    body = f"<p>{escape(extent)}</p>\n<p>{escape(ranking)}</p>\n"
    study = {
        "layers that may go": list_layers(space.droppable_layers),
        **({"layers gone before": list_layers(space.gone_layers)} if space.gone_layers else {}),
        "dropped at once": f"{space.min_dropped} to {space.max_dropped}",
        "trials": trials or "none",
        "planned trials": plan.trials,
        "frontier size": plan.frontier_size,
        "distillation tokens per model": f"{plan.distill_tokens:,}",
        "limit on the PPL ratio": plan.max_ppl_ratio,
        "planned by": f"Seed {plan.seed_version}",
        "planned at": plan.created,
        "fingerprint of the identity": plan.fingerprint,
    }
    body += f"<h3>Study</h3>\n{render_values(study)}\n"
    body += f"<h3>Text</h3>\n{render_values(describe_texts(plan.identity))}\n<p class='note'>{escape(TEXT_RULE)}</p>\n"
    if record.distilled:
        body += f"<h3>Distillation</h3>\n{render_values(gather_settings(record.distilled))}\n"
    body += render_details("Identity: what decides the meaning of the numbers", render_values(plan.identity))
    body += render_details("Environment: versions and hardware", render_values(msgspec.to_builtins(record.environment)))
    return render_section("protocol", "How this was measured", body)


def describe_texts(identity: Mapping[str, Any]) -> dict[str, object]:
    """Return what each stream holds and what was left out of it, in words."""
    return {
        f"{name} text": "; ".join(
            [
                f"{stream['tokens']:,} tokens in {stream['documents']:,} documents of {stream['source']}",
                *stream.get("notes", ()),
            ]
        )
        for name, stream in identity.get("streams", {}).items()
    }


def gather_settings(results: Sequence[DistillResult]) -> dict[str, object]:
    """Return the settings that all distillations share, then what is each model's own."""
    shared = {
        key: value for key, value in results[0].settings.items() if all(r.settings.get(key) == value for r in results)
    }
    own = {
        f"without {list_layers(r.candidate.dropped_layers)}": ", ".join(
            [f"{key.replace('_', ' ')} {value}" for key, value in r.settings.items() if key not in shared]
            + [f"started from {name_rung(r.start)}", f"kept step {r.best_step:,}", f"took {r.seconds:,.0f} s"]
        )
        for r in results
    }
    return {**shared, **own}
