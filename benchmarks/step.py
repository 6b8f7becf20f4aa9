"""What a step costs beside what else there is: ours, Mllama's decoder, image tokens in front of the text, and guidance.

    python benchmarks/step.py --out step.json

All arms are text stacks of equal width on the same batch, from feature maps on: the vision model, the same for all, is
not run. They take turns in one run; a ratio is the median of the ratios within a turn. Where arms differ by hundredths,
the fastest of three runs is the time of a turn: what else runs on the machine only ever adds to it. A prefill is a
forward pass without gradients that fills a cache and gives the logits of the last token. A step is forward, loss,
backward and AdamW. All tokens are supervised, but for the row at the large vocabulary, where a quarter is.

Time is that of the clock, and counts where the machine is quiet: the loads before and after stand in the file, and the
ratios of processor time beside those of the clock, which other work moves less.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import begin, clocks, compare, load, machine_rates, write_result
from stacks import BatchShape, MllamaStack, StackShape, build_batch, build_concat, build_guidance, build_ours
from torch import Tensor

from agevlm.guidance import guidance_loss
from agevlm.training.timing import flops

GRIDS = {144: (12, 12), 576: (24, 24), 1024: (32, 32)}  # image tokens → their grid
TOY_GRIDS = {16: (4, 4), 64: (8, 8)}
LARGE_VOCABULARY, SUPERVISED_RATIO = 49_152, 0.25
TOY = {"width": 32, "intermediate_size": 48, "num_layers": 4, "cross_attention_layers": (1, 3), "vocabulary_size": 64}
GUIDANCE_WEIGHT = 0.3
NEAR_RUNS = 3  # in a turn, of arms that differ by hundredths
Work = Callable[[], Any]


def training_step(model: Any, batch: dict[str, Any], guidance: tuple[Tensor, Tensor, Tensor] | None = None) -> Work:
    """A whole step of a model on a batch, guided or not, to be called again and again."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    asked = {} if guidance is None else {"attention_rows": guidance[0]}

    def step() -> None:
        optimizer.zero_grad()
        outputs = model(**batch, **asked)
        loss = outputs.loss
        if guidance is not None:
            total, number = guidance_loss(outputs.row_weights, *guidance[1:])
            loss = loss + GUIDANCE_WEIGHT * total / number
        loss.backward()
        optimizer.step()

    return step


def prefill(model: Any, batch: dict[str, Any]) -> Work:
    """A forward pass that begins an answer."""
    inputs = {**batch, "use_cache": True, "logits_to_keep": 1}
    del inputs["labels"]

    @torch.no_grad()
    def run() -> None:
        model.eval()
        model(**inputs)
        model.train()

    return run


def take_turns(arms: dict[str, Work], turns: int, num_runs: int = 1) -> dict[str, dict[str, list[float]]]:
    """Seconds of each arm in each turn, on the clock and of the processor, the least of `num_runs`; who begins rotates.

    Each arm runs once before it is timed, as it would in a loop of its own: what ran before leaves the memory cold, and
    a rotation does not change who follows whom.
    """
    names = list(arms)
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in names} for clock in ("wall", "processor")}
    for turn in range(turns):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            arms[name]()
            runs = [clocks(arms[name]) for _ in range(num_runs)]
            for clock, found in zip(times, zip(*runs, strict=True), strict=True):
                times[clock][name].append(min(found))
    return times


def compare_with(times: dict[str, dict[str, list[float]]], arm: str, reference: str) -> dict[str, Any]:
    """Medians of an arm and its reference and the median ratio of a turn, for each clock."""
    return {clock: compare(by_arm[arm], by_arm[reference]) for clock, by_arm in times.items()}


def measure(num_tokens: int, grid: tuple[int, int], shape: StackShape, args: argparse.Namespace) -> dict[str, Any]:
    """One number of image tokens: a step and a prefill of every arm, guidance beside ours."""
    batch_shape = BatchShape(grid=grid, text_len=args.text_len)
    batch = build_batch(batch_shape, shape.vocabulary_size)
    ours, mllama, concat = build_ours(shape), MllamaStack(shape).train(), build_concat(shape)
    arms = {"ours": ours, "mllama": mllama, "concat": concat}
    steps = {name: training_step(model, batch) for name, model in arms.items()}
    steps["guided"] = training_step(ours, batch, build_guidance(batch_shape))
    prefills = {name: prefill(model, batch) for name, model in arms.items()}
    work = {name: {"step": flops(steps[name]), "prefill": flops(prefills[name])} for name in arms}
    found: dict[str, Any] = {"image_tokens": num_tokens, "flops": work}
    for kind, works in (("prefill", prefills), ("step", steps)):
        far = {name: works[name] for name in ("ours", "concat")}
        near = {name: run for name, run in works.items() if name != "concat"}
        found[kind] = {}
        for together, num_runs in ((near, NEAR_RUNS), (far, 1)):
            times = take_turns(together, args.turns, num_runs)
            found[kind] |= {name: compare_with(times, name, "ours") for name in together if name != "ours"}
    return found


def measure_large_vocabulary(
    grid: tuple[int, int], shape: StackShape, args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """A step of Mllama and of ours at a large vocabulary with a quarter of the tokens supervised."""
    batch_shape = BatchShape(grid=grid, text_len=args.text_len, supervised_ratio=SUPERVISED_RATIO)
    batch = build_batch(batch_shape, shape.vocabulary_size)
    arms = {
        "mllama": training_step(MllamaStack(shape).train(), batch),
        "ours": training_step(build_ours(shape), batch),
    }
    return compare_with(take_turns(arms, args.turns, NEAR_RUNS), "mllama", "ours")


def ratios_of(results: list[dict[str, Any]], large: dict[str, Any], clock: str) -> dict[str, Any]:
    """The ratios of a clock by arm, kind of work and number of image tokens."""

    def each(kind: str, arm: str) -> dict[str, float]:
        return {str(result["image_tokens"]): result[kind][arm][clock]["ratio"] for result in results}

    return {
        "guided_over_unguided": each("step", "guided"),
        "mllama_over_ours": {
            "prefill": each("prefill", "mllama"),
            "step": each("step", "mllama"),
            "step_49k": large[clock]["ratio"],
        },
        "concat_over_ours": {"prefill": each("prefill", "concat"), "step": each("step", "concat")},
    }


def show(result: dict[str, Any]) -> None:
    """A line for each comparison at one number of image tokens."""
    for kind in ("prefill", "step"):
        for arm, found in result[kind].items():
            wall = found["wall"]
            low, high = wall["ratio_interval"]
            print(
                f"{result['image_tokens']:6} {kind:8} {arm:8} {wall['median_a_ms']:8.0f} ms "
                f"{wall['median_b_ms']:8.0f} ms {wall['ratio']:7.3f}  {low:6.3f} to {high:6.3f}  "
                f"{found['processor']['ratio']:7.3f}",
                flush=True,
            )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--toy", action="store_true", help="tiny stacks: shows that it runs, says nothing of time")
    parser.add_argument("--out", type=Path, help="where to write; benchmarks/results/step.json if not given")
    args = parser.parse_args()
    args.text_len = 16 if args.toy else 64
    return args


def main() -> None:
    """Measure, print a table, write the JSON."""
    args = parse_arguments()
    settings = begin(args)
    before, rates = load(), machine_rates(torch.float32)
    shape = StackShape(**TOY) if args.toy else StackShape()
    grids = TOY_GRIDS if args.toy else GRIDS
    print("tokens kind     arm            its        ours   ratio    95 % interval  processor")
    results = []
    for num_tokens, grid in grids.items():
        results.append(measure(num_tokens, grid, shape, args))
        show(results[-1])
    large_shape = shape if args.toy else replace(shape, vocabulary_size=LARGE_VOCABULARY)
    large = measure_large_vocabulary(grids[min(grids)], large_shape, args)
    print(f"{'':6} step at {large_shape.vocabulary_size:,} tokens: mllama / ours {large['wall']['ratio']:.3f}")
    print(f"load before {before}, after {load()}")
    result = {"settings": settings, "load_before": before, "rates": rates, "results": results, "step_49k": large}
    result["processor_ratios"] = ratios_of(results, large, "processor")
    result["ratios"] = ratios_of(results, large, "wall")
    print(write_result("step", result, args.out))


if __name__ == "__main__":
    main()
