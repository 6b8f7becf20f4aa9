"""What an answer in words says: yes or no, a number, one of a few words. Pure functions on strings.

Nothing is guessed: an answer that a rule cannot read is `None`, which the scores count as unparsed and as wrong. The
one exception is the parser `original`: it repeats POPE's published rule, guess included, so that figures compare.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from agevlm.data.language import NUMBERS

_NUMBERS: Mapping[str, int] = MappingProxyType({word: number for number, word in enumerate(NUMBERS)})
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


def words_of(answer: str) -> list[str]:
    """The words of `answer` in lower case, without punctuation; digits count as words."""
    return _WORD.findall(answer.lower())


def _original(answer: str) -> str | None:
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def _strict(answer: str) -> str | None:
    word = answer.strip().lower()
    return word if word in ("yes", "no") else None


def _first_word(answer: str) -> str | None:
    word = next(iter(words_of(answer)), None)
    return word if word in ("yes", "no") else None


YES_NO_PARSERS: Mapping[str, Callable[[str], str | None]] = MappingProxyType(
    {"original": _original, "strict": _strict, "first_word": _first_word}
)


def parse_yes_no(answer: str, parser: str = "first_word") -> str | None:
    """Read "yes" or "no" by the rule named `parser`.

    `original` is the rule of POPE's own script: the first sentence, without commas, is no when it holds the word No,
    no or not, and yes otherwise, an empty answer included. `strict` takes the bare words yes and no in any case.
    `first_word` (or `first-word`) takes the first word, without case and punctuation. An unknown name is a ValueError.
    """
    name = parser.replace("-", "_")
    if name not in YES_NO_PARSERS:
        raise ValueError(f"unknown yes/no parser {parser!r}: choose one of {', '.join(YES_NO_PARSERS)}")
    return YES_NO_PARSERS[name](answer)


def parse_number(answer: str) -> int | None:
    """The first whole number of `answer`, in digits or as a word from zero to twenty; `None` where there is none."""
    for word in words_of(answer):
        if word.isascii() and word.isdigit():
            return int(word)
        if word in _NUMBERS:
            return _NUMBERS[word]
    return None


def parse_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The member of `choices` that comes first in `answer` as a whole word, in any case; `None` where none does."""
    allowed = {choice.lower(): choice for choice in choices}
    return next((allowed[word] for word in words_of(answer) if word in allowed), None)
