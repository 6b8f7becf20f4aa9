"""A real server on a free port, with `tiny` and a tiny random model, for all tests of this room."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("fastapi") is None:  # the extra `serve`, which is part of `dev`
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def tiny() -> tuple[str, Any, Any]:
    """`tiny`, loaded once."""
    from agevlm.checkpoints import load_vlm

    return ("tiny", *load_vlm("tiny"))


@pytest.fixture(scope="session")
def served(tiny: tuple[str, Any, Any]) -> Iterator[tuple[str, list[Any]]]:
    """The base URL and the engines of a server of `tiny`."""
    from agevlm.serve.server import in_background

    with in_background([tiny]) as found:
        yield found


@pytest.fixture
def client(served: tuple[str, list[Any]]) -> Any:
    """OpenAI's own client."""
    from openai import OpenAI

    return OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0)
