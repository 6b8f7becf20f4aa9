"""Samples → one batch of tensors: text rows, the pictures they share, labels, and the rows and masks of guidance.

Knows the processor's tokens and the grid of image tokens; knows nothing of the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agevlm.data.chat import TokenisedChat, tokenise_conversation
from agevlm.data.images import open_image
from agevlm.data.masks import mask_to_grid, union_mask
from agevlm.data.schema import IGNORE_INDEX, RLE, Conversation, Sample

# Shapes: R text rows, T text positions, K guided positions of a row, M pictures of a row, N = M * h * w image tokens.


@dataclass(frozen=True)
class _GuidedRow:
    """One text position and where its attention belongs: shares (N,) of the image tokens, or absent."""

    position: int
    shares: NDArray[np.float32]
    present: bool


@dataclass
class Collator:
    """Collates samples, each with its chosen conversations, to the arguments of the model and of guidance.

    `grid` is the (h, w) of image tokens. With `guided`, the batch carries the positions to guide; `answer_position`
    adds the position that predicts an answer about grounded words. `dropped` counts by reason what was left out.
    """

    processor: Any
    grid: tuple[int, int]
    guided: bool = False
    answer_position: bool = True
    max_length: int = 512
    dropped: Counter[str] = field(default_factory=Counter)

    def __call__(self, items: Sequence[tuple[Sample, NDArray[np.float16] | None]]) -> dict[str, Any]:
        """Batch samples with their cached features (images, C, h, w), or None to read their pictures."""
        samples = [sample for sample, _ in items]
        rows = [(sample, conversation) for sample in samples for conversation in sample.conversations]
        if not rows:
            raise ValueError(f"samples {[sample.id for sample in samples]} have no conversation")
        chats = [tokenise_conversation(self.processor, conversation, self.max_length) for _, conversation in rows]
        batch: dict[str, Any] = self._text(chats)
        batch |= self._images(items)
        batch["image_index"] = self._image_index(samples)
        if per_image := _rows_per_image(samples):
            batch["rows_per_image"] = per_image
        if self.guided:
            batch |= self._guidance(rows, chats, batch["input_ids"].shape[1])
        batch["sample_ids"] = [conversation.id for _, conversation in rows]
        return batch

    def _text(self, chats: Sequence[TokenisedChat]) -> dict[str, Tensor]:
        length = max(len(chat.input_ids) for chat in chats)
        input_ids = torch.full((len(chats), length), self.processor.tokenizer.pad_token_id)
        labels = torch.full((len(chats), length), IGNORE_INDEX)
        attention_mask = torch.zeros(len(chats), length, dtype=torch.long)
        for row, chat in enumerate(chats):
            start = length - len(chat.input_ids)
            ids = torch.tensor(chat.input_ids)
            input_ids[row, start:] = ids
            attention_mask[row, start:] = 1
            labels[row, start:] = torch.where(torch.tensor(chat.supervised), ids, IGNORE_INDEX)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def _images(self, items: Sequence[tuple[Sample, NDArray[np.float16] | None]]) -> dict[str, Tensor]:
        if all(features is not None for _, features in items):
            features = np.concatenate([features for _, features in items if features is not None])
            return {"image_features": torch.from_numpy(features).float()}
        pictures = [open_image(image) for sample, _ in items for image in sample.images]
        if not pictures:
            return {}
        return {"pixel_values": self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]}

    def _image_index(self, samples: Sequence[Sample]) -> Tensor:
        """(R, M): the number in the batch of each picture that a row shows, -1 for none."""
        most = max(1, *(len(sample.images) for sample in samples)) if len(samples) > 1 else len(samples[0].images) or 1
        index, first = [], 0
        for sample in samples:
            numbers = list(range(first, first + len(sample.images)))
            first += len(numbers)
            for conversation in sample.conversations:
                shown = numbers[: sum(message.num_images for message in conversation.messages)]
                index.append(shown + [-1] * (most - len(shown)))
        return torch.tensor(index)

    def _guidance(
        self, rows: Sequence[tuple[Sample, Conversation]], chats: Sequence[TokenisedChat], length: int
    ) -> dict[str, Tensor]:
        """Positions (R, K), shares (R, K, N) and presence (R, K): 1 there, 0 absent, -1 padding."""
        most = max(max(len(sample.images) for sample, _ in rows), 1)
        guided = [
            self._guided_rows(conversation, chat, most) for (_, conversation), chat in zip(rows, chats, strict=True)
        ]
        width = max(1, *(len(positions) for positions in guided)) if len(guided) > 1 else len(guided[0]) or 1
        attention_rows = torch.zeros(len(rows), width, dtype=torch.long)
        present = torch.full((len(rows), width), -1)
        shares = torch.zeros(len(rows), width, most * self.grid[0] * self.grid[1])
        for row, positions in enumerate(guided):
            start = length - len(chats[row].input_ids)
            for column, position in enumerate(positions):
                attention_rows[row, column] = start + position.position
                present[row, column] = int(position.present)
                shares[row, column] = torch.from_numpy(position.shares)
        return {"attention_rows": attention_rows, "guidance_present": present, "guidance_shares": shares}

    def _guided_rows(self, conversation: Conversation, chat: TokenisedChat, num_images: int) -> list[_GuidedRow]:
        shown = sum(message.num_images for message in conversation.messages)
        if not shown:
            return []
        rows: list[_GuidedRow] = []
        asked: dict[int, list[tuple[int, tuple[RLE, ...]]]] = {}
        for grounding, tokens in zip(conversation.groundings, chat.phrase_tokens, strict=True):
            if grounding.present is None:
                self.dropped["phrase that may be there or not"] += 1
                continue
            if not tokens:
                self.dropped["phrase beyond max_length"] += 1
                continue
            shares = self._shares([(grounding.image, grounding.masks)], num_images)
            rows += [_GuidedRow(token, shares, grounding.present) for token in tokens]
            asked.setdefault(grounding.message + 1, []).append((grounding.image, grounding.masks))
        if self.answer_position:
            for message, regions in asked.items():
                position = chat.answer_positions.get(message)
                if position is not None:
                    there = any(masks for _, masks in regions)
                    rows.append(_GuidedRow(position, self._shares(regions, num_images), there))
        return rows

    def _shares(self, regions: Sequence[tuple[int, tuple[RLE, ...]]], num_images: int) -> NDArray[np.float32]:
        shares = np.zeros((num_images, *self.grid), dtype=np.float32)
        for image, masks in regions:
            if masks:
                shares[image] = np.maximum(shares[image], mask_to_grid(union_mask(masks), self.grid))
        return shares.reshape(-1)


def _rows_per_image(samples: Sequence[Sample]) -> int | None:
    """The number of rows of each picture where all samples have one picture and equally many rows, each showing it."""
    counts = {len(sample.conversations) for sample in samples}
    single = all(len(sample.images) == 1 for sample in samples)
    shown = all(any(m.num_images for m in c.messages) for sample in samples for c in sample.conversations)
    return counts.pop() if single and shown and len(counts) == 1 else None
