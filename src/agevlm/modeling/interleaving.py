"""Which text sees which image, and how the cross-attention layers come between the layers of a decoder left as it is.

A decoder of transformers hands unknown keywords on to its layers. The keyword `image_context` goes that way and is
taken out again in front of every layer, by a hook; where a cross-attention layer has its place, it is applied there.
So nothing is stored on the decoder, its code and checkpoint are untouched, and without the keyword it runs as ever.

Letters: R rows of text, T text tokens, K asked text tokens, I images, M images of a row at most, S keys of an image
(N image tokens, and the null token if there is one), H heads, G key/value heads, D head width, W model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .cross_attention import GatedCrossAttentionLayer, ImageMemory


@dataclass(frozen=True)
class Visibility:
    """Which images each text token sees: those of its row whose placeholder stands at or before it.

    `images_seen` (R, T) counts them. `image_index` (R, M) says which image is a row's first, second, …, -1 for none.
    `rows_per_image` stands for it where rows are image-major, as many for each image, each seeing that image or none.
    """

    images_seen: Tensor
    image_index: Tensor | None = None
    rows_per_image: int | None = None

    @property
    def visible_RTM(self) -> Tensor:
        """True where a token sees its row's image number m."""
        if self.image_index is None:
            return self.images_seen[..., None] > 0
        order_M = torch.arange(self.image_index.shape[1], device=self.image_index.device)
        return (order_M < self.images_seen[..., None]) & (self.image_index >= 0)[:, None]


def count_images_seen(input_ids: Tensor, image_token_id: int) -> Tensor:
    """How many placeholders stand at or before each token, (R, T)."""
    return (input_ids == image_token_id).cumsum(dim=-1)


def index_images(num_images_R: Tensor) -> Tensor:
    """`image_index` (R, M) of rows that take `num_images_R` images each, in order; -1 fills up."""
    start_R1 = (num_images_R.cumsum(0) - num_images_R)[:, None]
    order_M = torch.arange(int(num_images_R.max()), device=num_images_R.device)
    return torch.where(order_M < num_images_R[:, None], start_R1 + order_M, -1)


class ImageContext:
    """All that one forward pass needs of its images. Collects the weights of the asked tokens, layer by layer.

    No dataclass, which FSDP takes apart on its way to a layer and puts together again as another one.
    """

    def __init__(
        self,
        layers: Sequence[GatedCrossAttentionLayer],
        decoder_layers_behind: Sequence[int],
        memory: ImageMemory,
        visibility: Visibility,
        asked_rows: Tensor | None = None,  # (R, K)
    ) -> None:
        self.layers, self.decoder_layers_behind = layers, decoder_layers_behind
        self.memory, self.visibility, self.asked_rows = memory, visibility, asked_rows
        self.weights: list[Tensor] = []
        self.num_applied = 0
        visible_RTM = visibility.visible_RTM
        self.sees_RT = visible_RTM.any(dim=-1)
        self.mask_R1TS = self._mask(visible_RTM) if visible_RTM.shape[-1] > 1 else None

    def before_decoder_layer(self, index: int, hidden_RTW: Tensor) -> Tensor:
        """Apply the cross-attention layers that stand in front of decoder layer `index`."""
        for number, behind in enumerate(self.decoder_layers_behind):
            if behind == index:
                hidden_RTW = self._apply(number, hidden_RTW)
                self.num_applied += 1
        return hidden_RTW

    def _apply(self, number: int, hidden_RTW: Tensor) -> Tensor:
        layer, keys, values = self.layers[number], self.memory.keys[number], self.memory.values[number]
        if self.visibility.rows_per_image is not None:
            hidden, weights = self._apply_folded(layer, hidden_RTW, keys, values)
        else:
            hidden, weights = layer(
                hidden_RTW, self._gather(keys), self._gather(values), self.sees_RT, self.mask_R1TS, self.asked_rows
            )
        if weights is not None:
            self.weights.append(weights)
        return hidden

    def _apply_folded(
        self, layer: GatedCrossAttentionLayer, hidden_RTW: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The rows of an image, laid behind one another, look at it as one long row: nothing is copied or masked."""
        rows, length, width = hidden_RTW.shape
        images, each = len(self.memory), self.visibility.rows_per_image
        asked = None
        if self.asked_rows is not None:
            starts_q1 = torch.arange(each, device=self.asked_rows.device)[:, None] * length
            asked = (self.asked_rows.view(images, each, -1) + starts_q1).flatten(1)
        hidden, weights = layer(
            hidden_RTW.reshape(images, each * length, width), keys, values, self.sees_RT.view(images, -1), None, asked
        )
        if weights is not None:
            weights = weights.unflatten(2, (each, -1)).transpose(1, 2).flatten(0, 1)
        return hidden.view(rows, length, width), weights

    def _gather(self, states_IGSD: Tensor) -> Tensor:
        """The keys or values of each row's images, (R, G, M * S, D). Missing images are stood in for by the first."""
        index_RM = self.visibility.image_index.clamp(min=0)
        return states_IGSD[index_RM].transpose(1, 2).flatten(2, 3)

    def _mask(self, visible_RTM: Tensor) -> Tensor:
        """True where a token may attend, (R, 1, T, M * S): its images' tokens and one null token.

        Tokens that see no image may attend anywhere, which keeps the softmax finite; the layer drops what they find.
        """
        mask_RTMS = (visible_RTM | ~self.sees_RT[..., None])[..., None].repeat(1, 1, 1, self.memory.keys[0].shape[2])
        if self.memory.null_token:
            mask_RTMS[..., 0, -1] = True
            mask_RTMS[..., 1:, -1] = False
        return mask_RTMS.flatten(2)[:, None]

    def asked_weights(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
        """For each layer the weights on image tokens (R, H, K, M, N), and on the null token (R, H, K) or None."""
        maps, nulls = [], []
        num_keys, num_tokens = self.memory.keys[0].shape[2], self.memory.grid[0] * self.memory.grid[1]
        for weights_RHKS in self.weights:
            weights_RHKMS = weights_RHKS.unflatten(-1, (-1, num_keys))
            maps.append(weights_RHKMS[..., :num_tokens])
            nulls.append(weights_RHKMS[..., num_tokens:].sum(dim=(-2, -1)))
        return tuple(maps), tuple(nulls) if self.memory.null_token else None


def decoder_layers(language_model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal language model of transformers. ValueError where it keeps them elsewhere."""
    decoder = language_model.get_decoder() if hasattr(language_model, "get_decoder") else language_model
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"{type(language_model).__name__} has no list of decoder layers named `layers`: "
            "use a decoder built like Llama, Qwen3 or Gemma 3"
        )
    return layers


def interleave(language_model: nn.Module) -> None:
    """Prepare a decoder for the keyword `image_context`. Without the keyword it runs as before; twice does no harm."""
    for index, layer in enumerate(decoder_layers(language_model)):
        layer.register_forward_pre_hook(partial(_look_first, index), with_kwargs=True)


def _look_first(
    index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    context: ImageContext | None = kwargs.pop("image_context", None)
    if context is None:
        return args, kwargs
    if args:
        return (context.before_decoder_layer(index, args[0]), *args[1:]), kwargs
    hidden_states = context.before_decoder_layer(index, kwargs["hidden_states"])
    return args, {**kwargs, "hidden_states": hidden_states}
