"""Training a ConvNeXt on a CPU: depthwise convolutions with a backward pass of their own, against torch's.

    python benchmarks/depthwise.py --threads 1

A step is forward and backward of the vision foundation, under bfloat16 autocast, on one batch of noise. The arms
alternate within one run, and their gradients are compared before anything is timed. The floor is the step's
floating-point operations at the speed of a large product on this machine now.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from common import begin, compare, load, machine_rates, write_result
from torch import Tensor, nn

from agevlm.training.depthwise import depthwise_layers, speed_up_depthwise
from agevlm.training.foundation import FoundationSpec, build_vision
from agevlm.training.timing import flops, seconds


def step(model: nn.Module, pixels: Tensor) -> None:
    """Forward and backward, with noise as the gradient of the features."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model(pixels).feature_maps[-1].float()
    features.backward(torch.randn(features.shape, generator=torch.Generator().manual_seed(0)))


def check_gradients(plain: nn.Module, fast: nn.Module) -> float:
    """The largest norm of a difference of depthwise kernels' gradients, over theirs; above 1 % an AssertionError."""
    worst = 0.0
    for one, other in zip(depthwise_layers(plain), depthwise_layers(fast), strict=True):
        assert one.weight.grad is not None
        assert other.weight.grad is not None
        worst = max(worst, float((one.weight.grad - other.weight.grad).norm() / one.weight.grad.norm()))
    assert worst < 0.01, worst
    return worst


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each arm")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="where to write; benchmarks/results/depthwise.json if not given")
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, write the JSON."""
    args = parse_arguments()
    settings = begin(args)
    before = load()
    spec = FoundationSpec()
    size = spec.world.image_size
    pixels = torch.randn(spec.vision.batch_size, 3, size, size).to(memory_format=torch.channels_last)
    plain = build_vision(spec)
    fast = copy.deepcopy(plain)
    speed_up_depthwise(fast)
    for model in (plain, fast):
        step(model, pixels)
    difference = check_gradients(plain, fast)
    theirs, ours = [], []
    for _ in range(args.repeats):
        theirs.append(seconds(lambda: step(plain, pixels)))
        ours.append(seconds(lambda: step(fast, pixels)))
    times = compare(theirs, ours)
    floor_ms = 1e3 * flops(lambda: step(plain, pixels)) / machine_rates(torch.bfloat16)["flops_per_s"]
    low, high = times["ratio_interval"]
    print(f"a step of {spec.vision.batch_size} pictures: torch's {times['median_a_ms']:.0f} ms, own backward ", end="")
    print(f"{times['median_b_ms']:.0f} ms, {times['ratio']:.2f} times as fast ({low:.2f} to {high:.2f})")
    print(f"floor {floor_ms:.0f} ms; kernels agree to {difference:.1%}; load before {before}, after {load()}")
    result = {"settings": settings, "load_before": before, "gradient_difference": difference, "floor_ms": floor_ms}
    print(write_result("depthwise", {**result, "step": times}, args.out))


if __name__ == "__main__":
    main()
