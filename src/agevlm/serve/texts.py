"""Tokens to text as they come: whole characters only, and nothing that a stop string might still take back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"  # what the bytes of half a character decode to


class TextStream:
    """The text of an answer, token by token, up to the first stop string; blanks at its ends are left out.

    `push` and `finish` return what may be shown in addition: what was shown never changes.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._ids: list[int] = []
        self._prefix = self._read = 0
        self._text = ""
        self._shown = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Take one more token. `stopped` is True once a stop string is complete."""
        self._ids.append(token)
        self._grow(final=False)
        return self._show(final=self.stopped)

    def finish(self) -> str:
        """The rest, once no more tokens come."""
        if not self.stopped:
            self._grow(final=True)
        return self._show(final=True)

    @property
    def text(self) -> str:
        """All that has been shown."""
        return self._text[: self._shown]

    def _grow(self, final: bool) -> None:
        before = self._decode(self._ids[self._prefix : self._read])
        now = self._decode(self._ids[self._prefix :])
        if len(now) <= len(before) or (now.endswith(_UNFINISHED) and not final):
            return
        self._text = (self._text + now[len(before) :]) if self._text else now[len(before) :].lstrip()
        self._prefix, self._read = self._read, len(self._ids)
        found = [place for stop in self._stops if (place := self._text.find(stop, self._shown)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True

    def _show(self, final: bool) -> str:
        end = len(self._text.rstrip()) if final else self._safe()
        new = self._text[self._shown : end]
        self._shown = max(self._shown, end)
        return new

    def _safe(self) -> int:
        """How much of the text no stop string can reach, nor the stripping of the end."""
        held = max((_overlap(self._text, stop) for stop in self._stops), default=0)
        return max(self._shown, len(self._text[: len(self._text) - held].rstrip()))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
