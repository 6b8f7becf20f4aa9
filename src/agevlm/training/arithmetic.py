"""The arithmetic of training: bfloat16 under autocast where the device computes in it, else float32.

What trains is held in float32 either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from agevlm.checkpoints import choose_device, computes_in


def choose_arithmetic(name: str = "auto", device: str = "auto") -> torch.dtype:
    """The torch type that a recipe's `dtype` means on a device: "auto" is bfloat16 where it is no emulation."""
    if name == "auto":
        return torch.bfloat16 if computes_in(torch.bfloat16, choose_device(device)) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def autocast(dtype: torch.dtype, device_type: str = "cpu") -> torch.autocast:
    """What stands in it multiplies in `dtype`: bfloat16, or float32 as without it. Weights stay as they are."""
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


@contextmanager
def frozen_in_bfloat16(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Hold the frozen linear layers of a model in bfloat16 for a while, those that lose nothing by it.

    That is what came in bfloat16, as most language models do. Under autocast in `dtype` they multiply in bfloat16
    anyway: a step stays the same to the last bit, in half the memory and without copies. What trains, norms and
    embeddings stay in float32, and so does everything where `dtype` is. Afterwards all is float32 again.
    """
    narrowed = narrow(model, dtype)
    try:
        yield
    finally:
        for parameter in narrowed:
            parameter.data = parameter.data.float()


def narrow(model: nn.Module, dtype: torch.dtype) -> list[nn.Parameter]:
    """Bring what `frozen_in_bfloat16` says into bfloat16, for good, and give it."""
    narrowed = _without_loss(model) if dtype == torch.bfloat16 else []
    for parameter in narrowed:
        parameter.data = parameter.data.bfloat16()
    return narrowed


def frozen_linear(model: nn.Module) -> list[nn.Parameter]:
    """Frozen parameters of linear layers alone: not of a head that shares its weight with the embeddings."""
    linear, other = set[nn.Parameter](), set[nn.Parameter]()
    for module in model.modules():
        (linear if isinstance(module, nn.Linear) else other).update(module.parameters(recurse=False))
    return [parameter for parameter in linear - other if not parameter.requires_grad]


def _without_loss(model: nn.Module) -> list[nn.Parameter]:
    """Of these, those whose every value is one of bfloat16."""
    return [parameter for parameter in frozen_linear(model) if torch.equal(parameter, parameter.bfloat16().float())]
