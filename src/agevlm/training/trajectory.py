"""Along a run: what the model could do at each of its snapshots and at the end of each stage.

The questions are POPE's, on the first pictures of the run's own test world; so the last point agrees with the run's
metrics up to the smaller number of pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from agevlm.checkpoints import load_model
from agevlm.data.schema import Sample
from agevlm.evaluation.benchmarks import Settings, held_out_texts, test_samples
from agevlm.evaluation.perplexity import text_perplexity
from agevlm.evaluation.runner import evaluate
from agevlm.files import write_beside
from agevlm.training.recipe import Recipe, load_recipe
from agevlm.training.run import Run
from agevlm.training.trainer import read_log

DEFAULT_NUM_IMAGES = 100
KINDS = ("pope.random", "pope.adversarial")
FILE = "trajectory.json"

Progress = Callable[[int, int], None]  # points measured, points in all


def trajectory(
    run: str | Path, *, num_images: int = DEFAULT_NUM_IMAGES, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Measure a finished run at every model that it kept, write `run`/trajectory.json, and give its content.

    A point has `stage`, `step` and `seconds` (of training, over all stages), `ends_stage`, and `metrics` named as in
    metrics.json: POPE random and adversarial, pointing, text perplexity. A directory that is no finished run, or whose
    recipe has no evaluation, is a ValueError.
    """
    run = Path(run)
    if not (run / "stages.json").exists() or not (run / "model" / "config.json").exists():
        raise ValueError(f"{run} is not the directory of a finished run")
    recipe = load_recipe(run / "recipe.yaml")
    if recipe.evaluation is None:
        raise ValueError(f"{run / 'recipe.yaml'} has no evaluation: there are no questions to ask along the run")
    settings = Settings(
        seed=recipe.evaluation.seed,
        num_images=num_images,
        split=recipe.evaluation.split,
        batch_size=recipe.evaluation.batch_size,
        allow_outside=recipe.evaluation.allow_outside,
    )
    benchmark = recipe.evaluation.benchmark
    samples = [_pope_only(sample) for sample in test_samples(run / "model", benchmark, settings)]
    _, processor = load_model(run / "model")
    texts = held_out_texts(run / "model", processor, benchmark, settings)
    kept = list(_kept_models(recipe, run))
    points = []
    for number, (directory, point) in enumerate(kept, 1):
        model, processor = load_model(directory)
        found = evaluate(model, processor, samples, batch_size=settings.batch_size)
        perplexity = text_perplexity(model, processor.tokenizer, texts)
        points.append({**point, "metrics": {**found.metrics, "text_perplexity": perplexity}})
        if progress:
            progress(number, len(kept))
    with write_beside(run / FILE) as beside:
        beside.write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
    return points


def _pope_only(sample: Sample) -> Sample:
    return replace(sample, conversations=tuple(c for c in sample.conversations if c.kind in KINDS))


def _kept_models(recipe: Recipe, run: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every model that a run kept, in order, with where in the training it stands."""
    layout = Run(recipe, run, Console(stderr=True))
    log = {(line["stage_index"], line["step"]): line["time_s"] for line in read_log(run / "log.jsonl")}
    steps_before, seconds_before = 0, 0.0
    for index, stage in enumerate(recipe.stages):
        for step in range(1, stage.steps + 1):
            ends_stage = step == stage.steps
            directory = layout.stage_directory(index) if ends_stage else layout.snapshot_directory(index, step)
            if directory.exists():
                seconds = round(seconds_before + log[index, step], 3)
                place = {"stage": stage.name, "step": steps_before + step, "seconds": seconds, "ends_stage": ends_stage}
                yield directory, place
        steps_before += stage.steps
        seconds_before += log[index, stage.steps]
