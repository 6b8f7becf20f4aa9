"""Views and labelled pictures as sources: cached once, the same cached or not, beside each other in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_runs import make_recipe, read_losses, run

from agevlm.data.augmentation import Augmentation
from agevlm.data.images import open_image
from agevlm.data.parquet import read_parquet, write_parquet
from agevlm.data.rows import Record
from agevlm.data.scenes import WorldSpec
from agevlm.data.scenes.export import export_parquet
from agevlm.training.dataset import SourceData, StageDataset
from agevlm.training.features import FeatureCache, cached_features
from agevlm.training.recipe import StageRecipe, parse_recipe
from agevlm.training.run import build_model
from agevlm.training.views import LabelledPictures, StoredPictures, ViewSource

VIEWS = Augmentation(views=3, min_side_ratio=0.5)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stored") / "scenes"
    export_parquet(directory, WorldSpec(min_objects=2), 3, 6, num_per_image=1)
    return directory


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("labelled")
    for number, name in enumerate(("cup", "wild_cat", "junk")):
        for copy in range(2):
            path = directory / name / f"{copy}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (40, 30), (60 * number, 90, 40 * copy)).save(path)
    return directory


def test_a_source_of_views_is_as_many_times_as_long(stored: Path) -> None:
    source = ViewSource(StoredPictures(read_parquet(stored)), VIEWS, seed=0)
    assert len(source) == 18
    rng = np.random.default_rng(0)
    samples = [source.sample(index, rng, {"presence": 1.0}, 2) for index in range(18)]
    assert len({sample.id for sample in samples}) == 18
    for index, sample in enumerate(samples):
        picture = open_image(sample.images[0])  # of the size that it says
        assert all(tuple(m["size"]) == picture.size[::-1] for c in sample.conversations for m in c.groundings[0].masks)
        if index < 6:
            assert picture.tobytes() == open_image(source.pictures[index].image).tobytes()


def fill(foundation: Path, root: Path, source: ViewSource, **settings: Any) -> FeatureCache:
    model, processor = build_model(parse_recipe(make_recipe(foundation, "align"), "recipe"))
    settings = {"num_workers": 0, "progress": lambda done, total: None, **settings}
    import torch

    cache = cached_features(source, root, model.requires_grad_(False), processor, dtype=torch.float32, **settings)
    assert cache is not None
    return cache


@pytest.mark.parametrize("num_workers", [0, 2])
def test_views_are_cached_with_their_annotations(
    foundation: Path, stored: Path, tmp_path: Path, num_workers: int
) -> None:
    source = ViewSource(StoredPictures(read_parquet(stored)), VIEWS, seed=0)
    cache = fill(foundation, tmp_path, source, num_workers=num_workers)
    assert len(cache.features) == 18
    fresh = ViewSource(StoredPictures(read_parquet(stored)), VIEWS, seed=0)
    assert source.annotations == [fresh.draw(index).annotated for index in range(18)]
    first, second = (s.sample(13, np.random.default_rng(0), None, 5) for s in (source, fresh))
    assert first.conversations == second.conversations
    assert source.notes is not None
    again = ViewSource(StoredPictures(read_parquet(stored)), VIEWS, seed=0)
    fill(foundation, tmp_path, again, num_workers=num_workers)
    assert again.notes == source.notes
    for other in (
        ViewSource(StoredPictures(read_parquet(stored)), VIEWS, 1),
        ViewSource(StoredPictures(read_parquet(stored)), None, 0),
    ):
        assert other.key() != source.key()
    own = VIEWS.model_copy(update={"seed": 7})  # recipes of other seeds share them
    assert (
        ViewSource(StoredPictures(read_parquet(stored)), own, 0).key()
        == ViewSource(StoredPictures(read_parquet(stored)), own, 1).key()
    )


def test_labels_and_masks_train_beside_each_other(
    foundation: Path, stored: Path, labelled: Path, tmp_path: Path
) -> None:
    (labelled / "readme.txt").write_text("hello")
    data = {
        "scenes": {"parquet": str(stored), "augment": {"views": 2}},
        "objects": {"labels": str(labelled), "names": {"junk": None}, "augment": {"views": 2, "mosaic_ratio": 1}},
    }
    stage = {
        "name": "ground",
        "data": {"scenes": 1.0, "objects": 1.0},
        "kinds": {"presence": 1.0},
        "presence": {"hard_ratio": 0.5},
        "trainable": ["projector", "cross_attention"],
        "guidance": {},
        "images_per_batch": 4,
    }
    for cached in (True, False):
        run(make_recipe(foundation, stage, data=data, cache_features=cached), tmp_path / str(cached))
    with_, without = read_losses(tmp_path / "True"), read_losses(tmp_path / "False")
    for first, second in zip(with_, without, strict=True):
        assert first["lm_loss"] == pytest.approx(second["lm_loss"], rel=5e-3)
    (record,) = json.loads((tmp_path / "True" / "stages.json").read_text())
    assert record["left_out"]["phrases that may be there or not"] > 0
    recipe = parse_recipe(make_recipe(foundation, stage, data=data), "recipe")
    assert recipe.data["objects"].names == {"junk": None}  # type: ignore[union-attr]


def test_a_run_says_what_was_left_out(foundation: Path, labelled: Path, tmp_path: Path) -> None:
    import io

    from rich.console import Console

    from agevlm.training.run import train

    (labelled / "cup" / "notes.txt").write_text("hello")
    data = {"objects": {"labels": str(labelled), "augment": {"views": 2, "mosaic_ratio": 1}}}
    stage = {"name": "s", "data": {"objects": 1.0}, "kinds": {"presence": 1.0}, "trainable": ["projector", "gates"]}
    said = io.StringIO()
    recipe = parse_recipe(make_recipe(foundation, stage, data=data), "recipe")
    train(recipe, tmp_path / "run", console=Console(file=said, width=200))
    assert "data objects: left out: 1 files that are no pictures" in said.getvalue()


def test_samples_that_are_not_annotated_have_no_views(stored: Path, tmp_path: Path) -> None:
    bare = [Record(record.sample) for record in StoredPictures(read_parquet(stored)).dataset]
    write_parquet(tmp_path / "bare", bare)
    with pytest.raises(ValueError, match="6 of 6 samples are not annotated, the first is"):
        StoredPictures(read_parquet(tmp_path / "bare"))


def test_a_labelled_source_is_told_from_another(labelled: Path) -> None:
    known = LabelledPictures(labelled, {}).key()
    assert LabelledPictures(labelled, {"junk": "rubbish"}).key() != known
    assert LabelledPictures(labelled, {}).key() == known


def test_labels_are_asked_as_often_as_not(labelled: Path) -> None:
    source = ViewSource(LabelledPictures(labelled, {"junk": "toy"}), None, 0)
    stage = StageRecipe(
        name="s", data={"objects": 1}, kinds={"presence": 1}, presence={}, trainable=("projector",), steps=40
    )
    dataset = StageDataset(stage, {"objects": SourceData(source)}, seed=0)
    said = [c.messages[1].content for index in range(400) for c in dataset[index][0].conversations]
    assert said.count("yes") / len(said) == pytest.approx(0.5, abs=0.05)
    answers = {
        (c.groundings[0].phrase, c.groundings[0].present) for i in range(60) for c in dataset[i][0].conversations
    }
    assert answers == {(word, known) for word in ("cup", "wild cat", "toy") for known in (None, False)}
