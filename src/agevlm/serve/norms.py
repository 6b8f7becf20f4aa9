"""Root-mean-square norms by one call of torch, where transformers writes six: a tenth of a small model's step."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fuse_norms(model: nn.Module) -> int:
    """Let the norms of a model in float32 be computed by `F.rms_norm`; how many were found.

    Only those that give the same on a trial: some multiply by one more than their weight.
    """
    found = 0
    for module in model.modules():
        weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if isinstance(weight, Tensor) and weight.dtype == torch.float32 and isinstance(epsilon, float):
            fused = partial(F.rms_norm, normalized_shape=weight.shape, weight=weight, eps=epsilon)
            if _alike(module, fused, weight):
                module.forward = fused
                found += 1
    return found


@torch.inference_mode()
def _alike(module: nn.Module, fused: partial[Tensor], weight: Tensor) -> bool:
    trial = torch.linspace(-3, 3, 2 * weight.numel(), device=weight.device).view(2, -1)
    return bool(torch.allclose(module(trial), fused(trial), rtol=1e-5, atol=1e-6))
