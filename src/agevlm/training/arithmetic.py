"""The arithmetic of training: bfloat16 under autocast where the device computes in it, else float32."""

from __future__ import annotations

import torch

from agevlm.checkpoints import choose_device, computes_in


def choose_arithmetic(name: str = "auto", device: str = "auto") -> torch.dtype:
    """The torch type that a recipe's `dtype` means on a device: "auto" is bfloat16 where it is no emulation."""
    if name == "auto":
        return torch.bfloat16 if computes_in(torch.bfloat16, choose_device(device)) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def autocast(dtype: torch.dtype, device_type: str = "cpu") -> torch.autocast:
    """What stands in it multiplies in `dtype`: bfloat16, or float32 as without it. Weights stay as they are."""
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
