"""What every page is made of: a document that loads nothing, its sections, figures, tables and values."""

import html
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

import plotly.graph_objects as go

from seed.reporting.wording import ABSENT

# The browser itself then refuses whatever would come from elsewhere.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
FIGURE_CONFIG = {"displayModeBar": False, "responsive": True}
# On a touch screen a finger that crosses a figure should scroll the page.
FIGURE_SCRIPT = "if (matchMedia('(pointer: coarse)').matches) Plotly.relayout('{plot_id}', {dragmode: false});"


def render_document(sections: Iterable[str], *, name: str, question: str) -> str:
    """Return a whole page that loads nothing: ``question`` above the heading ``name``, then what sections are there."""
    style = resources.files("seed.reporting").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Seed: {escape(name)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<p class="eyebrow">{escape(question)}</p>\n<h1>{escape(name)}</h1>\n</header>\n'
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def escape(value: object) -> str:
    """Return text that is safe inside HTML elements and quoted attributes."""
    return html.escape(str(value))


def render_section(key: str, title: str, body: str) -> str:
    """Return a titled section, or nothing when the body is empty."""
    if not body:
        return ""
    heading = f'<h2 id="{key}-title">{escape(title)}</h2>'
    return f'<section id="{key}" aria-labelledby="{key}-title">\n{heading}\n{body}\n</section>'


def render_figure(figure: go.Figure, *, key: str, with_library: bool, min_width_rem: int | None = None) -> str:
    """Return a figure with its caption above it; the page has the title already.

    A figure of many panels names a width below which it scrolls sideways instead of shrinking.
    """
    caption = escape(figure.layout.meta["caption"])
    figure = go.Figure(figure).update_layout(title=None, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    drawing = figure.to_html(
        full_html=False,
        include_plotlyjs=with_library,
        div_id=f"figure-{key}",
        config=FIGURE_CONFIG,
        post_script=FIGURE_SCRIPT,
    )
    if min_width_rem:
        drawing = f'<div class="scroll" tabindex="0"><div style="min-width: {min_width_rem}rem">{drawing}</div></div>'
    absent = "<noscript><p>The figures need JavaScript; everything else on this page does not.</p></noscript>\n"
    return f"{absent if with_library else ''}<figure>\n<figcaption>{caption}</figcaption>\n{drawing}\n</figure>"


def render_table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, first_is_dense: bool = False
) -> str:
    """Return a table that scrolls sideways where the screen is narrow; a row's first cell is its heading."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = ""
    for index, row in enumerate(rows):
        kind = ' class="dense"' if first_is_dense and index == 0 else ""
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        body += f'<tr{kind}><th scope="row">{escape(row[0])}</th>{cells}</tr>\n'
    return (
        f'<p class="note">{escape(caption)}</p>\n<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(header[0])}">\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>'
    )


def render_values(value: object) -> str:
    """Return plain JSON values as HTML, however nested: objects become definition lists."""
    if isinstance(value, Mapping):
        rows = "\n".join(
            f"<dt>{escape(key).replace('_', ' ')}</dt><dd>{render_values(item)}</dd>" for key, item in value.items()
        )
        return f"<dl>\n{rows}\n</dl>" if value else ABSENT
    if isinstance(value, list | tuple):
        if any(isinstance(item, Mapping | list | tuple) for item in value):
            return "".join(render_values(item) for item in value)
        return ", ".join(map(render_values, value)) or ABSENT
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(value)
