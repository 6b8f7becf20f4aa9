"""Phrases in text: spans, plurals, synonyms, words that overlap, other scripts, and what a vocabulary is read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agevlm.data.language import PRESENCE_WORDINGS
from agevlm.data.nouns import article
from agevlm.data.phrases import Vocabulary, coco_vocabulary, read_vocabulary

SMALL = Vocabulary(
    {"dog": ["puppy"], "hot dog": [], "cat": [], "person": ["man", "child"], "table": [], "dining table": ["table"]}
)


def found(text: str, vocabulary: Vocabulary = SMALL) -> list[tuple[str, str]]:
    return [(text[phrase.start : phrase.end], phrase.name) for phrase in vocabulary.find(text)]


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("a dog and a dog.", [("dog", "dog"), ("dog", "dog")]),
        ("cattle concatenate hotdogs", []),
        ("Two HOT-DOGS,one hot  dog", [("HOT-DOGS", "hot dog"), ("hot  dog", "hot dog")]),
        ("hot, dog", [("dog", "dog")]),
        ("the dog's puppies", [("dog", "dog"), ("puppies", "dog")]),
        ("the dogs’ men; children's cat", [("dogs", "dog"), ("men", "person"), ("children", "person"), ("cat", "cat")]),
        ("dining tables, tables", [("dining tables", "dining table"), ("tables", "table")]),
        ("dining", []),
        ("dog_cat dog/cat", [("dog", "dog"), ("cat", "cat"), ("dog", "dog"), ("cat", "cat")]),
        ("", []),
        ("?!", []),
    ],
)
def test_names_are_found_at_word_boundaries_the_longest_first(text: str, phrases: list[tuple[str, str]]) -> None:
    assert found(text) == phrases


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("狗", "图中有一只狗吗？"),
        ("कुत्ता", "क्या वहाँ कुत्ता है?"),
        ("собака", "Собака спит"),
        ("café", "a CAFE\u0301"),
        ("ネコ", "ネコがいる"),
    ],
)
def test_other_scripts_have_words_too(name: str, text: str) -> None:
    assert [phrase.name for phrase in Vocabulary({name: []}).find(text)] == [name]


def test_every_wording_of_a_question_has_its_category_and_nothing_else() -> None:
    vocabulary = coco_vocabulary()
    assert len(vocabulary) == 80
    for name in vocabulary.names:
        for wording in (*PRESENCE_WORDINGS, "is there {} in the image?", "Is {} visible?"):
            text = wording.format(f"{article(name)} {name}")
            (phrase,) = vocabulary.find(text)
            assert (phrase.name, text[phrase.start : phrase.end]) == (name, name)


def test_a_word_belongs_to_the_name_that_it_is_before_it_is_a_synonym() -> None:
    assert found("a bat", Vocabulary({"baseball bat": ["bat"], "bat": []})) == [("bat", "bat")]
    assert found("a bat", Vocabulary({"baseball bat": ["bat"], "animal": ["bat"]})) == [("bat", "baseball bat")]


def test_thousands_of_names_are_found_as_a_few_are() -> None:
    names = {f"thing {number} of {number % 7}": [f"other {number}"] for number in range(3000)}
    text = "a thing 1234 of 2 beside thing 12345 and other 2999"
    assert found(text, Vocabulary(names)) == [("thing 1234 of 2", "thing 1234 of 2"), ("other 2999", "thing 2999 of 3")]


LVIS = [{"name": "hot_dog", "synonyms": ["frankfurter", "hot_dog", "wiener"]}, {"name": "cat_(animal)"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "# mine\nhot dog: frankfurter, wiener\n\ncat # the animal\n"),
        ("lvis.json", json.dumps({"categories": LVIS})),
    ],
)
def test_vocabularies_are_read_from_lines_and_from_annotations(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    vocabulary = read_vocabulary(tmp_path / name)
    assert vocabulary.names == ("hot dog", "cat")
    assert found("wieners, a cat", vocabulary) == [("wieners", "hot dog"), ("cat", "cat")]


def test_categories_that_text_does_not_tell_apart_are_one_name(tmp_path: Path) -> None:
    ribbon = {"name": "bow_(decorative_ribbons)", "synonyms": ["bow_(decorative_ribbons)", "ribbon"]}
    weapon = {"name": "bow_(weapon)", "synonyms": ["bow_(weapon)", "longbow"]}
    (tmp_path / "lvis.json").write_text(json.dumps({"categories": [ribbon, {"name": "cat"}, weapon]}))
    vocabulary = read_vocabulary(tmp_path / "lvis.json")
    assert vocabulary.synonyms == {"bow": ("ribbon", "longbow"), "cat": ()}
    assert found("a longbow with two bows", vocabulary) == [("longbow", "bow"), ("bows", "bow")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "cat\ncat", "the name 'cat' stands there twice"),
        ("a.txt", "# none", "holds no names"),
        ("a.txt", "...", "has no letter"),
        ("a.json", "{", "no vocabulary can be read"),
        ("a.json", "[1]", "has no list `categories`"),
        ("a.json", '{"categories": [{}]}', "no vocabulary can be read"),
        ("b.txt", None, "no such file"),
    ],
)
def test_what_is_no_vocabulary_is_named(name: str, content: Any, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_vocabulary(tmp_path / name)
    if "letter" not in message:
        assert name in str(caught.value)
