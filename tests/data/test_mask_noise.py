"""Spoiled masks: what is spoiled, how much of it, and that the same things are spoiled every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from agevlm.data.mask_noise import MaskNoise, Row, spoil_masks
from agevlm.data.masks import decode_mask, encode_mask
from agevlm.data.schema import Conversation, Grounding, Message, Sample


def make_rows(num: int) -> list[Row]:
    """Samples with one question each; sample `i` has an L of 3 cells in column `i` of an 8 by 40 picture."""
    rows = []
    for number in range(num):
        mask = np.zeros((8, 40), dtype=bool)
        mask[2:4, number % 38] = mask[3, number % 38 + 1] = True
        grounding = Grounding(0, 9, 14, "boat?", True, (encode_mask(mask),))
        absent = Grounding(0, 0, 2, "is", False)
        messages = (Message("user", "is there boat?"), Message("assistant", "yes"))
        conversation = Conversation(f"{number}/0", "presence", messages, (grounding, absent))
        rows.append((Sample(f"s{number}", (), (conversation,)), conversation))
    return rows


def columns(rows: list[Row]) -> list[int]:
    masks = [conversation.groundings[0].masks for _, conversation in rows]
    return [int(np.flatnonzero(decode_mask(mask[0]).any(axis=0))[0]) if mask else -1 for mask in masks]


def test_boxes_are_the_smallest_around_each_mask() -> None:
    rows = spoil_masks(make_rows(3), MaskNoise(boxes=True))
    for number, (_, conversation) in enumerate(rows):
        box = decode_mask(conversation.groundings[0].masks[0])
        assert np.argwhere(box).tolist() == [[row, column] for row in (2, 3) for column in (number, number + 1)]
        assert conversation.groundings[1] == make_rows(1)[0][1].groundings[1]


def test_swapped_phrases_get_masks_of_another_sample_in_the_share_asked_for() -> None:
    before, after = (
        columns(rows) for rows in (make_rows(380), spoil_masks(make_rows(380), MaskNoise(swapped_ratio=0.3)))
    )
    swapped = [new != old for old, new in zip(before, after, strict=True)]
    assert 0.24 < sum(swapped) / 380 < 0.36
    assert all(new == (old + 1) % 38 for old, new, is_new in zip(before, after, swapped, strict=True) if is_new)


def test_unknown_samples_are_not_supervised_at_all() -> None:
    rows = spoil_masks(make_rows(400), MaskNoise(known_ratio=0.1))
    known = [conversation.groundings[0].present is True for _, conversation in rows]
    assert 0.06 < sum(known) / 400 < 0.14
    for is_known, (_, conversation) in zip(known, rows, strict=True):
        assert [g.present for g in conversation.groundings] == ([True, False] if is_known else [None, None])


def test_the_same_things_are_spoiled_in_another_batch() -> None:
    noise = MaskNoise(swapped_ratio=0.5, known_ratio=0.5)
    rows = make_rows(30)
    whole = columns(spoil_masks(rows, noise))
    alone = columns(spoil_masks(rows[::-1], noise))[::-1]
    assert [column == -1 for column in whole] == [column == -1 for column in alone]
    own = columns(rows)
    assert [a == o for a, o in zip(whole, own, strict=True)] == [b == o for b, o in zip(alone, own, strict=True)]


def test_a_batch_of_one_sample_has_nothing_to_swap_with() -> None:
    assert columns(spoil_masks(make_rows(1), MaskNoise(swapped_ratio=1.0))) == [0]
    (sample, conversation), *_ = make_rows(1)
    absent = replace(conversation, groundings=conversation.groundings[1:])
    assert spoil_masks([(sample, absent)], MaskNoise(swapped_ratio=1.0)) == [(sample, absent)]


def test_ratios_are_ratios() -> None:
    with pytest.raises(ValidationError, match="swapped_ratio"):
        MaskNoise(swapped_ratio=1.5)
