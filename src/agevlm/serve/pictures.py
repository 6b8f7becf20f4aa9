"""The pictures of a conversation: bytes from a data URL or from an allowed host, checked before they are decoded."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agevlm.serve.errors import ApiError, bad_request
from agevlm.serve.limits import Limits

if TYPE_CHECKING:
    from PIL import Image

_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.=+-]+)*?;base64,", re.ASCII | re.IGNORECASE)
_HEAD_LEN = 200  # characters in which a data URL says what it is
_KINDS = ((b"\x89PNG\r\n\x1a\n", 0), (b"\xff\xd8\xff", 0), (b"WEBP", 8), (b"GIF8", 0), (b"BM", 0))


@dataclass(frozen=True)
class Encoded:
    """The bytes of a picture file; `key` is their hash."""

    data: bytes
    key: str


def encoded(data: bytes, limits: Limits) -> Encoded:
    """Bytes that begin as a picture does. ApiError 400 or 413 where they are none, or too many."""
    if len(data) > limits.max_image_bytes:
        raise ApiError(
            413,
            f"the picture has {len(data):,} bytes, the limit is {limits.max_image_bytes:,}: scale it down",
            param="messages",
        )
    if not any(data[at : at + len(sign)] == sign for sign, at in _KINDS):
        raise bad_request("the picture is no PNG, JPEG, WebP, GIF or BMP file", "messages", "invalid_image")
    return Encoded(data, hashlib.sha256(data).hexdigest())


def from_data_url(url: str, limits: Limits) -> Encoded:
    """The picture in a data URL, whose base64 may be broken into lines."""
    head = _DATA_URL.match(url[:_HEAD_LEN])
    if head is None:
        raise bad_request(
            "a picture comes as a data URL, data:image/png;base64,…; this one begins "
            f"{url[:32]!r}: other URLs and paths are not fetched",
            "messages",
            "invalid_image_url",
        )
    if head["type"] is not None and not head["type"].lower().startswith("image/"):
        raise bad_request(f"the data URL holds {head['type']}, and a picture was expected", "messages")
    try:
        data = base64.b64decode("".join(url[head.end() :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"the data URL is no base64: {error}", "messages", "invalid_image_url") from error
    return encoded(data, limits)


def decoded(picture: Encoded, limits: Limits) -> Image.Image:
    """The upright picture in RGB. ApiError 400 where it cannot be read; too many pixels are found before decoding."""
    from agevlm.data.images import ImageError, open_image

    try:
        return open_image(picture.data, max_pixels=limits.max_image_pixels)
    except ImageError as error:
        raise bad_request(f"the picture cannot be used: {error.message}", "messages", "invalid_image") from error
