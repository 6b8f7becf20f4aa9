"""POPE's questions about annotated pictures: is there a …, of things that are there and of three kinds that are not.

Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models" (arXiv 2305.10355). Each category
asked that is there is paired with one that is not, so that yes and no are equally often right:

- pope.random: any absent category, each equally likely;
- pope.popular: the absent categories that most pictures of the annotated set hold;
- pope.adversarial: for each category asked that is there, the absent one that most often shares a picture with it.

The three share their positive questions. This is the rule of POPE's published code; unlike there, categories to ask
are drawn and not taken in the order of annotation, and pictures of few categories are asked about too. Answers are
scored elsewhere.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from agevlm.data.language import presence_conversation
from agevlm.data.schema import RLE, AnnotatedImage, Conversation

POPE_KINDS = ("pope.random", "pope.popular", "pope.adversarial")


@dataclass(frozen=True)
class Statistics:
    """How many pictures of an annotated set hold each category, and each ordered pair of two categories."""

    vocabulary: tuple[str, ...]
    frequency: Counter[str] = field(default_factory=Counter)
    cooccurrence: Counter[tuple[str, str]] = field(default_factory=Counter)

    @classmethod
    def of(cls, images: Iterable[AnnotatedImage], vocabulary: Sequence[str] | None = None) -> Statistics:
        """Count `images`, each category once a picture, crowds included.

        `vocabulary` is what may be asked; None: the categories found, in alphabetical order. A category outside it is a
        ValueError.
        """
        frequency: Counter[str] = Counter()
        cooccurrence: Counter[tuple[str, str]] = Counter()
        for image in images:
            categories = image.categories
            frequency.update(categories)
            cooccurrence.update((a, b) for a in categories for b in categories if a != b)
        statistics = cls(tuple(vocabulary or sorted(frequency)), frequency, cooccurrence)
        statistics.check(frequency)
        return statistics

    def check(self, categories: Iterable[str]) -> None:
        """A category that the vocabulary lacks is a ValueError."""
        unknown = sorted(set(categories) - set(self.vocabulary))
        if unknown:
            raise ValueError(
                f"category {unknown[0]!r} is not among the {len(self.vocabulary)} categories of the vocabulary; "
                "give a vocabulary that holds every category of the pictures"
            )

    def by_frequency(self, categories: Iterable[str]) -> list[str]:
        """Most frequent first; equally frequent ones in the order of the vocabulary."""
        rank = {category: position for position, category in enumerate(self.vocabulary)}
        return sorted(categories, key=lambda category: (-self.frequency[category], rank[category]))


def pope_conversations(
    images: Sequence[AnnotatedImage],
    *,
    num_per_image: int = 3,
    seed: int = 0,
    vocabulary: Sequence[str] | None = None,
    statistics: Sequence[AnnotatedImage] | None = None,
) -> dict[str, tuple[Conversation, ...]]:
    """POPE's questions about each picture, by the picture's id; pictures without any category are left out.

    Each of the three kinds asks `num_per_image` categories that are there and as many that are not. Where a picture has
    fewer of either, both numbers sink to what there is. Frequencies come from `statistics`, None: from `images`
    themselves. `vocabulary` (None: the categories found in either) is what may be asked.
    The questions about a picture depend on the seed, its id, its categories and the statistics, not on its neighbours
    in `images`. Two pictures of one id, or a category outside the vocabulary, are ValueErrors.
    """
    if vocabulary is None:
        vocabulary = sorted({c for image in (*images, *(statistics or ())) for c in image.categories})
    counted = Statistics.of(images if statistics is None else statistics, vocabulary)
    questions: dict[str, tuple[Conversation, ...]] = {}
    seen: set[str] = set()
    for annotated in images:
        if annotated.image.id in seen:
            raise ValueError(f"two pictures have the id {annotated.image.id!r}; ids must be unique")
        seen.add(annotated.image.id)
        asked = ask_pope(annotated, counted, num=num_per_image, seed=seed)
        if asked:
            questions[annotated.image.id] = asked
    return questions


def ask_pope(
    annotated: AnnotatedImage, statistics: Statistics, *, num: int = 3, seed: int = 0
) -> tuple[Conversation, ...]:
    """POPE's questions about one picture: of each kind at most `num` with the answer yes, and as many with no.

    Ids are `<image id>/<kind>-<number>`, yes at even and no at odd numbers. Empty where nothing or everything of the
    vocabulary is in the picture.
    """
    if num < 1:
        raise ValueError(f"POPE asks at least 1 present category a picture, got {num}")
    statistics.check(annotated.categories)
    rng = picture_rng(annotated.image.id, seed)
    present = _shuffled(annotated.categories, rng)
    absent = _shuffled([c for c in statistics.vocabulary if c not in set(present)], rng)
    positives = present[: min(num, len(absent))]
    negatives = {
        "pope.random": absent[: len(positives)],
        "pope.popular": statistics.by_frequency(absent)[: len(positives)],
        "pope.adversarial": _partners(positives, absent, statistics),
    }
    conversations = []
    for kind in POPE_KINDS:
        pairs = zip(positives, negatives[kind], strict=True)
        for number, category in enumerate(category for pair in pairs for category in pair):
            masks, placed = masks_of(annotated, category), category not in annotated.labels
            identity = f"{annotated.image.id}/{kind}-{number}"
            conversations.append(presence_conversation(identity, kind, category, masks, placed=placed))
    return tuple(conversations)


def picture_rng(identity: str, seed: int) -> np.random.Generator:
    """A generator for one picture, the same on every machine and in any order of pictures."""
    digest = hashlib.sha256(identity.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def masks_of(annotated: AnnotatedImage, category: str) -> tuple[RLE, ...]:
    """The masks of all instances of a category, crowds included."""
    return tuple(instance.mask for instance in annotated.instances if instance.category == category)


def _shuffled(categories: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [categories[position] for position in rng.permutation(len(categories))]


def _partners(positives: Sequence[str], absent: Sequence[str], statistics: Statistics) -> list[str]:
    """For each positive in turn, the absent category most often seen with it that is not taken yet.

    Ties go to the more frequent category, then to the earlier one of the vocabulary. Where none was ever seen with the
    positive, the next of `absent` in its given, random order steps in, after all positives that have partners.
    """
    free = statistics.by_frequency(absent)
    chosen: dict[str, str] = {}
    for positive in positives:
        together = {category: statistics.cooccurrence[positive, category] for category in free}
        best = max(free, key=together.__getitem__)  # the first of equals: free is sorted by frequency
        if together[best]:
            chosen[positive] = best
            free.remove(best)
    rest = iter([category for category in absent if category in set(free)])
    return [chosen[positive] if positive in chosen else next(rest) for positive in positives]
