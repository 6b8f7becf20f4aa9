"""Where a model looks: the attention of each object word of a question and its answer, as maps over the picture.

Finds the words, asks the model for the attention of their tokens and brings the maps into the picture's own pixels.
Draws nothing (see figures.py) and scores nothing (see evaluation/).
"""

# Shapes: S cross-attention layers, H heads, T text tokens, M pictures, h, w the grid of image tokens.

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agevlm.data.chat import render_conversation, tokens_of_span
from agevlm.data.nouns import plural
from agevlm.data.schema import Message
from agevlm.files import write_beside

if TYPE_CHECKING:
    import torch

Span = tuple[int, int, str]
Where = Literal["question", "answer"]

# What is not a thing to look at. With a vocabulary this list plays no part.
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
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


@dataclass(frozen=True)
class WordMap:
    """The attention of one object word.

    `text[start:end]` of the question or the answer (`where`) is the word as written, `word` its dictionary form.
    `map` (h, w) is float32, the share of attention on each cell; with `null_mass`, the share on the null token (None
    where the model has none), it sums to 1.
    """

    word: str
    start: int
    end: int
    where: Where
    map: NDArray[np.float32]
    null_mass: float | None = None

    @property
    def mass(self) -> float:
        """Share of the attention that lies on the picture, in [0, 1]."""
        return float(self.map.sum())


@dataclass(frozen=True)
class Look:
    """A question, its answer, and where the model looked at each object word; `grid` is (h, w)."""

    question: str
    answer: str
    words: tuple[WordMap, ...]
    grid: tuple[int, int]

    def written(self, word: WordMap) -> str:
        """A word as question or answer write it: "boats" for the word "boat"."""
        return {"question": self.question, "answer": self.answer}[word.where][word.start : word.end]


def object_words(text: str, vocabulary: Collection[str] | None = None) -> list[Span]:
    """The (start, end, phrase) of each object word of `text`, in order, none overlapping another.

    With a vocabulary of category names: its entries and their plurals as whole words, whatever the case, the longest
    first ("hot dog" before "dog"); `phrase` is the entry. Without one: every content word, that is every word but
    numbers and a short list of articles, verbs and question words; `phrase` is the word in lower case.
    """
    if vocabulary is None:
        found = [(match.start(), match.end(), match.group().lower()) for match in _WORD.finditer(text)]
        return [span for span in found if span[2] not in _STOP_WORDS]
    nouns = [entry for entry in vocabulary if entry.strip()]
    entries = {plural(noun).lower(): noun for noun in nouns} | {noun.lower(): noun for noun in nouns}
    if not entries:
        return []
    longest_first = sorted(entries, key=lambda form: (-len(form), form))
    forms = "|".join(r"\s+".join(map(re.escape, form.split())) for form in longest_first)
    matches = re.finditer(rf"(?<!\w)(?:{forms})(?!\w)", text, re.IGNORECASE)
    return [(match.start(), match.end(), entries[" ".join(match.group().lower().split())]) for match in matches]


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
    """Ask `model` a question about one picture and keep where it looks at each object word of question and answer.

    `before` are the messages that the question goes on from: the picture stands where they show it, else before the
    question. The answer is greedy. A word's map is the mean over its tokens, over cross-attention layers (all, or those
    with the numbers `layers`, counted from 0 among the cross-attention layers) and over `heads` (all, or some).

    Raises ValueError for a question without text, a picture that cannot be read, and numbers of layers or heads that
    the model does not have.
    """
    question = question.strip()
    if not question:
        raise ValueError("the question has no text: write what you want to know of the picture")
    last = Message("user", question, num_images=1 - sum(message.num_images for message in before))
    chat = render_conversation(processor, [*before, last], add_generation_prompt=True)
    inputs = processor(text=[chat.text], images=[[_picture(image)]], return_tensors="pt", add_special_tokens=False)
    prompt_ids = inputs["input_ids"][0].tolist()
    output = model.generate(
        **_to_device(inputs, model),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        output_attention_maps=True,
        return_dict_in_generate=True,
    )
    maps_Thw = _average(output.attention_maps, layers, heads)[:, 0]
    null_T = None if output.null_attention is None else _average(output.null_attention, layers, heads)
    answer, answer_offsets = _decode(processor.tokenizer, output.sequences[0].tolist()[len(prompt_ids) :])
    texts = (
        _Text(
            "question", question, _prompt_offsets(processor.tokenizer, chat.text, prompt_ids), chat.content_starts[-1]
        ),
        _Text("answer", answer, [(0, 0)] * len(prompt_ids) + answer_offsets),
    )
    words = tuple(word for text in texts for word in _word_maps(text, vocabulary, maps_Thw, null_T))
    return Look(question, answer, words, (maps_Thw.shape[1], maps_Thw.shape[2]))


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


def _to_device(inputs: Any, model: Any) -> dict[str, Any]:
    """Inputs on the model's device, pixels in its type."""
    moved = {name: value.to(model.device) for name, value in inputs.items()}
    return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in moved.items()}


def _average(
    weights: Sequence[torch.Tensor], layers: Sequence[int] | None, heads: Sequence[int] | None
) -> NDArray[np.float32]:
    """Weights (R, H, T, …) of each layer → those of the first row, (T, …), mean over layers and heads."""
    import torch

    layers = _checked(layers, len(weights), "cross-attention layer")
    heads = _checked(heads, weights[0].shape[1], "head")
    chosen_SHT = torch.stack([weights[layer][0][list(heads)].float() for layer in layers])
    return np.asarray(chosen_SHT.mean(dim=(0, 1)).cpu().numpy(), dtype=np.float32)


def _checked(numbers: Sequence[int] | None, num: int, what: str) -> Sequence[int]:
    wrong = [number for number in numbers or () if not 0 <= number < num]
    if wrong:
        raise ValueError(f"there is no {what} {wrong}: the model has {num}, numbered from 0")
    return numbers or range(num)


@dataclass(frozen=True)
class _Text:
    """Question or answer, and where the characters of each token of the whole sequence are; `content` is at `shift`."""

    where: Where
    content: str
    offsets: Sequence[tuple[int, int]]
    shift: int = 0


def _word_maps(
    text: _Text,
    vocabulary: Collection[str] | None,
    maps_Thw: NDArray[np.float32],
    null_T: NDArray[np.float32] | None,
) -> Iterator[WordMap]:
    for start, end, phrase in object_words(text.content, vocabulary):
        tokens = tokens_of_span(text.offsets, text.shift + start, text.shift + end)
        assert tokens, (text.content, phrase, text.offsets)
        null_mass = None if null_T is None else float(null_T[tokens].mean())
        yield WordMap(phrase, start, end, text.where, maps_Thw[tokens].mean(axis=0), null_mass)


def _prompt_offsets(tokenizer: Any, text: str, prompt_ids: Sequence[int]) -> list[tuple[int, int]]:
    """The characters of `text` that each prompt token stands for."""
    coded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    assert list(coded["input_ids"]) == list(prompt_ids), (coded["input_ids"], prompt_ids)
    return [(start, end) for start, end in coded["offset_mapping"]]


def _decode(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The answer without blanks at its ends, and the characters of it that each generated token stands for."""
    ends = [len(_text(tokenizer, ids[: count + 1])) for count in range(len(ids))]
    whole = _text(tokenizer, ids)
    blank = len(whole) - len(whole.lstrip())
    starts = [0, *ends[:-1]]
    return whole.strip(), [
        (max(0, start - blank), max(0, end - blank)) for start, end in zip(starts, ends, strict=True)
    ]


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
