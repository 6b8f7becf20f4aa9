"""Whether the attention of an object word lies on the object: pointing, mass and IoU. Arrays in, figures out.

Where a map comes from is the runner's business: it is the post-softmax cross-attention of the word's tokens, averaged
over tokens, heads and layers. What the word gives to the null token, or to another picture, is not in the map, so that
a map may sum to less than 1; that share counts as outside the object.
"""

# Shapes: h, w the grid of image tokens; Y, X the pixels of the picture.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agevlm.data.masks import mask_to_grid
from agevlm.evaluation.scores import auroc, interval_of_mean

IOU_THRESHOLD_RATIO = 0.5  # of the map's maximum: the cells from here on are "looked at"
COVERED_RATIO = 0.5  # of a cell: from here on it belongs to the object
TOLERANCE_RATIO = 0.03  # of the picture's longer side: what the pointing game forgives


@dataclass(frozen=True)
class Localisation:
    """How the attention of one word meets the mask of what it names.

    `pointing`: the maximum lies on the object or next to it, see `points_inside`. `strict`: the same with no tolerance.
    `ceiling`: what `pointing` is for perfect attention on this grid, each cell as its covered share; where it is false
    the grid is too coarse for the object.
    `mass`: share of all attention that lies on cells that the object touches. `share_mass`: the same with a partly
    covered cell counting by its covered share, so that even perfect attention stays below 1. `iou`: of the cells with
    at least half the maximum and the cells that the object covers by at least half (a thing too small for that: its
    best-covered cells).
    """

    pointing: bool
    strict: bool
    ceiling: bool
    mass: float
    share_mass: float
    iou: float


def localise(map_hw: NDArray[np.floating[Any]], mask_YX: NDArray[np.bool_]) -> Localisation:
    """Compare one map with one mask that is not empty; the grid covers the picture evenly, whatever its shape."""
    if not mask_YX.any():
        raise ValueError("the mask is empty: a word for something absent cannot be localised, leave it out")
    coverage_hw = mask_to_grid(mask_YX, (map_hw.shape[0], map_hw.shape[1]))
    object_hw = coverage_hw >= min(COVERED_RATIO, float(coverage_hw.max()))
    heights_hw = _heights(map_hw)
    looked_hw = heights_hw >= IOU_THRESHOLD_RATIO
    return Localisation(
        pointing=points_inside(map_hw, mask_YX, TOLERANCE_RATIO),
        strict=points_inside(map_hw, mask_YX),
        ceiling=points_inside(coverage_hw, mask_YX, TOLERANCE_RATIO),
        mass=float(map_hw[coverage_hw > 0].sum()),
        share_mass=float((map_hw * coverage_hw).sum()),
        iou=float((looked_hw & object_hw).sum() / (looked_hw | object_hw).sum()),
    )


def points_inside(map_hw: NDArray[np.floating[Any]], mask_YX: NDArray[np.bool_], tolerance_ratio: float = 0.0) -> bool:
    """The pointing game: the maximum of the map, in the picture's pixels, lies at most the tolerance from the mask.

    The map is interpolated bilinearly to the pixels; of equal maxima the first in reading order counts. The tolerance
    is a share of the picture's longer side. The game of Zhang et al. (2016, arXiv 1608.00507) forgives 15 pixels on
    photographs of about 500 by 375, which is 3 %; with 0 a miss by one pixel is a miss, holes of a thing included.
    """
    height, width = mask_YX.shape
    picture = Image.fromarray(_heights(map_hw))
    pixels_YX = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    y, x = np.unravel_index(int(pixels_YX.argmax()), mask_YX.shape)
    if mask_YX[y, x]:
        return True
    rows, columns = np.nonzero(mask_YX)
    distance = np.sqrt(float(((rows - y) ** 2 + (columns - x) ** 2).min()))
    return bool(distance <= tolerance_ratio * max(height, width))


def _heights(map_hw: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """The map over its maximum, to four decimals: cells of a flat picture are equal whatever the batch they ran in."""
    return np.round(map_hw / max(float(map_hw.max()), 1e-12), 4).astype(np.float32)


@dataclass(frozen=True)
class WordAttention:
    """One object word of one question: `where` is None for something absent, `null_mass` None without a null token.

    `entropy` is that of the word's map, see `map_entropy`; None where nobody measured it.
    """

    image: str
    phrase: str
    where: Localisation | None
    null_mass: float | None = None
    entropy: float | None = None


def map_entropy(map_hw: NDArray[np.floating[Any]]) -> float:
    """Entropy of a map that is first made to sum to 1, over log N of its N cells: 0 one cell, 1 all cells alike.

    What went to the null token has no part in it. A map of zeros looks nowhere in particular and has 1, a map of one
    cell 0.
    """
    from scipy.stats import entropy

    shares_N = map_hw.astype(np.float64).ravel()
    if shares_N.size == 1 or shares_N.sum() <= 0:
        return float(shares_N.size > 1)
    return float(np.clip(entropy(shares_N, base=shares_N.size), 0.0, 1.0))


def summarise_words(words: Sequence[WordAttention]) -> dict[str, Any]:
    """The sections `pointing`, `attention` and, with a null token, `null_token`; {} where no word was seen.

    `null_token.auroc` is the chance that a word for something absent gives more to the null token than one for
    something present; it is there where words of both sorts are.
    """
    summary: dict[str, Any] = {}
    present = [(word.image, word.where) for word in words if word.where is not None]
    if present:
        by_image: dict[str, list[float]] = {}
        for image, where in present:
            by_image.setdefault(image, []).append(float(where.pointing))
        summary["pointing"] = {
            "accuracy": float(np.mean([where.pointing for _, where in present])),
            "accuracy_interval": list(interval_of_mean(list(by_image.values()))),
            "strict_accuracy": float(np.mean([where.strict for _, where in present])),
            "ceiling": float(np.mean([where.ceiling for _, where in present])),
            "num_words": len(present),
        }
        summary["attention"] = {
            "mass": float(np.mean([where.mass for _, where in present])),
            "share_mass": float(np.mean([where.share_mass for _, where in present])),
            "iou": float(np.mean([where.iou for _, where in present])),
        }
    there = [word.null_mass for word in words if word.null_mass is not None and word.where is not None]
    absent = [word.null_mass for word in words if word.null_mass is not None and word.where is None]
    if there or absent:
        summary["null_token"] = {
            **({"mass_present": float(np.mean(there))} if there else {}),
            **({"mass_absent": float(np.mean(absent))} if absent else {}),
            **({"auroc": auroc(absent, there)} if there and absent else {}),
        }
    return summary
