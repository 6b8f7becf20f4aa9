"""What can befall the files of a checkpoint, for tests of everything that loads one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Damage = Callable[[Path], None]


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Does something to the weights of a directory."""

    def apply(directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        change(weights)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    return apply


def change_weight(part: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Damage:
    """Puts what `change` gives in the place of the first weight with `part` in its name; None leaves it out."""

    def apply(weights: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(weights) if part in name)
        if (changed := change(weights.pop(name))) is not None:
            weights[name] = changed.contiguous()

    return change_weights(apply)


def lose(weight: torch.Tensor) -> None:
    """A weight that is not there."""


def spoil(weight: torch.Tensor) -> torch.Tensor:
    """One number of a weight is none."""
    spoiled = weight.clone()
    spoiled.view(-1)[0] = float("nan")
    return spoiled


def reshape(weight: torch.Tensor) -> torch.Tensor:
    """A weight of another shape."""
    return torch.zeros(*weight.shape[:-1], weight.shape[-1] + 1, dtype=weight.dtype)


def damaged_weights(part: str) -> dict[str, tuple[Damage, str]]:
    """What can befall weights, the first with `part` in its name above all, and what is said of it."""
    return {
        "a weight that is missing": (change_weight(part, lose), f"lacks the weights .*{re.escape(part)}"),
        "a weight that is no number": (
            change_weight(part, spoil),
            f"the weights .*{re.escape(part)}.* are not finite",
        ),
        "a weight that is stored as an integer": (
            change_weight(part, torch.Tensor.int),
            f"the weights .*{re.escape(part)}.* are stored as integers",
        ),
        "a weight of another shape": (change_weight(part, reshape), "weights in .* cannot be read"),
        "half the weights": (cut("model.safetensors"), "weights in .* cannot be read"),
    }


def change_json(name: str, *inside: str, **values: object) -> Damage:
    """Other values in a file, or in the mapping that lies below the keys `inside`."""

    def apply(directory: Path) -> None:
        content = part = json.loads((directory / name).read_text())
        for key in inside:
            part = part[key]
        part.update(values)
        (directory / name).write_text(json.dumps(content))

    return apply


def write(name: str, text: str) -> Damage:
    """Another text in a file."""
    return lambda directory: (directory / name).write_text(text) and None


def pipe(name: str) -> Damage:
    """A pipe where a file was, which nobody writes to."""

    def apply(directory: Path) -> None:
        (directory / name).unlink()
        os.mkfifo(directory / name)

    return apply


def cut(name: str) -> Damage:
    """Half a file."""

    def apply(directory: Path) -> None:
        data = (directory / name).read_bytes()
        (directory / name).write_bytes(data[: len(data) // 2])

    return apply
