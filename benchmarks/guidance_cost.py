"""What attention guidance costs: the time of a training step with it and without it, on the same batch, in one run.

    python benchmarks/guidance_cost.py --threads 1

Both arms go through the same StageTrainer, model and optimiser. Steps alternate: a batch with guidance (attention of
the asked rows, loss, backward), then the same batch without. Batches are collated beforehand, as worker processes do it
in training; what collation costs is timed apart. The target is a ratio of at most 1.05.

Wall-clock time counts where the machine is quiet. Beside other work only the processor time of this process tells, so
both are given.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import begin, build_network, compare, load, machine_rates, write_result
from torch.utils.flop_counter import FlopCounterMode

from agevlm.data.collate import Collator
from agevlm.data.scenes import WorldSpec
from agevlm.training.dataset import SourceData, StageDataset
from agevlm.training.recipe import GuidanceRecipe, StageRecipe
from agevlm.training.run import image_grid
from agevlm.training.sources import SceneSource
from agevlm.training.stages import freeze_for_stage
from agevlm.training.timing import draw_batches, seconds, step_times, with_features
from agevlm.training.trainer import EXTRA_INPUTS

TARGET_RATIO = 1.05
TRAINABLE = {
    "ground": ("projector", "cross_attention"),
    "instruct": ("projector", "cross_attention", "language_model"),
}
GUIDANCE_KEYS = ("attention_rows", "guidance_present", "guidance_shares")


def without_guidance(batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch, with nothing asked of its attention."""
    return {name: value for name, value in batch.items() if name not in GUIDANCE_KEYS}


def collate_batches(
    model: Any, processor: Any, stage: StageRecipe, num_batches: int, pixels: bool
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Batches of drawn scenes as training sees them, and the seconds of collating each, guided and unguided."""
    source = SceneSource(WorldSpec(), 0, num_batches * stage.images_per_batch)
    data = StageDataset(stage, {"scenes": SourceData(source)}, seed=0)
    grid = image_grid(model, processor)
    guided, bare = Collator(processor, grid, guided=True), Collator(processor, grid)
    batches, times = [], {"guided": [], "unguided": []}
    for items in draw_batches(data, num_batches):
        if not pixels:
            items = with_features(items, model, processor)
        times["unguided"].append(seconds(lambda items=items: bare(items)))
        times["guided"].append(seconds(lambda items=items: batches.append(guided(items))))
    return batches, times


def time_steps(
    model: Any, stage: StageRecipe, batches: list[dict[str, Any]], pairs: int, warmup: int, dtype: torch.dtype
) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of each guided and each unguided step, warm-up left out: on the clock, and of the processor."""
    freeze_for_stage(model, stage)
    rounds = [batches[number % len(batches)] for number in range(pairs + warmup)]
    steps = step_times(model, stage, [arm for batch in rounds for arm in (batch, without_guidance(batch))], dtype)
    clocks = zip(("wall", "processor"), zip(*steps[2 * warmup - 1 :], strict=True), strict=True)
    return {name: (list(times[0::2]), list(times[1::2])) for name, times in clocks}


def count_work(model: Any, batch: dict[str, Any]) -> dict[str, float]:
    """Floating-point operations of one step forward and backward, of its cross-attention, and of guidance on top."""
    config = model.config
    inputs = {name: value for name, value in without_guidance(batch).items() if name not in EXTRA_INPUTS}
    with FlopCounterMode(display=False) as counter:
        model(**inputs).loss.backward()
    model.zero_grad()
    rows, length = batch["input_ids"].shape
    asked, layers = batch["attention_rows"].shape[1], len(config.cross_attention_layers)
    tokens = batch["guidance_shares"].shape[-1]
    heads, width = config.cross_attention_heads, config.cross_attention_head_dim
    attention = 2 * 2 * rows * heads * length * (tokens + 1) * width  # scores and weighted values
    projections = 2 * 2 * rows * length * config.text_config.hidden_size * heads * width  # queries and output
    weights = layers * rows * heads * asked * (tokens + 1)  # what guidance looks at; the eager kernel has made them
    scores = 0 if config._attn_implementation == "eager" else 2 * weights * width
    return {
        "text_rows": rows,
        "text_tokens_per_row": length,
        "asked_tokens_per_row": asked,
        "step_flops": float(counter.get_total_flops()),
        "cross_attention_flops": 3.0 * layers * (attention + projections),  # backward is twice forward
        "guidance_flops": 3.0 * scores,
        "guidance_bytes": 6 * 4.0 * weights,  # in float32: taken, averaged, compared, and all of it back
    }


def measure(stage_name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One stage: times, ratio, and the floor of guidance beside them."""
    model, processor = build_network(args.attention)
    stage = StageRecipe(
        name=stage_name,
        trainable=TRAINABLE[stage_name],
        guidance=GuidanceRecipe(loss=args.loss, weight=0.3),
        steps=args.batches,
        learning_rate=1e-4,
    )
    freeze_for_stage(model, stage)
    batches, collation = collate_batches(model, processor, stage, args.batches, args.pixels)
    work = count_work(model, batches[0])
    dtype = getattr(torch, args.dtype)
    times = time_steps(model, stage, batches, args.pairs, args.warmup, dtype)
    compared = {name: compare(*arms) for name, arms in times.items()}
    rates = machine_rates(dtype)
    floor_s = max(work["guidance_flops"] / rates["flops_per_s"], work["guidance_bytes"] / rates["bytes_per_s"])
    return {
        "stage": stage_name,
        **{name: _named(times) for name, times in compared.items()},
        "within_target": {name: bool(times["ratio"] <= TARGET_RATIO) for name, times in compared.items()},
        "guidance_floor_ms": 1e3 * floor_s,
        "ratio_floor": 1 + 1e3 * floor_s / compared["processor"]["median_b_ms"],
        "work": work,
        "rates": rates,
        "collation_ms": {name: 1e3 * sorted(t)[len(t) // 2] for name, t in collation.items()},
    }


def _named(times: dict[str, Any]) -> dict[str, Any]:
    """What `compare` gives, with the arms by their names."""
    names = {"median_a_ms": "guided_ms", "median_b_ms": "unguided_ms"}
    return {names.get(name, name): value for name, value in times.items()}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=TRAINABLE, default=list(TRAINABLE))
    parser.add_argument("--loss", default="kl", help="kl, mass or bce_dice")
    parser.add_argument("--pairs", type=int, default=40, help="timed steps of each arm")
    parser.add_argument("--warmup", type=int, default=4, help="pairs left out at the start")
    parser.add_argument("--batches", type=int, default=8, help="different batches, gone through in turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--attention", default="eager", choices=("eager", "sdpa"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--pixels", action="store_true", help="run the vision model in every step, as without a cache")
    parser.add_argument("--out", type=Path, help="where to write; benchmarks/results/guidance_cost.json if not given")
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, write the JSON."""
    args = parse_arguments()
    settings = begin(args)
    before = load()
    results = [measure(stage, args) for stage in args.stages]
    print(f"{'stage':10} {'time':10} {'guided':>9} {'unguided':>9} {'ratio':>7}  {'95 % interval':15} {'floor':>7}")
    for result in results:
        for clock in ("wall", "processor"):
            times = result[clock]
            low, high = times["ratio_interval"]
            print(
                f"{result['stage']:10} {clock:10} {times['guided_ms']:6.1f} ms {times['unguided_ms']:6.1f} ms "
                f"{times['ratio']:7.3f}  {low:.3f} to {high:.3f}  {result['ratio_floor']:7.4f}"
            )
        work = result["work"]
        print(
            f"{'':10} step {work['step_flops'] / 1e9:.2f} GFLOP, its cross-attention "
            f"{work['cross_attention_flops'] / 1e9:.2f}, guidance on top {work['guidance_flops'] / 1e9:.3f} "
            f"and {work['guidance_bytes'] / 1e6:.1f} MB"
        )
    print(f"target: at most {TARGET_RATIO}; load before {before}, after {load()}")
    print(write_result("guidance_cost", {"settings": settings, "load_before": before, "results": results}, args.out))


if __name__ == "__main__":
    main()
