"""How well a picture and a text fit, one number a pair, from what a pass left; and how far pairs of two kinds differ.

Tensors in, tensors out: no model, no data, no files.
"""

# Shapes: I pictures, E texts about each, T text tokens, N image tokens, W model width, H heads, G key heads, D head
# width, P pairs of one kind.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from agevlm.analysis.similarity_states import LayerStates
from agevlm.evaluation.scores import auroc

NUM_BINS = 20
DECIMALS = 5  # pairs that are equal up to rounding stay equal in any batch

HIDDEN_MEAN, HIDDEN_MAX = "hidden_mean", "hidden_max"
QUERY_KEY_COSINE, QUERY_KEY_LOGIT = "query_key_cosine", "query_key_logit"
CAPTION_LIKELIHOOD, CAPTION_GAIN = "caption_likelihood", "caption_gain"
MEASURES = (HIDDEN_MEAN, HIDDEN_MAX, QUERY_KEY_COSINE, QUERY_KEY_LOGIT, CAPTION_LIKELIHOOD, CAPTION_GAIN)
"""All measures. The likelihood is the mean log-probability of a caption's tokens; the gain is the likelihood minus that
of the same caption without a picture."""


def hidden_similarity(states: LayerStates, said_IET: Tensor) -> dict[str, Tensor]:
    """Cosine similarity (I, E) of image tokens and the caption's tokens, which `said` marks, in one layer.

    `hidden_mean`: of the mean image token and the mean text token. `hidden_max`: of each text token and the image token
    most like it, mean over text tokens.
    """
    image_INW, text_IETW = states.image.float(), states.text.float()
    text_IEW = mean_over(text_IETW.movedim(-1, 2), said_IET[:, :, None])
    unit_INW, unit_IETW = F.normalize(image_INW, dim=-1), F.normalize(text_IETW, dim=-1)
    best_IET = torch.einsum("ietw,inw->ietn", unit_IETW, unit_INW).amax(dim=-1)
    return {
        HIDDEN_MEAN: F.cosine_similarity(image_INW.mean(dim=1)[:, None], text_IEW, dim=-1),
        HIDDEN_MAX: mean_over(best_IET, said_IET),
    }


def query_key_similarity(states: LayerStates, words_IET: Tensor) -> dict[str, Tensor]:
    """Cosine similarity and scaled product (I, E) of queries at object words, which `words` marks, with image keys.

    For each word token and head that of the key most like the query, then the mean over heads, tokens and words.
    """
    if states.query is None or states.key is None:
        raise ValueError(f"layer {states.layer} looks at no image: it has no queries and keys to compare")
    query_IETHD, key_IGND = states.query.float(), states.key.float()
    key_IHND = key_IGND.repeat_interleave(query_IETHD.shape[-2] // key_IGND.shape[1], dim=1)

    def best(query: Tensor, key: Tensor) -> Tensor:
        best_IETH = torch.einsum("iethd,ihnd->iethn", query, key).amax(dim=-1)
        return mean_over(best_IETH.mean(dim=-1), words_IET)

    return {
        QUERY_KEY_COSINE: best(F.normalize(query_IETHD, dim=-1), F.normalize(key_IHND, dim=-1)),
        QUERY_KEY_LOGIT: states.scaling * best(query_IETHD, key_IHND),
    }


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the last dimension of the values that are chosen, at least one in each row."""
    return values.where(chosen, 0.0).sum(dim=-1) / chosen.sum(dim=-1)


@dataclass(frozen=True)
class Scores:
    """A measure of matching and of mismatched pairs (P,), number i of both about text i; `layer` None: of no layer."""

    matching: NDArray[np.float64]
    mismatched: NDArray[np.float64]
    layer: int | None = None

    def record(self) -> dict[str, Any]:
        """As JSON has it: means, AUROC of matching against mismatched pairs, how often a text's matching pair scores
        above its mismatched one (ties as half), overlap, and the histograms."""
        edges, matching, mismatched = histograms(self.matching, self.mismatched)
        above = (self.matching > self.mismatched) + 0.5 * (self.matching == self.mismatched)
        return {
            "layer": self.layer,
            "mean_matching": float(self.matching.mean()),
            "mean_mismatched": float(self.mismatched.mean()),
            "auroc": auroc(self.matching, self.mismatched),
            "paired_accuracy": float(above.mean()),
            "overlap": overlap(matching, mismatched),
            "histogram": {"edges": edges, "matching": matching, "mismatched": mismatched},
        }

    def values(self) -> dict[str, list[float]]:
        """The numbers themselves, by kind of pair."""
        return {"matching": self.matching.tolist(), "mismatched": self.mismatched.tolist()}


def histograms(
    matching: NDArray[np.float64], mismatched: NDArray[np.float64], num_bins: int = NUM_BINS
) -> tuple[list[float], list[int], list[int]]:
    """Shared edges, evenly over the range of both, and the counts of each."""
    edges = np.histogram_bin_edges(np.concatenate([matching, mismatched]), bins=num_bins)
    counts = (np.histogram(values, bins=edges)[0].tolist() for values in (matching, mismatched))
    return (edges.tolist(), *counts)


def overlap(matching: list[int], mismatched: list[int]) -> float:
    """The overlap coefficient of two histograms with the same edges: the share, from 0 to 1, that they have in common.

    Two samples of one distribution stay below 1, by chance: with 200 values each in 20 bins they reach about 0.85.
    """
    first, second = (np.asarray(counts) / sum(counts) for counts in (matching, mismatched))
    return float(np.minimum(first, second).sum())
