"""What a recipe names that is not here yet, and the commands that make it; and what is here and cannot be used.

Nothing is fetched, and nothing is made.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from agevlm.checkpoints import PACKAGED, resolve_language_model, resolve_model
from agevlm.data.formats.labels import check_labels
from agevlm.data.images import open_image
from agevlm.data.parquet import read_parquet
from agevlm.modeling.language import split_hub_file
from agevlm.modeling.timm_models import is_timm, timm_pixels
from agevlm.training.recipe import LabelsSource, ParquetSource, Recipe
from agevlm.training.sources import ParquetSource as StoredSource


@dataclass(frozen=True)
class Need:
    """A file, directory or hub id that a recipe names under a key, and the commands that make it, which may be none.

    `fault` says why it is not to be had, of a name that means no model and of a model whose package is not installed.
    """

    key: str
    name: str
    commands: tuple[str, ...]
    fault: str = ""

    def __str__(self) -> str:
        if self.fault:
            return f"{self.key}: {self.fault}"
        how = f"; make it by: {' && '.join(self.commands)}" if self.commands else ""
        return f"{self.key}: {self.name} is not here{how}"


def missing(recipe: Recipe) -> list[Need]:
    """What is not at hand of a recipe: models, datasets of stages and the benchmark, each once, in that order.

    A hub id is at hand where the cache holds it with its weights.
    """
    found = {need.name: need for need in (*_models(recipe), *_data(recipe))}
    return list(found.values())


def _models(recipe: Recipe) -> Iterator[Need]:
    settings = recipe.model
    named = {"init": settings.init}
    if not settings.init:
        named = {"language_model": settings.language_model, "vision_model": settings.vision_model}
    for key, name in named.items():
        if name is None or name in PACKAGED or Path(name).exists():
            continue
        commands = recipe.prepare.get(name, ())
        fault = "" if commands else _fault(key, name)
        if not fault and _cached(name):
            continue
        if not commands and not fault:
            commands = (f"hf download {shlex.join(split_hub_file(name) or (name,))}",)
        yield Need(f"model.{key}", name, commands, fault)


def _fault(key: str, name: str) -> str:
    """Why a model that is not here cannot be fetched either: its name means none, or timm is missing; else ""."""
    try:
        (resolve_language_model if key == "language_model" else resolve_model)(name)
        if key == "vision_model" and is_timm(name):
            timm_pixels(name)
    except ValueError as error:
        return str(error)
    return ""


def at_hand(name: str) -> Path | None:
    """The directory or the GGUF file of a model that is here or in the cache of the hub; None where it is in neither.

    ValueError where it is the name of none.
    """
    source = Path(resolve_language_model(name))
    return source if source.exists() else _in_cache(name)


def _in_cache(name: str) -> Path | None:
    on_hub = split_hub_file(name)
    try:
        if on_hub is not None:
            return Path(hf_hub_download(*on_hub, local_files_only=True))
        return Path(snapshot_download(name, local_files_only=True)) if name.count("/") == 1 else None
    except (LocalEntryNotFoundError, ValueError):
        return None


def _cached(name: str) -> bool:
    """Whether the cache of the hub holds a model with its weights."""
    place = _in_cache(name)
    if place is None or place.is_file():
        return place is not None
    return any(place.glob("*.safetensors")) or any(place.glob("*.bin"))


def _data(recipe: Recipe) -> Iterator[Need]:
    used = recipe.used_data
    for name, source in recipe.data.items():
        if name in used and isinstance(source, ParquetSource) and not _is_dataset(source.parquet):
            yield _need(recipe, f"data.{name}", source.parquet)
        if name in used and isinstance(source, LabelsSource) and not source.labels.is_dir():
            yield _need(recipe, f"data.{name}", source.labels)
    yield from missing_benchmark(recipe)


def missing_benchmark(recipe: Recipe) -> Iterator[Need]:
    """The dataset that the end of a run is measured on, if it is not there."""
    benchmark = recipe.evaluation.benchmark if recipe.evaluation else "scenes"
    if benchmark != "scenes" and not _is_dataset(Path(benchmark)):
        yield _need(recipe, "evaluation.benchmark", Path(benchmark))


def unreadable(recipe: Recipe) -> Iterator[str]:
    """A line for each dataset that is here and whose first sample, with its pictures, cannot be read.

    Of pictures with labels, whose folders are not such.
    """
    sources = {f"data.{name}": recipe.data[name] for name in sorted(recipe.used_data)}
    named = {key: (at.parquet, at.allow_outside) for key, at in sources.items() if isinstance(at, ParquetSource)}
    for key, at in sources.items():
        if isinstance(at, LabelsSource) and at.labels.is_dir():
            try:
                check_labels(at.labels, at.names)
            except ValueError as error:
                yield f"{key}: {error}"
    asked = recipe.evaluation
    if asked and asked.benchmark != "scenes":
        named["evaluation.benchmark"] = (Path(asked.benchmark), asked.allow_outside)
    for key, (directory, allow_outside) in named.items():
        if _is_dataset(directory):
            try:
                for image in read_parquet(directory, allow_outside=allow_outside)[0].sample.images:
                    open_image(image)
            except ValueError as error:
                yield f"{key}: {error}"


def not_offered(recipe: Recipe) -> Iterator[str]:
    """A line for each stage and stored dataset, of those that are here, that has nothing of what the stage asks of it.

    Datasets of which views are made are annotated, and anything can be made of them.
    """
    named = {name: at for name, at in recipe.data.items() if isinstance(at, ParquetSource) and not at.augment}
    here = {
        name: StoredSource(read_parquet(at.parquet, allow_outside=at.allow_outside))
        for name, at in named.items()
        if name in recipe.used_data and _is_dataset(at.parquet)
    }
    for stage in recipe.stages:
        for name in (name for name, weight in stage.data.items() if weight and name in here):
            if not here[name].offers(stage.kinds):
                asked = [kind for kind, weight in (stage.kinds or {}).items() if weight] or ["any kind"]
                held = ", ".join(f"{kind} ({number})" for kind, number in here[name].dataset.summary.kinds.items())
                yield (
                    f"stage {stage.name!r}, data {name}: {named[name].parquet} has no conversation of "
                    f"{', '.join(asked)}, only of {held or 'no kind'}, and no annotated picture to make one of: change "
                    "kinds of the stage, or leave the source out"
                )


def _need(recipe: Recipe, key: str, path: Path) -> Need:
    return Need(key, str(path), recipe.prepare.get(path.as_posix(), ()))


def _is_dataset(path: Path) -> bool:
    return (path / "dataset.json").is_file()
