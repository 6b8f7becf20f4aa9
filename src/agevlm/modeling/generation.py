"""`generate` for text that looks at images: encoded once, shared by beams and samples, seen by every new token.

Letters: R rows of text, T text tokens, M images of a row at most.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from .cross_attention import ImageMemory
from .image_inputs import ImageInputs
from .interleaving import Visibility
from .outputs import AgeVlmCausalLMOutputWithPast
from .versions import CACHE, takes_cache


class AgeVlmGenerationMixin(GenerationMixin):
    """transformers' `generate` with the image arguments of `AgeVlmForConditionalGeneration.forward`."""

    @takes_cache
    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        image_memory: ImageMemory | None = None,
        image_index: Tensor | None = None,
        images_seen: Tensor | None = None,
        cache: Any = None,
        output_attention_maps: bool = False,
        compiled: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Continue text that looks at images; everything else is `GenerationMixin.generate`'s.

        The images are encoded once, and shared by beams and samples. A `cache` that is filled holds the start of the
        prompt. With `output_attention_maps` and `return_dict_in_generate` the result also has `attention_maps` and
        `null_attention` for every token of `sequences`, prompt and answer, from one more forward pass at the end.

        With `compiled` a new token is one compiled graph on a static cache: the same answers, sooner where Python takes
        longer than the products. The first answer in a process waits for the compiler, and so does the first of each
        number of rows and of each 256 tokens; no cache may be given. ValueError where the decoder has layers with a
        window, or there is no C++ compiler.
        """
        if output_attention_maps and not kwargs.get("return_dict_in_generate"):
            raise ValueError(
                "output_attention_maps needs return_dict_in_generate=True, or there is no place for the maps"
            )
        input_ids, inputs_embeds = kwargs.get("input_ids", inputs), kwargs.get("inputs_embeds")
        text = input_ids if inputs_embeds is None else inputs_embeds
        if text is None:
            raise ValueError("generate needs a prompt: pass input_ids")
        if output_attention_maps and inputs_embeds is not None:
            raise ValueError("attention maps of generated text need input_ids, not inputs_embeds")
        images = ImageInputs(pixel_values, image_features, image_memory, image_index, images_seen).encoded_by(self)
        visibility = images.visibility(text.shape[:2], input_ids, self.config.image_token_id)
        told = (
            {}
            if visibility is None
            else {"image_memory": images.image_memory, **_told(visibility, len(images.image_memory))}
        )
        if cache is not None:
            kwargs[CACHE] = cache
        with self._decoding(compiled, text.shape[1], kwargs):
            output = super().generate(inputs, **told, **kwargs)
        if output_attention_maps:
            maps = self._maps_of(output.sequences, kwargs.get("attention_mask"), told) if told else None
            output["attention_maps"] = maps and maps.attention_maps
            output["null_attention"] = maps and maps.null_attention
        return output

    def _decoding(self, compiled: bool, num_tokens: int, kwargs: dict[str, Any]) -> AbstractContextManager[None]:
        """Where new tokens are decoded; if `compiled`, the arguments of `generate` ask for a static cache of the prompt
        of `num_tokens` and what follows."""
        if not compiled:
            return nullcontext()
        if not hasattr(self, "cross_attention"):
            raise ValueError("compiled answers are of networks with cross-attention: generate without compiled=True")
        if kwargs.get(CACHE) is not None:
            raise ValueError("compiled answers make a static cache of their own: pass no cache, or leave compiled out")
        from .decoding import cache_length, compiled_decoding

        settings = kwargs.get("generation_config") or self.generation_config
        num_new = kwargs.get("max_new_tokens") or settings.max_new_tokens
        longest = num_tokens + num_new if num_new else kwargs.get("max_length") or settings.max_length or 0
        kwargs |= {"cache_implementation": "static", "disable_compile": True, "max_cache_len": cache_length(longest)}
        return compiled_decoding(self)

    def _maps_of(
        self, sequences: Tensor, attention_mask: Tensor | None, image_kwargs: dict[str, Any]
    ) -> AgeVlmCausalLMOutputWithPast:
        """One pass over finished sequences, several to a prompt, for their attention maps."""
        num_prompts, length = image_kwargs["images_seen"].shape
        each = sequences.shape[0] // num_prompts
        _, expanded = self._expand_inputs_for_generation(each, attention_mask=attention_mask, **image_kwargs)
        attention_mask = expanded.pop("attention_mask")
        if attention_mask is not None:
            answer = attention_mask.new_ones(sequences.shape[0], sequences.shape[1] - length)
            attention_mask = torch.cat([attention_mask, answer], dim=1)
        expanded["images_seen"] = _seen_between(expanded["images_seen"], 0, sequences.shape[1])
        return self(
            sequences, attention_mask, logits_to_keep=1, use_cache=False, output_attention_maps=True, **expanded
        )

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, images_seen: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As for any decoder; `images_seen` of the prompt is carried on to the tokens of this step."""
        model_inputs = super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)
        if images_seen is not None:
            new = model_inputs.get("inputs_embeds")
            num_new = (model_inputs["input_ids"] if new is None else new).shape[1]
            end = max(num_new, input_ids.shape[1] if attention_mask is None else attention_mask.shape[1])
            model_inputs["images_seen"] = _seen_between(images_seen, end - num_new, end)
        return model_inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat rows of text for beams and samples. Images are not repeated: all rows of a prompt share them."""
        rows_per_image = model_kwargs.pop("rows_per_image", None)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if rows_per_image is not None:
            model_kwargs["rows_per_image"] = rows_per_image * expand_size
        return input_ids, model_kwargs


def _told(visibility: Visibility, num_images: int) -> dict[str, Any]:
    """A visibility as arguments of `forward`; where rows come image by image, nothing will need to be gathered."""
    seen, index_RM = visibility.images_seen, visibility.image_index
    assert index_RM is not None
    each, left_over = divmod(index_RM.shape[0], num_images)
    image_major_R = torch.arange(num_images, device=index_RM.device).repeat_interleave(each)
    if not left_over and index_RM.shape[1] == 1 and torch.equal(index_RM[:, 0], image_major_R):
        return {"images_seen": seen, "rows_per_image": each}
    return {"images_seen": seen, "image_index": index_RM}


def _seen_between(images_seen: Tensor, start: int, end: int) -> Tensor:
    """How many images the tokens from `start` to `end` see, those behind the prompt as many as its last one."""
    columns = torch.arange(start, end, device=images_seen.device).clamp(max=images_seen.shape[1] - 1)
    return images_seen[:, columns]
