"""What every page is made of: templates that escape whatever they are given, and figures; a page loads nothing."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from seed import study_dir
from seed.console import Terminal
from seed.reporting import result_text, wording
from seed.reporting.result_text import Table

HERE = Path(__file__).parent
# The one button saves the figure as SVG.
FIGURE_CONFIG = {"displaylogo": False, "modeBarButtons": [["toImage"]], "responsive": True}
# On a touch screen a finger that crosses a figure should scroll the page.
FIGURE_SCRIPT = "if (matchMedia('(pointer: coarse)').matches) Plotly.relayout('{plot_id}', {dragmode: false});"


@functools.cache
def make_environment() -> jinja2.Environment:
    """Return what fills in templates."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.globals |= {
        "wording": wording,
        "result_text": result_text,
        "style": Markup((HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704  # our own
        "plotly": Markup(get_plotlyjs()),  # noqa: S704
        "code": Markup((HERE / "page.js").read_text(encoding="utf-8")),  # noqa: S704
    }
    environment.globals["parts"] = environment.get_template("parts.html").module
    return environment


def render(template: str, **values: Any) -> str:
    """Return a template filled in. The same values give the same bytes."""
    return make_environment().get_template(template).render(values)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure for a page, as HTML without its title."""

    key: str
    title: str
    html: Markup


def prepare_figure(figure: go.Figure, *, key: str) -> Drawing:
    """Return a figure for a page, which brings the library along."""
    clear = "rgba(0,0,0,0)"
    html = (
        go.Figure(figure)
        .update_layout(title=None, paper_bgcolor=clear, plot_bgcolor=clear)
        .to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=f"figure-{key}",
            config=FIGURE_CONFIG | {"toImageButtonOptions": {"format": "svg", "filename": key}},
            post_script=FIGURE_SCRIPT,
        )
    )
    return Drawing(key=key, title=figure.layout.title.text, html=Markup(html))  # noqa: S704  # Plotly escapes what it is given


# ---- the page of one question


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found out about a question, all as plain text."""

    study: str
    question: str
    answers: Sequence[str]
    note: str  # what the words of answers and tables mean
    figures: Sequence[tuple[go.Figure, str]] = ()  # with their captions
    tables: Sequence[Table] = ()
    links: Mapping[str, str] = field(default_factory=dict)  # to pages that lie beside this one, by title
    settings: Mapping[str, object] = field(default_factory=dict)
    repeat: Mapping[str, Any] = field(default_factory=dict)  # options that repeat all of it


def write_findings(findings: Findings, path: Path, *, command: str) -> None:
    """Write the page as one self-contained HTML file.

    Raises:
        ResourceError: the file cannot be written.
    """
    study_dir.write_bytes(path, render_findings(findings, command=command).encode())


def render_findings(findings: Findings, *, command: str) -> str:
    """Return the page as HTML. The same findings give the same bytes."""
    shown = [(figure, caption) for figure, caption in findings.figures if figure.data]
    figures = [(prepare_figure(one, key=f"finding-{place}"), caption) for place, (one, caption) in enumerate(shown)]
    return render("findings.html", findings=findings, figures=figures, command=command)


def show_findings(terminal: Terminal, findings: Findings, *, page: Path) -> None:
    """Print the numbers, and what they mean."""
    for table in findings.tables:
        if table.rows:
            terminal.show_table(table.columns, table.rows, title=table.title)
    for answer in findings.answers:
        terminal.say(answer)
    terminal.say(f"page: {page}", wrap=False)
