"""Pictures of every make come out upright and RGB; every broken file is one clear ValueError."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agevlm.data.images import MAX_PIXELS, ImageError, image_size, open_image, read_bytes
from agevlm.data.schema import ImageSource


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def corner_picture() -> Image.Image:
    """4 × 6 (height × width), black but for a red pixel in its top left corner."""
    image = Image.new("RGB", (6, 4))
    image.putpixel((0, 0), (255, 0, 0))
    return image


def bomb_png(side: int, width: int | None = None) -> bytes:
    """The head of a PNG that claims side × side pixels, or side × width."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width or side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [
        (1, (4, 6), (0, 0)),
        (2, (4, 6), (0, 5)),
        (3, (4, 6), (3, 5)),
        (4, (4, 6), (3, 0)),
        (5, (6, 4), (0, 0)),
        (6, (6, 4), (0, 3)),
        (7, (6, 4), (5, 3)),
        (8, (6, 4), (5, 0)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_rotation_is_applied_once(
    kind: str, orientation: int, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(corner_picture(), kind, exif=exif)
    image = open_image(data)
    assert image_size(data) == size == (image.height, image.width)
    assert image.getpixel(corner[::-1]) == (255, 0, 0)
    again = open_image(encode(image, exif=image.getexif()))
    assert np.array_equal(np.asarray(again), np.asarray(image))


def test_modes() -> None:
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    deep = open_image(encode(Image.fromarray(ramp)))
    assert np.array_equal(np.asarray(deep)[..., 0].ravel(), np.arange(256))
    wide = open_image(encode(Image.fromarray(ramp.astype(np.int32)), "TIFF"))
    assert np.array_equal(np.asarray(wide)[..., 1].ravel(), np.arange(256))
    fraction = open_image(encode(Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)), "TIFF"))
    assert fraction.getpixel((0, 0)) == (128, 128, 128)
    clear = open_image(encode(Image.new("RGBA", (2, 2), (10, 20, 30, 0))))
    assert clear.getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 0, 200, 0])
    assert open_image(encode(palette)).getpixel((0, 0)) == (0, 200, 0)
    assert open_image(encode(palette, transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    red, green, blue = open_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((4, 4))
    assert red > 240
    assert max(green, blue) < 15
    assert open_image(encode(Image.new("1", (2, 2), 1))).getpixel((0, 0)) == (255, 255, 255)


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((1, 1)) == (255, 0, 0)


def test_sources(tmp_path: Path) -> None:
    path = tmp_path / "corner.png"
    path.write_bytes(encode(corner_picture()))
    by_data = ImageSource("one", 4, 6, path=tmp_path / "moved away.png", data=path.read_bytes())
    for source in (path, str(path), path.read_bytes(), ImageSource("one", 4, 6, path=path), by_data):
        assert open_image(source).mode == "RGB"
        assert open_image(source).getpixel((0, 0)) == (255, 0, 0)
        assert image_size(source) == (4, 6)
        assert read_bytes(source) == path.read_bytes()
    with pytest.raises(ValueError, match=r"image one .*4 × 6 .*record says 6 × 4"):
        open_image(ImageSource("one", 6, 4, path=path))
    with pytest.raises(ValueError, match=r"image two: .*neither a file nor bytes"):
        open_image(ImageSource("two", 6, 4))


def test_broken_files_are_named(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    files = {
        "empty.png": (b"", r"empty \(0 bytes\)"),
        "text.jpg": (b"this is no picture, whatever it is called", "not an image"),
        "cut.jpg": (encode(noise, "JPEG")[:2000], "truncated or damaged"),
        "cut.png": (encode(noise)[:2000], "truncated or damaged"),
        "head.png": (encode(noise)[:20], "not an image|head of the image is damaged"),
        "large.png": (bomb_png(9000), r"9000 × 9000 pixels, the limit is 80 million; scale it down"),
        "strip.png": (bomb_png(1, 10_000_000), r"1 × 10000000 pixels, the limit is 65500 on a side"),
        "bomb.png": (bomb_png(60_000), "the limit is 80 million"),
    }
    for name, (data, message) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message) as error:
            open_image(tmp_path / name)
        assert name in str(error.value)
        if not name.startswith("cut"):
            with pytest.raises(ValueError, match=message):
                image_size(tmp_path / name)
    with pytest.raises(ValueError, match="no such file"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="is a directory"):
        open_image(tmp_path)
    with pytest.raises(ValueError, match="no bytes"):
        open_image(b"")


def test_the_limit_is_ours_and_pil_is_left_alone() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match="million"):
        open_image(bomb_png(10_000))
    assert before == Image.MAX_IMAGE_PIXELS
    assert before is None or before > MAX_PIXELS


def test_a_format_that_calls_other_programs_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "picture.eps"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    for read in (open_image, image_size):
        with pytest.raises(ImageError, match="not an image that can be read"):
            read(path)
