"""The page of a staged search: what it came to, how the order of layers moved, and whether stages paid.

Answers first. Statistics are handed in; nothing is measured here.
"""

from pathlib import Path

import plotly.graph_objects as go

from seed import folder
from seed.console import Terminal
from seed.evidence import StagedSearch, StageRecord
from seed.reporting.document import (
    escape,
    render_document,
    render_figure,
    render_section,
    render_table,
)
from seed.reporting.marks import DEPTH_COLORS, GREY, choose_color, finish_figure
from seed.reporting.sentences import say_ratio
from seed.reporting.tables import list_quality, list_size
from seed.reporting.wording import (
    ABSENT,
    MARGIN_PERCENT,
    describe_size,
    describe_speed,
    format_latency_ratio,
    format_number,
    list_layers,
    name_depth,
    name_rung,
)
from seed.results import take_distilled

QUESTION = "Seed: does it pay to remove layers in stages?"


def write_staged_page(staged: StagedSearch, path: Path) -> None:
    """Write the page of a staged search as one self-contained HTML file.

    Raises:
        ResourceError: the file cannot be written.
    """
    folder.write_bytes(path, render_staged_page(staged).encode())


def render_staged_page(staged: StagedSearch) -> str:
    """Return the page as HTML. The same record gives the same bytes."""
    drawn = [
        ("ranks", "How the order of layers moved", draw_ranks(staged)),
        ("tokens", "In stages and at once, by tokens", draw_tokens(staged)),
    ]
    shown = [row for row in drawn if row[2].data]
    sections = [
        render_section("answer", "The answer", render_answer(staged)),
        *(
            render_section(key, title, render_figure(figure, key=key, with_library=index == 0))
            for index, (key, title, figure) in enumerate(shown)
        ),
        render_section("stages", "The stages", render_stages(staged)),
        render_section("repeat", "Repeat this", f"<pre>{escape(staged.command)}</pre>"),
    ]
    return render_document(sections, name=staged.study, question=QUESTION)


def list_answers(staged: StagedSearch) -> list[str]:
    """Return what a staged search came to, as sentences of plain text."""
    last = staged.stages[-1]
    size = describe_size(last.result.size.num_params, dense_num_params=staged.dense.size.num_params)
    counts = "+".join(map(str, staged.counts))
    answers = [
        f"{name_depth(last.result.candidate)} in stages of {counts} (without {list_layers(last.result.candidate.dropped_layers)}): "
        f"{size}, {describe_speed(last.result.latency)}, test PPL ratio {say_ratio(take_distilled(last.result, last.replication))} after "
        f"{last.tokens:,} recovery tokens."
    ]
    if staged.stopped_because:
        answers.append(f"It ended because {staged.stopped_because}.")
    if staged.one_shot is not None:
        other = staged.one_shot
        answers.append(
            f"At once for the same tokens (without {list_layers(other.result.candidate.dropped_layers)}): test PPL ratio "
            f"{say_ratio(take_distilled(other.result, other.replication))}. {say_verdict(staged)}"
        )
    for movement in staged.movements:
        if movement.tau is not None:
            answers.append(
                f"From {say_stage(movement.before)} to {say_stage(movement.after)} the order of the {movement.num_layers} layers that "
                f"both can drop agrees with Kendall's tau {movement.tau:+.2f}."
            )
    return answers


def say_verdict(staged: StagedSearch) -> str:
    """Return whether stages paid."""
    excess = staged.excess
    if excess.value is None or excess.low is None or excess.high is None:
        return "The two cannot be compared."
    interval = f"PPL {100 * excess.value:+.2f} [{100 * excess.low:+.2f}, {100 * excess.high:+.2f}]\u00a0%"
    said = {
        "lower": "Stages are better",
        "higher": "Stages are worse",
        "equivalent": f"Both are equivalent within {MARGIN_PERCENT}",
        "cannot tell": "The two cannot be told apart",
    }[staged.verdict]
    return f"{said} ({interval})."


def say_stage(name: str) -> str:
    """Return ``stage 2``, or ``at once``."""
    return "at once" if name == "one-shot" else name.replace("-", " ")


def render_answer(staged: StagedSearch) -> str:
    """Return the answers as HTML."""
    items = "\n".join(f"<li>{escape(answer)}</li>" for answer in list_answers(staged))
    note = (
        "Ratios are to the original model, which also teaches in every stage; layers are named by their index in it. PPL in "
        "stages over at once: both on test text, paired by document; brackets: 95 % interval"
        + (
            ", as documents and the last stage's distillations vary; how the first stage might have gone is not in it."
            if len(staged.stages[-1].result.replicas) > 1
            else ". With one distillation of each, how distillations vary is not in it: --replicas 3."
        )
    )
    return f'<ul class="answers">\n{items}\n</ul>\n<p class="note">{escape(note)}</p>'


def draw_ranks(staged: StagedSearch) -> go.Figure:
    """Draw the rank of every layer in every stage, a line a layer: 1 goes most easily."""
    figure = go.Figure()
    stages = [stage for stage in staged.stages if stage.singles]
    if len(stages) < 2:
        return figure
    orders = [order_layers(stage) for stage in stages]
    for layer in range(staged.num_layers):
        points = [
            (number, order.index(str(layer)) + 1, stage.singles[str(layer)])
            for number, (stage, order) in enumerate(zip(stages, orders, strict=True), 1)
            if str(layer) in order
        ]
        if not points:
            continue
        moved = abs(points[-1][1] - points[0][1])
        color = DEPTH_COLORS[1] if moved >= 3 else GREY
        figure.add_trace(
            go.Scatter(
                x=[number for number, _, _ in points],
                y=[rank for _, rank, _ in points],
                customdata=[[f"{value:+.4f}"] for _, _, value in points],
                mode="lines+markers+text",
                text=[str(layer)] * len(points),
                textposition="middle right"
                if len(points) < len(stages)
                else ["middle left", *["middle right"] * (len(points) - 1)],
                name=f"layer {layer}",
                showlegend=False,
                line={"color": color, "width": 2 if moved >= 3 else 1},
                marker={"color": color, "size": 8},
                hovertemplate=f"layer {layer}, stage %{{x}}: rank %{{y}}<br>log PPL ratio %{{customdata[0]}}<extra></extra>",
            )
        )
    figure.update_yaxes(autorange="reversed", tickmode="linear", dtick=1 if staged.num_layers <= 16 else 5)
    figure.update_xaxes(
        tickvals=list(range(1, len(stages) + 1)),
        ticktext=[
            f"{say_stage(stage.name)}: {'the original' if not stage.gone_layers else 'without ' + list_layers(stage.gone_layers)}"
            for stage in stages
        ],
        range=[0.7, len(stages) + 0.3],
    )
    return finish_figure(
        figure,
        title="How the order of layers moved",
        x_title="",
        y_title="rank among the layers left, 1 goes most easily",
        caption=f"Layers by what dropping each alone costs at the begin of a stage ({name_rung(stages[0].rung)}, validation text). A line "
        "follows a layer; it ends where the layer is gone. Orange: layers that move by three ranks or more.",
    )


def order_layers(stage: StageRecord) -> list[str]:
    """Return the layers that a stage can drop, the easiest first."""
    return sorted(stage.singles, key=lambda layer: (stage.singles[layer], int(layer)))


def draw_tokens(staged: StagedSearch) -> go.Figure:
    """Draw validation loss over recovery tokens: the stages one behind the other, and the search at once."""
    figure = go.Figure()
    drawn: list[tuple[str, StageRecord, str]] = [
        (say_stage(stage.name), stage, choose_color(number)) for number, stage in enumerate(staged.stages, 1)
    ]
    if staged.one_shot is not None:
        drawn.append(("at once", staged.one_shot, GREY))
    for name, stage, color in drawn:
        before = stage.tokens - int(stage.result.settings["distill_tokens"])
        figure.add_trace(
            go.Scatter(
                x=[before + point.tokens for point in stage.result.curve],
                y=[point.validation_loss for point in stage.result.curve],
                mode="lines+markers",
                name=f"{name}, without {list_layers(stage.result.candidate.dropped_layers)}",
                line={"color": color, "width": 2, "dash": "dash" if name == "at once" else "solid"},
                marker={"color": color, "size": 6},
                hovertemplate="%{x:.3s} tokens<br>validation loss %{y:.4f}<extra>%{fullData.name}</extra>",
            )
        )
    figure.add_hline(y=staged.dense.validation.loss, line={"color": GREY, "width": 1, "dash": "dot"})
    return finish_figure(
        figure,
        title="In stages and at once, by tokens",
        x_title="recovery tokens in all",
        y_title="validation loss (nats per token)",
        caption="Each stage begins where the one before ended, with layers dropped anew. The dotted line is the original model.",
    )


def render_stages(staged: StagedSearch) -> str:
    """Return the table of stages, the original first and the search at once last."""
    header = [
        "stage",
        "without",
        "tokens in all",
        "parameters",
        "weights",
        "KV cache per token",
        "test PPL",
        "test PPL ratio",
        "KL",
        "top-1 agreement",
        "latency ratio",
    ]
    dense = staged.dense
    rows = [
        [
            "original",
            "none",
            ABSENT,
            *list_size(dense.size),
            *list_quality(dense.test, is_dense=True),
            format_number(1.0),
        ]
    ]
    for stage in (*staged.stages, *([staged.one_shot] if staged.one_shot else [])):
        result = stage.result
        rows.append(
            [
                say_stage(stage.name),
                list_layers(result.candidate.dropped_layers),
                f"{stage.tokens:,}",
                *list_size(result.size),
                *list_quality(result.test),
                format_latency_ratio(result.latency),
            ]
        )
    caption = "Each stage's best model after recovery, chosen on validation text; all on test text. Each stage's folder holds a report of its own."
    return render_table(caption, header, rows, first_is_dense=True)


def show_staged(terminal: Terminal, staged: StagedSearch, *, root: Path) -> None:
    """Print what a staged search came to, and where everything lies."""
    terminal.say()
    for answer in list_answers(staged):
        terminal.say(answer)
    last = staged.stages[-1]
    terminal.say(f"model:  {root / last.name / 'models' / last.result.key}", wrap=False)
    terminal.say(f"report: {root / 'report.html'}", wrap=False)
