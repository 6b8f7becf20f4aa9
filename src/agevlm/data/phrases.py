"""Where the words for things are in a text: from a vocabulary of names, synonyms and plurals.

Spans are character offsets into the text as it is. Matching knows words, not letters: "cat" is not in "cattle" nor in
"concatenate", and of names that overlap the longest wins: "hot dog" holds no dog. Case and the kind of white space
between words do not matter, and a hyphen parts words as a space does. Of scripts that are written without spaces each
sign is a word.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agevlm.data.nouns import plural

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and Han
_MARKS = (
    "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0903\u093a-\u094f\u0e31-\u0e4e"  # which re takes for no letters
)
_LETTER = rf"(?:[^\W_{_UNSPACED}]|[{_MARKS}])"
_WORD = re.compile(rf"[{_UNSPACED}]|{_LETTER}+(?:['’]{_LETTER}+)*")  # "dog's" is one word
_BETWEEN = re.compile(r"[\s\-‐‑]*")  # what may stand between the words of one name
_POSSESSIVE = re.compile(r"['’]s?$")


@dataclass(frozen=True)
class Phrase:
    """`text[start:end]` names a thing; `name` is what to call it before a teacher: singular, without synonyms."""

    start: int
    end: int
    name: str


class PhraseFinder(Protocol):
    """Whatever finds the phrases of a text, in order and without overlap."""

    def find(self, text: str) -> list[Phrase]:
        """The phrases of a text."""
        ...


class Vocabulary:
    """Names of things, each with what else it is called. Finds them, and their plurals, in text.

    A word that two names claim belongs to the one that has it as its name, else to the first. No names at all and a
    name without a letter are ValueErrors.
    """

    def __init__(self, synonyms: Mapping[str, Sequence[str]]) -> None:
        self.synonyms = {name: tuple(others) for name, others in synonyms.items()}
        self.names = tuple(synonyms)
        if not self.names:
            raise ValueError("a vocabulary needs at least one name")
        self._forms: dict[tuple[str, ...], str] = {}
        for claimants in (((name, name) for name in self.names), _others(synonyms)):
            for name, form in claimants:
                for variant in (form, plural(form.lower())):
                    key = tuple(_fold(word) for word in _WORD.findall(variant))
                    if not key:
                        raise ValueError(f"the vocabulary holds {form!r}, which has no letter")
                    self._forms.setdefault(key, name)
        self._longest: dict[str, int] = {}  # first word → the most words of a name that starts with it
        for key in self._forms:
            self._longest[key[0]] = max(len(key), self._longest.get(key[0], 0))

    def __len__(self) -> int:
        return len(self.names)

    def find(self, text: str) -> list[Phrase]:
        """All names in a text, in order; the longest where several start at one word."""
        words = list(_WORD.finditer(text))
        found, position = [], 0
        while position < len(words):
            length, name = self._match(text, words, position)
            if name is not None:
                last = words[position + length - 1]
                end = last.end() - len(_possessive(last.group()))
                found.append(Phrase(words[position].start(), end, name))
            position += length
        return found

    def _match(self, text: str, words: Sequence[re.Match[str]], position: int) -> tuple[int, str | None]:
        """How many words the longest name here has, and whose it is; (1, None) where there is none."""
        folded: list[str] = []
        best: tuple[int, str | None] = (1, None)
        most = self._longest.get(_fold(words[position].group()), 0)
        for number, word in enumerate(words[position : position + most], 1):
            if number > 1 and not _BETWEEN.fullmatch(text, words[position + number - 2].end(), word.start()):
                break
            folded.append(_fold(word.group()))
            if (name := self._forms.get(tuple(folded))) is not None:
                best = (number, name)
        return best


def coco_vocabulary() -> Vocabulary:
    """COCO's 80 categories with what else captions and questions call them."""
    return read_vocabulary(Path(__file__).parent / "vocabularies" / "coco.txt")


def read_vocabulary(path: str | Path) -> Vocabulary:
    """A vocabulary from a file: of COCO or LVIS annotations (.json), or of lines.

    A line is a name and, after a colon, what else it is called: `couch: sofa, settee`. Empty lines and what follows a #
    are passed over. Categories that differ only in what LVIS says in brackets, "bow_(weapon)" and
    "bow_(decorative_ribbons)", are one name, for text does not tell them apart. A missing file, JSON without categories
    and lines that give a name twice are ValueErrors that name the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a list of names, or COCO or LVIS annotations")
    try:
        text = path.read_text("utf-8")
        synonyms = _categories(json.loads(text)) if path.suffix == ".json" else _lines(text)
    except (UnicodeDecodeError, json.JSONDecodeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no vocabulary can be read from it ({error})") from error
    if not synonyms:
        raise ValueError(f"{path}: holds no names")
    return Vocabulary(synonyms)


def _categories(content: object) -> dict[str, list[str]]:
    """Of COCO's `categories` (id, name), to which LVIS adds `synonyms`; LVIS writes `hot_dog` and `bat_(animal)`."""
    if not isinstance(content, dict) or not isinstance(content.get("categories"), list):
        raise ValueError("it has no list `categories`")
    synonyms: dict[str, list[str]] = {}
    for category in content["categories"]:
        name, *others = dict.fromkeys(map(_spoken, [category["name"], *category.get("synonyms", [])]))
        known = synonyms.setdefault(name, [])
        known += [other for other in others if other not in known]
    return synonyms


def _spoken(name: str) -> str:
    return re.sub(r"\s*\([^)]*\)", "", name.replace("_", " ")).strip() or name


def _lines(text: str) -> dict[str, list[str]]:
    synonyms: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, others = (part.strip() for part in line.partition("#")[0].partition(":"))
        if name in synonyms:
            raise ValueError(f"the name {name!r} stands there twice")
        if name:
            synonyms[name] = [other.strip() for other in others.split(",") if other.strip()]
    return synonyms


def _others(synonyms: Mapping[str, Sequence[str]]) -> Iterable[tuple[str, str]]:
    return ((name, other) for name, others in synonyms.items() for other in others)


def _possessive(word: str) -> str:
    found = _POSSESSIVE.search(word)
    return found.group() if found else ""


def _fold(word: str) -> str:
    """A word as it is compared: without case, accents composed, and without the genitive's s."""
    return unicodedata.normalize("NFC", _POSSESSIVE.sub("", word)).casefold()
