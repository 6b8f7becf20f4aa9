"""Picture files → upright RGB pictures. Whatever is wrong with a file ends in one `ImageError` that names it.

Nothing here resizes or normalises: that is the image processor's work.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from agevlm.data.schema import ImageSource

MAX_PIXELS = 80_000_000  # a larger picture is refused before it is decoded; below PIL's own warning at 89 million
MAX_SIDE = 65_500  # what JPEG holds: a longer strip is no photograph, and resizing it takes gigabytes
# Pillow knows more, some of which call other programs; these are those that people have pictures in.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_ORIENTATION = 0x0112  # the EXIF tag of how the camera was held
_QUARTER_TURNS = (5, 6, 7, 8)  # its values that swap height and width
_ADVICE = "give a whole PNG or JPEG file"


class ImageError(ValueError):
    """A picture that cannot be read. `kind` says in a few words what is wrong with it, without naming it."""

    def __init__(self, name: str, kind: str, message: str) -> None:
        super().__init__(name, kind, message)  # all of them, so that it can be pickled
        self.name, self.kind, self.message = name, kind, message

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


def open_image(source: ImageSource | str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to 8-bit RGB, turned upright by its EXIF tag.

    Transparent pixels come out on white, an animation gives its first frame, 16-bit greys keep their upper 8 bits. An
    `ImageSource` with `data` is read from there, else from its path, and must have the height and width it states.
    A missing file, a directory, an empty file, one that is no image or is cut off, and a picture of more than
    `max_pixels`, or `MAX_SIDE` on a side, are `ImageError`s, which are ValueErrors that name the file.
    """
    name = name_of(source)
    image = _open(name, io.BytesIO(read_bytes(source)), max_pixels)
    with _decoding(name):
        image.load()
        picture = _to_rgb(ImageOps.exif_transpose(image))
    if isinstance(source, ImageSource) and (picture.height, picture.width) != (source.height, source.width):
        raise ImageError(
            name,
            "picture of another size than its record says",
            f"the picture is {picture.height} × {picture.width} pixels (height × width), its record says "
            f"{source.height} × {source.width}; masks would not fit: correct the record or the file",
        )
    return picture


def is_size(height: int, width: int) -> bool:
    """Whether a picture of these pixels is read, and so may have masks."""
    return min(height, width) >= 1 and max(height, width) <= MAX_SIDE and height * width <= MAX_PIXELS


def image_size(source: ImageSource | str | Path | bytes) -> tuple[int, int]:
    """(height, width) in pixels of the upright picture; only PNG and TIFF files are decoded for it.

    Errors as in `open_image`, but for a file that is cut off after its head, which only decoding can tell.
    """
    name = name_of(source)
    path = _path(source)
    if path is None:
        return _upright_size(name, _open(name, io.BytesIO(read_bytes(source))))
    _check_file(name, path)
    with path.open("rb") as stream:
        return _upright_size(name, _open(name, stream))


def read_bytes(source: ImageSource | str | Path | bytes) -> bytes:
    """The encoded bytes of a picture, not decoded. A missing or empty file is an `ImageError`."""
    name, path = name_of(source), _path(source)
    if path is None:
        data = source.data if isinstance(source, ImageSource) else source
        if not isinstance(data, bytes):
            message = "the picture has neither a file nor bytes; give it one of them"
            raise ImageError(name, "picture of neither a file nor bytes", message)
    else:
        _check_file(name, path)
        data = path.read_bytes()
    if not data:
        raise ImageError(name, "empty picture", f"the image holds no bytes; {_ADVICE}")
    return data


def upright_bytes(source: ImageSource | str | Path | bytes) -> bytes:
    """The encoded bytes of a picture that every reader sees upright: one that EXIF turns is written anew as PNG."""
    data = read_bytes(source)
    image = _open(name_of(source), io.BytesIO(data))
    with _decoding(name_of(source)):
        turned = image.getexif().get(_ORIENTATION, 1) != 1
    if not turned:
        return data
    encoded = io.BytesIO()
    open_image(source).save(encoded, "PNG")
    return encoded.getvalue()


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (height, width, 3) as the bytes of a PNG file, packed quickly."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)  # grain: more effort makes it no smaller
    return buffer.getvalue()


def name_of(source: ImageSource | str | Path | bytes) -> str:
    """What to call a picture in an error: its file, its id, or its number of bytes."""
    if isinstance(source, ImageSource):
        return f"image {source.id}" + (f" ({source.path})" if source.path and source.data is None else "")
    return f"image of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _path(source: ImageSource | str | Path | bytes) -> Path | None:
    if isinstance(source, ImageSource):
        return source.path if source.data is None else None
    return None if isinstance(source, bytes) else Path(source)


def _check_file(name: str, path: Path) -> None:
    if os.path.isdir(path):  # unlike Path's own, false for names that no file system takes
        raise ImageError(name, "picture that is a directory", "is a directory; give one image file")
    if not os.path.isfile(path):
        raise ImageError(name, "missing picture", "no such file; check the path")
    if path.stat().st_size == 0:
        raise ImageError(name, "empty picture", f"the image file is empty (0 bytes); {_ADVICE}")


def _open(name: str, stream: io.IOBase, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the head of an image file and refuse what is no image or too large to decode."""
    most = f"{max_pixels / 1_000_000:.6g} million"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(stream, formats=FORMATS)  # type: ignore[arg-type]
        width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        said = re.search(r"\((\d+) pixels\)", str(error))  # Pillow tells the number, and gives no picture to ask
        raise _too_large(name, f"{int(said[1]):,} pixels" if said else "too many pixels", most) from error
    except UnidentifiedImageError as error:
        message = f"not an image that can be read (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF); {_ADVICE}"
        raise ImageError(name, "file that is no picture", message) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged head makes a decoder raise anything
        message = f"the head of the image is damaged ({error}); {_ADVICE}"
        raise ImageError(name, "damaged picture", message) from error
    if width * height > max_pixels:
        raise _too_large(name, f"{height} × {width} pixels", most)
    if not is_size(height, width):
        raise _too_large(name, f"{height} × {width} pixels", f"{MAX_SIDE} on a side")
    return image


def _too_large(name: str, size: str, limit: str) -> ImageError:
    message = f"the picture has {size}, the limit is {limit}; scale it down"
    return ImageError(name, "picture that is too large", message)


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything from OSError to struct.error
        message = f"the image is truncated or damaged ({error}); {_ADVICE}"
        raise ImageError(name, "damaged picture", message) from error


def _upright_size(name: str, image: Image.Image) -> tuple[int, int]:
    with _decoding(name):
        if image.format == "TIFF":  # Pillow turns these itself, some versions already when they are opened
            image.load()
        turned = image.getexif().get(_ORIENTATION) in _QUARTER_TURNS  # a PNG may carry it behind the pixels
    return (image.width, image.height) if turned else (image.height, image.width)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(grey: np.ndarray) -> np.ndarray:
    """Greys of 16 or 32 bits: whole numbers above 255 are on the scale to 65535, fractions up to 1 on that to 1."""
    values = np.nan_to_num(grey.astype(np.float64))
    if np.issubdtype(grey.dtype, np.floating):
        values *= 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
    elif grey.dtype.itemsize == 2 or values.max(initial=0.0) > 255:
        values /= 257.0
    return values.clip(0, 255).round().astype(np.uint8)
