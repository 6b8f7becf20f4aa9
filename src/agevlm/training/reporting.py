"""Losses on their way to TensorBoard, Weights & Biases or trackio, by transformers' integrations.

The log of a run is written whatever goes here; see `progress.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import integration_utils


def check_reporting(names: Sequence[str]) -> None:
    """Raise ValueError for an integration whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"report_to: {name} is not installed: pip install {name}, or leave it out of report_to")


def reporters(names: Sequence[str], directory: Path) -> list[TrainerCallback]:
    """A callback for each integration; files of TensorBoard go to `directory`."""
    found = [integration_utils.INTEGRATION_TO_CALLBACK[name]() for name in names]
    for name, callback in zip(names, found, strict=True):
        if name == "tensorboard":
            callback.logging_dir = str(directory)
    return found


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """What of a step's record is a number: losses, learning rate, counts."""
    return {name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"}
