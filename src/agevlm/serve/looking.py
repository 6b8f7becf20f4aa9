"""Where a model looked at the words of a conversation and its answer, overlays of that, and how probable answers are.

All of it is one further pass of the model over a finished text, with the memories of its pictures.
"""

# Shapes: h, w the grid of a picture; H, W its pixels.

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agevlm.analysis.attention import Span, Where, decode_with_offsets, layers_to_read, words_and_learned
from agevlm.analysis.learned import learned_by, question_notice
from agevlm.data.chat import tokens_of_span
from agevlm.serve.conversations import Conversation, context_of, too_long
from agevlm.serve.errors import bad_request
from agevlm.serve.memories import Seen
from agevlm.vlms import AttentionUnreadableError, Inputs, Kept, Vlm, attention_maps

MAX_READ_TOKENS = 4096  # in one pass, padding included: what else is being written waits for it


@dataclass(frozen=True)
class Chosen:
    """Layers that look and heads whose mean a map is, numbered from 0; None for all."""

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SeenWord:
    """An object word, and where the model looked at it.

    `text[start:end]` of the last question or of the answer (`where`) is the word as written. `maps` are (h, w), one a
    picture: shares of attention which, with `made_up`, sum to 1. `made_up` is the share that went to no place of any
    picture but to the null token: near 1 for things that are not there. None where the model has no null token.
    `learned` says whether training pictures showed what the word names, None where the model does not tell. A word that
    it did not learn has neither maps nor `made_up`: they would mean nothing.
    """

    word: str
    start: int
    end: int
    where: Where
    maps: tuple[NDArray[np.float32], ...]
    made_up: float | None
    learned: bool | None = None


@dataclass(frozen=True)
class Scored:
    """A given answer: log P of its text and its end, and its share of the probability of all that were given."""

    answer: str
    log_prob: float
    share: float
    num_tokens: int

    @property
    def probability(self) -> float:
        """P that the model, drawing at temperature 1, answers exactly this."""
        return math.exp(self.log_prob)


def encoded(vlm: Vlm, conversation: Conversation, seen: Sequence[Seen], num_rows: int = 1) -> Inputs:
    """A conversation as the model's inputs, `num_rows` times, its pictures remembered where the model can."""
    memories = [one.memory for one in seen]
    if memories and all(memory is not None for memory in memories):
        joined = type(memories[0]).cat(memories)
        kept = [Kept(one.picture, joined, number) for number, one in enumerate(seen)]
    else:
        kept = [Kept(one.picture) for one in seen]
    return vlm.encode([conversation.chat.text] * num_rows, [kept] * num_rows)


def words_seen(
    vlm: Vlm,
    conversation: Conversation,
    seen: Sequence[Seen],
    ids: Sequence[int],
    chosen: Chosen,
    shown: str | None = None,
) -> tuple[SeenWord, ...]:
    """Where the model looks at each object word of the last message and of the answer `ids` (of which `shown` is told).

    ApiError 400 for a conversation without pictures, for layers and heads that are not there, and for a model whose
    attention cannot be read.
    """
    if not seen:
        raise bad_request("there is no picture in the conversation to look at", "messages")
    if vlm.note is not None:
        raise bad_request(vlm.note, "attention")
    tokenizer = vlm.processor.tokenizer
    inputs = encoded(vlm, conversation, seen)
    answer, offsets = decode_with_offsets(tokenizer, ids)
    answer = answer if shown is None else answer[: len(shown)]
    _check_room(vlm, inputs, len(ids), "answer")
    answered, at = inputs.answered([ids], vlm.family), conversation.chat.content_starts[-1]
    known = learned_by(vlm.model).words
    found: list[tuple[Span, Where, bool | None, list[int]]] = []
    for span, learned in words_and_learned(conversation.messages[-1].content, known=known):
        found.append((span, "question", learned, answered.tokens_of(tokenizer, 0, at + span[0], at + span[1])))
    for span, learned in words_and_learned(answer, known=known):
        tokens = [inputs.text_len + token for token in tokens_of_span(offsets, *span[:2])]
        found.append((span, "answer", learned, tokens))
    found = [word for word in found if word[3]]
    maps = iter(_maps(vlm, answered, [tokens for *_, learned, tokens in found if learned is not False], chosen))
    return tuple(_seen(span, where, learned, maps) for span, where, learned, _ in found)


def strange_question(vlm: Vlm, name: str, conversation: Conversation) -> str | None:
    """The sentence about a last message of a kind that the model was never asked, if it tells."""
    return question_notice(conversation.messages[-1].content, name, learned_by(vlm.model).questions)


def _seen(span: Span, where: Where, learned: bool | None, maps: Iterator[Any]) -> SeenWord:
    """A word with the next map; one that was not learned has none."""
    start, end, word = span
    if learned is False:
        return SeenWord(word, start, end, where, (), None, learned)
    seen = next(maps)
    return SeenWord(word, start, end, where, seen.maps, seen.null_mass, learned)


def _maps(vlm: Vlm, inputs: Inputs, words: Sequence[Sequence[int]], chosen: Chosen) -> list[Any]:
    """The map of each word (its positions). ApiError 400 where there is none such."""
    try:
        layers = layers_to_read(chosen.layers, vlm.looking)
    except ValueError as error:
        raise bad_request(str(error), "layers") from error
    if not words:
        return []
    positions = sorted({token for tokens in words for token in tokens})
    try:
        reading = vlm.read(inputs, positions=[positions], layers=layers)
        heads = None if chosen.heads is None else list(chosen.heads)
        (maps,) = attention_maps(inputs, reading, [positions], [words], heads=heads, of_pictures=True)
    except AttentionUnreadableError as error:
        raise bad_request(str(error), "attention") from error
    except ValueError as error:  # heads that the model does not have
        raise bad_request(str(error), "heads") from error
    return list(maps)


def answer_row(vlm: Vlm, conversation: Conversation, answer: str) -> list[int]:
    """The tokens of an answer, with the end of an answer behind them."""
    return [*vlm.answer_ids(conversation.chat.text, answer), end_id(vlm)]


def in_batches(rows: Sequence[Sequence[int]], prompt_len: int) -> Iterator[slice]:
    """Rows that are read in one pass: as many as `MAX_READ_TOKENS` allow, one at least."""
    start = 0
    while start < len(rows):
        end, longest = start, 0
        while end < len(rows):
            longest = max(longest, prompt_len + len(rows[end]))
            if end > start and longest * (end + 1 - start) > MAX_READ_TOKENS:
                break
            end += 1
        yield slice(start, end)
        start = end


def log_probs_of(
    vlm: Vlm, conversation: Conversation, seen: Sequence[Seen], rows: Sequence[Sequence[int]]
) -> list[float]:
    """log P of each row of tokens as the answer, in one pass."""
    inputs = encoded(vlm, conversation, seen, len(rows))
    _check_room(vlm, inputs, max(map(len, rows)), "answers")
    return [float(row.sum()) for row in vlm.log_probs(inputs, rows)]


def shared_out(answers: Sequence[str], rows: Sequence[Sequence[int]], log_probs: Sequence[float]) -> list[Scored]:
    """How probable each answer is: exactly this text, with the end of the answer behind it."""
    top = max(log_probs)
    total = sum(math.exp(value - top) for value in log_probs)
    return [
        Scored(answer, value, math.exp(value - top) / total, len(row) - 1)
        for answer, value, row in zip(answers, log_probs, rows, strict=True)
    ]


def _check_room(vlm: Vlm, inputs: Inputs, answer_len: int, param: str) -> None:
    context, length = context_of(vlm), inputs.text_len + answer_len
    if context is not None and length > context:
        raise too_long(f"the conversation and the given answer have {length} tokens", context, param)


def end_id(vlm: Vlm) -> int:
    """The token that ends an answer; the tokenizer's own where there are several."""
    own = vlm.processor.tokenizer.eos_token_id
    return int(own) if own in vlm.end_ids else min(vlm.end_ids)


def overlay_png(picture: Image.Image, attention: NDArray[np.float32]) -> bytes:
    """The picture under a map, as a PNG in its own pixels; small pictures are enlarged by a whole factor."""
    from agevlm.analysis.figures import enlarge, overlay

    buffer = io.BytesIO()
    Image.fromarray(overlay(enlarge(picture), attention)).save(buffer, "PNG")
    return buffer.getvalue()
