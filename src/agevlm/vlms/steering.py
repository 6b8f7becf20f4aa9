"""Where a model looks, changed without training: image tokens amplified, or reweighted toward a mask.

Both change the logits of attention before its softmax, for some text positions, in the layers that look, through the
attention function of `attention.py`; so they work for every family whose image tokens are known. Nothing is learned,
and with `alpha` 0, or a mask over the whole picture where there is no null token, the model is as it was.
"""

# Shapes: R rows of text, H heads, K steered positions, N keys, n image tokens of a picture.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from agevlm.vlms.attention import AttentionUnreadableError, Steering, steering
from agevlm.vlms.inputs import Inputs

if TYPE_CHECKING:
    from agevlm.vlms.vlm import Vlm

Change = Callable[[Tensor], Tensor]  # logits (R, H, K, N) of attention → others


def amplified(inputs: Inputs, alpha: float) -> Change:
    """Logits of image tokens plus `alpha` times their size, all others as they are (PAI)."""
    is_image_RN = torch.from_numpy(
        _along_keys(inputs, [[np.ones(len(p.columns)) for p in row] for row in inputs.pictures])
    )
    return lambda logits: logits + alpha * logits.abs() * _to(is_image_RN, logits)


def reweighted(inputs: Inputs, masks: Sequence[Sequence[NDArray[Any] | None]], outside: float) -> Change:
    """Weights of image tokens times `outside`, but for what of a token's box lies in the mask of its picture.

    `masks[r][i]` (height, width) is of picture i of row r; None, or an empty one, changes nothing, as is done with
    tokens that stand for no pixels. A token half in the mask keeps the mean of 1 and `outside`. A null token lies
    outside. The softmax scales each row to sum 1 again.
    """
    factors = [
        [_factors(picture.shares(mask), outside) if mask is not None and mask.any() else np.ones(len(picture.columns))
         for picture, mask in zip(row, of_row, strict=True)]
        for row, of_row in zip(inputs.pictures, masks, strict=True)
    ]  # fmt: skip
    placed = _along_keys(inputs, [[np.log(of) for of in row] for row in factors])
    for row, of_row in enumerate(masks):
        for null, mask in zip(inputs.null_columns, of_row, strict=False):
            if mask is not None and mask.any():
                placed[row, null] = np.log(outside)
    biases_RN = torch.from_numpy(placed)
    return lambda logits: logits + _to(biases_RN, logits)


def _factors(shares_n: NDArray[np.float64], outside: float) -> NDArray[np.float64]:
    return np.where(np.isnan(shares_n), 1.0, outside + (1 - outside) * shares_n)


def _along_keys(inputs: Inputs, values: Sequence[Sequence[NDArray[Any]]]) -> NDArray[np.float32]:
    """Values of the image tokens of each picture at their columns among the keys, 0 elsewhere: (R, columns)."""
    columns = (int(p.columns.max()) for row in inputs.pictures for p in row if len(p.columns))
    last = max((*columns, *inputs.null_columns), default=-1)
    placed = np.zeros((len(inputs.pictures), last + 1), dtype=np.float32)
    for row, (pictures, of_row) in enumerate(zip(inputs.pictures, values, strict=True)):
        for picture, of_picture in zip(pictures, of_row, strict=True):
            placed[row, picture.columns] = of_picture
    return placed


def _to(values_RN: Tensor, logits_RHKN: Tensor) -> Tensor:
    """Values along the keys, with those that came since."""
    longer = F.pad(values_RN.to(logits_RHKN), (0, logits_RHKN.shape[-1] - values_RN.shape[-1]))
    return longer[:, None, None]


def last_position(inputs: Inputs) -> list[list[int]]:
    """The position of each row from which its answer begins."""
    return [[inputs.text_len - 1]] * len(inputs.texts)


def word_positions(vlm: Vlm, inputs: Inputs, spans: Sequence[Sequence[tuple[int, int]]]) -> list[list[int]]:
    """The positions of the tokens of each row's words, `texts[r][start:end]`, and that from which its answer begins."""
    tokenizer = vlm.processor.tokenizer
    words = [inputs.words_of(tokenizer, row, of_row) for row, of_row in enumerate(spans)]
    return [sorted({token for of in tokens for token in of} | {inputs.text_len - 1}) for tokens in words]


@contextmanager
def steered(
    vlm: Vlm, inputs: Inputs, positions: Sequence[Sequence[int]], change: Change, layers: Sequence[int] | None = None
) -> Iterator[None]:
    """Let `vlm.ask(inputs)` look as `change` says: from `positions[r]` of each row, and from its whole answer.

    `layers` are some of `vlm.looking`, None all of them. ValueError for a family that is not known, or whose attention
    does not come by.
    """
    check_steerable(vlm)
    front = 0 if inputs.front_is_cached else inputs.num_front
    longest = max(map(len, positions))
    filled = torch.tensor([[*row, *[row[0]] * (longest - len(row))] for row in positions]) + front
    state = Steering(vlm.modules_of(vlm.looking if layers is None else layers), filled, change)
    with steering(state, vlm.attention_holder):
        yield
    if not state.steered:
        raise AttentionUnreadableError(
            f"the attention of {type(vlm.model).__name__} cannot be steered: its layers do not use transformers' "
            "AttentionInterface; answer with plain or vcd"
        )


def check_steerable(vlm: Vlm) -> None:
    """A family of which is not known where its image tokens are is a ValueError."""
    if vlm.family is None:
        raise ValueError(
            f"which tokens are the picture is not known of models of the type {vlm.model.config.model_type!r}, so "
            "their attention cannot be steered: answer with plain or vcd, or describe the family in "
            "agevlm.vlms.families"
        )
