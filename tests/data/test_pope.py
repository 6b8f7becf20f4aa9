"""POPE's three samplings on sets so small that the right questions are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agevlm.data.masks import encode_mask
from agevlm.data.pope import POPE_KINDS, Statistics, ask_pope, pope_conversations
from agevlm.data.schema import AnnotatedImage, Conversation, ImageSource, Instance


def picture(identity: str, *categories: str, crowd: str | None = None) -> AnnotatedImage:
    instances = []
    for position, category in enumerate(categories):
        mask = np.zeros((8, 8), dtype=bool)
        mask[position % 8, :4] = True
        box = (0.0, float(position % 8), 4.0, 1.0)
        instances.append(Instance(category, encode_mask(mask), box, 4.0, crowd=category == crowd))
    return AnnotatedImage(ImageSource(identity, 8, 8, data=b"-"), tuple(instances))


def asked(conversations: tuple[Conversation, ...], kind: str, answer: str) -> list[str]:
    chosen = [c for c in conversations if c.kind == kind and c.messages[-1].content == answer]
    return [c.groundings[0].phrase for c in chosen]


# dog: 4 pictures, person: 3, cat: 2, bed: 2, boat: 1, sail: 1, fork: 1
WORLD = (
    picture("a", "dog", "person"),
    picture("b", "dog", "person"),
    picture("c", "dog", "person"),
    picture("d", "dog"),
    picture("e", "cat", "bed"),
    picture("f", "cat", "bed"),
    picture("g", "boat", "sail"),
    picture("h", "fork"),
)


def test_statistics() -> None:
    statistics = Statistics.of(WORLD)
    assert statistics.vocabulary == ("bed", "boat", "cat", "dog", "fork", "person", "sail")
    assert statistics.frequency["dog"] == 4
    assert statistics.cooccurrence["dog", "person"] == statistics.cooccurrence["person", "dog"] == 3
    assert statistics.cooccurrence["dog", "cat"] == 0
    twice = Statistics.of([picture("x", "dog", "dog", "cat")])
    assert twice.frequency["dog"] == 1  # once a picture
    assert twice.cooccurrence["dog", "cat"] == 1


def test_popular_and_adversarial_are_known() -> None:
    boat = picture("q", "boat")
    questions = pope_conversations([boat], num_per_image=1, statistics=WORLD)["q"]
    assert [asked(questions, kind, "yes") for kind in POPE_KINDS] == [["boat"]] * 3
    assert asked(questions, "pope.popular", "no") == ["dog"]
    assert asked(questions, "pope.adversarial", "no") == ["sail"]

    both = picture("q", "cat", "boat")
    questions = pope_conversations([both], num_per_image=2, statistics=WORLD)["q"]
    assert asked(questions, "pope.popular", "no") == ["dog", "person"]
    partners = {"cat": "bed", "boat": "sail"}
    assert asked(questions, "pope.adversarial", "no") == [partners[c] for c in asked(questions, "pope.random", "yes")]


def test_ties_go_to_the_frequent_then_to_the_order_of_the_vocabulary() -> None:
    world = (picture("a", "cup", "spoon"), picture("b", "cup", "table"), picture("c", "table"), picture("d", "apple"))
    ask = picture("q", "cup")
    assert asked(pope_conversations([ask], statistics=world)["q"], "pope.adversarial", "no") == ["table"]
    level = (picture("a", "cup", "spoon"), picture("b", "cup", "table"))
    for order in (("cup", "spoon", "table"), ("cup", "table", "spoon")):
        questions = pope_conversations([ask], statistics=level, vocabulary=order)["q"]
        assert asked(questions, "pope.adversarial", "no") == [order[1]]
        assert asked(questions, "pope.popular", "no") == [order[1]]


def test_a_category_never_seen_with_another_gets_a_random_partner() -> None:
    fork = picture("q", "fork")
    drawn = {asked(ask_pope(fork, Statistics.of(WORLD), num=1, seed=s), "pope.adversarial", "no")[0] for s in range(60)}
    assert drawn == {"bed", "boat", "cat", "dog", "person", "sail"}
    for seed in range(20):  # the lonely fork must not take the partner of the boat
        questions = ask_pope(picture("q", "fork", "boat"), Statistics.of(WORLD), num=2, seed=seed)
        assert "sail" in asked(questions, "pope.adversarial", "no")


def test_every_kind_is_balanced_shares_its_positives_and_asks_nothing_twice() -> None:
    categories = [f"thing{number}" for number in range(12)]
    rng = np.random.default_rng(3)
    images = [
        picture(f"i{number}", *rng.choice(categories, size=rng.integers(1, 12), replace=False)) for number in range(40)
    ]
    questions = pope_conversations(images, num_per_image=3, vocabulary=categories)
    assert set(questions) == {image.image.id for image in images}
    ids = [conversation.id for conversations in questions.values() for conversation in conversations]
    assert len(set(ids)) == len(ids)
    for image in images:
        conversations = questions[image.image.id]
        num = min(3, len(image.categories), len(categories) - len(image.categories))
        for kind in POPE_KINDS:
            yes, no = asked(conversations, kind, "yes"), asked(conversations, kind, "no")
            assert yes == asked(conversations, "pope.random", "yes")
            assert len(set(yes)) == len(set(no)) == num
            assert set(yes) <= set(image.categories)
            assert not set(no) & set(image.categories)


def test_random_negatives_are_uniform_among_the_absent() -> None:
    images = [picture(f"i{number}", "dog") for number in range(600)]
    questions = pope_conversations(images, num_per_image=1, vocabulary=("dog", "cat", "bed", "boat"))
    drawn = [asked(conversations, "pope.random", "no")[0] for conversations in questions.values()]
    assert all(abs(drawn.count(category) - 200) < 50 for category in ("cat", "bed", "boat"))


def test_groundings() -> None:
    image = picture("q", "dog", "dog", "person", crowd="person")
    for conversation in pope_conversations([image], statistics=WORLD)["q"]:
        grounding = conversation.groundings[0]
        masks = tuple(i.mask for i in image.instances if i.category == grounding.phrase)
        assert grounding.masks == masks  # a crowd is there too
        assert grounding.present is bool(masks)
        assert (conversation.messages[-1].content == "yes") is bool(masks)


def test_a_label_is_there_without_a_mask() -> None:
    image = replace(picture("q", "dog"), labels=("cat",))
    asked = pope_conversations([image], statistics=WORLD)["q"]
    told = {c.groundings[0].phrase: (c.groundings[0].present, c.messages[-1].content) for c in asked}
    assert told["cat"] == (None, "yes") and told["dog"] == (True, "yes")
    assert {answer for word, answer in told.items() if word not in ("cat", "dog")} == {(False, "no")}


def test_deterministic_and_independent_of_the_neighbours() -> None:
    first = pope_conversations(WORLD, seed=1)
    assert first == pope_conversations(WORLD, seed=1)
    assert first != pope_conversations(WORLD, seed=2)
    alone = pope_conversations(WORLD[2:3], seed=1, statistics=WORLD)
    assert alone["c"] == first["c"]


def test_pictures_that_cannot_be_asked_about() -> None:
    assert pope_conversations([picture("empty")], vocabulary=("dog",)) == {}
    assert pope_conversations([picture("full", "dog")], vocabulary=("dog",)) == {}
    with pytest.raises(ValueError, match="two pictures have the id 'a'"):
        pope_conversations([picture("a", "dog"), picture("a", "cat")])
    with pytest.raises(ValueError, match="'dog' is not among the 1 categories"):
        pope_conversations([picture("a", "dog")], vocabulary=("cat",))
    with pytest.raises(ValueError, match="at least 1"):
        pope_conversations([picture("a", "dog")], num_per_image=0)
