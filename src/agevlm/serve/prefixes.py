"""Text that was read before is not read again: prefix caching, as servers of language models have it.

Keys and values are kept token by token. A token is named by the hash of it, of the picture shown in it and of all that
stands before, so that conversations share what they have in common at their beginning: turns of one conversation,
questions about one picture, all that have one system prompt.
"""

# Shapes: L decoder layers, G key heads, T tokens, D head width. States (L, 2, G, T, D) are keys and values.

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from agevlm.serve.memories import Lru

ENTRY_BYTES = 1000  # that a token takes in memory besides its states: its name, a tensor, a place in the order of use

WORTH = 50_000_000  # weights times tokens: to read less takes no longer than to find and to lay out what is kept


def least_tokens(model: Any) -> int:
    """From how many tokens on it pays to keep what a model has read."""
    return max(1, WORTH // sum(weight.numel() for weight in model.parameters()))


class Prefixes:
    """The beginnings of conversations that one model has read, at most `max_bytes` of them. For one thread.

    Beginnings of fewer than `least` tokens are read again.
    """

    def __init__(self, max_bytes: int, image_token_id: int, least: int = 1) -> None:
        self._image_token_id, self._least = image_token_id, least
        self._tokens: Lru[Tensor] = Lru(max_bytes, lambda states: states.nbytes + ENTRY_BYTES)

    @property
    def num_bytes(self) -> int:
        """What is kept."""
        return self._tokens.num_bytes

    def find(self, ids: Sequence[int], pictures: Sequence[str]) -> Tensor | None:
        """States of the first tokens of a prompt, as far as they are kept; at least its last token is left to be read.

        `pictures` are the keys of its pictures, one a placeholder.
        """
        if len(ids) <= self._least:
            return None
        names = self._names(ids[:-1], pictures)
        number = self._num_kept(names)
        if number < self._least:
            return None
        kept = [self._tokens.get(name) for name in reversed(names[:number])]  # the first is used last
        states = [token for token in reversed(kept) if token is not None]
        return torch.stack(states).movedim(0, 3)

    def keep(self, ids: Sequence[int], pictures: Sequence[str], states: Callable[[int, int], Tensor]) -> None:
        """Keep what was read; `states` gives those of the tokens from one number to another."""
        if len(ids) < self._least:
            return
        names = self._names(ids, pictures)
        start = self._num_kept(names)
        if start == len(names):
            return
        tokens = states(start, len(names)).movedim(3, 0)
        for name, token in reversed(list(zip(names[start:], tokens, strict=True))):  # so the last of them goes first
            self._tokens.put(name, token.clone(memory_format=torch.contiguous_format))

    def _num_kept(self, names: Sequence[str]) -> int:
        return next((number for number, name in enumerate(names) if name not in self._tokens), len(names))

    def _names(self, ids: Sequence[int], pictures: Sequence[str]) -> list[str]:
        names, so_far, shown = [], hashlib.sha256(), iter(pictures)
        for token in ids:
            so_far.update(f"{token} {next(shown)} ".encode() if token == self._image_token_id else b"%d " % token)
            names.append(so_far.hexdigest())
        return names
