"""The answers of the API as JSON objects: completions, their chunks, words with their maps. No model is asked here."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from agevlm.serve.asks import Begun, Done
from agevlm.serve.looking import Scored, SeenWord
from agevlm.serve.sampling import TokenLogProb


@dataclass(frozen=True)
class Head:
    """What all chunks of one completion share."""

    model: str
    tokenizer: Any
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, choices: Sequence[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """A whole completion."""
        return {**self._start("chat.completion"), "choices": list(choices), "usage": usage}

    def chunk(self, choices: Sequence[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """A chunk of a stream."""
        chunk = {**self._start("chat.completion.chunk"), "choices": list(choices)}
        return chunk if usage is None else {**chunk, "usage": usage}

    def _start(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def log_probs(self, said: Sequence[TokenLogProb]) -> dict[str, Any]:
        """Log-probabilities as OpenAI writes them."""
        return {
            "content": [
                {
                    **self._token(one.token, one.log_prob),
                    "top_logprobs": [self._token(token, value) for token, value in one.top],
                }
                for one in said
            ],
            "refusal": None,
        }

    def _token(self, token: int, log_prob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return {"token": text, "logprob": log_prob, "bytes": _bytes(self.tokenizer, token, text)}


def _bytes(tokenizer: Any, token: int, text: str) -> list[int]:
    """The bytes of a token. Half a character has no text: its bytes are the tokenizer's, where that is byte-level."""
    written = tokenizer.convert_ids_to_tokens(token) if "\ufffd" in text and _is_byte_level(tokenizer) else None
    if written is not None and all(character in _byte_level() for character in written):
        return [_byte_level()[character] for character in written]
    return list(text.encode("utf-8", "replace"))


def _is_byte_level(tokenizer: Any) -> bool:
    return "ByteLevel" in repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None))


@cache
def _byte_level() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes as, and these bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}


def usage(begun: Begun, answers: int) -> dict[str, Any]:
    """Tokens of the prompt, counted once, and of all answers."""
    return {
        "prompt_tokens": begun.num_tokens,
        "completion_tokens": answers,
        "total_tokens": begun.num_tokens + answers,
        "prompt_tokens_details": {"cached_tokens": begun.num_cached},
    }


def looked(done: Done) -> dict[str, Any]:
    """What a choice tells of where the model looked, if that was asked (extension)."""
    if done.words is None:
        return {}
    return {"attention": words(done.words), **({} if done.notice is None else {"notice": done.notice})}


def looks(model: str, answer: str, seen: Sequence[SeenWord], notice: str | None) -> dict[str, Any]:
    """The reply of `/v1/looks` as JSON."""
    return {"object": "looks", "model": model, "answer": answer, "words": words(seen), "notice": notice}


def words(seen: Sequence[SeenWord]) -> list[dict[str, Any]]:
    """The extension `attention`: object words and their maps, one a picture, row by row."""
    return [
        {
            "word": one.word,
            "where": one.where,
            "start": one.start,
            "end": one.end,
            "learned": one.learned,
            "made_up": None if one.made_up is None else round(one.made_up, 5),
            "maps": [[[round(float(cell), 5) for cell in row] for row in grid] for grid in one.maps],
        }
        for one in seen
    ]


def scores(model: str, scored: Sequence[Scored]) -> dict[str, Any]:
    """The reply of `/v1/answers`."""
    answers = [
        {
            "answer": one.answer,
            "probability": one.probability,
            "share": one.share,
            "logprob": one.log_prob,
            "num_tokens": one.num_tokens,
        }
        for one in scored
    ]
    return {"object": "answers", "model": model, "answers": answers}
