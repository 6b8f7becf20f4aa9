"""What the loader of a recipe gives by itself, against what a step needs: pictures a second for each number of workers.

    python benchmarks/loader.py recipes/quickstart.yaml --step-s 0.2 --out loader.json

Batches are read, collated and thrown away, as training reads them, without a model behind them. `--step-s` is what a
step takes where the recipe is to be trained; a loader that gives less than that needs holds the training up. Cached
features are not read: pictures are, which is the harder case.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

from common import load, quiet, write_result
from torch.utils.data import DataLoader

from agevlm.training.dataset import SourceData, StageDataset
from agevlm.training.recipe import load_recipe
from agevlm.training.run import build_model, open_source, runs_of, stage_collator


def batches_per_s(data: StageDataset, collator: Any, batch_size: int, num_workers: int, num_batches: int) -> float:
    """Batches a second behind the first ones, which wait for the workers to start."""
    warmup = 1 + 2 * num_workers
    loader = DataLoader(data, batch_size=batch_size, num_workers=num_workers, collate_fn=collator)
    batches = iter(loader)
    for _ in itertools.islice(batches, warmup):
        pass
    start = time.perf_counter()
    read = sum(1 for _ in itertools.islice(batches, num_batches))
    return read / (time.perf_counter() - start)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="as of `agevlm train`")
    parser.add_argument("--stage", help="name of a stage; default: the last")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=20, help="read for each number of workers")
    parser.add_argument("--step-s", type=float, help="seconds of a step, with all its accumulated batches")
    parser.add_argument("--out", type=Path, help="where to write; benchmarks/results/loader.json if not given")
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, write the JSON."""
    args = parse_arguments()
    quiet()
    recipe = load_recipe(args.recipe, args.overrides)
    found = [stage for stage in recipe.stages if stage.name == (args.stage or recipe.stages[-1].name)]
    if not found:
        raise SystemExit(f"{args.recipe} has no stage {args.stage}")
    model, processor = build_model(recipe)
    opened = {name: open_source(settings, recipe.seed) for name, settings in recipe.data.items()}
    sources = {name: SourceData(x, runs=runs_of(x, recipe.data[name])) for name, x in opened.items()}
    length = max(args.batches + 1 + 2 * workers for workers in args.workers)
    stage = found[0].model_copy(update={"steps": length, "gradient_accumulation_steps": 1})
    data = StageDataset(stage, sources, seed=recipe.seed)
    collator = stage_collator(recipe, stage, model, processor)
    need = found[0].gradient_accumulation_steps / args.step_s if args.step_s else None
    before, rows = load(), {}
    for workers in args.workers:
        given = batches_per_s(data, collator, stage.images_per_batch, workers, args.batches)
        rows[str(workers)] = {
            "batches_per_s": given,
            "pictures_per_s": given * stage.images_per_batch,
            "over_need": given / need if need else None,
        }
        against = f"  {given / need:.2f} of what a step needs" if need else ""
        print(f"{workers} workers  {given * stage.images_per_batch:8.1f} pictures/s{against}", flush=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    del settings["out"]
    print(write_result("loader", {"settings": settings, "load_before": before, "workers": rows}, args.out))


if __name__ == "__main__":
    main()
