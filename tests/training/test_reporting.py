"""Losses go to the integrations that a recipe names, and a package that is missing is named before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import make_recipe, read_losses, run
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from agevlm.training import reporting


class Board(TrainerCallback):
    """Stands for an integration."""

    made: list[Board]
    logging_dir: str | None = None

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []
        self.made.append(self)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append({**logs, "step": state.global_step, "run": args.run_name})


def test_every_step_is_reported(foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Board, "made", [], raising=False)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Board)
    monkeypatch.setattr(reporting, "find_spec", lambda name: name)
    run(make_recipe(foundation, "align", "ground", report_to=["tensorboard"]), tmp_path)
    first, second = Board.made
    assert [first.logging_dir, second.logging_dir] == [str(tmp_path / "tensorboard" / n) for n in ("align", "ground")]
    assert {log["run"] for log in second.logs} == {"tiny-ground"}
    losses = [line for line in read_losses(tmp_path) if line["stage_index"] == 1]
    reported = [log for log in second.logs if "lm_loss" in log]
    assert [(log["step"], log["lm_loss"]) for log in reported] == [(line["step"], line["lm_loss"]) for line in losses]
    assert reported[0]["guidance_loss"] == losses[0]["guidance_loss"]


def test_a_package_that_is_missing_is_named(foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="trackio is not installed: pip install trackio"):
        run(make_recipe(foundation, "align", report_to=["trackio"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
