"""HTML that is escaped by construction: everything that is not `Html` already is text. No templates, no scripts."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from agevlm.analysis.theme import ThemeName

_EMPTY = {"img", "source", "br", "hr", "meta"}


class Html(str):
    """Markup that needs no more escaping. Make it with `tag`, `join` or, for constants of our own, directly."""


def text(value: object) -> Html:
    """`value` as text: escaped, unless it is `Html`."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[object]) -> Html:
    """The parts one after the other, None left out."""
    return Html("".join(text(part) for part in parts if part is not None))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. Attribute names lose their trailing underscore (`class_`); None leaves an attribute out."""
    written = "".join(
        f' {key.rstrip("_")}="{html.escape(str(value))}"' for key, value in attributes.items() if value is not None
    )
    return Html(f"<{name}{written}>") if name in _EMPTY else Html(f"<{name}{written}>{join(children)}</{name}>")


def table(headers: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str | None = None) -> Html:
    """A table: the first column holds names, the others figures. Wide ones scroll inside their frame."""
    head = tag("tr", *(tag("th", header, scope="col") for header in headers))
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    parts = [tag("caption", caption) if caption else None, tag("thead", head), tag("tbody", *body)]
    return tag("div", tag("table", *parts), class_="scroll")


def picture_uri(image: Image.Image) -> str:
    """`image` as a data: address, PNG while small and JPEG of high quality beyond."""
    png = io.BytesIO()
    image.save(png, "PNG")
    if png.tell() <= 24_000:
        return _uri(png.getvalue(), "image/png")
    jpeg = io.BytesIO()
    image.convert("RGB").save(jpeg, "JPEG", quality=88, subsampling=0, optimize=True)
    return _uri(jpeg.getvalue(), "image/jpeg")


def chart(draw: Callable[[ThemeName], Figure], alt: str) -> Html:
    """A drawing in two versions, of which the browser shows the one for its light or dark ground."""
    light, dark = _svg_uri(draw("light")), _svg_uri(draw("dark"))
    source = tag("source", srcset=dark, media="(prefers-color-scheme: dark)")
    return tag("picture", source, tag("img", src=light, alt=alt), class_="chart")


def _svg_uri(figure: Figure) -> str:
    import matplotlib

    svg = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "agevlm"}):  # the same ids in every run
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return _uri(svg.getvalue(), "image/svg+xml")


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
