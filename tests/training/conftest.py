"""Fixtures for tests of training; what they make is described in `tiny_runs.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import make_foundation


@pytest.fixture(scope="session")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tiny checkpoints `llama` and `convnext`."""
    return make_foundation(tmp_path_factory.mktemp("foundation"))
