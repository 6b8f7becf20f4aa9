"""Localisation on maps and masks drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from agevlm.evaluation.localisation import WordAttention, localise, map_entropy, points_inside, summarise_words


def _mask(rows: slice, columns: slice, size: tuple[int, int] = (32, 32)) -> NDArray[np.bool_]:
    mask = np.zeros(size, dtype=bool)
    mask[rows, columns] = True
    return mask


def _map(*cells: tuple[int, int, float]) -> NDArray[np.float32]:
    attention = np.zeros((4, 4), dtype=np.float32)
    for row, column, share in cells:
        attention[row, column] = share
    return attention


def test_all_on_the_object() -> None:
    found = localise(_map((1, 2, 1.0)), _mask(slice(8, 16), slice(16, 24)))
    assert (found.pointing, found.strict, found.mass, found.iou) == (True, True, 1.0, 1.0)


def test_beside_the_object() -> None:
    found = localise(_map((1, 1, 1.0)), _mask(slice(8, 16), slice(16, 24)))
    assert (found.pointing, found.strict, found.mass, found.iou) == (False, False, 0.0, 0.0)


def test_half_covered_cells_count_by_their_share_and_null_attention_counts_outside() -> None:
    mask = _mask(slice(8, 16), slice(16, 28))  # cell (1, 2) whole, cell (1, 3) half
    found = localise(_map((1, 2, 0.4), (1, 3, 0.2), (0, 0, 0.1)), mask)  # 0.3 went to the null token
    assert found.mass == pytest.approx(0.4 + 0.2)
    assert found.share_mass == pytest.approx(0.4 + 0.5 * 0.2)
    assert found.iou == pytest.approx(1.0)  # both cells hold at least half the maximum


def test_iou_drops_what_is_below_half_of_the_maximum() -> None:
    found = localise(_map((1, 2, 0.6), (1, 3, 0.2), (0, 0, 0.2)), _mask(slice(8, 16), slice(16, 32)))
    assert found.iou == pytest.approx(0.5)


def test_a_thing_smaller_than_half_a_cell_is_still_found() -> None:
    small = _mask(slice(11, 13), slice(19, 21))  # around the centre of cell (1, 2)
    found = localise(_map((1, 2, 1.0)), small)
    assert found.pointing
    assert found.iou == 1.0
    assert found.mass == 1.0
    assert found.share_mass == pytest.approx(4 / 64)


def test_a_grid_may_be_too_coarse_for_a_thing() -> None:
    in_a_corner = _mask(slice(8, 10), slice(16, 18))  # of cell (1, 2), whose middle is the best that can be pointed at
    found = localise(_map((1, 2, 1.0)), in_a_corner)
    assert (found.pointing, found.ceiling) == (False, False)
    assert localise(_map((0, 0, 1.0)), _mask(slice(8, 16), slice(16, 24))).ceiling
    fine = localise(np.zeros((16, 16), dtype=np.float32), in_a_corner)
    assert (fine.pointing, fine.ceiling) == (False, True)


def test_pointing_is_strict_and_knows_pictures_that_are_not_square() -> None:
    attention = _map((2, 1, 1.0))  # centred on row 2.5 / 4, column 1.5 / 4
    assert points_inside(attention, _mask(slice(24, 26), slice(23, 25), (40, 64)))
    beside = _mask(slice(24, 26), slice(26, 40), (40, 64))
    assert not points_inside(attention, beside)
    assert points_inside(attention, beside, tolerance_ratio=0.05)
    assert not points_inside(attention, beside, tolerance_ratio=0.01)


def test_an_empty_mask_is_an_error() -> None:
    with pytest.raises(ValueError, match="absent"):
        localise(_map((0, 0, 1.0)), np.zeros((32, 32), dtype=bool))


def test_summary() -> None:
    hit = localise(_map((1, 2, 0.9)), _mask(slice(8, 16), slice(16, 24)))
    miss = localise(_map((1, 1, 0.5)), _mask(slice(8, 16), slice(16, 24)))
    words = [
        WordAttention("a", "cup", hit, 0.1),
        WordAttention("b", "cup", miss, 0.5),
        WordAttention("b", "fish", None, 0.7),
        WordAttention("b", "boat", None, 0.3),
    ]
    summary = summarise_words(words)
    assert summary["pointing"]["accuracy"] == 0.5
    assert summary["pointing"]["num_words"] == 2
    assert summary["pointing"]["ceiling"] == 1.0
    assert summary["attention"]["mass"] == pytest.approx(0.45)
    assert summary["null_token"] == {
        "mass_present": pytest.approx(0.3),
        "mass_absent": pytest.approx(0.5),
        "auroc": 0.75,
    }


def test_summary_without_null_token_and_without_words() -> None:
    hit = localise(_map((1, 2, 1.0)), _mask(slice(8, 16), slice(16, 24)))
    assert "null_token" not in summarise_words([WordAttention("a", "cup", hit), WordAttention("a", "fish", None)])
    assert summarise_words([]) == {}


def test_entropy_of_a_map_is_0_on_one_cell_and_1_on_all_alike() -> None:
    assert map_entropy(_map((1, 2, 0.3))) == 0.0
    assert map_entropy(np.full((4, 4), 0.01, dtype=np.float32)) == pytest.approx(1.0)
    assert map_entropy(_map((0, 0, 0.1), (0, 1, 0.1), (3, 0, 0.1), (3, 3, 0.1))) == pytest.approx(0.5)  # 4 cells of 16


def test_entropy_knows_nothing_of_the_null_token_and_of_a_grid_of_one_cell() -> None:
    attention = _map((0, 0, 0.6), (2, 3, 0.3), (1, 1, 0.1))
    assert map_entropy(attention * 1e-3) == pytest.approx(map_entropy(attention), abs=1e-6)
    assert map_entropy(np.zeros((4, 4), dtype=np.float32)) == 1.0
    assert map_entropy(np.ones((1, 1), dtype=np.float32)) == 0.0
