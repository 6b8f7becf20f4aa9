"""Depthwise convolutions with a backward pass of their own give what torch's own give."""

import pytest
import torch
from torch import nn

from agevlm.training.depthwise import depthwise_conv, speed_up_depthwise


def convolutions(side: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The same depthwise convolution as torch has it, and with the backward pass of its own."""
    torch.manual_seed(0)
    plain, fast = (nn.Conv2d(6, 6, side, padding=side // 2, groups=6) for _ in range(2))
    fast.load_state_dict(plain.state_dict())
    speed_up_depthwise(fast)
    return plain, fast


def gradients(layer: nn.Conv2d, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of pixels, kernel and bias, for a loss that weighs every cell otherwise."""
    pixels = pixels.clone().requires_grad_()
    out = layer(pixels)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    assert pixels.grad is not None and layer.weight.grad is not None and layer.bias is not None
    return [out.detach(), pixels.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("side", [1, 3, 7])
@pytest.mark.parametrize("channels_last", [False, True])
def test_same_gradients_as_torch(side: int, channels_last: bool) -> None:
    pixels = torch.randn(3, 6, 9, 12)
    pixels = pixels.to(memory_format=torch.channels_last) if channels_last else pixels
    plain, fast = convolutions(side)
    for found, wanted in zip(gradients(fast, pixels), gradients(plain, pixels), strict=True):
        torch.testing.assert_close(found, wanted)


def test_numeric_gradients() -> None:
    pixels = torch.randn(2, 3, 5, 4, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 1, 3, 3, dtype=torch.double, requires_grad=True)
    bias = torch.randn(3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(depthwise_conv, (pixels, weight, bias))
    assert torch.autograd.gradcheck(lambda p, w: depthwise_conv(p, w, None), (pixels, weight))


def test_autocast_rounds_like_torch_and_keeps_float32_gradients() -> None:
    pixels = torch.randn(3, 6, 9, 12)
    plain, fast = convolutions(7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, wanted = gradients(fast, pixels), gradients(plain, pixels)
    assert found[0].dtype == torch.bfloat16
    assert found[2].dtype == torch.float32
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0.02, atol=0.02 * float(other.abs().max()))


def test_only_what_keeps_the_size_depth_by_depth() -> None:
    others = [
        nn.Conv2d(6, 6, 3, padding=1),
        nn.Conv2d(6, 12, 3, padding=1, groups=6),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 6, 3, padding=1, stride=2, groups=6),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6),
        nn.Conv2d(6, 6, 4, padding=2, groups=6),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, padding_mode="reflect"),
    ]
    fast = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    model = nn.ModuleList([*others, fast])
    names = list(model.state_dict())
    speed_up_depthwise(model)
    assert all("forward" not in vars(layer) for layer in others)
    assert "forward" in vars(fast)
    assert list(model.state_dict()) == names
