"""Seeing pictures on a CPU: large ones one at a time, as `vision_features` does, against all of them in one pass.

    python benchmarks/vision.py --threads 1

Pictures of 384 pixels, random weights, no gradients. The arms alternate within one run, and their feature maps are
compared before anything is timed. The floor is the operations at the speed of a large product on this machine now.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import begin, compare, load, machine_rates, write_result
from transformers import ConvNextBackbone, ConvNextConfig

from agevlm.modeling.efficientnet_lite import EfficientNetLiteBackbone, EfficientNetLiteConfig
from agevlm.modeling.vision import joined_features
from agevlm.training.timing import flops, seconds


def backbones() -> dict[str, Any]:
    """What is timed, in evaluation mode."""
    sizes: dict[str, Any] = {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]}
    return {
        "efficientnet-lite0": EfficientNetLiteBackbone(EfficientNetLiteConfig()).eval(),
        "convnext-tiny": ConvNextBackbone(ConvNextConfig(**sizes, out_features=["stage4"])).eval(),
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[4, 16], help="how many come at once")
    parser.add_argument("--side", type=int, default=384, help="of a picture, in pixels")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes of each arm")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="where to write; benchmarks/results/vision.json if not given")
    return parser.parse_args()


@torch.inference_mode()
def measure(backbone: Any, number: int, args: argparse.Namespace) -> dict[str, Any]:
    """Both ways to see `number` pictures."""
    pixels = torch.randn(number, 3, args.side, args.side, generator=torch.Generator().manual_seed(0))

    def see(at_once: bool) -> torch.Tensor:
        return joined_features(backbone, pixels, "coarse", at_once=at_once)

    torch.testing.assert_close(see(True), see(False), rtol=1e-3, atol=1e-4)
    once, apart = [], []
    for _ in range(args.repeats):
        once.append(seconds(lambda: see(True)))
        apart.append(seconds(lambda: see(False)))
    return {**compare(once, apart), "flops_a_picture": flops(lambda: backbone(pixels[:1]))}


def main() -> None:
    """Measure, print a table, write the JSON."""
    args = parse_arguments()
    settings, before = begin(args), load()
    rate = machine_rates(torch.float32)["flops_per_s"]
    results: dict[str, dict[str, Any]] = {}
    for name, backbone in backbones().items():
        for number in args.pictures:
            found = results.setdefault(name, {})[str(number)] = measure(backbone, number, args)
            once, single = (found[f"median_{arm}_ms"] / number for arm in "ab")
            low, high = found["ratio_interval"]
            print(
                f"{name}, {number} at once: {once:.0f} ms a picture, one at a time {single:.0f} ms, "
                f"{found['ratio']:.2f} times as fast ({low:.2f} to {high:.2f}), "
                f"floor {1e3 * found['flops_a_picture'] / rate:.0f} ms"
            )
    print(write_result("vision", {"settings": settings, "load_before": before, "results": results}, args.out))


if __name__ == "__main__":
    main()
