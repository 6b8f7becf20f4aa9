"""Maps over pictures: where the attention of words lies, and which part of a picture an answer hangs on.

Attention maps come from a `Reading` and the boxes of the image tokens. Where attention or boxes cannot be had, a map is
made by occlusion: grey over one patch of the picture after another, and see how much less likely the answer becomes.
`maps_of` takes the first that works and says which it was. Nothing here draws or scores.
"""

# Shapes: n image tokens of a picture, h, w a grid over a picture.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from agevlm.vlms.attention import AttentionUnreadableError
from agevlm.vlms.inputs import Inputs
from agevlm.vlms.views import Size
from agevlm.vlms.vlm import Reading, Vlm

GREY = (127, 127, 127)
Span = tuple[int, int]


@dataclass(frozen=True)
class WordMap:
    """What words have to do with each picture of their row: one map (h, w) a picture, float32.

    Of the kind "attention" a map is the share of attention on each cell, the mean over tokens, layers and heads, and
    `null_mass` what lies on the null token (None without one). Of the kind "occlusion" it is by how much the answer
    becomes less likely without that cell, and `note` says why it was made so.
    """

    maps: tuple[NDArray[np.float32], ...]
    kind: Literal["attention", "occlusion"] = "attention"
    null_mass: float | None = None
    note: str | None = None


def attention_maps(
    inputs: Inputs,
    reading: Reading,
    positions: Sequence[Sequence[int]],
    words: Sequence[Sequence[Sequence[int]]],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    of_pictures: bool = False,
) -> list[list[WordMap | None]]:
    """The maps of words from a pass that was asked for `positions`; `words[r]` are lists of positions of row r.

    `layers` and `heads` choose some (numbers of layers as in `reading.rows`). With `of_pictures` each row is scaled to
    what of it lies on pictures and null token at all, before any mean. None for a word without tokens.
    """
    chosen = sorted(reading.rows) if layers is None else list(layers)
    missing = [layer for layer in chosen if layer not in reading.rows]
    if missing or not chosen:
        raise ValueError(f"layers {missing} look at no picture: choose from {sorted(reading.rows)}")
    weights_RKN = _mean(inputs, [reading.rows[layer] for layer in chosen], heads, of_pictures)
    found: list[list[WordMap | None]] = []
    for row, (asked, row_words) in enumerate(zip(positions, words, strict=True)):
        place = {position: k for k, position in reversed(list(enumerate(asked)))}
        found.append(
            [
                _word_map(inputs, row, weights_RKN[row, [place[token] for token in tokens]].mean(0)) if tokens else None
                for tokens in row_words
            ]
        )
    return found


def _mean(
    inputs: Inputs, layers_RHKN: Sequence[Tensor], heads: Sequence[int] | None, of_pictures: bool
) -> NDArray[np.float32]:
    """The mean over layers and the chosen heads (R, K, N), each row before scaled to its sum on pictures and null."""
    rows, num_heads, _, num_keys = layers_RHKN[0].shape
    wrong = [head for head in heads or () if not 0 <= head < num_heads]
    if wrong:
        raise ValueError(f"there is no head {wrong}: the model has {num_heads}, numbered from 0")
    seen_R1N1 = torch.zeros(rows, 1, num_keys, 1, device=layers_RHKN[0].device)
    for row, pictures in enumerate(inputs.pictures):
        for columns in (*(picture.columns for picture in pictures), np.array(inputs.null_columns, dtype=np.int64)):
            seen_R1N1[row, 0, torch.as_tensor(columns)] = 1.0
    means_RKN = []
    for weights_RHKN in layers_RHKN:
        chosen_RHKN = weights_RHKN if heads is None else weights_RHKN[:, list(heads)]
        if of_pictures:
            chosen_RHKN = chosen_RHKN / (chosen_RHKN @ seen_R1N1).clamp(min=1e-9)
        means_RKN.append(chosen_RHKN.mean(1))
    return np.asarray(torch.stack(means_RKN).mean(0).cpu().numpy(), dtype=np.float32)


def _word_map(inputs: Inputs, row: int, weights_N: NDArray[np.float32]) -> WordMap:
    null = list(inputs.null_columns)
    maps = tuple(picture.map(weights_N[picture.columns]) for picture in inputs.pictures[row])
    return WordMap(maps, null_mass=float(weights_N[null].sum()) if null else None)


def maps_of(
    vlm: Vlm, text: str, pictures: Sequence[Any], spans: Sequence[Span], *, grid: Size = (8, 8)
) -> list[WordMap | None]:
    """Maps of the words `text[start:end]` of a prompt: of their attention, or by occlusion, which then says why.

    By occlusion all words share the map of the answer, on `grid`. None where the processor took a word out.
    """
    inputs = vlm.encode([text], [pictures])
    words = [inputs.tokens_of(vlm.processor.tokenizer, 0, start, end) for start, end in spans]
    positions = sorted({token for tokens in words for token in tokens})
    note = vlm.note
    if note is None:
        try:
            reading = vlm.read(inputs, positions=[positions])
            return attention_maps(inputs, reading, [positions], [words])[0]
        except AttentionUnreadableError as error:
            note = str(error)
    hidden = WordMap(
        tuple(occlusion_map(vlm, text, pictures, place=place, grid=grid) for place in range(len(pictures))),
        "occlusion",
        note=note,
    )
    return [hidden if tokens else None for tokens in words]


def occlusion_map(
    vlm: Vlm,
    text: str,
    pictures: Sequence[Any],
    answer: str | Sequence[int] | None = None,
    *,
    place: int = 0,
    grid: Size = (8, 8),
    batch_size: int = 8,
) -> NDArray[np.float32]:
    """By how much an answer becomes less likely with each cell (h, w) of picture `place` greyed over.

    The answer is given, or the greedy one; how likely it is, is the geometric mean of its tokens' probabilities, so
    that long answers compare. Below 0 where the answer becomes likelier.
    """
    if answer is None:
        ids = vlm.answers(vlm.encode([text], [pictures]), max_new_tokens=16)[0].ids
        answer = list(ids) or [min(vlm.end_ids)]
    shown = [list(pictures), *_occluded(pictures, place, grid)]
    likely: list[float] = []
    for start in range(0, len(shown), batch_size):
        batch = shown[start : start + batch_size]
        log_probs = vlm.log_probs(vlm.encode([text] * len(batch), batch), [answer] * len(batch))
        likely += [float(row.mean().exp()) for row in log_probs]
    return np.asarray(likely[0] - np.array(likely[1:]), dtype=np.float32).reshape(grid)


def _occluded(pictures: Sequence[Any], place: int, grid: Size) -> Iterator[list[Any]]:
    """The pictures with one cell after another of one of them grey."""
    picture = pictures[place]
    ys = np.linspace(0, picture.height, grid[0] + 1).round().astype(int)
    xs = np.linspace(0, picture.width, grid[1] + 1).round().astype(int)
    for top, bottom in pairwise(ys):
        for left, right in pairwise(xs):
            greyed = picture.copy()
            greyed.paste(GREY, (left, top, right, bottom))
            assert isinstance(greyed, Image.Image)
            yield [*pictures[:place], greyed, *pictures[place + 1 :]]
