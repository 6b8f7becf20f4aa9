"""What it saves to compute logits where tokens are supervised: a step and a reading of captions, against all logits.

    python benchmarks/loss.py --threads 1

A step is forward, loss, backward and update of everything that trains, here all but the vision model; a reading is the
log-probability of the same labels, without gradients. Before: the logits of all tokens, and transformers' loss of them.
After: `loss` and `label_log_probs` of a forward pass with labels. Arms alternate within one run, on the same model and
batch, a quarter of whose tokens are supervised; their losses are compared before anything is timed. Memory is what is
allocated at most beyond what lies there before, by a profiler. The floor is the work that is left at the speed that a
large product has on this machine now. The table gives the processor time of this process, which tells beside other work
too; the JSON has that of the clock as well.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import begin, clocks, compare, load, machine_rates, write_result
from stacks import BatchShape, StackShape, build_batch, build_ours
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from agevlm.training.arithmetic import autocast
from agevlm.training.timing import flops

BATCH = BatchShape(num_pictures=2, questions_per_picture=2, supervised_ratio=0.25)


def logits_of(model: Any, batch: dict[str, Any]) -> Tensor:
    """The logits of all tokens."""
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def loss_before(model: Any, batch: dict[str, Any]) -> Tensor:
    """transformers' loss of the logits of all tokens."""
    logits = logits_of(model, batch)
    return model.loss_function(logits=logits, labels=batch["labels"], vocab_size=logits.shape[-1])


def loss_after(model: Any, batch: dict[str, Any]) -> Tensor:
    """The loss of the logits at supervised tokens."""
    return model(**batch).loss


@torch.no_grad()
def read_before(model: Any, batch: dict[str, Any]) -> Tensor:
    """Log-probabilities of the labels, out of those of all tokens."""
    log_probs = logits_of(model, batch)[:, :-1].float().log_softmax(-1)
    labels = batch["labels"][:, 1:]
    return log_probs.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1) * (labels != -100)


@torch.no_grad()
def read_after(model: Any, batch: dict[str, Any]) -> Tensor:
    """Log-probabilities of the labels alone."""
    return model(**batch).label_log_probs[:, 1:]


def peak_bytes(work: Callable[[], Any]) -> int:
    """What a piece of work allocates at most beyond what lies there before, on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    found = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(found, key=lambda event: event.start_ns())])
    return int(held.cumsum(0).max())


def measure(vocabulary_size: int, args: argparse.Namespace) -> dict[str, Any]:
    """One size of vocabulary: times and peak memory of both arms, of a step and of a reading."""
    shape = StackShape(vocabulary_size=vocabulary_size, tied=True)
    model, batch = build_ours(shape), build_batch(BATCH, vocabulary_size)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    dtype = getattr(torch, args.dtype)

    def step(loss: Callable[[Any, dict[str, Any]], Tensor]) -> float:
        optimizer.zero_grad()
        with autocast(dtype):
            found = loss(model, batch)
        found.backward()
        optimizer.step()
        return float(found.detach())

    def read(arm: Callable[[Any, dict[str, Any]], Tensor]) -> Tensor:
        with autocast(dtype):
            return arm(model, batch)

    difference = float((read(read_before) - read(read_after)).abs().max())
    assert difference < (1e-4 if dtype == torch.float32 else 0.1), difference
    works = {
        "step": (lambda: step(loss_before), lambda: step(loss_after)),
        "reading": (lambda: read(read_before), lambda: read(read_after)),
    }
    result: dict[str, Any] = {"vocabulary_size": vocabulary_size, "largest_difference": difference}
    for name, arms in works.items():
        for arm in arms:
            arm()
        turns = [[clocks(arm) for arm in arms] for _ in range(args.turns)]
        result[name] = {
            clock: _named(compare(*([turn[arm][number] for turn in turns] for arm in (0, 1))))
            for number, clock in enumerate(("wall", "processor"))
        }
        result[name] |= dict(zip(("before_bytes", "after_bytes"), map(peak_bytes, arms), strict=True))
        result[name]["floor_ms"] = 1e3 * flops(arms[1]) / machine_rates(dtype)["flops_per_s"]
    return result


def _named(times: dict[str, Any]) -> dict[str, Any]:
    """What `compare` gives, with the arms by their names."""
    names = {"median_a_ms": "before_ms", "median_b_ms": "after_ms"}
    return {names.get(name, name): value for name, value in times.items()}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[8192, 49152, 128256])
    parser.add_argument("--turns", type=int, default=5, help="timed pairs of each kind")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="float32", choices=("bfloat16", "float32"))
    parser.add_argument("--out", type=Path, help="where to write; benchmarks/results/loss.json if not given")
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, write the JSON."""
    args = parse_arguments()
    settings = begin(args)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler says when it starts and stops
    before = load()
    print(f"vocabulary {'':8} {'before':>9} {'after':>9} {'ratio':>6}  95 % interval  {'floor':>9}  peak memory")
    results = []
    for size in args.vocabularies:
        result = measure(size, args)
        results.append(result)
        for name in ("step", "reading"):
            work, times = result[name], result[name]["processor"]
            low, high = times["ratio_interval"]
            print(
                f"{result['vocabulary_size']:10,} {name:8} {times['before_ms']:6.0f} ms {times['after_ms']:6.0f} ms "
                f"{times['ratio']:6.2f}  {low:.2f} to {high:.2f}   {work['floor_ms']:6.0f} ms  "
                f"{work['before_bytes'] / 1e6:5.0f} → {work['after_bytes'] / 1e6:.0f} MB"
            )
    print(f"load before {before}, after {load()}")
    print(write_result("loss", {"settings": settings, "load_before": before, "results": results}, args.out))


if __name__ == "__main__":
    main()
