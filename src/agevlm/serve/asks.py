"""What is asked of an engine, what it tells while it answers, and one answer in the making."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agevlm.serve.conversations import Conversation
from agevlm.serve.looking import Chosen, SeenWord
from agevlm.serve.memories import Seen
from agevlm.serve.protocol import Finish
from agevlm.serve.sampling import GREEDY, Sampling, TokenLogProb, draw, log_prob_of
from agevlm.serve.texts import TextStream


@dataclass(frozen=True)
class Begun:
    """The prompt has been read; it has `num_tokens`, of which the first `num_cached` were read before."""

    num_tokens: int
    num_cached: int = 0


@dataclass(frozen=True)
class Piece:
    """More text of a choice, and the tokens behind it where log-probabilities were asked for."""

    choice: int
    text: str
    log_probs: tuple[TokenLogProb, ...] = ()


@dataclass(frozen=True)
class Done:
    """A choice is complete. `words` say where the model looked, if that was asked, and `notice` what to know of it."""

    choice: int
    finish: Finish
    ids: tuple[int, ...]
    words: tuple[SeenWord, ...] | None = None
    notice: str | None = None


@dataclass(frozen=True)
class Failed:
    """No more comes, for this reason."""

    error: Exception


Event = Begun | Piece | Done | Failed


@dataclass(eq=False)
class Ask:
    """A conversation to be answered in `num_choices` ways; `tell` is called by the engine's thread, in order.

    `ids` are the tokens of the prompt for a decoder with memories, empty for other models. Text is told as it comes
    where `streamed`, else at the end. Whoever no longer wants the answer sets `cancelled`.
    """

    conversation: Conversation
    ids: Sequence[int]
    seen: Sequence[Seen]
    tell: Callable[[Event], None]
    max_tokens: int
    sampling: Sampling = GREEDY
    num_choices: int = 1
    stops: Sequence[str] = ()
    streamed: bool = False
    looks: Chosen | None = None
    deadline: float = field(default_factory=lambda: time.monotonic() + 1e9)
    cancelled: bool = False

    @property
    def picture_keys(self) -> list[str]:
        """The hash of each picture, in their order."""
        return [picture.key for picture in self.conversation.pictures]

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self.deadline


class Writing:
    """One choice of an ask while it is written: takes logits, gives the token, tells the text."""

    def __init__(self, ask: Ask, choice: int, tokenizer: Any, end_ids: frozenset[int]) -> None:
        self.ask, self.choice = ask, choice
        self.ids: list[int] = []
        self.finish: Finish | None = None
        self._end_ids = end_ids
        self._stream = TextStream(tokenizer, ask.stops)
        self._generator = ask.sampling.generator(choice)
        self._untold, self._log_probs = "", []  # type: ignore[var-annotated]

    @property
    def plain(self) -> bool:
        """Whether `take` needs no logits, only the likeliest token."""
        return self.ask.sampling.plain

    def choose(self, logits_V: Any) -> int:
        """The next token, by the ask's sampling; its log-probability is kept where asked for."""
        sampling = self.ask.sampling
        token = draw(logits_V, sampling, self._generator)
        if sampling.num_top is not None and token not in self._end_ids:
            self._log_probs.append(log_prob_of(logits_V, token, sampling.num_top))
        return token

    def take(self, token: int) -> bool:
        """Append a token; False once the answer is complete."""
        if token in self._end_ids:
            return self._ended("stop")
        self.ids.append(token)
        self._untold += self._stream.push(token)
        if self._stream.stopped:
            return self._ended("stop")
        if len(self.ids) >= self.ask.max_tokens:
            return self._ended("length")
        if self.ask.streamed and self._untold:
            self._tell()
        return True

    @property
    def text(self) -> str:
        """What has been shown of the answer."""
        return self._stream.text

    def _ended(self, finish: Finish) -> bool:
        self._untold += self._stream.finish()
        self.finish = finish
        if self._untold or self._log_probs:
            self._tell()
        return False

    def _tell(self) -> None:
        self.ask.tell(Piece(self.choice, self._untold, tuple(self._log_probs)))
        self._untold, self._log_probs = "", []

    def complete(self, words: tuple[SeenWord, ...] | None = None, notice: str | None = None) -> None:
        """Tell that this choice is done."""
        assert self.finish is not None
        self.ask.tell(Done(self.choice, self.finish, tuple(self.ids), words, notice))
