"""The page of a staged search: what it came to, its models against that of one shot, and a link to each stage's report."""

import itertools
from pathlib import Path

import plotly.graph_objects as go

from seed import study_dir
from seed.console import Terminal
from seed.evidence import StagedSearch, StageRecord
from seed.reporting.document import escape, render_document, render_figure, render_section
from seed.reporting.marks import DEPTH_COLORS, GREY, finish_figure
from seed.reporting.sentences import say_ratio
from seed.reporting.wording import MARGIN_PERCENT, describe_size, describe_speed, list_layers, name_depth
from seed.results import take_distilled

VERDICTS = {
    "lower": "Stages are better",
    "higher": "Stages are worse",
    "equivalent": f"Both are equivalent within {MARGIN_PERCENT}",
    "cannot tell": "The two cannot be told apart",
}


def write_staged_page(staged: StagedSearch, path: Path) -> None:
    """Write the page of a staged search as one self-contained HTML file.

    Raises:
        ResourceError: the file cannot be written.
    """
    study_dir.write_bytes(path, render_staged_page(staged).encode())


def render_staged_page(staged: StagedSearch) -> str:
    """Return the page as HTML. The same record gives the same bytes."""
    answers = "\n".join(f"<li>{escape(answer)}</li>" for answer in list_answers(staged))
    note = (
        "Ratios are to the original model, which also teaches in every stage. PPL in stages over at once: both on test text, "
        "paired by document; brackets: 95 % interval, in which how the first stage might have gone is not."
    )
    reports = "\n".join(
        f'<li><a href="{one.name}/report.html">{say_stage(one)}</a>: without '
        f"{list_layers(one.result.candidate.dropped_layers)}, {one.tokens:,} recovery tokens, test PPL ratio "
        f"{escape(say_ratio(take_distilled(one.result, one.replication)))}, {escape(describe_speed(one.result.latency))}</li>"
        for one in list_models(staged)
    )
    sections = [
        render_section("answer", "The answer", f'<ul class="answers">\n{answers}\n</ul>\n<p class="note">{note}</p>'),
        render_section(
            "models", "In stages and at once", render_figure(draw_models(staged), key="models", with_library=True)
        ),
        render_section("stages", "The stages' reports", f"<ul>\n{reports}\n</ul>"),
        render_section("repeat", "Repeat this", f"<pre>{escape(staged.command)}</pre>"),
    ]
    return render_document(sections, name=staged.study, question="Seed: does it pay to remove layers in stages?")


def list_models(staged: StagedSearch) -> list[StageRecord]:
    """Return the stages, then the search at once where there was one."""
    return [*staged.stages, *([staged.one_shot] if staged.one_shot else [])]


def list_answers(staged: StagedSearch) -> list[str]:
    """Return what a staged search came to, as sentences of plain text."""
    last, gone = staged.stages[-1].result, [0, *(len(one.result.candidate.dropped_layers) for one in staged.stages)]
    counts = "+".join(str(after - before) for before, after in itertools.pairwise(gone))
    size = describe_size(last.size.num_params, dense_num_params=staged.dense.size.num_params)
    answers = [
        f"{name_depth(last.candidate)} in stages of {counts} (without {list_layers(last.candidate.dropped_layers)}): "
        f"{size}, {describe_speed(last.latency)}, test PPL ratio "
        f"{say_ratio(take_distilled(last, staged.stages[-1].replication))} after {staged.stages[-1].tokens:,} recovery tokens."
    ]
    if staged.stopped_because:
        answers.append(f"It ended because {staged.stopped_because}.")
    if (other := staged.one_shot) is not None:
        answers.append(
            f"At once for the same tokens (without {list_layers(other.result.candidate.dropped_layers)}): test PPL ratio "
            f"{say_ratio(take_distilled(other.result, other.replication))}. {say_verdict(staged)}"
        )
    return answers


def say_verdict(staged: StagedSearch) -> str:
    """Return whether stages paid."""
    excess = staged.excess
    if excess.value is None or excess.low is None or excess.high is None:
        return "The two cannot be compared."
    interval = f"PPL {100 * excess.value:+.2f} [{100 * excess.low:+.2f}, {100 * excess.high:+.2f}]\u00a0%"
    return f"{VERDICTS[staged.verdict]} ({interval})."


def say_stage(stage: StageRecord) -> str:
    """Return ``stage 2``, or ``at once``."""
    return "at once" if stage.name == "one-shot" else stage.name.replace("-", " ")


def draw_models(staged: StagedSearch) -> go.Figure:
    """Draw the models' PPL ratios over their latency ratios, stages joined from the original on."""
    figure = go.Figure()
    for name, models, color in (
        ("in stages", staged.stages, DEPTH_COLORS[0]),
        ("at once", [staged.one_shot] if staged.one_shot else [], GREY),
    ):
        if not models:
            continue
        figure.add_trace(
            go.Scatter(
                x=[1.0, *(one.result.latency.ratio for one in models)],
                y=[1.0, *(one.result.test.ppl_ratio for one in models)],
                text=["original", *map(say_stage, models)],
                mode="lines+markers+text",
                textposition="top right",
                name=name,
                line={"color": color, "dash": "dot" if name == "at once" else "solid"},
                marker={"size": 10},
                hovertemplate="%{text}: PPL ratio %{y:.3f}, latency ratio %{x:.3f}<extra></extra>",
            )
        )
    return finish_figure(
        figure,
        title="In stages and at once",
        x_title="latency ratio (smaller is faster)",
        y_title="test PPL ratio (smaller is better)",
        caption="Each stage begins where the one before ended. Its best model by validation text is drawn, after recovery.",
    )


def show_staged(terminal: Terminal, staged: StagedSearch, *, root: Path) -> None:
    """Print what a staged search came to, and where everything lies."""
    terminal.say()
    for answer in list_answers(staged):
        terminal.say(answer)
    last = staged.stages[-1]
    terminal.say(f"model:  {root / last.name / 'models' / last.result.key}", wrap=False)
    terminal.say(f"report: {root / 'report.html'}", wrap=False)
