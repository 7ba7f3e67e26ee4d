"""What every page is made of: templates that escape whatever they are given, and figures; a page loads nothing."""

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from seed import study_dir
from seed.console import Terminal
from seed.reporting.result_text import Table
from seed.reporting.wording import ABSENT

HERE = Path(__file__).parent
FIGURE_CONFIG = {"displayModeBar": False, "responsive": True}
# On a touch screen a finger that crosses a figure should scroll the page.
FIGURE_SCRIPT = "if (matchMedia('(pointer: coarse)').matches) Plotly.relayout('{plot_id}', {dragmode: false});"


@functools.cache
def make_environment(*folders: Path) -> jinja2.Environment:
    """Return what fills in the templates of these folders, and those of all pages."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, HERE / "templates"]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["bold"] = print_bold
    environment.globals |= {
        "absent": ABSENT,
        "style": Markup((HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704  # our own
        "plotly": Markup(get_plotlyjs()),  # noqa: S704
        "code": Markup((HERE / "page.js").read_text(encoding="utf-8")),  # noqa: S704
    }
    environment.globals["parts"] = environment.get_template("parts.html").module
    return environment


def render(template: str, *folders: Path, **told: Any) -> str:
    """Return a template filled in. The same values give the same bytes."""
    return make_environment(*folders).get_template(template).render(told)


def print_bold(text: str, part: str) -> Markup:
    """Return text as HTML, the first place where it says ``part`` in bold."""
    before, found, after = text.partition(part)
    return escape(before) + Markup("<strong>{}</strong>").format(found) + escape(after)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure as a page shows it: HTML between its title and how to read it."""

    key: str
    title: str
    caption: str
    more: str  # of the caption, folded away below
    html: Markup


def prepare_figures(figures: Mapping[str, go.Figure], *, folded: Collection[str] = ()) -> dict[str, Drawing]:
    """Return the figures that have something to show for a page, by key.

    Of a long caption that is ``folded`` only the first sentence stands above, the rest below and folded away.
    """
    drawn: dict[str, Drawing] = {}
    for key, figure in figures.items():
        if not figure.data:
            continue
        first, _, more = figure.layout.meta["caption"].partition(". ") if key in folded else (None, "", "")
        clear = "rgba(0,0,0,0)"
        html = (
            go.Figure(figure)
            .update_layout(title=None, paper_bgcolor=clear, plot_bgcolor=clear)
            .to_html(
                full_html=False,
                include_plotlyjs=False,
                div_id=f"figure-{key}",
                config=FIGURE_CONFIG,
                post_script=FIGURE_SCRIPT,
            )
        )
        drawn[key] = Drawing(
            key=key,
            title=figure.layout.title.text,
            caption=f"{first}." if first else figure.layout.meta["caption"],
            more=more,
            html=Markup(html),  # noqa: S704  # Plotly escapes what it is given
        )
    return drawn


# ---- the page of one question


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found out about a question. ``note``: how to read its numbers; ``repeat``: options that repeat all of it."""

    study: str
    question: str
    answers: Sequence[str]
    note: str
    figures: Sequence[go.Figure]
    tables: Sequence[Table] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    links: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # file: its name for people, and what is in it
    repeat: Mapping[str, Any] = field(default_factory=dict)


def write_findings(findings: Findings, path: Path, *, command: str) -> None:
    """Write the page as one self-contained HTML file.

    Raises:
        ResourceError: the file cannot be written.
    """
    study_dir.write_bytes(path, render_findings(findings, command=command).encode())


def render_findings(findings: Findings, *, command: str) -> str:
    """Return the page as HTML."""
    figures = prepare_figures({f"finding-{index}": figure for index, figure in enumerate(findings.figures)})
    return render("findings.html", findings=findings, figures=figures, command=command)


def show_findings(terminal: Terminal, findings: Findings, *, page: Path) -> None:
    """Print the numbers, and what they mean."""
    for table in findings.tables:
        if table.rows:
            terminal.show_table(table.columns, table.rows, title=table.title)
    for answer in findings.answers:
        terminal.say(answer)
    terminal.say(f"page: {page}", wrap=False)
