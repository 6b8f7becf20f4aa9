"""Ways to answer better without training: what each gains and what it costs, of any vision-language models.

    python benchmarks/ways.py tiny runs/llava --out results/ways.json

Every way asks the same questions, POPE's adversarial ones about drawn scenes; the masks are the true ones, so that
`mask` is the best that a teacher could do. Gains are paired over pictures. Cost is time of the processor, with one
thread, and passes: rows that the network read for each question, the image memories of our models aside.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import load, quiet, write_result

from agevlm.checkpoints import load_vlm
from agevlm.data.schema import Sample
from agevlm.diagnosis.asking import presence_samples
from agevlm.evaluation.benchmarks import Settings, test_samples
from agevlm.evaluation.run_figures import figure_of
from agevlm.evaluation.runner import evaluate
from agevlm.evaluation.statistics import difference, estimate
from agevlm.vlms import WAYS

KIND = "pope.adversarial"
FIGURES = ("accuracy", "false_yes_ratio", "yes_ratio", "unparsed_ratio", "auroc")


def questions(num_images: int, seed: int) -> list[Sample]:
    """Pictures with their adversarial questions."""
    samples = presence_samples(test_samples("tiny", "scenes", Settings(seed=seed, num_images=num_images)))
    return [replace(s, conversations=tuple(c for c in s.conversations if c.kind == KIND)) for s in samples]


def asked(model: Any, processor: Any, samples: list[Sample], way: str) -> tuple[list[Any], dict[str, float]]:
    """The records of all answers, and what they cost."""
    rows = 0

    def count(_module: Any, args: Any, kwargs: Any) -> None:
        nonlocal rows
        rows += len(kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"])

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    started = time.process_time()
    found = evaluate(model, processor, samples, answering=way)
    took = time.process_time() - started
    handle.remove()
    records = list(found.records())
    return records, {"s_per_question": took / len(records), "passes_per_question": rows / len(records)}


def measure(name: str, samples: list[Sample], repeats: int) -> dict[str, Any]:
    """All ways of one model; the fastest of several runs counts."""
    model, processor = load_vlm(name, "cpu", "float32")
    for way in WAYS:
        asked(model, processor, samples[:2], way)  # what is done once is done
    runs = {way: [asked(model, processor, samples, way) for _ in range(repeats)] for way in WAYS}
    best = {way: min((cost for _, cost in of), key=lambda cost: cost["s_per_question"]) for way, of in runs.items()}
    of_way = {way: {f: figure_of(of[0][0], f"{KIND}.{f}") for f in FIGURES} for way, of in runs.items()}
    found = {}
    for way, figures in of_way.items():
        gain = difference({0: figures["accuracy"]}, {0: of_way["plain"]["accuracy"]}).record()
        found[way] = {
            **{figure: estimate({0: known}, bounds=(0.0, 1.0)).record() for figure, known in figures.items()},
            "gain": gain,
            **best[way],
            "time_ratio": best[way]["s_per_question"] / best["plain"]["s_per_question"],
        }
        print(f"{name} {way}: {figures['accuracy'].value:.3f}, {found[way]['time_ratio']:.2f} times", flush=True)
    return {"architecture": type(model).__name__, "ways": found}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="names, directories or hub ids")
    parser.add_argument("--out", type=Path, required=True, help="the file of all figures (.json)")
    parser.add_argument("--num-images", type=int, default=70, help="some four questions about each")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Measure and write."""
    args = parse_arguments()
    torch.set_num_threads(1)
    quiet()
    samples = questions(args.num_images, args.seed)
    before = load()
    models = {Path(name).name: measure(name, samples, args.repeats) for name in args.models}
    settings = {"num_questions": sum(len(s.conversations) for s in samples), "num_images": len(samples)}
    result = {"kind": KIND, **settings, "seed": args.seed, "models": models, "load_before": before}
    print(write_result("ways", result, args.out))


if __name__ == "__main__":
    main()
