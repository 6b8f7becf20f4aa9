"""Looks, pictures and a run's files for the tests of `agevlm.analysis`, made without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agevlm.analysis.attention import Look, WordMap, object_words


def hot_map(row: int, column: int, grid: tuple[int, int] = (4, 4), mass: float = 1.0) -> np.ndarray:
    """A map with all its attention in one cell."""
    attention = np.zeros(grid, dtype=np.float32)
    attention[row, column] = mass
    return attention


def make_look(question: str = "is there a boat left of the fish?", answer: str = "no boat", null: bool = True) -> Look:
    """Hot cells at (0, 0), (1, 1), … for "boat" and "fish" in question and answer."""
    words = []
    for where, text in (("question", question), ("answer", answer)):
        for start, end, word in object_words(text, ["boat", "fish"]):
            cell = len(words) % 4
            attention = hot_map(cell, cell, mass=0.75 if null else 1.0)
            words.append(WordMap(word, start, end, where, attention, 0.25 if null else None))  # type: ignore[arg-type]
    return Look(question, answer, tuple(words), (4, 4))


def make_image(width: int = 96, height: int = 96) -> Image.Image:
    """A picture with a colour gradient."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / width, 255 * y / height, np.full(x.shape, 128.0)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def make_logs() -> list[dict[str, Any]]:
    """Four stages of five steps; guidance in the last two."""
    lines = []
    for index, stage in enumerate(("align", "cross-attention", "ground", "instruct")):
        for step in range(5):
            losses = {"lm_loss": 2.0 - 0.1 * step, "guidance_loss": 1.0 if index > 1 else None}
            line = {"stage": stage, "stage_index": index, "step": step, "global_step": 5 * index + step}
            lines.append({**line, "loss": sum(v or 0 for v in losses.values()), **losses, "time_s": 1.0})
    return lines


def make_metrics() -> dict[str, Any]:
    """Figures as the evaluation nests them."""
    scores = {"accuracy": 0.912, "accuracy_interval": [0.89, 0.93], "unparsed_ratio": 0.0, "num_questions": 1600}
    split = {**scores, "precision": 0.9, "recall": 0.92, "f1": 0.91, "yes_ratio": 0.513, "false_yes_ratio": 0.1}
    world = {
        "pope": {name: dict(split) for name in ("random", "popular", "adversarial")},
        "counting": {**scores, "accuracy": 0.704, "mean_absolute_error": 0.4},
        "colour": {**scores, "accuracy": 0.934},
        "pointing": {"accuracy": 0.966, "num_words": 2000},
        "attention": {"mass": 0.9, "iou": 0.3},
    }
    biased = {"pope": {"adversarial": {**split, "accuracy": 0.877}}}
    return {**world, "biased": biased, "text_perplexity": {"before": 3.4, "after": 3.5}, "provenance": {"seed": 7}}


def make_predictions(num: int = 120) -> list[dict[str, Any]]:
    """Predictions of three kinds, each seventh wrong; every second names something present."""
    rows = []
    for number in range(num):
        words = [{"phrase": "boat", "mass": (number % 50) / 50 if number % 2 else None}]
        kind = ("pope.random", "counting", "colour")[number % 3]
        row = {"id": f"q{number}", "image": f"i{number // 2}", "kind": kind, "question": "?", "answer": "a"}
        rows.append({**row, "reference": "b", "correct": number % 7 != 0, "words": words})
    return rows


def write_run(directory: Path) -> Path:
    """All files of a run."""
    directory.mkdir(parents=True, exist_ok=True)
    modules = {"projector": 1234, "cross_attention": 56789}
    stage = {"name": "align", "steps": 5, "seconds": 61.0, "trainable_parameters": 58023, "total_parameters": 900000}
    (directory / "recipe.yaml").write_text("name: sample\nnote: '<script>alert(1)</script>'\n", encoding="utf-8")
    (directory / "log.jsonl").write_text("\n".join(map(json.dumps, make_logs())), encoding="utf-8")
    (directory / "stages.json").write_text(json.dumps([{**stage, "trainable_modules": modules}]), encoding="utf-8")
    (directory / "metrics.json").write_text(json.dumps(make_metrics()), encoding="utf-8")
    (directory / "predictions.jsonl").write_text("\n".join(map(json.dumps, make_predictions())), encoding="utf-8")
    environment = {"git": {"commit": "0123456789abcdef"}, "versions": {"torch": "2.x"}}
    (directory / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    return directory
