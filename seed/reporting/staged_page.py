"""What a staged search found: what it came to, its models against that of one shot, and a link to each stage's report."""

import itertools
from pathlib import Path

import plotly.graph_objects as go

from seed.console import Terminal
from seed.evidence import StagedSearch, StageRecord
from seed.reporting.document import Findings
from seed.reporting.figure_parts import DEPTH_COLORS, GREY, finish_figure
from seed.reporting.result_text import describe_gain, format_ratio
from seed.reporting.wording import (
    MARGIN_PERCENT,
    compare_size,
    describe_speed,
    format_change,
    list_dropped,
    name_depth,
)
from seed.results import take_distilled

VERDICTS = {
    "lower": "Stages are better",
    "higher": "Stages are worse",
    "equivalent": f"Both are equivalent within {MARGIN_PERCENT}",
    "cannot tell": "The two cannot be told apart",
}


def tell_staged(staged: StagedSearch) -> Findings:
    """Tell whether it paid to remove layers in stages."""
    models = [*staged.stages, *([staged.one_shot] if staged.one_shot else [])]
    return Findings(
        study=staged.study,
        kind="staged",
        answers=list_answers(staged),
        figure=draw_stages(staged),
        details={"models": [(one, name_stage(one), format_stage(one)) for one in models]},
    )


def list_answers(staged: StagedSearch) -> list[str]:
    """Return what a staged search came to, as sentences."""
    last, gone = staged.stages[-1].result, [0, *(one.result.candidate.num_dropped for one in staged.stages)]
    counts = "+".join(str(after - before) for before, after in itertools.pairwise(gone))
    size = compare_size(last.size.num_params, dense_num_params=staged.dense.size.num_params)
    answers = [
        f"{name_depth(last.candidate)} in stages of {counts} (without {list_dropped(last.candidate)}): "
        f"{size}, {describe_speed(last.latency)}, test PPL ratio {format_stage(staged.stages[-1])} after "
        f"{staged.stages[-1].tokens:,} recovery tokens."
    ]
    if staged.stopped_because:
        answers.append(f"It ended because {staged.stopped_because}.")
    if (other := staged.one_shot) is not None:
        layers = list_dropped(other.result.candidate)
        verdict = f"{VERDICTS[staged.verdict]} (PPL {format_change(staged.excess)})."
        if staged.excess.low is None:
            verdict = "The two cannot be compared."
        answers.append(
            f"At once for the same tokens (without {layers}): test PPL ratio {format_stage(other)}. {verdict}"
        )
    return answers


def format_stage(stage: StageRecord) -> str:
    """Return a stage's PPL ratio."""
    return format_ratio(take_distilled(stage.result, stage.replication))


def name_stage(stage: StageRecord) -> str:
    """Return ``stage 2``, or ``at once``."""
    return "at once" if stage.name == "one-shot" else stage.name.replace("-", " ")


def draw_stages(staged: StagedSearch) -> go.Figure:
    """Draw the models' PPL ratios over their latency ratios, stages joined from the original on."""
    figure = go.Figure()
    in_stages = ("in stages", staged.stages, {"color": DEPTH_COLORS[0], "dash": "solid"})
    at_once = ("at once", (staged.one_shot,) if staged.one_shot else (), {"color": GREY, "dash": "dot"})
    for name, models, line in (in_stages, at_once):
        if models:
            figure.add_scatter(
                x=[1.0, *(one.result.latency.ratio for one in models)],
                y=[1.0, *(one.result.test.ppl_ratio for one in models)],
                text=["original", *map(name_stage, models)],
                mode="lines+markers+text",
                textposition="top right",
                name=name,
                line=line,
                marker={"size": 10},
                hovertemplate="%{text}: PPL ratio %{y:.3f}, latency ratio %{x:.3f}<extra></extra>",
            )
    return finish_figure(
        figure,
        title="In stages and at once",
        x_title="latency ratio (smaller is faster)",
        y_title="test PPL ratio (smaller is better)",
    )


def show_staged(terminal: Terminal, staged: StagedSearch, *, root: Path) -> None:
    """Print what a staged search came to, and where everything lies."""
    terminal.say()
    for answer in list_answers(staged):
        terminal.say(answer)
    last = staged.stages[-1]
    gain = describe_gain(take_distilled(last.result, last.replication), staged.dense)
    terminal.say(f"ship: {root / last.name / 'models' / last.result.key}  {gain}", wrap=False)
    terminal.say(f"open: {root / 'report.html'}", wrap=False)
