"""HTML by templates: Python prepares plain data, the files in templates/ hold all markup. No scripts, no other files.

What a template is given is text and is escaped, whoever wrote it; nothing here, and nobody who calls it, makes markup.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from agevlm.analysis.theme import ThemeName


@dataclass(frozen=True)
class Piece:
    """Part of a line that is set in some way: `kind` is strong, small, code, faint, link or mark.

    `value` is the address of a link, or the colour of a mark. `inside` may hold pieces in turn.
    """

    kind: str
    inside: Line
    value: str = ""


Line = str | Sequence[str | Piece]
"""A line of text, or its parts in order, plain or set: what the macro `line` of parts.html.jinja writes."""


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("agevlm.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **data: object) -> str:
    """What the template of this name makes of `data`; a name in it that `data` lacks is jinja2's UndefinedError."""
    return _environment().get_template(template).render(data)


def chart(draw: Callable[[ThemeName], Figure], alt: str) -> dict[str, str]:
    """A drawing for a light and for a dark ground, as data: addresses, for the macro `chart` of parts.html.jinja."""
    return {"light": _svg_uri(draw("light")), "dark": _svg_uri(draw("dark")), "alt": alt}


def picture_uri(image: Image.Image) -> str:
    """`image` as a data: address, PNG while small and JPEG of high quality beyond."""
    png = io.BytesIO()
    image.save(png, "PNG")
    if png.tell() <= 24_000:
        return data_uri(png.getvalue(), "image/png")
    jpeg = io.BytesIO()
    image.convert("RGB").save(jpeg, "JPEG", quality=88, subsampling=0, optimize=True)
    return data_uri(jpeg.getvalue(), "image/jpeg")


def data_uri(data: bytes, kind: str) -> str:
    """`data` as a data: address of the media type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _svg_uri(figure: Figure) -> str:
    import matplotlib

    svg = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "agevlm"}):  # the same ids in every run
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return data_uri(svg.getvalue(), "image/svg+xml")
