"""Templates escape what they are given, at any depth, and refuse to leave out what they are not given."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from agevlm.analysis import html
from agevlm.analysis.html import Line, Piece

TEMPLATES = sorted((Path(html.__file__).parent / "templates").glob("*.jinja"))
EVIL = "\"'><script>&"


def written(line: Line) -> str:
    source = "{% from 'parts.html.jinja' import line %}{{ line(given) }}"
    return html._environment().from_string(source).render(given=line)


def test_a_line_is_text_or_pieces_of_it() -> None:
    parts = ["a ", Piece("strong", ["b ", Piece("code", "c")]), " d", Piece("link", "e", "f.md"), Piece("faint", "–")]
    expected = 'a <strong>b <code>c</code></strong> d<a href="f.md">e</a><span class="faint">–</span>'
    assert written(parts) == expected
    assert written("  a\n b ") == "  a\n b "
    assert written([Piece("mark", "boat", "#f00")]) == '<mark style="--c:#f00">boat</mark>'


@pytest.mark.parametrize("kind", ["strong", "small", "code", "faint", "link", "mark"])
def test_nothing_in_a_line_is_markup(kind: str) -> None:
    plain, evil = (written([Piece(kind, [Piece("small", word)], word), word]) for word in ("WORD", EVIL))
    assert evil == plain.replace("WORD", "&#34;&#39;&gt;&lt;script&gt;&amp;")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_trusts_what_it_is_given(path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    for word in ("|safe", "| safe", "autoescape", "Markup", "<script"):
        assert word not in content


def test_what_a_template_is_not_given_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="is undefined"):
        html.render("comparison.html.jinja", heading="a title", head=[], sections=[])
