"""Scenes to train on, to validate on and to test on never share a seed."""

from __future__ import annotations

import zlib

import numpy as np

SPLITS = ("train", "validation", "test")
_SHIFT = 48


def split_seed(split: str, seed: int) -> int:
    """The seed of the scenes of a split ("train", "validation" or "test") for a user's `seed` of at least 0.

    The ranges of the splits do not meet, whatever the seeds: the split's number stands above 48 bits drawn from the
    user's seed.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if seed < 0:
        raise ValueError(f"a seed is at least 0, got {seed}")
    low, high = np.random.SeedSequence([zlib.crc32(split.encode()), seed]).generate_state(2)
    return (SPLITS.index(split) + 1) << _SHIFT | (int(high) & 0xFFFF) << 32 | int(low)
