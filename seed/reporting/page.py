"""The report: one HTML file that answers first, then shows how the answer came about, and loads nothing.

No figures are drawn here and nothing is measured or decided.
"""

from importlib import resources
from pathlib import Path

from seed import folder
from seed.findings import StudyRecord
from seed.reporting.answers import (
    Contender,
    Recommendation,
    list_contenders,
    name_contender,
    recommend,
    say_baselines,
    say_certainty,
    say_contender,
    say_disturbance,
    say_introduction,
    say_neighbour,
    say_none,
)
from seed.reporting.document import (
    escape,
    render_contents,
    render_document,
    render_figure,
    render_section,
    render_strip,
)
from seed.reporting.gain import say_rival, say_solver
from seed.reporting.gallery import FIGURES, draw_gallery
from seed.reporting.protocol import render_protocol
from seed.reporting.readings import read_id, read_result_id
from seed.reporting.replication import name_model, say_ratio
from seed.reporting.tables import render_distilled, render_frontier, render_replication
from seed.reporting.trials import Facts, render_data, render_trials
from seed.reporting.wording import (
    describe_size,
    describe_speed,
    format_count,
    format_latency_ratio,
    format_number,
    name_depth,
    name_layers,
    name_rung,
)

QUESTION = "Seed: which layers can this model live without?"
HINT = "Choose a point, a card or a row: the model is lit everywhere on this page and described in a corner; Escape lets go."
PANEL = '<aside id="picked" aria-live="polite" aria-label="the chosen model" hidden></aside>'
AS_GOOD = ("equivalent", "cannot tell")  # verdicts of which a model that is shipped should tell
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


def write_page(record: StudyRecord, path: Path, *, command: str) -> None:
    """Write the report of a study as one self-contained HTML file.

    Args:
        record: all that is shown; sections for which it has nothing are left out.
        path: the file; readers see the old one or the new one, never half of it.
        command: the shell command that repeats the study.

    Raises:
        ResourceError: the file cannot be written.
    """
    folder.write_bytes(path, render_page(record, command=command).encode())


def render_page(record: StudyRecord, *, command: str) -> str:
    """Return the report as HTML. The same record gives the same bytes."""
    drawn = render_figures(record)
    sections = {
        "answer": render_answer(record),
        "pareto": drawn["pareto"],
        "layers": drawn["layers"],
        "distilled": render_distilled(record),
        "replication": render_replication(record),
        "sensitivity": drawn["sensitivity"],
        "agreement": drawn["agreement"],
        "gain": render_gain(record, drawn["gain"]),
        "progress": drawn["progress"],
        "curves": drawn["curves"],
        "latency": drawn["latency"],
        "frontier": render_frontier(record),
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
        script=f"{PANEL}\n{render_data(record, list_facts(record))}\n<script>\n{code}</script>\n",
    )


def say_subject(record: StudyRecord) -> str:
    """Return what was searched, how much of it, and where, in a line."""
    model, dense = record.plan.identity.get("model"), record.dense
    named = f"{model}: " if isinstance(model, str) else ""
    state = " · the search goes on, and all this may change" if record.is_running else ""
    return (
        f"{named}{record.space.num_layers} layers, {format_count(dense.size.num_params)} parameters, test PPL "
        f"{format_number(dense.test.perplexity, places=2)} · {record.frontier.num_scored:,} of {record.frontier.space_size:,} "
        f"candidates scored, {len(record.distilled)} distilled · {dense.latency.device}{state}"
    )


def render_answer(record: StudyRecord) -> str:
    """Return the answer: which model to ship within each margin, then each depth's best in a sentence."""
    contenders = list_contenders(record)
    if not contenders:
        return render_section("answer", "The answer", f"<p>{escape(say_introduction(record))}</p>")
    cards = "\n".join(render_card(group, record=record) for group in group_recommendations(recommend(record)))
    listed = "\n".join(f"<li>{render_contender(one, record=record)}</li>" for one in contenders)
    beside = say_baselines(record)
    latency = record.dense.latency
    note = (
        "PPL ratio: perplexity divided by the dense model's on the same tokens; ± is one standard error, clustered by document; "
        f"brackets are 95 % intervals. Speed: {latency.workload} on {latency.device}, against the dense model. Sizes count "
        "parameters. Tied: the 95 % interval of the paired difference holds zero"
        + (
            "."
            if record.replications or not record.distilled
            else "; with one distillation of each model, intervals hold how documents differ, not how distillations do (--replicas 3)."
        )
    )
    note += f" {say_disturbance(record)}"
    body = (
        f'<div class="cards">\n{cards}\n</div>\n<p>{escape(say_introduction(record))}</p>\n'
        f'<ul class="answers">\n{listed}\n</ul>\n{f"<p>{escape(beside)}</p>" if beside else ""}\n'
        f'<p class="note">{escape(note.strip())}</p>'
    )
    return render_section("answer", "Which model to ship", body)


def group_recommendations(found: list[Recommendation]) -> list[list[Recommendation]]:
    """Return recommendations, those of the same model together."""
    groups: list[list[Recommendation]] = []
    for one in found:
        if groups and _key_of(groups[-1][-1]) == _key_of(one):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def render_card(group: list[Recommendation], *, record: StudyRecord) -> str:
    """Return the card of a recommended model, or of margins that no model keeps."""
    margins = " or ".join(f"{one.margin}\u00a0%" for one in group)
    head = f'<p class="margin">Fastest within <strong>{margins}</strong> PPL</p>'
    chosen = group[0].contender
    if chosen is None:
        return f'<div class="card none">{head}<p class="pick">none</p><p>{escape(say_none(group[0], record))}</p></div>'
    size = describe_size(chosen.size.num_params, dense_num_params=record.dense.size.num_params)
    certainty = "".join(
        f'<p class="certainty {"sure" if one.is_sure else "unsure"}">'
        f"{escape(say_certainty(one, names_margin=len(group) > 1))}</p>"
        for one in _certainties(group)
    )
    ties = [one for one in record.equivalences if one.other == chosen.key and one.verdict in AS_GOOD]
    beside = "".join(f"<p>{escape(say_neighbour(tie, record))}</p>" for tie in ties)
    text = "test" if chosen.is_distilled else "validation"
    where = f'<p class="path"><code>models/{escape(chosen.key)}</code></p>' if chosen.is_distilled else ""
    return (
        f'<div class="card" data-id="{read_id(chosen.candidate)}">{head}'
        f'<p class="pick">{escape(name_depth(chosen.candidate))}</p>'
        f"{render_strip(chosen.candidate.dropped_layers, num_layers=chosen.candidate.num_layers)}"
        f"<p>without {escape(name_layers(chosen.candidate.dropped_layers))}</p>"
        f"<ul><li>{escape(describe_speed(chosen.latency))}</li><li>{escape(size)}</li>"
        f"<li>{text} PPL ratio {escape(chosen.said_ratio)}</li></ul>{certainty}{beside}{where}"
        '<button type="button" class="go" data-go="pareto">show it in the plot</button></div>'
    )


def render_contender(contender: Contender, *, record: StudyRecord) -> str:
    """Return the sentence on a depth's best model, as HTML."""
    name = name_contender(contender)
    said = escape(say_contender(contender, record))
    return said.replace(escape(name), f"<strong>{escape(name)}</strong>", 1)


def list_facts(record: StudyRecord) -> Facts:
    """Return what the panel of a chosen model says of those that were distilled, by id."""
    facts = {}
    for result in (*record.distilled, *record.baselines):
        known = [
            ("test PPL ratio", say_ratio(result, record.replications.get(result.key))),
            ("test PPL", format_number(result.test.perplexity, places=2)),
            ("without recovery", format_number(result.test_unrecovered.ppl_ratio, places=3)),
            ("latency ratio", format_latency_ratio(result.latency)),
            ("checkpoint", f"models/{result.key}"),
        ]
        name = f"{name_depth(result.candidate)}, without {name_model(result)}"
        facts[read_result_id(result)] = (name if result.width is None else name_model(result), known)
    return facts


def render_gain(record: StudyRecord, figure: str) -> str:
    """Return how simpler ways to choose compare with the search, at which cost; ``figure`` is HTML."""
    gain = record.gain
    if gain is None:
        return ""
    items = "\n".join(f"<li>{escape(say_rival(rival, gain))}</li>" for rival in gain.rivals)
    note = (
        f"PPL of what each would have dropped, beside the search's best of the same depth, after {name_rung(gain.rung)} on "
        "validation text; ± is one standard error of the paired difference, clustered by document. The search chose by "
        "these very scores, so that a little of its lead may be luck: python -m seed.experiment compare judges distilled models, on "
        f"test text. Cost: {gain.cost:,.0f} layer-tokens for the search (one layer applied to one token; other work by its "
        "multiply-adds); for the others, what they would have paid by themselves."
    )
    body = f'<p>{escape(say_solver(gain, record.frontier))}</p>\n<ul class="answers">\n{items}\n</ul>\n{figure}\n<p class="note">{escape(note)}</p>'
    return render_section("gain", "What the search added", body)


def render_figures(record: StudyRecord) -> dict[str, str]:
    """Return the sections that show a figure, by key; plotly.js comes with the first. Gain is a figure without a section."""
    found = dict.fromkeys(FIGURES, "")
    for index, (key, figure) in enumerate(draw_gallery(record).items()):
        html = render_figure(figure, key=key, with_library=index == 0, folds=key == "pareto")
        if key == "pareto":
            html += f'\n<p class="note">{HINT}</p>'
        found[key] = html if key == "gain" else render_section(key, figure.layout.title.text, html)
    return found


def _key_of(found: Recommendation) -> tuple[str | None, str | None]:
    chosen, slower = found.contender, found.slower
    return None if chosen is None else chosen.key, None if slower is None else slower.key


def _certainties(group: list[Recommendation]) -> list[Recommendation]:
    """Of margins that are kept alike, the narrowest that is sure, or else the widest; both where they differ."""
    sure = [one for one in group if one.is_sure]
    unsure = [one for one in group if not one.is_sure]
    return [*unsure[-1:], *sure[:1]]
