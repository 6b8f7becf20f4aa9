"""Whether the weights of models fit a device: told before they are read, in place of a process that is killed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agevlm.checkpoints import choose_device, resolve_model


def check_memory(names: Sequence[str | Path], device: str = "auto") -> None:
    """ValueError where the weights of these models together take more bytes than the device has free.

    They are counted as their files are; to answer takes more. Nothing is said of models that are not on this disk yet,
    and of devices that do not tell what they have.
    """
    place = choose_device(device)
    free = free_bytes(place)
    needed = sum(weight_bytes(name) for name in names)
    if free is not None and needed > free:
        named = ", ".join(map(str, names))
        raise ValueError(
            f"the weights of {named} take {needed / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB free: "
            "choose a smaller model, or another --device"
        )


def weight_bytes(name: str | Path) -> int:
    """Bytes of the weight files of a model's directory; 0 for one that is on the hub."""
    directory = Path(resolve_model(name))
    return sum(file.stat().st_size for file in directory.glob("*.safetensors")) if directory.is_dir() else 0


def free_bytes(place: str) -> int | None:
    """Bytes that a device has free, of those that a process may take; None where that cannot be told."""
    import torch

    kind = torch.device(place).type
    if kind == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(place))[0])
    told = Path("/proc/meminfo")
    if kind != "cpu" or not told.is_file():
        return None
    lines = told.read_text(encoding="utf-8").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
