"""Depthwise convolutions whose backward pass takes about as long as their forward pass on a CPU.

oneDNN's gradient of a depthwise kernel takes ten to thirty times as long as the convolution itself (torch 2.13), and
two thirds of a step of a small ConvNeXt. It is a convolution as well: the picture's channels, with the gradient as a
kernel of its own for each channel of each picture. Same sums, in float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Shapes: B pictures, C channels, H and W cells, K the side of the kernel (odd).


def speed_up_depthwise(model: nn.Module) -> None:
    """Let the `depthwise_layers` of a network train by `depthwise_conv`.

    Parameters stay where they are, and their names. Others are left as they are.
    """
    for layer in depthwise_layers(model):
        layer.forward = partial(depthwise_conv, weight_CK=layer.weight, bias_C=layer.bias)  # type: ignore[method-assign]


def depthwise_layers(model: nn.Module) -> list[nn.Conv2d]:
    """The convolutions with one kernel of odd side for each channel, of stride 1 and keeping height and width."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and _is_depthwise(layer)]


def depthwise_conv(pixels_BCHW: Tensor, weight_CK: Tensor, bias_C: Tensor | None) -> Tensor:
    """Convolve each channel with its own kernel (C, 1, K, K) of odd K, zeros around: (B, C, H, W)."""
    return _DepthwiseConv.apply(pixels_BCHW, weight_CK, bias_C)  # type: ignore[no-any-return,no-untyped-call]


def _is_depthwise(layer: nn.Conv2d) -> bool:
    side = layer.kernel_size[0]
    plain = layer.stride == layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    keeps_size = side % 2 == 1 and layer.kernel_size == (side, side) and layer.padding == (side // 2, side // 2)
    return layer.groups == layer.in_channels == layer.out_channels and plain and keeps_size


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx: Any, pixels_BCHW: Tensor, weight_CK: Tensor, bias_C: Tensor | None) -> Tensor:
        ctx.save_for_backward(pixels_BCHW, weight_CK)
        return F.conv2d(pixels_BCHW, weight_CK, bias_C, padding=weight_CK.shape[-1] // 2, groups=len(weight_CK))

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient_BCHW: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        pixels_BCHW, weight_CK = ctx.saved_tensors
        batch, channels, height, width = pixels_BCHW.shape
        padding = weight_CK.shape[-1] // 2
        precise = torch.promote_types(pixels_BCHW.dtype, torch.float32)  # sums over many cells
        of_pixels = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_pixels = F.conv2d(gradient_BCHW, weight_CK.flip(-1, -2), padding=padding, groups=channels)
        if ctx.needs_input_grad[1]:
            pictures = pixels_BCHW.to(precise).reshape(1, batch * channels, height, width)
            kernels = gradient_BCHW.to(precise).reshape(batch * channels, 1, height, width)
            found = F.conv2d(pictures, kernels, padding=padding, groups=batch * channels)
            of_weight = found.view(batch, channels, *weight_CK.shape[-2:]).sum(0)[:, None]
        if ctx.needs_input_grad[2]:
            of_bias = gradient_BCHW.to(precise).sum((0, 2, 3))
        return of_pixels, of_weight, of_bias
