"""The concatenation baseline: image tokens stand in front of the text, and the decoder's self-attention does the rest.

LLaVA's way (Liu et al. 2023, arXiv 2304.08485), from the same decoder, backbone and projector as the AGE-VLM and with
the same arguments, so that both train, answer and are measured by the same code. Several rows about one image are
packed behind one copy of its tokens, none seeing another: the baseline shares images between questions as well.

Letters: R rows of text, T text tokens, K asked text tokens, I images, M images of a row at most, N image tokens of an
image, (h, w) their grid, L sequences of the decoder, E rows packed into each (R = L * E), S = M * N image tokens in
front, H heads, W model width. A sequence is S + E * T long; P cached positions come before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel
from transformers.utils import can_return_tuple

from .configuration_concat import ConcatVlmConfig
from .cross_attention import take_rows
from .generation import AgeVlmGenerationMixin
from .image_inputs import ImageInputs
from .interleaving import Visibility
from .joined import JoinedModel
from .outputs import AgeVlmCausalLMOutputWithPast, of_decoder
from .supervision import Head
from .versions import CACHE, takes_cache
from .vision import POSITION_CODE_SIZE, flatten_feature_map, position_code


@dataclass(frozen=True)
class ImageTokens:
    """The image tokens (num_images, N, W) of images, for any number of questions, and their `grid` (height, width).

    What `ImageMemory` is to the AGE-VLM. Made by `encode_images`; stale once the weights change. `prefilled` is what
    the decoder keeps of each image in front of a question about it, see `prefill_images`.
    """

    tokens: Tensor
    grid: tuple[int, int]
    prefilled: DynamicCache | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        return self.tokens.device

    def select(self, indices: Tensor | Sequence[int] | slice) -> ImageTokens:
        """The tokens of the images at `indices`, in that order, repeats allowed."""
        if not isinstance(indices, slice):
            indices = torch.as_tensor(indices, dtype=torch.long, device=self.device)
        prefilled = None if self.prefilled is None else _select_cache(self.prefilled, indices)
        return replace(self, tokens=self.tokens[indices], prefilled=prefilled)


@dataclass(frozen=True)
class _Layout:
    """How rows and images lie in the decoder's sequences."""

    image_tokens: Tensor  # (L, S, W)
    visible: Tensor  # (R, T, M)
    rows_per_sequence: int

    @property
    def num_image_tokens(self) -> int:
        return self.image_tokens.shape[1]


class ConcatVlmForConditionalGeneration(JoinedModel, AgeVlmGenerationMixin):
    """Text behind image tokens to text: logits, loss and `generate`, with the arguments of the AGE-VLM.

    A text token sees the images of its row whose placeholder stands at or before it; image tokens see those before
    them. The placeholder stays in the text. A pass that is asked for attention weights runs with eager attention.
    """

    config_class = ConcatVlmConfig
    _no_split_modules = ()
    _skip_keys_device_placement = (CACHE, "image_memory")

    def __init__(
        self,
        config: ConcatVlmConfig,
        language_model: PreTrainedModel | None = None,
        vision_model: PreTrainedModel | None = None,
    ):
        super().__init__(config, language_model, vision_model)
        if config.image_positions:
            self.position_proj = nn.Linear(POSITION_CODE_SIZE, config.text_config.hidden_size, bias=False)
        self.post_init()

    def encode_images(self, pixel_values: Tensor | None = None, *, image_features: Tensor | None = None) -> ImageTokens:
        """Image tokens of images (I, 3, height, width) or of their `vision_features` (I, C, h, w), pooled."""
        if (pixel_values is None) == (image_features is None):
            raise ValueError("encode_images takes either pixel_values or image_features")
        if image_features is None:
            image_features = self.vision_features(pixel_values)
        if self.config.pool_size > 1:
            image_features = F.avg_pool2d(image_features, self.config.pool_size, ceil_mode=True)
        weight = self.projector.weight
        grid = (image_features.shape[-2], image_features.shape[-1])
        tokens_INW = self.projector(flatten_feature_map(image_features).to(device=weight.device, dtype=weight.dtype))
        if self.config.image_positions:
            tokens_INW = tokens_INW + self.position_proj(position_code(grid, weight.device).to(weight.dtype))
        return ImageTokens(tokens_INW, grid)

    def prefill_images(self, memory: ImageTokens) -> ImageTokens:
        """The same images with what the decoder keeps of each where it stands alone in front of a question.

        A pass that begins a cache, with one image a row, then starts behind the images.
        """
        embeds = memory.tokens.to(self.language_model.dtype)
        outputs = self.get_decoder()(inputs_embeds=embeds, use_cache=True, **{CACHE: DynamicCache()})
        return replace(memory, prefilled=outputs[CACHE])

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        image_memory: ImageTokens | None = None,
        image_index: Tensor | None = None,
        images_seen: Tensor | None = None,
        rows_per_image: int | None = None,
        attention_rows: Tensor | None = None,
        output_attention_maps: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> AgeVlmCausalLMOutputWithPast:
        """Logits (R, T, V) of the text; arguments as for `AgeVlmForConditionalGeneration.forward`.

        With a filled cache the images are in it already; they are passed again all the same, to say which text sees
        them. `hidden_states` and `attentions` are of whole sequences, image tokens first. `row_weights` and
        `attention_maps` are the text-to-image part of self-attention in every layer, over what of it lies on images.

        Raises:
            ValueError: placeholders and images differ in number, or shapes do not fit.
        """
        images = ImageInputs(pixel_values, image_features, image_memory, image_index, images_seen, rows_per_image)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        images = images.encoded_by(self)
        embeds_RTW = self.embed_text(input_ids) if inputs_embeds is None else inputs_embeds
        visibility = images.visibility(embeds_RTW.shape[:2], input_ids, self.config.image_token_id, cache)
        decoder_inputs = {CACHE: cache, "use_cache": use_cache, **kwargs}
        if visibility is None:
            decoder_inputs |= {"attention_mask": attention_mask, "position_ids": position_ids}
            outputs = self.get_decoder()(inputs_embeds=embeds_RTW, **decoder_inputs)
            hidden_RTW, looked = outputs.last_hidden_state, {}
        else:
            asked = attention_rows
            if output_attention_maps:
                asked = torch.arange(embeds_RTW.shape[1], device=embeds_RTW.device).expand(embeds_RTW.shape[:2])
            if _begins(cache) and visibility.rows_per_image == 1 and images.image_memory.prefilled is not None:
                _fill(cache, images.image_memory.prefilled)
            layout = _lay_out(images.image_memory, visibility, packed=not use_cache and cache is None)
            outputs = self._run(layout, embeds_RTW, attention_mask, position_ids, asked is not None, decoder_inputs)
            hidden_RTW = _text_of_rows(outputs.last_hidden_state, layout)
            looked = {"image_memory": images.image_memory}
            if asked is not None:
                weights = tuple(_asked_weights(attention, layout, asked) for attention in outputs.attentions)
                looked |= _looked_at(weights, images.image_memory.grid, attention_rows, output_attention_maps)
        return AgeVlmCausalLMOutputWithPast(
            **self._said(Head(self.language_model, outputs), hidden_RTW, labels, num_items_in_batch, logits_to_keep),
            **of_decoder(outputs),
            **looked,
        )

    def _run(
        self,
        layout: _Layout,
        embeds_RTW: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        output_attentions: bool,
        decoder_inputs: dict[str, Any],
    ) -> Any:
        """Run the decoder without its head over the sequences of a layout."""
        cache = decoder_inputs[CACHE]
        num_cached = int(cache.get_seq_length()) if cache is not None else 0
        num_front, each = layout.num_image_tokens, layout.rows_per_sequence
        rows, length = embeds_RTW.shape[:2]
        mask_RX = _text_mask(attention_mask, rows, length, max(num_cached - num_front, 0), embeds_RTW.device)
        if position_ids is None:
            position_ids = (mask_RX.cumsum(-1) - 1).clamp(min=0)[:, -length:]
        text_LXW = embeds_RTW.reshape(-1, each * length, embeds_RTW.shape[-1])
        positions_LX = position_ids.expand(rows, length).reshape(-1, each * length) + num_front
        visible = _visible(layout, mask_RX, length)
        if num_cached:
            visible = visible[:, num_front + mask_RX.shape[1] - length :]
        else:
            text_LXW = torch.cat([layout.image_tokens.to(text_LXW.dtype), text_LXW], dim=1)
            front = torch.arange(num_front, device=positions_LX.device).expand(len(positions_LX), -1)
            positions_LX = torch.cat([front, positions_LX], dim=1)
        if output_attentions:
            decoder_inputs = {**decoder_inputs, "output_attentions": True}
        with _eager(self.language_model) if output_attentions else nullcontext():
            return self.get_decoder()(
                inputs_embeds=text_LXW,
                attention_mask=self._mask_of_decoder(visible[:, None], text_LXW.dtype),
                position_ids=positions_LX,
                **decoder_inputs,
            )

    def _mask_of_decoder(self, visible_L1QK: Tensor, dtype: torch.dtype) -> Tensor:
        """A boolean mask in the form that the decoder's attention kernel takes."""
        if self.config.text_config._attn_implementation == "sdpa":
            return visible_L1QK
        return torch.zeros_like(visible_L1QK, dtype=dtype).masked_fill(~visible_L1QK, torch.finfo(dtype).min)


def _select_cache(cache: DynamicCache, indices: Tensor | slice) -> DynamicCache:
    """A new cache with the sequences at `indices` of another."""
    chosen = DynamicCache()
    for number, layer in enumerate(cache.layers):
        chosen.update(layer.keys[indices], layer.values[indices], number)
    return chosen


def _begins(cache: Any) -> bool:
    """Whether there is a cache, and nothing in it."""
    return cache is not None and not int(cache.get_seq_length())


def _fill(cache: Any, prefilled: DynamicCache) -> None:
    """Put the sequences of one cache into another, empty one."""
    for number, layer in enumerate(prefilled.layers):
        cache.update(layer.keys, layer.values, number)


@contextmanager
def _eager(language_model: Any) -> Iterator[None]:
    """Eager attention for a while: the only kind that gives its weights."""
    kernel = language_model.config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        language_model.set_attn_implementation(kernel)


def _lay_out(memory: ImageTokens, visibility: Visibility, packed: bool) -> _Layout:
    """Image tokens of every sequence. Rows of one image share a sequence where `packed`."""
    each = visibility.rows_per_image
    if each is not None:
        tokens_LSW = memory.tokens if packed else memory.tokens.repeat_interleave(each, dim=0)
        return _Layout(tokens_LSW, visibility.visible_RTM, each if packed else 1)
    assert visibility.image_index is not None
    return _Layout(memory.tokens[visibility.image_index.clamp(min=0)].flatten(1, 2), visibility.visible_RTM, 1)


def _text_mask(
    attention_mask: Tensor | None, rows: int, length: int, num_cached_text: int, device: torch.device
) -> Tensor:
    """Which text is no padding, cached text first: (R, cached + T), 1 or 0."""
    whole = num_cached_text + length
    if attention_mask is None:
        return torch.ones(rows, whole, dtype=torch.long, device=device)
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != (rows, whole):
        got = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise ValueError(f"attention_mask must mark the text alone and have the shape {(rows, whole)}, got {got}")
    return attention_mask.long()


def _visible(layout: _Layout, mask_RX: Tensor, length: int) -> Tensor:
    """True where a position may see another: (L, S + E * X, S + E * X), with X text positions, cached ones included.

    Every position sees itself, which keeps the softmax of padding finite.
    """
    each, num_front, num_text = layout.rows_per_sequence, layout.num_image_tokens, mask_RX.shape[1]
    sequences, device = len(layout.image_tokens), mask_RX.device
    visible_RTM = layout.visible
    earlier = visible_RTM[:, :1].expand(-1, num_text - length, -1)  # cached queries: their rows are cut off
    visible_RXM = torch.cat([earlier, visible_RTM], dim=1)
    to_image_RXS = visible_RXM.repeat_interleave(num_front // visible_RTM.shape[-1], dim=-1)
    whole = num_front + each * num_text
    visible = torch.eye(whole, dtype=torch.bool, device=device).repeat(sequences, 1, 1)
    visible[:, :num_front, :num_front] = torch.ones(num_front, num_front, device=device).tril().bool()
    visible[:, num_front:, :num_front] = to_image_RXS.reshape(sequences, each * num_text, num_front)
    causal = torch.ones(num_text, num_text, device=device).tril().bool()
    to_text_RXX = causal & mask_RX[:, None].bool()
    for block, to_text_LXX in enumerate(to_text_RXX.unflatten(0, (sequences, each)).unbind(1)):
        place = slice(num_front + block * num_text, num_front + (block + 1) * num_text)
        visible[:, place, place] |= to_text_LXX
    return visible


def _text_of_rows(states_LXZ: Tensor, layout: _Layout) -> Tensor:
    """What stands in sequences (L, …, Z) on text, their last E * T positions, as rows (R, T, Z)."""
    each = layout.rows_per_sequence
    num_text = each * layout.visible.shape[1]
    return states_LXZ[:, -num_text:].unflatten(1, (each, -1)).flatten(0, 1)


def _asked_weights(attention_LHQK: Tensor, layout: _Layout, asked_RK: Tensor) -> Tensor:
    """One layer's weights (R, H, K, S) of asked text on image tokens, in float32.

    What of a row's attention lies on images is scaled to sum 1; a row that sees no image has zeros.
    """
    to_image_LXHS = attention_LHQK[..., : layout.num_image_tokens].transpose(1, 2)
    weights_RKHS = take_rows(_text_of_rows(to_image_LXHS, layout), asked_RK).float()
    sees_RK = layout.visible.any(dim=-1).take_along_dim(asked_RK, dim=1)
    weights_RKHS = weights_RKHS / weights_RKHS.sum(dim=-1, keepdim=True).clamp(min=1e-9)
    return (weights_RKHS * sees_RK[..., None, None]).transpose(1, 2)


def _looked_at(
    weights: tuple[Tensor, ...], grid: tuple[int, int], attention_rows: Tensor | None, output_attention_maps: bool
) -> dict[str, Any]:
    """The fields of an output that tell where text looked; with maps, `weights` are those of all text tokens."""
    if not output_attention_maps:
        return {"row_weights": weights}
    looked: dict[str, Any] = {"attention_maps": tuple(layer.unflatten(-1, (-1, *grid)) for layer in weights)}
    if attention_rows is not None:
        looked["row_weights"] = tuple(layer.take_along_dim(attention_rows[:, None, :, None], 2) for layer in weights)
    return looked


__all__ = ["ConcatVlmForConditionalGeneration", "ImageTokens"]
