"""Drawn scenes in memory, with their things: what teachers learn from. Boxes around masks, and pixels as inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from agevlm.data.masks import decode_mask
from agevlm.data.scenes import CATEGORIES, WorldSpec, draw_scene

# Shapes: S scenes, B pictures, K things of a picture (padded).

MAX_THINGS = 8
Drawn = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8]]  # pixels, categories, packed masks


class Pool:
    """Drawn scenes: `pixels` (S, 3, H, W) uint8, `categories` (S, K) with -1 for none, `masks` (S, K, H, W) packed."""

    def __init__(self, drawn: Sequence[Drawn]) -> None:
        pixels, categories, packed = (torch.from_numpy(np.stack(parts)) for parts in zip(*drawn, strict=True))
        self.pixels, self.categories, self.packed = pixels, categories, packed

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def image_size(self) -> int:
        """The side of a picture."""
        return int(self.pixels.shape[-1])

    def masks(self, chosen: Tensor) -> Tensor:
        """Masks (B, K, H, W) of the chosen scenes, in float32."""
        side = self.image_size
        bits = np.unpackbits(self.packed[chosen].numpy(), axis=-1)[..., : side * side]
        return torch.from_numpy(bits.astype(np.float32)).view(len(chosen), MAX_THINGS, side, side)


class _Scenes(Dataset[Drawn]):
    def __init__(self, world: WorldSpec, seed: int, num: int) -> None:
        self.world, self.seed, self.num = world, seed, num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Drawn:
        scene = draw_scene(self.world, self.seed, index)
        things = scene.annotation.instances[:MAX_THINGS]
        categories = np.full(MAX_THINGS, -1)
        masks = np.zeros((MAX_THINGS, *scene.image.shape[:2]), dtype=bool)
        for number, thing in enumerate(things):
            categories[number], masks[number] = CATEGORIES.index(thing.category), decode_mask(thing.mask)
        return scene.image.transpose(2, 0, 1), categories, np.packbits(masks.reshape(MAX_THINGS, -1), axis=-1)


def draw_pool(world: WorldSpec, seed: int, num: int, num_workers: int) -> Pool:
    """The first `num` scenes of a seed, drawn in worker processes."""
    loader = DataLoader(_Scenes(world, seed, num), batch_size=64, num_workers=num_workers, collate_fn=list)
    return Pool([scene for batch in loader for scene in batch])


def boxes_of(masks_BKHW: Tensor) -> Tensor:
    """Boxes (B, K, 4) around masks: left, top, right, bottom as shares of the sides; zeros around nothing."""
    sides = []
    for axis in (-2, -1):  # columns, then rows
        there = masks_BKHW.amax(dim=axis) > 0
        length = there.shape[-1]
        first = there.float().argmax(-1)
        last = length - there.flip(-1).float().argmax(-1)
        sides += [torch.stack([first, last], dim=-1).float() / length]
    boxes = torch.stack([sides[0][..., 0], sides[1][..., 0], sides[0][..., 1], sides[1][..., 1]], dim=-1)
    return boxes * (masks_BKHW.flatten(2).amax(-1) > 0)[..., None]


def normalised(pixels: Tensor, processor: Any) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 255] as an image processor gives pictures of its own size."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (pixels.float() / 255 - mean) / std
