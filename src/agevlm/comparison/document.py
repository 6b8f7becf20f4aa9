"""Pages of results as data: sections of text, tables and plots, written as Markdown and as HTML from the same rows.

Text and cells may hold **strong** words, `code` and [links](address) as Markdown has them; everything else is plain.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from agevlm.analysis.html import Line, Piece, chart, data_uri, render
from agevlm.files import write_beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from agevlm.analysis.theme import ThemeName

MAX_PICTURE_BYTES = 400_000
MAX_PHOTOGRAPH_BYTES = 1_000_000  # of a PNG in full colour
_PALETTES = (256, 128, 96, 64, 32)  # colours of a PNG, the most that fit
_SET = re.compile(r"\[(?P<link>[^\]]+)\]\((?P<address>[^)\s]+)\)|\*\*(?P<strong>.+?)\*\*|`(?P<code>[^`]+)`")


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

    Colours are those of lines, however thin, or with `photographs` those of large areas. Photographs keep all of
    theirs where that fits into `MAX_PHOTOGRAPH_BYTES`.
    """
    method = Image.Quantize.MEDIANCUT if photographs else Image.Quantize.MAXCOVERAGE
    raw = io.BytesIO()
    figure.savefig(raw, format="png", facecolor="white")
    image, data = Image.open(raw).convert("RGB"), b""
    if photographs:
        whole = io.BytesIO()
        image.save(whole, "PNG", optimize=True)
        if len(whole.getvalue()) <= MAX_PHOTOGRAPH_BYTES:
            return whole.getvalue()
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
    return render(
        "comparison.html.jinja",
        heading=page.title,
        verdict=_line(page.verdict),
        head=[_html_block(block) for block in page.head],
        sections=[
            {"name": f"part-{number}", "title": part.title, "blocks": [_html_block(block) for block in part.blocks]}
            for number, part in enumerate(page.sections, 1)
        ],
    )


def _html_block(block: Block) -> dict[str, Any]:
    """What comparison.html.jinja shows of a block."""
    if isinstance(block, Text):
        return {"kind": "text", "content": _line(block.content)}
    if isinstance(block, Code):
        return {"kind": "code", "content": block.content}
    if isinstance(block, Plot):
        return {"kind": "plot", "chart": chart(block.draw, block.alt)}
    if isinstance(block, Picture):
        return {"kind": "picture", "src": data_uri(block.png, "image/png"), "alt": block.alt}
    return {
        "kind": "table",
        "caption": block.caption,
        "headers": [_line(header) for header in block.headers],
        "rows": [[_line(row[0]), *(_figure(cell) for cell in row[1:])] for row in block.rows],
        "numeric": [_numeric(block, column) for column in range(len(block.headers))],
    }


def _figure(cell: str) -> Line:
    """A cell whose interval, in brackets, stands small."""
    strong = cell.startswith("**") and cell.endswith("**")
    value, bracket, interval = (cell[2:-2] if strong else cell).partition(" (")
    shown = [Piece("strong", value)] if strong else _line(value)
    return [*shown, *([Piece("small", f" ({interval}")] if bracket else [])]


def _line(content: str) -> list[str | Piece]:
    """Text with its strong words, code and links as pieces."""
    parts: list[str | Piece] = []
    at = 0
    for found in _SET.finditer(content):
        kind = "link" if found["link"] else "strong" if found["strong"] else "code"
        inside = found["code"] if kind == "code" else _line(found[kind])
        parts += [content[at : found.start()], Piece(kind, inside, found["address"] or "")]
        at = found.end()
    return [part for part in (*parts, content[at:]) if part]
