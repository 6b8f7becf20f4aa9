"""Pages as HTML: what is set in some way, what is not, and that nothing from data is markup."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from agevlm.comparison.document import Block, Code, Page, Picture, Plot, Section, Table, Text, figure_png, write_html


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes, and all of its text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, *(key for key, _ in attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def written(directory: Path, *blocks: Block, title: str = "A title", verdict: str = "A verdict.") -> str:
    page = Page(title, verdict, blocks[:1], [Section(title, blocks)])
    return write_html(page, directory / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a **b** c", "a <strong>b</strong> c"),
        ("**b `c` [d](e.md)**", '<strong>b <code>c</code> <a href="e.md">d</a></strong>'),
        ("[`d`](e.md#f)", '<a href="e.md#f"><code>d</code></a>'),
        ("`a **b** <c>`", "<code>a **b** &lt;c&gt;</code>"),
        ("2 ** 3, [4] (5), `6", "2 ** 3, [4] (5), `6"),
        ("**a** and **b**", "<strong>a</strong> and <strong>b</strong>"),
    ],
)
def test_words_are_set_as_in_markdown(content: str, expected: str, tmp_path: Path) -> None:
    assert f"<p>{expected}</p>" in written(tmp_path, Text(content))


def test_cells_have_their_interval_small(tmp_path: Path) -> None:
    rows = [["a", "0.5 (0.4 to 0.6)", "by luck"], ["b", "**0.6** (0.5 to 0.7)", ""], ["c", "**0.7 (0.6 to 0.8)**", ""]]
    html = written(tmp_path, Table(["name", "figure", "words"], rows, "A caption"))
    assert "<td>0.5<small> (0.4 to 0.6)</small></td>" in html
    assert "<td><strong>0.6</strong><small> (0.5 to 0.7)</small></td>" in html
    assert "<td><strong>0.7</strong><small> (0.6 to 0.8)</small></td>" in html
    assert 'min-width:8.5rem">by luck</td>' in html and "<caption>A caption</caption>" in html


def test_nothing_from_data_is_markup(tmp_path: Path) -> None:
    """The same page with plain and with evil words has the same elements and attributes."""

    def page(word: str) -> Elements:
        png = b"not looked into"
        blocks = (
            Text(f"{word} **{word}** `{word}` [{word}]({word})"),
            Code(word),
            Table([word, word], [[word, word], [f"**{word}**", f"{word} ({word})"]], word),
            Plot(word, word, lambda theme: Figure(figsize=(1, 1))),
            Picture(word, word, png),
        )
        return Elements(written(tmp_path, *blocks, title=word, verdict=word))

    evil, plain = page("\"'><script>alert(1)</script>{{7*7}}</style>&lt;"), page("words")
    assert evil.elements == plain.elements
    assert evil.text.count("<script>alert(1)</script>") == plain.text.count("words") > 15


def test_photographs_keep_their_colours() -> None:
    figure = Figure(figsize=(1, 1), dpi=64)
    axes = figure.add_axes((0, 0, 1, 1))
    green, red = np.mgrid[0:64, 0:64] * 4
    axes.imshow(np.stack([red, green, (red + green) // 2], axis=-1).astype(np.uint8))

    def num_colours(*, photographs: bool) -> int:
        image = Image.open(io.BytesIO(figure_png(figure, photographs=photographs))).convert("RGB")
        return len(image.getcolors(maxcolors=1 << 24) or ())

    assert num_colours(photographs=False) <= 256 < 2000 < num_colours(photographs=True)
