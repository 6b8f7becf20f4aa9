"""Before a recipe trains on annotations of one's own: splits made and kept beside the run, and a probe told first.

    RUN/data/train, val, test   the datasets
    RUN/data/split.json         what they were made of, and what was left out
    RUN/probe.json              the figures of the probe on the val pictures

A run that goes on reads what is there. What is trained and measured then is the recipe's business.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from agevlm.data.balance import check_balance
from agevlm.data.formats.coco import CocoOptions, load_instances
from agevlm.data.formats.coco_splits import TEST, TRAIN, VAL, split_coco
from agevlm.data.parquet import read_parquet
from agevlm.files import write_beside
from agevlm.training.recipe import LabelsSource, ParquetSource, Recipe, load_recipe

DATA, SPLIT, PROBE = "data", "split.json", "probe.json"  # in the directory of a run
MAX_SIDE = 1024  # pixels: larger photographs are held smaller; half of one, a view's smallest crop, still has 512


@dataclass(frozen=True)
class OwnData:
    """A COCO instances file, and the directory of its pictures (None: where the file lies, or `images` beside it).

    `keep_empty`: pictures without any instance show none of the categories. Else they are left out. `boxes`:
    annotations without a mask have their box for one.
    """

    instances: Path
    images: Path | None = None
    keep_empty: bool = False
    boxes: bool = False

    def pictures(self, listed: Sequence[Mapping[str, Any]]) -> Path:
        """The directory of the pictures that the file lists: `images`, as exports have it, where none lies beside."""
        beside = self.instances.parent
        if self.images is not None or not (beside / "images").is_dir():
            return self.images or beside
        lies_there = any(os.path.isfile(beside / str(entry.get("file_name"))) for entry in listed)
        return beside if lies_there else beside / "images"


def own_data(
    instances: str | Path | None, images: str | Path | None, keep_empty: bool = False, boxes: bool = False
) -> OwnData | None:
    """Annotations as people name them; None where they name none. Pictures without annotations are a ValueError."""
    if instances is None:
        if images is not None or keep_empty or boxes:
            raise ValueError("pictures of your own come with their annotations: give --data, a COCO instances file")
        return None
    return OwnData(Path(instances), Path(images) if images is not None else None, keep_empty, boxes)


def prepare(
    recipe: Path, out: Path, own: OwnData, console: Console, overrides: Sequence[str] = (), seed: int | None = None
) -> list[str]:
    """Split the annotations into `out`/data, tell what a linear probe makes of them, and give the recipe's overrides.

    They name the datasets, and come before those that people gave. Deterministic in the seed and the pictures. What is
    done is kept and not done again. ValueErrors: an `out` that holds the splits of other annotations, a recipe of
    several sources or none in Parquet, and those of `split_coco` and `probe`.
    """
    settings = load_recipe(recipe, overrides, seed)
    filled = [f"data.{_source(settings)}.parquet={out / DATA / TRAIN}", f"evaluation.benchmark={out / DATA / TEST}"]
    settings = load_recipe(recipe, [*filled, *overrides], seed)
    _check_vision_model(settings)
    for note in _split(own, out / DATA, settings):
        console.print(note, highlight=False)
    for line in _probed(settings, out, console):
        console.print(line, highlight=False)
    return filled


def _source(recipe: Recipe) -> str:
    """The name of the source that annotations of one's own stand for: the only one in Parquet."""
    names = [name for name, source in recipe.data.items() if isinstance(source, ParquetSource)]
    if len(names) != 1:
        others = [name for name, source in recipe.data.items() if isinstance(source, LabelsSource)]
        raise ValueError(
            f"--data stands for the one source in Parquet of a recipe, and this one has {len(names)} "
            f"({', '.join([*names, *others]) or 'scenes alone'}): take `photos`, or convert the file with "
            "`agevlm data coco` and name it by --set data.NAME.parquet=DIR"
        )
    return names[0]


def _check_vision_model(recipe: Recipe) -> None:
    """Say that there is no vision model before any picture is read."""
    from agevlm.checkpoints import resolve_model

    if not recipe.model.init:
        resolve_model(recipe.model.vision_model)


def _check_balance(recipe: Recipe, directory: Path) -> None:
    """Say before anything trains, and in a dry run, that a stage would have nothing to ask about the pictures."""
    if any(stage.presence and stage.data.get(_source(recipe)) for stage in recipe.stages):
        dataset = read_parquet(directory)
        check_balance([categories or () for categories in dataset.categories()], dataset.vocabulary)


def _split(own: OwnData, directory: Path, recipe: Recipe) -> list[str]:
    """Make the datasets, or find them made; a line for each thing to know."""
    pictures = own.pictures(load_instances(own.instances)["images"])
    digest = hashlib.sha256(own.instances.read_bytes()).hexdigest()
    made_of: dict[str, Any] = {"instances": str(own.instances.resolve()), "sha256": digest, "seed": recipe.seed}
    made_of |= {"images": str(pictures.resolve())}
    made_of |= {name: True for name in ("keep_empty", "boxes") if getattr(own, name)}
    path = directory / SPLIT
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["made_of"] != made_of:
            raise ValueError(
                f"{directory} holds the splits of other annotations, pictures or another seed: a run goes on with its "
                "own; choose another --out"
            )
        return list(known["notes"])
    options = CocoOptions(seed=recipe.seed, max_side=MAX_SIDE, keep_empty=own.keep_empty, boxes=own.boxes)
    split = split_coco(own.instances, pictures, directory, options)
    _check_balance(recipe, directory / TRAIN)
    notes = list(split.notes())
    _write(path, {"made_of": made_of, "num_pictures": split.num_pictures, "notes": notes})
    return notes


def _probed(recipe: Recipe, out: Path, console: Console) -> list[str]:
    """What a linear probe on the vision model answers, in two lines; learned on train, measured on val."""
    from agevlm.training.probe import ProbeSettings, probe

    asked = recipe.model
    if asked.init:
        return []
    if len(vocabulary := read_parquet(out / DATA / TRAIN).vocabulary) < 2:
        return [f"no probe and no POPE, which ask for pairs of categories: there is {vocabulary[0]} alone"]
    if not (out / PROBE).exists():
        settings = ProbeSettings(asked.vision_model, asked.vision_stages, asked.vision_grid, asked.image_size)
        with console.status("a linear probe looks at the pictures"):
            record = probe([out / DATA / TRAIN], settings, test=out / DATA / VAL, cache_dir=recipe.cache_dir)
        _write(out / PROBE, record)
    record = json.loads((out / PROBE).read_text(encoding="utf-8"))
    return list(probe_lines(record, asked.vision_model))


def probe_lines(record: dict[str, Any], vision_model: str) -> tuple[str, str]:
    """The two lines that tell the figures of a probe."""
    right = [f"{figures['accuracy']:.0%} of {split}" for split, figures in record["pope"].items()]
    alone = [f"{figures['prior_accuracy']:.0%}" for figures in record["pope"].values()]
    pointing = record["pointing"]
    points = f", and points at {pointing['accuracy']:.0%} of the things" if pointing["num_words"] else ""
    return (
        f"a linear probe on {Path(vision_model).name} answers {_listed(right)} questions about the val pictures"
        + points,
        f"how often a thing is seen answers {_listed(alone)} of them, a coin half: a rough guide to what training can "
        "reach",
    )


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _write(path: Path, content: dict[str, Any]) -> None:
    with write_beside(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
