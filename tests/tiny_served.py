"""What the tests of the server send: pictures as data URLs, questions about them."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from typing import Any

from PIL import Image


def data_url(picture: Image.Image, kind: str = "PNG") -> str:
    """A picture as clients send it."""
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def asked(picture: Image.Image | str | None, question: str = "is there a fish?") -> list[dict[str, Any]]:
    """Messages that ask one question about one picture."""
    if picture is None:
        return [{"role": "user", "content": question}]
    url = picture if isinstance(picture, str) else data_url(picture)
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def scene(index: int = 0, seed: int = 0) -> Image.Image:
    """A drawn scene."""
    from agevlm.data.scenes import WorldSpec, draw_scene

    return Image.fromarray(draw_scene(WorldSpec(), seed, index).image)


def endless() -> tuple[str, Any, Any]:
    """A model that never ends its answer."""
    from tiny_models import make_model, make_processor

    model = make_model()
    model.generation_config.eos_token_id = None
    processor = make_processor()
    processor.tokenizer.eos_token = None
    return "endless", model, processor


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for what must come to be within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
