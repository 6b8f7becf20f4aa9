"""One picture and one question, up to the logits of the answer's first token: its time, its work, what it leaves.

Letters: I images, N image tokens of an image, T text tokens, H key/value heads, D head width, W model width.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from agevlm.data.chat import render_conversation
from agevlm.data.schema import Message
from agevlm.modeling.modeling_concat import ImageTokens
from agevlm.training.timing import flops, seconds


class FirstToken:
    """A model that has been asked a question about a picture, ready to be asked again.

    Its parts: `vision`, the pass of the vision model; `rest`, from its features to the logits; `further`, another
    question about the same picture with all kept that the architecture allows: the image memory, or for concatenation
    the decoder's keys and values of the image tokens.
    """

    @torch.inference_mode()
    def __init__(self, model: Any, processor: Any, picture: Image.Image, question: str) -> None:
        self.model = model.eval()
        text = render_conversation(processor, [Message("user", question, num_images=1)], True).text
        inputs = processor(text=[text], images=[[picture]], return_tensors="pt", add_special_tokens=False)
        self.ids_1T = inputs["input_ids"].to(model.device)
        self.pixels = inputs["pixel_values"].to(model.device)
        self.features = self._see()
        outputs = self._ask(image_features=self.features)
        self.logits, self.memory, self.cache = outputs.logits, outputs.image_memory, outputs.cache
        self.front = model.prefill_images(self.memory) if self._concatenates else None

    @property
    def num_image_tokens(self) -> int:
        """Image tokens that the text can look at, pooled ones where they are pooled."""
        height, width = self.memory.grid
        return int(height * width)

    @property
    def num_text_tokens(self) -> int:
        """Tokens of the question in its chat template."""
        return int(self.ids_1T.shape[1])

    @torch.inference_mode()
    def times(self) -> dict[str, float]:
        """Seconds of each part, run once, and of the `first` token: vision and rest together."""
        known = self._known()
        times = {
            "vision": seconds(self._see),
            "rest": seconds(lambda: self._ask(image_features=self.features)),
            "further": seconds(lambda: self._ask(**known)),
        }
        return {**times, "first": times["vision"] + times["rest"]}

    @torch.inference_mode()
    def flops(self) -> dict[str, int]:
        """Floating-point operations of the products in each part; attention runs eager, as fused it is not counted."""
        known, kernel = self._known(), self.model.language_model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            return {
                "vision": flops(self._see),
                "rest": flops(lambda: self._ask(image_features=self.features)),
                "further": flops(lambda: self._ask(**known)),
            }
        finally:
            self.model.set_attn_implementation(kernel)

    @torch.inference_mode()
    def further_logits(self) -> Tensor:
        """The logits (1, 1, vocabulary) of the question asked once more of the picture that is known."""
        return self._ask(**self._known()).logits

    def memory_bytes(self) -> dict[str, int]:
        """What picture and question leave, counted from tensors.

        `image_memory_bytes` are what `encode_images` gives: keys and values of cross-attention, or image tokens.
        `kv_cache_bytes` are the decoder's cache: text, and for concatenation the image tokens in front of it.
        """
        of_image = [self.memory.tokens] if self._concatenates else [*self.memory.keys, *self.memory.values]
        of_decoder = [tensor for layer in self.cache.layers for tensor in (layer.keys, layer.values)]
        image, decoder = (sum(tensor.nbytes for tensor in tensors) for tensors in (of_image, of_decoder))
        return {"image_memory_bytes": image, "kv_cache_bytes": decoder, "total_bytes": image + decoder}

    @property
    def _concatenates(self) -> bool:
        return isinstance(self.memory, ImageTokens)

    def _see(self) -> Tensor:
        return self.model.vision_features(self.pixels)

    def _ask(self, **images: Any) -> Any:
        return self.model(self.ids_1T, use_cache=True, logits_to_keep=1, **images)

    def _known(self) -> dict[str, Any]:
        """The arguments for a further question; a new cache each time, for the pass fills it."""
        if not self._concatenates:
            return {"image_memory": self.memory}
        return {"image_memory": self.front, "cache": DynamicCache(), "rows_per_image": 1}
