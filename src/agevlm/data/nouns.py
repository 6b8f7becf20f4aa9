"""English nouns: plurals, articles, and things that come in pairs. Covers what datasets of pictures annotate."""

from __future__ import annotations

import re

_IRREGULAR_PLURALS = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "shelf": "shelves",
    "loaf": "loaves",
    "scarf": "scarves",
    "wolf": "wolves",
    "potato": "potatoes",
    "tomato": "tomatoes",
}
_UNCHANGED_PLURALS = {"fish", "sheep", "deer", "broccoli"}
_PAIRS = {  # things that a person names in the plural though there is one: "a pair of scissors"
    "skis",
    "scissors",
    "glasses",
    "sunglasses",
    "goggles",
    "binoculars",
    "headphones",
    "trousers",
    "pants",
    "jeans",
    "shorts",
    "pliers",
    "tongs",
}
_CONSONANT_SOUND = re.compile(r"(one|uni|use|usu|uku|uti|eu)", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"(hour|honest|honour|heir)", re.IGNORECASE)


def plain(words: str) -> str:
    """Words in small letters with single spaces between them."""
    return " ".join(words.lower().split())


def plural(noun: str) -> str:
    """The plural of an English noun, or of the last word of a compound ("wine glass" → "wine glasses")."""
    head, _, last = noun.rpartition(" ")
    if head:
        return f"{head} {plural(last)}"
    if noun in _UNCHANGED_PLURALS or is_pair(noun):
        return noun
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def article(word: str) -> str:
    """ "an" before a vowel sound, else "a": an umbrella, an hour, a unicycle. Nothing before nothing."""
    if not word:
        return ""
    vowel = word[0].lower() in "aeiou" and not _CONSONANT_SOUND.match(word)
    return "an" if vowel or _VOWEL_SOUND.match(word) else "a"


def is_pair(noun: str) -> bool:
    """Whether one such thing has a plural's name, and is counted in pairs: skis, scissors."""
    return noun.rpartition(" ")[2] in _PAIRS
