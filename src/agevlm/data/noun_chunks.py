"""Noun chunks as phrases, by spaCy (the extra `spacy`): for text about more than any vocabulary lists."""

from __future__ import annotations

from typing import Any

from agevlm.data.phrases import Phrase

_NAMING = {"ADJ", "NOUN", "PROPN"}  # parts of speech that a phrase may start with; before are "the", "two", "my"


class NounChunks:
    """Finds noun chunks: "two small dogs" gives the span of "small dogs" and the name "small dog".

    `model` is a spaCy pipeline with a parser, by its name or directory. Pronouns, and chunks that name a picture
    ("the image", "the photo"), are no phrases. Without spaCy, and for a pipeline that finds no chunks, a ValueError.
    """

    PICTURES = frozenset({"image", "picture", "photo", "photograph", "scene"})

    def __init__(self, model: str | Any) -> None:
        self._pipeline = _load(model) if isinstance(model, str) else model

    def find(self, text: str) -> list[Phrase]:
        """All chunks of a text, in order."""
        document = self._pipeline(text)
        if len(document) and not document.has_annotation("DEP"):
            raise ValueError("the spaCy pipeline has no parser, so it finds no noun chunks: give one that has")
        found = []
        for chunk in document.noun_chunks:
            words = list(chunk)
            while words and words[0].pos_ not in _NAMING:
                words.pop(0)
            if not words or chunk.root.pos_ == "PRON" or chunk.root.lemma_.lower() in self.PICTURES:
                continue
            start, last = words[0].idx, words[-1]
            head = (last.lemma_ or last.text) if last.i == chunk.root.i else last.text
            name = "".join(word.text_with_ws for word in words[:-1]) + head
            found.append(Phrase(start, last.idx + len(last.text), name.lower()))
        return found


def _load(model: str) -> Any:
    try:
        import spacy
    except ImportError as error:
        raise ValueError("noun chunks need spaCy: pip install 'agevlm[spacy]'") from error
    try:
        return spacy.load(model)
    except OSError as error:
        raise ValueError(
            f"no spaCy pipeline {model!r}: python -m spacy download {model}, or give a directory"
        ) from error
