"""Text that was read before is not read again: prefix caching, as servers of language models have it.

Keys and values are kept in blocks of a few tokens. A block is named by the hash of its tokens, of the pictures shown in
them and of the block before it, so that conversations that begin alike share their blocks: turns of one conversation,
questions about one picture, all that have one system prompt.
"""

# Shapes: L decoder layers, G key heads, T tokens, D head width. States (L, 2, G, T, D) are keys and values.

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from agevlm.serve.memories import Lru

BLOCK = 8  # tokens


class Prefixes:
    """The beginnings of conversations that one model has read, at most `max_bytes` of them. For one thread."""

    def __init__(self, max_bytes: int, image_token_id: int) -> None:
        self._image_token_id = image_token_id
        self._blocks: Lru[Tensor] = Lru(max_bytes, lambda states: states.numel() * states.element_size())

    @property
    def num_bytes(self) -> int:
        """What is kept."""
        return self._blocks.num_bytes

    def find(self, ids: Sequence[int], pictures: Sequence[str]) -> Tensor | None:
        """States of the first tokens of a prompt, as far as they are kept; at least its last token is left to be read.

        `pictures` are the keys of its pictures, one a placeholder.
        """
        names = self._names(ids[:-1], pictures)
        kept = [self._blocks.get(name) for name in reversed(names[: self._num_kept(names)])]  # the first is used last
        states = [block for block in reversed(kept) if block is not None]
        return torch.cat(states, dim=3) if states else None

    def keep(self, ids: Sequence[int], pictures: Sequence[str], states: Callable[[int, int], Tensor]) -> None:
        """Keep whole blocks of what was read; `states` gives those of the tokens from one number to another."""
        names = self._names(ids, pictures)
        start = self._num_kept(names)
        if start == len(names):
            return
        blocks = states(start * BLOCK, len(names) * BLOCK).split(BLOCK, dim=3)
        for name, block in reversed(list(zip(names[start:], blocks, strict=True))):  # so the last of them goes first
            self._blocks.put(name, block.clone())

    def _num_kept(self, names: Sequence[str]) -> int:
        return next((number for number, name in enumerate(names) if name not in self._blocks), len(names))

    def _names(self, ids: Sequence[int], pictures: Sequence[str]) -> list[str]:
        names, before, shown = [], "", iter(pictures)
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            block = ids[start : start + BLOCK]
            here = [next(shown) for token in block if token == self._image_token_id]
            before = hashlib.sha256(" ".join([before, *map(str, block), *here]).encode()).hexdigest()
            names.append(before)
        return names
