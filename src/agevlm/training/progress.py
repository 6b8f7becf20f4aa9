"""What a run shows and keeps while it trains: a progress bar, and one line of `log.jsonl` for each step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agevlm.files import write_beside
from agevlm.training.recipe import Recipe
from agevlm.training.trainer import read_log

LINE_EVERY_S = 30.0  # where there is no terminal
FIRST_STEPS = 10  # of a stage, behind which its first line comes


class RunProgress:
    """A bar for each part of the run with stage, step, losses and time left, and the log of all steps.

    Where there is no terminal, a line every half minute stands for the bar; the first comes after ten steps.
    """

    def __init__(self, console: Console, recipe: Recipe, log: Path) -> None:
        self.console, self.recipe, self.path = console, recipe, log
        columns = (
            TextColumn("[bold]{task.description:12}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self.start = self.told = time.monotonic()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def preparing(self, name: str) -> Callable[[int, int], None]:
        """A bar for drawing or reading the pictures of a source and computing their features."""
        task = self.bars.add_task(f"data {name}", total=None, losses="")

        def show(done: int, total: int) -> None:
            self.bars.update(task, completed=done, total=total)
            self._tell(f"data {name}: {done}/{total} pictures", at_once=done == total)

        return show

    def start_stage(self, index: int, done: int) -> None:
        """Begin a stage of which `done` steps are already logged; what was logged beyond them is forgotten."""
        self.stage, self.index = self.recipe.stages[index], index
        self.first_step = sum(stage.steps for stage in self.recipe.stages[:index])
        kept = [record for record in read_log(self.path) if record["global_step"] <= self.first_step + done]
        with write_beside(self.path) as beside:
            beside.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self.task = self.bars.add_task(self.stage.name, total=self.stage.steps, completed=done, losses="")
        before = max((record["time_s"] for record in kept if record["stage_index"] == index), default=0.0)
        self.stage_start = time.monotonic() - before
        self.first_time, self.first_done = time.monotonic(), done

    def step(self, record: dict[str, Any]) -> None:
        """Log one step and move the bar."""
        step = record["step"]
        line = {
            "stage": self.stage.name,
            "stage_index": self.index,
            "global_step": self.first_step + step,
            **record,
            "time_s": round(time.monotonic() - self.stage_start, 3),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        guidance = "–" if record["guidance_loss"] is None else f"{record['guidance_loss']:.3f}"
        losses = f"loss {record['lm_loss']:.3f}  guidance {guidance}{self._left(step)}"
        self.bars.update(self.task, completed=step, losses=losses)
        at_once = step in (self.first_done + FIRST_STEPS, self.stage.steps)
        self._tell(f"stage {self.stage.name}: step {step}/{self.stage.steps}  {losses}", at_once)

    def _tell(self, line: str, at_once: bool) -> None:
        """Print a line where there is no terminal: at once, or if the last one is long ago."""
        now = time.monotonic()
        if not self.console.is_terminal and (at_once or now - self.told >= LINE_EVERY_S):
            self.told = now
            self.console.print(line, highlight=False)

    def _left(self, step: int) -> str:
        """How long all stages still take, if a step of every one takes what one of this stage does."""
        steps_left = sum(stage.steps for stage in self.recipe.stages) - self.first_step - step
        if step == self.first_done or not steps_left:
            return ""
        left_s = steps_left * (time.monotonic() - self.first_time) / (step - self.first_done)
        return f"  training ends in {left_s / 60:.0f} min" if left_s >= 90 else f"  training ends in {left_s:.0f} s"
