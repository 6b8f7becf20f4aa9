"""Muon for the matrices of a network, AdamW for all else: one optimiser, so that resuming and schedules know one.

A matrix moves by its momentum made orthogonal (Jordan 2024, https://kellerjordan.github.io/posts/muon), scaled so that
learning rates of AdamW mean the same (Liu et al. 2025, arXiv 2502.16982). torch's own Muon multiplies in bfloat16,
which many CPUs emulate, and one matrix at a time; here matrices of one shape go together, in the training's arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration: steep at 0, within 0.7 to 1.2 at the end
NUM_ITERATIONS = 5
RMS_OF_ADAMW = 0.2  # of an update: what that of AdamW usually is
EPS = 1e-7

# Letters: S matrices of one shape, M rows, N columns.


class Muon(torch.optim.AdamW):
    """Groups of parameters with `muon: True` hold matrices and move by Muon, the others by fused AdamW.

    `arithmetic` is the type in which matrices are made orthogonal, float32 or bfloat16.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        arithmetic: torch.dtype = torch.float32,
        momentum: float = 0.95,
    ) -> None:
        super().__init__([{"muon": False, **group} for group in groups], lr=lr, betas=betas, fused=True)
        self.arithmetic, self.momentum = arithmetic, momentum
        for group in self.param_groups:
            if group["muon"] and (wrong := [tuple(p.shape) for p in group["params"] if p.ndim != 2]):
                raise ValueError(f"Muon is for matrices, got a parameter of the shape {wrong[0]}")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update. Gradients of the matrices are used up: they are None afterwards."""
        if closure is not None:
            raise ValueError("this optimiser takes no closure")
        for group in self.param_groups:
            if group["muon"]:
                self._move(group)
        return super().step()  # AdamW passes by what has no gradient

    def _move(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                wanted = self._wanted(parameter, parameter.grad)
                by_shape.setdefault(wanted.shape, []).append((parameter, wanted))
                parameter.grad = None
        for shape, pairs in by_shape.items():
            directions = orthogonal(torch.stack([wanted for _, wanted in pairs]), self.arithmetic)
            for (parameter, _), direction in zip(pairs, directions, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"] * RMS_OF_ADAMW * max(shape) ** 0.5)

    def _wanted(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Nesterov's momentum, brought up to date."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)  # as AdamW has it, which reads it when it resumes
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        state["momentum"].lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(state["momentum"], self.momentum)


def orthogonal(matrices_SMN: Tensor, arithmetic: torch.dtype = torch.float32) -> Tensor:
    """Matrices with the same singular vectors, and singular values near 1, in float32; of zeros, zeros."""
    if matrices_SMN.shape[1] > matrices_SMN.shape[2]:  # the iteration squares the shorter side
        return orthogonal(matrices_SMN.mT, arithmetic).mT
    linear, cubic, quintic = COEFFICIENTS
    found = matrices_SMN.to(arithmetic)
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(NUM_ITERATIONS):
        square_SMM = found @ found.mT
        square_SMM = torch.baddbmm(square_SMM, square_SMM, square_SMM, beta=cubic, alpha=quintic)
        found = torch.baddbmm(found, square_SMM, found, beta=linear)
    return found.float()
