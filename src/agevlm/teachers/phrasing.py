"""Which phrases of a sample are asked of a teacher, and what its verdicts make of the sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from agevlm.data.phrases import Phrase, PhraseFinder
from agevlm.data.schema import Conversation, Grounding, Sample
from agevlm.teachers.base import Verdict


@dataclass(frozen=True)
class _Place:
    """A phrase in a message, and the picture that it is about: the last one shown before it."""

    message: int
    phrase: Phrase
    image: int


def phrases_of(sample: Sample, finder: PhraseFinder | None) -> list[tuple[str, ...]]:
    """For each picture of a sample the names to look for, each once, in order of first appearance.

    Where a conversation has groundings, the phrases are theirs; of any other one they are what `finder` finds.
    """
    names: list[dict[str, None]] = [{} for _ in sample.images]
    for conversation in sample.conversations:
        for place in _places(conversation, finder):
            names[place.image].setdefault(place.phrase.name)
    return [tuple(known) for known in names]


def with_verdicts(sample: Sample, finder: PhraseFinder | None, verdicts: Sequence[Mapping[str, Verdict]]) -> Sample:
    """The sample with a grounding for each of its phrases, as the verdicts on its pictures have it."""
    conversations = tuple(
        replace(
            conversation,
            groundings=tuple(
                _grounding(conversation, place, verdicts[place.image][place.phrase.name])
                for place in _places(conversation, finder)
            ),
        )
        for conversation in sample.conversations
    )
    return replace(sample, conversations=conversations)


def _places(conversation: Conversation, finder: PhraseFinder | None) -> list[_Place]:
    if conversation.groundings:
        return [
            _Place(known.message, Phrase(known.start, known.end, _name(known.phrase, finder)), known.image)
            for known in conversation.groundings
        ]
    places, shown = [], 0
    for number, message in enumerate(conversation.messages):
        shown += message.num_images
        if shown and finder is not None and message.role != "system":
            places += [_Place(number, phrase, shown - 1) for phrase in finder.find(message.content)]
    return places


def _name(phrase: str, finder: PhraseFinder | None) -> str:
    """What to call a phrase before a teacher: the name that the finder has for it, else the phrase itself."""
    found = finder.find(phrase) if finder else []
    whole = [known.name for known in found if (known.start, known.end) == (0, len(phrase))]
    return whole[0] if whole else phrase.lower()


def _grounding(conversation: Conversation, place: _Place, verdict: Verdict) -> Grounding:
    content, phrase = conversation.messages[place.message].content, place.phrase
    return Grounding(
        message=place.message,
        start=phrase.start,
        end=phrase.end,
        phrase=content[phrase.start : phrase.end],
        present=verdict.present,
        masks=verdict.masks,
        image=place.image,
    )
