"""Cached features: reused where nothing changed, made anew where something did, whole or not there."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import STAGES, make_recipe, read_losses, run

from agevlm.data.images import open_image
from agevlm.data.parquet import read_parquet, write_parquet
from agevlm.data.rows import Record
from agevlm.data.scenes import WorldSpec
from agevlm.data.schema import Conversation, ImageSource, Message, Sample
from agevlm.training import features as features_module
from agevlm.training.features import FeatureCache, _Writer, cached_features
from agevlm.training.recipe import parse_recipe
from agevlm.training.run import build_model
from agevlm.training.sources import ParquetSource, SceneSource, Source

Parts = tuple[Any, Any]


@pytest.fixture
def parts(foundation: Path) -> Parts:
    model, processor = build_model(parse_recipe(make_recipe(foundation, "align"), "recipe"))
    return model.requires_grad_(False), processor


def fill(
    parts: Parts, root: Path, source: Source | None = None, dtype: torch.dtype = torch.float32, **settings: Any
) -> tuple[FeatureCache | None, int]:
    """The cache and how many pictures went through the network for it."""
    done = [0]

    def progress(number: int, total: int) -> None:
        done.append(number)

    settings = {"dtype": dtype, "num_workers": 0, "progress": progress, **settings}
    cache = cached_features(source or SceneSource(WorldSpec(), 1, 70), root, *parts, **settings)
    return cache, done[-1]


def caches(root: Path) -> list[Path]:
    """The caches in a directory, half-written ones included, and not their locks."""
    return [path for path in root.iterdir() if path.suffix != ".lock"]


def test_runs_that_start_together_compute_a_cache_once(parts: Parts, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        filled = list(pool.map(lambda _: fill(parts, tmp_path), range(3)))
    assert sorted(done for _, done in filled) == [0, 0, 70]
    assert all(cache is not None and len(cache.starts) == 71 for cache, _ in filled)


def test_a_cache_holds_what_the_vision_model_says(parts: Parts, tmp_path: Path) -> None:
    source = SceneSource(WorldSpec(), 1, 70)
    cache, done = fill(parts, tmp_path, source)
    model, processor = parts
    assert cache is not None and done == 70
    for index in (0, 64, 69):
        image = SceneSource(WorldSpec(), 1, 70).sample(index, np.random.default_rng(0), None, 1).images[0]
        pixels = processor.image_processor([open_image(image)], return_tensors="pt")["pixel_values"]
        assert cache[index].dtype == np.float16
        torch.testing.assert_close(
            torch.from_numpy(cache[index]).float(), model.vision_features(pixels), atol=5e-3, rtol=5e-3
        )
    assert source.annotations is not None and len(source.annotations) == 70


def test_a_cache_is_reused(parts: Parts, tmp_path: Path) -> None:
    first, _ = fill(parts, tmp_path)
    source = SceneSource(WorldSpec(), 1, 70)
    again, done = fill(parts, tmp_path, source)
    assert done == 0
    assert first is not None and again is not None
    assert np.array_equal(first[33], again[33])
    assert source.annotations is not None
    assert len(caches(tmp_path)) == 1


def other_weights(parts: Parts) -> dict[str, Any]:
    next(parts[0].vision_model.parameters()).data.add_(1e-3)
    return {}


def other_size(parts: Parts) -> dict[str, Any]:
    parts[1].image_processor.size = {"height": 64, "width": 64}
    return {}


def other_mean(parts: Parts) -> dict[str, Any]:
    parts[1].image_processor.image_mean = [0.4, 0.5, 0.6]
    return {}


@pytest.mark.parametrize(
    "change",
    [
        other_weights,
        other_size,
        other_mean,
        lambda parts: {"source": SceneSource(WorldSpec(), 2, 70)},
        lambda parts: {"source": SceneSource(WorldSpec(), 1, 71)},
        lambda parts: {"source": SceneSource(WorldSpec(max_objects=2), 1, 70)},
        lambda parts: {"dtype": torch.bfloat16},
    ],
    ids=["weights", "size", "mean", "seed", "number", "world", "dtype"],
)
def test_whatever_changes_the_features_gets_a_cache_of_its_own(
    change: Callable[[Parts], dict[str, Any]], parts: Parts, tmp_path: Path
) -> None:
    fill(parts, tmp_path)
    _, done = fill(parts, tmp_path, **change(parts))
    assert done in (70, 71)
    assert len(caches(tmp_path)) == 2


def test_a_kill_while_filling_leaves_nothing(parts: Parts, tmp_path: Path) -> None:
    def killed(number: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(parts, tmp_path, progress=killed)
    assert caches(tmp_path) == []
    assert fill(parts, tmp_path)[1] == 70


@pytest.fixture
def three_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(("num_workers", "left"), [(0, 3), (1, 2), (4, 1)])
def test_the_forward_pass_leaves_cores_to_the_workers(
    parts: Parts, tmp_path: Path, num_workers: int, left: int
) -> None:
    seen = []

    def killed(number: int, total: int) -> None:
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(parts, tmp_path, num_workers=num_workers, progress=killed)
    assert seen == [left]
    assert torch.get_num_threads() == 3


def test_a_worker_process_opens_the_file_anew(parts: Parts, tmp_path: Path) -> None:
    cache, _ = fill(parts, tmp_path)
    assert cache is not None
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent)[5], cache[5])


def test_training_on_cached_features_is_training_without(foundation: Path, tmp_path: Path) -> None:
    for cached in (True, False):
        content = make_recipe(foundation, "ground", cache_features=cached)
        run(content, tmp_path / str(cached))
    with_, without = read_losses(tmp_path / "True"), read_losses(tmp_path / "False")
    for first, second in zip(with_, without, strict=True):
        assert first["lm_loss"] == pytest.approx(second["lm_loss"], rel=5e-3)
        assert first["guidance_loss"] == pytest.approx(second["guidance_loss"], rel=2e-2)


def test_a_shared_directory_is_kept_and_one_of_the_run_is_not(
    foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make_recipe(foundation, "align"), tmp_path / "own")
    assert not (tmp_path / "own" / "cache").exists()
    shared = {"cache_dir": str(tmp_path / "shared")}
    run(make_recipe(foundation, "align", **shared), tmp_path / "first")
    monkeypatch.setattr(features_module, "_fill", None)
    run(make_recipe(foundation, "cross", **shared), tmp_path / "second")
    assert len(caches(tmp_path / "shared")) == 1


def test_a_vision_model_that_trains_is_not_cached(foundation: Path, tmp_path: Path) -> None:
    stage = {"name": "all", **STAGES["align"], "trainable": ["projector", "vision_model"]}
    run(make_recipe(foundation, stage, cache_dir=str(tmp_path / "cache")), tmp_path / "run")
    assert not (tmp_path / "cache").exists()


def test_sources_that_no_stage_asks_for_are_not_computed(foundation: Path, tmp_path: Path) -> None:
    data = {"scenes": {"num_scenes": 4}, "more": {"num_scenes": 5}}
    run(make_recipe(foundation, "align", data=data, cache_dir=str(tmp_path / "cache")), tmp_path / "run")
    assert len(caches(tmp_path / "cache")) == 1


def make_image(name: str, shade: int) -> ImageSource:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (shade, 0, 0)).save(buffer, "PNG")
    return ImageSource(name, 10, 20, data=buffer.getvalue())


def test_stored_samples_of_no_one_and_two_pictures(parts: Parts, tmp_path: Path) -> None:
    told = (Conversation("c", "chat", (Message("user", "hello"), Message("assistant", "yes"))),)
    images = [make_image(f"i{number}", 90 * number) for number in range(2)]
    samples = [Sample(f"s{num}", tuple(images[:num]), told) for num in (1, 0, 2)]
    write_parquet(tmp_path / "data", map(Record, samples))
    cache, done = fill(parts, tmp_path / "cache", ParquetSource(read_parquet(tmp_path / "data")))
    assert cache is not None and done == 3
    assert [len(cache[index]) for index in range(3)] == [1, 0, 2]
    assert np.array_equal(cache[0][0], cache[2][0])
    assert not np.array_equal(cache[2][0], cache[2][1])
    blind = [replace(sample, id=f"b{i}", images=()) for i, sample in enumerate(samples)]
    write_parquet(tmp_path / "blind", map(Record, blind))
    assert fill(parts, tmp_path / "cache", ParquetSource(read_parquet(tmp_path / "blind"))) == (None, 0)


@pytest.mark.parametrize(("grid", "cells"), [("coarse", 6), ("fine", 12)])
def test_joined_feature_maps_of_larger_pictures_are_cached(
    foundation: Path, tmp_path: Path, grid: str, cells: int
) -> None:
    content = make_recipe(foundation, "ground", cache_dir=str(tmp_path / "cache"))
    content["model"] |= {"vision_stages": ["stage1", "stage2"], "vision_grid": grid, "image_size": 96}
    run(content, tmp_path / "run")
    (cache,) = caches(tmp_path / "cache")
    assert FeatureCache(cache).features.shape == (12, 8 + 16, cells, cells)
    other = {"coarse": "fine", "fine": "coarse"}[grid]
    run({**content, "model": content["model"] | {"vision_grid": other}}, tmp_path / "other")
    assert len(caches(tmp_path / "cache")) == 2


def test_a_feature_map_that_the_vision_model_lacks_is_named(foundation: Path, tmp_path: Path) -> None:
    content = make_recipe(foundation, "align")
    content["model"] |= {"vision_stages": ["stage7"]}
    with pytest.raises(ValueError, match="has the feature maps stem, stage1, stage2, and 'stage7' was asked for"):
        run(content, tmp_path / "run")


def test_the_place_of_a_cache_is_taken_first_so_that_a_full_disk_is_an_error_and_no_signal(tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow beyond 64 KB."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from agevlm.training.features import _Writer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "from agevlm.cli.errors import explain\n"
        "try: _Writer(Path(sys.argv[1]), (1000, 8, 8, 8))\n"
        "except OSError as error: print(explain(error)[0])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "features.npy")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"no space left on the disk where {tmp_path / 'features.npy'} is written")


def test_a_cache_that_is_written_row_by_row_is_numpys(tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.float16).reshape(6, 4)
    writer = _Writer(tmp_path / "features.npy", rows.shape)
    writer.write(rows[:4])
    writer.write(rows[4:])
    writer.file.close()
    read = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert read.dtype == np.float16 and np.array_equal(read, rows)
