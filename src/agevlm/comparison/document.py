"""Pages of results as data: sections of text, tables and plots, written as Markdown and as HTML from the same rows.

Text and cells may hold **strong** words, `code` and [links](address) as Markdown has them; everything else is plain.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from agevlm.analysis.html import Html, chart, join, tag
from agevlm.analysis.style import CSS
from agevlm.files import write_beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from agevlm.analysis.theme import ThemeName

MAX_PICTURE_BYTES = 400_000
_WORDS = "text-align:left;white-space:normal;min-width:8.5rem"
_PALETTES = (256, 128, 96, 64, 32)  # colours of a PNG, the most that fit


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    content: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under their headers; the first column holds names, the others figures."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A drawing, and what it shows in words; `name` is that of its file."""

    name: str
    alt: str
    draw: Callable[[ThemeName], Figure]


@dataclass(frozen=True)
class Picture:
    """A picture that is drawn already, as an encoded PNG."""

    name: str
    alt: str
    png: bytes


@dataclass(frozen=True)
class Code:
    """Shell commands."""

    content: str


Block = Text | Table | Plot | Picture | Code


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A title, a verdict in a sentence or two, what goes with it, and sections."""

    title: str
    verdict: str
    head: Sequence[Block]
    sections: Sequence[Section]

    @property
    def blocks(self) -> list[Block]:
        """All blocks, in order."""
        return [*self.head, *(block for part in self.sections for block in part.blocks)]


@dataclass(frozen=True)
class Site:
    """A summary, and the pages behind it by the names of their files."""

    summary: Page
    parts: Mapping[str, Page]

    @property
    def whole(self) -> Page:
        """All of it on one page, each picture once; a section whose title is taken has its page's before it."""
        shown = {block.name for block in self.summary.blocks if isinstance(block, Plot | Picture)}
        sections = list(self.summary.sections)
        for page in self.parts.values():
            opening = [*([Text(page.verdict)] if page.verdict else []), *page.head]
            for part in page.sections:
                blocks = [b for b in part.blocks if not (isinstance(b, Plot | Picture) and b.name in shown)]
                taken = any(part.title == other.title for other in sections)
                sections.append(Section(f"{page.title}: {part.title}" if taken else part.title, [*opening, *blocks]))
                opening = []
        return replace(self.summary, sections=sections)


# ---------------------------------------------------------------------------------------------------------- Markdown


def write_markdown(site: Site, path: Path) -> Path:
    """Write the summary to `path`, and the other pages and all pictures into the directory beside it of its name.

    That directory is the site's own: Markdown and PNG files there that are not of it go.
    """
    directory, pages = path.with_suffix(""), dict(site.parts)
    links = "\n".join(f"- [{page.title}]({directory.name}/{name}.md)" for name, page in pages.items())
    behind = [Section("Behind this page", [Text(links)])] if pages else []
    summary = replace(site.summary, sections=[*site.summary.sections, *behind])
    written = {directory / f"{name}.md": markdown(page, "", f"../{path.name}") for name, page in pages.items()}
    for target, text in {**written, path: markdown(summary, f"{directory.name}/")}.items():
        with write_beside(target) as beside:
            beside.write_text(text, encoding="utf-8")
    drawn = {block.name: block for block in site.whole.blocks if isinstance(block, Plot | Picture)}
    for name, block in drawn.items():
        data = figure_png(block.draw("light")) if isinstance(block, Plot) else block.png
        with write_beside(directory / f"{name}.png") as beside:
            beside.write_bytes(data)
    kept = {*written, *(directory / f"{name}.png" for name in drawn)}
    for stale in {*directory.glob("*.png"), *directory.glob("*.md")} - kept:
        stale.unlink()
    return path


def markdown(page: Page, pictures: str, back: str | None = None) -> str:
    """The page as Markdown; `pictures` is put before the names of PNG files, `back` is the page that it belongs to."""
    parts = [f"# {page.title}", *([f"[← Summary]({back})"] if back else []), page.verdict]
    parts += [_markdown_block(block, pictures) for block in page.head]
    for part in page.sections:
        parts += [f"## {part.title}", *(_markdown_block(block, pictures) for block in part.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_block(block: Block, pictures: str) -> str:
    if isinstance(block, Text):
        return block.content
    if isinstance(block, Code):
        return f"```sh\n{block.content}\n```"
    if isinstance(block, Table):
        rule = ["--:" if _numeric(block, column) else "---" for column in range(len(block.headers))]
        rows = [block.headers, rule, *block.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n".join([*([f"**{block.caption}**", ""] if block.caption else []), *lines])
    return f"![{block.alt}]({pictures}{block.name}.png)"


def _numeric(block: Table, column: int) -> bool:
    """Whether all cells of a column are figures or empty."""
    return column > 0 and all(re.fullmatch(r"(\*\*|× )?[+−–]?(\d.*)?", row[column]) for row in block.rows)


def figure_png(figure: Figure, *, photographs: bool = False) -> bytes:
    """A figure on white as a PNG of few colours: as many as fit into `MAX_PICTURE_BYTES`, but at least 32.

    Colours are those of lines, however thin, or with `photographs` those of large areas.
    """
    method = Image.Quantize.MEDIANCUT if photographs else Image.Quantize.MAXCOVERAGE
    raw = io.BytesIO()
    figure.savefig(raw, format="png", facecolor="white")
    image, data = Image.open(raw).convert("RGB"), b""
    for colours in _PALETTES:
        small = io.BytesIO()
        reduced = image.quantize(colours, method=method, kmeans=int(photographs), dither=Image.Dither.NONE)
        reduced.save(small, "PNG", optimize=True)
        data = small.getvalue()
        if len(data) <= MAX_PICTURE_BYTES:
            break
    return data


# -------------------------------------------------------------------------------------------------------------- HTML


def write_html(page: Page, path: Path) -> Path:
    """Write the page as one file that needs no other; links stay what they are."""
    with write_beside(path) as beside:
        beside.write_text(_html(page), encoding="utf-8")
    return path


def _html(page: Page) -> str:
    anchors = {part.title: f"part-{number}" for number, part in enumerate(page.sections, 1)}
    main = tag(
        "main",
        tag(
            "header",
            tag("p", "Attention-guided VLM · report of a comparison", class_="eyebrow"),
            tag("h1", page.title),
            tag("p", _inline(page.verdict), class_="verdict"),
        ),
        tag("nav", *(tag("a", title, href=f"#{name}") for title, name in anchors.items())),
        *map(_html_block, page.head),
        *(_html_section(part, anchors) for part in page.sections),
        tag("footer", "Written by agevlm. All intervals hold 95 %."),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{page.title} · AGE-VLM"),
        tag("style", Html(CSS)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", main), lang="en-GB") + "\n"


def _html_section(part: Section, anchors: Mapping[str, str]) -> Html:
    return tag("section", tag("h2", part.title, id=anchors[part.title]), *map(_html_block, part.blocks))


def _html_block(block: Block) -> Html:
    if isinstance(block, Text):
        return tag("p", _inline(block.content))
    if isinstance(block, Code):
        return tag("pre", block.content, class_="sheet")
    if isinstance(block, Table):
        return tag("div", _html_table(block), class_="sheet")
    if isinstance(block, Plot):
        return tag("div", chart(block.draw, block.alt), class_="sheet")
    address = f"data:image/png;base64,{base64.b64encode(block.png).decode('ascii')}"
    return tag("div", tag("div", tag("img", src=address, alt=block.alt), class_="chart"), class_="sheet")


def _html_table(block: Table) -> Html:
    """Figures stand to the right on one line; columns of words to the left, and wrap."""
    styles = [None if _numeric(block, column) else _WORDS for column in range(len(block.headers))]
    cells = zip(map(_inline, block.headers), styles, strict=True)
    head = tag("tr", *(tag("th", cell, scope="col", style=style or "white-space:normal") for cell, style in cells))
    body = []
    for row in block.rows:
        figures = (tag("td", _figure(cell), style=style) for cell, style in zip(row[1:], styles[1:], strict=True))
        body.append(tag("tr", tag("th", _inline(row[0]), scope="row", style=_WORDS), *figures))
    caption = tag("caption", block.caption) if block.caption else None
    return tag("div", tag("table", caption, tag("thead", head), tag("tbody", *body)), class_="scroll")


def _figure(cell: str) -> Html:
    """A cell whose interval, in brackets, stands small."""
    strong = cell.startswith("**") and cell.endswith("**")
    value, bracket, interval = (cell[2:-2] if strong else cell).partition(" (")
    shown = tag("strong", value) if strong else _inline(value)
    return join([shown, tag("small", f" ({interval}") if bracket else None])


def _inline(content: str) -> Html:
    escaped = html.escape(content)
    escaped = re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", r'<a href="\2">\1</a>', escaped)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)
    return Html(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))
