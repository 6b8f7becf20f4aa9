"""Rows of text that are written together: a batch that rows join and leave between any two steps.

A row's prompt is read apart, with the other newcomers, and its keys and values are then laid beside those of the rows
that run. Rows are padded on the left, and where some begin with what was read before, between that and the rest; what
no row needs is cut off when the batch changes. Pictures come as memories: a picture that was seen before costs neither
vision nor keys.

Knows the network and tensors; no request, no text, no sampling.
"""

# Shapes: R rows, T tokens with padding, M pictures of a row at most, V vocabulary, L layers, G key heads, D head width.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from agevlm.modeling.cross_attention import ImageMemory
from agevlm.modeling.interleaving import count_images_seen
from agevlm.serve.fusing import fuse

Memories = Sequence[ImageMemory]  # of the pictures of a row, one picture each


@dataclass(frozen=True)
class Pictured:
    """The pictures of some rows as arguments of the network."""

    memories: tuple[Memories, ...]

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """`image_memory` and whose is whose; one picture a row is laid out once, so that no step gathers."""
        if not any(self.memories):
            return {}
        if all(len(row) == 1 for row in self.memories):
            return {"image_memory": ImageMemory.cat([row[0] for row in self.memories]), "rows_per_image": 1}
        number = {id(memory): place for place, memory in enumerate(self._distinct)}
        most = max(map(len, self.memories))
        index = [[number[id(memory)] for memory in row] + [-1] * (most - len(row)) for row in self.memories]
        memory = ImageMemory.cat(self._distinct)
        return {"image_memory": memory, "image_index": torch.tensor(index, device=memory.device)}

    @cached_property
    def _distinct(self) -> list[ImageMemory]:
        return list({id(memory): memory for row in self.memories for memory in row}.values())

    def seen_by_next(self, device: torch.device) -> dict[str, Tensor]:
        """`images_seen` (R, 1) of the next token of each row: all its pictures."""
        if not self.arguments:
            return {}
        return {"images_seen": torch.tensor([[len(row)] for row in self.memories], device=device)}


@dataclass(frozen=True)
class Rows:
    """Rows read so far: the decoder's keys and values (R, G, T, D) a layer, and which tokens are text (R, T)."""

    cache: DynamicCache
    mask_RT: Tensor
    pictured: Pictured = field(repr=False)

    def __len__(self) -> int:
        return len(self.mask_RT)

    def num_tokens(self, number: int) -> int:
        """How many tokens of a row were read."""
        return int(self.mask_RT[number].sum())

    def states(self, number: int, start: int, end: int) -> Tensor:
        """Keys and values (L, 2, G, end - start, D) of tokens of one row, counted without padding."""
        places = self.mask_RT[number].nonzero()[start:end, 0]
        pairs = ((layer.keys[number], layer.values[number]) for layer in self.cache.layers)
        return torch.stack([torch.stack([states[:, places] for states in pair]) for pair in pairs])

    def select(self, numbers: Sequence[int]) -> Rows:
        """The rows with these numbers, in that order, repeats allowed; padding that all of them have is cut off."""
        mask_RT = self.mask_RT[list(numbers)]
        start = int(mask_RT.any(dim=0).int().argmax())
        cache = DynamicCache()
        index = torch.tensor(numbers, device=mask_RT.device)
        for place, layer in enumerate(self.cache.layers):
            keys, values = (states[index, :, start:] for states in (layer.keys, layer.values))
            cache.update(keys, values, place)
        pictured = Pictured(tuple(self.pictured.memories[number] for number in numbers))
        return Rows(cache, mask_RT[:, start:], pictured)

    def joined(self, other: Rows) -> Rows:
        """These rows and then the others, the shorter ones padded on the left."""
        longest = max(self.mask_RT.shape[1], other.mask_RT.shape[1])
        mask_RT = torch.cat([F.pad(rows.mask_RT, (longest - rows.mask_RT.shape[1], 0)) for rows in (self, other)])
        cache = DynamicCache()
        for place, (mine, others) in enumerate(zip(self.cache.layers, other.cache.layers, strict=True)):
            keys = torch.cat([_padded(layer.keys, longest) for layer in (mine, others)])
            values = torch.cat([_padded(layer.values, longest) for layer in (mine, others)])
            cache.update(keys, values, place)
        return Rows(cache, mask_RT, Pictured(self.pictured.memories + other.pictured.memories))


def _padded(states_RGTD: Tensor, length: int) -> Tensor:
    return F.pad(states_RGTD, (0, 0, length - states_RGTD.shape[-2], 0))


def _begun(prefixes: Sequence[Tensor | None], length: int) -> DynamicCache:
    """A cache of rows of which so many tokens were read before, the shorter ones padded on the left."""
    cache = DynamicCache()
    if length:
        nothing = next(prefix for prefix in prefixes if prefix is not None)[..., :0, :]
        rows = [_padded(nothing if prefix is None else prefix, length) for prefix in prefixes]
        for place, (keys, values) in enumerate(torch.stack(rows, dim=2).unbind()):
            cache.update(keys, values, place)
    return cache


def _where_padded(mask_RT: Tensor) -> Tensor | None:
    """None where nothing is padded: attention without a mask is faster."""
    return None if mask_RT.all() else mask_RT


class Decoder:
    """The steps of a network with image memories; all methods are to be called in inference mode, by one thread.

    The network is the decoder's from then on: its layers are computed in fewer calls, with the same results.
    """

    def __init__(self, model: Any, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        fuse(model)

    def read(
        self,
        prompts: Sequence[Sequence[int]],
        memories: Sequence[Memories],
        prefixes: Sequence[Tensor | None] = (),
    ) -> tuple[Rows, Tensor]:
        """Read prompts (token ids) with the memories of their pictures: their rows, and logits (R, V) of what follows.

        A prompt has a placeholder for each of its pictures. `prefixes` are states (L, 2, G, T, D) of the first tokens
        of each, where they were read before; at least one token must be left.
        """
        device = self.model.device
        known = [0 if prefix is None else prefix.shape[3] for prefix in prefixes or [None] * len(prompts)]
        rest = [list(prompt[start:]) for prompt, start in zip(prompts, known, strict=True)]
        longest = max(map(len, rest))
        ids = torch.tensor([[self.pad_id] * (longest - len(row)) + row for row in rest], device=device)
        read = max(known)
        mask = torch.tensor(
            [
                [0] * (read - start) + [1] * start + [0] * (longest - len(row)) + [1] * len(row)
                for start, row in zip(known, rest, strict=True)
            ],
            device=device,
        )
        pictured = Pictured(tuple(memories))
        output = self.model(
            input_ids=ids,
            attention_mask=_where_padded(mask),
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, read:],
            cache=_begun(prefixes, read),
            use_cache=True,
            logits_to_keep=1,
            **pictured.arguments,
            **self._seen(pictured, [prompt[:start] for prompt, start in zip(prompts, known, strict=True)], ids),
        )
        return Rows(output.cache, mask, pictured), output.logits[:, -1]

    def _seen(self, pictured: Pictured, before: Sequence[Sequence[int]], ids_RT: Tensor) -> dict[str, Tensor]:
        """`images_seen` (R, T) of tokens that stand behind others, where there are pictures."""
        if not pictured.arguments:
            return {}
        image = self.model.config.image_token_id
        seen_R1 = torch.tensor([[list(ids).count(image)] for ids in before], device=ids_RT.device)
        return {"images_seen": seen_R1 + count_images_seen(ids_RT, image)}

    def step(self, rows: Rows, tokens: Sequence[int]) -> tuple[Rows, Tensor]:
        """Let each row say one token more: the rows behind it, and logits (R, V) of what follows.

        The cache of `rows` is filled further and must not be used again.
        """
        tokens_R1 = torch.tensor(tokens, device=rows.mask_RT.device)[:, None]
        mask = torch.cat([rows.mask_RT, rows.mask_RT.new_ones(len(rows), 1)], dim=1)
        output = self.model(
            input_ids=tokens_R1,
            attention_mask=_where_padded(mask),
            position_ids=mask.sum(-1, keepdim=True) - 1,
            cache=rows.cache,
            use_cache=True,
            **rows.pictured.arguments,
            **rows.pictured.seen_by_next(mask.device),
        )
        return Rows(output.cache, mask, rows.pictured), output.logits[:, -1]
