"""The AGE-VLM: a decoder left whole, a vision backbone, and gated cross-attention between the decoder's layers.

What is special lives next door: which text sees which image and how layers are interleaved in `interleaving.py`, the
attention itself in `cross_attention.py`. This file joins the parts and speaks transformers' interfaces.

Letters: R rows of text, T text tokens, K asked text tokens, I images, M images of a row at most, C channels, (h, w) the
grid, N = h * w image tokens, W model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import can_return_tuple

from .configuration_agevlm import AgeVlmConfig
from .cross_attention import CrossAttention, GatedCrossAttentionLayer, ImageMemory
from .generation import AgeVlmGenerationMixin
from .image_inputs import ImageInputs
from .interleaving import ImageContext, interleave
from .joined import JoinedModel
from .outputs import AgeVlmCausalLMOutputWithPast, AgeVlmModelOutputWithPast, looked_at, of_decoder
from .supervision import Head
from .versions import CACHE, takes_cache
from .vision import flatten_feature_map, position_code


class AgeVlmPreTrainedModel(JoinedModel):
    """Loading, saving and initialisation of what is new. The decoder and the vision model initialise themselves."""

    config_class = AgeVlmConfig
    _no_split_modules = ("GatedCrossAttentionLayer",)
    _skip_keys_device_placement = (CACHE, "image_context", "image_memory")
    _supports_flash_attn = True
    _supports_flex_attn = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GatedCrossAttentionLayer):
            init.constant_(module.attn_gate, self.config.attn_gate_init)
            init.constant_(module.mlp_gate, self.config.mlp_gate_init)
            for norm in (module.cross_attn.q_norm, module.cross_attn.k_norm):
                init.constant_(norm.weight, self.config.query_key_norm_init)
        elif isinstance(module, CrossAttention) and self.config.null_token:
            init.normal_(module.null_key)
            init.zeros_(module.null_value)


class AgeVlmModel(AgeVlmPreTrainedModel):
    """Text and images to hidden states.

    `language_model` is a whole causal language model of transformers, `vision_model` a backbone with a feature map.
    Both may be given as built; otherwise they are made from the configuration.
    """

    def __init__(
        self,
        config: AgeVlmConfig,
        language_model: PreTrainedModel | None = None,
        vision_model: PreTrainedModel | None = None,
    ):
        super().__init__(config, language_model, vision_model)
        self.cross_attention = nn.ModuleList(GatedCrossAttentionLayer(config) for _ in config.cross_attention_layers)
        interleave(self.language_model)
        self.post_init()

    def encode_images(self, pixel_values: Tensor | None = None, *, image_features: Tensor | None = None) -> ImageMemory:
        """Keys and values of images for every cross-attention layer, reusable over many questions and batches.

        Takes images (I, 3, height, width), or their `vision_features` (I, C, h, w). Pass the memory to `forward` or
        `generate` as `image_memory`, with `image_index` where rows share images. Gradients flow as usual.
        """
        if (pixel_values is None) == (image_features is None):
            raise ValueError("encode_images takes either pixel_values or image_features")
        if image_features is None:
            image_features = self.vision_features(pixel_values)
        weight = self.projector.weight
        tokens_INW = self.projector(flatten_feature_map(image_features).to(device=weight.device, dtype=weight.dtype))
        grid = (image_features.shape[-2], image_features.shape[-1])
        positions_NP = position_code(grid, weight.device).to(weight.dtype)
        states = [layer.encode(tokens_INW, positions_NP) for layer in self.cross_attention]
        keys, values = zip(*states, strict=True)
        return ImageMemory(keys=keys, values=values, grid=grid, null_token=self.config.null_token)

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        image_memory: ImageMemory | None = None,
        image_index: Tensor | None = None,
        images_seen: Tensor | None = None,
        rows_per_image: int | None = None,
        attention_rows: Tensor | None = None,
        output_attention_maps: bool = False,
        **kwargs: Any,
    ) -> AgeVlmModelOutputWithPast:
        """Hidden states of text that looks at images. Arguments as for `AgeVlmForConditionalGeneration.forward`."""
        images = ImageInputs(pixel_values, image_features, image_memory, image_index, images_seen, rows_per_image)
        outputs, looked = self._run(
            self.language_model.get_decoder(),
            images,
            attention_rows,
            output_attention_maps,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache,
            **kwargs,
        )
        return AgeVlmModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            **of_decoder(outputs),
            **looked,
        )

    def _run(
        self,
        decoder: nn.Module,
        images: ImageInputs,
        attention_rows: Tensor | None,
        output_attention_maps: bool,
        *,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        cache: Any,
        **decoder_inputs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Run `decoder` (with or without its head) over text that looks at images; what it saw comes as a dict."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        images = images.encoded_by(self)
        if inputs_embeds is None:
            inputs_embeds = self.embed_text(input_ids)
        text_shape, image_token_id = inputs_embeds.shape[:2], self.config.image_token_id
        visibility = images.visibility(text_shape, input_ids, image_token_id, cache)
        decoder_inputs[CACHE] = cache
        if visibility is None:
            return decoder(inputs_embeds=inputs_embeds, **decoder_inputs), {"image_memory": images.image_memory}
        asked = attention_rows
        if output_attention_maps:
            asked = torch.arange(text_shape[1], device=inputs_embeds.device).expand(text_shape)
        context = ImageContext(
            self.cross_attention, self.config.decoder_layers_behind, images.image_memory, visibility, asked
        )
        outputs = decoder(inputs_embeds=inputs_embeds, image_context=context, **decoder_inputs)
        if context.num_applied != len(self.cross_attention):
            raise ValueError(
                f"{type(decoder).__name__} passed the images to {context.num_applied} of {len(self.cross_attention)} "
                "cross-attention layers: it does not hand keywords on to its layers, so it cannot be used here"
            )
        return outputs, looked_at(context, attention_rows, output_attention_maps)


class AgeVlmForConditionalGeneration(AgeVlmModel, AgeVlmGenerationMixin):
    """Text and images to text: the same modules and checkpoint as `AgeVlmModel`, with logits, loss and `generate`."""

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
        image_memory: ImageMemory | None = None,
        image_index: Tensor | None = None,
        images_seen: Tensor | None = None,
        rows_per_image: int | None = None,
        attention_rows: Tensor | None = None,
        output_attention_maps: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> AgeVlmCausalLMOutputWithPast:
        """Logits of text that looks at images, and the loss where labels are given.

        A text token sees the images of its row whose placeholder stands at or before it. Text that sees no image passes
        the cross-attention layers unchanged. With no images at all this is the decoder alone.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds, use_cache: as for the decoder.
            cache: what the decoder keeps of earlier text, a `Cache`; its older name `past_key_values` is taken as well.
            labels: (R, T), shifted here; -100 is ignored. The loss is the mean over the others, or their sum over
                `num_items_in_batch`. It is computed from logits at these positions alone.
            logits_to_keep: as for the decoder. Default: all, but none beside labels in training.
            pixel_values: images (I, 3, height, width) of all rows one after another. Or their `vision_features` as
                `image_features` (I, C, h, w), or an `image_memory` made by `encode_images`.
            image_index: (R, M), which image is a row's first, second, …, -1 for none. Default: images are dealt out in
                the order of the rows, as many to a row as it has placeholders. With a filled cache and several rows it
                must be given, unless each row has one image.
            images_seen: (R, T), how many of its row's images a token sees. Default: by the placeholders; with a filled
                cache, images without a placeholder in `input_ids` stand before it.
            rows_per_image: a promise that rows are image-major, as many for each image, each with that one image (or,
                where `images_seen` says so, none). The rows of an image then share its keys without a copy.
            attention_rows: (R, K) indices of text tokens whose attention weights are wanted as `row_weights`. The rest
                stays on the fused kernel.
            output_attention_maps: give `attention_maps` and `null_attention` for all text tokens.
            kwargs: go to the decoder (`output_hidden_states`, …).

        Raises:
            ValueError: placeholders and images differ in number, or shapes do not fit.
        """
        images = ImageInputs(pixel_values, image_features, image_memory, image_index, images_seen, rows_per_image)
        if labels is None:
            kwargs["logits_to_keep"] = 0 if logits_to_keep is None else logits_to_keep
        outputs, looked = self._run(
            self.language_model if labels is None else self.get_decoder(),
            images,
            attention_rows,
            output_attention_maps,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache,
            **kwargs,
        )
        if labels is None:
            said = {"logits": outputs.logits}
        else:
            head = Head(self.language_model, outputs)
            said = self._said(head, outputs.last_hidden_state, labels, num_items_in_batch, logits_to_keep)
        return AgeVlmCausalLMOutputWithPast(
            **said,
            **of_decoder(outputs),
            **looked,
        )


__all__ = [
    "AgeVlmCausalLMOutputWithPast",
    "AgeVlmForConditionalGeneration",
    "AgeVlmModel",
    "AgeVlmModelOutputWithPast",
    "AgeVlmPreTrainedModel",
]
