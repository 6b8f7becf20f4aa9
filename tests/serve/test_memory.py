"""A model that does not fit is refused in one sentence, before its weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from agevlm.checkpoints import memory
from agevlm.cli import app


def test_models_that_do_not_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    size = memory.weight_bytes("tiny")
    assert 5_000_000 < size < 20_000_000
    monkeypatch.setattr(memory, "free_bytes", lambda place: 2 * size)
    memory.check_memory(["tiny", "tiny"], "cpu")
    message = r"weights of tiny, tiny, tiny take 0\.0 GB, and cpu has 0\.0 GB free: choose a smaller model"
    with pytest.raises(ValueError, match=message):
        memory.check_memory(["tiny"] * 3, "cpu")


def test_the_command_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda place: 1000)
    done = CliRunner().invoke(app, ["serve", "tiny", "--port", "0", "--device", "cpu"])
    assert isinstance(done.exception, ValueError)
    assert "choose a smaller model" in str(done.exception)


def test_what_is_free() -> None:
    free = memory.free_bytes("cpu")
    assert free is None or free > 1_000_000
    assert memory.free_bytes("meta") is None


def test_a_model_of_the_hub_is_not_counted(tmp_path: Path) -> None:
    assert memory.weight_bytes(tmp_path) == 0
