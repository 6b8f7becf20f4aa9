"""Masks: coded and decoded without loss, and averaged down to the grid of image tokens."""

from __future__ import annotations

import numpy as np
import pytest

from agevlm.data.masks import MaskError, decode_mask, encode_mask, mask_to_grid, union_mask, union_to_grid
from agevlm.data.schema import RLE

GRID = (4, 6)


def boxed(size: tuple[int, int], top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (40, 60)])
def test_a_mask_survives_its_code(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(size) < 0.3
    code = encode_mask(mask)
    assert code["size"] == list(size)
    assert code["counts"].isascii()
    assert np.array_equal(decode_mask(code), mask)


def test_a_union_holds_what_any_holds() -> None:
    first, second = boxed((8, 8), 0, 0, 4, 4), boxed((8, 8), 2, 2, 6, 6)
    assert np.array_equal(union_mask([encode_mask(first), encode_mask(second)]), first | second)
    assert np.array_equal(union_mask([encode_mask(first)]), first)
    with pytest.raises(AssertionError, match="no masks"):
        union_mask([])


@pytest.mark.parametrize("size", [(40, 60), (37, 53)])
def test_the_shares_of_a_union_are_remembered_by_size_masks_and_grid(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    first, second = encode_mask(rng.random(size) < 0.2), encode_mask(rng.random(size) < 0.2)
    for masks, grid in (([first], GRID), ([first, second], GRID), ([first], (2, 3)), ([second], GRID)):
        shares = union_to_grid(masks, grid)
        assert np.array_equal(shares, mask_to_grid(union_mask(masks), grid))
        assert union_to_grid([RLE(size=list(size), counts=mask["counts"]) for mask in masks], grid) is shares
        with pytest.raises(ValueError, match="read-only"):
            shares[0, 0] = 1.0
    turned = RLE(size=[size[1], size[0]], counts=first["counts"])  # the same code in a picture of another shape
    assert np.array_equal(union_to_grid([turned], GRID), mask_to_grid(decode_mask(turned), GRID))
    with pytest.raises(MaskError, match="the picture is"):
        union_to_grid([first, turned], GRID)


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (4, 6), (401, 33), (3, 5)])
def test_empty_and_full_masks_stay_so(size: tuple[int, int]) -> None:
    assert np.array_equal(mask_to_grid(np.zeros(size, dtype=bool), GRID), np.zeros(GRID))
    assert np.array_equal(mask_to_grid(np.ones(size, dtype=bool), GRID), np.ones(GRID))


def test_a_cell_is_the_same_share_of_the_picture_whatever_its_shape() -> None:
    for height, width in ((40, 60), (80, 30), (8, 600)):
        grid = mask_to_grid(boxed((height, width), 0, 0, height // 2, width // 2), GRID)
        assert np.array_equal(grid[:2, :3], np.ones((2, 3)))
        assert grid.sum() == 6


def test_shares_are_those_of_the_area() -> None:
    mask = np.random.default_rng(1).random((40, 60)) < 0.5
    grid = mask_to_grid(mask, GRID)
    assert grid.shape == GRID and grid.dtype == np.float32
    for row in range(4):
        for column in range(6):
            cell = mask[10 * row : 10 * row + 10, 10 * column : 10 * column + 10]
            assert grid[row, column] == pytest.approx(cell.mean(), abs=1e-5)


def test_a_thin_mask_keeps_its_small_share() -> None:
    line = boxed((400, 600), 0, 301, 400, 302)  # one pixel wide
    grid = mask_to_grid(line, GRID)
    assert (grid[:, 3] > 0).all()
    assert grid[:, [0, 1, 2, 4, 5]].sum() == 0
    assert grid.sum() == pytest.approx(4 / 100, rel=1e-4)
    point = boxed((400, 600), 399, 599, 400, 600)
    assert mask_to_grid(point, GRID)[3, 5] == pytest.approx(1e-4, rel=1e-3)


def test_a_grid_that_does_not_divide_the_picture_loses_nothing() -> None:
    mask = np.random.default_rng(2).random((37, 53)) < 0.4
    grid = mask_to_grid(mask, GRID)
    assert grid.mean() == pytest.approx(mask.mean(), abs=3e-3)  # Pillow's box filter rounds the edges of its windows
    assert grid.min() >= 0 and grid.max() <= 1
