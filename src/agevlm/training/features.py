"""Feature maps of a frozen vision model, computed once and kept on disk for all stages.

A cache is a directory named by what determines it: the pictures, the vision model's weights and the arithmetic. It is
written beside and renamed, so a cache that exists is whole; of runs that want the same one, one fills it and the others
wait.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor, nn

from agevlm.data.images import open_image
from agevlm.files import reserve, write_beside
from agevlm.training.arithmetic import autocast
from agevlm.training.sources import (
    DrawnPictures,
    DrawnSource,
    ParquetSource,
    Source,
    read_annotations,
    write_annotations,
)

Progress = Callable[[int, int], None]  # pictures done, pictures in all
BATCH_SIZE = 64


class FeatureCache:
    """Feature maps of the pictures of a source: `cache[index]` is (pictures of the sample, C, h, w) in float16."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.features = np.load(directory / "features.npy", mmap_mode="r")
        self.starts = np.load(directory / "starts.npy")

    def __getitem__(self, index: int) -> NDArray[np.float16]:
        return np.array(self.features[self.starts[index] : self.starts[index + 1]])

    def __reduce__(self) -> tuple[type[FeatureCache], tuple[Path]]:
        return FeatureCache, (self.directory,)  # a worker process opens the file anew


def cached_features(
    source: Source,
    root: Path,
    model: nn.Module,
    processor: Any,
    *,
    dtype: torch.dtype,
    num_workers: int,
    progress: Progress,
) -> FeatureCache | None:
    """Feature maps of the pictures of `source`, from `root` or computed into it; None where it has no picture.

    Fills in the annotations of a source whose pictures are drawn.
    """
    if not _num_pictures(source):
        return None
    directory = root / _name(source, model, processor, dtype)
    if not directory.exists():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{directory.name}.lock"):
            if not directory.exists():
                with write_beside(directory) as beside:
                    beside.mkdir()
                    with _cores_left_to(num_workers if isinstance(source, DrawnSource) else 0):
                        _fill(beside, source, model, processor, dtype, num_workers, progress)
    if isinstance(source, DrawnSource):
        source.annotations = read_annotations(directory / "annotations.jsonl")
        notes = directory / "notes.json"
        source.notes = Counter(json.loads(notes.read_text("utf-8")) if notes.exists() else {})
    return FeatureCache(directory)


def _name(source: Source, model: Any, processor: Any, dtype: torch.dtype) -> str:
    pixels = processor.image_processor.to_dict()
    layers = [getattr(model.vision_model.config, "out_features", None)]
    if len(layers[0] or ()) > 1:
        layers.append(model.config.vision_grid)
    digest = hashlib.sha256(json.dumps([source.key(), pixels, *layers], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.vision_model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    digest.update(str(dtype).encode())
    return f"features-{digest.hexdigest()[:16]}"


@contextmanager
def _cores_left_to(num_workers: int) -> Iterator[None]:
    """Fewer threads for the forward pass: one that shares its core with a worker process keeps the others waiting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - num_workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fill(
    directory: Path,
    source: Source,
    model: Any,
    processor: Any,
    dtype: torch.dtype,
    num_workers: int,
    progress: Progress,
) -> None:
    annotations, counts, number = [], [], 0
    notes: Counter[str] = Counter()
    writer: _Writer | None = None
    for pictures, per_sample, annotated, noted in _batches(source, num_workers):
        counts += per_sample
        annotations += annotated
        notes.update(noted)
        if not pictures:
            continue
        pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        features = _forward(model, pixels, dtype)
        if writer is None:
            writer = _Writer(directory / "features.npy", (_num_pictures(source), *features.shape[1:]))
        writer.write(features.numpy())
        number += len(features)
        progress(number, writer.shape[0])
    assert writer is not None
    writer.file.close()
    assert number == writer.shape[0], (number, writer.shape)
    np.save(directory / "starts.npy", np.concatenate([[0], np.cumsum(counts)]))
    if annotations:
        write_annotations(directory / "annotations.jsonl", annotations)
        (directory / "notes.json").write_text(json.dumps(notes), "utf-8")


class _Writer:
    """An array of float16 in NumPy's format, written row after row.

    Its place on the disk is taken first, and writing goes by the file: a disk that fills under a mapped file ends the
    process by a signal.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.shape, self.file = shape, path.open("wb")
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)
        self.file.flush()
        reserve(self.file.fileno(), 2 * math.prod(shape), path)

    def write(self, rows: NDArray[np.float16]) -> None:
        self.file.write(np.ascontiguousarray(rows, dtype="<f2").data)


@torch.no_grad()
def _forward(model: Any, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    device = next(model.vision_model.parameters()).device
    with autocast(dtype, device.type):
        return model.vision_features(pixels.to(device)).to("cpu", torch.float16)


def _num_pictures(source: Source) -> int:
    if isinstance(source, ParquetSource):
        return sum(len(source.dataset[index].sample.images) for index in range(len(source)))
    return len(source)


def _batches(source: Source, num_workers: int) -> Any:
    """Batches of pictures, the number of pictures of each sample, and annotations and notes of drawn ones."""
    if isinstance(source, DrawnSource):
        for drawn in DrawnPictures(source).batches(BATCH_SIZE, num_workers):
            noted = [note for one in drawn for note in one.notes]
            yield [one.pixels for one in drawn], [1] * len(drawn), [one.annotated for one in drawn], noted
        return
    assert isinstance(source, ParquetSource), source
    for start in range(0, len(source), BATCH_SIZE):
        samples = [source.dataset[i].sample for i in range(start, min(start + BATCH_SIZE, len(source)))]
        yield [open_image(i) for s in samples for i in s.images], [len(s.images) for s in samples], [], []
