"""What a recipe names that is not here yet, and the commands that make it. Nothing is fetched, and nothing is made."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from agevlm.checkpoints import PACKAGED, resolve_model
from agevlm.training.recipe import LabelsSource, ParquetSource, Recipe


@dataclass(frozen=True)
class Need:
    """A file, directory or hub id that a recipe names under a key, and the commands that make it, which may be none."""

    key: str
    name: str
    commands: tuple[str, ...]
    is_hub_id: bool = False

    def __str__(self) -> str:
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
        if name is None or name in PACKAGED or Path(name).exists() or _cached(name):
            continue
        commands = recipe.prepare.get(name, ())
        if not commands:
            resolve_model(name)  # what is no hub id either has an error of its own
            commands = (f"hf download {shlex.quote(name)}",)
        yield Need(f"model.{key}", name, commands, is_hub_id=name.count("/") == 1)


def _cached(name: str) -> bool:
    """Whether the cache of the hub holds a model with its weights."""
    if name.count("/") != 1:
        return False
    try:
        directory = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        return False
    return any(directory.glob("*.safetensors")) or any(directory.glob("*.bin"))


def _data(recipe: Recipe) -> Iterator[Need]:
    used = {name for stage in recipe.stages for name, weight in stage.data.items() if weight}
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


def _need(recipe: Recipe, key: str, path: Path) -> Need:
    return Need(key, str(path), recipe.prepare.get(path.as_posix(), ()))


def _is_dataset(path: Path) -> bool:
    return (path / "dataset.json").is_file()
