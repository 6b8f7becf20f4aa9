"""What training reaches on a GPU at the shape of Llama-3.2-1B: steps a second, share of the peak, cost of guidance.

    python benchmarks/gpu.py --out gpu.json

Steps are the trainer's own, of the grounding stage in bfloat16 with cached features of 1024 image tokens: guided and
unguided ones alternate. The share of the peak is the floating-point operations of an unguided step's products, forward
and backward, nothing computed twice, over what the GPU can do in that time: by its maker's figure, and by a large
product measured in the same run. A row for each way that a recipe may ask for. It is meant for less than eight minutes
on an H100 or H200; without a GPU only `--toy` makes sense.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import compare, load, quiet, write_result
from full_size import SHAPES, STAGE, TOY, build
from stacks import BatchShape, StackShape, build_batch, build_guidance

from agevlm.training.compiled import compile_layers
from agevlm.training.stages import freeze_for_stage
from agevlm.training.timing import flops, prepared, seconds, step_times

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}  # dense products in bfloat16, as makers say
GUIDANCE_KEYS = ("attention_rows", "guidance_shares", "guidance_present")
BATCH = BatchShape(
    num_pictures=16, questions_per_picture=4, text_len=128, grid=(32, 32), supervised_ratio=0.25, num_asked=12
)
TOY_BATCH = BatchShape(num_pictures=2, questions_per_picture=2, text_len=16, grid=(4, 4), supervised_ratio=0.25)
WAYS = ("plain", "checkpointing", "flash_attention_2", "compiled")  # the last one changes the model


def make_batch(shape: BatchShape, vocabulary_size: int) -> dict[str, Any]:
    """A guided batch as the trainer takes it."""
    asked, shares, present = build_guidance(shape)
    batch = build_batch(shape, vocabulary_size)
    del batch["use_cache"]
    return batch | {"attention_rows": asked, "guidance_shares": shares, "guidance_present": present}


def unguided(batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch with nothing asked of its attention."""
    return {name: value for name, value in batch.items() if name not in GUIDANCE_KEYS}


def work_of(model: Any, batch: dict[str, Any], device: str) -> int:
    """Floating-point operations of the products of a step."""
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in unguided(batch).items()}

    def run() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(**inputs, use_cache=False).loss
        loss.backward()

    found = flops(run)
    model.zero_grad()
    return found


def measured_peak(device: str, size: int) -> float:
    """Operations a second of a large product in bfloat16, now."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(10))


def measure(way: str, model: Any, batch: dict[str, Any], pairs: int, warmup: int) -> dict[str, Any]:
    """Seconds of guided and unguided steps of one way."""
    stage = STAGE.model_copy(update={"gradient_checkpointing": way == "checkpointing"})
    model.set_attn_implementation("flash_attention_2" if way == "flash_attention_2" else "sdpa")
    if way == "compiled":
        compile_layers(model)
    arms = [batch, unguided(batch)]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with prepared(model, stage):
        steps = step_times(model, stage, arms * (pairs + warmup), torch.bfloat16)[2 * warmup - 1 :]
    guided, bare = ([wall for wall, _ in steps[start::2]] for start in (0, 1))
    times = compare(guided, bare)
    return {
        "guided_s": median(guided),
        "unguided_s": median(bare),
        "guided_over_unguided": times["ratio"],
        "ratio_interval": times["ratio_interval"],
        "steps_per_s": 1 / median(guided),
        "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


def ways(device: str) -> list[str]:
    """The ways that this machine has."""
    from transformers.utils import is_flash_attn_2_available

    absent = set() if device == "cuda" and is_flash_attn_2_available() else {"flash_attention_2"}
    return [way for way in WAYS if way not in absent]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="default: all that the machine has")
    parser.add_argument("--pairs", type=int, default=20, help="timed steps of each kind")
    parser.add_argument("--warmup", type=int, default=5, help="pairs left out at the start")
    parser.add_argument("--peak", type=float, help="operations a second of the GPU; default: by its name")
    parser.add_argument("--toy", action="store_true", help="a tiny shape: shows that it runs, says nothing of time")
    parser.add_argument("--out", type=Path, help="where to write; benchmarks/results/gpu.json if not given")
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, write the JSON."""
    args = parse_arguments()
    quiet()
    start, device = time.perf_counter(), "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    shape: StackShape = TOY if args.toy else SHAPES["1b"]
    batch_shape = TOY_BATCH if args.toy else BATCH
    batch = make_batch(batch_shape, shape.vocabulary_size)
    with torch.device(device):
        model = build(replace(shape), torch.bfloat16)
    freeze_for_stage(model, STAGE)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    work = work_of(model.train(), batch, device)
    peak = args.peak or next((value for key, value in PEAKS.items() if key in name), None)
    product = measured_peak(device, 256 if args.toy else 8192)
    rows: dict[str, Any] = {}
    for way in args.ways or ways(device):
        rows[way] = row = measure(way, model, batch, args.pairs, args.warmup)
        row["share_of_peak"] = work / row["unguided_s"] / peak if peak else None
        row["share_of_product"] = work / row["unguided_s"] / product
        print(
            f"{way:18} {row['steps_per_s']:7.2f} steps/s  {row['share_of_product']:.2f} of a product's speed  guided "
            f"{row['guided_over_unguided']:.3f} ({time.perf_counter() - start:.0f} s so far)",
            flush=True,
        )
    facts = {"gpu": name, "peak_flops_per_s": peak, "product_flops_per_s": product, "step_flops": work}
    settings = {key: value for key, value in vars(args).items() if key != "out"} | {"load_before": load()}
    print(write_result("gpu", {"settings": settings, **facts, "rows": rows}, args.out))


if __name__ == "__main__":
    main()
