"""Ways to answer better without training, under one interface: rows to be asked → how they are asked.

A way is a function from a `Vlm` and rows to an `Asking`: inputs, what changes the logits of each token, and what steers
attention meanwhile. `WAYS` has them by name. Each has its paper's settings; a family that one cannot serve is a
ValueError. Nothing here asks or scores.
"""

# Shapes: R rows of text, V vocabulary, H, W the pixels of a picture.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from agevlm.data.schema import Message
from agevlm.vlms.contrast import Contrast, noised
from agevlm.vlms.crop import best_window, cut, relative_maps
from agevlm.vlms.inputs import Inputs, Kept
from agevlm.vlms.steering import amplified, check_steerable, last_position, reweighted, steered, word_positions
from agevlm.vlms.vlm import Vlm

PAI_ALPHA, PAI_GAMMA, PAI_START_RATIO = 0.2, 1.1, 2 / 32
OUTSIDE_MASK = 0.01


@dataclass(frozen=True)
class Row:
    """A prompt as text and as messages, and its pictures.

    `masks` (H, W) are of each picture those of what is asked for, or None; `spans` where in the text it is named.
    """

    text: str
    messages: tuple[Message, ...]
    pictures: tuple[Kept, ...]
    masks: tuple[NDArray[Any] | None, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Asking:
    """How rows are asked: within `steer()`, with `change` as in `Vlm.ask`."""

    inputs: Inputs
    change: Callable[[Tensor, Tensor], Tensor] | None = None
    steer: Callable[[], AbstractContextManager[None]] = nullcontext


def plain(vlm: Vlm, rows: Sequence[Row]) -> Asking:
    """As the model answers by itself."""
    return Asking(_encoded(vlm, rows))


def contrasted(vlm: Vlm, rows: Sequence[Row]) -> Asking:
    """Visual contrastive decoding: less what is said of the picture in noise, see `contrast.py`. One more pass a token.

    Works for any model.
    """
    distinct = {id(kept): kept for row in rows for kept in row.pictures}
    noisy = dict(zip(distinct, vlm.keep([noised(kept.picture) for kept in distinct.values()]), strict=True))
    against = [replace(row, pictures=tuple(noisy[id(kept)] for kept in row.pictures)) for row in rows]
    inputs = _encoded(vlm, rows)
    return Asking(inputs, Contrast(vlm, inputs, _encoded(vlm, against)))


def attentive(vlm: Vlm, rows: Sequence[Row]) -> Asking:
    """PAI, paying attention to the image: Liu et al., 2024 (arXiv 2407.21771), by their published code for POPE.

    From where the answer begins and from the answer, attention logits a of image tokens become a + α |a|, α = 0.2, in
    all layers but the first sixteenth (2 of 32). Logits of tokens are γ · logits − (γ − 1) · logits of the prompt
    without its picture, γ = 1.1, among tokens at least 0.1 times as likely as the likeliest. One more pass a token, of
    text alone. In cross-attention all keys but a null token are image tokens, so that it looks more sharply. ValueError
    for a processor that takes no text alone.
    """
    inputs = _encoded(vlm, rows)
    unseen = [[replace(message, num_images=0) for message in row.messages] for row in rows]
    against = _text_alone(vlm, [vlm.chat(of).text for of in unseen])
    layers = list(vlm.looking)
    layers = layers[round(PAI_START_RATIO * len(layers)) :]
    return Asking(
        inputs,
        Contrast(vlm, inputs, against, alpha=PAI_GAMMA - 1, beta=0.1),
        lambda: steered(vlm, inputs, last_position(inputs), amplified(inputs, PAI_ALPHA), layers),
    )


def cropped(vlm: Vlm, rows: Sequence[Row]) -> Asking:
    """ViCrop by relative attention: the picture, and beside it the part that the question is about, see `crop.py`.

    Two passes more, and twice the image tokens. ValueError for rows of several pictures.
    """
    several = next((len(row.pictures) for row in rows if len(row.pictures) != 1), None)
    if several is not None:
        raise ValueError(
            f"vicrop cuts the one picture of a question, and this one has {several}: answer in another way"
        )
    maps = relative_maps(
        vlm, [row.text for row in rows], [row.messages for row in rows], [row.pictures for row in rows]
    )
    whole = [row.pictures[0].picture for row in rows]
    parts = [cut(p, best_window(found, (p.height, p.width))) for p, found in zip(whole, maps, strict=True)]
    kept = vlm.keep([*whole, *parts])
    twice = [
        replace(row, text=vlm.chat(_twice(row)).text, pictures=(one, two))
        for row, one, two in zip(rows, kept[: len(rows)], kept[len(rows) :], strict=True)
    ]
    return Asking(_encoded(vlm, twice))


def guided(vlm: Vlm, rows: Sequence[Row]) -> Asking:
    """Attention toward a teacher's mask: outside it image tokens weigh 0.01 times as much, in all layers and heads.

    After PASTA (Zhang et al., 2023, arXiv 2311.02262), which weighs down all but some words of a prompt by that factor
    in chosen heads; here all but the mask, and from the words for the thing, from where the answer begins, and from the
    answer, as guidance in training does. Rows without a mask are left alone. No further pass, but for the teacher's.
    """
    inputs = _encoded(vlm, rows)
    change = reweighted(inputs, [row.masks or (None,) * len(row.pictures) for row in rows], OUTSIDE_MASK)
    positions = word_positions(vlm, inputs, [row.spans for row in rows])
    return Asking(inputs, None, lambda: steered(vlm, inputs, positions, change))


Way = Callable[[Vlm, Sequence[Row]], Asking]

WAYS: Mapping[str, Way] = {
    "plain": plain,
    "vcd": contrasted,
    "pai": attentive,
    "vicrop": cropped,
    "mask": guided,
}
"""Ways by the names of `agevlm evaluate --answering`."""

STEERING = ("pai", "vicrop", "mask")  # those that need to know the image tokens


def way_named(name: str, vlm: Vlm) -> Way:
    """The way called `name`; ValueError where there is none, or where the family of the model cannot serve it."""
    if name not in WAYS:
        raise ValueError(f"there is no way to answer {name!r}: choose one of {', '.join(WAYS)}")
    if name in STEERING:
        check_steerable(vlm)
    if name == "pai":
        _text_alone(vlm, [vlm.prompt("?", 0)])
    return WAYS[name]


def _text_alone(vlm: Vlm, texts: Sequence[str]) -> Inputs:
    """Texts without pictures; ValueError for a processor that takes none."""
    try:
        return vlm.encode(texts, [()] * len(texts))
    except ValueError as error:
        kind = vlm.model.config.model_type
        raise ValueError(
            f"pai asks without the picture too, and the processor of {kind!r} takes no text alone: answer in another "
            f"way ({error})"
        ) from error


def _encoded(vlm: Vlm, rows: Sequence[Row]) -> Inputs:
    return vlm.encode([row.text for row in rows], [row.pictures for row in rows])


def _twice(row: Row) -> list[Message]:
    """The messages with two pictures where one was."""
    return [replace(message, num_images=2 * message.num_images) for message in row.messages]
