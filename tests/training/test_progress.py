"""What a run tells where there is no terminal: the first line soon, and then by time."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from tiny_runs import make_recipe

from agevlm.training import progress
from agevlm.training.recipe import Recipe


def test_lines_come_after_ten_steps_every_half_minute_and_at_the_end(
    foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    stage = {"name": "ground", "data": {"scenes": 1.0}, "steps": 40, "trainable": ["projector"]}
    recipe = Recipe.model_validate(make_recipe(foundation, stage))
    said = io.StringIO()
    with progress.RunProgress(Console(file=said, width=200), recipe, tmp_path / "log.jsonl") as shown:
        show = shown.preparing("scenes")
        for done in range(1, 41):
            now += 1.0
            show(done, 40)
        shown.start_stage(0, 0)
        for step in range(1, 41):
            now += 5.0
            shown.step({"step": step, "lm_loss": 1.0, "guidance_loss": None})
    told = [line.split("  ")[0] for line in said.getvalue().splitlines()]
    assert told == [
        *(f"data scenes: {done}/40 pictures" for done in (30, 40)),
        *(f"stage ground: step {step}/40" for step in (6, 10, 16, 22, 28, 34, 40)),
    ]
