"""Texts and pictures as one model takes them, and where in that the image tokens of each picture are.

`encode` runs the processor and lays its facts beside what it gave; nothing here runs the model.
"""

# Shapes: R rows of text, T tokens of a row with its padding, n image tokens of a picture.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agevlm.data.chat import tokens_of_span
from agevlm.vlms.families import Family, Shown, known_types
from agevlm.vlms.views import SeenPicture, Size, View, num_tokens

# Tensors with a column for each token of the text; an answer repeats the last one, unless the family says otherwise.
_ALONG_TEXT = ("attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask", "images_seen")


_NAMED_SIZES = 3
_OF_THE_DEVICE = ("memory", "CUDA", "CUBLAS", "CUDNN", "cuDNN", "HIP", "MPS")  # words of torch's other errors


@dataclass(frozen=True)
class Inputs:
    """Rows of text with their pictures, padded on the left.

    `tensors` are the arguments of the model's `forward`. `pictures[r]` are the pictures of row r in order. `num_front`
    positions stand in front of the text in the decoder (of concatenation as in `agevlm_concat`). `sees_from[r]` is the
    first token of row r that sees a picture. `null_columns` are keys beside those of the pictures that a layer may look
    at instead (an AGE-VLM's null token). `num_answer` tokens at the end were added by `answered`.
    """

    texts: tuple[str, ...]
    tensors: Mapping[str, Any]
    pictures: tuple[tuple[SeenPicture, ...], ...]
    sees_from: tuple[int, ...]
    num_front: int = 0
    null_columns: tuple[int, ...] = ()
    num_answer: int = 0

    @property
    def text_len(self) -> int:
        """T: the tokens of a row, padding and answer included."""
        return int(self.tensors["input_ids"].shape[1])

    @property
    def front_is_cached(self) -> bool:
        """Whether what stands in front of the text is in the cache before an answer begins."""
        memory = self.tensors.get("image_memory")
        return getattr(memory, "prefilled", None) is not None and all(len(row) == 1 for row in self.pictures)

    @property
    def sizes(self) -> list[Size]:
        """The sizes (height, width) of all pictures."""
        return [picture.size for row in self.pictures for picture in row]

    def position_ids(self) -> Tensor:
        """(R, T): the place of each token in its row, not counting padding on the left."""
        return (self.tensors["attention_mask"].cumsum(-1) - 1).clamp(min=0)

    def answered(self, answers: Sequence[Sequence[int]], family: Family | None) -> Inputs:
        """The same rows with the tokens of an answer behind each, shorter ones padded on the right."""
        ids = self.tensors["input_ids"]
        longest = max(map(len, answers), default=0)
        rows = [[*answer, *[0] * (longest - len(answer))] for answer in answers]
        said = torch.tensor([[1] * len(a) + [0] * (longest - len(a)) for a in answers], device=ids.device)
        tensors = dict(self.tensors)
        tensors["input_ids"] = torch.cat([ids, torch.tensor(rows, device=ids.device, dtype=ids.dtype)], dim=1)
        values = family.answer_values if family is not None else {}
        for name in _ALONG_TEXT:
            if name in tensors:
                more = tensors[name][:, -1:].repeat(1, longest, *[1] * (tensors[name].ndim - 2))
                more = (
                    said.to(more) if name == "attention_mask" else more.fill_(values[name]) if name in values else more
                )
                tensors[name] = torch.cat([tensors[name], more], dim=1)
        return replace(self, tensors=tensors, num_answer=self.num_answer + longest)

    def tokens_of(self, tokenizer: Any, row: int, start: int, end: int) -> list[int]:
        """Positions in row `row` of the tokens of `texts[row][start:end]`; [] where the processor changed that text."""
        return self.words_of(tokenizer, row, [(start, end)])[0]

    def words_of(self, tokenizer: Any, row: int, spans: Sequence[tuple[int, int]]) -> list[list[int]]:
        """`tokens_of` for several spans of one row.

        The text is tokenised once more and laid beside what the processor made of it: image tokens, separators and
        whatever else it put in between do not matter.
        """
        coded = tokenizer(self.texts[row], return_offsets_mapping=True, add_special_tokens=False)
        ids = self.tensors["input_ids"][row].tolist()
        found = _places(coded["input_ids"], ids[: len(ids) - self.num_answer])
        words = [set(tokens_of_span(coded["offset_mapping"], start, end)) for start, end in spans]
        return [sorted(found[token] for token in word) if word <= found.keys() else [] for word in words]


def _places(text_ids: list[int], row_ids: list[int]) -> dict[int, int]:
    """Which token of a row each token of its text has become, as far as they can be laid beside each other.

    A run of equal tokens counts as no longer than the longest that the text has of them, so that the many image tokens
    of a picture stand for its placeholder.
    """
    start = len(row_ids) - len(text_ids)
    if start >= 0 and row_ids[start:] == text_ids:
        return dict(enumerate(range(start, len(row_ids))))
    longest = _longest_runs(text_ids)
    places = [p for p, length in enumerate(_run_lengths(row_ids)) if length <= max(longest.get(row_ids[p], 0), 1)]
    blocks = SequenceMatcher(None, text_ids, [row_ids[p] for p in places], autojunk=False)
    return {b.a + i: places[b.b + i] for b in blocks.get_matching_blocks() for i in range(b.size)}


def _run_lengths(ids: Sequence[int]) -> list[int]:
    """Of each token how many equal ones stand in a row up to it."""
    lengths: list[int] = []
    for place, token in enumerate(ids):
        lengths.append(lengths[-1] + 1 if place and ids[place - 1] == token else 1)
    return lengths


def _longest_runs(ids: Sequence[int]) -> dict[int, int]:
    longest: dict[int, int] = {}
    for token, length in zip(ids, _run_lengths(ids), strict=True):
        longest[token] = max(longest.get(token, 0), length)
    return longest


@dataclass(frozen=True)
class Kept:
    """A picture for any number of rows; where `memory` is there, the model has encoded it already, as its `number`.

    `states` (N, W) are then what its keys in cross-attention are made of.
    """

    picture: Any
    memory: Any = None
    number: int = 0
    states: Tensor | None = None


def encode(
    model: Any, processor: Any, family: Family | None, texts: Sequence[str], pictures: Sequence[Sequence[Any]]
) -> Inputs:
    """Run the processor over rows of text, each with a placeholder for each of its pictures (PIL, upright RGB).

    Pictures may be `Kept`, all of one call. Raises ValueError where the rows are longer than the decoder's context,
    where the facts about the family give another number of image tokens than the processor, for pictures that the
    processor does not take, and for rows of different numbers of pictures where a batch of them is not what each alone
    is.
    """
    if not texts or len(texts) != len(pictures):
        raise ValueError(f"{len(texts)} texts and {len(pictures)} lists of pictures: give each text a list")
    kept = [[item if isinstance(item, Kept) else Kept(item) for item in row] for row in pictures]
    shown = [[item.picture for item in row] for row in kept]
    if family is not None and family.same_num_pictures and len(set(map(len, shown))) > 1:
        raise ValueError(
            f"models of the type {model.config.model_type!r} take rows of equally many pictures in a batch, and these "
            f"have {', '.join(str(len(row)) for row in shown)}: encode those of each number by themselves"
        )
    bos = processor.tokenizer.bos_token
    adds = (family is None or family.special_tokens) and not (bos and all(text.startswith(bos) for text in texts))
    options = {"return_tensors": "pt", "padding": True, "padding_side": "left", "add_special_tokens": adds}
    memory = next((item.memory for row in kept for item in row), None)
    if any(item.memory is not memory for row in kept for item in row):
        raise ValueError("pictures of several calls of `keep` cannot stand in one `encode`: keep them together")
    if memory is None:
        with naming_pictures([(picture.height, picture.width) for row in shown for picture in row], (ValueError,)):
            coded = processor(text=list(texts), images=shown if any(shown) else None, **options)
    else:
        memory, index = _selected(memory, [[item.number for item in row] for row in kept])
        coded = {**processor.tokenizer(list(texts), **options), "image_index": index}
    tensors = {name: _moved(value, model) for name, value in coded.items() if name != "labels"}
    tensors |= {} if memory is None else {"image_memory": memory}
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = tensors["input_ids"].shape[1]
    if limit is not None and length > limit:
        raise ValueError(
            f"a row has {length} tokens with those of its pictures, and the context takes {limit}: "
            "show fewer or smaller pictures, or ask for less"
        )
    return _lay_out(model, processor, family, tuple(texts), tensors, shown)


@contextmanager
def naming_pictures(sizes: Sequence[Size], also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What torch refuses to do with an input, and `also` errors of these kinds, are ValueErrors with its picture sizes.

    What it says of memory and of the device is not about the input, and stays what it is.
    """
    wrong: tuple[type[Exception], ...] = (RuntimeError, *also)
    try:
        yield
    except wrong as error:
        reason = " ".join(str(error).split())
        if isinstance(error, RuntimeError):
            if type(error) is not RuntimeError or any(word in reason for word in _OF_THE_DEVICE):
                raise
            reason = f"the model does not take this: {reason:.300}"
        smallest = [f"{width}×{height}" for height, width in sorted(set(sizes), key=lambda size: (min(size), size))]
        more = ", …" if len(smallest) > _NAMED_SIZES else ""
        shown = f" (pictures of {', '.join(smallest[:_NAMED_SIZES])}{more} pixels)" if sizes else ""
        raise ValueError(f"{reason}{shown}") from error


def _selected(memory: Any, numbers: list[list[int]]) -> tuple[Any, Tensor]:
    """The memory of rows of pictures, and which of it are a row's (R, M), -1 for none; one each are taken out once."""
    if all(len(row) == 1 for row in numbers):
        return memory.select([row[0] for row in numbers]), torch.arange(len(numbers))[:, None]
    most = max(map(len, numbers))
    return memory, torch.tensor([row + [-1] * (most - len(row)) for row in numbers])


def _moved(value: Any, model: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else None)


def _lay_out(
    model: Any,
    processor: Any,
    family: Family | None,
    texts: tuple[str, ...],
    tensors: Mapping[str, Any],
    pictures: Sequence[Sequence[Any]],
) -> Inputs:
    """Find the image tokens of each picture."""
    sizes = [[(picture.height, picture.width) for picture in row] for row in pictures]
    views = _views(model, processor, family, tensors, sizes)
    is_image_RT = (tensors["input_ids"] == image_token_id(model, processor)).cpu().numpy()
    null = int(family is not None and family.null_token(model))
    most, per_picture = (
        max(map(len, sizes)),
        max((num_tokens(view) for row in views for view in row if view), default=0),
    )
    rows = []
    for row_sizes, row_views, is_image_T in zip(sizes, views, is_image_RT, strict=True):
        if family is not None and (family.cross or family.front):
            columns = [place * (per_picture + null) + np.arange(per_picture) for place in range(len(row_sizes))]
        else:
            columns = _in_text(np.flatnonzero(is_image_T), row_views, model)
        rows.append(tuple(SeenPicture(*parts) for parts in zip(row_sizes, columns, row_views, strict=True)))
    return Inputs(
        texts,
        tensors,
        tuple(rows),
        tuple(int(is_image_T.argmax()) if is_image_T.any() else len(is_image_T) for is_image_T in is_image_RT),
        num_front=most * per_picture if family is not None and family.front else 0,
        null_columns=tuple((place + 1) * (per_picture + 1) - 1 for place in range(most)) if null else (),
    )


def _views(
    model: Any, processor: Any, family: Family | None, tensors: Mapping[str, Any], sizes: Sequence[Sequence[Size]]
) -> list[list[tuple[View, ...] | None]]:
    """The views of each picture of each row, None where the family is not known."""
    views: list[list[tuple[View, ...] | None]] = []
    number = 0
    for row, row_sizes in enumerate(sizes):
        views.append([])
        for place, size in enumerate(row_sizes):
            shown = Shown(size, model, processor, tensors, number, row, place, len(row_sizes))
            views[-1].append(None if family is None else tuple(family.views(shown)))
            number += 1
    return views


def _in_text(places: np.ndarray, views: Sequence[Sequence[View] | None], model: Any) -> list[np.ndarray]:
    """The positions of image tokens in a row, dealt out to its pictures."""
    kind = model.config.model_type
    if any(view is None for view in views):
        runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        if len(views) == 1:
            return [places]
        if len(runs) != len(views):
            raise ValueError(
                f"models of the type {kind!r} are not known (known are {', '.join(known_types())}), and the image "
                f"tokens of {len(views)} pictures stand in {len(runs)} runs: show one picture at a time"
            )
        return runs
    counts = [num_tokens(view or ()) for view in views]
    if sum(counts) != len(places):
        raise ValueError(
            f"the processor made {len(places)} image tokens of {len(views)} pictures, and the facts about the type "
            f"{kind!r} give {counts}: correct its entry in agevlm.vlms.families"
        )
    return np.split(places, np.cumsum(counts)[:-1]) if counts else []


def image_token_id(model: Any, processor: Any) -> int:
    """The id of image tokens in the text. ValueError where there is none: then it is no vision-language model."""
    for holder, name in (
        (model.config, "image_token_id"),
        (model.config, "image_token_index"),
        (processor, "image_token_id"),
    ):
        if (found := getattr(holder, name, None)) is not None:
            return int(found)
    raise ValueError(
        f"{type(model).__name__} has no image token in its configuration, so it is no vision-language model: "
        "name a model that AutoModelForImageTextToText loads"
    )
