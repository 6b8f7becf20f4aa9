"""The object words of captions that a model writes by itself, and what could tell that one is made up.

The words are those that the data ask for, so that of most it is known whether their thing is in the picture; the others
are counted and left out. A word is judged where the model first says it, all before it given.
"""

# Shapes: R captions, A tokens of the longest.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agevlm.analysis.attention import decode_with_offsets, object_words
from agevlm.data.chat import tokens_of_span
from agevlm.data.images import open_image
from agevlm.data.schema import Sample
from agevlm.diagnosis.asking import REQUEST, Progress
from agevlm.diagnosis.lens import Lens, lens_of
from agevlm.evaluation.localisation import map_entropy
from agevlm.evaluation.questions import LONG_ANSWER_TOKENS
from agevlm.vlms import Answer, AttentionUnreadableError, Inputs, Vlm, attention_maps
from agevlm.vlms import WordMap as Seen

CAPTIONS_AT_ONCE = 16

Span = tuple[int, int, str]  # start, end, and the word as the data have it


@dataclass(frozen=True)
class CaptionWord:
    """One word of a caption. `scores` are those of the detectors that could be made, higher for what is not there."""

    image: str
    phrase: str
    present: bool
    scores: Mapping[str, float]


@dataclass(frozen=True)
class CaptionReading:
    """All judged words, the captions by picture, and how many words had nothing known of them."""

    words: tuple[CaptionWord, ...]
    captions: Mapping[str, str]
    num_unknown: int


def read_captions(
    vlm: Vlm,
    samples: Sequence[Sample],
    request: str = REQUEST,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> CaptionReading | str:
    """Let the model write a caption of each picture, and score its object words; or a sentence that says why not.

    `samples` are those of presence questions: whose thing is there, and whose is not, is known from these alone.
    """
    known = [_presence(sample) for sample in samples]
    vocabulary = sorted({phrase for of in known for phrase in of})
    if not any(there is False for of in known for there in of.values()):
        return (
            "the data do not say of any word that its thing is missing, so no word of a caption is known to be made up"
        )
    try:
        text = vlm.prompt(request)
    except ValueError as error:
        return str(error)
    lens = lens_of(vlm)
    size = min(batch_size or CAPTIONS_AT_ONCE, CAPTIONS_AT_ONCE if vlm.encodes_once else 8)
    words: list[CaptionWord] = []
    captions: dict[str, str] = {}
    num_unknown = 0
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        pictures = [open_image(sample.images[0]) for sample in batch]
        for number, caption, scored in _batch(vlm, text, pictures, vocabulary, lens):
            of = known[start + number]
            captions[batch[number].id] = caption
            num_unknown += sum(phrase not in of for phrase in scored)
            words += [CaptionWord(batch[number].id, p, of[p], s) for p, s in scored.items() if p in of]
        if progress:
            progress("own captions", min(start + size, len(samples)), len(samples))
    if not words:
        return "the captions that it writes name nothing of which it is known whether it is there"
    return CaptionReading(tuple(words), captions, num_unknown)


def _presence(sample: Sample) -> dict[str, bool]:
    """The words that the questions of a sample ask for, and whether their thing is there."""
    return {
        word.phrase: bool(word.present)
        for conversation in sample.conversations
        for word in conversation.groundings
        if word.present is not None
    }


def _batch(
    vlm: Vlm, text: str, pictures: Sequence[Any], vocabulary: Sequence[str], lens: Lens | str
) -> Iterator[tuple[int, str, dict[str, dict[str, float]]]]:
    """The number of each picture, its caption, and the scores of each word in it."""
    kept = vlm.keep(pictures)
    inputs = vlm.encode([text] * len(pictures), [[picture] for picture in kept])
    said = vlm.answers(inputs, LONG_ANSWER_TOKENS)
    found: list[tuple[str, dict[str, list[int]]]] = []
    for answer in said:
        caption, offsets = decode_with_offsets(vlm.processor.tokenizer, answer.ids)
        spans = {span[2]: span for span in reversed(object_words(caption, vocabulary))}  # the first of each word
        places = {phrase: tokens_of_span(offsets, *span[:2]) for phrase, span in spans.items()}
        found.append((caption, {phrase: tokens for phrase, tokens in places.items() if tokens}))
    if not any(places for _, places in found):
        yield from ((number, caption, {}) for number, (caption, _) in enumerate(found))
        return
    log_probs = vlm.log_probs(inputs, [answer.ids for answer in said])
    maps = _maps(vlm, inputs, said, [places for _, places in found])
    for number, (caption, places) in enumerate(found):
        scores: dict[str, dict[str, float]] = defaultdict(dict)
        read = lens.confidence(vlm, pictures[number], list(places)) if isinstance(lens, Lens) and places else {}
        for phrase, tokens in places.items():
            scores[phrase]["p_no"] = 1 - float(log_probs[number][tokens].sum().exp())
            if phrase in read:
                scores[phrase]["logit_lens"] = 1 - read[phrase]
            if (seen := maps[number].get(phrase)) is not None:
                scores[phrase]["entropy"] = map_entropy(seen.maps[0])
                if seen.null_mass is not None:
                    scores[phrase]["null_mass"] = seen.null_mass
        yield number, caption, dict(scores)


def _maps(
    vlm: Vlm, inputs: Inputs, said: Sequence[Answer], places: Sequence[Mapping[str, Sequence[int]]]
) -> list[dict[str, Seen | None]]:
    """The map of each word while it is said; none where attention or boxes cannot be had."""
    if vlm.note is not None:
        return [{} for _ in places]
    words = [{phrase: [inputs.text_len + t for t in tokens] for phrase, tokens in of.items()} for of in places]
    positions = [sorted({token for tokens in of.values() for token in tokens}) for of in words]
    answered = inputs.answered([answer.ids for answer in said], vlm.family)
    try:
        reading = vlm.read(answered, positions=positions)
    except AttentionUnreadableError:
        return [{} for _ in places]
    maps = attention_maps(answered, reading, positions, [list(of.values()) for of in words], of_pictures=True)
    return [dict(zip(of, row, strict=True)) for of, row in zip(words, maps, strict=True)]
