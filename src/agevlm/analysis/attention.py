"""Where a model looks: the attention of each object word of a question and its answer, as maps over the picture.

Finds the words, asks the model for the attention of their tokens and brings the maps into the picture's own pixels.
Draws nothing (see figures.py) and scores nothing (see evaluation/).
"""

# Shapes: h, w the grid of image tokens.

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agevlm.analysis.learned import learned_by
from agevlm.data.chat import tokens_of_span
from agevlm.data.nouns import plain, plural
from agevlm.data.schema import Message
from agevlm.files import write_beside
from agevlm.vlms import AttentionUnreadableError, Inputs, Vlm, attention_maps, occlusion_map
from agevlm.vlms import WordMap as Seen

Span = tuple[int, int, str]
Where = Literal["question", "answer"]
MAX_QUESTION_LEN = 20_000  # characters: more than contexts take, and enough to keep a tokenizer busy for minutes

# What is not a thing to look at, unless it is asked for or the model learned it. With a vocabulary this list plays no
# part.
_STOP_WORDS = frozenset(
    """a about above all also am an and another any are as at background be been behind below beside between both but
    by can colour colours color colors corner could count describe did do does each either every few find foreground
    for from front give had has have he her here him his how i if image in into is it its just left like look looks lot
    many me middle more most much my near next no none not nothing of off on one only or other our out over
    photo photograph picture please right same say see seem seems she should show side so some something tell than that
    the their them then there these they thing things this those to together top bottom two three four five six seven
    eight nine ten under up us very visible was we were what when where whether which who whose why will with would
    yes you your zero""".split()
)
_LETTERS = r"[^\W\d_]+(?:['’-][^\W\d_]+)*"
_WORD = re.compile(_LETTERS)
# The word that a question asks for, and the one that follows it.
_ASKED = re.compile(
    r"\b(?:(?:is|are)\s+there|(?:do|can)\s+you\s+see)\s+(?:an?|any)\s+"
    rf"(?!(?:lot|few)\b)({_LETTERS})(?:\s+({_LETTERS}))?",
    re.IGNORECASE,
)
_AFTER_NO_NOUN = frozenset("a an the these those them my your his her".split())
# The picture that is looked at, and none that it shows.
_LOOKED_AT = re.compile(
    r"\b(?:the|this|that|my|your|(?:in|of|describe)(?:\s+an?)?)\s+(image|photo|photograph|picture)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class WordMap:
    """The attention of one object word.

    `text[start:end]` of the question or the answer (`where`) is the word as written, `word` its dictionary form.
    `map` (h, w) is float32, the share of attention on each cell; with `null_mass`, the share on the null token (None
    where the model has none), it sums to 1, less what lies on image tokens without pixels (ends of rows, padding).
    `learned` says whether training pictures showed what the word names; None where the model does not tell what it
    learned. Of a word that it did not learn neither answer nor map means anything.
    """

    word: str
    start: int
    end: int
    where: Where
    map: NDArray[np.float32]
    null_mass: float | None = None
    learned: bool | None = None

    @property
    def mass(self) -> float:
        """Share of the attention that lies on the picture, in [0, 1]."""
        return float(self.map.sum())


@dataclass(frozen=True)
class Look:
    """A question, its answer, and where the model looked at each object word; `grid` is (h, w).

    `note` says why maps are of occlusion and not of attention, None where they are of attention. `known_words` and
    `known_questions` are what the model says it learned, None where it does not tell.
    """

    question: str
    answer: str
    words: tuple[WordMap, ...]
    grid: tuple[int, int]
    note: str | None = None
    known_words: tuple[str, ...] | None = None
    known_questions: tuple[str, ...] | None = None

    @property
    def unlearned(self) -> tuple[str, ...]:
        """The words, each once, that the model says it did not learn: what it answers about them means nothing."""
        return tuple(dict.fromkeys(word.word for word in self.words if word.learned is False))

    def written(self, word: WordMap) -> str:
        """A word as question or answer write it: "boats" for the word "boat"."""
        return {"question": self.question, "answer": self.answer}[word.where][word.start : word.end]


def object_words(
    text: str, vocabulary: Collection[str] | None = None, known: Collection[str] | None = None
) -> list[Span]:
    """The (start, end, phrase) of each object word of `text`, in order, none overlapping another.

    With a vocabulary of category names: its entries and their plurals as whole words, whatever the case, the longest
    first ("hot dog" before "dog"), and no part of a word with hyphens; `phrase` is the entry. Without one: every
    content word, that is every word but numbers and a short list of articles, verbs and question words; `phrase` is the
    word in lower case. A word of that list counts where it is asked for ("is there a background?") or is one of the
    `known` words that the model learned, unless it names the picture that is looked at ("in the picture").
    """
    if vocabulary is None:
        found = [(match.start(), match.end(), match.group().lower()) for match in _WORD.finditer(text)]
        learned = {span[:2] for span in object_words(text, known or ())}
        named = _asked_for(text) | learned - {match.span(1) for match in _LOOKED_AT.finditer(text)}
        return [span for span in found if span[2] not in _STOP_WORDS or span[:2] in named]
    nouns = {plain(entry): entry for entry in vocabulary if entry.strip()}
    entries = {plural(noun): entry for noun, entry in nouns.items()} | nouns
    if not entries:
        return []
    longest_first = sorted(entries, key=lambda form: (-len(form), form))
    forms = "|".join(r"\s+".join(map(re.escape, form.split())) for form in longest_first)
    matches = re.finditer(rf"(?<!\w)(?<!\w-)(?:{forms})(?!-?\w)", text, re.IGNORECASE)
    return [(match.start(), match.end(), entries[plain(match.group())]) for match in matches]


def _asked_for(text: str) -> set[tuple[int, int]]:
    """Where what "is there a …" asks for stands, if that is one word and not one that goes before another's name."""
    names_a_thing = _STOP_WORDS - _AFTER_NO_NOUN
    return {match.span(1) for match in _ASKED.finditer(text) if not match[2] or match[2].lower() in names_a_thing}


def words_and_learned(
    text: str, vocabulary: Collection[str] | None = None, known: Collection[str] | None = None
) -> list[tuple[Span, bool | None]]:
    """The object words of a text, and of each whether it is one of the `known` words or a part of one.

    None where the model does not tell what it learned.
    """
    spans = object_words(text, vocabulary, known)
    if known is None:
        return [(span, None) for span in spans]
    covered = {place for start, end, _ in object_words(text, known) for place in range(start, end)}
    return [(span, not covered.isdisjoint(range(*span[:2]))) for span in spans]


def look(
    model: Any,
    processor: Any,
    image: str | Path | bytes | Image.Image,
    question: str,
    *,
    before: Sequence[Message] = (),
    vocabulary: Collection[str] | None = None,
    max_new_tokens: int = 64,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Look:
    """Ask any vision-language model about one picture and keep where it looks at each object word.

    `before` are the messages that the question goes on from: the picture stands where they show it, else before the
    question. The answer is greedy. A word's map is the attention of its tokens on the picture and, where there is one,
    the null token, scaled to sum 1: the mean over the layers that look at pictures (all, or those with the numbers
    `layers`) and over `heads` (all, or some). Layers are numbered from 0 in the stack of all layers, cross-attention
    included, as a diagnosis numbers them. Where attention cannot be read, maps are made by occlusion, and `note` says
    so. A word that the processor took apart from its text has no map and is left out.

    Raises ValueError for a question without text, or with the model's own placeholder of a picture in it, a picture
    that cannot be read, and numbers of layers or heads that are not there or do not look.
    """
    question = question.strip()
    if not question:
        raise ValueError("the question has no text: write what you want to know of the picture")
    if len(question) > MAX_QUESTION_LEN:
        raise ValueError(f"the question has {len(question)} characters, the most are {MAX_QUESTION_LEN}: ask for less")
    placeholder = getattr(processor, "image_token", None)
    if placeholder and placeholder in question:
        raise ValueError(f"the question says {placeholder}, and the picture is shown without it: take it out")
    vlm, picture = Vlm(model, processor), _picture(image)
    last = Message("user", question, num_images=1 - sum(message.num_images for message in before))
    chat = vlm.chat([*before, last])
    inputs = vlm.encode([chat.text], [[picture]])
    said = vlm.answers(inputs, max_new_tokens)[0]
    answer, offsets = decode_with_offsets(processor.tokenizer, said.ids)
    answered, at = inputs.answered([said.ids], vlm.family), chat.content_starts[-1]
    known = learned_by(model)
    words: list[tuple[Span, Where, bool | None, list[int]]] = []
    for span, learned in words_and_learned(question, vocabulary, known.words):
        tokens = answered.tokens_of(processor.tokenizer, 0, at + span[0], at + span[1])
        words.append((span, "question", learned, tokens))
    for span, learned in words_and_learned(answer, vocabulary, known.words):
        tokens = [inputs.text_len + token for token in tokens_of_span(offsets, *span[:2])]
        words.append((span, "answer", learned, tokens))
    words = [word for word in words if word[3]]
    maps, note = _maps(vlm, answered, [tokens for *_, tokens in words], layers, heads)
    if note is not None:
        maps = [_occluded(vlm, chat.text, picture, said.ids)] * len(words)
    found = tuple(
        WordMap(span[2], *span[:2], where, seen.maps[0], seen.null_mass, learned)
        for (span, where, learned, _), seen in zip(words, maps, strict=True)
    )
    grid = found[0].map.shape if found else inputs.pictures[0][0].grid if vlm.note is None else (0, 0)
    return Look(question, answer, found, (grid[0], grid[1]), note, *known)


def _maps(
    vlm: Vlm,
    inputs: Inputs,
    words: Sequence[Sequence[int]],
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
) -> tuple[list[Seen], str | None]:
    """The map of each word, or none and the reason why attention does not give them."""
    if vlm.note is not None or not words:
        return [], vlm.note
    positions = sorted({token for tokens in words for token in tokens})
    try:
        reading = vlm.read(inputs, positions=[positions], layers=layers_to_read(layers, vlm.looking))
    except AttentionUnreadableError as error:
        return [], str(error)
    (found,) = attention_maps(inputs, reading, [positions], [words], heads=heads, of_pictures=True)
    return [seen for seen in found if seen is not None], None


def _occluded(vlm: Vlm, text: str, picture: Image.Image, answer: Sequence[int]) -> Seen:
    """What of the picture an answer hangs on, as shares: cells that make it likelier count as nothing."""
    hangs = occlusion_map(vlm, text, [picture], answer or None).clip(min=0)
    return Seen(((hangs / max(float(hangs.sum()), 1e-12)).astype(np.float32),), "occlusion")


def to_pixels(
    attention: NDArray[np.float32], size: tuple[int, int], mode: Literal["bilinear", "nearest"] = "bilinear"
) -> NDArray[np.float32]:
    """The map (h, w) in the pixels of a picture of `size` (height, width): float32 (height, width), values kept.

    The image processor squeezes the whole picture into its square, so the grid covers the picture evenly, whatever its
    shape: cell (i, j) is centred on ((i + 0.5) / h, (j + 0.5) / w) of height and width. Between the centres values are
    interpolated, beyond the outermost they are constant; "nearest" keeps the cells as they are.
    """
    resampling = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
    if mode not in resampling:
        raise ValueError(f"the mode of to_pixels is {mode!r}; it must be 'bilinear' or 'nearest'")
    if attention.ndim != 2:
        raise ValueError(f"a map has the shape (h, w), but this one has {attention.shape}")
    height, width = size
    picture = Image.fromarray(np.ascontiguousarray(attention, dtype=np.float32))
    return np.array(picture.resize((width, height), resampling[mode]), dtype=np.float32)


def save_maps(look: Look, path: str | Path) -> Path:
    """Write the maps of `look` as a NumPy .npz file, without pickles.

    `maps` (K, h, w) float32, `null_mass` (K,) float32 (NaN without a null token), and for each of the K words `words`,
    `where`, `spans` (K, 2); `question` and `answer`.
    """
    spans = np.array([(word.start, word.end) for word in look.words], dtype=np.int64).reshape(-1, 2)
    with write_beside(path) as beside, beside.open("wb") as file:
        np.savez_compressed(
            file,
            maps=np.array([word.map for word in look.words], dtype=np.float32).reshape(-1, *look.grid),
            null_mass=np.array([np.nan if w.null_mass is None else w.null_mass for w in look.words], dtype=np.float32),
            words=np.array([word.word for word in look.words], dtype=np.str_),
            where=np.array([word.where for word in look.words], dtype=np.str_),
            spans=spans,
            question=np.array(look.question),
            answer=np.array(look.answer),
        )
    return Path(path)


def _picture(image: str | Path | bytes | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    from agevlm.data.images import open_image

    return open_image(image)


def layers_to_read(layers: Sequence[int] | None, looking: Sequence[int]) -> Sequence[int]:
    """The layers that maps are the mean of, by default all that look. ValueError for one that does not look."""
    wrong = [number for number in layers or () if number not in looking]
    if wrong:
        raise ValueError(f"there is no layer {wrong} that looks at pictures: choose from {_listed(looking)}")
    return layers or looking


def _listed(numbers: Sequence[int]) -> str:
    """Numbers in order, those that follow each other as "3 to 5"."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def decode_with_offsets(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The answer without blanks at its ends, and the characters of it that each generated token stands for."""
    edges = [len(_text(tokenizer, ids[:count])) for count in range(len(ids) + 1)]
    whole = _text(tokenizer, ids)
    blank = len(whole) - len(whole.lstrip())
    return whole.strip(), [(max(0, start - blank), max(0, end - blank)) for start, end in pairwise(edges)]


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
