"""Conversations as chat text: which characters and which tokens belong to which message.

The chat template of the tokenizer is applied once to the whole conversation; where each content landed is read from
marks around it, never from tokenising pieces apart. So any template works, and labels and spans cannot drift.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agevlm.data.literals import MARKS, as_text
from agevlm.data.schema import Conversation, Message

TEXT = "text"  # the kind of a conversation that is read as plain text, with no picture
_OPEN, _CLOSE = MARKS[0], MARKS[1]  # private characters: no template and no text contains them
_MARK = re.compile(f"[{_OPEN}{_CLOSE}]")


@dataclass(frozen=True)
class RenderedChat:
    """`text[content_starts[i]:content_ends[i]]` is the content of message i, without its image placeholders.

    Names of special tokens in a content have a stand-in for their first character, see `literals.py`.
    """

    text: str
    content_starts: list[int]
    content_ends: list[int]


def render_conversation(
    processor: Any, messages: Sequence[Message], add_generation_prompt: bool = False, in_parts: bool = False
) -> RenderedChat:
    """Apply the chat template of `processor` to `messages`, an image placeholder per picture in front of its message.

    With `in_parts` the template gets contents as lists of pictures and text, as those of other people's vision-language
    models want them; else as strings. Raises ValueError where the template drops or changes a content, as one that
    forbids a role does.
    """
    chat = []
    expected = [as_text(processor, message.content) for message in messages]
    for message, plain in zip(messages, expected, strict=True):
        content: Any = f"{_OPEN}{plain}{_CLOSE}"
        if in_parts:
            content = [{"type": "image"}] * message.num_images + [{"type": "text", "text": content}]
        else:
            content = processor.image_token * message.num_images + content
        chat.append({"role": message.role, "content": content})
    marked = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
    starts: list[int] = []
    ends: list[int] = []
    for removed, mark in enumerate(_MARK.finditer(marked)):
        (starts if mark.group() == _OPEN else ends).append(mark.start() - removed)
    text = _MARK.sub("", marked)
    contents = [text[start:end] for start, end in zip(starts, ends, strict=False)]
    if contents != expected:
        raise ValueError(f"the chat template gives the contents {contents!s:.200} for the messages {expected!s:.200}")
    return RenderedChat(text, starts, ends)


@dataclass(frozen=True)
class TokenisedChat:
    """A conversation in tokens. `supervised` marks by True the tokens that the model is to say."""

    input_ids: list[int]
    supervised: list[bool]
    phrase_tokens: list[list[int]]  # for each grounding, the positions of its tokens
    answer_positions: dict[int, int]  # assistant message → position that predicts its first token
    num_cut: int = 0  # tokens that lay beyond max_length


def tokenise_conversation(processor: Any, conversation: Conversation, max_length: int | None = None) -> TokenisedChat:
    """Tokenise a conversation, with the tokens of every assistant message (and its end-of-turn token) supervised.

    A conversation of the kind `TEXT` is plain text to a language model: all but the first token is supervised.
    What a message says is text, also where it says the name of a special token or of the image placeholder.
    A conversation with no supervised token is a ValueError that names it. One that `max_length` cuts before the first
    of them has none left, and no phrase either.
    """
    chat = render_conversation(processor, conversation.messages)
    tokenizer = processor.tokenizer
    coded = tokenizer(chat.text, return_offsets_mapping=True, add_special_tokens=False)
    input_ids, offsets = coded["input_ids"], coded["offset_mapping"]
    supervised = [False] * len(input_ids)
    answer_positions: dict[int, int] = {}
    for index, message in enumerate(conversation.messages):
        if message.role != "assistant":
            continue
        tokens = tokens_of_span(offsets, chat.content_starts[index], chat.content_ends[index])
        if not tokens:
            continue
        end = tokens[-1] + 1
        if end < len(input_ids) and _is_special(tokenizer, input_ids[end]):
            tokens = [*tokens, end]
        for token in tokens:
            supervised[token] = True
        if tokens[0] > 0:
            answer_positions[index] = tokens[0] - 1
    if conversation.kind == TEXT:
        supervised = [True] * len(input_ids)
    supervised[:1] = [False]  # nothing stands before the first token to predict it from, or only padding
    if not any(supervised):
        raise ValueError(f"conversation {conversation.id} has no token to learn from: {chat.text!r:.200}")
    phrases = []
    for grounding in conversation.groundings:
        start = chat.content_starts[grounding.message]
        phrases.append(tokens_of_span(offsets, start + grounding.start, start + grounding.end))
    whole = TokenisedChat(input_ids, supervised, phrases, answer_positions)
    return whole if max_length is None or max_length >= len(input_ids) else _cut(whole, max_length)


def _cut(chat: TokenisedChat, length: int) -> TokenisedChat:
    """The first tokens of a conversation, with what they hold of it."""
    supervised = chat.supervised[:length]
    learns = length if any(supervised) else 0  # without a word to learn, where its phrases lie is not learned either
    return TokenisedChat(
        input_ids=chat.input_ids[:length],
        supervised=supervised,
        phrase_tokens=[[token for token in tokens if token < learns] for tokens in chat.phrase_tokens],
        answer_positions={index: at for index, at in chat.answer_positions.items() if at + 1 < length},
        num_cut=len(chat.input_ids) - length,
    )


def _is_special(tokenizer: Any, token: int) -> bool:
    """Whether a token is special, be it in a role or, as Gemma's end of turn, by its template alone."""
    return bool(tokenizer.decode([token])) and not tokenizer.decode([token], skip_special_tokens=True)


def tokens_of_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
    """Positions of the tokens that share a character with [start, end); byte-level ones may begin with a space."""
    return [index for index, (first, last) in enumerate(offsets) if first < end and last > start and last > first]
