"""Attention of guided rows and masks → loss. Pure functions on tensors; nothing here knows a model.

A guided row is one text position: a token of an object word, or the position that predicts an answer about it. Its
target is the mask of what the word means, on the grid of image tokens. What the paper leaves open (the form of the
loss, heads, layers) is a choice by name here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# Shapes: R text rows, H heads, K guided positions of a row, N image tokens that the row may see (all its images)
# and, with a null token, that one last; P guided positions of all rows; X any leading shape.

Heads = Literal["mean", "each"]
_EPSILON = 1e-6


def kl_loss(weights_XN: Tensor, shares_XN: Tensor) -> Tensor:
    """KL divergence of the attention from the mask spread evenly over the image tokens it covers; one value per row."""
    target_XN = shares_XN / shares_XN.sum(-1, keepdim=True)
    return F.kl_div(weights_XN.clamp(min=_EPSILON).log(), target_XN, reduction="none").sum(-1)


def mass_loss(weights_XN: Tensor, shares_XN: Tensor) -> Tensor:
    """Negative log of the attention inside the mask, wherever inside. A cell counts by its share in the mask."""
    inside_XN = shares_XN / shares_XN.amax(-1, keepdim=True)
    return -(weights_XN * inside_XN).sum(-1).clamp(min=_EPSILON, max=1.0).log()


def bce_dice_loss(weights_XN: Tensor, shares_XN: Tensor) -> Tensor:
    """Cross-entropy and Dice of the map, rescaled to a maximum of 1, against the mask: asks for its whole shape."""
    map_XN = (weights_XN / weights_XN.amax(-1, keepdim=True).clamp(min=_EPSILON)).clamp(_EPSILON, 1 - _EPSILON)
    bce_X = F.binary_cross_entropy(map_XN, shares_XN, reduction="none").mean(-1)
    overlap_X = 2 * (map_XN * shares_XN).sum(-1)
    dice_X = 1 - overlap_X / (map_XN.square().sum(-1) + shares_XN.square().sum(-1)).clamp(min=_EPSILON)
    return bce_X + dice_X


GUIDANCE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": kl_loss,
    "mass": mass_loss,
    "bce_dice": bce_dice_loss,
}


def guidance_loss(
    row_weights: Sequence[Tensor],
    shares_RKN: Tensor,
    present_RK: Tensor,
    *,
    loss: str = "kl",
    layers: Sequence[int] | None = None,
    heads: Heads = "mean",
    null_token: bool = False,
) -> tuple[Tensor, int]:
    """Sum of the guidance loss over supervised rows, and their number.

    `row_weights` holds for each cross-attention layer the post-softmax weights (R, H, K, N), or (R, H, K, N + 1) with
    the null token last. `shares_RKN` in [0, 1] is the share of each image token's cell that the mask covers.
    `present_RK` is 1 where the row's object is there, 0 where it is absent, -1 where the row is not supervised.
    Absent rows are guided to the null token where there is one and left alone where there is none, as are rows whose
    mask is empty. The sum is the mean over `layers` (None: all) and, with heads="each", over heads; "mean" compares
    the head-averaged attention. No supervised row gives a 0 that still carries a gradient. Computed in float32.
    Unknown names of losses, layers out of range and no layers at all are ValueErrors.
    """
    chosen = _choose_layers(row_weights, layers)
    if loss not in GUIDANCE_LOSSES:
        raise ValueError(f"unknown guidance loss {loss!r}; known are {', '.join(GUIDANCE_LOSSES)}")
    if null_token:
        shares_RKN = F.pad(shares_RKN, (0, 1))
        shares_RKN[..., -1] = (present_RK == 0).to(shares_RKN.dtype)
    guided_RK = (present_RK >= 0) & (shares_RKN.sum(-1) > 0)
    num_rows = int(guided_RK.sum())
    if num_rows == 0:
        return torch.stack([weights.sum() for weights in chosen]).sum() * 0.0, 0
    index_P = guided_RK.flatten().nonzero().squeeze(1)
    shares_P1N = shares_RKN.flatten(0, 1).index_select(0, index_P).float().unsqueeze(1)
    terms = []
    for weights_RHKN in chosen:
        maps_RHKN = weights_RHKN.float()
        if heads == "mean":
            maps_RHKN = maps_RHKN.mean(dim=1, keepdim=True)
        maps_PHN = maps_RHKN.transpose(1, 2).flatten(0, 1).index_select(0, index_P)
        terms.append(GUIDANCE_LOSSES[loss](maps_PHN, shares_P1N.expand_as(maps_PHN)).mean(dim=1).sum())
    return torch.stack(terms).mean(), num_rows


def _choose_layers(row_weights: Sequence[Tensor], layers: Sequence[int] | None) -> list[Tensor]:
    if not row_weights:
        raise ValueError("guidance needs the attention of at least one cross-attention layer, got none")
    numbers = range(len(row_weights)) if layers is None else layers
    if not numbers:
        raise ValueError("guidance asks for no cross-attention layer: name some in layers, or leave it out for all")
    wrong = [number for number in numbers if not 0 <= number < len(row_weights)]
    if wrong:
        raise ValueError(
            f"guidance asks for cross-attention layer {wrong[0]}; the model has {len(row_weights)}, counted from 0"
        )
    return [row_weights[number] for number in numbers]
