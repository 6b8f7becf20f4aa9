"""Ask a model many prompts about pictures: greedy answers, P(yes), and where object words look.

One pass over a batch of prompts gives all three; short answers then take a token or two more. How a model is asked is
the business of `agevlm.vlms`; here prompts become batches, and what came out becomes replies. Nothing here scores.
"""

# Shapes: h, w the grid of one picture.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agevlm.data.masks import union_mask
from agevlm.evaluation.questions import Prompt

if TYPE_CHECKING:
    from agevlm.vlms import Answer, Asking, Inputs, Kept, Reading, Row, Vlm

PLAIN = "plain"
"""The way to answer as the model does; all are in `agevlm.vlms.ways`."""

MOVED = "what is asked stands elsewhere in this way to answer, so where its words look is not measured"

ENCODED_ONCE, ENCODED_ANEW = 256, 8  # prompts at once, by whether a picture's encoding serves them all


@dataclass(frozen=True)
class WordMap:
    """Attention of one word on its picture (h, w), and on the null token (None where the model has none)."""

    map_hw: NDArray[np.float32]
    null_mass: float | None


@dataclass(frozen=True)
class Reply:
    """An answer, P(yes) / (P(yes) + P(no)) at its first token, and a map for each word.

    A map is None where the word has no token, and for all words of a model whose attention cannot be read.
    """

    text: str
    p_yes: float
    maps: tuple[WordMap | None, ...]


class Asker:
    """Asks one model, `batch_size` prompts at once; None: as many as suit the model. `way` is one of `vlms.ways.WAYS`.

    `note` says why there are no maps, None where there are.
    """

    def __init__(self, vlm: Vlm, batch_size: int | None = None, way: str = PLAIN) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is the number of prompts asked at once, got {batch_size}")
        from agevlm.vlms import way_named

        self.vlm, self.way = vlm, way
        self._asking = way_named(way, vlm)
        self.batch_size = batch_size or (ENCODED_ONCE if vlm.encodes_once else ENCODED_ANEW)
        self.note = vlm.note

    def ask(self, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Kept]]) -> list[Reply]:
        """Answer `prompts`, in their order; `pictures[i]` are those of prompt i, kept in one call of `Vlm.keep`.

        Prompts of like length go together; which ones share a batch changes nothing but rounding.
        """
        replies: dict[int, Reply] = {}
        for batch in self._batches(prompts):
            answers = self._ask_named([prompts[i] for i in batch], [pictures[i] for i in batch])
            replies.update(zip(batch, answers, strict=True))
        return [replies[number] for number in range(len(prompts))]

    def _ask_named(self, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Kept]]) -> list[Reply]:
        """As `_ask_batch`; a prompt that the model does not take is named by its sample and its question."""
        from agevlm.vlms import AttentionUnreadableError

        try:
            return self._ask_batch(prompts, pictures)
        except AttentionUnreadableError:
            raise
        except ValueError as error:
            if len(prompts) > 1:
                return [
                    reply
                    for prompt, shown in zip(prompts, pictures, strict=True)
                    for reply in self._ask_named([prompt], [shown])
                ]
            question = prompts[0].messages[-1].content if prompts[0].messages else prompts[0].text
            raise ValueError(f"sample {prompts[0].sample_id}, {question!r}: {error}") from error

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        """Numbers of prompts that go together: same number of pictures and answer length, similar prompt length."""
        shape = [(p.max_new_tokens, p.num_images, len(p.text)) for p in prompts]
        order = sorted(range(len(prompts)), key=shape.__getitem__)
        batch: list[int] = []
        for number in order:
            if batch and (len(batch) == self.batch_size or shape[number][:2] != shape[batch[0]][:2]):
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    def _ask_batch(self, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Kept]]) -> list[Reply]:
        from agevlm.vlms import WAYS

        way = self._asking if prompts[0].num_images else WAYS[PLAIN]
        asking = way(self.vlm, [_row(prompt, shown) for prompt, shown in zip(prompts, pictures, strict=True)])
        words = self._words(asking.inputs, prompts)
        with asking.steer():
            answers, reading, positions = self._read(asking, words, prompts[0].max_new_tokens)
        maps: list[list[WordMap | None]] = [[None] * len(prompt.words) for prompt in prompts]
        if positions is not None:
            maps = _word_maps(asking.inputs, reading, positions, words, prompts)
        p_yes = [shares.p_yes for shares in self.vlm.yes_no(asking.inputs, reading.logits[:, -1])]
        return [Reply(a.text, p, tuple(m)) for a, p, m in zip(answers, p_yes, maps, strict=True)]

    def _words(self, inputs: Inputs, prompts: Sequence[Prompt]) -> list[list[list[int]]]:
        """The tokens of the words of each prompt, where they can be localised."""
        if any(text != prompt.text for text, prompt in zip(inputs.texts, prompts, strict=True)):
            self.note = self.note or MOVED
        if self.note is not None or not prompts[0].num_images:
            return [[] for _ in prompts]
        tokenizer = self.vlm.processor.tokenizer
        return [
            inputs.words_of(tokenizer, row, [(word.start, word.end) for word in prompt.words])
            for row, prompt in enumerate(prompts)
        ]

    def _read(
        self, asking: Asking, words: Sequence[Sequence[Sequence[int]]], limit: int
    ) -> tuple[list[Answer], Reading, list[list[int]] | None]:
        """Answers, what the first pass gave, and the positions whose attention it has (None: of none)."""
        from agevlm.vlms import AttentionUnreadableError

        inputs, change = asking.inputs, asking.change
        positions = [sorted({token for tokens in spans for token in tokens}) for spans in words]
        if any(positions):
            try:
                return *self.vlm.ask(inputs, positions=positions, max_new_tokens=limit, change=change), positions
            except AttentionUnreadableError as error:
                self.note = str(error)
        return *self.vlm.ask(inputs, max_new_tokens=limit, change=change), None


def _row(prompt: Prompt, pictures: Sequence[Kept]) -> Row:
    """A prompt as a way to answer takes it: the mask of a picture is that of all words that are there."""
    from agevlm.vlms import Row

    masks = [
        [rle for word in prompt.words if word.image == image for rle in word.masks] for image in range(len(pictures))
    ]
    unions = tuple(union_mask(of) if of else None for of in masks)
    spans = tuple((word.start, word.end) for word in prompt.words if word.present)
    return Row(prompt.text, prompt.messages, tuple(pictures), unions, spans)


def _word_maps(
    inputs: Inputs,
    reading: Reading,
    positions: Sequence[Sequence[int]],
    words: Sequence[Sequence[Sequence[int]]],
    prompts: Sequence[Prompt],
) -> list[list[WordMap | None]]:
    """The map of each word over its own picture, as a share of all attention on pictures and null token."""
    from agevlm.vlms import attention_maps

    found = attention_maps(inputs, reading, positions, words, of_pictures=True)
    return [
        [
            None if seen is None else WordMap(seen.maps[word.image], seen.null_mass)
            for seen, word in zip(row, prompt.words, strict=True)
        ]
        for row, prompt in zip(found, prompts, strict=True)
    ]
