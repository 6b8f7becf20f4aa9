"""The front door: what most people want of this package, by name. Nothing is computed here.

Every function calls the room that does the work, and loads it when it is called. Whoever needs more finds there the
same functions with more settings: `analysis.attention`, `evaluation.benchmarks`, `training.run`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agevlm.checkpoints import load_vlm as load_model

if TYPE_CHECKING:
    from PIL import Image

    from agevlm.analysis.attention import Look
    from agevlm.diagnosis.run import Diagnosis

__all__ = ["diagnose", "evaluate", "load_model", "look", "train"]

Chosen = TypeVar("Chosen")

Model = str | Path | tuple[Any, Any]  # a name, a directory, a hub id; or the model and the processor of `load_model`


def look(
    model: Model,
    image: str | Path | bytes | Image.Image,
    question: str,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    **options: Any,
) -> Look:
    """Ask any vision-language model about a picture, and see where it looks at each object word it hears and says.

    `model` is `tiny`, a directory, a hub id, or the pair that `load_model` gave, which spares loading it again. `image`
    is a file or a picture. With `out` the maps are drawn over the picture into that PNG file. `device` and `dtype` are
    those of `load_model`, for a model that is named. `options` are those of `agevlm.analysis.attention.look`:
    `layers`, `heads`, `vocabulary`, `max_new_tokens`, `before`.

    The result has `answer` and `words`; each word its `map` (h, w), which sums with its `null_mass` to 1. Where some
    image tokens stand for no pixels (ends of rows of LLaVA-NeXT and OneVision, padding and class tokens of Llama 3.2
    Vision), the sum is less by what lies on them. Where the attention of a model cannot be read, maps are made by
    occlusion, and `note` says so.
    Raises ValueError for a model, a picture or a question that cannot be used.
    """
    from agevlm.analysis import attention, figures
    from agevlm.data.images import open_image

    picture = open_image(image) if isinstance(image, str | Path | bytes) else image
    network, processor = model if isinstance(model, tuple) else load_model(model, device, dtype)
    seen = attention.look(network, processor, picture, question, **options)
    if out is not None:
        figures.save_figure(figures.look_figure(seen, picture), out)
    return seen


def evaluate(
    model: str | Path,
    benchmark: str | Path = "scenes",
    *,
    out: str | Path,
    data: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> dict[str, Any] | None:
    """Measure whether a model hallucinates: POPE, counting, colours, relations, where it looks, text perplexity.

    `benchmark` is "scenes" (drawn fresh, offline) or the directory of a dataset; `settings` are then the fields of
    `agevlm.evaluation.benchmarks.Settings`: `num_images`, `seed`, `split`, `batch_size`, `device`, … With `data` it is
    the name of an official benchmark ("pope", "mmvp", …), of any vision-language model: `data` is the directory of its
    files or a hub id, which is fetched, and `settings` are those of `agevlm.evaluation.official.run.Settings`:
    `protocol`, `images`, `num_images`, `batch_size`, `device`, `dtype`. Writes metrics.json, metrics.md and
    predictions.jsonl into the directory `out`, and returns the metrics (None in a process that is not the main one).

    Raises ValueError for a model, data or a setting that cannot be used.
    """
    from agevlm.evaluation.benchmarks import Settings, evaluate_benchmark
    from agevlm.evaluation.official import run as official

    if data is not None:
        chosen = _settings("evaluate", official.Settings, settings)
        return official.evaluate_official(model, str(benchmark), data, out, chosen, progress=progress)
    official.check_needs_data(str(benchmark))
    return evaluate_benchmark(model, benchmark, out, _settings("evaluate", Settings, settings), progress=progress)


def diagnose(
    model: Model, data: str | Path = "scenes", *, out: str | Path, against: Model | None = None, **settings: Any
) -> Diagnosis:
    """Say why a vision-language model says what is not there, on one page, and beside a second model if one is given.

    `model` and `against` are names, directories, hub ids or pairs of `load_model`; `data` is "scenes" or the directory
    of a dataset with POPE's questions. `settings` are those of `evaluate`. Writes index.html, diagnosis.json and
    arrays.npz into the directory `out`. The result has the `verdict`, three sentences, the `record` of all figures and
    the `page`. Raises ValueError for a model, data or a setting that cannot be used.
    """
    from agevlm.diagnosis import run
    from agevlm.evaluation.benchmarks import Settings

    return run.diagnose(model, data, out, against=against, settings=_settings("diagnose", Settings, settings))


def _settings(verb: str, kind: type[Chosen], given: dict[str, Any]) -> Chosen:
    """Settings of a measurement; a name that is none of them is a ValueError."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(given.keys() - set(known))
    if unknown:
        raise ValueError(f"{verb} has no setting {unknown[0]!r}: there are {', '.join(known)}")
    return kind(**given)


def train(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    resume: bool = False,
    data: str | Path | None = None,
    images: str | Path | None = None,
    keep_empty: bool = False,
    boxes: bool = False,
) -> Path:
    """Train the stages of a recipe, evaluate the outcome and write its report; returns the directory of the model.

    `recipe` is a YAML file or the name of one in the package, such as "quickstart"; `overrides` change it key by key
    ("stages.2.learning_rate=1e-4"). All files go into `out` (runs/NAME if not given). `resume` goes on with a run that
    was stopped. `data` is a COCO instances file of your own for the recipe's data, `images` the directory of its
    pictures (else they lie beside it): they are split to train on, to choose settings on and to test on, and what a
    linear probe makes of them is told first. `keep_empty` takes those without any instance for pictures that show none
    of its categories; else they are left out. With `boxes` annotations without a mask have their box for one.

    Raises ValueError for a wrong key, and for an `out` that holds another run.
    """
    from agevlm.training import run
    from agevlm.training.own_data import own_data
    from agevlm.training.recipe_files import resolve_recipe

    path = resolve_recipe(str(recipe))
    out = Path(out) if out is not None else Path("runs") / path.stem
    own = own_data(data, images, keep_empty, boxes)
    return run.train(path, out, overrides=overrides, seed=seed, resume=resume, own=own)
