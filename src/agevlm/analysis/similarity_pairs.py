"""Matching and mismatched pairs of pictures and captions, for the similarity analysis.

Every picture stands with its own caption, and every caption a second time with another picture. So both kinds of pairs
hold the same pictures and the same texts, each once: what tells them apart is only what belongs together.
"""

# Shapes: P captions, as many as pictures.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agevlm.data.nouns import plural
from agevlm.data.schema import Conversation, Grounding, Sample

CAPTION = "caption"  # the kind of conversation that is paired


@dataclass(frozen=True)
class Pairs:
    """Pictures with their captions, and the other picture of each caption.

    `samples[i]` has one picture and one conversation, its caption. Caption i is mismatched with picture `others[i]`,
    never its own; `others` (P,) is a permutation. `num_maybe_true` mismatched captions name nothing that the other
    picture lacks, as far as its own caption tells; `num_left_out` samples had no caption with an object word.
    """

    samples: tuple[Sample, ...]
    others: NDArray[np.intp]
    num_maybe_true: int
    num_left_out: int

    def __len__(self) -> int:
        return len(self.samples)


def pair_captions(samples: Iterable[Sample], seed: int = 0) -> Pairs:
    """Pair every picture that has a caption with it, and every caption with another picture, deterministic in `seed`.

    A caption is false of a picture if it names a thing, in the singular or the plural, that the picture's own caption
    does not. The permutation is a random cycle, in which captions that are not false of their picture exchange it with
    another, the first in random order that makes both false; where there is none it stays, and is counted. Fewer than
    two captions, and a sample with several pictures, are ValueErrors.
    """
    seen = list(samples)
    captioned = tuple(captions for sample in seen if (captions := _with_caption_alone(sample)) is not None)
    if len(captioned) < 2:
        raise ValueError(
            f"mismatched pairs need two pictures with a caption that names a thing, got {len(captioned)} in "
            f"{len(seen)} samples: take more, or a dataset with conversations of the kind {CAPTION!r}"
        )
    things = [[_forms(word.phrase) for word in object_words(sample.conversations[0])] for sample in captioned]
    false_PP = np.array([[_is_false(one, other) for other in things] for one in things])
    others = _permutation(false_PP, np.random.default_rng(seed))
    maybe_true = int((~false_PP[np.arange(len(others)), others]).sum())
    return Pairs(captioned, others, maybe_true, len(seen) - len(captioned))


def object_words(conversation: Conversation) -> list[Grounding]:
    """The object words that the assistant says."""
    return [word for word in conversation.groundings if conversation.messages[word.message].role == "assistant"]


def _with_caption_alone(sample: Sample) -> Sample | None:
    """The sample with its first caption that has an object word as its only conversation; None without one."""
    captions = [c for c in sample.conversations if c.kind == CAPTION and object_words(c)]
    if captions and len(sample.images) != 1:
        raise ValueError(f"sample {sample.id} has {len(sample.images)} pictures: a pair is one picture and one caption")
    return replace(sample, conversations=tuple(captions[:1])) if captions else None


def _forms(noun: str) -> frozenset[str]:
    return frozenset((noun.lower(), plural(noun.lower())))


def _is_false(caption: Sequence[frozenset[str]], picture: Sequence[frozenset[str]]) -> bool:
    """Whether a caption names what is not among the things of a picture; both as sets of forms."""
    known = frozenset().union(*picture)
    return any(forms.isdisjoint(known) for forms in caption)


def _permutation(false_PP: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.intp]:
    """A permutation without fixed points that prefers entries of `false_PP`, whose diagonal is False."""
    order = rng.permutation(len(false_PP))
    others = np.empty(len(order), dtype=np.intp)
    others[order] = np.roll(order, -1)
    for one in order:
        if false_PP[one, others[one]]:
            continue
        for two in rng.permutation(len(order)):
            if false_PP[one, others[two]] and false_PP[two, others[one]]:
                others[[one, two]] = others[[two, one]]
                break
    return others
