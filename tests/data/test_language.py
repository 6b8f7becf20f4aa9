"""What is said about pictures is true, evenly mixed, well-formed, and grounded in the right masks."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest

from agevlm.data.language import (
    CAPTION_REQUESTS,
    CONVERSATION,
    DEFAULT_KINDS,
    KINDS,
    MAX_COUNT,
    MIN_OFFSET_RATIO,
    NUMBERS,
    SIDES,
    Chooser,
    make_conversations,
    presence_conversation,
)
from agevlm.data.masks import decode_mask, encode_mask
from agevlm.data.nouns import article, plural
from agevlm.data.scenes import CATEGORIES, COLOURS, WorldSpec, draw_scene
from agevlm.data.schema import RLE, AnnotatedImage, Conversation, ImageSource, Instance

WORDS = sorted([*CATEGORIES, *(plural(category) for category in CATEGORIES)], key=len, reverse=True)


@cache
def annotated(index: int) -> AnnotatedImage:
    return draw_scene(WorldSpec(), 11, index).annotation


def drawn(kind: str, num_scenes: int = 80, num: int = 6) -> list[tuple[AnnotatedImage, Conversation]]:
    rng = np.random.default_rng(2)
    pairs = []
    for index in range(num_scenes):
        made = make_conversations(annotated(index), rng, CATEGORIES, {kind: 1.0}, num)
        pairs += [(annotated(index), conversation) for conversation in made]
    return pairs


def patch(y: int, x: int, side: int = 100) -> RLE:
    mask = np.zeros((side, side), dtype=bool)
    mask[y : y + 4, x : x + 4] = True
    return encode_mask(mask)


def thing(category: str, y: int, x: int, colour: str | None = "red", crowd: bool = False) -> Instance:
    """A thing of 4 × 4 pixels in a picture of 100 × 100."""
    return Instance(category, patch(y, x), (float(x), float(y), 4.0, 4.0), 16.0, colour, crowd)


def picture(*instances: Instance) -> AnnotatedImage:
    return AnnotatedImage(ImageSource("p", 100, 100), instances)


def ask(annotation: AnnotatedImage, kind: str, num: int = 1, **options: Any) -> list[tuple[str, str]]:
    """Questions and answers of a kind about a picture."""
    vocabulary = options.pop("vocabulary", CATEGORIES)
    made = make_conversations(annotation, np.random.default_rng(0), vocabulary, {kind: 1.0}, num)
    return [(c.messages[0].content, c.messages[1].content) for c in made]


def masks_of(annotation: AnnotatedImage, category: str, colour: str | None = None) -> list[str]:
    return [i.mask["counts"] for i in annotation.instances if i.category == category and colour in (None, i.colour)]


# ----------------------------------------------------------------------------------------------------- all kinds


@pytest.mark.parametrize("kind", KINDS)
def test_every_object_word_is_grounded_where_it_stands(kind: str) -> None:
    """No object word goes without a grounding, and every grounding is of a word of the vocabulary."""
    pairs = drawn(kind, num_scenes=30)
    assert len(pairs) > 50
    for _, conversation in pairs:
        for number, message in enumerate(conversation.messages):
            words = {m.span() for m in re.finditer(rf"\b({'|'.join(WORDS)})\b", message.content)}
            spans = {(g.start, g.end) for g in conversation.groundings if g.message == number}
            assert spans == words, message.content
            assert message.content == message.content.strip().lower()
            assert "  " not in message.content


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_of_what_the_word_means(kind: str) -> None:
    for annotation, conversation in drawn(kind, num_scenes=30):
        for grounding in conversation.groundings:
            content = conversation.messages[grounding.message].content
            category = next(c for c in CATEGORIES if grounding.phrase in (c, plural(c)))
            before = content[: grounding.start].split()
            colour = before[-1] if before and before[-1] in COLOURS else None
            expected = masks_of(annotation, category, colour)
            assert [mask["counts"] for mask in grounding.masks] == expected, content
            assert grounding.present == bool(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_turns_alternate_and_the_picture_stands_first(kind: str) -> None:
    for _, conversation in drawn(kind, num_scenes=10):
        assert [m.role for m in conversation.messages[::2]] == ["user"] * (len(conversation.messages) // 2)
        assert [m.role for m in conversation.messages[1::2]] == ["assistant"] * (len(conversation.messages) // 2)
        assert [m.num_images for m in conversation.messages] == [1] + [0] * (len(conversation.messages) - 1)
        assert conversation.kind == kind
        assert (len(conversation.messages) == 2) == (kind != CONVERSATION)


def test_the_same_generator_says_the_same() -> None:
    first, second = (make_conversations(annotated(3), np.random.default_rng(5), CATEGORIES, num=8) for _ in range(2))
    assert first == second
    assert first != make_conversations(annotated(3), np.random.default_rng(6), CATEGORIES, num=8)
    assert len({conversation.id for conversation in first}) == 8


def test_kinds_come_as_often_as_they_weigh() -> None:
    rng = np.random.default_rng(0)
    rich = picture(
        thing("fish", 5, 5), thing("boat", 60, 60, "blue"), thing("car", 5, 80), thing("car", 80, 5, "green")
    )
    kinds = Counter(c.kind for _ in range(400) for c in make_conversations(rich, rng, CATEGORIES, num=10))
    assert sum(kinds.values()) == 4000
    for kind, weight in DEFAULT_KINDS.items():
        assert kinds[kind] / 4000 == pytest.approx(weight, abs=0.02)


def test_a_picture_of_nothing_offers_only_questions_of_what_is_absent() -> None:
    rng = np.random.default_rng(0)
    made = make_conversations(picture(), rng, CATEGORIES, num=30)
    assert len(made) == 30
    assert {c.messages[-1].content for c in made} == {"no", "zero"}
    assert make_conversations(picture(), rng, CATEGORIES, {"caption": 1.0, "colour": 1.0}, 3) == ()


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({"presense": 1.0}, "unknown kind of conversation 'presense'; known are caption"),
        ({"presence": -1.0, "caption": 2.0}, "at least 0"),
        ({"presence": 0.0}, "not all 0"),
        ({}, "not all 0"),
    ],
)
def test_wrong_kinds_are_refused(kinds: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_conversations(annotated(0), np.random.default_rng(0), CATEGORIES, kinds)


# ---------------------------------------------------------------------------------------------------- yes or no


@pytest.mark.parametrize("kind", ["presence", "presence.colour", "relation.yes_no"])
def test_yes_and_no_come_equally_often(kind: str) -> None:
    answers = Counter(c.messages[1].content for _, c in drawn(kind, num_scenes=150))
    assert set(answers) == {"yes", "no"}
    assert 0.46 < answers["yes"] / sum(answers.values()) < 0.54


def test_presence_asks_of_everything_that_is_absent_alike() -> None:
    absent = Counter(c.groundings[0].phrase for _, c in drawn("presence", 150) if c.messages[1].content == "no")
    assert set(absent) == set(CATEGORIES)
    assert max(absent.values()) < 4 * min(absent.values())


def test_presence_is_asked_of_what_is_named_in_the_words_given() -> None:
    asks = Chooser(lambda present, rng: "fish", ("Is there {} in the image?", "Any sign of {}?"))
    made = make_conversations(annotated(0), np.random.default_rng(0), CATEGORIES, {"presence": 1}, 40, asks)
    found = {conversation.messages[0].content for conversation in made}
    assert found == {"Is there a fish in the image?", "Any sign of a fish?"}


@pytest.mark.parametrize(
    ("category", "named"), [("fish", "fish"), ("boat", "boats"), ("scissors", "pairs of scissors")]
)
def test_presence_may_be_asked_in_the_plural(category: str, named: str) -> None:
    asks = Chooser(lambda present, rng: category, ("Are there any {plural} in the image?",))
    shown = picture(thing("boat", 50, 50))
    (made,) = make_conversations(shown, np.random.default_rng(0), [*CATEGORIES, "scissors"], {"presence": 1}, 1, asks)
    question, answer = (message.content for message in made.messages)
    (asked,) = made.groundings
    assert question == f"Are there any {named} in the image?"
    assert question[asked.start : asked.end] == asked.phrase == named.removeprefix("pairs of ")
    assert asked.present == (category == "boat")
    assert answer == ("yes" if category == "boat" else "no")


def test_coloured_presence_is_never_ambiguous() -> None:
    """A colour that is asked of in vain is in the picture, and so is the thing, but not together."""
    for annotation, conversation in drawn("presence.colour"):
        category = conversation.groundings[0].phrase
        colour = re.search(rf"\b({'|'.join(COLOURS)})\b", conversation.messages[0].content)
        assert colour
        together = [i for i in annotation.instances if (i.category, i.colour) == (category, colour[1])]
        assert conversation.messages[1].content == ("yes" if together else "no")
        assert category in annotation.categories
        assert colour[1] in {i.colour for i in annotation.instances}


def test_colours_are_not_asked_of_where_the_answer_could_only_be_yes() -> None:
    assert ask(picture(thing("fish", 5, 5), thing("boat", 50, 50)), "presence.colour") == []
    assert ask(picture(thing("fish", 5, 5, None), thing("boat", 50, 50, None)), "presence.colour") == []


# ------------------------------------------------------------------------------------------- counting and colour


def test_numbers_are_counted_right() -> None:
    answers = Counter()
    for annotation, conversation in drawn("counting"):
        word = conversation.groundings[0].phrase
        category = next(c for c in CATEGORIES if plural(c) == word)
        number = sum(i.category == category for i in annotation.instances)
        assert conversation.messages[1].content == NUMBERS[number]
        answers[number] += 1
    assert answers[0] / sum(answers.values()) == pytest.approx(1 / 8, abs=0.04)
    assert {0, 1, 2, 3} <= set(answers)


def test_crowds_and_great_numbers_are_not_counted() -> None:
    many = [thing("fish", 8 * row, 8 * column) for row in range(4) for column in range(MAX_COUNT // 4 + 1)]
    crowded = picture(*many, thing("boat", 90, 90, crowd=True), thing("boat", 90, 50), thing("key", 90, 10))
    assert {answer for question, answer in ask(crowded, "counting", 40) if "key" in question} == {"one"}
    assert not [q for q, _ in ask(crowded, "counting", 40) if "fish" in q or "boat" in q]
    assert "many fish" in ask(picture(*many), "caption")[0][1].replace("red ", "")


def test_colour_is_asked_of_single_things_only() -> None:
    for annotation, conversation in drawn("colour"):
        same = [i for i in annotation.instances if i.category == conversation.groundings[0].phrase]
        assert [i.colour for i in same] == [conversation.messages[1].content]


# ------------------------------------------------------------------------------------------------------ relations


def side_of(first: Instance, second: Instance, axis: str) -> str:
    down, right = (a - b for a, b in zip(first.centre, second.centre, strict=True))
    assert abs(right if axis == "horizontal" else down) >= MIN_OFFSET_RATIO * 96
    return SIDES[axis][int((right if axis == "horizontal" else down) > 0)]


def pair_of(annotation: AnnotatedImage, conversation: Conversation, message: int) -> list[Instance]:
    phrases = [g.phrase for g in conversation.groundings if g.message == message]
    found = [[i for i in annotation.instances if i.category == phrase] for phrase in phrases]
    assert [len(instances) for instances in found] == [1, 1]
    return [instances[0] for instances in found]


@pytest.mark.parametrize("kind", ["relation.yes_no", "relation.choice", "caption.relation"])
def test_relations_are_those_of_the_centres(kind: str) -> None:
    sides: Counter[str] = Counter()
    for annotation, conversation in drawn(kind):
        message = 1 if kind == "caption.relation" else 0
        content, answer = conversation.messages[message].content, conversation.messages[1].content
        axis = "horizontal" if "left" in content or "right" in content else "vertical"
        true = side_of(*pair_of(annotation, conversation, message), axis)
        if kind == "relation.yes_no":
            asked = next(side for side in SIDES[axis] if side in content)
            assert answer == ("yes" if asked == true else "no")
        elif kind == "relation.choice":
            assert answer == true.removesuffix(" of")
        else:
            assert f" is {true} " in content
        sides[true] += 1
    assert max(sides.values()) < 1.8 * min(sides.values())


def test_a_relation_reads_well() -> None:
    scene = picture(thing("fish", 50, 5), thing("boat", 50, 80))
    assert {q for q, _ in ask(scene, "relation.choice", 20)} == {
        "is the fish left or right of the boat?",
        "is the boat left or right of the fish?",
    }
    assert ("is the fish left of the boat?", "yes") in ask(scene, "relation.yes_no", 20)
    upright = picture(thing("fish", 5, 50), thing("boat", 80, 50))
    assert ("is the boat above or below the fish?", "below") in ask(upright, "relation.choice", 20)


def test_things_that_lie_close_or_are_several_have_no_relation() -> None:
    assert ask(picture(thing("fish", 50, 50), thing("boat", 55, 55)), "relation.choice") == []
    twice = picture(thing("fish", 5, 5), thing("fish", 5, 80), thing("boat", 80, 50))
    assert ask(twice, "relation.choice") == []


def test_locations_are_quarters_of_the_picture() -> None:
    corners: Counter[str] = Counter()
    for annotation, conversation in drawn("location"):
        instance = next(i for i in annotation.instances if i.category == conversation.groundings[0].phrase)
        y, x = instance.centre
        assert min(abs(y / 96 - 0.5), abs(x / 96 - 0.5)) >= 0.08
        corner = f"{'top' if y < 48 else 'bottom'} {'left' if x < 48 else 'right'}"
        assert conversation.messages[1].content == corner
        corners[corner] += 1
    assert len(corners) == 4


# ------------------------------------------------------------------------------------------- captions and dialogues


def test_a_caption_names_everything_once() -> None:
    for annotation, conversation in drawn("caption", num=2):
        named = [mask["counts"] for grounding in conversation.groundings for mask in grounding.masks]
        assert sorted(named) == sorted(instance.mask["counts"] for instance in annotation.instances)


def test_a_caption_reads_well() -> None:
    scene = picture(thing("fish", 5, 5), thing("fish", 5, 50), thing("umbrella", 50, 5, "orange"))
    captions = {answer for _, answer in ask(scene, "caption", 20)}
    assert captions == {"two red fish and an orange umbrella.", "an orange umbrella and two red fish."}


def test_a_conversation_asks_nothing_twice() -> None:
    lengths: Counter[int] = Counter()
    for _, conversation in drawn(CONVERSATION):
        questions = [message.content for message in conversation.messages[::2]]
        assert len(set(questions)) == len(questions)
        assert sum(question in CAPTION_REQUESTS for question in questions) <= 1
        lengths[len(questions)] += 1
    assert set(lengths) == {2, 3, 4}


def test_a_conversation_of_one_kind_is_possible() -> None:
    rng = np.random.default_rng(0)
    made = make_conversations(annotated(1), rng, CATEGORIES, {CONVERSATION: 1.0, "presence": 1e-9}, 5)
    assert {m.content for c in made for m in c.messages[1::2]} <= {"yes", "no"}


# ----------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("cat", "cats"),
        ("fish", "fish"),
        ("sheep", "sheep"),
        ("bus", "buses"),
        ("box", "boxes"),
        ("couch", "couches"),
        ("toothbrush", "toothbrushes"),
        ("wine glass", "wine glasses"),
        ("person", "people"),
        ("computer mouse", "computer mice"),
        ("knife", "knives"),
        ("teddy bear", "teddy bears"),
        ("berry", "berries"),
        ("key", "keys"),
        ("skis", "skis"),
        ("scissors", "scissors"),
        ("hair drier", "hair driers"),
    ],
)
def test_plurals(noun: str, expected: str) -> None:
    assert plural(noun) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("apple", "an"),
        ("umbrella", "an"),
        ("unicycle", "a"),
        ("uniform", "a"),
        ("hourglass", "an"),
        ("house", "a"),
        ("onion", "an"),
        ("orange fish", "an"),
        ("red apple", "a"),
    ],
)
def test_articles(word: str, expected: str) -> None:
    assert article(word) == expected


def test_things_in_the_plural_are_spoken_of_as_pairs() -> None:
    one, two = thing("scissors", 5, 5, "red"), thing("scissors", 50, 50, "blue")
    words = {"vocabulary": ("scissors", "skis")}
    assert {q.partition(" in ")[0].rstrip("?") for q, _ in ask(picture(one), "presence", 30, **words)} == {
        f"{start} a pair of {noun}"
        for start in ("is there", "do you see", "can you see")
        for noun in ("scissors", "skis")
    }
    assert ("how many pairs of scissors are there?", "two") in ask(picture(one, two), "counting", 30, **words)
    assert ask(picture(one), "caption", **words)[0][1] == "a red pair of scissors."
    assert "a red pair of scissors" in ask(picture(one, two), "caption", **words)[0][1]
    twice = picture(one, thing("scissors", 50, 50, "red"))
    assert ask(twice, "caption", **words)[0][1] == "two red pairs of scissors."
    assert ("what colour is the pair of scissors?", "red") in ask(picture(one), "colour", 20, **words)
    assert ("where is the pair of scissors?", "top left") in ask(picture(one), "location", 20, **words)


def test_the_phrase_of_a_pair_is_the_thing_itself() -> None:
    conversation = presence_conversation("p/0", "presence", "scissors", [patch(5, 5)])
    assert conversation.messages[0].content == "is there a pair of scissors in the picture?"
    assert conversation.groundings[0].phrase == "scissors"
    assert decode_mask(conversation.groundings[0].masks[0]).sum() == 16


def test_presence_by_hand() -> None:
    conversation = presence_conversation("p/0", "pope.random", "umbrella", [], wording=1, colour="red")
    assert [message.content for message in conversation.messages] == ["is there a red umbrella?", "no"]
    assert conversation.groundings[0].present is False


def labelled(*labels: str, instances: tuple[Instance, ...] = ()) -> AnnotatedImage:
    return AnnotatedImage(ImageSource("p", 100, 100), instances, labels)


def test_a_label_is_there_and_nobody_knows_where() -> None:
    made = make_conversations(labelled("cup"), np.random.default_rng(0), ("cup", "key"), {"presence": 1.0}, 40)
    answers = {(c.groundings[0].phrase, c.groundings[0].present, c.messages[1].content) for c in made}
    assert answers == {("cup", None, "yes"), ("key", False, "no")}
    (caption,) = make_conversations(labelled("cup"), np.random.default_rng(0), ("cup", "key"), {"caption": 1.0})
    assert caption.messages[1].content == "a cup."
    assert [(g.phrase, g.present, g.masks) for g in caption.groundings] == [("cup", None, ())]


def test_things_beside_labels_keep_their_places() -> None:
    mixed = labelled("cup", instances=(thing("fish", 10, 10, None), thing("cup", 60, 60, None)))
    rng = np.random.default_rng(0)
    presence = make_conversations(mixed, rng, ("cup", "fish", "key"), {"presence": 1.0}, 60)
    told = {(c.groundings[0].phrase, c.groundings[0].present, c.messages[1].content) for c in presence}
    assert told == {("cup", None, "yes"), ("fish", True, "yes"), ("key", False, "no")}
    for kind, asked in (("counting", {"fish", "keys"}), ("location", {"fish"})):
        made = make_conversations(mixed, rng, ("cup", "fish", "key"), {kind: 1.0}, 40)
        assert {c.groundings[0].phrase for c in made} == asked
    assert make_conversations(mixed, rng, ("cup", "fish", "key"), {"relation.yes_no": 1.0}) == ()
