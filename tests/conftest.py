"""Fixtures for all tests; what they make is described in `tiny_models.py`."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from tiny_models import make_model, make_picture, make_processor, make_tokenizer

__all__ = ["make_model", "make_picture", "make_processor", "make_tokenizer"]


@pytest.fixture
def tokenizer() -> Any:
    """`make_tokenizer()`."""
    return make_tokenizer()


@pytest.fixture
def processor() -> Any:
    """`make_processor()`."""
    return make_processor()


@pytest.fixture
def picture() -> Image.Image:
    """`make_picture()`."""
    return make_picture()
