"""What the models give back, and how the weights collected in a pass become maps and rows.

Letters: R rows of text, T text tokens, K asked text tokens, M images of a row at most, N image tokens of an image,
(h, w) their grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, ModelOutput

from .cross_attention import ImageMemory
from .interleaving import ImageContext
from .versions import CACHE, OLD_CACHE


class _Cached:
    """Gives the cache as `cache` also where transformers still calls the field `past_key_values`."""

    if CACHE == OLD_CACHE:

        @property
        def cache(self) -> Any:
            """The cache that the pass has filled."""
            return getattr(self, OLD_CACHE)


@dataclass
class AgeVlmModelOutputWithPast(BaseModelOutputWithPast, _Cached):
    """What `AgeVlmModel` gives; what is new as in `AgeVlmCausalLMOutputWithPast`."""

    image_memory: ImageMemory | None = None
    attention_maps: tuple[Tensor, ...] | None = None
    null_attention: tuple[Tensor, ...] | None = None
    row_weights: tuple[Tensor, ...] | None = None


@dataclass
class AgeVlmCausalLMOutputWithPast(CausalLMOutputWithPast, _Cached):
    """What `AgeVlmForConditionalGeneration` gives.

    `label_log_probs` (R, T) are the log-probabilities of the labels, each given the tokens before it, in float32 and 0
    at -100. Beside labels in training there are `logits` only where `logits_to_keep` asks for them.

    `attention_maps` holds (R, heads, T, M, h, w) for each cross-attention layer, `null_attention` (R, heads, T), or
    None without a null token. `row_weights` holds (R, heads, K, M * N), one more at the end with a null token, for the
    asked rows. All are softmax weights in float32: they sum to 1 over images and null token, or are 0 for text that
    sees no image. In a call without any image they are None.
    """

    image_memory: ImageMemory | None = None
    attention_maps: tuple[Tensor, ...] | None = None
    null_attention: tuple[Tensor, ...] | None = None
    row_weights: tuple[Tensor, ...] | None = None
    label_log_probs: Tensor | None = None


def of_decoder(outputs: ModelOutput) -> dict[str, Any]:
    """The fields of an output that are the decoder's: its cache, hidden states and attentions."""
    return {name: outputs.get(name) for name in (CACHE, "hidden_states", "attentions")}


def looked_at(context: ImageContext, attention_rows: Tensor | None, output_attention_maps: bool) -> dict[str, Any]:
    """The fields of an output that tell of its images."""
    looked: dict[str, Any] = {"image_memory": context.memory}
    if context.asked_rows is None:
        return looked
    one_image = context.visibility.visible_RTM.shape[-1] == 1
    if one_image and not output_attention_maps:  # the weights are the rows, null token last: nothing to take apart
        return looked | {"row_weights": tuple(context.weights)}
    maps, nulls = context.asked_weights()
    if output_attention_maps:
        looked["attention_maps"] = tuple(weights.unflatten(-1, context.memory.grid) for weights in maps)
        looked["null_attention"] = nulls
    if attention_rows is not None:
        rows = [weights.flatten(-2) for weights in maps]
        if nulls is not None:
            rows = [torch.cat([row, null[..., None]], dim=-1) for row, null in zip(rows, nulls, strict=True)]
        if output_attention_maps:
            rows = [row.take_along_dim(attention_rows[:, None, :, None], dim=2) for row in rows]
        looked["row_weights"] = tuple(rows)
    return looked
