"""What people are told where they ask a model of ours for more than it says that it learned.

A checkpoint's configuration tells it: `known_words`, the names of things that training pictures showed, and
`known_questions`, the families of kinds of conversation that training asked. Other models tell neither, and nothing is
said of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from agevlm.data.nouns import article

_YES_NO = r"(?:is|are|was|were|do|does|did|can|could|has|have)\b"
_OPENINGS: Mapping[str, tuple[re.Pattern[str], str]] = {  # of a family: how its questions open, and one of them
    "presence": (re.compile(_YES_NO), "is there a …?"),
    "relation": (re.compile(_YES_NO), "is the … left of the …?"),
    "counting": (re.compile(r"(?:how many|count)\b"), "how many … are there?"),
    "colour": (re.compile(r"(?:what|which) colou?r\b"), "what colour is the …?"),
    "location": (re.compile(r"(?:where|in which corner)\b"), "where is the …?"),
    "caption": (re.compile(r"(?:describe|what is in|what do you see)\b"), "describe the picture"),
}
_ASKS = re.compile(
    r"(?:how|what|which|where|when|who|whose|why|count|describe|list|name|explain|tell|write)\b|" + _YES_NO
)
_OF_OTHERS = frozenset({"conversation"})  # exchanges of the other kinds

_OFTEN_SEEN = ("person", "dog", "chair", "car", "cat", "table", "bed", "window")
_OPEN_QUESTIONS = ("What is in the picture?", "Describe the picture.")


class Learned(NamedTuple):
    """What a model says that it learned, words and kinds of question; None where it does not tell."""

    words: tuple[str, ...] | None
    questions: tuple[str, ...] | None


def learned_by(model: Any) -> Learned:
    """What the configuration of any model tells of its training."""
    told = (getattr(model.config, name, None) for name in ("known_words", "known_questions"))
    return Learned(*(None if learned is None else tuple(learned) for learned in told))


def fitting_questions(words: Sequence[str] | None, questions: Sequence[str] | None) -> tuple[str, ...]:
    """Questions about any picture that a model may be asked, by the words and kinds of question that it learned."""
    if not words or not questions or "caption" in questions or "presence" not in questions:
        return _OPEN_QUESTIONS
    things = ([word for word in _OFTEN_SEEN if word in words] or list(words))[:3]
    return tuple(f"Is there {article(thing)} {thing} in the picture?" for thing in things)


def unlearned_notice(word: str, model: str, known: Sequence[str]) -> str:
    """The sentence about a word that a model did not learn, with some that it did: the nearest, else the first."""
    near = ", ".join(get_close_matches(word, known, n=3)) or ", ".join(known[:3])
    return f"{word}: not among the {len(known)} words that {model} learned ({near}, …), so its answer means nothing"


def question_notice(question: str, model: str, known: Sequence[str] | None) -> str | None:
    """The sentence about a question of a kind that a model was never asked, None where it was, or does not tell.

    Told by how the question's sentences open, in English; what opens in no known way is taken for a question that was
    learned.
    """
    families = [kind for kind in known or () if kind not in _OF_OTHERS]
    if not families or not set(families) <= set(_OPENINGS):
        return None
    sentences = [sentence.strip() for sentence in re.split(r"[.?!\n]", question.lower())]
    asked = [sentence for sentence in sentences if _ASKS.match(sentence)]
    learned = [_OPENINGS[family][0] for family in families]
    if not asked or any(opening.match(sentence) for sentence in asked for opening in learned):
        return None
    kinds = " and ".join(f"“{_OPENINGS[family][1]}”" for family in families)
    return f"{model} learned to answer {kinds} and was hardly ever asked this, so its answer means nothing"
