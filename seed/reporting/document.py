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


def render_document(
    sections: Iterable[str], *, name: str, question: str, subtitle: str = "", contents: str = "", script: str = ""
) -> str:
    """Return a whole page that loads nothing: ``question`` above the heading ``name``, then what sections are there.

    Args:
        sections: HTML; empty ones are left out.
        name: plain text, as are ``question`` and ``subtitle``.
        question: what the page answers.
        subtitle: what it is about, below the name.
        contents: HTML that leads to sections, see ``render_contents``.
        script: HTML at the end, where everything is there.
    """
    style = resources.files("seed.reporting").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Seed: {escape(name)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{contents}<main>\n"
        f'<header>\n<p class="eyebrow">{escape(question)}</p>\n<h1>{escape(name)}</h1>\n'
        + (f'<p class="subtitle">{escape(subtitle)}</p>\n' if subtitle else "")
        + "</header>\n"
        + "\n".join(filter(None, sections))
        + f"\n</main>\n{script}</body>\n</html>\n"
    )


def escape(value: object) -> str:
    """Return text that is safe inside HTML elements and quoted attributes."""
    return html.escape(str(value))


def render_contents(titles: Iterable[tuple[str, str]]) -> str:
    """Return a bar of links to sections, given as key and title."""
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title in titles)
    return f'<nav aria-label="contents">{links}</nav>\n'


def render_strip(dropped: Iterable[int], *, num_layers: int) -> str:
    """Return a row of tiles, one for each layer, those of dropped layers marked."""
    gone = set(dropped)
    tiles = "".join(f"<i{' class=gone' if layer in gone else ''}></i>" for layer in range(num_layers))
    return f'<span class="strip" aria-hidden="true">{tiles}</span>'


def render_section(key: str, title: str, body: str) -> str:
    """Return a titled section, or nothing when the body is empty."""
    if not body:
        return ""
    heading = f'<h2 id="{key}-title">{escape(title)}</h2>'
    return f'<section id="{key}" aria-labelledby="{key}-title">\n{heading}\n{body}\n</section>'


def render_figure(
    figure: go.Figure, *, key: str, with_library: bool, min_width_rem: int | None = None, folds: bool = False
) -> str:
    """Return a figure with its caption above it; the page has the title already.

    Args:
        figure: with its caption in ``layout.meta``.
        key: of its section.
        with_library: brings plotly.js along, as the first figure of a page does.
        min_width_rem: a width below which a figure of many panels scrolls sideways instead of shrinking.
        folds: of a long caption only the first sentence is above, the rest below and folded away.
    """
    first, _, rest = figure.layout.meta["caption"].partition(". ") if folds else (figure.layout.meta["caption"], "", "")
    caption = escape(first + ("." if rest else ""))
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
    drawing = f'<div role="img" aria-labelledby="figure-{key}-caption">{drawing}</div>'
    how = f"<details><summary>How to read this</summary><p class='note'>{escape(rest)}</p></details>\n" if rest else ""
    absent = "<noscript><p>The figures need JavaScript; everything else on this page does not.</p></noscript>\n"
    return f"{absent if with_library else ''}<figure>\n<figcaption id='figure-{key}-caption'>{caption}</figcaption>\n{drawing}\n{how}</figure>"


def render_table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    first_is_dense: bool = False,
    ids: Sequence[str | None] | None = None,
) -> str:
    """Return a table that scrolls sideways where the screen is narrow; a row's first cell is its heading.

    A row with an id can be chosen, and is lit wherever the same model is.
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = ""
    for index, row in enumerate(rows):
        kind = ' class="dense"' if first_is_dense and index == 0 else ""
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        first, link = escape(row[0]), ids[index] if ids else None
        if link is not None:
            first, kind = f'<button type="button" class="row">{first}</button>', f'{kind} data-id="{escape(link)}"'
        body += f'<tr{kind}><th scope="row">{first}</th>{cells}</tr>\n'
    return (
        f'<p class="note">{escape(caption)}</p>\n<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(header[0])}">\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>'
    )


def render_details(title: str, body: str) -> str:
    """Return HTML that is folded away until it is asked for."""
    return f"<details>\n<summary>{escape(title)}</summary>\n{body}\n</details>\n"


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
