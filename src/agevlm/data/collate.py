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
from agevlm.data.mask_noise import MaskNoise, spoil_masks
from agevlm.data.masks import union_to_grid
from agevlm.data.schema import IGNORE_INDEX, RLE, Conversation, Grounding, Sample

MAX_KNOWN_CHATS = 20_000  # tokenised conversations that are kept: short questions come again and again

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
    adds the position that predicts an answer about grounded words, but not in conversations of the kinds
    `free_answers`; `mask_noise` spoils the masks. What is left out is counted by reason in the batch's `left_out`.
    """

    processor: Any
    grid: tuple[int, int]
    guided: bool = False
    answer_position: bool = True
    free_answers: tuple[str, ...] = ()
    mask_noise: MaskNoise | None = None
    max_length: int = 512
    _known: dict[tuple[Any, ...], TokenisedChat] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, items: Sequence[tuple[Sample, NDArray[np.float16] | None]]) -> dict[str, Any]:
        """Batch samples with their cached features (images, C, h, w), or None to read their pictures.

        A conversation that shows more pictures than its sample has is a ValueError that names it.
        """
        samples = [sample for sample, _ in items]
        rows = [(sample, conversation) for sample in samples for conversation in sample.conversations]
        if not rows:
            raise ValueError(f"samples {[sample.id for sample in samples]} have no conversation")
        chats = [self._tokenised(conversation) for _, conversation in rows]
        cut = [chat for chat in chats if chat.num_cut]
        left_out = Counter({"conversations cut at max_length": len(cut)})
        left_out["conversations cut before all that was to be learned"] = sum(not any(c.supervised) for c in cut)
        batch: dict[str, Any] = self._text(chats)
        batch |= self._images(items)
        shown = [
            self._num_shown(sample, conversation, chat)
            for (sample, conversation), chat in zip(rows, chats, strict=True)
        ]
        batch["image_index"] = _image_index(samples, shown)
        if per_image := _rows_per_image(samples):
            batch["rows_per_image"] = per_image
            batch["images_seen"] = (batch["input_ids"] == self.processor.image_token_id).cumsum(dim=-1)
        if self.guided:
            seen = spoil_masks(rows, self.mask_noise) if self.mask_noise else rows
            batch |= self._guidance(seen, chats, left_out)
        batch["sample_ids"] = [conversation.id for _, conversation in rows]
        batch["left_out"] = {reason: number for reason, number in left_out.items() if number}
        return batch

    def _tokenised(self, conversation: Conversation) -> TokenisedChat:
        """As `tokenise_conversation`, which knows nothing of a conversation but its words and where its phrases are."""
        spans = tuple((grounding.message, grounding.start, grounding.end) for grounding in conversation.groundings)
        key = (conversation.kind, conversation.messages, spans)
        if key not in self._known:
            if len(self._known) == MAX_KNOWN_CHATS:
                self._known.clear()
            self._known[key] = tokenise_conversation(self.processor, conversation, self.max_length)
        return self._known[key]

    def _num_shown(self, sample: Sample, conversation: Conversation, chat: TokenisedChat) -> int:
        """How many of its sample's pictures a row shows: as many as placeholders are left of it."""
        stated = sum(message.num_images for message in conversation.messages)
        if stated > len(sample.images):
            raise ValueError(
                f"conversation {conversation.id} shows {stated} pictures, and its sample has {len(sample.images)}: "
                "give the sample its pictures, or correct num_images"
            )
        return chat.input_ids.count(self.processor.image_token_id)

    def _text(self, chats: Sequence[TokenisedChat]) -> dict[str, Tensor]:
        length = max(len(chat.input_ids) for chat in chats)
        padding = self.processor.tokenizer.pad_token_id
        left = [length - len(chat.input_ids) for chat in chats]
        input_ids = [[padding] * num + chat.input_ids for num, chat in zip(left, chats, strict=True)]
        supervised = [[False] * num + chat.supervised for num, chat in zip(left, chats, strict=True)]
        mask = [[0] * num + [1] * (length - num) for num in left]
        ids = torch.tensor(input_ids)
        labels = torch.where(torch.tensor(supervised), ids, IGNORE_INDEX)
        return {"input_ids": ids, "attention_mask": torch.tensor(mask), "labels": labels}

    def _images(self, items: Sequence[tuple[Sample, NDArray[np.float16] | None]]) -> dict[str, Tensor]:
        pictured = [(sample, features) for sample, features in items if sample.images]
        cached = [features for _, features in pictured if features is not None]
        if not pictured:
            return {}
        if len(cached) == len(pictured):
            return {"image_features": torch.from_numpy(np.concatenate(cached)).float()}
        pictures = [open_image(image) for sample, _ in pictured for image in sample.images]
        return {"pixel_values": self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]}

    def _guidance(
        self, rows: Sequence[tuple[Sample, Conversation]], chats: Sequence[TokenisedChat], left_out: Counter[str]
    ) -> dict[str, Tensor]:
        """Positions (R, K), shares (R, K, N) and presence (R, K): 1 there, 0 absent, -1 padding."""
        length = max(len(chat.input_ids) for chat in chats)
        most = max([1, *(len(sample.images) for sample, _ in rows)])
        guided = [
            self._guided_rows(conversation, chat, most, left_out)
            for (_, conversation), chat in zip(rows, chats, strict=True)
        ]
        width = max([1, *(len(positions) for positions in guided)])
        attention_rows = np.zeros((len(rows), width), dtype=np.int64)
        present = np.full((len(rows), width), -1)
        shares = np.zeros((len(rows), width, most * self.grid[0] * self.grid[1]), dtype=np.float32)
        for row, positions in enumerate(guided):
            start = length - len(chats[row].input_ids)
            for column, position in enumerate(positions):
                attention_rows[row, column] = start + position.position
                present[row, column] = int(position.present)
                shares[row, column] = position.shares
        found = {"attention_rows": attention_rows, "guidance_present": present, "guidance_shares": shares}
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def _guided_rows(
        self, conversation: Conversation, chat: TokenisedChat, num_images: int, left_out: Counter[str]
    ) -> list[_GuidedRow]:
        rows: list[_GuidedRow] = []
        asked: dict[int, list[tuple[int, tuple[RLE, ...]]]] = {}
        for grounding, tokens in zip(conversation.groundings, chat.phrase_tokens, strict=True):
            if reason := _no_guidance(grounding, tokens, conversation):
                left_out[reason] += 1
                continue
            shares = self._shares([(grounding.image, grounding.masks)], num_images)
            rows += [_GuidedRow(token, shares, bool(grounding.present)) for token in tokens]
            asked.setdefault(grounding.message + 1, []).append((grounding.image, grounding.masks))
        if self.answer_position and conversation.kind not in self.free_answers:
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
                shares[image] = np.maximum(shares[image], union_to_grid(masks, self.grid))
        return shares.reshape(-1)


def _no_guidance(grounding: Grounding, tokens: Sequence[int], conversation: Conversation) -> str | None:
    """Why a phrase is not guided, or None where it is."""
    if grounding.present is None:
        return "phrases that may be there or not"
    if not tokens:
        return "phrases cut at max_length"
    shown = sum(message.num_images for message in conversation.messages[: grounding.message + 1])
    return "phrases about a picture that they do not see" if grounding.image >= shown else None


def _image_index(samples: Sequence[Sample], shown: Sequence[int]) -> Tensor:
    """(R, M): the number in the batch of each picture that a row shows, -1 for none."""
    most = max([1, *(len(sample.images) for sample in samples)])
    index = torch.full((len(shown), most), -1)
    row = first = 0
    for sample in samples:
        for _ in sample.conversations:
            index[row, : shown[row]] = torch.arange(first, first + shown[row])
            row += 1
        first += len(sample.images)
    return index


def _rows_per_image(samples: Sequence[Sample]) -> int | None:
    """The number of rows of each picture where all samples have one picture and equally many rows about it."""
    counts = {len(sample.conversations) for sample in samples}
    return counts.pop() if len(counts) == 1 and all(len(sample.images) == 1 for sample in samples) else None
