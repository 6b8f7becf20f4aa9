"""Noun chunks as phrases, on a small pipeline whose parser is a table of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.language import Language

from agevlm.data.noun_chunks import NounChunks

TAGS = {"the": "DET", "two": "NUM", "small": "ADJ", "dogs": "NOUN", "dog": "NOUN", "it": "PRON", "image": "NOUN"}
TAGS |= {"chase": "VERB", "hot": "ADJ", "in": "ADP", "a": "DET", "ball": "NOUN"}
HEADS = {"DET": 1, "NUM": 1, "ADJ": 1}  # they hang on what comes next


@Language.component("table_parser")
def table_parser(document: Any) -> Any:
    for token in document:
        token.pos_ = TAGS.get(token.lower_, "X")
        token.lemma_ = token.lower_.removesuffix("s") if token.pos_ == "NOUN" else token.lower_
    for token in document:
        target = token.i
        while target + 1 < len(document) and document[target].pos_ in HEADS:
            target += 1
        verb = next((other for other in document if other.pos_ == "VERB"), document[-1])
        token.head = document[target] if target != token.i else verb
        token.dep_ = "ROOT" if token.head.i == token.i else ("nsubj" if token.pos_ in ("NOUN", "PRON") else "amod")
    return document


@pytest.fixture(scope="module")
def pipeline() -> Any:
    made = spacy.blank("en")
    made.add_pipe("table_parser")
    return made


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("the two small dogs chase a ball", [("small dogs", "small dog"), ("ball", "ball")]),
        ("it chase the Dog", [("Dog", "dog")]),
        ("the image", []),
        ("", []),
    ],
)
def test_chunks_lose_what_names_nothing_and_their_plural(
    text: str, phrases: list[tuple[str, str]], pipeline: Any
) -> None:
    found = NounChunks(pipeline).find(text)
    assert [(text[phrase.start : phrase.end], phrase.name) for phrase in found] == phrases


def test_pipelines_that_cannot_do_it_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no parser"):
        NounChunks(spacy.blank("en")).find("a dog")
    with pytest.raises(ValueError, match="no spaCy pipeline 'nowhere'"):
        NounChunks("nowhere")
